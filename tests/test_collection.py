"""Collections are read strictly, and pools are what they say, whatever else is asked for."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_measures
import pandas as pd
import pytest

import mechir as mi
from mechir.errors import MechirError
from mechir.judged_collection import Collection
from mechir.pair import EASY, pairs_hash
from tests.models import TOY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the toy collection, to be spoilt."""
    return Path(shutil.copytree(TOY, tmp_path / "toy"))


def rows(left_out: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(left_out.itertuples(index=False, name=None))


def append(file: str, line: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        with (folder / file).open("ab") as opened:
            opened.write(line.encode())

    return change


def test_a_directory_is_read_in_file_order() -> None:
    toy = mi.collection(TOY)
    assert repr(toy) == f"Collection(toy: 6 queries, 72 documents, 72 judgments, {toy.hash[:12]})"
    assert list(toy.queries)[:2] == ["q1", "q2"]
    assert toy.qrels["q1"]["d0103"] == 3


def test_texts_keep_every_character_but_the_newline(folder: Path) -> None:
    strange = "a\x85b\u2028c\td \"quoted\" 'x' <b>"
    append("docs.tsv", f"new\t{strange}\r\n")(folder)
    append("qrels.txt", "q1 0 new 2\r\n")(folder)
    assert mi.collection(folder).docs["new"] == strange
    assert mi.collection(folder).hash != mi.collection(TOY).hash


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (append("queries.tsv", "q9 no tab\n"), r"queries.tsv, line 7: cannot read 'q9 no tab'; write query_id<tab>text"),
        (append("queries.tsv", "q1\tagain\n"), r"queries.tsv, line 7: query id 'q1' stands here a second time"),
        (append("docs.tsv", "d0101\tagain\n"), r"docs.tsv, line 73: document id 'd0101' stands here a second time"),
        (append("qrels.txt", "q1 0 d0101\n"), r"qrels.txt, line 73: cannot read 'q1 0 d0101'; write query_id 0 doc_id grade"),
        (append("qrels.txt", "q1 0 d0101 high\n"), r"qrels.txt, line 73: cannot read 'q1 0 d0101 high'"),
        (append("qrels.txt", "q1 0 d0101 \u00b2\n"), r"qrels.txt, line 73: cannot read 'q1 0 d0101 \u00b2'"),
        (append("qrels.txt", "q1 0 d0101 --1\n"), r"qrels.txt, line 73: cannot read 'q1 0 d0101 --1'"),
        (append("qrels.txt", "q1 0 d0101 2\n"), r"document 'd0101' has grade 2 for query 'q1' here and 1 above; keep one"),
        (lambda f: (f / "docs.tsv").write_bytes(b"d\xff\t"), r"docs.tsv is not UTF-8 \(byte 1\)"),
        (lambda f: (f / "qrels.txt").unlink(), r"is no collection: it holds no qrels.txt"),
        (append("qrels.txt", "q1 0 x1 1\nq8 0 d0101 1\n"), r"2 of 74 judgments of '.*/toy' cannot be used \(judged document that is missing; judgment of an unknown query: q1/x1, q8/d0101\): over 1 %; mend them, or leave them out with leave_out=0.03"),
        (lambda f: (f / "docs.tsv").write_text("d9\ta\n"), r"72 of 72 judgments .*: over 1 %; mend them, for nothing would be left: the files do not belong together"),
        (lambda f: (f / "qrels.txt").write_text("\n"), r"The pool of 'toy' is empty"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted_is_refused(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    with pytest.raises(MechirError, match=message):
        mi.collection(folder).pairs()


def test_few_unknown_judgments_are_left_out_counted_and_said(folder: Path) -> None:
    many = "".join(f"q1 0 d{q:02d}{d:02d} 0\n" for q in range(2, 7) for d in range(12))
    append("qrels.txt", many + "q1 0 nowhere 3\n")(folder)
    with pytest.warns(UserWarning, match=r"1 of 133 judgments of .*: q1/nowhere\); they are left out"):
        read = mi.collection(folder)
    assert rows(read.sample().left_out) == [("judged document that is missing", "q1", "nowhere")]
    assert "nowhere" not in {pair.doc_id for pair in read.pairs()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"There is no directory './nowhere'"),
        ("msmarco-passage/trec-dl-2019/juged", r"the closest ids are 'msmarco-passage/trec-dl-2019/judged'"),
    ],
)
def test_a_name_that_is_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        mi.collection(name)


def test_a_byte_order_mark_is_no_part_of_the_first_id(folder: Path) -> None:
    file = folder / "queries.tsv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert next(iter(mi.collection(folder).queries)) == "q1"


def test_the_judged_pool_is_every_judgment_by_falling_grade() -> None:
    pairs = mi.collection(TOY).pairs()
    assert len(pairs) == 72
    first = [pair.grade for pair in pairs if pair.query_id == "q1"]
    assert first == sorted(first, reverse=True)


def test_pools_hold_what_was_asked_for() -> None:
    toy = mi.collection(TOY)
    pairs = toy.pairs(per_grade=2, easy_negatives=4)
    for query_id in toy.queries:
        mine = [pair for pair in pairs if pair.query_id == query_id]
        assert Counter(pair.grade for pair in mine) == {3: 2, 2: 2, 1: 2, 0: 2, EASY: 4}
        assert len({pair.doc_id for pair in mine}) == 12
        for pair in mine:
            assert (pair.doc_id in toy.qrels[query_id]) == (pair.grade != EASY)
            assert pair.document == toy.docs[pair.doc_id]


def test_what_is_drawn_depends_on_seed_query_and_grade_alone() -> None:
    toy = mi.collection(TOY)
    whole = toy.pairs(per_grade=2, easy_negatives=3)
    assert toy.pairs(per_grade=2, easy_negatives=3, limit_queries=2) == whole[:22]
    assert toy.pairs(per_grade=2) == tuple(pair for pair in whole if pair.grade != EASY)
    assert toy.pairs(per_grade=2, easy_negatives=3, seed=1) != whole
    assert pairs_hash(whole) == pairs_hash(toy.pairs(per_grade=2, easy_negatives=3)) != pairs_hash(whole[1:])


def test_the_order_of_the_judgments_never_changes_what_is_drawn(folder: Path) -> None:
    lines = (folder / "qrels.txt").read_text().splitlines(keepends=True)
    (folder / "qrels.txt").write_text("".join(reversed(lines)))
    assert mi.collection(folder).pairs(per_grade=2) == mi.collection(TOY).pairs(per_grade=2)


def test_queries_without_judgments_are_left_out(folder: Path) -> None:
    append("queries.tsv", "alone\twifi and bluetooth\n")(folder)
    append("run.mine.txt", "alone Q0 d0101 1 2 t\nq1 Q0 d0101 1 2 t\n")(folder)
    read = mi.collection(folder)
    for options in ({}, {"top_k": 3}, {"run": "mine"}):
        assert "alone" not in {pair.query_id for pair in read.pairs(**options)}  # type: ignore[arg-type]


def test_a_query_of_no_known_word_has_no_bm25_candidates(folder: Path) -> None:
    text = (folder / "queries.tsv").read_text().split("\n")
    (folder / "queries.tsv").write_text("\n".join(["q1\tthe of and", "q2\tzzzz", *text[2:]]))
    found = {pair.query_id for pair in mi.collection(folder).pairs(top_k=3)}
    assert found
    assert not found & {"q1", "q2"}


def test_documents_without_a_word_have_no_bm25_candidates(folder: Path) -> None:
    (folder / "docs.tsv").write_text("d0101\tthe of and\n")
    (folder / "qrels.txt").write_text("q1 0 d0101 1\n")
    with pytest.raises(MechirError, match=r"The pool of 'toy' is empty: there are documents to score for none of its"):
        mi.collection(folder).pairs(top_k=3)


def test_bm25_over_too_many_documents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Collection.__module__], "BM25_LIMIT", 71)  # the function hides the module
    with pytest.raises(MechirError, match=r"'toy' has 72 documents, too many for BM25 here: give .* run=FILE"):
        mi.collection(TOY).pairs(top_k=3)


