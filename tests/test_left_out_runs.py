"""What the record of a run says of what was left out, and of the queries that count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ir_measures
import pandas as pd
import pytest

import mechir as mi
from mechir.catalog import load_experiment
from mechir.collection_groups import collections
from mechir.encoder import HookedEncoder
from mechir.material import Pool, material_of
from mechir.registry.runs import Run
from tests.models import TOY, TOY_MODEL

NDCG = ir_measures.nDCG @ 10
INTACT = """
from dataclasses import dataclass
from typing import ClassVar

from mechir.experiment import Experiment
from mechir.sweeps import sweep
from mechir.views import charts

@dataclass(frozen=True)
class Intact(Experiment):
    PREPARE

    def measure(self, model, pairs):
        return sweep(model, pairs, {"original": ()})

    def summarise(self, run):
        return run.rows.groupby("name", as_index=False)["score"].mean()

    def chart(self, summary):
        return charts.lines(summary.assign(x=0.0), "x", "score", "name", title="score")
"""
FIRST_HELD_BACK = """
    def prepare(self, inputs):
        return self, [pair for pair in inputs.material if pair.query_id != "q1"]
"""
GROUPS = 'runs_on: ClassVar = "groups"'
FOLLOWER = """
from dataclasses import dataclass
from typing import ClassVar

from mechir.catalog import load_experiment

Intact = load_experiment("FILE")

@dataclass(frozen=True)
class Follower(Intact):
    rows_of: ClassVar = Intact
"""


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The toy collection with two queries of six without a relevant document, and a pair that is judged twice."""
    folder = Path(shutil.copytree(TOY, tmp_path / "judged"))
    lines = (folder / "qrels.txt").read_text().splitlines()
    lines = [line.rsplit(" ", 1)[0] + " 0" if line.startswith(("q2 ", "q5 ")) else line for line in lines]
    (folder / "qrels.txt").write_text("\n".join([*lines, "q1 7 d0101 1"]) + "\n")
    return folder


def run(toy: HookedEncoder, source: Any, tmp_path: Path, prepare: str = "", **pool: Any) -> Run:
    file = tmp_path / "intact.py"
    file.write_text(INTACT.replace("PREPARE", prepare))
    return mi.run(str(file), toy, source, pool=Pool(**pool), registry=tmp_path / "registry")


def over_all(stored: Run, folder: Path) -> float:
    """What ir_measures says of the run over all judgments of the folder."""
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels.txt").read_text().splitlines():
        query_id, _, doc_id, grade = line.split()
        qrels.setdefault(query_id, {})[doc_id] = int(grade)
    rows = stored.rows
    ranked = {key: dict(zip(one["doc_id"], one["score"], strict=True)) for key, one in rows.groupby("query_id")}
    return float(ir_measures.calc_aggregate([NDCG], qrels, ranked)[NDCG])


def test_the_mean_over_all_is_that_of_ir_measures(toy: HookedEncoder, folder: Path, tmp_path: Path) -> None:
    stored = run(toy, mi.collection(folder), tmp_path)
    (quality,) = stored.record["quality"]
    assert quality["over_all"] == pytest.approx(over_all(stored, folder))
    assert (quality["n"], quality["queries"], quality["value"]) == (4, 6, pytest.approx(quality["over_all"] * 6 / 4))
    (folder / "given.txt").write_text(
        "".join(f"{q} Q0 d0{q[1]}03 1 1 t\n{q} Q0 d0{q[1]}05 2 0 t\n" for q in ("q1", "q2"))
    )
    stored = run(toy, mi.collection(folder), tmp_path, run=str(folder / "given.txt"))
    (quality,) = stored.record["quality"]
    assert quality["over_all"] == pytest.approx(over_all(stored, folder))
    assert (quality["n"], quality["queries"]) == (1, 6)


def test_no_query_counts(toy: HookedEncoder, folder: Path, tmp_path: Path) -> None:
    text = (folder / "qrels.txt").read_text().splitlines()
    (folder / "qrels.txt").write_text("\n".join(line.rsplit(" ", 1)[0] + " 0" for line in text) + "\n")
    stored = run(toy, mi.collection(folder), tmp_path)
    (quality,) = stored.record["quality"]
    assert (quality["n"], quality["queries"], quality["value"], quality["over_all"]) == (0, 6, None, 0)
    json.loads((stored.path / "run.json").read_text(), parse_constant=pytest.fail)


def test_queries_that_were_held_back_are_in_no_mean(toy: HookedEncoder, folder: Path, tmp_path: Path) -> None:
    stored = run(toy, mi.collection(folder), tmp_path, FIRST_HELD_BACK)
    (quality,) = stored.record["quality"]
    assert (stored.record["held_back"], quality["n"], quality["queries"]) == (1, 3, 5)


def test_groups_have_a_mean_each(toy: HookedEncoder, folder: Path, tmp_path: Path) -> None:
    stored = run(toy, collections([f"in:{TOY}", f"out:{folder}"]), tmp_path, GROUPS)
    told = {one["collection"]: (one["n"], one["queries"]) for one in stored.record["quality"]}
    assert told == {"toy": (6, 6), "judged": (4, 6)}
    assert stored.record["left_out"]["pair judged again with the same grade"]["examples"] == [
        "judged::q1/judged::d0101"
    ]


def test_a_run_on_the_rows_of_another_has_what_was_left_out(toy: HookedEncoder, folder: Path, tmp_path: Path) -> None:
    stored = run(toy, mi.collection(folder), tmp_path)
    file = tmp_path / "follower.py"
    file.write_text(FOLLOWER.replace("FILE", str(tmp_path / "intact.py")))
    other = mi.run(str(file), toy, mi.collection(folder), registry=tmp_path / "registry")
    assert other.id != stored.id and other.record["rows_of"] == stored.id
    pd.testing.assert_frame_equal(other.left_out, stored.left_out)
    assert len(other.left_out) == 3 and other.record["left_out"] == stored.record["left_out"]
    assert other.record["quality"] == stored.record["quality"]


def test_contrasts_tell_what_their_collection_left_out(toy: HookedEncoder, folder: Path) -> None:
    with (folder / "qrels.txt").open("a") as file:
        file.write("q1 8 d0101 3\n")
    read = mi.collection(folder, duplicates="max")
    made = mi.diagnostic("tfc1", read, limit_queries=2)
    taken = material_of(load_experiment("chen2024/head_maps"), toy, made, Pool())
    assert taken.left_out is not None and len(taken.left_out) == 3
    assert made.rules == read.rules == {"duplicates": "max"}
