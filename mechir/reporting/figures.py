"""Runs as the report shows them: the chart, where it comes from, and what stands on it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mechir import left_out
from mechir.catalog import experiments, load_experiment, shown
from mechir.registry.findings import seed_of
from mechir.registry.names import named
from mechir.registry.runs import Run
from mechir.reporting.commands import command, remark
from mechir.reranker import score_parity

ROWS = 40
"""Of a summary, rows that the page shows."""
CHART = 400_000
"""Characters of a chart's specification above which the page only says where it lies."""
CHARTS = 5_000_000
"""Characters of all charts above which it does so of the rest."""


def place(experiment: str) -> tuple[float, str]:
    """Where the figures of an experiment stand: those with a place first, the others by name."""
    figure = load_experiment(experiment).figure if experiment in experiments() else None
    return (math.inf if figure is None else float(figure), experiment)


def drawn(runs: Sequence[Run], claims: Mapping[str, Sequence[str]]) -> tuple[list[Run], list[tuple[Run, str]]]:
    """Of runs of one model and collection, those that are drawn, by experiment; the others, and why.

    Drawn are the finished runs that findings stand on, and of each experiment the newest. Runs on two diagnostics are
    two experiments. `runs`: the newest first; `claims`: by the id of a run the measures that stand on it.
    """
    newest: dict[tuple[str, ...], Run] = {}
    kept, others = [], []
    for run in runs:
        record = run.record
        identity = record["identity"]
        key = identity["experiment"], identity.get("axiom"), identity.get("swap")
        if not (run.path / "summary.parquet").is_file():
            others.append((run, f"not finished: {len(run.done())} of {record['units']} units"))
        elif newest.setdefault(key, run) is run or run.id in claims:
            kept.append(run)
        else:
            others.append((run, f"older than run {newest[key].id}"))
    return sorted(kept, key=lambda run: place(run.record["identity"]["experiment"])), others


def figures(runs: Sequence[Run], claims: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Every run as the page shows it, with what stands on it, while there is room for the charts."""
    made, size = [], 0
    for run in runs:
        one = figure(run, size)
        size += len(json.dumps(one["chart"]))
        made.append(one | {"claims": list(claims.get(run.id, ()))})
    return made


def figure(run: Run, before: int = 0) -> dict[str, Any]:
    """One run as the page shows it: `title`, `chart` (a Vega-Lite specification, or None with a `note`), ...

    `before`: characters of the charts that the page has already.
    """
    record = run.record
    name = record["identity"]["experiment"]
    chart, note = _chart(run, before)
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


def _chart(run: Run, before: int) -> tuple[dict[str, Any] | None, str]:
    file = run.path / "chart.json"
    if not file.is_file():
        return None, f"This run stored no specification of its chart, only runs/{run.id}/chart.html in the registry."
    text = file.read_text(encoding="utf-8")
    if len(text) > CHART or before + len(text) > CHARTS:
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
        first = (inspect.getdoc(load_experiment(name)) or name).partition("\n")[0].rstrip(".")
    return f"{first} ({diagnostic_of(identity)})" if "fillers" in identity else first


def diagnostic_of(identity: Mapping[str, Any]) -> str:
    """The diagnostic that contrasts are of."""
    return str(identity.get("axiom", identity["collection"])) + (", swapped" if identity.get("swap") else "")


def provenance(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the numbers of a run come from: names and values."""
    identity, parity = record["identity"], record["certificate"]
    what = "contrasts" if "fillers" in identity else "pairs"
    skipped = f", {record['skipped']} pairs gave none" if record.get("skipped") else ""
    revision = f", revision {record['model_revision'][:12]}" if record.get("model_revision") else ""
    yield "experiment", identity["experiment"]
    yield "run", record["id"]
    yield "model", f"{record['model']}, fingerprint {identity['model_fingerprint'][:12]}{revision}"
    on, asked = named(record), record.get("given", {})
    yield "collection", f"{on.id}, SHA-256 {(on.sha256 or identity['collection_sha256'])[:12]}"
    folders = [*asked.get("collection", ()), *([asked["data"]] if "data" in asked else [])]
    if folders:
        yield "read from", ", ".join(folders)
    if "fillers" in identity and on.id != identity["collection"]:
        yield "contrasts", f"{identity['collection']}, SHA-256 {identity['collection_sha256'][:12]}"
    sample = {name: asked.get(name, value) for name, value in identity["pool"].items() if name != "seed"}
    if chosen := [f"{name} {value}" for name, value in sample.items() if value is not None]:
        yield "sampled", ", ".join(chosen)
    yield "measured on", f"{record['queries']} queries, {record['pairs']} {what}{skipped}"
    if told := left_out.sentences(record.get("left_out", {})):
        yield "left out", "; ".join(line.removeprefix("left out: ") for line in told)
    yield "documents cut short", str(record["truncated_documents"])
    yield "seed", str(seed_of(record))
    yield (
        "parity with Hugging Face",
        f"scores {score_parity(parity):.1e} (relative), patterns {parity['pattern']:.1e}, on {parity['n_pairs']} pairs",
    )
    devices = record.get("devices") or [
        identity.get("device", "not measured yet")
    ]  # of older runs part of the identity
    yield "numbers", f"{identity['dtype']} on {', '.join(devices)}"
    yield "mechir", identity["mechir"] + (f", commit {record['commit'][:12]}" if record.get("commit") else "")
    yield "started", record["started"]
