"""What is left out of collections and pools, alike for directories and ir_datasets, and counted."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ir_datasets
import pytest

import mechir as mi
from mechir import left_out
from mechir.collection_groups import collections
from mechir.errors import MechirError
from mechir.judged_collection import Collection
from mechir.methods.importance import thresholds
from mechir.pair import EASY
from tests.models import TOY

MANY = "".join(f"q1 0 d{q:02d}{d:02d} 0\n" for q in range(2, 7) for d in range(12))
"""60 judgments more, so that one of them is less than 1 %."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the toy collection, to be spoilt."""
    return Path(shutil.copytree(TOY, tmp_path / "toy"))


Opened = Callable[..., Collection]


@pytest.fixture(params=["directory", "ir_datasets"])
def opened(request: pytest.FixtureRequest, folder: Path) -> Opened:
    """Opens the spoilt collection, from its directory or through ir_datasets."""

    def read(**rules: Any) -> Collection:
        if request.param == "directory":
            return mi.collection(folder, **rules)
        name = f"mechir-test/{folder.parent.name}"
        made = ir_datasets.create_dataset(
            docs_tsv=str(folder / "docs.tsv"),
            queries_tsv=str(folder / "queries.tsv"),
            qrels_trec=str(folder / "qrels.txt"),
        )
        ir_datasets.registry._registered.pop(name, None)
        ir_datasets.registry.register(name, made)
        return mi.collection(name, **rules)

    return read


def append(file: Path, text: str) -> None:
    with file.open("a") as opened:
        opened.write(text)


def rows(collection: Collection, **pool: Any) -> list[tuple[str, str, str]]:
    return list(collection.sample(**pool).left_out.itertuples(index=False, name=None))


def test_a_pair_judged_again_with_the_same_grade_counts_once(folder: Path, opened: Opened) -> None:
    append(folder / "qrels.txt", "q1 1 d0101 1\nq1 2 d0101 1\n")
    read = opened()
    assert read.pairs() == mi.collection(TOY).pairs()
    assert rows(read) == [("pair judged again with the same grade", "q1", "d0101")] * 2


def test_a_pair_judged_with_two_grades_is_refused_or_takes_the_largest(folder: Path, opened: Opened) -> None:
    append(folder / "qrels.txt", "q1 2 d0101 2\nq1 3 d0101 0\n")
    said = (
        r", (line|judgment) 73: document 'd0101' has grade 2 for query 'q1' here and 1 above; keep one, or take the "
        r"largest with duplicates='max'\."
    )
    with pytest.raises(MechirError, match=said):
        opened()
    read = opened(duplicates="max")
    assert next(pair.grade for pair in read.pairs() if pair.doc_id == "d0101") == 2
    assert rows(read) == [("pair judged again with another grade, the largest counts", "q1", "d0101")] * 2


def test_a_query_with_two_texts_is_refused(folder: Path, opened: Opened) -> None:
    append(folder / "queries.tsv", (folder / "queries.tsv").read_text().split("\n")[0] + "\n")
    assert rows(opened()) == [("query listed again with the same text", "q1", "")]
    append(folder / "queries.tsv", "q1\tanother\n")
    with pytest.raises(MechirError, match=r" 8: query id 'q1' stands here a second time, with another text"):
        opened()


def test_a_document_listed_again_counts_once(folder: Path) -> None:
    append(folder / "docs.tsv", (folder / "docs.tsv").read_text().split("\n")[3] + " \n")
    assert rows(mi.collection(folder)) == [("document listed again with the same text", "", "d0103")]
    assert mi.collection(folder).hash == mi.collection(TOY).hash
    append(folder / "docs.tsv", "d0103\tanother\n")
    with pytest.raises(MechirError, match=r"docs.tsv, line 74: document id 'd0103' stands here a second time, with"):
        mi.collection(folder)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"duplicates": "last"}, r"Cannot take duplicates='last': write 'refuse', or 'max'"),
        ({"duplicates": "min"}, r"Cannot take duplicates='min'"),
        ({"leave_out": 1.01}, r"leave_out=1.01 is no share: write a number from 0 to 1"),
        ({"leave_out": -0.01}, r"leave_out=-0.01 is no share"),
        ({"leave_out": float("nan")}, r"leave_out=nan is no share"),
    ],
)
def test_rules_that_are_none_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(MechirError, match=message):
        mi.collection(TOY, **rules)


def opened_quietly(opened: Opened, **rules: Any) -> Collection:
    """The collection after its warning."""
    with warnings.catch_warnings(action="ignore"):
        read = opened(**rules)
        read.pairs()
    return read


