"""Processes of this machine compute what this process computes, and one that dies loses its unit alone."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import planted, work
from mechir.catalog import load_experiment
from mechir.certificates import folder_of
from mechir.engine import Local
from mechir.errors import LostWorkers, MechirError
from mechir.experiment import Step
from mechir.material import source_of
from mechir.place import Place, on_worker, task_of, token_of
from mechir.source_reference import CollectionReference, referred, restored
from tests.models import TOY, TOY_MODEL
from tests.processes import DEADLY, SLOW, children, command, wait_until

TASK = task_of(max, (2, 3))


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Units of a few pairs, and one thread, as each of the workers has: frames are the same for one number of threads."""
    monkeypatch.setattr(work, "UNIT", 12)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(one: Any, other: Any) -> None:
    assert one.id == other.id
    pd.testing.assert_frame_equal(one.rows, other.rows, check_exact=True)
    pd.testing.assert_frame_equal(one.summary, other.summary, check_exact=True)


def test_two_processes_give_the_rows_of_one(tmp_path: Path) -> None:
    model, said = mi.load(TOY_MODEL), list[str]()
    options: dict[str, Any] = {"relevant": 3, "hard": 0, "weak": 1}
    for name, source, chosen in (
        ("vast2025/attention_contrast", TOY, options),
        ("vast2024/distribution", TOY, {}),
        ("vast2024/matching_heads", TOY, {}),
        ("circuits/faithfulness", TOY, {"draws": 2}),
    ):
        pool = mi.Pool(limit_queries=4, per_grade=2) if name.startswith("circuits") else None
        here = mi.run(name, model, source, pool=pool, registry=tmp_path / "here", **chosen)
        there = mi.run(
            name, model, source, pool=pool, registry=tmp_path / "there", engine=Local(2), say=said.append, **chosen
        )
        same(here, there)
        assert not (there.path / "job").exists() and not list(there.path.glob(".*"))
    assert not [file.name for file in (tmp_path / "there").iterdir() if file.name.startswith(".")]
    record = there.record
    assert record["devices"] == ["cpu"] and record["dtypes"] == ["float32"] and len(record["hosts"]) == 1
    assert record["thread_counts"] == [1] and record["peak_gb"] > 0.1 and record["seconds"] > 0
    assert any("circuits/edges, step 1 of 2, 1/" in line for line in said)


def test_a_worker_that_is_killed_loses_its_unit_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"at": "q3", "how": "once", "mark": str(tmp_path / "happened")}
    model, said = mi.load(TOY_MODEL), list[str]()
    run = mi.run(DEADLY, model, TOY, registry=tmp_path, engine=Local(2), say=said.append, **options)
    assert (tmp_path / "happened").exists() and run.finished
    there = [line for line in said if " units: " in line]
    assert len(there) == run.record["units"], "each unit once"


