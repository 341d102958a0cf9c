"""The report: everything that a registry holds, on one page that needs nothing else."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mechir.catalog import answering
from mechir.errors import MechirError
from mechir.registry.conflicts import conflicts
from mechir.registry.entries import latest
from mechir.registry.links import link_table
from mechir.registry.names import named, shown
from mechir.registry.queries import collections
from mechir.registry.runs import DEFAULT, Run, runs
from mechir.reporting import answers, commands
from mechir.reporting.components import components, examples, known, neurons, table
from mechir.reporting.figures import drawn, figures
from mechir.reporting.known import Known
from mechir.views.page import write
from mechir.views.report import page

SIZE = 8_000_000
"""Bytes that a page may have."""


class Section(NamedTuple):
    """One model, by its fingerprint, on one collection, by its shown name."""

    fingerprint: str
    collection: str


def report(*, registry: Path | str = DEFAULT, out: Path | str | None = None) -> Path:
    """Writes what a registry holds as one HTML file that needs no network.

    Args:
        registry: where the runs are.
        out: the file; by default `report.html` in the registry.

    Returns:
        The file.

    Raises:
        MechirError: for a path that is no registry, one without runs, a page of more than 8 MB, a file that cannot be
            written.
    """
    registry = Path(registry)
    file = registry / "report.html" if out is None else Path(out)
    written = page(gathered(registry))
    if (size := len(written.encode("utf-8", "replace"))) > SIZE:
        raise MechirError(
            f"The page of '{registry}' would have {size / 1e6:.1f} MB, more than {SIZE / 1e6:.0f}: "
            "keep models and collections in registries of their own."
        )
    return write(file, written)


def gathered(registry: Path) -> dict[str, Any]:
    """What the page shows: `registry`, `version`, `made`, and `sections`, a dict for each model and collection.

    Raises:
        MechirError: for a path that is no registry, or one without runs.
    """
    found, alone, stored = known(registry), neurons(registry), runs(registry)
    if found.empty and not stored:
        raise MechirError(f"'{registry}' holds no run yet: write `mechir run` first, or give --registry DIR.")
    records = [run.record for run in stored]
    of_findings = collections(registry) if latest(registry) else {}
    names = shown([*of_findings, *map(named, reversed(records))])
    called = {name: names[one] for one, name in of_findings.items()}
    found, alone = (frame.assign(collection=frame["collection"].map(called)) for frame in (found, alone))
    claimed: dict[str, list[Section]] = {}
    for row in found[["run_id", "model_fingerprint", "collection"]].drop_duplicates().itertuples(index=False):
        claimed.setdefault(row.run_id, []).append(Section(row.model_fingerprint, row.collection))
    by_section: dict[Section, list[Run]] = {}
    for run, record in zip(stored, records, strict=True):
        own = Section(record["identity"]["model_fingerprint"], names[named(record)])
        for at in {own: None} | dict.fromkeys(claimed.get(run.id, ())):  # a run on groups says something of each
            by_section.setdefault(at, []).append(run)
    for at in chain.from_iterable(claimed.values()):
        by_section.setdefault(at, [])
    ids = {name: one.id for one, name in names.items()}
    told = conflicts(found)
    sections = [
        _section(at, ids[at.collection], own, _of(at, found), _of(at, told))
        | {"neurons": _of(at, alone).to_dict("records")}
        for at, own in by_section.items()
    ]
    return {
        "registry": registry.resolve().name,
        "version": metadata.version("mechir-encoders"),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "sections": sorted(sections, key=lambda one: -len(one["components"]["sites"])),
    }


def _section(
    at: Section, collection: str, stored: Sequence[Run], found: pd.DataFrame, told: pd.DataFrame
) -> dict[str, Any]:
    """What is known of one model on one collection, which has this id: its runs, findings and conflicts."""
    model = found["model"].iloc[0] if len(found) else stored[0].record["model"]
    linked = link_table(found)
    claims = {str(run): list(part["measure"].unique()) for run, part in found.groupby("run_id", sort=False)}
    kept, others = drawn(stored, claims)
    pathways = [run for run in stored if _is_of(run, "plan") and _finished(run)]
    standing = found.loc[found["planned"], "run_id"]  # the newest where findings hold no plan
    pathway = next((run for run in pathways if run.id in {*standing}), next(iter(pathways), None))
    later = [run.id for run in pathways if pathway is not None and run.id != pathway.id]
    on = commands.on([run.record for run in stored], model, collection)
    about = Known(on, found, linked, told, pathway, later)
    looked = [run for run in stored if _is_of(run, "examples") and _finished(run)]
    return {
        "model": model,
        "fingerprint": at.fingerprint,
        "collection": at.collection,
        "lead": answers.lead(about),
        "answers": answers.answers(about),
        "links": table(linked),
        "components": components(found, told, linked.loc[linked["effect"].notna(), "site"].to_list()),
        "examples": examples(looked) | {"command": about.command("examples")},
        "figures": figures(kept, claims),
        "others": [{"run": run.id, "experiment": run.record["identity"]["experiment"], "why": why,
                    "started": run.record["started"]} for run, why in others],
    }  # fmt: skip


def _is_of(run: Run, question: str) -> bool:
    """Whether a run is of the experiment that answers a question."""
    return bool(run.record["identity"]["experiment"] == answering(question).name)


def _finished(run: Run) -> bool:
    return (run.path / "summary.parquet").is_file()


def _of(at: Section, frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["model_fingerprint"] == at.fingerprint) & (frame["collection"] == at.collection)]