LOST = [
    ("q1 0 nowhere 3\n", "", ("judged document that is missing", "q1", "nowhere")),
    ("q1 0 blank 3\n", "blank\t \n", ("judged document that is empty", "q1", "blank")),
    ("q9 0 d0101 3\n", "", ("judgment of an unknown query", "q9", "d0101")),
]


@pytest.mark.parametrize(("judgment", "document", "row"), LOST)
def test_what_cannot_be_used_is_left_out_up_to_a_share(
    folder: Path, opened: Opened, judgment: str, document: str, row: tuple[str, str, str]
) -> None:
    append(folder / "docs.tsv", document)
    append(folder / "qrels.txt", judgment)
    with pytest.raises(MechirError, match=r"^1 of 73 judgments of .*: over 1 %; .* with leave_out=0.02"):
        opened().pairs()
    with pytest.raises(MechirError, match=r"over 1.3 %; .* with leave_out=0.02"):
        opened(leave_out=0.013).pairs()
    with pytest.warns(
        UserWarning, match=rf"1 of 73 judgments of .* \({row[0]}: {row[1]}/{row[2]}\); they are left out"
    ):
        found = opened(leave_out=1 / 73).sample()
    read = opened_quietly(opened, leave_out=1 / 73)
    pairs = found.pairs
    assert tuple(pairs) == mi.collection(TOY).pairs()
    assert rows(read) == [row]
    assert row[2] == "d0101" or row[2] not in set(read.judged(pairs, full=True)["doc_id"])
    append(folder / "qrels.txt", MANY)
    read = opened_quietly(opened)
    assert rows(read, limit_queries=1) == rows(read, per_grade=1) == [row]
    with pytest.raises(MechirError, match=r"over 0 %; .* with leave_out=0.01"):
        opened(leave_out=0).pairs()


def test_a_share_of_judgments_at_its_bound(folder: Path, opened: Opened) -> None:
    lines = [f"q1 0 x{k} 1\n" for k in range(28)]
    append(folder / "qrels.txt", "".join(lines))  # 28 of 100: 0.28 * 100 is 28.000000000000004
    with pytest.raises(MechirError, match=r"^28 of 100 judgments .*q1/x2, \.\.\.\): over 27 %; .* leave_out=0.28"):
        opened(leave_out=0.27).pairs()
    with pytest.warns(UserWarning, match=r"28 of 100"):
        assert opened(leave_out=0.28).pairs() == mi.collection(TOY).pairs()


def test_an_empty_query_is_left_out(folder: Path, opened: Opened) -> None:
    text = (folder / "queries.tsv").read_text().split("\n")
    (folder / "queries.tsv").write_text("\n".join(["q1\t ", *text[1:]]))
    with pytest.raises(
        MechirError, match=r"^1 of 6 judged queries of .* \(query that is empty: q1\): over 1 %; .* leave_out=0.17"
    ):
        opened().pairs()
    with pytest.warns(UserWarning, match=r"1 of 6 judged queries"):
        sample = opened(leave_out=0.17).sample()
    assert sample.pairs == [pair for pair in mi.collection(TOY).pairs() if pair.query_id != "q1"]
    assert left_out.queries(sample.left_out, "query that is empty") == ["q1"]


def test_an_empty_query_without_judgments_harms_nothing(folder: Path, opened: Opened) -> None:
    append(folder / "queries.tsv", "alone\t \n")
    assert rows(opened()) == []


def test_an_empty_document_is_never_drawn_nor_retrieved(folder: Path, opened: Opened) -> None:
    clean = mi.collection(TOY).pairs(easy_negatives=5)
    blank = next(pair.doc_id for pair in clean if pair.grade == EASY)
    for name, kept in (("docs.tsv", f"{blank}\t\n"), ("qrels.txt", "")):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(kept if blank in line else line for line in lines))
    read = opened()
    assert len(read.docs) == 72
    pairs = read.pairs(easy_negatives=5)
    assert blank not in {pair.doc_id for pair in pairs} | {pair.doc_id for pair in read.pairs(top_k=72)}
    passed = {query for reason, query, _ in rows(read, easy_negatives=5) if reason == left_out.PASSED_OVER}
    assert {pair.query_id for pair in clean if pair.doc_id == blank and pair.grade == EASY} <= passed
    own = next(query_id for query_id, grades in mi.collection(TOY).qrels.items() if blank in grades)
    for query_id in read.queries.keys() - passed - {own}:  # only where it came up something else is drawn
        assert [p for p in pairs if p.query_id == query_id] == [p for p in clean if p.query_id == query_id]


