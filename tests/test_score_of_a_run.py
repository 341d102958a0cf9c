"""`mechir score` on the first documents of a run, or on a sample."""

from __future__ import annotations

from pathlib import Path

import pytest

import mechir as mi
from tests.models import TOY
from tests.test_cli import call


def test_score_takes_the_first_documents_of_a_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toy = mi.collection(TOY)
    lines = [
        f"{query} Q0 {doc} {rank} {-rank} bm25" for query, docs in toy.qrels.items() for rank, doc in enumerate(docs, 1)
    ]
    Path("first.run").write_text("\n".join(lines) + "\n")
    code, out, _ = call(capsys, "score", "--run", "first.run", "--top-k", "3", "--out", "top.run")
    assert code == 0 and "18 pairs" in out
    written = {tuple(line.split()[:3:2]) for line in Path("top.run").read_text().splitlines()}
    assert written == {(query, doc) for query, docs in toy.qrels.items() for doc in list(docs)[:3]}
    code, out, _ = call(capsys, "score", "--per-grade", "1", "--seed", "3", "--out", "few.run")
    pairs = toy.pairs(per_grade=1, easy_negatives=0, seed=3)
    assert code == 0 and {(pair.query_id, pair.doc_id) for pair in pairs} == {
        tuple(line.split()[:3:2]) for line in Path("few.run").read_text().splitlines()
    }
    code, _, err = call(capsys, "score", "--run", "first.run", "--per-grade", "1", "--out", "both.run")
    assert code == 2 and "--per-grade samples judged documents, and --run and --top-k take" in err
