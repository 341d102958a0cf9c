"""The command line prints, records and repeats what a collection or a run leaves out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ir_measures
import pandas as pd
import pytest

import mechir as mi
from mechir.reporting import commands, figures
from tests.models import TOY
from tests.test_cli import call

CUT = ("vast2025/layer_sweep", "--cut", "doc<-query")
RELEVANT_IN_4_OF_6 = (
    "nDCG@10 of the intact model is {:.3f} over the 4 of 6 queries that count; with the others as 0 it is {:.3f}"
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_is_left_out_is_recorded_and_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TOY, tmp_path / "judged"))
    lines = (folder / "qrels.txt").read_text().splitlines()
    lines = [line.rsplit(" ", 1)[0] + " 0" if line.startswith(("q2 ", "q5 ")) else line for line in lines]
    lines = [line.replace(" d0104 0", " d0104 -2") for line in lines]
    (folder / "qrels.txt").write_text("\n".join([*lines, "q1 0 gone 1", "q1 7 d0101 1"]) + "\n")
    on = ("run", *CUT, "--collection", str(folder))
    code, _, err = call(capsys, *on)
    assert code == 2 and "over 1 %; mend them, or leave them out with --leave-out 0.02." in err
    assert not Path("mechir-registry").exists()
    with pytest.warns(UserWarning, match="they are left out"):
        code, out, _ = call(capsys, *on, "--leave-out", "0.02")
    assert code == 0
    (run,) = Path("mechir-registry/runs").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["left_out"] == {
        "grade below 0": {"n": 1, "examples": ["q1/d0104"]},
        "judged document that is missing": {"n": 1, "examples": ["q1/gone"]},
        "pair judged again with the same grade": {"n": 1, "examples": ["q1/d0101"]},
        "query without a relevant document, in no mean of ranking quality": {"n": 2, "examples": ["q2", "q5"]},
    }
    assert len(pd.read_parquet(run / "left_out.parquet")) == 5
    (quality,) = record["quality"]
    rows = pd.read_parquet(run / "part-00000.parquet")
    intact = rows[rows["name"] == "original"]
    qrels = pd.DataFrame([line.split() for line in lines], columns=["query_id", "_", "doc_id", "relevance"])
    qrels = qrels.astype({"relevance": int})
    theirs = ir_measures.calc_aggregate(
        [ir_measures.nDCG @ 10], qrels.assign(relevance=qrels["relevance"].clip(0)), intact
    )
    assert quality["over_all"] == pytest.approx(theirs[ir_measures.nDCG @ 10])
    assert (quality["n"], quality["queries"]) == (4, 6)
    assert quality["value"] == pytest.approx(
        pd.read_parquet(run / "summary.parquet").set_index("name")["ndcg"]["original"]
    )
    assert quality["value"] == pytest.approx(quality["over_all"] * 6 / 4)
    assert RELEVANT_IN_4_OF_6.format(quality["value"], quality["over_all"]) in out
    assert "left out: 1 x judged document that is missing (q1/gone)\n" in out
    assert "left out: 2 x query without a relevant document, in no mean of ranking quality (q2, q5)\n" in out
    assert call(capsys, "show", run.name)[1] == out
    assert record["given"]["leave_out"] == 0.02 and "--leave-out 0.02" in commands.command(record)
    assert dict(figures.provenance(record))["left out"].startswith("1 x grade below 0 (q1/d0104); 1 x judged")


def test_judged_queries_that_a_run_lacks_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    toy = mi.collection(TOY)
    given = "".join(
        f"{query} Q0 {doc_id} 1 {-k} t\n" for query in ("q1", "q3") for k, doc_id in enumerate(toy.qrels[query])
    )
    (tmp_path / "given.txt").write_text(given)
    code, out, _ = call(capsys, "run", *CUT, "--run", "given.txt")
    assert code == 0
    (run,) = Path("mechir-registry/runs").iterdir()
    (quality,) = json.loads((run / "run.json").read_text())["quality"]
    qrels = {query_id: dict(grades) for query_id, grades in toy.qrels.items()}
    rows = pd.read_parquet(run / "part-00000.parquet")
    theirs = ir_measures.calc_aggregate(
        [ir_measures.nDCG @ 10],
        qrels,
        {
            query: dict(zip(one["doc_id"], one["score"], strict=True))
            for query, one in rows[rows["name"] == "original"].groupby("query_id")
        },
    )
    assert (quality["n"], quality["queries"]) == (2, 6)
    assert quality["over_all"] == pytest.approx(theirs[ir_measures.nDCG @ 10])
    assert "over the 2 of 6 queries that count" in out
    assert "left out: 4 x judged query without a document in the pool (q2, q4, q5, ...)" in out