def test_an_empty_pool_has_an_empty_ideal_ranking() -> None:
    assert list(mi.collection(TOY).judged([], full=True)) == ["query_id", "doc_id", "grade", "pooled"]


def test_every_query_draws_by_itself() -> None:
    toy = mi.collection(TOY)
    pairs = toy.pairs(per_grade=2, easy_negatives=3)
    places: dict[str, list[int]] = {query_id: [] for query_id in toy.queries}
    easy: dict[str, list[str]] = {query_id: [] for query_id in toy.queries}
    for pair in pairs:
        if pair.grade == EASY:
            easy[pair.query_id].append(pair.doc_id)
        else:  # its place among the query's judged documents of that grade
            same = sorted(d for d, grade in toy.qrels[pair.query_id].items() if grade == pair.grade)
            places[pair.query_id].append(same.index(pair.doc_id))
    assert len(set(map(tuple, places.values()))) > 1
    assert len({documents[0] for documents in easy.values()}) > 2


def test_a_sample_is_sorted_within_its_grade() -> None:
    for seed in range(5):
        keys = [(p.query_id, -(p.grade or 0), p.doc_id) for p in mi.collection(TOY).pairs(per_grade=2, seed=seed)]
        assert keys == sorted(keys)


def test_easy_negatives_are_neither_judged_nor_in_the_run(folder: Path) -> None:
    run = "".join(f"q1 Q0 d02{d:02d} {d} {-d} t\n" for d in range(10))
    (folder / "run.mine.txt").write_text(run)
    toy = mi.collection(folder)
    drawn = [pair.doc_id for pair in toy.pairs(run="mine", easy_negatives=50) if pair.grade == EASY]
    in_run = {f"d02{d:02d}" for d in range(10)}
    assert set(drawn) == set(toy.docs) - set(toy.qrels["q1"]) - in_run
    assert len(drawn) == 50


