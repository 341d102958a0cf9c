"""Intervals that cover, tests that agree with the formulas, and degenerate samples without warnings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mechir.methods.statistics import (
    bootstrap_mean,
    compare,
    holm,
    overlap,
    overlap_of_all,
    sign_flips,
    simultaneous,
)


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        low, high = bootstrap_mean(generator.normal(1.0, 1.0, 40), seed=seed)
        covered += low <= 1.0 <= high
    assert 51 <= covered <= 60


def test_the_interval_is_seeded() -> None:
    values = [0.1, 0.5, 0.9, 0.3]
    assert bootstrap_mean(values) == bootstrap_mean(values) != bootstrap_mean(values, seed=1)


@pytest.mark.parametrize(("values", "expected"), [([0.5, 0.5, 0.5], (0.5, 0.5)), ([0.5], (math.nan, math.nan))])
def test_degenerate_samples(values: list[float], expected: tuple[float, float]) -> None:
    np.testing.assert_equal(bootstrap_mean(values), expected)


def test_one_value_apart_has_an_interval_without_warnings() -> None:
    low, high = bootstrap_mean([0.0] * 20 + [1.0])
    assert 0 <= low < 1 / 21 < high


def test_both_tests_are_student_s() -> None:
    edited, original = np.array([0.2, 0.4, 0.3, 0.9, 0.5]), np.array([0.3, 0.6, 0.35, 0.95, 0.8])
    found = compare(edited, original)
    assert found.n == 5
    assert found.change == pytest.approx(-0.14)
    assert found.low < found.change < found.high < 0
    assert found.p_paired == pytest.approx(stats.ttest_rel(edited, original).pvalue)
    t = (edited.mean() - original.mean()) / math.sqrt((edited.var(ddof=1) + original.var(ddof=1)) / 5)
    assert found.p_unpaired == pytest.approx(2 * stats.t.sf(abs(t), 8))
    assert found.p_paired < 0.05 < found.p_unpaired


def test_equal_samples_give_1_and_one_query_gives_nan() -> None:
    same = compare([0.5, 0.7], [0.5, 0.7])
    assert (same.p_paired, same.p_unpaired, same.change, same.low, same.high) == (1, 1, 0, 0, 0)
    assert compare([0.5, 0.5], [0.5, 0.5]).p_unpaired == 1
    assert compare([0.5, 0.5], [0.7, 0.7]).p_unpaired == 0
    one = compare([0.5], [0.7])
    assert one.n == 1
    assert all(math.isnan(value) for value in (one.p_paired, one.p_unpaired, one.low, one.high))


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, math.nan, 0.04, 0.03]), [0.03, math.nan, 0.06, 0.06])
    assert np.isnan(holm([math.nan])).all()
    drawn = np.random.default_rng(0).uniform(size=40) ** 4
    np.testing.assert_allclose(holm(drawn), multipletests(drawn, method="holm")[1])


def test_simultaneous_intervals_hold_together_about_as_often_as_they_say() -> None:
    generator, covered, alone = np.random.default_rng(0), 0, 0
    mixing = generator.normal(size=(6, 6)) + 2  # columns move together
    for seed in range(100):
        values = 1 + generator.normal(size=(20, 6)) @ mixing
        low, high = simultaneous(values, seed=seed)
        np.testing.assert_allclose((low + high) / 2, values.mean(0))
        inside = (low <= 1) & (high >= 1)
        covered, alone = covered + bool(inside.all()), alone + bool(inside[0])
    assert 90 <= covered <= 99 and alone > covered


def test_simultaneous_intervals_are_wider_than_student_s_and_go_with_the_sign_flips() -> None:
    values = np.random.default_rng(1).normal(0, 1, (30, 8)) + np.repeat([1, 0], 4)
    low, high = simultaneous(values)
    own = stats.t.ppf(0.975, 29) * values.std(0, ddof=1) / math.sqrt(30)
    assert (high - low > 2 * own).all() and np.ptp((high - low) / own) < 1e-9
    p = sign_flips(values)
    assert ((low > 0) == (p < 0.05))[(p < 0.02) | (p > 0.1)].all() and (p < 0.02).any() and (p > 0.1).any()
    np.testing.assert_array_equal(simultaneous(values), (low, high))
    assert (simultaneous(values, level=0.5)[1] < high).all()


def test_degenerate_columns_of_simultaneous_intervals() -> None:
    assert np.isnan(simultaneous(np.ones((1, 3)))).all()
    spread = np.random.default_rng(0).normal(size=12)
    low, high = simultaneous(np.column_stack([np.full(12, 0.1), np.zeros(12), spread]))
    np.testing.assert_allclose(low[:2], [0.1, 0], atol=1e-15)
    np.testing.assert_allclose(high[:2], [0.1, 0], atol=1e-15)
    np.testing.assert_allclose((low[2], high[2]), np.ravel(simultaneous(spread[:, None])))
    np.testing.assert_array_equal(simultaneous(np.array([[0.5, 1.0], [0.5, 2.0]])), [[0.5, -np.inf], [0.5, np.inf]])


def test_overlap_is_against_chance() -> None:
    first, second = [f"h{k}" for k in range(10)], [f"h{k}" for k in range(6, 16)]
    found = overlap(first, second, 72)
    assert found.shared == 4 and found.expected == pytest.approx(100 / 72)
    rng = np.random.default_rng(0)
    drawn = [len(set(rng.permutation(72)[:10]) & set(range(10))) >= 4 for _ in range(4000)]
    assert found.p == pytest.approx(np.mean(drawn), abs=0.015)
    assert overlap(first, ["x"], 72).p == 1


def test_the_overlap_of_several_choices_is_what_drawing_gives() -> None:
    two = overlap_of_all([8, 6], 3, 20)
    assert two == pytest.approx(overlap(map(str, range(8)), map(str, [0, 1, 2, 9, 10, 11]), 20))
    generator = np.random.default_rng(0)
    drawn = [
        len(set.intersection(*(set(generator.choice(20, n, replace=False).tolist()) for n in (8, 6, 10))))
        for _ in range(4000)
    ]
    found = overlap_of_all([8, 6, 10], 3, 20)
    assert found.expected == pytest.approx(8 * 6 * 10 / 400) == pytest.approx(np.mean(drawn), abs=0.05)
    assert found.p == pytest.approx(np.mean(np.array(drawn) >= 3), abs=0.02)
