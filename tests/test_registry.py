"""Stored runs: identity, whole parts, resuming, and what a kill leaves behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pandas as pd
import pytest

from mechir.errors import MechirError
from mechir.registry.runs import Run, find_run, open_run, run_id, runs

FRAME = pd.DataFrame({"query_id": ["q1", "q1"], "doc_id": ["d1", "d2"], "score": [0.5, -0.5]})


def begin(registry: Path, units: int = 2, **identity: object) -> Run:
    return open_run(registry, identity, lambda run: run.write_record({"units": units, "identity": identity}))


def test_the_id_follows_the_identity_and_not_its_order() -> None:
    assert run_id({"a": 1, "b": [2, 3]}) == run_id({"b": [2, 3], "a": 1})
    assert run_id({"a": 1}) != run_id({"a": 2})
    assert len(run_id({})) == 16


def test_parts_come_back_in_the_order_of_units(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.write_part(1, FRAME.assign(query_id="q2"), 2.0)
    run.write_part(0, FRAME, 1.5)
    assert run.done() == {0, 1}
    assert run.rows["query_id"].tolist() == ["q1", "q1", "q2", "q2"]
    assert run.seconds == pytest.approx(3.5)


def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    run = begin(tmp_path, x=1)
    run.write_part(0, FRAME, 1.0)
    again = open_run(tmp_path, {"x": 1}, lambda run: pytest.fail("begun twice"))
    assert again.done() == {0}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    run = begin(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MechirError, match=r"The disk is full: '.*part-00000.parquet' was not written; free some space"):
        run.write_part(0, FRAME, 1.0)
    monkeypatch.undo()
    assert [file.name for file in run.path.iterdir()] == ["run.json"]
    assert run.done() == set()


def test_an_interruption_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path)

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.write_part(0, FRAME, 1.0)
    monkeypatch.undo()
    assert [file.name for file in run.path.iterdir()] == ["run.json"]


def test_what_is_not_finished_says_so(tmp_path: Path) -> None:
    run = begin(tmp_path)
    with pytest.raises(MechirError, match="holds no finished unit yet: start it again"):
        _ = run.rows
    run.write_part(0, FRAME, 1.0)
    with pytest.raises(MechirError, match=r"is not finished \(1 of 2 units\): start it again with the same command"):
        _ = run.summary


def test_runs_are_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    with pytest.raises(MechirError, match="it holds no run yet"):
        find_run(tmp_path, "abc")
    made = [begin(tmp_path, x=x) for x in range(20)]
    assert {run.id for run in runs(tmp_path)} == {run.id for run in made}
    assert find_run(tmp_path, made[0].id[:10]) == made[0]
    first = {run.id[0] for run in made if sum(other.id[0] == run.id[0] for other in made) > 1}.pop()
    with pytest.raises(MechirError, match=rf"'{first}' begins \d+ run ids: write more of it, e.g. {first}"):
        find_run(tmp_path, first)
    with pytest.raises(MechirError, match=r"There is no run '../../etc' in .*: the closest are '[0-9a-f]{16}'"):
        find_run(tmp_path, "../../etc")


def test_a_registry_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MechirError, match=r"Cannot write the registry '.*file' \(Not a directory\): give registry=DIR"):
        begin(tmp_path / "file")
