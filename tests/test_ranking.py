"""nDCG with honest ties, the random ranking, and TREC runs."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import ir_measures
import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir.errors import MechirError
from mechir.methods import ranking
from mechir.methods.directions import condition_table

IDS = ["a", "b", "c", "d", "e"]
GRADES = [3, 0, 2, 0, 1]


def frames(scores: list[float], grades: list[int] = GRADES, query: str = "q") -> tuple[pd.DataFrame, pd.DataFrame]:
    ids = IDS[: len(scores)]
    return (
        pd.DataFrame({"query_id": query, "doc_id": ids, "score": scores}),
        pd.DataFrame({"query_id": query, "doc_id": ids, "grade": grades}),
    )


def by_hand(order: list[int], grades: list[int], k: int) -> float:
    def dcg(gains: list[int]) -> float:
        return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:k]))

    return dcg([grades[i] for i in order]) / dcg(sorted(grades, reverse=True))


def test_ndcg_is_that_of_the_formula_and_of_ir_measures() -> None:
    scores, judged = frames([0.1, 0.9, 0.5, 0.2, 0.3])
    found = ranking.ndcg(scores, judged, 3)
    assert found["value"].item() == pytest.approx(by_hand([1, 2, 4, 3, 0], GRADES, 3))
    assert found["tied"].item() == 0
    theirs = ir_measures.calc_aggregate([ir_measures.nDCG @ 3], judged.rename(columns={"grade": "relevance"}), scores)
    assert found["value"].item() == pytest.approx(theirs[ir_measures.nDCG @ 3])


def test_a_constant_scorer_gets_the_random_value_whatever_the_ids() -> None:
    scores, judged = frames([1.0] * 5)
    expected = ranking.random_ndcg(scores, judged, 3)["value"].item()
    every = [by_hand(list(order), GRADES, 3) for order in itertools.permutations(range(5))]
    assert expected == pytest.approx(np.mean(every))
    for ids in (IDS, IDS[::-1], ["z", "y", "x", "w", "v"]):
        renamed = dict(zip(IDS, ids, strict=True))
        found = ranking.ndcg(scores.replace(renamed), judged.replace(renamed), 3)
        assert found["value"].item() == pytest.approx(expected, rel=1e-12)
        assert found["tied"].item() == 1


def test_neither_row_order_nor_other_queries_change_a_value() -> None:
    scores, judged = frames([0.1, 0.1, 0.5, 0.5, 0.5])
    other, more = frames([0.3, 0.2, 0.1, 0.0, 0.9], query="p")
    alone = ranking.ndcg(scores, judged)["value"].item()
    both = ranking.ndcg(pd.concat([other, scores.iloc[::-1]]), pd.concat([more, judged])).set_index("query_id")
    assert both.loc["q", "value"] == alone


TIED = [
    ([1.0] * 5, GRADES),
    ([0.5, 0.5, 0.5, 0.1, 0.1], GRADES),
    ([0.1, 0.9, 0.5, 0.5, 0.1], GRADES),
    ([0.2, 0.9, 0.2, 0.9, 0.2], [0, 0, 2, 0, 3]),
    ([0.5, 0.500009, 0.500018, 0.6, 0.6], [1, 0, 2, 0, -1]),
    ([0.5, 0.5, 0.5, 0.5, 0.9], [2, 2, 2, 2, 0]),
    ([0.1, 0.9, 0.5, 0.2, 0.3], GRADES),
]


def orders(scores: list[float]) -> list[list[int]]:
    """All orders, best first, that swap only documents of one tie."""
    best = sorted(range(5), key=lambda i: -scores[i])
    ties = [[best[0]]]
    for before, i in itertools.pairwise(best):
        if scores[before] - scores[i] > ranking.TIE:
            ties.append([])
        ties[-1].append(i)
    return [list(itertools.chain(*one)) for one in itertools.product(*map(itertools.permutations, ties))]


@pytest.mark.parametrize(("scores", "grades"), TIED)
def test_a_value_is_the_mean_over_all_orders_of_the_ties(scores: list[float], grades: list[int]) -> None:
    every, given = orders(scores), frames(scores, grades)
    assert len(every) > 1 or scores == TIED[-1][0]
    gains = [max(grade, 0) for grade in grades]
    for k in (1, 2, 3, 4, 5, 9):
        expected = np.mean([by_hand(order, gains, k) for order in every])
        assert ranking.ndcg(*given, k)["value"].item() == pytest.approx(expected, rel=1e-12)
    for relevant in range(1, max(grades) + 1):
        ranks = [next(rank for rank, i in enumerate(order, 1) if grades[i] >= relevant) for order in every]
        expected = np.mean([1 / rank for rank in ranks])
        assert ranking.mrr(*given, relevant)["value"].item() == pytest.approx(expected, rel=1e-12)


def test_without_ties_many_queries_are_those_of_ir_measures() -> None:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "query_id": f"q{q}",
                "doc_id": [f"d{k}" for k in range(n)],
                "score": rng.permutation(n).astype(float),
                "grade": rng.integers(0, 4, n),
            }
        )
        for q, n in enumerate([1, 2, 9, 10, 11, 60])
    ]
    whole = pd.concat(parts)
    scores, judged = whole[["query_id", "doc_id", "score"]], whole[["query_id", "doc_id", "grade"]]
    kept = scores[scores["doc_id"] != "d1"]  # judged, and not in the pool
    unjudged = judged[judged["doc_id"] != "d2"]  # in the pool, and not judged
    qrels = unjudged.rename(columns={"grade": "relevance"})
    for measure, found in (
        (ir_measures.nDCG @ 10, ranking.ndcg(kept, unjudged)),
        (ir_measures.RR(rel=2), ranking.mrr(kept, unjudged, 2)),
    ):
        theirs = {one.query_id: one.value for one in ir_measures.iter_calc([measure], qrels, kept)}
        ours = found.set_index("query_id")["value"]
        assert len(ours) >= 4 and ours.to_dict() == pytest.approx({q: theirs[q] for q in ours.index})


def test_no_relevant_document_in_the_pool_is_0() -> None:
    scores, judged = frames([3.0, 3.0, 1.0], [0, 0, 0])
    judged = pd.concat([judged, pd.DataFrame({"query_id": ["q"], "doc_id": ["missed"], "grade": [2]})])
    assert ranking.mrr(scores, judged)["value"].item() == ranking.ndcg(scores, judged)["value"].item() == 0


def test_a_long_tie_is_the_sum_over_the_places_of_the_first_hit() -> None:
    n, hits = 3000, 40
    ids = [f"d{k}" for k in range(n + 1)]
    scores = pd.DataFrame({"query_id": "q", "doc_id": ids, "score": [1.0] + [0.0] * n})
    judged = scores[["query_id", "doc_id"]].assign(grade=[0] + [1] * hits + [0] * (n - hits))
    exact = sum(math.comb(n - 1 - j, hits - 1) / math.comb(n, hits) / (2 + j) for j in range(n - hits + 1))
    assert ranking.mrr(scores, judged)["value"].item() == pytest.approx(exact, rel=1e-9)


def test_scores_within_the_tie_are_tied_in_a_chain() -> None:
    scores, judged = frames([0.5, 0.500009, 0.500018, 0.1, 0.10002])
    found = ranking.ndcg(scores, judged)
    assert found["tied"].item() == pytest.approx(3 / 5)


def test_the_ideal_uses_judged_documents_outside_the_pool() -> None:
    scores, judged = frames([3.0, 2.0, 1.0], [1, 0, 0])
    more = pd.concat([judged, pd.DataFrame({"query_id": ["q"], "doc_id": ["missed"], "grade": [3]})])
    assert ranking.ndcg(scores, judged)["value"].item() == 1
    ideal = 3 + 1 / math.log2(3)
    assert ranking.ndcg(scores, more)["value"].item() == pytest.approx(1 / ideal)
    mean_gain = 1 / 3
    dcg = mean_gain * sum(1 / math.log2(rank + 1) for rank in (1, 2, 3))
    assert ranking.random_ndcg(scores, more)["value"].item() == pytest.approx(dcg / ideal)


def test_a_query_without_relevant_documents_is_left_out_and_easy_negatives_gain_nothing() -> None:
    scores, judged = frames([1.0, 2.0], [0, -1])
    assert len(ranking.ndcg(scores, judged)) == len(ranking.random_ndcg(scores, judged)) == 0
    scores, judged = frames([1.0, 2.0], [1, -1])
    assert ranking.ndcg(scores, judged)["value"].item() == pytest.approx(1 / math.log2(3))


def test_random_draws_average_to_the_analytic_value() -> None:
    scores, judged = frames([1.0] * 5)
    draws = ranking.random_draws(scores, judged, 3, draws=2000)
    assert len(draws) == 2000
    assert draws.mean() == pytest.approx(ranking.random_ndcg(scores, judged, 3)["value"].item(), abs=0.02)


def test_a_score_that_is_not_finite_is_refused() -> None:
    scores, judged = frames([1.0, float("nan"), 0.0, 0.0, 0.0])
    with pytest.raises(MechirError, match="The score of pair q/b is not finite"):
        ranking.ndcg(scores, judged)


def test_a_run_is_written_best_first_and_whole(tmp_path: Path) -> None:
    pairs = [mi.Pair("x", "y", query, doc) for query in ("q2", "q1") for doc in ("d1", "d2")]
    ranking.write_trec_run(tmp_path / "run", pairs, [0.25, 1.5, 2.0, -1.0], "tag")
    assert (tmp_path / "run").read_text() == (
        "q2 Q0 d2 1 1.5 tag\nq2 Q0 d1 2 0.25 tag\nq1 Q0 d1 1 2 tag\nq1 Q0 d2 2 -1 tag\n"
    )
    with pytest.raises(MechirError, match=r"Cannot write '.*' \(No such file or directory\): give another file"):
        ranking.write_trec_run(tmp_path / "no" / "run", pairs, [0.0] * 4, "tag")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def written(file: Path, pairs: list[mi.Pair], scores: list[float], seed: int = 0) -> list[list[str]]:
    ranking.write_trec_run(file, pairs, scores, "tag", seed=seed)
    return [line.split() for line in file.read_text().splitlines()]


def test_ties_of_a_run_are_broken_by_the_seed_and_nothing_else(tmp_path: Path) -> None:
    pairs = [mi.Pair("x", "y", query, f"d{k}", 3 - k % 4) for query in ("q2", "q1") for k in range(12)]
    scores = [1.0 + 4e-6 * (k % 3) for k in range(24)]  # a chain of ties
    lines = written(tmp_path / "run", pairs, scores)
    assert {line[4] for line in lines} == {f"{1.000008:.9g}"}  # a tool that sorts by score sees the tie
    order = np.random.default_rng(1).permutation(24)
    again = written(tmp_path / "run", [pairs[k] for k in order], [scores[k] for k in order])
    by_query = {query: [line for line in lines if line[0] == query] for query in ("q1", "q2")}
    assert {query: [line for line in again if line[0] == query] for query in ("q1", "q2")} == by_query
    assert [line[0] for line in again] == [pairs[order[0]].query_id] * 12 + [again[-1][0]] * 12
    orders = {tuple(line[2] for line in lines if line[0] == query) for query in ("q1", "q2")}
    assert len(orders) == 2 and tuple(f"d{k}" for k in range(12)) not in orders
    assert written(tmp_path / "run", pairs, scores, seed=1) != lines
    apart = written(tmp_path / "run", pairs[:3], [1.0, 1.00002, 1.00004])
    assert [(line[2], line[4]) for line in apart] == [("d2", "1.00004"), ("d1", "1.00002"), ("d0", "1")]


@pytest.mark.parametrize("key", ["d 1", "", " d1", "d1\n", "d\t1", "d\u20281", "\u3000"])
@pytest.mark.parametrize("what", ["query", "document"])
def test_an_id_that_a_run_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path, key: str, what: str) -> None:
    ids = (key, "d1") if what == "query" else ("q1", key)
    pairs = [mi.Pair("x", "y", "q1", "d0"), mi.Pair("x", "y", *ids)]
    with pytest.raises(
        MechirError, match=rf"cannot hold the {what} id {re.escape(ascii(key))}: give ids without spaces"
    ):
        ranking.write_trec_run(tmp_path / "run", pairs, [1.0, 2.0], "tag")
    with pytest.raises(MechirError, match="The score of pair q1/d0 is not finite"):
        ranking.write_trec_run(tmp_path / "run", pairs[:1], [float("nan")], "tag")
    assert list(tmp_path.iterdir()) == []


def test_the_table_compares_every_condition_with_the_original() -> None:
    rows, judgments = [], []
    for i in range(6):
        good, judged = frames([5.0, 1.0, 4.0, 0.5, 3.0], query=f"q{i}")
        bad, _ = frames([0.1, 1.0, 0.2 * i, 0.5, 0.3], query=f"q{i}")
        rows += [good.assign(name="original"), bad.assign(name="cut"), good.assign(name="same")]
        judgments.append(judged)
    table = condition_table(pd.concat(rows), pd.concat(judgments)).set_index("name")
    assert list(table.index) == ["original", "cut", "same", "random", "random_analytic"]
    assert table.loc["original", "ndcg"] == 1
    assert table.loc["cut", "change"] == pytest.approx(table.loc["cut", "ndcg"] - 1)
    assert table.loc["cut", "change_high"] < 0
    assert table.loc["cut", "change_p_corrected"] == pytest.approx(min(1, 2 * table.loc["cut", "change_p"]))
    assert table.loc["same", ["change", "change_p", "change_p_unpaired", "change_p_corrected"]].tolist() == [0, 1, 1, 1]
    assert np.isnan(table.loc["original", "change_p"])


@pytest.mark.shared
def test_bm25_s_order_of_dl19_gives_the_known_value(shared: Path) -> None:
    collection = mi.collection(shared / "data" / "dl19")
    pairs = collection.pairs(run="bm25")
    scores = pd.DataFrame([(pair.query_id, pair.doc_id) for pair in pairs], columns=["query_id", "doc_id"])
    scores["score"] = -np.arange(len(scores), dtype=float)
    found = ranking.ndcg(scores, collection.judged(pairs, full=True))
    assert len(found) == 43
    assert round(found["value"].mean(), 4) == 0.5058


def test_mrr_is_that_of_ir_measures_and_expected_over_ties() -> None:
    scores, judged = frames([0.1, 0.9, 0.5, 0.2, 0.3])
    for relevant, rank in ((1, 2), (2, 2), (3, 5)):
        found = ranking.mrr(scores, judged, relevant)
        assert found["value"].item() == pytest.approx(1 / rank) and found["tied"].item() == 0
        measure = ir_measures.RR(rel=relevant)
        theirs = ir_measures.calc_aggregate([measure], judged.rename(columns={"grade": "relevance"}), scores)
        assert found["value"].item() == pytest.approx(theirs[measure])
    assert ranking.mrr(scores, judged, 4).empty
    constant = ranking.mrr(frames([1.0] * 5)[0], judged, 3)["value"].item()
    assert constant == pytest.approx(np.mean([1 / rank for rank in range(1, 6)]))
