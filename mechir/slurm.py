"""Slurm: what a worker's job asks for, `--slurm "partition=gpu gres=gpu:1 time=04:00:00 mem=32G cpus=8"`.

Also what sbatch says to it, and the tasks of an allocation, which know each other by a file in the registry.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mechir.atomic import whole
from mechir.certificates import tls_files
from mechir.errors import MechirError, closest
from mechir.registry.runs import make_folder

DIRECTIVES = {
    "partition": "--partition",
    "gres": "--gres",
    "time": "--time",
    "mem": "--mem",
    "cpus": "--cpus-per-task",
    "account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
    "nodelist": "--nodelist",
    "exclude": "--exclude",
    "reservation": "--reservation",
}
"""The keys, and the options of sbatch that they stand for."""
LOOPBACK = "127.0.0.1:0"
"""Where dashboards listen: on a free port that nothing but this machine reaches."""
EXAMPLE = "partition=gpu gres=gpu:1 time=04:00:00 mem=32G cpus=8"
VALUE = re.compile(r"[\w.,:/+&|*\[\]=@%-]+")
"""What a value may hold: nothing that a shell or a directive reads as more."""
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclass(frozen=True)
class Request:
    """A job of one worker, by key; prints and is read as `key=value key=value`."""

    values: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Request:
        """Reads `key=value` with spaces between; raises for an unknown key, one that stands twice, and a bad value."""
        values: dict[str, str] = {}
        for part in text.split():
            key, sign, value = part.partition("=")
            if not sign or not value:
                raise MechirError(f"Cannot read slurm='{part}': write key=value with spaces between, e.g. '{EXAMPLE}'.")
            if key not in DIRECTIVES:
                raise MechirError(f"Unknown Slurm key '{key}': the closest are {closest(key, DIRECTIVES)}.")
            if key in values:
                raise MechirError(f"The Slurm key '{key}' stands twice: give it once.")
            if not VALUE.fullmatch(value):
                raise MechirError(f"Cannot read '{value}' as the Slurm key {key}: write e.g. '{EXAMPLE}'.")
            values[key] = value
        if not values:
            raise MechirError(f"slurm='' asks for nothing: write e.g. '{EXAMPLE}'.")
        made = cls(tuple(values.items()))
        _ = made.seconds, made.cpus
        return made

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values)

    @property
    def directives(self) -> Iterator[str]:
        """The options of sbatch."""
        return (f"{DIRECTIVES[key]}={value}" for key, value in self.values)

    @property
    def _by_key(self) -> Mapping[str, str]:
        return dict(self.values)

    @property
    def cpus(self) -> int:
        """Threads of a worker."""
        text = self._by_key.get("cpus", "1")
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise MechirError(f"Cannot read the Slurm key cpus={text}: write a whole number, such as cpus=8.")
        return int(text)

    @property
    def seconds(self) -> int | None:
        """The walltime, written as for sbatch: minutes, hours:minutes:seconds, days-hours; None where it is open."""
        text = self._by_key.get("time")
        if text is None:
            return None
        match = TIME.fullmatch(text)
        if match is None:
            raise MechirError(f"Cannot read the Slurm key time={text}: write hours:minutes:seconds, such as 04:00:00.")
        days, *parts = match.group("days", "first", "second", "third")
        first, second, third = (int(part or 0) for part in parts)
        if days is not None:
            return ((int(days) * 24 + first) * 60 + second) * 60 + third
        if parts[2] is not None:
            return (first * 60 + second) * 60 + third
        return first * 60 + second


def between(workers: str) -> tuple[int, int]:
    """The fewest and the most workers: "4", or "0-16"."""
    least, dash, most = str(workers).partition("-")
    numbers = [least, most] if dash else [least]
    if not all(text.isascii() and text.isdigit() for text in numbers) or int(numbers[-1]) < max(1, int(least)):
        raise MechirError(f"Cannot read workers='{workers}': write how many, such as 4, or the fewest and most, 0-16.")
    return int(least), int(numbers[-1])


def refuse_unsubmittable(request: Request) -> None:
    """Raises where there is no sbatch, and where it would refuse such a job, in its own words."""
    if shutil.which("sbatch") is None:
        raise MechirError("There is no sbatch on this machine: start the command where Slurm's jobs are submitted.")
    command = ["sbatch", "--test-only", "--ntasks=1", *request.directives, "--wrap", "true"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        said = re.findall(r"fatal: (.+)", answer.stderr) or re.findall(r".*error: (.+)", answer.stderr)
        words = (said[0] if said else answer.stderr).strip()
        raise MechirError(f"Slurm refuses slurm='{request}': {words.rstrip('.')}.")


def worker_arguments(seconds: int | None, *, by_name: bool) -> list[str]:
    """The arguments of a Dask worker: one thread, no limit beside Slurm's, listening on its node's address alone.

    It ends some minutes before the walltime of `seconds`, so that its last unit is not lost.
    """
    arguments = ["--memory-limit", "0", "--dashboard-address", LOOPBACK]
    if by_name:
        arguments += ["--host", "$SLURMD_NODENAME"]
    if seconds is not None:
        spare, stagger = min(600, seconds // 5), min(240, seconds // 20)
        arguments += ["--lifetime", f"{seconds - spare}s", "--lifetime-stagger", f"{stagger}s"]
    return arguments


@dataclass(frozen=True)
class Part:
    """One task of an `srun`: its number, how many there are, the node it is on, and the name of the step."""

    number: int
    tasks: int
    node: str
    step: str

    @classmethod
    def of_environment(cls) -> Part:
        """This process; raises outside of an allocation, and for one task alone."""
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURMD_NODENAME")
        if missing := [name for name in names if name not in os.environ]:
            raise MechirError(
                f"engine='slurm-allocation' runs inside srun, and {missing[0]} is not set: write srun -n 10 in front "
                "of the command."
            )
        number, tasks, job, step, node = (os.environ[name] for name in names)
        if int(tasks) < 2:
            raise MechirError(
                "engine='slurm-allocation' takes two tasks or more, for the first only hands work out: srun -n 2."
            )
        again = os.environ.get("SLURM_RESTART_COUNT", "0")
        return cls(int(number), int(tasks), node, f"{job}.{step}.{again}")

    def _file(self, registry: Path) -> Path:
        return registry / f".allocation-{self.step}.json"

    @contextlib.contextmanager
    def announced(self, registry: Path, address: str, keys: Path) -> Iterator[None]:
        """Tells the other tasks the address of the scheduler and the certificates."""
        self._announce(registry, {"address": address, "keys": str(keys.resolve())})
        yield

    def _announce(self, registry: Path, told: Mapping[str, str]) -> None:
        make_folder(registry, registry)
        with whole(self._file(registry)) as file:
            file.write_text(json.dumps(told), encoding="utf-8")

    def become_worker(self, registry: Path) -> None:
        """Replaces this process by a worker, once the scheduler is announced; the first task goes on.

        Where the first one ends without a scheduler, so does this one.
        """
        if self.number == 0:
            atexit.register(self._announce, registry, {})
            return
        while not self._file(registry).is_file():
            time.sleep(0.5)
        told = json.loads(self._file(registry).read_text(encoding="utf-8"))
        if not told:
            sys.exit(0)
        files = zip(("ca-file", "cert", "key"), tls_files(Path(told["keys"])).values(), strict=True)
        tls = [part for name, file in files for part in (f"--tls-{name}", str(file))]
        arguments = [
            "--nthreads",
            "1",
            "--death-timeout",
            "60",
            *worker_arguments(None, by_name=False),
            "--host",
            self.node,
        ]
        os.environ["DASK_LOGGING__DISTRIBUTED"] = "critical"
        os.execv(
            sys.executable, [sys.executable, "-m", "distributed.cli.dask_worker", told["address"], *arguments, *tls]
        )
