"""Runs on workers that are killed, and what is left of them: nothing finished is lost, nothing is doubled.

Run: python scripts/stress_workers.py [--rounds 20] [--seed 0]

Every round starts `mechir run` on three processes or on a Dask cluster over TLS and does one thing to it at a random
moment: a worker is killed with SIGKILL, the scheduler, or the client; the disk is full (a small tmpfs, as root); or a
unit kills every process that computes it. Then the same command is given again. Parts that were finished before must be
the same files, there must be one part for each unit, and the frames must be those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from mechir.certificates import tls_files, write_keys
from mechir.engine import new_certificates
from mechir.registry.runs import Run, runs

ROOT = Path(__file__).parent.parent
MODEL, COLLECTION = ROOT / "tests" / "data" / "toy-model", ROOT / "tests" / "data" / "toy"
SLOW, DEADLY = (ROOT / "tests" / "experiments" / name for name in ("slow.py", "deadly.py"))
PAUSE = 1.0
"""Seconds that a unit takes at least."""
SMALL = "import mechir.work as w; w.UNIT = 6\nfrom mechir.cli import main; main()"
KINDS = ("worker", "worker of Dask", "client", "client of Dask", "scheduler", "disk", "poison")


def main() -> None:
    """Runs the rounds and prints what happened in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # frames are the same to the last digit for one number of threads
    start, total = time.perf_counter(), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        expected = finished(command(SLOW, Path(folder), "--pause", "0"))
        for number in range(arguments.rounds):
            kind = KINDS[number % len(KINDS)]
            told = round_of(kind, expected, random.Random(arguments.seed + number))
            total.update({f"{kind}: rounds": 1, f"{kind}: units before the end": told})
            print(f"round {number}, {kind}: {told} units were finished before, all are the same files", flush=True)
    print(f"\n{platform.machine()}, {time.strftime('%Y-%m-%d')}, {time.perf_counter() - start:.0f} s\n")
    print("| what | number |\n|---|---|")
    for name, count in sorted(total.items()):
        print(f"| {name} | {count} |")


def command(experiment: Path, registry: Path, *more: str) -> list[str]:
    """The command line of one run, with units of a few pairs."""
    where = ["--model", str(MODEL), "--collection", str(COLLECTION), "--registry", str(registry)]
    return [sys.executable, "-c", SMALL, "run", str(experiment), *where, *more]


def finished(arguments: list[str]) -> pd.DataFrame:
    """The rows of a run that is computed to its end."""
    subprocess.run(arguments, check=True, capture_output=True)
    (run,) = runs(Path(arguments[arguments.index("--registry") + 1]))
    assert run.finished
    return run.rows


def round_of(kind: str, expected: pd.DataFrame, chance: random.Random) -> int:
    """One round; how many units were finished when it was disturbed.

    Raises:
        AssertionError: where anything finished is lost, or anything doubled or different.
    """
    with tempfile.TemporaryDirectory() as folder:
        if kind == "poison":
            return poisoned(Path(folder), expected)
        registry = Path(folder) / "registry"
        registry.mkdir()
        with_dask = "Dask" in kind or kind == "scheduler"
        cluster = start_dask(Path(folder)) if with_dask else []
        if kind == "disk":
            if os.geteuid():
                print("disk: not root, so no small file system can be made")
                return 0
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(registry)], check=True)
        try:
            return disturbed(kind, registry, expected, chance, cluster, dask_options(Path(folder)) if with_dask else ())
        finally:
            for process in cluster:
                process.kill()
                process.wait()
            if kind == "disk":
                subprocess.run(["umount", str(registry)], check=True)


