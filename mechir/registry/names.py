"""Names of collections in one registry, which tell contents apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from mechir.errors import MechirError

LEAST = 6
"""The fewest letters of a hash that stand for it."""
COLUMNS = ("collection", "collection_full_name", "collection_sha256")
"""The columns of findings that identify a collection."""


class Named(NamedTuple):
    """A collection as a run names it; runs of older versions give its id alone."""

    id: str
    full_name: str = ""
    sha256: str = ""


def model_name(name: str) -> str:
    """The name of a model as it is shown: of a whole path the last part, for fingerprints tell models apart."""
    return Path(name).name if Path(name).is_absolute() else name


def collections_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The collection of a run, as columns of findings, and then each of several; `record`: its `run.json`."""
    identity = record["identity"]
    older = Named(identity.get("perturbed", identity["collection"]))
    return list(record.get("collections", [dict(zip(COLUMNS, older, strict=True))]))


def named(record: Mapping[str, Any]) -> Named:
    """The collection of a run."""
    return Named(*(collections_of(record)[0][name] for name in COLUMNS))


def on(record: Mapping[str, Any], names: Mapping[Named, str]) -> str:
    """The shown name of the collection of a run, with the diagnostic where it was perturbed."""
    identity, name = record["identity"], names[named(record)]
    perturbed = identity.get("perturbed", identity["collection"]) != identity["collection"]
    return f"{identity['axiom']} of {name}" if perturbed else name


def shown(collections: Iterable[Named]) -> dict[Named, str]:
    """The name under which each is shown, which no other content has.

    The same content has one name, that of its last. A collection without a hash, of an older run, is the only
    collection of that id, if there is only one.
    """
    ordered = sorted(collections, key=lambda named: named.sha256 != "")  # those with a hash come last and count
    hashes: dict[str, set[str]] = {}
    for named in ordered:
        hashes.setdefault(named.id, set()).update({named.sha256} - {""})
    contents = {}
    for named in ordered:
        same = hashes[named.id]
        contents[named] = named.sha256 or (next(iter(same)) if len(same) == 1 else f"id {named.id}")
    names = _names({content: named for named, content in contents.items()})
    return {named: names[content] for named, content in contents.items()}


def _names(contents: Mapping[str, Named]) -> dict[str, str]:
    """By content: the id, with the folder above it where two share the id, or else with the beginning of the hash."""
    ids = Counter(named.id for named in contents.values())
    longer = Counter(named.full_name for named in contents.values())
    hashes = {named.sha256 for named in contents.values()}
    size = next(n for n in count(LEAST) if len({text[:n] for text in hashes}) == len(hashes))
    names = {}
    for content, named in contents.items():
        if ids[named.id] == 1:
            names[content] = named.id
        elif named.sha256 and longer[named.full_name] == 1 and named.full_name not in ids:
            names[content] = named.full_name
        else:
            names[content] = f"{named.id} ({named.sha256[:size] or 'of an older run'})"
    return names


def meant(given: str | Named, names: Mapping[Named, str]) -> str:
    """The shown name of a collection; an unknown one is returned as it is given.

    Args:
        given: an id, a longer or a shown name, the beginning of a hash; or the collection itself.
        names: as `shown` gives them.

    Raises:
        MechirError: for a name of several, with the names of all.
    """
    if isinstance(given, Named):
        same = [name for named, name in names.items() if named.sha256 == given.sha256]
        older = [name for named, name in names.items() if named == Named(given.id)]
        unknown = f"{given.id} ({given.sha256[:LEAST]})" if given.id in names.values() else given.id
        return [*same, *older, unknown][0]
    if given in names.values():
        return given
    matches = {name for named, name in names.items() if given in (named.id, named.full_name)}
    if not matches and len(given) >= LEAST:
        matches = {name for named, name in names.items() if named.sha256.startswith(given)}
    if len(matches) > 1:
        listed = " or ".join(f"'{name}'" for name in sorted(matches))
        raise MechirError(f"'{given}' is {len(matches)} collections here: write {listed}.")
    return next(iter(matches), given)
