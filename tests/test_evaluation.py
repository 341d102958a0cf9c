"""Ranking quality by any measure: what ir_measures gives on the written run, groups of queries, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pandas as pd
import polars
import pytest
from ir_measures import AP, RR, nDCG

import mechir as mi
from mechir import inference
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.evaluation import evaluate, per_query, ranking_measures
from mechir.methods.query_groups import query_groups
from mechir.methods.ranking import write_trec_run
from tests.models import TOY, TOY_MODEL

MEASURES = ["nDCG@10", "nDCG", "nDCG@3", "RR", "RR(rel=2)", "RR@2", "RR(rel=2)@3", "AP", "AP(rel=2)", "P@5", "R@5",
            "P(rel=2)@3", "Rprec", "IPrec@0.5", "Success@1", "Success(rel=3)@2"]  # fmt: skip


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.mark.parametrize("measure", MEASURES)
def test_it_is_that_of_ir_measures_on_the_written_run(toy: HookedEncoder, tmp_path: Path, measure: str) -> None:
    pairs = mi.collection(TOY).pairs()
    scores = toy.score(pairs, frame=True)
    file = tmp_path / "run.txt"
    write_trec_run(file, pairs, scores["score"].tolist(), "mechir")
    (value,) = ranking_measures(measure)
    theirs = {
        each.query_id: each.value
        for each in ir_measures.iter_calc(
            [value], ir_measures.read_trec_qrels(str(TOY / "qrels.txt")), ir_measures.read_trec_run(str(file))
        )
    }
    ours = per_query(scores, scores, value)
    assert len(ours) > 0 and ours.to_dict() == pytest.approx({key: theirs[key] for key in ours.index}, abs=1e-9)


def rows(**scores: list[float]) -> pd.DataFrame:
    """Scores of two queries with four documents each, of grades 3, 2, 0, 0."""
    parts = [
        pd.DataFrame(
            {"name": name, "query_id": np.repeat(["q1", "q2"], 4), "doc_id": list("abcdabcd"), "score": values}
        )
        for name, values in scores.items()
    ]
    return pd.concat(parts, ignore_index=True).assign(grade=lambda frame: frame["doc_id"].map(dict(a=3, b=2, c=0, d=0)))


def test_tied_documents_count_in_every_order_and_no_id_decides() -> None:
    tied = rows(original=[1.0, 1.0, 1.0, 1.0, 4.0, 3.0, 2.0, 1.0])
    value = per_query(tied, tied, AP)
    assert value["q2"] == 1.0 and 0.5 < value["q1"] < 0.9
    renamed = tied.assign(doc_id=tied["doc_id"].map(dict(a="z", b="y", c="x", d="w")))
    assert per_query(renamed, renamed, RR)["q1"] == per_query(tied, tied, RR)["q1"]
    many = [per_query(tied, tied, AP @ 10)["q1"], per_query(tied, tied, AP)["q1"]]
    assert many[0] == many[1]


def test_a_query_without_a_document_as_relevant_is_left_out() -> None:
    frame = rows(original=[4.0, 3, 2, 1, 4, 3, 2, 1])
    frame.loc[(frame["query_id"] == "q2") & (frame["grade"] == 3), "grade"] = 1
    assert list(per_query(frame, frame, RR(rel=3) @ 10).index) == ["q1"]
    assert list(per_query(frame, frame, RR(rel=1) @ 10).index) == ["q1", "q2"]
    assert per_query(frame, frame, AP(rel=4)).empty


def simulated(n: int, seed: int = 0) -> tuple[pd.DataFrame, dict[str, str]]:
    """n queries: cut, those of one group lose, those of the other do not."""
    generator, parts = np.random.default_rng(seed), []
    for query in range(n):
        intact = np.array([4.0, 3, 2, 1]) + generator.normal(0, 0.3, 4)
        cut = intact.copy()
        if query % 2:
            cut[:2] -= generator.uniform(1, 4)
        for name, scores in (("original", intact), ("cut", cut)):
            ids = {"name": name, "query_id": f"q{query}", "doc_id": list("abcd"), "grade": [3, 2, 0, 0]}
            parts.append(pd.DataFrame(ids | {"score": scores}))
    return pd.concat(parts, ignore_index=True), {
        f"q{query}": "exact" if query % 2 else "paraphrase" for query in range(n)
    }


def test_groups_are_measured_apart_and_compared() -> None:
    frame, groups = simulated(24)
    table = evaluate(frame, nDCG @ 10, "RR", groups=groups).set_index(["measure", "group", "name"])
    assert set(table.index.get_level_values("group")) == {"all", "paraphrase", "exact", "paraphrase - exact"}
    of = table.loc["nDCG@10"]
    wide = frame.pivot_table(index="query_id", columns="name", values="score", aggfunc="size")
    assert of.loc["all", "cut"]["queries"] == len(wide) == 24 and of.loc["exact", "cut"]["queries"] == 12
    assert of.loc["exact", "cut"]["change"] < -0.1 and of.loc["paraphrase", "cut"]["change"] == 0
    difference = of.loc["paraphrase - exact", "cut"]
    assert difference["change"] == pytest.approx(-of.loc["exact", "cut"]["change"])
    assert difference["change_low"] > 0 and difference["change_p"] < 0.01 and difference["queries"] == 24
    assert np.isnan(of.loc["all", "original"]["change_p"])
    corrected = table["change_p_corrected"].to_numpy()
    np.testing.assert_allclose(corrected, inference.holm(table["change_p"].to_numpy()))
    same = evaluate(frame, "nDCG@10", "RR", groups=pd.DataFrame({"qid": groups.keys(), "group": groups.values()}))
    pd.testing.assert_frame_equal(same, table.reset_index())


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_the_difference_of_groups_covers_at_twenty_queries(kind: str) -> None:
    """10 and 10 queries of unequal spread: the interval holds the true difference in 93 % of 600 samples."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(600):
        one, other = generator.normal(0.3, 1, 10), generator.normal(0, 2, 10)
        if kind == "exponential":
            one, other = generator.exponential(1, 10), generator.exponential(2, 10) - 1.3
        found = inference.difference(one, other)
        held += found.low <= 0.3 <= found.high
    assert held / 600 >= 0.93


