"""What a unit costs beside its forwards: the start of a worker, a task, the client, files; prints a table in Markdown.

Run: python scripts/measure_workers.py --model DIR [--tasks 100]

`scripts/simulate_cluster.py` takes its numbers from here. The scheduler runs in this process, as for `mi.Slurm`,
and speaks TLS over loopback with one worker. strace, where it is installed, counts the operations on files.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.vast2025.layer_sweep import LayerSweep
from mechir.engine import Dask, Local, _keys, _own_scheduler, _security
from mechir.graph import Node
from mechir.methods.directions import condition_table
from mechir.registry.runs import Run
from mechir.work import Begun, Work
from mechir.workers import Engine, Workers

UNITS = (226, 6980)
"""Units of the runs whose tasks are sent: all queries of TREC DL 2019 to 2022, and MS MARCO dev."""
WATCHED = (1, 1000)
"""Tasks that a client waits for at a time."""
PARTS = ((150, 1176), (100, 31))
"""Pairs and interventions of the parts that are written."""
SUMMARY, FEW, MANY = (226, 150), 2, 22
"""Queries and pairs of each that are summarised, under few and under many interventions."""
READS = "open,openat,stat,newfstatat,readlink,access,getdents64,execve"
"""The calls by which a new process asks for files; `WRITES` those by which a part is written."""
WRITES = "openat,unlink,link,linkat,rename,chmod,fchmod,fsync,stat,newfstatat,getdents64,mkdir,utimensat"
A_UNIT = """import sys, pathlib
from mechir.work import Begun, compute
from scripts.measure_workers import Written
run = Begun(pathlib.Path(sys.argv[1]), (1,) * 3, (), Written(sys.argv[1]))
for unit in range(3): pathlib.Path('/mark').exists(); compute(run, unit, 'word')
pathlib.Path('/mark').exists()"""
"""Three units, each with a mark before and after it, by which its calls are found."""


class Written:
    """A job whose units take no forward."""

    def __init__(self, path: str) -> None:
        self.run = Run(Path(path))

    def compute(self, unit: int) -> int:
        """Writes the part."""
        if not self.run.part(unit).is_file():
            self.run.write_part(unit, of_rows(1, 100, 31), 0.0)
        return unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a directory")
    parser.add_argument("--tasks", type=int, default=100)
    asked = parser.parse_args()
    print("| what | value |\n|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, value in chain(starts(asked.model), summaries(), tasks(folder, asked.tasks), files(folder)):
            print(f"| {what} | {value} |", flush=True)


def starts(model: str) -> Iterator[tuple[str, str]]:
    """A new process until it could compute: everything imported, the model read and its digests made."""
    for what, code in (("import", "import mechir.work"), ("import and load", f"import mechir as m; m.load({model!r})")):
        command = [sys.executable, "-c", code]
        yield f"a new process, {what}", f"{_median(lambda: subprocess.run(command, check=True), 3):.1f} s"  # noqa: B023
    calls = _traced(READS, "-c", "import mechir.work")
    paths = {path for line in calls for path in re.findall('"(/[^"]*)"', line)}
    yield "files that it asks for while it imports, each once (calls)", f"{len(paths)} ({len(calls)})"


def tasks(folder: Path, n: int) -> Iterator[tuple[str, str]]:
    """The way of a task to a worker and back, and the time that the client and its scheduler take for it."""
    with Local(1).open(folder, print) as workers:
        yield "a task and its answer, a process of this machine", _trip(workers, folder, n)
    with _loopback(folder) as engine, engine.open(folder, print) as workers:
        yield "a task and its answer, Dask over TLS", _trip(workers, folder, n)
        for units in UNITS:
            for watched in WATCHED:
                others, begun = [Future[Any]() for _ in range(watched - 1)], Begun(folder, (1,) * units, ())
                begin = time.process_time()
                for _ in range(n):
                    _task(workers, begun, others)
                spent = (time.process_time() - begin) / n
                yield f"client and scheduler, a task of {units} units, {watched} waited for", f"{1e3 * spent:.1f} ms"


@contextmanager
def _loopback(folder: Path) -> Iterator[Engine]:
    """A scheduler in this process and one worker beside it."""
    from distributed import LocalCluster

    asked: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "host": "127.0.0.1", "protocol": "tls://"}
    with (
        _keys(folder, None) as keys,
        _own_scheduler(),
        LocalCluster(**asked, security=_security(keys), dashboard_address="127.0.0.1:0") as cluster,
    ):
        yield Dask(cluster.scheduler_address, keys)


def nothing(begun: Begun, unit: int, word: str) -> int:
    """The task that is sent: no work."""
    return unit


def _task(workers: Workers, begun: Begun, others: list[Future[Any]]) -> None:
    """One round of the loop of `Graph.compute`: a task is sent, awaited among others, and the progress counted."""
    future = workers.submit(nothing, begun, 0, workers.session)
    while not wait([future, *others], 1.0, return_when=FIRST_COMPLETED).done:
        pass
    node = Node(Work(None, None, Path()), begun=begun, done=set(range(len(begun.sizes))))  # type: ignore[arg-type]
    for _ in range(2):
        node.pairs(node.done), node.pairs()


def _trip(workers: Workers, folder: Path, n: int) -> str:
    begun = Begun(folder, (1,) * UNITS[0], ())
    workers.submit(nothing, begun, 0, "").result()
    return f"{1e3 * _median(lambda: workers.submit(nothing, begun, 0, '').result(), n):.1f} ms"


def of_rows(queries: int, each: int, names: int) -> pd.DataFrame:
    """Rows as a sweep gives them: the scores of the pairs of each query under each name."""
    pairs = queries * each
    n = pairs * names
    frame = pd.DataFrame({"name": ["original" if i < pairs else f"doc<-query@0-{i // pairs}" for i in range(n)]})
    frame["query_id"] = [str(i % pairs // each) for i in range(n)]
    frame["doc_id"] = [str(1_000_000 + i % pairs) for i in range(n)]
    frame["grade"] = pd.array([i % 4 for i in range(n)], dtype="Int64")
    return frame.assign(score=pd.Series(range(n), dtype="float32").mul(0.7).mod(11))


def files(folder: Path) -> Iterator[tuple[str, str]]:
    """Parts on the disk of this machine, and the operations on files that a unit takes."""
    for pairs, names in PARTS:
        rows, numbers = of_rows(1, pairs, names), iter(range(100))
        run = Run(_empty(folder / f"{pairs}"))
        seconds = _median(lambda: run.write_part(next(numbers), rows, 0.0), 9)  # noqa: B023
        yield f"writing a part, {pairs} pairs x {names} scores", f"{1e3 * seconds:.0f} ms"
    calls = _traced(WRITES, "-c", A_UNIT, str(_empty(folder / "counted")))
    marks = [i for i, line in enumerate(calls) if '"/mark"' in line]
    yield "operations on files of a unit", str(marks[-1] - marks[-2] - 1 if marks else 0)


def _empty(folder: Path) -> Path:
    """The folder of a run without parts."""
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return folder


def summaries() -> Iterator[tuple[str, str]]:
    """The time of the processor that `summarise` takes, and what of it grows with the interventions."""
    (queries, each), spent = SUMMARY, []
    for names in (FEW, MANY):
        rows = of_rows(queries, each, names)
        judged = rows[rows["name"] == "original"][["query_id", "doc_id", "grade"]]
        start = time.process_time()
        condition_table(rows, judged, original="original", evaluate=LayerSweep().evaluate)
        spent.append(time.process_time() - start)
    slope = (spent[1] - spent[0]) / (MANY - FEW)
    yield (
        f"a summary of {queries} queries x {each} pairs, per query and intervention",
        f"{1e3 * slope / queries:.2f} ms",
    )
    yield "the rest of it, per pair", f"{1e3 * (spent[0] - FEW * slope) / queries / each:.2f} ms"


def _median(work: Callable[[], Any], times: int) -> float:
    """Seconds of the wall clock."""
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def _traced(calls: str, *arguments: str) -> list[str]:
    """The calls of a new Python, one a line; none where there is no strace."""
    if shutil.which("strace") is None:
        return []
    with tempfile.NamedTemporaryFile("r") as log:
        command = ["strace", "-f", "-o", log.name, "-e", f"trace={calls}", sys.executable, *arguments]
        subprocess.run(command, check=True)
        return [line for line in log if re.search(r"\d+ +\w+\(", line)]


if __name__ == "__main__":
    main()