def disturbed(
    kind: str,
    registry: Path,
    expected: pd.DataFrame,
    chance: random.Random,
    cluster: list[subprocess.Popen[bytes]],
    options: tuple[str, ...],
) -> int:
    """Starts the run, disturbs it, gives the command again, and compares."""
    arguments = command(SLOW, registry, "--pause", str(PAUSE), *(options or ("--workers", "3")))
    client = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: bool(parts(registry)) or client.poll() is not None)
    time.sleep(chance.uniform(0, 1.2 * PAUSE))
    if kind == "worker":
        os.kill(chance.choice(workers_of(client.pid)), signal.SIGKILL)
    elif kind == "worker of Dask":
        cluster[chance.choice((1, 2))].kill()
    elif kind == "scheduler":
        cluster[0].kill()
    elif kind == "disk":
        with (registry / "filler").open("wb") as file:
            file.write(b"0" * max(0, os.statvfs(registry).f_bavail - 1) * os.statvfs(registry).f_bsize)
    else:
        client.kill()
    _, errors = client.communicate(timeout=120)
    expect = {"worker": 0, "worker of Dask": 0, "scheduler": 1, "disk": 2}.get(kind, -signal.SIGKILL)
    assert client.returncode in (expect, 0), (kind, client.returncode, errors.decode()[-2000:])
    assert b"Traceback" not in errors, errors.decode()
    (registry / "filler").unlink(missing_ok=True)
    before = parts(registry)
    rows = finished(command(SLOW, registry, "--pause", str(PAUSE), "--workers", "2"))
    after = parts(registry)
    assert all(after[name] == seen for name, seen in before.items()), "a finished part was written again"
    whole(runs(registry)[0], rows, expected)
    return len(before)


def poisoned(registry: Path, expected: pd.DataFrame) -> int:
    """A unit that kills its processes: the others are computed, it is named, and the command tries it again."""
    arguments = command(DEADLY, registry, "--at", "q3", "--workers", "2")
    for _ in range(2):
        ended = subprocess.run(arguments, capture_output=True, text=True)
        assert ended.returncode == 1 and "killed three workers each" in ended.stderr, ended.stderr
    (run,) = runs(registry)
    assert len(run.done()) == run.record["units"] - 1 and not run.finished
    kept = run.rows
    same = expected[~expected["query_id"].isin(set(expected["query_id"]) - set(kept["query_id"]))]
    pd.testing.assert_frame_equal(kept, same.reset_index(drop=True), check_exact=True)
    return len(run.done())


def whole(run: Run, rows: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Refuses a run that lacks a unit, has one twice, or other numbers."""
    assert run.done() == set(range(run.record["units"]))
    assert not rows.duplicated(["name", "query_id", "doc_id"]).any()
    pd.testing.assert_frame_equal(rows, expected, check_exact=True)
    left = [file.name for file in run.path.iterdir() if file.name.startswith(".work") or file.name == "job"]
    assert not left, left


def parts(registry: Path) -> dict[str, tuple[int, int]]:
    """The finished parts, each with its time and size."""
    files = registry.glob("runs/*/part-*.parquet")
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def workers_of(client: int) -> list[int]:
    """The processes that compute: those below the server that forks them."""
    lines = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    known = [line.split(None, 2) for line in lines.splitlines()[1:]]
    servers = [pid for pid, parent, args in known if parent == str(client) and "forkserver" in args]
    return [int(pid) for pid, parent, _ in known if parent in servers]


def dask_options(folder: Path) -> tuple[str, ...]:
    """The options of the command line for the cluster in a folder."""
    return ("--dask", str(folder / "scheduler.json"), "--certificates", str(folder / "keys"))


def start_dask(folder: Path) -> list[subprocess.Popen[bytes]]:
    """A scheduler and two workers over TLS on loopback."""
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    write_keys(keys, new_certificates())
    files = zip(("ca-file", "cert", "key"), tls_files(keys).values(), strict=True)
    tls = [part for name, file in files for part in (f"--tls-{name}", str(file))]
    common = ["--host", "127.0.0.1", "--scheduler-file", str(folder / "scheduler.json"), *tls]
    started = [_dask("scheduler", "--protocol", "tls", "--port", "0", "--dashboard-address", "127.0.0.1:0", *common)]
    until((folder / "scheduler.json").is_file)
    alone = ["--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--dashboard-address", "127.0.0.1:0"]
    return started + [_dask("worker", *alone, "--local-directory", str(folder), *common) for _ in range(2)]


def _dask(what: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
