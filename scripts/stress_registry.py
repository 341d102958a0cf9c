"""Writers, readers and kills on one registry: nothing acknowledged is lost, nothing is doubled; prints the numbers.

Run: python scripts/stress_registry.py [--rounds 50] [--seed 0]

A round is a registry of its own. 8 processes record 10 runs of 50 findings each, correct some of them, and record and
correct one run that all of them share; what `record` or `correct` has returned for is acknowledged in a file. One of
them is killed with SIGKILL, at a random moment or while it writes. Two processes ask all the while: whatever was
acknowledged before a question must be in its answer, whole. An entry that is cut short lies there from the beginning:
a reader must name it and set it aside, and all get their answers. Readers fold entries (`mechir.registry.folded`) much
earlier than they otherwise do. Then the killed writer's command is given again and finishes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from mechir.registry import folded
from mechir.registry.entries import SCHEMA, correct, entries, latest, record
from mechir.registry.findings import checked
from mechir.registry.links import links
from mechir.registry.queries import matching, sql

WRITERS, READERS, RUNS, EACH = 8, 2, 10, 50
FOLDED = 8
"""Entries of a fold here."""
SHARED, DAMAGED = "eee", "ddd"
"""The run that everybody writes, and the one whose entry is cut short."""
PROCESSES = multiprocessing.get_context("forkserver")
"""Processes of their own, forked from one that has imported mechir once and done nothing else."""


def main() -> None:
    """Runs the rounds and prints what happened in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    start = time.perf_counter()
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            total.update(told := round_of(Path(folder), arguments.seed + number))
        print(f"round {number}: {told}", flush=True)
    seconds = time.perf_counter() - start
    print(f"\n{platform.machine()}, {time.strftime('%Y-%m-%d')}, {arguments.rounds} rounds, {seconds:.0f} s\n")
    print("| what | number |\n|---|---|")
    for name, count in total.items():
        print(f"| {name} | {count:,} |")


def round_of(folder: Path, seed: int, runs: int = RUNS) -> dict[str, int]:
    """One round in an empty folder, of so many runs of each writer; how much of everything there was.

    Raises:
        AssertionError: where something acknowledged is lost, or anything doubled or unreadable.
    """
    chance = random.Random(seed)
    registry, said = folder / "registry", folder / "said"
    said.mkdir()
    _record(registry, DAMAGED, 0)
    (bad,) = (entry.path for entry in latest(registry))
    bad.write_bytes(bad.read_bytes()[: chance.randrange(bad.stat().st_size)])
    PROCESSES.set_forkserver_preload(["mechir.registry.links", "scripts.stress_registry"])
    stop = PROCESSES.Event()
    readers = [PROCESSES.Process(target=read, args=(registry, said, name, stop)) for name in range(READERS)]
    writers = [PROCESSES.Process(target=write, args=(registry, said, name, runs)) for name in range(WRITERS)]
    for process in (*readers, *writers):
        process.start()
    victim = chance.randrange(WRITERS)
    _kill(writers[victim], registry, said, victim, runs, chance)
    for process in writers:
        process.join()
    before = _acknowledged(said)
    again = PROCESSES.Process(target=write, args=(registry, said, victim, runs))
    again.start()
    again.join()
    stop.set()
    for process in readers:
        process.join()
    codes = [process.exitcode for process in (*writers[:victim], *writers[victim + 1 :], again, *readers)]
    assert set(codes) == {0}, f"exit codes {codes}"
    return {"writers killed": int(writers[victim].exitcode == -9)} | _whole(registry, said, before, runs)


def write(registry: Path, said: Path, name: int, runs: int) -> None:
    """Records and corrects the runs of one writer, acknowledging each; what is there already is left as it is."""
    for run in range(runs):
        run_id = f"{name}{run:02d}"
        new = _record(registry, run_id, 0)
        _say(said, name, run_id, 0, "" if new else "there")
        if run == 1:
            new = _record(registry, SHARED, 0)
            _say(said, name, SHARED, 0, "first" if new else "there")
            correct(registry, SHARED, _findings(SHARED, 1), f"of {name}")
            _say(said, name, SHARED, 1, "corrected")
        if run % 5 == 3 and not _corrected(registry, run_id):
            correct(registry, run_id, _findings(run_id, 1), "counted twice")
            _say(said, name, run_id, 1)


def read(registry: Path, said: Path, name: int, stop: Any) -> None:
    """Asks until it is told to stop; every answer holds what was acknowledged before, and whole runs only."""
    warnings.simplefilter("always")
    folded.EACH = FOLDED
    asked = 0
    with warnings.catch_warnings(record=True) as caught:
        while not stop.is_set() or not asked:
            known = _acknowledged(said)
            if not known:
                continue
            counts = sql("select run_id, count(*) as n, min(value) as low from findings group by 1", registry=registry)
            found = {row.run_id: (row.n, row.low) for row in counts.itertuples()}
            for run_id, version in known.items():
                assert run_id in found, f"{run_id} was acknowledged and is not there"
                assert found[run_id][1] >= version, f"the correction of {run_id} was acknowledged and does not count"
            assert {n for n, _ in found.values()} == {EACH}, found
            assert known.keys() <= set(matching(registry, newest=True)["run_id"])
            assert links(registry=registry).empty
            asked += 1
    told = [str(one.message) for one in caught]
    assert all(f"{DAMAGED}.000.v" in one and "is damaged and now lies in" in one for one in told), told
    (said / f"reader{name}").write_text(f"{asked} {len(told)}")


