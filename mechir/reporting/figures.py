"""Runs as the report shows them: the chart, where it comes from, and the command that made it."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import pandas as pd

from mechir.diagnostic_sets import FILLERS
from mechir.experiment import experiments, load_experiment, shown
from mechir.irds import is_dataset
from mechir.options import options
from mechir.registry.runs import Run

FIRST = (
    "joint/pathway",
    "vast2025/direction_ablation",
    "vast2025/layer_sweep",
    "vast2025/attention_contrast",
    "vast2025/qk_svd",
    "vast2025/qk_projection",
    "lu2025/soft_tf",
    "lu2025/idf_direction",
    "lu2025/idf_edit",
    "lu2025/semantic_bm25",
    "chen2024/head_maps",
    "lu2025/head_to_score",
    "lu2025/head_to_heads",
    "vast2024/importance",
    "vast2024/pruning",
)
"""Experiments in the order of the figures; the others follow by name."""
ROWS = 40
"""Of a summary, rows that the page shows."""
CHART = 400_000
"""Characters of a chart's specification above which the page only says where it lies."""


def place(experiment: str) -> tuple[int, str]:
    """Where the figures of an experiment stand."""
    return (FIRST.index(experiment) if experiment in FIRST else len(FIRST), experiment)


def newest(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, str]]]:
    """Of runs of one model and collection, the newest finished one of each experiment; the others, and why.

    Runs on two diagnostics are two experiments. `runs`: the newest first.
    """
    shown: dict[tuple[str, ...], Run] = {}
    others = []
    for run in runs:
        record = run.record
        identity = record["identity"]
        key = identity["experiment"], identity.get("axiom"), identity.get("swap")
        if not (run.path / "summary.parquet").is_file():
            others.append((run, f"not finished: {len(run.done())} of {record['units']} units"))
        elif key in shown:
            others.append((run, f"older than run {shown[key].id}"))
        else:
            shown[key] = run
    return sorted(shown.values(), key=lambda run: place(run.record["identity"]["experiment"])), others


def figure(run: Run) -> dict[str, Any]:
    """One run as the page shows it: `title`, `chart` (a Vega-Lite specification, or None with a `note`), ..."""
    record = run.record
    name = record["identity"]["experiment"]
    chart, note = _chart(run)
    summary = shown(name, run.summary).dropna(axis=1, how="all")
    rows = [[_cell(value) for value in row] for row in summary.head(ROWS).itertuples(index=False)]
    return {
        "run": run.id,
        "experiment": name,
        "title": _title(name, record["identity"]),
        "chart": chart,
        "note": note,
        "table": {"columns": list(map(str, summary.columns)), "rows": rows, "of": len(summary)},
        "provenance": list(provenance(record)),
        "command": command(record),
        "remark": remark(record),
    }


def _chart(run: Run) -> tuple[dict[str, Any] | None, str]:
    file = run.path / "chart.json"
    if not file.is_file():
        return None, f"This run stored no specification of its chart, only runs/{run.id}/chart.html in the registry."
    text = file.read_text(encoding="utf-8")
    if len(text) > CHART:
        return None, f"Too large for this page: see runs/{run.id}/chart.html in the registry."
    spec = json.loads(text)
    spec.pop("usermeta", None)  # may set options of the page's own drawing
    return spec, ""


def _cell(value: Any) -> Any:
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else getattr(value, "item", lambda: str(value))()


def _title(name: str, identity: Mapping[str, Any]) -> str:
    first = name
    if name in experiments():
        first = (inspect.getdoc(_module(name)) or name).partition("\n")[0].rstrip(".")
    return f"{first} ({diagnostic_of(identity)})" if "fillers" in identity else first


def diagnostic_of(identity: Mapping[str, Any]) -> str:
    """The diagnostic that contrasts are of."""
    return str(identity.get("axiom", identity["collection"])) + (", swapped" if identity.get("swap") else "")


@cache
def _module(name: str) -> ModuleType:
    return load_experiment(name)


