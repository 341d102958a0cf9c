"""How fast a registry of millions of findings answers; prints a table in Markdown.

Run: python scripts/bench_registry.py [--parts 1000] [--rounds 3] [--registry DIR]

1,000 findings each of so many runs: 10 models of 12 layers x 12 heads on 10 collections, with the measures that `links`
reads among others, and a small record of each run. "opening" lists the entries and counts all rows. Seconds of the wall
clock, medians of rounds after one to warm up, each in a connection of its own. A registry that is named is written
where it is not there yet, kept, and asked again the next time. What is first asked of a new one folds its entries (see
`mechir.registry.folded`).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from click.testing import CliRunner

import mechir as mi
from mechir.cli.ask import show
from mechir.registry.entries import entries, record
from mechir.registry.evidence import EVIDENCE
from mechir.registry.findings import checked
from mechir.registry.runs import Run, find_run, finished_runs, runs

ROLES = {"contrast": "matching", "patching": "soft-tf", "path": "scoring"}
EXPERIMENT = "chen2024/head_maps"
COUNT = "select count(*) from findings"
EACH = 1000
MANY = 1000
"""Runs beyond which more time is given."""


def main() -> None:
    """Writes the registry, asks it, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--registry", type=Path, help="The folder of the registry, which stays [default: none stays].")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        registry = arguments.registry or Path(folder)
        start = time.perf_counter()
        for run in range(len(entries(registry)), arguments.parts):
            write(registry, run)
        written, start = time.perf_counter() - start, time.perf_counter()
        mi.sql(COUNT, registry=registry)
        first = time.perf_counter() - start
        what = f"{arguments.parts * EACH:,} findings, written in {written:.0f} s, first asked in {first:.1f} s"
        print(f"{platform.machine()}, {time.strftime('%Y-%m-%d')}, {what}\n")
        print("| what | seconds | wanted | rows |\n|---|---|---|---|")
        for name, (ask, *wanted) in questions(registry).items():
            seconds, answer = timed(ask, arguments.rounds)
            rows = len(answer.findings) if hasattr(answer, "findings") else len(answer)
            print(f"| {name} | {seconds:.2f} | <= {wanted[arguments.parts > MANY]} | {rows:,} |", flush=True)


def questions(registry: Path) -> dict[str, tuple[Callable[[], Any], float, float]]:
    """What is asked, by name, and the seconds that it may take of up to `MANY` runs and of more."""
    finished = (registry, EXPERIMENT, {}, f"{3:064d}", "0" * 64)
    return {
        "opening": (lambda: mi.sql(COUNT, registry=registry), 1, 2),
        "filtered query": (lambda: mi.findings(site="h8.1", role="matching", registry=registry), 1, 2),
        "filtered query, nothing found": (lambda: mi.findings(role="idf", min_effect=9, registry=registry), 1, 2),
        "links()": (lambda: mi.links(registry=registry), 3, 8),
        "dossier": (lambda: mi.dossier("h8.1", model="model3", registry=registry), 3, 8),
        "listing the runs": (lambda: runs(registry), 2, 2),
        "a run by its name": (lambda: [find_run(registry, f"{7:016x}")], 2, 2),
        "finished runs of an experiment": (lambda: finished_runs(*finished), 2, 2),
        "`mechir show`": (lambda: listed(registry), 2, 2),
    }


def write(registry: Path, run: int) -> None:
    """One run: every head by seven measures."""
    rng = np.random.default_rng(run)
    measures = [*map(str, EVIDENCE.values())][run % 2 * 6 : run % 2 * 6 + 7]
    rows = pd.DataFrame(
        [(f"h{layer}.{head}", measure) for measure in measures for layer in range(12) for head in range(12)]
    )
    rows = rows.iloc[:EACH].set_axis(["site", "measure"], axis=1)
    role = rows["measure"].str.extract(r"^(\w+)")[0].map(ROLES).fillna("")
    columns = {"value": rng.normal(size=len(rows)), "p_corrected": rng.random(len(rows)), "causal": role != "matching"}
    of = {
        "model": f"model{run % 10}",
        "model_fingerprint": f"{run % 10:064d}",
        "collection": f"collection{run // 10 % 10}",
    }
    columns |= {"role": role, "term": np.where(role == "soft-tf", "tf", ""), "unit": "logits", "family": "heads"}
    run_id = f"{run:016x}"
    record(registry, run_id, checked(rows.assign(**columns), of | {"run_id": run_id, "written": f"{run:05d}"}))
    write_run(Run(registry / "runs" / run_id), run, of)


def write_run(stored: Run, run: int, of: Mapping[str, str]) -> None:
    """The record and the summary of one run, and one finished unit."""
    stored.path.mkdir(parents=True, exist_ok=True)
    options = {"seed": run, "notes": [f"note {k} of this run" for k in range(100)]}  # a record has about 5 KiB
    identity = {"experiment": EXPERIMENT, "collection": of["collection"], "collection_sha256": "0" * 64}
    identity |= {"model_fingerprint": of["model_fingerprint"], "options": options}
    stored.write_record({"id": stored.id, "units": 1, "model": of["model"], "identity": identity})
    for name in ("summary.parquet", "part-00000.parquet"):
        (stored.path / name).touch()


def listed(registry: Path) -> list[str]:
    """The lines of `mechir show` without a name."""
    return CliRunner().invoke(show, ["--registry", str(registry)], catch_exceptions=False).output.splitlines()


def timed(ask: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """The median of some calls after the first, and the answer."""
    seconds, answer = [], None
    for _ in range(rounds + 1):
        start = time.perf_counter()
        answer = ask()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]), answer


if __name__ == "__main__":
    main()
