"""The report: the contents of a registry on one page that needs nothing else."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mechir.catalog import answering
from mechir.errors import MechirError
from mechir.inference import LEVEL
from mechir.registry.conflicts import conflicts
from mechir.registry.entries import latest
from mechir.registry.links import link_table
from mechir.registry.names import model_name, named, shown
from mechir.registry.queries import collections
from mechir.registry.runs import DEFAULT, Run, runs
from mechir.reporting import answers, commands
from mechir.reporting.components import components, examples, known, neurons, table
from mechir.reporting.figures import drawn, figures
from mechir.reporting.known import Known
from mechir.views import charts, page

SIZE = 8_000_000
"""Bytes that a page may have."""


class Section(NamedTuple):
    """One model, by its fingerprint, on one collection, by its shown name."""

    model_fingerprint: str
    collection: str


def report(*, registry: Path | str = DEFAULT, out: Path | str | None = None) -> Path:
    """Writes the contents of a registry as one HTML file that needs no network.

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
    written = _page(gathered(registry))
    if (size := len(written.encode("utf-8", "replace"))) > SIZE:
        raise MechirError(
            f"The page of '{registry}' would have {size / 1e6:.1f} MB, more than {SIZE / 1e6:.0f}: "
            "keep models and collections in registries of their own."
        )
    return page.write(file, written)


def _page(data: Mapping[str, Any]) -> str:
    """The page of the data that `gathered` returns."""
    title = f"mechir report: {data['registry']}"
    style = "".join(page.static(name) for name in ("report.css", "strips.css"))
    body = page.static("report.html")
    body += f'<script type="application/json" id="data">{page.as_json(data)}</script>'
    parts = "\n".join(page.static(name) for name in ("strips.js", "report.js", "dossier.js", "start.js"))
    script = f'(() => {{\n"use strict";\n{parts}}})();'  # Vega's script takes many names
    return page.document(title, style, body, [charts.vega(), script])


def gathered(registry: Path) -> dict[str, Any]:
    """The data of the page: `registry`, `version`, `made`, and `sections`, a dict for each model and collection."""
    findings, alone, stored = known(registry), neurons(registry), runs(registry)
    if findings.empty and not stored:
        raise MechirError(f"'{registry}' holds no run yet: write `mechir run` first, or give registry=DIR.")
    records = [run.record for run in stored]
    of_findings = collections(registry) if latest(registry) else {}
    names = shown([*of_findings, *map(named, reversed(records))])
    renamed = {name: names[collection] for collection, name in of_findings.items()}
    findings, alone = (frame.assign(collection=frame["collection"].map(renamed)) for frame in (findings, alone))
    claimed: dict[str, list[Section]] = {}
    for run_id, *place in findings[["run_id", *Section._fields]].drop_duplicates().itertuples(index=False):
        claimed.setdefault(run_id, []).append(Section(*place))
    by_section: dict[Section, list[Run]] = {}
    for run, record in zip(stored, records, strict=True):
        main = Section(record["identity"]["model_fingerprint"], names[named(record)])
        for at in dict.fromkeys([main, *claimed.get(run.id, ())]):  # a run on groups has findings on each
            by_section.setdefault(at, []).append(run)
    for at in chain.from_iterable(claimed.values()):
        by_section.setdefault(at, [])
    ids = {name: collection.id for collection, name in names.items()}
    contradictions, sections = conflicts(findings), []
    for at, on in by_section.items():
        section = _section(at, ids[at.collection], on, _of(at, findings), _of(at, contradictions))
        sections.append(section | {"neurons": _of(at, alone).to_dict("records")})
    return {
        "registry": registry.resolve().name,
        "level": LEVEL,
        "words": glossary(),
        "version": metadata.version("mechir-encoders"),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "sections": sorted(sections, key=lambda section: -len(section["components"]["sites"])),
    }


def glossary() -> list[list[str]]:
    """The words of the output, each with its meaning."""
    text = files("mechir").joinpath("data", "glossary.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").replace("`", "").split(" | ", 1) for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def _section(
    at: Section, collection: str, stored: Sequence[Run], findings: pd.DataFrame, contradictions: pd.DataFrame
) -> dict[str, Any]:
    """The data on one model and one collection, which has this id, from its runs, findings and conflicts."""
    model = findings["model"].iloc[0] if len(findings) else stored[0].record["model"]
    linked = link_table(findings)
    claims = {str(run): list(part["measure"].unique()) for run, part in findings.groupby("run_id", sort=False)}
    charted, others = drawn(stored, claims, _linking(findings, linked))
    pathways = _answering(stored, "plan")
    planned = set(findings.loc[findings["planned"], "run_id"])  # the newest where there are no findings of a plan
    pathway = next((run for run in pathways if run.id in planned), next(iter(pathways), None))
    later = [run.id for run in pathways if pathway is not None and run.id != pathway.id]
    on = commands.on([run.record for run in stored], model, collection)
    about = Known(on, findings, linked, contradictions, pathway, later)
    return {
        "model": model_name(model),
        "fingerprint": at.model_fingerprint,
        "collection": at.collection,
        "id": collection,
        "lead": answers.lead(about),
        "answers": answers.answers(about),
        "links": table(linked),
        "components": components(findings, contradictions, linked.loc[linked["effect"].notna(), "site"].to_list()),
        "examples": examples(_answering(stored, "examples")) | {"command": about.command("examples")},
        "figures": figures(charted, claims),
        "others": [{"run": run.id, "experiment": run.record["identity"]["experiment"], "why": why,
                    "started": run.record["started"]} for run, why in others],
    }  # fmt: skip


def _linking(findings: pd.DataFrame, links: pd.DataFrame) -> set[str]:
    """The ids of the runs on which links stand: what a linked component looks like, and what changing it does."""
    sites = links.loc[(links["links"] != "") | (links["exploratory"] != ""), "site"]
    behind = findings["planned"] | (findings["looks"] != "") | (findings["acts"] != "")
    return set(findings.loc[findings["holds"] & behind & findings["site"].isin(sites), "run_id"])


def _answering(stored: Sequence[Run], question: str) -> list[Run]:
    """The finished runs of the experiment that answers a question."""
    name = answering(question).name
    return [run for run in stored if run.record["identity"]["experiment"] == name and run.finished]


def _of(at: Section, frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["model_fingerprint"] == at.model_fingerprint) & (frame["collection"] == at.collection)]