def provenance(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the numbers of a run come from: names and values."""
    identity, parity = record["identity"], record["certificate"]
    what = "contrasts" if "fillers" in identity else "pairs"
    skipped = f", {record['skipped']} pairs gave none" if record.get("skipped") else ""
    revision = f", revision {record['model_revision'][:12]}" if record.get("model_revision") else ""
    yield "experiment", identity["experiment"]
    yield "run", record["id"]
    yield "model", f"{record['model']}, fingerprint {identity['model_fingerprint'][:12]}{revision}"
    yield "collection", f"{identity['collection']}, SHA-256 {identity['collection_sha256'][:12]}"
    yield "measured on", f"{record['queries']} queries, {record['pairs']} {what}{skipped}"
    yield "documents cut short", str(record["truncated_documents"])
    yield "seed", str(identity["options"].get("seed", identity["pool"]["seed"]))
    yield (
        "parity with Hugging Face",
        f"scores {parity['score_cls_only']:.1e} (relative), patterns {parity['pattern']:.1e}, "
        f"on {parity['n_pairs']} pairs",
    )
    yield "numbers", f"{identity['dtype']} on {identity['device']}"
    yield "mechir", identity["mechir"] + (f", commit {record['commit'][:12]}" if record.get("commit") else "")
    yield "started", record["started"]


def command(record: Mapping[str, Any]) -> str:
    """`mechir run ...` as it makes this run: its experiment, model, collection, pool, and options that were chosen.

    `record["asked"]` are the options that were given; a record without it holds those that the experiment found too.
    """
    identity = record["identity"]
    words = ["mechir", "run", experiment_word(identity["experiment"]), *source_words(record["model"], identity)]
    pool = dict(identity["pool"])
    pool["seed"] = pool["seed"] or None
    words += _flags(pool)
    name = identity["experiment"]
    asked = record.get("asked", identity["options"])
    if name in experiments():
        defaults = {key: one.default for key, one in options(_module(name)).items()}
        asked = {key: asked[key] for key in defaults if key in asked and asked[key] != defaults[key]}
    words += _flags({key: value for key, value in asked.items() if key != "seed" or not pool["seed"]})
    words += _flags({"dtype": None if identity["dtype"] == "float32" else identity["dtype"]})
    words += _flags({"device": None if identity["device"] == "cpu" else identity["device"]})
    return shlex.join(words)


def experiment_word(name: str) -> str:
    """The experiment as the command line takes it: its name, or a file."""
    return name if name in experiments() else f"{name}.py"


def source_words(model: str, identity: Mapping[str, Any]) -> Iterator[str]:
    """The options that name the model and what it was run on."""
    yield from model_words(model)
    if "fillers" not in identity:
        yield from collection_words(identity["collection"])
        return
    yield from ("--diagnostic", identity.get("axiom", identity["collection"]))
    if identity.get("perturbed", identity["collection"]) == identity["collection"]:
        yield from ("--data", "PATH")
    else:
        yield from collection_words(identity["perturbed"])
    if tuple(identity["fillers"]) != tuple(FILLERS):
        for filler in identity["fillers"]:
            yield from ("--filler", filler)
    if identity["swap"]:
        yield "--swap"


def model_words(model: str) -> Sequence[str]:
    """The option that names a model."""
    return () if model == "embedded" else ("--model", model)


def collection_words(collection: str) -> Iterator[str]:
    """The options that name a collection; of one in a directory only the name is known, and PATH stands before it."""
    several = collection.split("+") if ":" in collection else [collection]
    for one in several:
        group, colon, name = one.rpartition(":")
        known = name == "embedded" or _is_dataset(name)
        yield from ("--collection", f"{group}{colon}{name if known else f'PATH/{name}'}")


@cache
def _is_dataset(name: str) -> bool:
    return is_dataset(name)


def _flags(chosen: Mapping[str, Any]) -> Iterator[str]:
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif value is not None and value is not False:
            yield from (flag, f"{value:g}" if isinstance(value, float) else str(value))


def remark(record: Mapping[str, Any]) -> str:
    """What the command does not say."""
    identity, told = record["identity"], []
    if "PATH" in " ".join(source_words(record["model"], identity)):
        told.append("PATH stands for the directory, which is not recorded.")
    if identity["experiment"] not in experiments():
        told.append("The experiment is a file of your own.")
    if "fillers" in identity:
        told.append(
            f"How the diagnostic set was sampled is not recorded: it had {record['queries']} queries "
            "(--limit-queries, --per-grade)."
        )
    return " ".join(told)
