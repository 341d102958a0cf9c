"""Runs in processes of their own, on the toy: the command line, what is below it, and experiments that take their time."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from tests.models import TOY, TOY_MODEL

FOLDER = Path(__file__).parent / "experiments"
DEADLY, SLOW = str(FOLDER / "deadly.py"), str(FOLDER / "slow.py")
UNITS = """import mechir.work as w; w.UNIT = 12
from mechir.cli import main; main()"""
"""The command line with units of a few pairs."""


def command(*arguments: object) -> list[str]:
    model = ["--model", str(TOY_MODEL), "--collection", str(TOY)]
    return [sys.executable, "-c", UNITS, "run", *map(str, arguments), *model]


def children(of: int) -> list[int]:
    """The processes below one, but for the server that forks them and multiprocessing's tracker."""
    below, parents = {of}, dict[int, int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    for _ in range(4):
        below |= {pid for pid, parent in parents.items() if parent in below}
    return sorted(pid for pid in below - {of} if not serves(pid))


def serves(pid: int) -> bool:
    try:
        return "resource_tracker" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return True


def wait_until(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)
