"""What Slurm is asked for, what it refuses, and the whole on a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mechir as mi
from mechir.cli import main
from mechir.engine import Allocation, Slurm
from mechir.errors import MechirError
from mechir.slurm import Part, Request, between, refuse_unsubmittable, worker_arguments
from scripts.same_frames import bytes_of
from tests.models import TOY, TOY_MODEL

ROOT = Path(__file__).parent.parent


def test_a_request_prints_as_it_is_read() -> None:
    text = "partition=gpu gres=gpu:a100:1 time=04:00:00 mem=32G cpus=8"
    request = Request.parse(text)
    assert str(request) == text and Request.parse(str(request)) == request
    assert list(request.directives)[:2] == ["--partition=gpu", "--gres=gpu:a100:1"]
    assert "--mem=32G" in request.directives and request.cpus == 8, "memory in the user's words"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("30:10", 1810), ("04:00:00", 14400), ("1-00", 86400), ("2-01:30", 178200), ("1-00:00:05", 86405)],
)
def test_the_walltime_is_read_as_slurm_reads_it(text: str, seconds: int) -> None:
    assert Request.parse(f"time={text}").seconds == seconds
    assert Request.parse("mem=1G").seconds is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "slurm='' asks for nothing: write e.g."),
        ("gpu", "Cannot read slurm='gpu': write key=value with spaces between, e.g."),
        ("partition=", "Cannot read slurm='partition=': write key=value"),
        ("partitoin=gpu", "Unknown Slurm key 'partitoin': the closest are 'partition', "),
        ("mem=1G mem=2G", "The Slurm key 'mem' stands twice: give it once."),
        ("mem=$(reboot)", "Cannot read '$(reboot)' as the Slurm key mem: write e.g."),
        ("time=tomorrow", "Cannot read the Slurm key time=tomorrow: write hours:minutes:seconds"),
        ("cpus=many", "Cannot read the Slurm key cpus=many: write a whole number"),
        ("cpus=0", "Cannot read the Slurm key cpus=0: write a whole number"),
    ],
)
def test_a_bad_request_is_refused(text: str, message: str) -> None:
    with pytest.raises(MechirError) as error:
        Slurm(text)
    assert str(error.value).startswith(message)


def test_workers_are_a_number_or_the_fewest_and_the_most() -> None:
    assert between("4") == (4, 4) and between("0-16") == (0, 16)
    for wrong in ("", "0", "-", "3-", "-3", "5-2", "x", "1-2-3", "1.5"):
        with pytest.raises(MechirError, match="write how many, such as 4, or the fewest and most"):
            between(wrong)


def test_a_worker_ends_before_its_walltime_and_listens_on_its_node_alone() -> None:
    arguments = worker_arguments(14400, by_name=True)
    assert arguments[arguments.index("--lifetime") + 1] == "13800s"
    assert arguments[arguments.index("--host") + 1] == "$SLURMD_NODENAME"
    assert arguments[arguments.index("--dashboard-address") + 1] == "127.0.0.1:0"
    assert worker_arguments(60, by_name=False)[-3:] == ["48s", "--lifetime-stagger", "3s"]
    assert "--lifetime" not in worker_arguments(None, by_name=False)


def sbatch(folder: Path, script: str) -> str:
    """A PATH whose sbatch is this script."""
    file = folder / "sbatch"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_what_sbatch_refuses_is_said_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "sbatch: error: invalid partition specified: nowhere\\nsbatch: error: Batch job submission failed: Invalid"
    monkeypatch.setenv("PATH", sbatch(tmp_path, f"printf '{words}' >&2; exit 1"))
    with pytest.raises(MechirError) as error:
        refuse_unsubmittable(Request.parse("partition=nowhere"))
    assert str(error.value) == "Slurm refuses slurm='partition=nowhere': invalid partition specified: nowhere."
    words = (
        "sbatch: error: fetch_config: DNS SRV lookup failed\\nsbatch: fatal: Could not establish a configuration source"
    )
    monkeypatch.setenv("PATH", sbatch(tmp_path, f"printf '{words}' >&2; exit 1"))
    with pytest.raises(
        MechirError, match=r"^Slurm refuses slurm='mem=1G': Could not establish a configuration source\.$"
    ):
        refuse_unsubmittable(Request.parse("mem=1G"))
    monkeypatch.setenv("PATH", sbatch(tmp_path, 'echo "$@" > "$(dirname "$0")/said"'))
    refuse_unsubmittable(Request.parse("partition=gpu mem=32G"))
    assert (tmp_path / "said").read_text().split()[:4] == ["--test-only", "--ntasks=1", "--partition=gpu", "--mem=32G"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(MechirError, match=r"^There is no sbatch on this machine: start the command where"):
        mi.run("vast2025/layer_sweep", mi.load(TOY_MODEL), TOY, registry=tmp_path / "r", engine=Slurm("mem=1G"))
    assert not (tmp_path / "r").exists()


def in_allocation(monkeypatch: pytest.MonkeyPatch, number: int, tasks: int = 3) -> None:
    values = {"PROCID": number, "NTASKS": tasks, "JOB_ID": 7, "STEP_ID": 0}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURMD_NODENAME", "node1")


def test_an_allocation_is_entered_by_srun_with_two_tasks_or_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(MechirError, match="runs inside srun, and SLURM_PROCID is not set: write srun -n 10 in front"):
        mi.run("vast2025/layer_sweep", mi.load(TOY_MODEL), TOY, registry=tmp_path, engine=Allocation())
    in_allocation(monkeypatch, 0, tasks=1)
    with pytest.raises(MechirError, match=r"takes two tasks or more, for the first only hands work out: srun -n 2\."):
        Part.of_environment()


def test_the_other_tasks_of_an_allocation_become_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (keys / name).touch(mode=0o600)
    in_allocation(monkeypatch, 2)
    part, became = Part.of_environment(), list[Any]()
    monkeypatch.setattr(os, "execv", lambda file, arguments: became.append((file, arguments)))
    with part.announced(tmp_path, "tls://node1:1234", keys):
        part.become_worker(tmp_path)
    ((file, arguments),) = became
    assert file == sys.executable and arguments[1:4] == ["-m", "distributed.cli.dask_worker", "tls://node1:1234"]
    assert arguments[arguments.index("--host") + 1] == "node1" and arguments[-1] == str(keys / "key.pem")
    (told,) = tmp_path.glob(".allocation-7.0.0.json")
    told.write_text(json.dumps({}))  # the first task ended without a scheduler
    with pytest.raises(SystemExit) as end:
        part.become_worker(tmp_path)
    assert end.value.code == 0 and len(became) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "none"], "--workers none is no number of processes: write a whole number, 1 or more."),
        (["--workers", "0"], "--workers 0 is no number of processes"),
        (["--slurm", "mem=1G", "--dask", "tls://a:1"], "--slurm and --dask both say what computes: give one of them."),
        (["--dask", "tls://a:1", "--workers", "3"], "--workers has no meaning here: --dask does not take it."),
        (["--certificates", "keys"], "--certificates has no meaning here: it needs --slurm, --dask or --engine."),
        (["--listen", "ib0"], "--listen has no meaning here: it needs --slurm, or --engine slurm-allocation."),
        (["--slurm", "memory=1G"], "Unknown Slurm key 'memory': the closest are 'mem', "),
        (["--slurm", "mem=1G", "--workers", "3-"], "Cannot read --workers '3-': write how many"),
        (["--dask", "tcp://127.0.0.1:8786"], "'tcp://127.0.0.1:8786' has no TLS, and whoever reaches such a"),
    ],
)
def test_the_command_line_refuses_in_its_words(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(TOY_MODEL), "--collection", str(TOY), "--registry", str(tmp_path / "r")]
    with pytest.raises(SystemExit) as end:
        main(["run", "vast2025/layer_sweep", *model, *options])
    assert end.value.code == 2 and capsys.readouterr().err.startswith(f"mechir: {message}")
    assert not (tmp_path / "r" / "runs").exists()


def test_frames_are_compared_byte_for_byte() -> None:
    frame = mi.sweep(mi.load(TOY_MODEL), mi.collection(TOY).pairs(), {"original": ()})
    assert bytes_of(frame) == bytes_of(frame.iloc[::-1])
    assert bytes_of(frame) != bytes_of(frame.assign(score=np.nextafter(frame["score"], np.float32(9))))


@pytest.mark.slow
def test_a_real_slurm_runs_every_way(tmp_path: Path) -> None:
    tried = subprocess.run(["bash", "scripts/try_slurm", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert tried.stdout.rstrip().endswith("== all ways give the same frames")
