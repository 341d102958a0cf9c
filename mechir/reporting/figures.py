"""Runs as the report shows them: the chart, its provenance, and the measures that rest on it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mechir import left_out
from mechir.catalog import shipped, shown
from mechir.registry.findings import seed_of
from mechir.registry.names import named
from mechir.registry.runs import Run
from mechir.reporting.commands import chosen, command, remark
from mechir.reranker import in_words

ROWS = 40
"""Rows of a summary that the page shows."""
CHART = 400_000
"""Characters of a chart's specification, beyond which the page only names its file."""
CHARTS = 5_000_000
"""Characters of all charts, beyond which it does so for the rest."""


def drawn(
    runs: Sequence[Run], claims: Mapping[str, Sequence[str]], linking: Collection[str] = ()
) -> tuple[list[Run], list[tuple[Run, str]]]:
    """Divides runs of one model and collection into those to draw, by experiment, and the others with the reason.

    One finished run is drawn of each experiment, diagnostic and set of options: one on which links stand, or else other
    findings, or else the newest. Of one experiment those on which links stand come first, then those with findings.

    Args:
        runs: the newest first.
        claims: the measures that rest on a run, by its id.
        linking: the ids of runs on which links stand.
    """
    alike: dict[str, list[Run]] = {}
    others = []
    for run in runs:
        if run.finished:
            alike.setdefault(_asked(run.record), []).append(run)
        else:
            others.append((run, f"not finished: {len(run.done())} of {run.record['units']} units"))
    charted = []
    for same in alike.values():
        first = min(same, key=lambda run: (run.id not in linking, run.id not in claims))  # else the newest
        charted.append(first)
        why = "links stand" if first.id in linking else "findings stand" if first.id in claims else ""
        reason = f", on which {why}" if why else ", which is newer"
        others += [(run, f"run {first.id} has the same options{reason}") for run in same if run is not first]

    def place(run: Run) -> tuple[float, str, bool, bool]:
        name = run.record["identity"]["experiment"]
        figure = getattr(shipped(name), "figure", None)
        return (math.inf if figure is None else float(figure), name, run.id not in linking, run.id not in claims)

    return sorted(charted, key=place), others


def _asked(record: Mapping[str, Any]) -> str:
    """The experiment of a run, its diagnostic and its options, as one text."""
    identity = record["identity"]
    options = dict(record.get("asked", identity["options"]))
    return json.dumps([identity["experiment"], identity.get("axiom"), identity.get("swap"), options], sort_keys=True)


def figures(runs: Sequence[Run], claims: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """The data of runs: title, chart (a specification, or None with a note), table, provenance, command, claims."""
    made, size = [], 0
    for run in runs:
        record = run.record
        name = record["identity"]["experiment"]
        chart, note = _chart(run, size)
        size += len(json.dumps(chart))
        summary = shown(name, run.summary).dropna(axis=1, how="all")
        rows = [[_cell(value) for value in row] for row in summary.head(ROWS).itertuples(index=False)]
        data = {"run": run.id, "experiment": name, "title": _title(name, record["identity"])}
        data |= {"about": _about(record), "chart": chart, "note": note, "claims": list(claims.get(run.id, ()))}
        data |= {"table": {"columns": list(map(str, summary.columns)), "rows": rows, "of": len(summary)}}
        data |= {"provenance": list(provenance(record)), "command": command(record), "remark": remark(record)}
        made.append(data)
    return made


def _about(record: Mapping[str, Any]) -> str:
    """What a run was measured on, and its options."""
    noun = "contrasts" if "fillers" in record["identity"] else "pairs"
    options = " ".join(chosen(record))
    return f"{record['queries']:,} queries, {record['pairs']:,} {noun}{f'; {options}' if options else ''}"


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
    doc = inspect.getdoc(kind) if (kind := shipped(name)) else None
    first = (doc or name).partition("\n")[0].rstrip(".")
    diagnostic = str(identity.get("axiom", identity["collection"])) + (", swapped" if identity.get("swap") else "")
    return f"{first} ({diagnostic})" if "fillers" in identity else first


def provenance(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The provenance of a run's numbers: names and values."""
    identity, parity = record["identity"], record["certificate"]
    noun = "contrasts" if "fillers" in identity else "pairs"
    skipped = f", {record['skipped']} pairs gave no contrast" if record.get("skipped") else ""
    revision = f", revision {record['model_revision'][:12]}" if record.get("model_revision") else ""
    yield "experiment", identity["experiment"]
    yield "run", record["id"]
    yield "model", f"{record['model']}, fingerprint {identity['model_fingerprint'][:12]}{revision}"
    on, given = named(record), record.get("given", {})
    yield "collection", f"{on.id}, SHA-256 {(on.sha256 or identity['collection_sha256'])[:12]}"
    if folders := [*given.get("collection", ()), *([given["data"]] if "data" in given else [])]:
        yield "read from", ", ".join(folders)
    if "fillers" in identity and on.id != identity["collection"]:
        yield "contrasts", f"{identity['collection']}, SHA-256 {identity['collection_sha256'][:12]}"
    sample = {name: given.get(name, value) for name, value in identity["pool"].items() if name != "seed"}
    if chosen := [f"{name} {value}" for name, value in sample.items() if value is not None]:
        yield "sampled", ", ".join(chosen)
    yield "measured on", f"{record['queries']} queries, {record['pairs']} {noun}{skipped}"
    if lines := left_out.sentences(record.get("left_out", {})):
        yield "left out", "; ".join(line.removeprefix("left out: ") for line in lines)
    yield "documents cut short", str(record["truncated_documents"])
    yield "seed", str(seed_of(record))
    yield (
        "parity with Hugging Face",
        f"{in_words(parity)}, on {parity['n_pairs']} pairs",
    )
    devices = record.get("devices") or [identity.get("device", "not measured yet")]  # older runs: in the identity
    yield "numbers", f"{identity['dtype']} on {', '.join(devices)}"
    yield "mechir", identity["mechir"] + (f", commit {record['commit'][:12]}" if record.get("commit") else "")
    yield "started", record["started"]