def test_a_unit_that_kills_its_workers_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    model = mi.load(TOY_MODEL)
    with pytest.raises(LostWorkers) as error:
        mi.run(DEADLY, model, TOY, registry=tmp_path, engine=Local(2), at="q3")
    (run,) = (tmp_path / "runs").iterdir()
    parts = {file.name for file in run.glob("part-*")}
    lost = int(re.search(r"^unit (\d+) of run ", str(error.value))[1])  # type: ignore[index]
    n = mi.registry.runs.Run(run).record["units"]
    assert parts == {f"part-{unit:05d}.parquet" for unit in range(n)} - {f"part-{lost:05d}.parquet"}
    assert "(deadly) killed three workers each and is not computed; all else is: look at" in str(error.value)
    assert not list(run.glob(".work-*")) and not (run / "summary.parquet").exists()
    with pytest.raises(LostWorkers, match=f"^unit {lost} of run "):  # the same command tries it again, it alone
        mi.run(DEADLY, model, TOY, registry=tmp_path, engine=Local(1), at="q3")


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("error", ZeroDivisionError, "the experiment is wrong"),
        ("mistake", MechirError, "this query cannot be measured"),
        ("full", OSError, "No space left on device"),
    ],
)
def test_an_error_on_a_worker_is_the_run_s(how: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        mi.run(DEADLY, mi.load(TOY_MODEL), TOY, registry=tmp_path, engine=Local(1), at="q3", how=how)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EROFS, "Cannot write the registry '{}' (Read-only file system): give registry=DIR."),
        (errno.ENOSPC, "The disk is full: '{}/.workers-"),
    ],
)
def test_a_registry_that_cannot_be_written_is_one_sentence(
    number: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(MechirError) as error:
        mi.run(SLOW, mi.load(TOY_MODEL), TOY, registry=tmp_path, engine=Local(1))
    assert str(error.value).startswith(message.format(tmp_path)) and not list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(
        MechirError, match=r"^Cannot write the keys of the run beside the registry, into '.*: give cert"
    ):
        folder_of(tmp_path / "registry", {}).__enter__()


def test_a_full_disk_on_a_worker_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    step = Step(load_experiment(SLOW)(), mi.collection(TOY), mi.Pool())
    begun = work.begin(work.ready(work.Work(step, mi.load(TOY_MODEL), tmp_path), mi.load(TOY_MODEL), print))
    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(MechirError, match=r"^The disk is full: '.*/\.work-00000-s-0' was not written; free some space"):
        work.compute(begun, 0, "s")


@pytest.mark.parametrize(
    "signal_", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM, signal.SIGKILL]
)
def test_the_workers_of_a_client_that_ends_end_as_well(signal_: signal.Signals, tmp_path: Path) -> None:
    arguments = command(SLOW, "--pause", 0.4, "--registry", tmp_path, "--workers", 2)
    client = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(tmp_path.glob("runs/*/part-*")))
    workers = children(client.pid)
    assert len(workers) >= 2
    client.send_signal(signal_)
    assert client.wait(timeout=60) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(signal_, -signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 60)
    assert client.stderr is not None
    with client.stderr:
        said = client.stderr.read()
    assert "Traceback" not in said and (signal_ == signal.SIGKILL or "goes on from the last finished unit" in said)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/*/part-*")}
    again = subprocess.run(command(SLOW, "--pause", 0.4, "--registry", tmp_path), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert all(file.stat().st_mtime_ns == when for file, when in before.items()), "what was finished stays"


def test_exit_codes_and_sentences_of_the_command_line(tmp_path: Path) -> None:
    poison = subprocess.run(
        command(DEADLY, "--at", "q3", "--registry", tmp_path, "--workers", 1), capture_output=True, text=True
    )
    assert poison.returncode == 1 and "Traceback" not in poison.stderr
    assert re.search(r"^mechir: unit \d+ of run [0-9a-f]{16} \(deadly\) killed three workers", poison.stderr, re.M)
    mistake = subprocess.run(
        command(DEADLY, "--at", "q3", "--how", "mistake", "--registry", tmp_path, "--workers", 1),
        capture_output=True,
        text=True,
    )
    assert mistake.returncode == 2 and mistake.stderr.endswith("mechir: this query cannot be measured\n")


def test_what_no_other_process_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MechirError, match="was made in memory and no other process can read it: save it with"):
        mi.run(SLOW, planted.bm25(), TOY, registry=tmp_path, engine=Local(1))
    with pytest.raises(MechirError, match=r"^workers=0 is out of range: write a whole number, 1 or more"):
        Local(0)
    with pytest.raises(MechirError, match=r"^Cannot run with engine=4: write engine=mechir.Local\(4\), mechir.Slurm"):
        mi.run(SLOW, mi.load(TOY_MODEL), TOY, registry=tmp_path, engine=4)
    assert not list(tmp_path.iterdir())


def test_what_a_worker_would_read_otherwise_is_refused_before_anything(tmp_path: Path) -> None:
    file = tmp_path / "listed.py"
    file.write_text(
        Path(SLOW).read_text().replace("    pause:", '    tags: tuple[str, ...] = option((), "words")\n    pause:')
    )
    listed, model = mi.load_experiment(file), mi.load(TOY_MODEL)
    with pytest.raises(
        MechirError, match=r"^No other process reads Slow\(tags=\('a,b',\).* and no comma into the items"
    ):
        mi.run(listed(tags=("a,b",)), model, TOY, registry=tmp_path / "r", engine=Local(1))
    two = tmp_path / "two.py"
    two.write_text(Path(SLOW).read_text() + "\n\nclass Slower(Slow):\n    pass\n")
    script = tmp_path / "script.py"
    script.write_text(
        Path(SLOW).read_text()
        + f"""
if __name__ == "__main__":
    from mechir.engine import Local
    mi.run(Slow(), mi.load({str(TOY_MODEL)!r}), {str(TOY)!r}, registry={str(tmp_path / "r")!r}, engine=Local(1))
"""
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert "Slow is defined in the script that runs and no other process can read it: write it into" in ended.stderr
    assert not (tmp_path / "r").exists()


def test_a_worker_that_reads_other_files_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "collection"
    shutil.copytree(TOY, folder)
    collection = mi.collection(folder)
    docs = folder / "docs.tsv"
    docs.write_text(docs.read_text().replace("goldfish", "catfish"))
    with pytest.raises(MechirError, match=r"is another collection on this worker \(hash [0-9a-f]{12}, the run is of"):
        mi.run(SLOW, mi.load(TOY_MODEL), collection, registry=tmp_path / "r", engine=Local(1))


def test_paths_are_whole_on_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = mi.collection(TOY).pairs()
    lines = [f"{pair.query_id} Q0 {pair.doc_id} {rank} {-rank} r" for rank, pair in enumerate(pairs)]
    (tmp_path / "x.run").write_text("\n".join(lines) + "\n")
    (tmp_path / "groups.tsv").write_text("q1\tone\nq2\ttwo\n")
    monkeypatch.chdir(tmp_path)
    cut = mi.load_experiment("joint/cut").chosen(sites="h0.0", groups="groups.tsv")
    step = Step(cut, mi.collection(TOY), mi.Pool(run="x.run"))
    travelled = pickle.dumps(work.Work(step, mi.load(TOY_MODEL), tmp_path, taken=None).__getstate__()["step"])
    (_, options, _), _, pool = pickle.loads(travelled)
    assert pool.run == str(tmp_path / "x.run") and options["groups"] == str(tmp_path / "groups.tsv")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with token_of(tmp_path / "registry") as place:
        yield place


def test_a_worker_elsewhere_or_of_another_version_is_refused(place: Place, tmp_path: Path) -> None:
    assert on_worker(place, TASK) == 3
    from dataclasses import replace

    with pytest.raises(MechirError, match=r"^The worker on \S+ does not see the registry '.*elsewhere': give"):
        on_worker(replace(place, registry=tmp_path / "elsewhere"), TASK)
    with pytest.raises(MechirError, match=r"has mechir \S+, and the run was started with 0.0.1: give all machines"):
        on_worker(replace(place, version="0.0.1"), TASK)
    with pytest.raises(MechirError, match=r"has mechir \S+ with other code, and the run was started with"):
        on_worker(replace(place, code="0" * 64), TASK)


def test_a_collection_travels_as_its_address(tmp_path: Path) -> None:
    collection = mi.collection(TOY)
    reference = referred(collection)
    assert isinstance(reference, CollectionReference) and len(pickle.dumps(reference)) < 1000
    assert restored(pickle.loads(pickle.dumps(reference))).hash == collection.hash
    with pytest.raises(
        MechirError, match=r"is another collection on this worker \(hash [0-9a-f]{12}, the run is of 00"
    ):
        restored(CollectionReference(str(TOY), (), "0" * 64))
    contrasts = mi.diagnostic("tfc1", collection)
    again = restored(pickle.loads(pickle.dumps(referred(contrasts))))
    assert again.hash == contrasts.hash and again.perturbed.hash == collection.hash
    groups = source_of(mi.load_experiment("vast2024/importance")(), collection)
    assert restored(pickle.loads(pickle.dumps(referred(groups)))).hash == groups.hash


def test_pairs_in_memory_are_computed_on_workers_too(tmp_path: Path) -> None:
    pairs = mi.collection(TOY).pairs(limit_queries=3)
    model = mi.load(TOY_MODEL)
    here, there = (
        mi.run(SLOW, model, pairs, registry=tmp_path / name, engine=engine)
        for name, engine in (("here", None), ("there", Local(1)))
    )
    same(here, there)


def test_no_worker_outlives_a_run(tmp_path: Path) -> None:
    mi.run(SLOW, mi.load(TOY_MODEL), TOY, registry=tmp_path, engine=Local(1))  # starts the server that forks them
    before = children(os.getpid())
    mi.run(SLOW, mi.load(TOY_MODEL), TOY, registry=tmp_path / "another", engine=Local(2))
    wait_until(lambda: len(children(os.getpid())) <= len(before), 20)
