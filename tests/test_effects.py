"""Metrics of effects: what each divides by, what it leaves out, and what the ranking does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechir.errors import MechirError
from mechir.measures import GAP, PATCHING
from mechir.methods import effects


def frame(base: list[float], donor: list[float], patched: list[float], **columns: list[object]) -> pd.DataFrame:
    n = len(base)
    told = {
        "site": ["h1.2"] * n, "at": ["all"] * n, "query_id": [f"q{k % 4}" for k in range(n)],
        "doc_id": [f"d{k}" for k in range(n)], "grade": pd.array([k % 2 for k in range(n)], dtype="Int64"),
        "filler": ["a"] * n, "base": base, "donor": donor, "patched": patched,
    }  # fmt: skip
    found = pd.DataFrame(told | columns)
    return found.assign(effect=found["patched"] - found["base"])


ROWS = frame([0.0, 1.0, 2.0, 1.0], [2.0, 1.0, 1.0, 1.0 + 1e-7], [1.0, 1.5, 1.5, 2.0])


def test_each_metric_is_its_formula() -> None:
    assert effects.measured(ROWS).tolist() == [1.0, 0.5, -0.5, 1.0]
    ratio = effects.measured(ROWS, "ratio")
    assert ratio[[0, 2]].tolist() == [0.5, 0.5] and ratio[[1, 3]].isna().all()
    assert effects.measured(ROWS, "robust").tolist() == pytest.approx([1 / 5**0.5, 0.5, -0.5 / 2**0.5, 1.0])


def test_mechir_s_mean_of_ratios_can_be_had_and_is_led_by_one_small_gap() -> None:
    wild = effects.measured(ROWS, "ratio", min_gap=0.0)
    assert wild.isna().tolist() == [False, True, False, False]  # a gap of 0 never gives a number
    assert wild.mean() > 1e5
    found = effects.summarise(ROWS, metric="ratio_of_means")
    assert found["estimate"].item() == pytest.approx((1.0 - 0.5) / (2.0 - 1.0))
    assert found[["pairs", "left_out"]].to_numpy().tolist() == [[2, 2]]
    assert effects.small_gaps(ROWS)["doc_id"].tolist() == ["d1", "d3"]


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=20), st.floats(-3, 3))
def test_patching_all_of_a_perturbation_has_ratio_one(base: list[float], gap: float) -> None:
    rows = frame(base, [x + gap for x in base], [x + gap for x in base])
    found = effects.measured(rows, "ratio").dropna()
    assert np.allclose(found, 1, atol=1e-6)
    assert len(found) == (len(base) if abs(gap) > 0.011 else len(found))
    assert (effects.measured(rows, "robust").abs() <= 1 + 1e-9).all()


def test_the_mean_counts_each_query_once_and_names_the_pairs_left_out() -> None:
    rows = frame([0.0] * 5, [1.0] * 5, [1.0, 2.0, 3.0, 4.0, 3.0])  # q0 has two pairs: 1 and 3
    found = effects.summarise(rows).iloc[0]
    assert found["estimate"] == pytest.approx((2 + 2 + 3 + 4) / 4)
    assert (found["pairs"], found["queries"], found["left_out"]) == (5, 4, 0)
    assert found["low"] <= found["estimate"] <= found["high"]
    with pytest.raises(
        MechirError, match=r"Every pair has a score gap below 0.01: there is no ratio; use metric='diff"
    ):
        effects.summarise(frame([0.0], [0.0], [1.0]), metric="ratio")
    with pytest.raises(
        MechirError, match=r"Unknown metric 'kl': write one of difference, ratio, robust, ratio_of_means"
    ):
        effects.summarise(rows, metric="kl")
    with pytest.raises(MechirError, match=r"A ratio of means has no value per pair"):
        effects.measured(rows, "ratio_of_means")


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(0), 0
    for _ in range(60):
        gap = generator.normal(3, 1, 40)
        rows = frame([0.0] * 40, gap.tolist(), (0.4 * gap + generator.normal(0, 0.5, 40)).tolist())
        found = effects.summarise(rows.assign(query_id=[f"q{k}" for k in range(40)]), metric="ratio_of_means").iloc[0]
        covered += found["low"] < 0.4 < found["high"]
    assert 51 <= covered <= 60


def test_the_reported_quantity_is_the_tested_one() -> None:
    """The effect is .3 of every gap: three queries with large gaps hide that from a test of logits."""
    generator = np.random.default_rng(0)
    gap = np.append(generator.uniform(0.2, 0.6, 20), [2.0, 2.5, 3.0])
    effect = 0.3 * gap + generator.normal(0, 0.02, 23)
    rows = frame([0.0] * 23, gap.tolist(), effect.tolist()).assign(query_id=[f"q{k}" for k in range(23)])
    in_logits, found = effects.summarise(rows).iloc[0], effects.table(rows, ["site"]).iloc[0]
    assert found["p_corrected"] < 0.001 < 0.005 < in_logits["p_corrected"]
    assert found["share"] == pytest.approx(effect.sum() / gap.sum()) and found["estimate"] == in_logits["estimate"]
    stated = effects.stated(effects.table(rows, ["site"]).assign(site="h0.0"), PATCHING("tfc1")).iloc[0]
    assert (stated["unit"], stated["value"], stated["effect"]) == (
        "share of the gap",
        found["share"],
        found["estimate"],
    )
    assert (stated["effect_low"], stated["effect_high"]) == (found["low"], found["high"])


def test_there_is_no_share_where_the_gap_may_be_0() -> None:
    generator = np.random.default_rng(1)
    gap = generator.normal(0, 1, 20)
    rows = frame([0.0] * 20, gap.tolist(), [1.0] * 20).assign(query_id=[f"q{k}" for k in range(20)])
    found = effects.table(rows, ["site"]).iloc[0]
    assert (
        np.isnan(found["share"]) and found["left_out"] == 20 and found["p_corrected"] < 0.001
    )  # of the effect in logits
    stated = effects.stated(effects.table(rows, ["site"]), PATCHING("tfc1")).iloc[0]
    assert (stated["unit"], stated["value"]) == ("logits", found["estimate"])


def test_the_gap_is_a_finding_beside_the_spread_within_queries() -> None:
    rows = frame([0.0, 2.0] * 8, [0.5, 2.5] * 8, [0.1] * 16)
    rows = rows.assign(query_id=[f"q{k // 2}" for k in range(16)])
    found = effects.gap(rows)
    assert (found.mean, found.queries, found.pairs) == (0.5, 8, 16) and found.spread == pytest.approx(2**0.5)
    (stated,) = effects.gap_stated(rows, "tfc1").to_dict("records")
    assert stated["measure"] == "gap, tfc1" and stated["least"] == pytest.approx(0.1 * 2**0.5)
    assert stated["term"] == "tf" and stated["p"] == stated["p_corrected"] == pytest.approx(2**-7)
    alone = effects.gap(rows.drop_duplicates("query_id"))
    assert np.isnan(alone.spread)
    assert effects.gap_stated(rows.drop_duplicates("query_id"), "tdc")["least"].item() == GAP.least


def test_ranks_move_one_document_at_a_time() -> None:
    rows = frame([3.0, 2.0, 1.0], [9.0] * 3, [0.0, 2.5, 2.0], query_id=["q", "q", "q"])
    found = effects.rank_effects(rows)
    assert found["rank_base"].tolist() == [1, 2, 3]
    assert found["rank_patched"].tolist() == [3, 2, 2.5]
    assert found["rank_effect"].tolist() == [-2, 0, 0.5]


def test_the_ranking_of_a_query_moves_with_all_its_documents() -> None:
    rows = frame([3.0, 2.0, 1.0], [9.0] * 3, [1.0, 3.0, 2.0], query_id=["q"] * 3)
    rows["grade"] = pd.array([0, 1, 0], dtype="Int64")
    found = effects.query_effects(rows).iloc[0]
    assert found["ndcg_base"] == pytest.approx(1 / np.log2(3)) and found["ndcg_patched"] == 1
    assert found["margin_base"] == pytest.approx(0) and found["margin_patched"] == pytest.approx(1.5)
    assert found["margin_effect"] == pytest.approx(1.5) and found["ndcg_effect"] > 0
    ungraded = rows.assign(grade=pd.array([None] * 3, dtype="Int64"))
    with pytest.raises(MechirError, match=r"These pairs have no grades, so there is no nDCG: use rank_effects"):
        effects.query_effects(ungraded)


def test_without_any_gap_a_table_has_effects_and_no_shares() -> None:
    found = effects.table(frame([1.0, 2.0], [1.0, 2.0], [2.0, 3.0]), ["site"]).iloc[0]
    assert found["estimate"] == 1 and np.isnan(found["share"]) and found["left_out"] == 2


def test_float32_rounding_is_not_significant() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(size=16)
    rows = frame(base.tolist(), (base + 1).tolist(), (base + 1e-7).tolist())
    rows = rows.assign(query_id=[f"q{k}" for k in range(16)])
    assert effects.summarise(rows)["p_corrected"].item() == 1
    assert effects.summarise(rows.assign(effect=1e-3))["p_corrected"].item() < 0.001
