"""Options of where a run is computed, and of how its progress is shown."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mechir.cli.options import PATH, option
from mechir.errors import MechirError

if TYPE_CHECKING:
    from mechir.progress import Watch
    from mechir.workers import Engine

say = partial(click.echo, err=True)
ALLOCATION = "slurm-allocation"
WHERE = (
    option(
        "--workers",
        metavar="N",
        help="Processes of this machine, the threads divided; Slurm's as 8 or 0-16 [default: 1].",
    ),
    option(
        "--slurm",
        metavar="KEYS",
        help='Workers that Slurm starts: "partition=gpu gres=gpu:1 time=04:00:00" [default: none].',
    ),
    option("--dask", metavar="ADDRESS", help="A Dask cluster: tls://HOST:PORT, or its scheduler file [default: none]."),
    option(
        "--engine",
        type=click.Choice([ALLOCATION]),
        help="Inside srun: the first task hands out, the others compute [default: this process].",
    ),
    option("--certificates", type=PATH, metavar="DIR", help="ca.pem, cert.pem, key.pem [default: made for the run]."),
    option(
        "--listen",
        metavar="ADDRESS",
        help="Where Slurm's workers reach this machine, an address or an interface [default: its way out].",
    ),
    option("--quiet", is_flag=True, help="No progress: only what was found."),
)
NAMES = ("workers", "slurm", "dask", "engine", "certificates", "listen")


def engine_of(given: dict[str, Any], device: str | None) -> Engine | None:
    """Removes the options of where to compute, and returns the engine that they name; None for this process.

    Raises:
        MechirError: for two engines, and for options of another one.
    """
    from mechir.engine import Allocation, Dask, Local, Slurm

    chosen = {name: value for name in NAMES if (value := given.pop(name)) is not None}
    named = [name for name in ("slurm", "dask", "engine") if name in chosen]
    if len(named) > 1:
        raise MechirError(f"--{named[0]} and --{named[1]} both say what computes: give one of them.")
    kind = named[0] if named else "workers"
    takes = {
        "workers": ("workers",),
        "slurm": ("slurm", "workers", "certificates", "listen"),
        "dask": ("dask", "certificates"),
        "engine": ("engine", "certificates", "listen"),
    }
    if other := [name for name in chosen if name not in takes[kind]]:
        needs = "--slurm, or --engine slurm-allocation" if other[0] == "listen" else "--slurm, --dask or --engine"
        where = f"--{kind} does not take it" if named else f"it needs {needs}"
        raise MechirError(f"--{other[0]} has no meaning here: {where}.")
    if not chosen:
        return None
    common = {"device": device} | {name: chosen[name] for name in ("certificates", "listen") if name in chosen}
    if kind == "slurm":
        return Slurm(chosen["slurm"], **{"workers": chosen["workers"]} if "workers" in chosen else {}, **common)
    if kind == "workers":
        return Local(_whole(chosen["workers"]), device)
    return Dask(chosen["dask"], **common) if kind == "dask" else Allocation(**common)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise MechirError(f"--workers {text} is no number of processes: write a whole number, 1 or more.")
    return int(text)


def watch_of(quiet: bool) -> Watch:
    """One line that is written anew in a terminal, plain lines elsewhere, or nothing."""
    from mechir.progress import Display, Lines, Quiet

    return Quiet() if quiet else Display() if sys.stderr.isatty() else Lines(say)
