"""What collections are called in one registry: what they hold tells them apart, not what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from itertools import count
from typing import Any, NamedTuple

from mechir.errors import MechirError

LEAST = 6
"""Letters that the beginning of a hash has at least."""


COLUMNS = ("collection", "collection_full_name", "collection_sha256")
"""Of findings, what they know of a collection."""


class Named(NamedTuple):
    """A collection as a run names it; runs of older versions know its id alone."""

    id: str
    full_name: str = ""
    sha256: str = ""

    @property
    def unmistakable(self) -> str:
        """The id with the beginning of the hash."""
        return f"{self.id} ({self.sha256[:LEAST]})"


def collections_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The collection that a run is about, as columns of findings, and then each of several; `record`: its `run.json`.

    A record that does not say so knows the id alone.
    """
    identity = record["identity"]
    older = Named(identity.get("perturbed", identity["collection"]))
    return list(record.get("collections", [dict(zip(COLUMNS, older, strict=True))]))


def named(record: Mapping[str, Any]) -> Named:
    """The collection that a run is about."""
    return Named(*(collections_of(record)[0][name] for name in COLUMNS))


def on(record: Mapping[str, Any], names: Mapping[Named, str]) -> str:
    """What a run is on: a collection by its shown name, or a diagnostic of it."""
    identity = record["identity"]
    name = names[named(record)]
    of_collection = identity.get("perturbed", identity["collection"]) != identity["collection"]
    return f"{identity['axiom']} of {name}" if of_collection else name


def shown(found: Iterable[Named]) -> dict[Named, str]:
    """The name under which each is shown, which no other content has.

    The same content has one name, that of its last. What an older run calls so is the one collection of that id, if
    there is but one.
    """
    ordered = sorted(found, key=lambda one: one.sha256 != "")  # what knows more has the last word
    hashes: dict[str, set[str]] = {}
    for one in ordered:
        hashes.setdefault(one.id, set()).update({one.sha256} - {""})
    contents = {one: _content(one, hashes[one.id]) for one in ordered}
    names = _names({content: one for one, content in contents.items()})
    return {one: names[content] for one, content in contents.items()}


def _content(one: Named, hashes: Set[str]) -> str:
    """What tells a collection from others: its hash, where it is not known the only one of its id, or else the id."""
    return one.sha256 or (next(iter(hashes)) if len(hashes) == 1 else f"id {one.id}")


def _names(contents: Mapping[str, Named]) -> dict[str, str]:
    """By content: the id, with the folder above it where two share the id, or else with the beginning of the hash."""
    ids = Counter(one.id for one in contents.values())
    longer = Counter(one.full_name for one in contents.values())
    hashes = {one.sha256 for one in contents.values()}
    size = next(n for n in count(LEAST) if len({text[:n] for text in hashes}) == len(hashes))
    names = {}
    for content, one in contents.items():
        if ids[one.id] == 1:
            names[content] = one.id
        elif one.sha256 and longer[one.full_name] == 1 and one.full_name not in ids:
            names[content] = one.full_name
        else:
            names[content] = f"{one.id} ({one.sha256[:size] or 'of an older run'})"
    return names


def meant(given: str | Named, names: Mapping[Named, str]) -> str:
    """The shown name of the collection that is meant.

    Args:
        given: an id, a longer or a shown name, the beginning of a hash; or the collection itself.
        names: as `shown` gives them.

    Returns:
        The name; what none is called as it is given.

    Raises:
        MechirError: for what may be several, with the names of all.
    """
    if isinstance(given, Named):
        same = [name for one, name in names.items() if one.sha256 == given.sha256]
        older = [name for one, name in names.items() if one == Named(given.id)]
        return [*same, *older, given.unmistakable if given.id in names.values() else given.id][0]
    if given in names.values():
        return given
    matches = {name for one, name in names.items() if given in (one.id, one.full_name)}
    if not matches and len(given) >= LEAST:
        matches = {name for one, name in names.items() if one.sha256.startswith(given)}
    if len(matches) > 1:
        listed = " or ".join(f"'{name}'" for name in sorted(matches))
        raise MechirError(f"'{given}' is {len(matches)} collections here: write {listed}.")
    return next(iter(matches), given)
