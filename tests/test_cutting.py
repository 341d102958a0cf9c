"""Sets of heads cut together, beside random ones: what is lost of the ranking, and of the effect of a term."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import planted
from mechir.activations import BySegment
from mechir.encoder.hooked import HookedEncoder
from mechir.errors import MechirError
from mechir.inference import mean_interval
from mechir.methods.cutting import TERM, cut_scores, cut_sets, cut_table, head_means
from mechir.methods.evaluation import NDCG, per_query, ranking_measures
from mechir.methods.planning import contrast_spreads, power_table, share_spreads
from tests.models import PAIRS


@pytest.fixture(scope="module")
def model() -> planted.PlantedEncoder:
    return planted.bm25(c=3.0, seed=1)


@pytest.fixture(scope="module")
def cut(model: planted.PlantedEncoder) -> tuple[list[mi.Pair], pd.DataFrame, pd.DataFrame]:
    """Pairs of some queries, the sets, and the scores without each."""
    pairs = planted.graded(model, 16, 1)
    sets = cut_sets(model, {"linked": ["h1.2"], "empty": [], "twice": ["h1.2"], "trap": ["h0.0"]}, 3, 0)
    return pairs, sets, cut_scores(model, pairs, sets, head_means(model, pairs), "in")


def test_sets_are_named_once_and_random_ones_lie_in_their_layers(
    cut: tuple[list[mi.Pair], pd.DataFrame, pd.DataFrame],
) -> None:
    _, sets, _ = cut
    assert sets["set"].unique().tolist() == ["linked", "trap"] and sets["draw"].tolist() == [-1, 0, 1, 2] * 2
    random = sets[(sets["set"] == "linked") & (sets["draw"] >= 0)]["sites"]
    assert random.str.startswith("h1.").all() and not (random == "h1.2").any()


def test_without_the_planted_head_the_model_no_longer_counts(
    cut: tuple[list[mi.Pair], pd.DataFrame, pd.DataFrame],
) -> None:
    pairs, sets, rows = cut
    judged = pd.DataFrame([(p.query_id, p.doc_id, p.grade) for p in pairs], columns=["query_id", "doc_id", "grade"])
    found = cut_table(rows, judged, sets)
    assert list(zip(found["set"], found["way"], found["measure"], strict=True)) == [
        (name, way, measure) for name in ("linked", "trap") for way in ("zero", "mean") for measure in (NDCG, TERM)
    ]
    term = found[found["measure"] == TERM].set_index(["set", "way"])
    assert (term.loc["linked", "excess"] < 0).all() and (term.loc["linked", "p_corrected"] < 0.05).all()
    assert (term.loc["linked", "value"].abs() < 0.1 * term.loc["linked", "intact"]).all()
    assert (term.loc["trap", "excess"].abs() < 0.1 * term.loc["trap", "intact"]).all()
    wide = rows[(rows["set"] == "linked") & (rows["way"] == "zero") & (rows["text"] != "pair")]
    scores = wide.pivot_table(index=["draw", "query_id", "doc_id"], columns="text", values="score")
    effect = (scores["donor"] - scores["base"]).groupby(level=[0, 1]).mean().unstack(0)
    beyond = effect[-1] - effect.drop(columns=-1).mean(axis=1)
    own = term.loc["linked", "zero"]
    assert own["excess"] == pytest.approx(beyond.mean())
    assert (own["excess_low"], own["excess_high"]) == pytest.approx(mean_interval(beyond.to_numpy()))
    assert own["p_draws"] == 1 / 4 and own["queries"] == 16 and own["heads"] == 1
    assert (found["p_corrected"] >= found["p_excess"] - 1e-9).all() and found["p_corrected"].nunique() > 1


def test_the_ranking_without_sets_is_measured_as_asked(
    cut: tuple[list[mi.Pair], pd.DataFrame, pd.DataFrame],
) -> None:
    pairs, sets, rows = cut
    judged = pd.DataFrame([(p.query_id, p.doc_id, p.grade) for p in pairs], columns=["query_id", "doc_id", "grade"])
    default, table = cut_table(rows, judged, sets), cut_table(rows, judged, sets, ("AP(rel=2)", NDCG))
    assert set(table["measure"]) == {"AP(rel=2)", NDCG, TERM}
    ndcg, same = (frame[frame["measure"] == NDCG].drop(columns="p_corrected") for frame in (table, default))
    pd.testing.assert_frame_equal(ndcg.reset_index(drop=True), same.reset_index(drop=True))
    (measure,) = ranking_measures(["AP(rel=2)"])
    scores = rows[(rows["text"] == "pair") & (rows["set"] == "linked") & (rows["draw"] == -1) & (rows["way"] == "zero")]
    (value,) = table[(table["measure"] == "AP(rel=2)") & (table["set"] == "linked") & (table["way"] == "zero")]["value"]
    assert value == pytest.approx(per_query(scores, judged, measure).mean())


def test_ablating_several_with_means_is_ablating_each_with_its_mean(tiny: HookedEncoder) -> None:
    means = mi.means(tiny, PAIRS)
    sites = ["h0.1", "h0.3", "h2.0", "n1.5"]
    one = tiny.score(PAIRS, do=mi.Ablate(sites, with_=means))
    other = tiny.score(PAIRS, do=[mi.Ablate(site, with_=means) for site in sites])
    np.testing.assert_allclose(one, other, rtol=1e-6)
    assert mi.Ablate(sites, with_=means) == mi.Ablate(sites[::-1], with_=means) != mi.Ablate(sites)
    with pytest.raises(MechirError, match=r"Cannot ablate with 'mean': write with_=means\(model, pairs\) or samples"):
        mi.Ablate(sites, with_="mean")


def test_means_of_heads_come_back_from_the_frame_that_a_run_stores(tiny: HookedEncoder) -> None:
    stored, whole = head_means(tiny, PAIRS), mi.means(tiny, PAIRS)
    again = BySegment.of_frame(stored)
    assert list(again.values) == [f"blocks.{layer}.attn.hook_z" for layer in range(tiny.cfg.n_layers)]
    for name, value in again.values.items():
        torch.testing.assert_close(value, whole.values[name])
    assert again.model == tiny.fingerprint and again.recipe == whole.recipe


def test_power_is_known_from_the_spread_over_queries(model: planted.PlantedEncoder) -> None:
    from mechir.catalog import load_experiment

    pairs = planted.graded(model, 8, 1)
    rows = load_experiment("vast2025/attention_contrast")().measure(model, pairs)
    looks = contrast_spreads(rows, {"relevant": 3, "hard": 1, "weak": 1})
    assert len(looks) == 16 and (looks >= 0).all()
    effect = pd.DataFrame(
        {"site": "h0.1", "query_id": list("abcd"), "base": 0.0, "donor": [1.0, 2, 3, 4], "effect": [0.5, 1, 1.5, 2.4]}
    )
    share = 5.4 / 10
    expected = (effect["effect"] - share * effect["donor"]).std() / 2.5
    assert share_spreads(effect).tolist() == pytest.approx([expected])
    told = power_table({"a": looks, "b": [0.1, 0.2]}, {"a": 0.02, "b": 0.05}, 20).set_index("measure")
    assert (told["queries"] == 20).all() and told.loc["b", "finds"] < told.loc["b", "finds_90"]
    assert told.loc["b", "queries_for_that"] > 20 and np.isinf(power_table({"b": [0.1]}, {"b": 1.0}, 5)["finds"]).all()
