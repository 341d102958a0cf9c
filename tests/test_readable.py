"""Pairs that the model cannot read are left out of a run up to a share, counted and named, or refused with the share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.material import Pool, readable
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call

TABLE_1 = "vast2025/direction_ablation"


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture
def folder(tmp_path: Path, toy: HookedEncoder) -> Path:
    """The toy collection with a seventh query, which is too long for the model and has one judged document."""
    made = Path(shutil.copytree(TOY, tmp_path / "toy"))
    with (made / "queries.tsv").open("a") as file:
        file.write("long\t" + "wifi " * toy.max_length + "\n")
    with (made / "qrels.txt").open("a") as file:
        file.write("long 0 d0101 2\n")
    return made


def test_beyond_the_share_it_is_refused_with_the_share_that_would_do(toy: HookedEncoder, folder: Path) -> None:
    read = mi.collection(folder)
    with pytest.raises(
        MechirError,
        match=r"The model cannot read 1 of 73 pairs of 'toy', over 1 %: leave them out with leave_out=0.02, or mend them; the first: Query 'long' has \d+ word pieces",
    ):
        readable(toy, Pool().sample(read), read)
    whole = mi.collection(TOY)
    sample = Pool().sample(whole)
    assert readable(toy, sample, whole) is sample


def test_up_to_the_share_it_is_left_out_counted_and_named(toy: HookedEncoder, folder: Path, tmp_path: Path) -> None:
    read = mi.collection(folder, leave_out=0.02)
    with pytest.warns(UserWarning, match="The model cannot read 1 of 73 pairs of 'toy', which are left out"):
        run = mi.run(TABLE_1, toy, read, registry=tmp_path / "r")
    record = run.record
    assert record["left_out"]["query too long for the model"] == {"n": 1, "examples": ["long/d0101"]}
    assert record["left_out"]["judged query without a document in the pool"]["examples"] == ["long"]
    assert (record["pairs"], record["queries"]) == (72, 6)
    (quality,) = record["quality"]
    assert (quality["n"], quality["queries"]) == (6, 7)
    assert quality["over_all"] == pytest.approx(quality["value"] * 6 / 7)
    assert "long" not in set(run.judged["query_id"])
    left = pd.read_parquet(run.path / "left_out.parquet")
    assert set(left["query_id"]) == {"long"}


def test_none_that_can_be_read_is_the_first_sentence(toy: HookedEncoder, folder: Path) -> None:
    read = mi.collection(folder, leave_out=1)
    short = toy.limited(4)
    with pytest.raises(MechirError, match=r"The model can read none of 73 pairs of 'toy'; the first: Query 'q1' has"):
        readable(short, Pool().sample(read), read)


def test_what_cannot_be_read_is_in_no_ideal_ranking(folder: Path, tmp_path: Path) -> None:
    model = mi.load(TOY_MODEL)
    (folder / "run.mine.txt").write_text(
        "".join(f"q1 Q0 d01{d:02d} 1 {-d} t\n" for d in range(12)) + "long Q0 d0101 1 1 t\n"
    )
    read = mi.collection(folder, leave_out=0.5)
    with pytest.warns(UserWarning, match="cannot read 1 of 13 pairs"):
        run = mi.run(TABLE_1, model, read, pool=Pool(run="mine"), registry=tmp_path / "r")
    assert set(run.judged["query_id"]) == {"q1"}


def test_the_command_line_says_and_takes_the_share(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (("run", TABLE_1), ("score", "--out", "x.run")):
        code, out, err = call(capsys, *command, "--collection", str(folder))
        assert (code, out) == (2, "") and "--leave-out 0.02" in err
    assert not Path("mechir-registry").exists() and not Path("x.run").exists()
    with pytest.warns(UserWarning, match="cannot read 1 of 73"):
        code, out, _ = call(capsys, "score", "--out", "x.run", "--collection", str(folder), "--leave-out", "0.02")
    assert code == 0 and "left out: 1 x query too long for the model (long/d0101)" in out
    assert len(Path("x.run").read_text().splitlines()) == 72
    with pytest.warns(UserWarning, match="cannot read 1 of 73"):
        code, out, _ = call(capsys, "run", TABLE_1, "--collection", str(folder), "--leave-out", "0.02")
    assert code == 0 and "left out: 1 x query too long for the model (long/d0101)" in out
    assert "over the 6 of 7 queries that count" in out
    (run,) = Path("mechir-registry/runs").iterdir()
    assert json.loads((run / "run.json").read_text())["given"]["leave_out"] == 0.02
