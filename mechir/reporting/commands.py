"""The command that makes a run again, from its record."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mechir.catalog import experiments, load_experiment
from mechir.collection_groups import in_group
from mechir.irds import is_dataset
from mechir.perturbed import FILLERS

DEFAULTS: dict[str, Any] = {"model": "embedded", "filler": list(FILLERS), "swap": False, "seed": 0}
"""Of what the command line is given, what need not be written."""


def command(record: Mapping[str, Any]) -> str:
    """`mechir run ...` as it makes this run: its experiment, model, collection, pool, and options that were chosen.

    `record["asked"]` are the options that were given; a record without it holds those that the experiment found too.
    """
    identity = record["identity"]
    words = ["mechir", "run", experiment_word(record), *flags(told := given(record))]
    name = identity["experiment"]
    asked = dict(record.get("asked", identity["options"]))
    if name in experiments():
        defaults = {key: one.written(one.default) for key, one in load_experiment(name).options().items()}
        asked = {key: asked[key] for key in defaults if key in asked and asked[key] != defaults[key]}
    words += flags({key: value for key, value in asked.items() if key != "seed" or not told.get("seed")})
    words += flags({"dtype": None if identity["dtype"] == "float32" else identity["dtype"]})
    device = identity.get("device", "cpu")  # of older runs; where a run is computed is no part of it any more
    words += flags({"device": None if device == "cpu" else device})
    return shlex.join(words)


def experiment_word(record: Mapping[str, Any]) -> str:
    """The experiment as the command line takes it: its name, or a file."""
    name = record["identity"]["experiment"]
    return str(name if name in experiments() else record.get("file", f"{name}.py"))


def given(record: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command line, but those of the experiment, and their values; defaults are left out."""
    options_given = dict(record.get("given") or _older(record))
    if "collection" in options_given:
        options_given["collection"] = [openable(one) for one in options_given["collection"]]
    elif "data" not in options_given:
        options_given["data"] = "PATH"
    return {name: value for name, value in options_given.items() if value != DEFAULTS.get(name)}


def _older(record: Mapping[str, Any]) -> dict[str, Any]:
    """What an older record says of it: no folder, and of a diagnostic set not how it was sampled."""
    identity = record["identity"]
    options_given: dict[str, Any] = {"model": record["model"]}
    if "fillers" not in identity:
        return options_given | {"collection": several(identity["collection"])} | identity["pool"]
    options_given["diagnostic"] = identity.get("axiom", identity["collection"])
    published = identity.get("perturbed", identity["collection"]) == identity["collection"]
    options_given |= {} if published else {"collection": several(identity["perturbed"])}
    return options_given | {"filler": list(identity["fillers"]), "swap": identity["swap"]} | identity["pool"]


def several(collection: str) -> list[str]:
    """The collections of an id such as `in:dl19+out:cranfield`."""
    return collection.split("+") if ":" in collection else [collection]


def openable(collection: str) -> str:
    """What opens a collection; of one of which only the name is known, PATH stands before it."""
    group, colon, name = collection.partition(":") if in_group(collection) else ("", "", collection)
    known = name == "embedded" or Path(name).is_absolute() or _is_dataset(name)
    return f"{group}{colon}{name if known else f'PATH/{name}'}"


@cache
def _is_dataset(name: str) -> bool:
    return is_dataset(name)


def on(records: Sequence[Mapping[str, Any]], model: str, collection: str) -> dict[str, Any]:
    """The options that name a model and a collection, as one of their runs was given them.

    Args:
        records: of runs of this model on this collection, the newest first.
        model: its name, where no record says where it lies.
        collection: its id, likewise.
    """
    options_given = next((given(one) for one in records if _located(one)), {})
    if not options_given:
        options_given = {
            "model": None if model == DEFAULTS["model"] else model,
            "collection": map(openable, several(collection)),
        }
    return {"model": options_given.get("model"), "collection": list(options_given["collection"])}


def _located(record: Mapping[str, Any]) -> bool:
    """Whether a record says how its collection is opened."""
    return bool(record.get("given", {}).get("collection"))


def flags(chosen: Mapping[str, Any]) -> Iterator[str]:
    """The words of options: those of a list once for each, of False and None none."""
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif value is not None and value is not False:
            for one in value if isinstance(value, list) else [value]:
                yield from (flag, str(one))


def remark(record: Mapping[str, Any]) -> str:
    """What the command does not say."""
    identity, remarks = record["identity"], []
    if "PATH" in " ".join(flags({name: given(record).get(name) for name in ("collection", "data")})):
        remarks.append("PATH stands for the directory, which is not recorded.")
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
    seeds = {int(one["seed"]) for one in (drawn, identity["options"]) if "seed" in one}
    if len(seeds) > 1:
        remarks.append(
            "Its sample was drawn by another seed than the rest, which one --seed cannot say: use mechir.run."
        )
    return " ".join(remarks)
