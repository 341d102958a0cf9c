"""The command that repeats a run, from its record."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mechir.catalog import experiments, shipped
from mechir.collection_groups import in_group
from mechir.irds import is_dataset
from mechir.judged_collection import IN_MEMORY
from mechir.perturbed import FILLERS

DEFAULTS: dict[str, Any] = {"model": "embedded", "filler": list(FILLERS), "swap": False, "seed": 0}
"""Values of options that need not be written."""
PLACES = ("model", "collection", "data", "diagnostic")
"""Options that say what a run is on."""
_known_dataset = cache(is_dataset)


def command(record: Mapping[str, Any]) -> str:
    """`mechir run ...` that makes this run: its experiment, model, collection, pool, and options that were chosen.

    `record["asked"]` are the options that were given; older records hold those that the experiment computed as well.
    """
    name = record["identity"]["experiment"]
    word = name if name in experiments() else str(record.get("file", f"{name}.py"))
    general, options = _chosen(record)
    return shlex.join(["mechir", "run", word, *flags(general), *flags(options)])


def chosen(record: Mapping[str, Any]) -> list[str]:
    """The words of the command that makes this run, without those for its model and collection."""
    general, options = _chosen(record)
    return [*flags(options), *flags({name: value for name, value in general.items() if name not in PLACES})]


def _chosen(record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the command line, and those of the experiment, that were chosen."""
    identity, general = record["identity"], given(record)
    options = dict(record.get("asked", identity["options"]))
    if kind := shipped(identity["experiment"]):
        defaults = {key: option.written(option.default) for key, option in kind.options().items()}
        options = {key: options[key] for key in defaults if key in options and options[key] != defaults[key]}
    if general.get("seed"):
        options.pop("seed", None)
    # The device stands in records of older runs; a run no longer depends on it.
    usual = {"dtype": "float32", "device": "cpu"}
    return general, options | {key: identity[key] for key, value in usual.items() if identity.get(key, value) != value}


def given(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the command line, without those of the experiment, and their values other than the defaults."""
    options = dict(record.get("given") or _older(record))
    if "collection" in options:
        options["collection"] = [openable(name) for name in options["collection"]]
    elif "data" not in options:
        options["data"] = "PATH"
    return {name: value for name, value in options.items() if value != DEFAULTS.get(name)}


def _older(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options in an older record, which has no folder, and for a diagnostic set no sample."""
    identity = record["identity"]
    options: dict[str, Any] = {"model": record["model"]}
    if "fillers" not in identity:
        return options | {"collection": several(identity["collection"])} | identity["pool"]
    options["diagnostic"] = identity.get("axiom", identity["collection"])
    published = identity.get("perturbed", identity["collection"]) == identity["collection"]
    options |= {} if published else {"collection": several(identity["perturbed"])}
    return options | {"filler": list(identity["fillers"]), "swap": identity["swap"]} | identity["pool"]


def several(collection: str) -> list[str]:
    """The collections of an id such as `in:dl19+out:cranfield`."""
    return collection.split("+") if ":" in collection else [collection]


def openable(collection: str) -> str:
    """The name that opens a collection, with PATH before it where its folder is not known."""
    group, colon, name = collection.partition(":") if in_group(collection) else ("", "", collection)
    named = name == "embedded" or Path(name).is_absolute() or _known_dataset(name)
    return f"{group}{colon}{name if named else f'PATH/{name}'}"


def on(records: Sequence[Mapping[str, Any]], model: str, collection: str) -> dict[str, Any]:
    """The options that name a model and a collection, taken from one of their runs.

    Args:
        records: of runs of this model on this collection, the newest first.
        model: its name, used where no record has its place.
        collection: its id, likewise.
    """
    for record in records:
        if record.get("given", {}).get("collection"):
            options = given(record)
            grouped = [name for name in options["collection"] if in_group(name) and Path(name).name == collection]
            alone = [name.partition(":")[2] for name in grouped]  # one of those that a run took together
            return {"model": options.get("model"), "collection": alone or options["collection"]}
    named = None if model == DEFAULTS["model"] else model
    return {"model": named, "collection": [openable(name) for name in several(collection)]}


def flags(chosen: Mapping[str, Any]) -> Iterator[str]:
    """The words of options: a list repeats its flag, True is the flag alone, False and None are nothing."""
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif value is not None and value is not False:
            for item in value if isinstance(value, list) else [value]:
                yield from (flag, str(item))


def remark(record: Mapping[str, Any]) -> str:
    """Notes on everything that the command cannot express."""
    identity, remarks = record["identity"], []
    if "PATH" in " ".join(flags({name: given(record).get(name) for name in ("collection", "data")})):
        named = " ".join(record.get("given", {}).get("collection", []))
        remarks.append(
            "PATH stands for a directory with queries.tsv, docs.tsv and qrels.txt: the collection was in memory."
            if IN_MEMORY in named
            else "PATH stands for the directory, which is not recorded."
        )
    if identity["experiment"] not in experiments():
        remarks.append("The experiment is a file of your own.")
    if "fillers" in identity and "seed" not in record.get("given", {}):
        remarks.append(
            f"How the diagnostic set was sampled is not recorded: it had {record['queries']} queries "
            "(--limit-queries, --per-grade)."
        )
    if "fresh" in identity:
        remarks.append("It was measured with --fresh: the command makes a run of its own.")
    drawn = record.get("given", {} if "fillers" in identity else identity["pool"])
    seeds = {int(options["seed"]) for options in (drawn, identity["options"]) if "seed" in options}
    if len(seeds) > 1:
        remarks.append(
            "Its sample was drawn by another seed than the rest, which one --seed cannot say: use mechir.run."
        )
    return " ".join(remarks)