def test_a_difference_is_welchs_below_six_queries_and_nothing_below_two() -> None:
    few = inference.difference([1.0, 2.0, 3.0], [0.0, 0.5])
    assert few.low < few.estimate < few.high and np.isnan(few.p)
    assert np.isnan(inference.difference([1.0], [2.0, 3.0]).low)
    assert np.isnan(inference.difference([], [2.0, 3.0]).estimate)
    alike = inference.difference([1.0] * 6, [0.0] * 6)
    assert (alike.estimate, alike.low, alike.high) == (1.0, 1.0, 1.0) and alike.p < 0.05
    assert inference.difference([1.0] * 6, [1.0] * 6).p == 1.0
    far = inference.difference(np.arange(8.0) + 10, np.arange(8.0))
    assert far.p < 0.01 and far.low > 0
    np.testing.assert_allclose(
        far[:3], -np.array(inference.difference(np.arange(8.0), np.arange(8.0) + 10))[[0, 2, 1]], atol=0.5
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nDGC@10", r"Cannot read the ranking measure 'nDGC@10': the closest are 'nDCG'"),
        ("nDCG@", "Cannot read the ranking measure 'nDCG@'"),
        ("", "Cannot read the ranking measure ''"),
        ("Judged@10", "'Judged@10' cannot be computed here: write one of nDCG, RR"),
        ("ERR@10", "'ERR@10' cannot be computed here"),
        ("INST", "cannot be computed here"),
        ("nDCG(dcg='exp-log2')@10", "cannot be computed here"),
        ("AP(judged_only=True)", "cannot be computed here"),
        ("P@0", "'P@0' has cutoff 0: write a whole number, 1 or more"),
        ("P(rel=0)@3", r"'P\(rel=0\)@3' has rel 0: write a whole number"),
        (3, "3 is no ranking measure: write 'nDCG@10', or ir_measures.nDCG @ 10"),
        ([], "There is no measure of ranking quality: write one such as 'nDCG@10'"),
    ],
)
def test_what_is_no_measure_is_refused(given: Any, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        ranking_measures(given if isinstance(given, list) else [given])


def test_rows_that_cannot_be_evaluated_are_refused() -> None:
    frame = rows(original=[4.0, 3, 2, 1, 4, 3, 2, 1])
    for given, more, message in (
        (
            frame.drop(columns="score"),
            {},
            "There is no column 'score' to evaluate: give a frame with query_id, doc_id, score",
        ),
        (frame.drop(columns="grade"), {}, "These scores have no grades: give judged="),
        (frame, {"judged": frame.drop(columns="grade")}, "There is no column 'grade' to evaluate"),
        (
            frame,
            {"groups": {"x": "a", "y": "b"}},
            "0 of the groups a, b have a query here: give the ids of these queries",
        ),
        ([1], {}, "scores is a list: give a frame with query_id, doc_id, score"),
        (
            pd.concat([frame, frame]),
            {},
            "Pair q1/a stands twice in scores: give each pair of a condition ids of its own",
        ),
        (frame, {"judged": pd.concat([frame, frame.assign(grade=1)])}, "Pair q1/a stands twice in judged"),
        (frame, {"judged": frame.assign(grade=0.5)}, "judged holds the grade .*0.5.*: a grade is a whole number"),
        (frame.assign(query_id=[None, *frame["query_id"][1:]]), {}, "A row of scores has no 'query_id' .*: fill it in"),
        (frame.assign(doc_id=1.0), {}, "A row of scores has 1.0 as 'doc_id', which is no text: write ids as text"),
        (frame.assign(rel=1), {}, "scores has 'grade' and 'rel', which may both be the grade: drop one"),
        (frame.assign(name=None), {}, "Some scores have no name: name every condition"),
    ):
        with pytest.raises(MechirError, match=message):
            evaluate(given, **more)


def test_frames_of_others_are_evaluated_alike() -> None:
    frame = rows(original=[4.0, 1, 2, 3, 4, 3, 2, 1], cut=[1.0, 2, 3, 4, 1, 2, 3, 4])
    wanted = evaluate(frame, "nDCG@10", "AP")
    terrier = frame.rename(columns={"query_id": "qid", "doc_id": "docno", "grade": "label"})
    numbers = frame.assign(
        query_id=frame["query_id"].map(dict(q1=1, q2=2)), doc_id=frame["doc_id"].map(dict(a=1, b=2, c=3, d=4))
    )
    for given in (terrier, numbers, polars.from_pandas(frame)):
        pd.testing.assert_frame_equal(evaluate(given, "nDCG@10", "AP"), wanted)
    pd.testing.assert_frame_equal(evaluate(frame, ["nDCG@10", "AP"], judged=pd.concat([frame, frame])), wanted)
    with pytest.raises(MechirError, match=r"has a document as relevant as 'AP\(rel=9\)' asks for"):
        evaluate(frame, "AP(rel=9)")
    alone = frame[(frame["name"] == "original") | (frame["query_id"] == "q1")]
    lines = evaluate(alone, "nDCG@10", groups={"q1": "a", "q2": "b"}).set_index(["group", "name"])
    assert lines.loc[("b", "cut"), "queries"] == 0 and np.isnan(lines.loc[("b", "cut"), "estimate"])
    assert lines.loc[("a - b", "cut"), "queries"] == 1


def test_the_interval_and_the_p_of_a_difference_agree_and_the_order_means_nothing() -> None:
    ceiling = inference.difference([0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [1.0] * 6)
    assert ceiling.high < 0 and ceiling.p < 0.05
    generator = np.random.default_rng(1)
    one, other = generator.normal(size=9), generator.normal(size=7)
    there, back = inference.difference(one, other), inference.difference(other, one)
    np.testing.assert_allclose([there.low, there.high, there.p], [-back.high, -back.low, back.p])


def test_groups_are_read_from_what_holds_them(tmp_path: Path) -> None:
    wanted = {"q1": "exact", "q2": "other"}
    (tmp_path / "groups.tsv").write_text("q1\texact\nq2\tother\n\n")
    frame = pd.DataFrame({"query_id": ["q1", "q2", "q1"], "group": ["exact", "other", "exact"]})
    for given in (wanted, frame, polars.from_pandas(frame), tmp_path / "groups.tsv", str(tmp_path / "groups.tsv")):
        assert query_groups(given) == wanted
    (tmp_path / "bad.tsv").write_text("q1 exact\n")
    (tmp_path / "latin.tsv").write_bytes(b"q1\t\xff\n")
    for given, message in (
        (tmp_path / "none.tsv", "There is no file of groups '.*none.tsv': give lines query_id<TAB>group"),
        (tmp_path / "bad.tsv", r"bad.tsv, line 1: cannot read 'q1 exact'; write query_id<TAB>group"),
        (tmp_path / "latin.tsv", "give lines query_id<TAB>group in UTF-8"),
        ({"q1": "a", "q2": 3}, r"groups holds \('q2', 3\): write query_id: group, both text"),
        ({"q1": "a"}, "Groups of queries are compared with each other, and there is only 'a': give two or more"),
        ({}, "and there is none: give two or more"),
        (7, "groups=7 names no groups"),
        ({"q1": "all", "q2": "b"}, "A group is called 'all', "),
        ({"q1": "a - b", "q2": "b"}, "A group is called 'a - b'"),
        ("x" * 5000, "There is no file of groups 'xxx"),
        (frame.drop(columns="group"), "groups has no column 'group'"),
        (pd.concat([frame, frame.assign(group="x")]), "groups, row 3: query 'q1' is in 'exact' and in 'x'"),
    ):
        with pytest.raises(MechirError, match=message):
            query_groups(given)


def test_exact_scores_are_ranked_as_ir_measures_ranks_them(tmp_path: Path) -> None:
    """Probabilities of a saturated model differ by less than rounding makes of logits."""
    small = rows(original=[0.999991, 0.999995, 0.999998, 0.1, 4e-6, 3e-6, 2e-6, 1e-6])
    with pytest.warns(UserWarning, match=r"5 of 6 scores are within 1e-05 of the next and count as ties: write ties=0"):
        merged = evaluate(small, "AP", "nDCG@10", "RR")
    exact = evaluate(small, "AP", "nDCG@10", "RR", ties=0)
    run, qrels = small.to_dict("records"), {}  # type: ignore[var-annotated]
    lines = [f"{row['query_id']} Q0 {row['doc_id']} 1 {row['score']} x" for row in run]
    for row in run:
        qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["grade"]
    file = tmp_path / "run.txt"
    file.write_text("\n".join(lines))
    for measure in ("AP", "nDCG@10", "RR"):
        theirs = ir_measures.calc_aggregate(
            [ir_measures.parse_measure(measure)], qrels, ir_measures.read_trec_run(str(file))
        )
        mean = exact.set_index("measure").loc[measure, "estimate"]
        assert mean == pytest.approx(next(iter(theirs.values())), abs=1e-9)
    assert not np.allclose(merged["estimate"], exact["estimate"], atol=1e-3)


@pytest.mark.parametrize("ties", [-1, float("nan"), float("inf")])
def test_a_distance_of_ties_is_a_number(ties: float) -> None:
    with pytest.raises(MechirError, match=r"ties=.* is no distance of scores: write 0 or more\."):
        evaluate(rows(original=[4, 3, 2, 1] * 2), ties=ties)


def test_ids_of_groups_without_a_query_are_told() -> None:
    scores = rows(original=[4, 3, 2, 1, 1, 2, 3, 4])
    given = {"q1": "exact", "q2": "other", "q9": "other", "q10": "exact"}
    with pytest.warns(UserWarning, match=r"^groups: 2 of 4 ids are no query here, such as 'q9'\.$"):
        evaluate(scores, groups=given)
    third = pd.concat([scores, scores[scores["query_id"] == "q1"].assign(query_id="q3")])
    with pytest.warns(UserWarning, match=r"^groups: 1 of 3 queries are in no group, such as 'q3'\.$"):
        evaluate(third, groups={"q1": "exact", "q2": "other"})
    with pytest.raises(MechirError, match=r"0 of the groups exact, other have a query here"):
        evaluate(scores, groups={"x1": "exact", "x2": "other"})


@pytest.mark.parametrize("header", ["query_id\tgroup\n", "qid\tgroup\n", ""])
def test_a_line_of_names_is_no_group(tmp_path: Path, header: str) -> None:
    file = tmp_path / "groups.tsv"
    file.write_text(f"{header}q1\texact\nq2\tother\n")
    assert query_groups(file) == {"q1": "exact", "q2": "other"}
    file.write_text("q1\texact\nquery_id\tgroup\n")  # not above: a query like any other
    assert query_groups(file) == {"q1": "exact", "query_id": "group"}


def test_the_intact_model_may_be_called_so() -> None:
    rows = pd.DataFrame({"name": ["intact"] * 2 + ["cut"] * 2, "query_id": "q", "doc_id": ["a", "b"] * 2,
                         "score": [2.0, 1.0, 1.0, 2.0], "grade": [1, 0] * 2})  # fmt: skip
    both = [mi.evaluate(rows.replace({"name": {"intact": name}}), "RR") for name in ("intact", "original")]
    pd.testing.assert_frame_equal(*both)
    assert both[0].set_index("name").loc["cut", "change"] == -0.5
