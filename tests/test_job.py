"""A job is all that another process needs: it is pickled, computed elsewhere with nothing else, and is the same run."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir import planted, work
from mechir.errors import MechirError
from mechir.job import ModelReference
from mechir.running import job
from tests.models import TOY, TOY_MODEL

SLOW = str(Path(__file__).parent / "experiments" / "slow.py")
LOOKS = {"relevant": 3, "hard": 0, "weak": 1}


@pytest.mark.parametrize(("name", "chosen"), [("vast2025/attention_contrast", LOOKS), (SLOW, {"pause": 0.01})])
def test_units_are_computed_in_another_process(
    name: str, chosen: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "UNIT", 20)
    model, collection = mi.load(TOY_MODEL), mi.collection(TOY)
    here = mi.run(name, model, collection, registry=tmp_path / "here", **chosen)
    made = job(name, model, collection, registry=tmp_path / "there", **chosen)
    assert len(made.missing()) > 1
    with pytest.raises(MechirError, match=r"is not finished: \d+ of \d+ units are missing"):
        made.finish()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(made.compute, made.missing())) == list(range(len(made.units)))
    there = made.finish()
    assert there.id == here.id and there.devices == here.devices == ["cpu"]
    pd.testing.assert_frame_equal(there.rows, here.rows, check_exact=True)
    pd.testing.assert_frame_equal(there.summary, here.summary, check_exact=True)


def test_a_job_with_an_experiment_of_a_file_is_pickled_with_its_options(tmp_path: Path) -> None:
    made = job(SLOW, mi.load(TOY_MODEL), mi.collection(TOY), registry=tmp_path, pause=0.5)
    again = pickle.loads(pickle.dumps(made))
    assert again.experiment == made.experiment and again.units == made.units and again.missing() == made.missing()


def test_a_model_in_memory_has_no_reference() -> None:
    with pytest.raises(MechirError, match="was made in memory and no other process can read it: save it with"):
        ModelReference.of(planted.bm25())


def test_a_model_that_has_changed_is_not_taken_for_the_old_one() -> None:
    reference = ModelReference.of(mi.load(TOY_MODEL))
    assert reference.load().fingerprint == reference.fingerprint
    with pytest.raises(MechirError, match=r"is another model now \(fingerprint [0-9a-f]{12}, the run is of 000000"):
        ModelReference(reference.name, "float32", reference.relevant_label, None, "0" * 64).load()


def test_what_summarises_other_rows_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(MechirError, match="'vast2024/transfer' computes no rows of its own: make a job of"):
        job("vast2024/transfer", mi.load(TOY_MODEL), mi.collection(TOY), registry=tmp_path)


def test_the_device_is_no_part_of_a_run(tmp_path: Path) -> None:
    run = mi.run(SLOW, mi.load(TOY_MODEL), mi.collection(TOY), registry=tmp_path)
    assert "device" not in run.record["identity"]