def test_a_document_s_text_is_part_of_the_hash(folder: Path) -> None:
    text = (folder / "docs.tsv").read_text()
    (folder / "docs.tsv").write_text(text.rstrip("\n") + " more\n")
    assert mi.collection(folder).hash != mi.collection(TOY).hash


def test_a_run_s_top_is_a_pool_with_its_judgments(folder: Path) -> None:
    run = "q1 Q0 d0101 1 0.5 t\nq1 Q0 d0201 2 0.75 t\nq1 Q0 d0103 3 0.5 t\nq2 Q0 d0203 1 1 t\n"
    (folder / "run.mine.txt").write_text(run)
    toy = mi.collection(folder)
    found = toy.pairs(run="mine", top_k=2, easy_negatives=1)
    assert [(pair.query_id, pair.doc_id, pair.grade) for pair in found if pair.grade != EASY] == [
        ("q1", "d0201", None), ("q1", "d0101", 1), ("q2", "d0203", 3),
    ]  # fmt: skip
    assert toy.pairs(run=folder / "run.mine.txt") == toy.pairs(run="run.mine.txt") == toy.pairs(run="mine")
    judged = toy.judged(found, full=True)
    assert judged["pooled"].sum() == len(found)
    assert len(judged) == 24 + 3  # all judged documents of both queries, one unjudged, two easy negatives
    assert len(toy.judged(found, full=False)) == len(found)
    assert judged.loc[judged["doc_id"] == "d0201", "grade"].tolist()[0] == 0