def test_grades_below_0_are_no_hard_negatives(folder: Path, opened: Opened) -> None:
    text = (folder / "qrels.txt").read_text()
    (folder / "qrels.txt").write_text(text.replace("d0104 0", "d0104 -100").replace("d0101 1", "d0101 -1"))
    read = opened()
    gone = {"d0104", "d0101"}
    assert tuple(p for p in mi.collection(TOY).pairs() if p.doc_id not in gone) == read.pairs()
    assert set(read.judged(read.pairs(), full=True)["doc_id"]).isdisjoint(gone)
    first = Counter(pair.grade for pair in read.pairs(per_grade=3, easy_negatives=60, limit_queries=1))
    assert first == {3: 3, 2: 3, 1: 2, 0: 2, EASY: 60}
    every = {pair.doc_id for pair in read.pairs(per_grade=3, easy_negatives=60, limit_queries=1)}
    assert every.isdisjoint(gone)
    assert sorted(rows(read)) == [("grade below 0", "q1", "d0101"), ("grade below 0", "q1", "d0104")]


def test_grades_below_0_are_passed_over_in_a_ranking_before_the_cut(folder: Path, opened: Opened) -> None:
    top = [pair.doc_id for pair in mi.collection(TOY).pairs(top_k=4) if pair.query_id == "q1"]
    lines = [line for line in (folder / "qrels.txt").read_text().splitlines() if not line.startswith(f"q1 0 {top[0]} ")]
    (folder / "qrels.txt").write_text("\n".join([*lines, f"q1 0 {top[0]} -2"]) + "\n")
    run = folder / "given.txt"
    run.write_text("".join(f"q1 Q0 {doc_id} {rank} {-rank} t\n" for rank, doc_id in enumerate(top)))
    read = opened()
    for pool in ({"top_k": 3}, {"top_k": 3, "run": run}):
        assert [p.doc_id for p in read.pairs(**pool) if p.query_id == "q1"] == top[1:4]  # type: ignore[arg-type]


def test_a_query_with_nothing_but_negative_grades_is_counted(folder: Path, opened: Opened) -> None:
    lines = (folder / "qrels.txt").read_text().splitlines()
    changed = [line.rsplit(" ", 1)[0] + " -1" if line.startswith("q1 ") else line for line in lines]
    changed = [line.rsplit(" ", 1)[0] + " 0" if line.startswith("q3 ") else line for line in changed]
    (folder / "qrels.txt").write_text("\n".join(changed) + "\n")
    read = opened()
    assert [*dict.fromkeys(pair.query_id for pair in read.pairs(limit_queries=2))] == ["q2", "q3"]
    told = left_out.by_reason(read.sample(limit_queries=2).left_out)
    assert told["judged query without a document in the pool"] == {"n": 1, "examples": ["q1"]}
    assert told["query without a relevant document, in no mean of ranking quality"] == {"n": 1, "examples": ["q3"]}
    assert told["grade below 0"]["n"] == 12 and len(told["grade below 0"]["examples"]) == 12


ITSELF = r"holds documents that are the query itself \(.*\): they are neither drawn nor taken from a ranking"


def test_the_query_itself_is_no_document_of_a_ranking_and_no_easy_negative(folder: Path, opened: Opened) -> None:
    clean = mi.collection(TOY)
    query = clean.queries["q2"]
    append(folder / "docs.tsv", f"same\t {query.upper().replace(' ', '  ')}\nq2\twifi and something else\n")
    (folder / "given.txt").write_text("q2 Q0 same 1 9 t\nq2 Q0 q2 1 8 t\nq2 Q0 d0203 2 7 t\nq2 Q0 d0204 2 6 t\n")
    read = opened()
    with pytest.warns(UserWarning, match=ITSELF):
        assert [p.doc_id for p in read.pairs(run=folder / "given.txt", top_k=1)] == ["d0203"]
    with pytest.warns(UserWarning, match=ITSELF):
        found = rows(read, top_k=3)
    assert ("document that is the query itself", "q2", "same") in found
    assert ("document that is the query itself", "q2", "q2") in found
    with pytest.warns(UserWarning, match=ITSELF) as said:
        pairs = read.pairs(top_k=3)
    assert len(said) == 1
    assert {"same", "q2"}.isdisjoint(p.doc_id for p in pairs if p.query_id == "q2")
    assert sum(p.query_id == "q2" for p in pairs) == 3
    with pytest.warns(UserWarning, match=ITSELF):
        easy = read.pairs(easy_negatives=60)
    assert {"same", "q2"}.isdisjoint(p.doc_id for p in easy if p.query_id == "q2")
    with pytest.raises(MechirError, match=r"74 documents, 14 of them judged, pooled or empty for query 'q2': too few"):
        read.pairs(easy_negatives=62)