def _findings(run_id: str, version: int) -> pd.DataFrame:
    """The findings of a run: their value says which version they are of."""
    rows = {"site": [f"h{k // 10}.{k % 10}" for k in range(EACH)], "measure": f"m{run_id}", "unit": "u"}
    return checked(pd.DataFrame(rows).assign(value=float(version)), {"run_id": run_id, "collection": "c"})


def _record(registry: Path, run_id: str, version: int) -> bool:
    return record(registry, run_id, _findings(run_id, version))


def _corrected(registry: Path, run_id: str) -> bool:
    return any(entry.run_id == run_id and entry.number for entry in entries(registry))


def _say(said: Path, name: int, run_id: str, version: int, more: str = "") -> None:
    """Acknowledges: one system call, which a process that is killed has made or has not."""
    with (said / str(name)).open("ab", buffering=0) as file:
        file.write(f"{run_id} {version} {more}\n".encode())
        os.fsync(file.fileno())


def _lines(said: Path) -> list[list[str]]:
    files = [file for name in range(WRITERS) if (file := said / str(name)).exists()]
    return [line.split(" ") for file in files for line in file.read_text().splitlines()]


def _acknowledged(said: Path) -> dict[str, int]:
    """The runs that were acknowledged, and the newest version of each."""
    known: dict[str, int] = {}
    for run_id, version, _ in _lines(said):
        known[run_id] = max(known.get(run_id, 0), int(version))
    return known


def _kill(process: Any, registry: Path, said: Path, name: int, runs: int, chance: random.Random) -> None:
    """Kills a writer with SIGKILL: after so many acknowledgements some milliseconds later, or at its next write."""
    after, file = chance.randrange(runs), said / str(name)
    while process.is_alive() and (len(file.read_bytes().splitlines()) if file.exists() else 0) < after:
        time.sleep(0.0005)
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0, 0.1))
    else:
        while process.is_alive() and not any((registry / "findings").glob(f".{name}*")):
            pass
    process.kill()
    process.join()


def _whole(registry: Path, said: Path, before: dict[str, int], runs: int) -> dict[str, int]:
    """What the registry holds in the end: everything once, readable, and the damaged entry beside it."""
    kept = entries(registry)
    for entry in kept:
        assert pq.read_table(entry.path).num_rows == EACH, f"{entry.path.name} is not whole"
    own = [f"{name}{run:02d}" for name in range(WRITERS) for run in range(runs)]
    found = sql("select run_id, site, count(*) as n, min(value) as v from findings group by all", registry=registry)
    assert sorted(found["run_id"].unique()) == sorted([*own, SHARED]), "runs are lost"
    assert len(found) == EACH * (len(own) + 1) and set(found["n"]) == {1}, "findings are lost or doubled"
    last = found.groupby("run_id")["v"].agg(["min", "max"])
    assert (last["min"] == last["max"]).all() and all(last.loc[run, "min"] >= v for run, v in before.items())
    lines = _lines(said)
    firsts = sum(more == "first" for *_, more in lines)
    shared = [entry.number for entry in kept if entry.run_id == SHARED]
    corrections = sum(more == "corrected" for *_, more in lines)
    assert shared == list(range(len(shared))) and firsts <= 1
    assert corrections <= len(shared) - 1 <= corrections + 1, "a correction is lost or doubled"
    for run in own:
        numbers = [entry.number for entry in kept if entry.run_id == run]
        assert numbers == ([0, 1] if int(run[1:]) % 5 == 3 else [0]), f"{run} has the entries {numbers}"
    asked = [list(map(int, (said / f"reader{name}").read_text().split())) for name in range(READERS)]
    assert sum(named for _, named in asked) >= 1, "nobody named the damaged entry"
    assert [file.name for file in (registry / "findings" / "damaged").iterdir()] == [f"{DAMAGED}.000.v{SCHEMA}.parquet"]
    folds = list((registry / "findings" / "folded").glob("*.parquet"))
    left = [file for file in (registry / "findings").iterdir() if file.name.startswith(".")]
    return {
        "of them while they wrote": len(left),
        "entries acknowledged": sum(more != "there" for *_, more in lines),
        "entries that are there": len(kept),
        "findings that count": len(found),
        "folds in the end": len(folds),
        "questions answered meanwhile": 3 * sum(n for n, _ in asked),
        "damaged entries named and set aside": 1,
    }


if __name__ == "__main__":
    main()
