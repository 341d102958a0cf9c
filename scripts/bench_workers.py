"""What workers cost and bring, as ratios inside one run; prints a table in Markdown.

Run: python scripts/bench_workers.py [--queries 4] [--rounds 3] [--pathway]

Dask over TLS runs on loopback with workers that have read the model already; local processes are started anew by every
run. Every ratio alternates the two sides and takes medians. `--pathway` adds the whole chain, which takes long.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mechir as mi
from mechir import work
from mechir.encoder.hooked_model import HookedModel
from scripts.bench_engine import alternate
from scripts.stress_workers import start_dask

EXPERIMENT = "chen2024/head_maps"
UNIT = 8
"""Contrasts of a unit, so that few queries have some units for each worker."""
_numbers = itertools.count()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pathway", action="store_true")
    arguments = parser.parse_args()
    work.UNIT = UNIT
    with tempfile.TemporaryDirectory() as folder:
        model, where = mi.load(), Path(folder)
        print(f"{platform.machine()}, {time.strftime('%Y-%m-%d')}, {EXPERIMENT}, {arguments.queries} queries\n")
        print("| what | seconds | other | ratio | wanted |\n|---|---|---|---|---|")
        for bench in (dask_overhead, workers_or_threads, local_processes):
            bench(model, where, arguments)
        if arguments.pathway:
            pathway(model, where)


def runs_of(model: HookedModel, where: Path, queries: int, engine: Any = None, threads: int = 1) -> Callable[[], Any]:
    """A run of its own at every call."""

    def call() -> Any:
        torch.set_num_threads(threads)
        registry = where / f"registry{next(_numbers)}"
        return mi.run(
            EXPERIMENT,
            model,
            "embedded",
            pool=mi.Pool(limit_queries=queries, per_grade=1),
            registry=registry,
            engine=engine,
        )

    return call


def with_dask(where: Path, workers: int) -> tuple[Any, list[Any]]:
    """The engine of a new cluster of so many workers, and its processes."""
    folder = where / f"dask{next(_numbers)}"
    folder.mkdir()
    started = start_dask(folder)
    for process in started[1 + workers :]:
        process.kill()
    return mi.Dask(str(folder / "scheduler.json"), folder / "keys"), started


def dask_overhead(model: HookedModel, where: Path, arguments: argparse.Namespace) -> None:
    """One worker of one thread against this process with one thread."""
    engine, started = with_dask(where, 1)
    ours, other = alternate(
        runs_of(model, where, arguments.queries, engine), runs_of(model, where, arguments.queries), arguments.rounds
    )
    _close(started)
    _row("a Dask worker over TLS / one process, one thread each", ours, other, "<= 1.10")


def workers_or_threads(model: HookedModel, where: Path, arguments: argparse.Namespace) -> None:
    """Two workers of one thread, which have the model, against this process with two threads."""
    engine, started = with_dask(where, 2)
    ours, other = alternate(
        runs_of(model, where, arguments.queries, engine),
        runs_of(model, where, arguments.queries, threads=2),
        arguments.rounds,
    )
    _close(started)
    _row("two Dask workers of one thread / one process of two", ours, other, "")


def local_processes(model: HookedModel, where: Path, arguments: argparse.Namespace) -> None:
    """Two processes that are started by every run, against this process with two threads."""
    ours, other = alternate(
        runs_of(model, where, arguments.queries, mi.Local(2), threads=2),
        runs_of(model, where, arguments.queries, threads=2),
        arguments.rounds,
    )
    _row("--workers 2, their start included / one process of two threads", ours, other, "")


def pathway(model: HookedModel, where: Path) -> None:
    """The graph of the whole chain on two processes, against one step after the other in this one."""

    def call(engine: Any) -> float:
        torch.set_num_threads(2)
        pool, start = mi.Pool(limit_queries=18, per_grade=2, easy_negatives=4), time.perf_counter()
        registry = where / f"pathway{next(_numbers)}"
        mi.run("joint/pathway", model, "embedded", pool=pool, registry=registry, engine=engine)
        return time.perf_counter() - start

    _row("the pathway as a graph on --workers 2 / one step after the other", call(mi.Local(2)), call(None), "")


def _close(processes: list[Any]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _row(what: str, ours: float, other: float, wanted: str) -> None:
    print(f"| {what} | {ours:.1f} s | {other:.1f} s | {ours / other:.2f} | {wanted} |", flush=True)


if __name__ == "__main__":
    main()