def test_the_query_itself_is_kept_where_it_is_judged_and_the_pool_is_of_judged_documents(
    folder: Path, opened: Opened
) -> None:
    append(folder / "docs.tsv", f"same\t{mi.collection(TOY).queries['q2']}\n")
    append(folder / "qrels.txt", "q2 0 same 1\n")
    read = opened()
    assert ("q2", "same", 1) in {(p.query_id, p.doc_id, p.grade) for p in read.pairs()}
    with pytest.warns(UserWarning, match=ITSELF):
        pairs = read.pairs(top_k=3)
    assert ("q2", "same") not in {(p.query_id, p.doc_id) for p in pairs}
    judged = read.judged(pairs, full=True)
    assert ("q2", "same") in set(zip(judged["query_id"], judged["doc_id"], strict=True))  # the judgment stays


def test_running_numbers_make_no_document_the_query(folder: Path, opened: Opened) -> None:
    for name in ("queries.tsv", "qrels.txt"):
        text = (folder / name).read_text()
        (folder / name).write_text("".join(line[1:] for line in text.splitlines(keepends=True)))
    append(folder / "docs.tsv", "2\twifi bluetooth wifi\n")
    assert any((p.query_id, p.doc_id) == ("2", "2") for p in opened().pairs(top_k=3))


def test_queries_of_a_run_that_are_not_here_and_judged_ones_that_are_not_in_it(folder: Path, opened: Opened) -> None:
    (folder / "given.txt").write_text("x1 Q0 d0101 1 2 t\nq1 Q0 d0101 1 2 t\nq2 Q0 d0203 1 2 t\n")
    found = rows(opened(), run=folder / "given.txt")
    assert ("query of the run that the collection lacks", "x1", "") in found
    silent = [query for reason, query, _ in found if reason == "judged query without a document in the pool"]
    assert silent == ["q3", "q4", "q5", "q6"]
    (folder / "given.txt").write_text("x1 Q0 d0101 1 2 t\n")
    with pytest.raises(MechirError, match=r"The pool of '.*' is empty: the run names documents of none of its judged"):
        opened().pairs(run=folder / "given.txt")


def test_groups_tell_of_all_their_members(folder: Path) -> None:
    other = folder.rename(folder.parent / "other")
    append(other / "qrels.txt", "q1 1 d0101 1\n")
    sample = collections([f"in:{TOY}", f"out:{other}"]).sample()
    assert [*sample.left_out.itertuples(index=False, name=None)] == [
        ("pair judged again with the same grade", "other::q1", "other::d0101")
    ]
    append(other / "qrels.txt", "q1 1 d0101 2\n")
    with pytest.raises(MechirError, match="has grade 2 for query 'q1' here and 1 above"):
        collections([f"in:{TOY}", f"out:{other}"])
    both = collections([f"in:{TOY}", f"out:{other}"], duplicates="max")
    assert len(both.sample().left_out) == 2
    assert repr(both.sample()) == "Sample(144 pairs, 2 left out)"


def test_a_record_holds_twenty_of_each_reason_and_a_line_three() -> None:
    found = left_out.frame([left_out.Row("empty", "q", f"d{k}") for k in range(25)] + [left_out.Row("alone", "q1", "")])
    told = left_out.by_reason(found)
    assert told["empty"]["n"] == 25 and told["empty"]["examples"][::19] == ["q/d0", "q/d19"]
    assert left_out.sentences(told) == ["left out: 1 x alone (q1)", "left out: 25 x empty (q/d0, q/d1, q/d2, ...)"]
    assert left_out.by_reason(left_out.frame([])) == {} and left_out.sentences({}) == []


def test_an_empty_document_makes_no_noise(folder: Path) -> None:
    clean = mi.diagnostic("lnc1", TOY, limit_queries=2)
    append(folder / "docs.tsv", "blank\t\n")
    spoilt = mi.diagnostic("lnc1", folder, limit_queries=2)
    assert spoilt.cases == clean.cases and spoilt.left_out is not None and spoilt.left_out.empty


def test_the_highest_grade_is_of_the_judgments_that_count(folder: Path) -> None:
    append(folder / "qrels.txt", "q1 0 nowhere 9\n")
    with warnings.catch_warnings(action="ignore"):
        groups = collections([f"in:{folder}"], leave_out=0.02)
    assert thresholds(groups) == {"toy": 2}
    assert groups.rules == {"leave_out": 0.02}
