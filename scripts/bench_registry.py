"""How fast a registry of a million findings answers; prints a table in Markdown.

Run: python scripts/bench_registry.py [--parts 1000] [--rounds 3]

1,000 findings each of 1,000 runs: 10 models of 12 layers x 12 heads on 10 collections, 10 runs each, with the measures
that `links` reads among others. "opening" lists the entries and counts all rows. Seconds of the wall clock, medians of
rounds after one to warm up, each in a connection of its own.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import mechir as mi
from mechir.registry.entries import record
from mechir.registry.evidence import EVIDENCE
from mechir.registry.findings import checked

ROLES = {"contrast": "matching", "patching": "soft-tf", "path": "scoring"}
EACH = 1000


def main() -> None:
    """Writes the registry, asks it, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        registry = Path(folder)
        start = time.perf_counter()
        for run in range(arguments.parts):
            write(registry, run)
        written = time.perf_counter() - start
        asked: dict[str, tuple[Callable[[], Any], float]] = {
            "opening": (lambda: mi.sql("select count(*) from findings", registry=registry), 1),
            "filtered query": (lambda: mi.findings(site="h8.1", role="matching", registry=registry), 1),
            "filtered query, nothing found": (lambda: mi.findings(role="idf", min_effect=9, registry=registry), 1),
            "links()": (lambda: mi.links(registry=registry), 3),
            "dossier": (lambda: mi.dossier("h8.1", model="model3", registry=registry), 3),
        }
        what = f"{arguments.parts * EACH:,} findings, written in {written:.0f} s"
        print(f"{platform.machine()}, {time.strftime('%Y-%m-%d')}, {what}\n")
        print("| what | seconds | wanted | rows |\n|---|---|---|---|")
        for name, (ask, wanted) in asked.items():
            seconds, answer = timed(ask, arguments.rounds)
            rows = len(answer.findings) if hasattr(answer, "findings") else len(answer)
            print(f"| {name} | {seconds:.2f} | <= {wanted} | {rows:,} |", flush=True)


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
