"""Processes of this machine start and end without a trace: Ctrl-C, scripts that they cannot read, threads that stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mechir.processes import LOST, Processes
from tests.models import TOY, TOY_MODEL
from tests.processes import SLOW, children, command, wait_until


def test_ctrl_c_while_workers_start_is_one_sentence(tmp_path: Path) -> None:
    arguments = command(SLOW, "--pause", 0.4, "--registry", tmp_path, "--workers", 2)
    client = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: children(client.pid))  # what workers are forked from begins to import
    time.sleep(0.5)
    os.killpg(client.pid, signal.SIGINT)  # as a terminal does
    _, said = client.communicate(timeout=60)
    assert client.returncode == 130 and "Traceback" not in said, said
    assert said.rstrip().endswith("interrupted; the same command goes on from the last finished unit")


def test_a_script_that_no_process_can_read_is_refused(tmp_path: Path) -> None:
    where = {"registry": str(tmp_path / "r")}
    script = f"import mechir as mi\nmi.run({SLOW!r}, mi.load({str(TOY_MODEL)!r}), {str(TOY)!r}, engine=mi.Local(1), **{where})"
    done = subprocess.run([sys.executable], input=script, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("No other process can read the script '<stdin>': write it into a file, or leave engine out.")
    assert not (tmp_path / "r").exists()


def test_a_script_that_every_process_would_run_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    where = f"registry={str(tmp_path / 'r')!r}, engine=mi.Local(2)"
    script.write_text(f"import mechir as mi\nmi.run({SLOW!r}, mi.load({str(TOY_MODEL)!r}), {str(TOY)!r}, {where})")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(
        "A new process ends at its start (exit code 1): in a script, call run under `if __name__ == '__main__':`, for every process reads the script."
    )
    assert done.returncode == 1 and not list((tmp_path / "r").glob(".*"))


def test_no_thread_of_a_process_outlives_the_end_of_all() -> None:
    before = set(threading.enumerate())
    processes = Processes(2, 1)
    with pytest.raises(LOST):
        processes.submit(os._exit, 1).result(60)
    in_work = [processes.submit(time.sleep, 60) for _ in range(2)]
    for future in in_work:
        future.add_done_callback(lambda _: time.sleep(0.5))  # the thread that received it takes a while to end
    processes.shutdown(cancel_futures=True)
    assert not set(threading.enumerate()) - before, "a thread that still runs has a traceback when this process ends"
    assert all(future.done() for future in in_work)