def test_bm25_finds_the_documents_with_the_words(folder: Path) -> None:
    append("docs.tsv", "hit\tBluetooth WIFI wifi\n")(folder)
    pairs = mi.collection(folder).pairs(top_k=5)
    mine = [pair for pair in pairs if pair.query_id == "q2"]
    assert mine[0].doc_id == "hit"
    assert all("wifi" in pair.document.lower() for pair in mine)
    assert len(mine) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_grade": 2, "top_k": 3}, r"per_grade= samples judged documents, and run= and top_k= take"),
        (
            {"easy_negatives": 61},
            r"'toy' has 72 documents, 12 of them .* for query 'q1': too few for 61 easy negatives",
        ),
        ({"per_grade": 0}, r"per_grade=0 asks for nothing: write 1 or more, or leave it out"),
        ({"top_k": -1}, r"top_k=-1 asks for nothing: write 1 or more"),
        ({"limit_queries": -1}, r"limit_queries=-1 asks for nothing: write 1 or more"),
        ({"easy_negatives": -3}, r"easy_negatives=-3 asks for nothing: write 0 or more"),
        ({"run": "none"}, r"There is no run file 'none', and 'toy' has none of its own: give the path of one"),
        ({"run": "../x"}, r"There is no run file '../x'"),
    ],
)
def test_pools_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MechirError, match=message):
        mi.collection(TOY).pairs(**options)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("q1 Q0 d0101 1 x t\n", r"run.bad.txt, line 1: cannot read 'q1 Q0 d0101 1 x t'; write query_id Q0 doc_id rank"),
        ("q1 Q0 d0101 1 nan t\n", r"run.bad.txt, line 1: cannot read 'q1 Q0 d0101 1 nan t'"),
        ("q1 Q0 d0101 1 2 t\nq1 Q0 d0101 2 1 t\n", r"line 2: document 'd0101' stands twice for query 'q1'"),
        (
            "q1 Q0 x 1 2 t\n",
            r"1 of 1 lines of the run 'bad' cannot be used \(document of the run that is missing: q1/x\): over 1 %",
        ),
    ],
)
def test_a_run_that_cannot_be_trusted_is_refused(folder: Path, run: str, message: str) -> None:
    (folder / "run.bad.txt").write_text(run)
    with pytest.raises(MechirError, match=message):
        mi.collection(folder).pairs(run="bad")


def test_few_unknown_lines_of_a_run_are_left_out_and_said(folder: Path) -> None:
    known = "".join(f"q1 Q0 d{q:02d}{d:02d} 1 {-q - d / 100} t\n" for q in range(1, 7) for d in range(12))
    other = known.replace("q1 ", "q2 ")
    append("run.mine.txt", known + other + "q1 Q0 nowhere 1 9 t\n")(folder)
    with pytest.warns(UserWarning, match=r"1 of 145 lines of the run 'mine' .*: q1/nowhere\); they are left out"):
        pairs = mi.collection(folder).pairs(run="mine", top_k=1)
    assert [pair.doc_id for pair in pairs] == ["d0100", "d0100"]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("dl19", (43, 11179, 9260)),
        ("dl21", (53, 13338, 10828)),
        ("cranfield", (225, 1398, 1836)),
        ("vaswani", (93, 11429, 2083)),
    ],
)
def test_real_collections_are_whole(shared: Path, name: str, sizes: tuple[int, int, int]) -> None:
    read = mi.collection(shared / "data" / name)
    assert (len(read.queries), len(read.docs), sum(map(len, read.qrels.values()))) == sizes
    assert read.sample().left_out.empty
    assert len(read.pairs(per_grade=1, easy_negatives=1)) > len(read.queries)


@pytest.mark.shared
def test_bm25_s_own_order_of_dl19_gives_the_published_value(shared: Path) -> None:
    read = mi.collection(shared / "data" / "dl19")
    ranked: dict[str, dict[str, float]] = {}
    for place, pair in enumerate(read.pairs(run="bm25", top_k=50)):
        ranked.setdefault(pair.query_id, {})[pair.doc_id] = -place
    qrels = {query_id: dict(grades) for query_id, grades in read.qrels.items()}
    found = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, ranked)
    assert len(ranked) == 43
    assert round(found[ir_measures.nDCG @ 10], 4) == 0.5058
