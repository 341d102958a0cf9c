"""From edge scores to circuits, and how stable and faithful these are."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import planted
from mechir.circuits import Circuit
from mechir.errors import MechirError
from mechir.methods import selection
from mechir.methods.edges import edges
from mechir.methods.faithfulness import faithfulness
from mechir.methods.faithfulness_curve import curve

MODEL = planted.bm25(c=3.0)
PAIRS = planted.pairs(MODEL, n=200)
TRUTH = planted.truth(MODEL, "tf").edges


@pytest.fixture(scope="module")
def scores() -> mi.EdgeScores:
    return edges(MODEL, PAIRS[:100])


def test_every_way_of_choosing_finds_the_planted_circuit(scores: mi.EdgeScores) -> None:
    assert scores.circuit(4) == selection.greedy(scores, 4) == TRUTH
    assert selection.constant_sign(scores) >= TRUTH
    assert len(selection.constant_sign(scores)) < len(scores) / 4
    assert selection.stability(scores, 4) == 1


def test_greedy_leaves_out_what_leads_nowhere(scores: mi.EdgeScores) -> None:
    loose = Circuit([*TRUTH, "h0.0->mlp3", "resid0->h2.2.q", "h2.1->h3.1.v"])
    assert selection.connected(loose) == TRUTH
    assert all(
        selection.connected(selection.greedy(scores, size)) == selection.greedy(scores, size) for size in (9, 60)
    )


def test_circuits_are_nested(scores: mi.EdgeScores) -> None:
    for how in selection.HOW:
        circuits = list(selection.nested(scores, how=how).values())
        assert all(small <= large for small, large in itertools.pairwise(circuits))
    assert list(selection.nested(scores)) == [1, 2, 5, 10, 24, 48, 96, 240, 479]
    assert list(selection.nested(scores, [4, 8, 0.5])) == [4, 8, 240]


def test_stability_of_noise_is_low(scores: mi.EdgeScores) -> None:
    noise = np.random.default_rng(0).normal(size=(10, 479)).astype(np.float32)
    queries, ends = tuple(f"q{k}" for k in range(10)), (scores.base[:10], scores.donor[:10])
    drawn = replace(scores, query_ids=queries, values=noise, base=ends[0], donor=ends[1])
    assert selection.stability(drawn, 20) < 0.6


def test_random_circuits_have_the_same_profile(scores: mi.EdgeScores) -> None:
    profile = sorted(scores.graph.moments(edge.source, edge.readers[0]) for edge in TRUTH)
    drawn = selection.random_alike(scores.graph, TRUTH, 20)
    assert len(set(drawn)) > 10
    for circuit in drawn:
        assert sorted(scores.graph.moments(edge.source, edge.readers[0]) for edge in circuit) == profile
    f = faithfulness(MODEL, PAIRS[100:], dict(enumerate(drawn)))["estimate"]
    assert f.max() <= 0.2


@pytest.mark.parametrize("counterfactual", ["tf", "query"])
def test_the_planted_circuit_is_faithful_at_its_own_size(counterfactual: str) -> None:
    model = planted.bm25()
    pairs = planted.pairs(model, n=160, counterfactual=counterfactual)
    truth = planted.truth(model, counterfactual).edges
    scores = edges(model, pairs[:80])
    frame = faithfulness(model, pairs[80:], selection.nested(scores, [1, len(truth), 40, 1.0]))
    line = frame.set_index("size").loc[len(truth)]
    assert 0.95 <= line["low"] <= line["high"] < 1.05
    assert curve(frame, len(scores)).size == len(truth)
    left = faithfulness(model, pairs[80:], {"planted": truth}, complement=True)
    assert abs(left["estimate"].item()) < 0.05


def test_faithfulness_by_hand(scores: mi.EdgeScores) -> None:
    """Each contrast counts as its gap, so f is the ratio of sums of changes turned toward the base."""
    pairs, circuit = PAIRS[100:140], scores.circuit(3)
    bases = [base for base, _ in pairs]
    base, donor = MODEL.score(bases).numpy(), MODEL.score([other for _, other in pairs]).numpy()
    only = MODEL.score(bases, do=mi.Only(circuit, pairs)).numpy()
    gap = base - donor
    large = np.abs(gap) >= 0.05
    line = faithfulness(MODEL, pairs, {"three": circuit}, min_gap=0.05).iloc[0]
    queries = np.array([pair.query_id for pair in bases])
    sums = [
        np.array([x[large & (queries == query)].mean() for query in dict.fromkeys(queries)])
        for x in ((only - donor) * np.sign(gap), np.abs(gap))
    ]
    assert line["estimate"] == pytest.approx(sums[0].sum() / sums[1].sum(), abs=1e-5)
    assert (line["pairs"], line["left_out"], line["queries"]) == (large.sum(), (~large).sum(), 2)


def test_faithfulness_of_a_margin(scores: mi.EdgeScores) -> None:
    def margin(s: torch.Tensor) -> torch.Tensor:
        return s[..., 0] - s[..., 1:].mean(-1)

    frame = faithfulness(MODEL, PAIRS[100:], {"all": Circuit(scores.graph.edges), "truth": TRUTH}, metric=margin)
    assert frame["estimate"].iloc[0] == pytest.approx(1, abs=1e-4)
    assert frame["estimate"].iloc[1] == pytest.approx(1, abs=0.2)
    assert frame["pairs"].iloc[0] + frame["left_out"].iloc[0] == 5


def test_areas_under_a_curve_by_hand() -> None:
    frame = pd.DataFrame({"size": [1, 10, 100], "estimate": [0.0, 0.5, 1.0]})
    area = curve(frame, 100)
    assert area.cpr == pytest.approx(0.0 * 0.005 + 0.25 * 0.09 + 0.75 * 0.9)
    assert area.cmd == pytest.approx(0.01 + 0.75 * 0.09 + 0.25 * 0.9)
    assert (area.cpr_log, area.cmd_log) == (pytest.approx(0.5), pytest.approx(0.5))
    assert area.size == 100
    assert np.isnan(curve(frame[:2], 100).size)


def test_no_gap_and_no_size_are_refused(scores: mi.EdgeScores) -> None:
    with pytest.raises(
        MechirError,
        match=r"Base and donor differ by less than 9.0 on all 4 contrasts, e\.g\. that of query q0: there",
    ):
        faithfulness(MODEL, PAIRS[:4], {"t": TRUTH}, min_gap=9.0)
    with pytest.raises(MechirError, match="size=0 is out of range: write a whole number, 1 or more"):
        scores.circuit(0)
    with pytest.raises(MechirError, match="Unknown how='best': write 'top' or 'greedy'"):
        selection.nested(scores, how="best")
    with pytest.raises(MechirError, match=r"'h7.1->score' is no edge of this graph of 4 layers"):
        scores.graph.columns([mi.parse_edge("h7.1->score")])


def test_columns_are_those_of_any_iterable(scores: mi.EdgeScores) -> None:
    texts = [str(edge) for edge in TRUTH]
    assert scores.graph.columns(map(mi.parse_edge, texts)) == scores.graph.columns(list(TRUTH))
    assert len(scores.graph.columns(map(mi.parse_edge, texts))) == 4
