"""Tests that keep their level, intervals that cover, and what neither may do: let one odd column speak for the others."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mechir import inference
from mechir.inference import (
    detectable,
    enough,
    grade_contrasts,
    holm,
    intersection_union,
    mean_interval,
    mean_row,
    means,
    shares,
    step_down,
    studentised,
)

SCRIPT = Path(__file__).parent.parent / "scripts" / "measure_inference.py"


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studentised, "RESAMPLES", 1000)


def exponential(generator: np.random.Generator, *size: int) -> np.ndarray:
    return generator.exponential(size=size) - 1


@pytest.mark.parametrize(("n", "least"), [(6, 0.88), (12, 0.91), (30, 0.92)])
@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_intervals_cover_the_mean(kind: str, n: int, least: float, few_draws: None) -> None:
    generator = np.random.default_rng(n)
    drawn = generator.normal(size=(n, 600)) if kind == "normal" else exponential(generator, n, 600)
    found = means(drawn)
    covered = ((found.low <= 0) & (found.high >= 0)).mean()
    assert least <= covered <= 0.995
    assert ((found.low <= 0) & (found.high >= 0) == (found.p >= 0.05 - 2e-3)).mean() > 0.99  # one rule for both


def test_few_values_have_student_s_interval_and_no_test() -> None:
    values = np.array([0.1, 0.5, 0.9, 0.3, 0.2])
    half = stats.t.ppf(0.975, 4) * values.std(ddof=1) / 5**0.5
    assert mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half))
    found = means(values[:, None])
    assert np.isnan([found.p[0], found.p_corrected[0], found.low_all[0], found.high_all[0]]).all()
    assert not np.isnan(means(np.append(values, 0.4)[:, None]).p[0])
    assert inference.FEWEST == 6


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5] * 8, (0.5, 0.5)), ([0.0] * 8, (0.0, 0.0)), ([0.5], (math.nan, math.nan)), ([], (math.nan, math.nan))],
)
def test_degenerate_samples(values: list[float], expected: tuple[float, float]) -> None:
    np.testing.assert_equal(mean_interval(values), expected)


def test_the_row_of_a_mean_leaves_out_queries_without_a_value() -> None:
    row = mean_row([1.0, float("nan"), 3.0], "rise")
    assert row["rise"] == 2
    assert row["rise_low"] < 2 < row["rise_high"]
    assert all(np.isnan(value) for values in ([], [float("nan")]) for value in mean_row(values).values())


def test_one_value_apart_has_student_s_interval() -> None:
    """A resample without it has no spread: the bootstrap knows nothing then, in a third of them."""
    values = np.array([0.0] * 19 + [1.0])
    half = stats.t.ppf(0.975, 19) * values.std(ddof=1) / 20**0.5
    assert mean_interval(values) == pytest.approx((0.05 - half, 0.05 + half))


def test_values_that_are_all_equal_are_tested_by_their_signs() -> None:
    found = means(np.column_stack([np.ones(8), -np.ones(8), np.zeros(8), np.full(8, 0.1 + 0.2)]))
    np.testing.assert_allclose(found.p, [2**-7, 2**-7, 1, 2**-7])
    np.testing.assert_allclose(found.p_corrected, [3 * 2**-7, 3 * 2**-7, 1, 3 * 2**-7])
    np.testing.assert_array_equal(found.low_all, found.estimate)


def test_intervals_are_seeded() -> None:
    values = np.random.default_rng(0).normal(size=12)
    assert mean_interval(values) == mean_interval(values) != mean_interval(values, seed=1)


def test_a_mean_is_a_share_of_gaps_of_1() -> None:
    values = np.random.default_rng(0).normal(size=(15, 3))
    one, other = means(values), shares(values, np.ones((15, 3)))
    for name in vars(one):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name))


def test_a_share_is_tested_as_a_share() -> None:
    """Three queries with a large gap drown a mean in logits, and say nothing against the share."""
    generator = np.random.default_rng(0)
    gap = np.append(generator.uniform(0.1, 0.4, 20), [6.0, 8.0, 9.0])
    effect = 0.3 * gap + generator.normal(0, 0.02, 23)
    share, mean = shares(effect[:, None], gap[:, None]), means(effect[:, None])
    assert share.estimate[0] == pytest.approx(effect.sum() / gap.sum())
    residual = effect - share.estimate[0] * gap
    error = (residual**2).sum() ** 0.5 * (23 / 22) ** 0.5 / gap.sum()
    assert share.low[0] == pytest.approx(share.estimate[0] - 2.1 * error, abs=0.9 * error)
    assert share.p[0] < 0.001 < 0.02 < mean.p[0]


def test_intervals_of_shares_cover(few_draws: None) -> None:
    generator, n = np.random.default_rng(1), 15
    gap = generator.exponential(size=(n, 1)) + 0.2
    effect = 0.4 * gap + exponential(generator, n, 600) * 0.3
    found = shares(effect, np.broadcast_to(gap, effect.shape))
    assert 0.91 <= ((found.low <= 0.4) & (found.high >= 0.4)).mean() <= 0.99


@pytest.mark.parametrize("kind", ["normal", "exponential", "log-normal", "holes"])
def test_the_family_keeps_its_level(kind: str, few_draws: None) -> None:
    """Signs flipped reject in 60 % of such families of exponential values, and in 89 % of log-normal ones."""
    generator, rejected = np.random.default_rng(3), 0
    for seed in range(120):
        values = generator.normal(size=(20, 72))
        if kind == "log-normal":
            values = np.exp(values) - math.exp(0.5)
        elif kind != "normal":
            values = exponential(generator, 20, 72)
        if kind == "holes":
            values[generator.random(values.shape) < generator.choice([0, 0.3, 0.6], 72)] = np.nan
        rejected += np.nanmin(means(values, seed=seed).p_corrected) < 0.05
    assert rejected / 120 < 0.10


def test_a_rare_column_takes_nothing_from_the_others() -> None:
    generator = np.random.default_rng(0)
    strong = generator.normal(1.0, 1.0, (20, 5))
    alone = means(strong).p_corrected
    for known in (1, 2, 4, 5):
        rare = np.full(20, np.nan)
        rare[:known] = 1.0 + np.arange(known)
        found = means(np.column_stack([strong, rare]))
        np.testing.assert_array_equal(found.p_corrected[:5], alone)
        assert np.isnan(found.p_corrected[5]) and found.queries.tolist() == [20] * 5 + [known]
    for odd in (
        np.append(np.full(14, np.nan), [1.0, 2.0, 1.5, 1.1, 0.9, 1.2]),
        np.append(np.zeros(19), 1.0),
        np.append(generator.normal(0, 1e-3, 19), 5.0),
    ):
        found = means(np.column_stack([strong, odd])).p_corrected[:5]
        assert (found <= 1.2 * alone + 1e-12).all()


def test_step_down_by_hand() -> None:
    own = np.array([3.0, 1.0, 2.0])
    reference = np.array([[0.5, 1.5, 0.2], [2.5, 0.1, 2.2], [0.1, 0.2, 0.3], [3.5, 0.1, 0.1]])
    #           the largest of all: 1.5 2.5 .3 3.5; without the first: 1.5 2.2 .3 .1; the smallest alone: 1.5 .1 .2 .1
    np.testing.assert_allclose(step_down(own, reference), [2 / 5, 2 / 5, 2 / 5])
    np.testing.assert_allclose(step_down(np.array([3.0, 0.05, 2.0]), reference), [2 / 5, 1.0, 2 / 5])
    np.testing.assert_allclose(step_down(np.array([np.inf, 9.0]), reference[:, :2]), [1 / 5, 1 / 5])


def test_grades_are_permuted_within_queries_and_exact() -> None:
    """Two queries, one relevant document of three and one of two: six ways to deal the grades out."""
    values = np.array([[5.0], [1.0], [2.0], [10.0], [7.0]])
    query, high = np.array(["a", "a", "a", "b", "b"]), np.array([True, False, False, True, False])
    found = grade_contrasts(values, query, high)
    assert found.differences.ravel().tolist() == [3.5, 3.0]
    assert found.estimates.estimate[0] == 3.25
    a = [5 - 1.5, 1 - 3.5, 2 - 3.0]
    every = [abs(one + other) / 2 for one, other in itertools.product(a, [3.0, -3.0])]
    exact = np.mean([one >= 3.25 for one in every])
    assert found.estimates.p[0] == pytest.approx(exact, abs=0.02) == found.estimates.p_corrected[0]


@pytest.mark.parametrize("sizes", [(3, 3), (2, 10), (1, 9), (9, 1)])
def test_contrasts_of_grades_keep_their_level_whatever_the_sizes(sizes: tuple[int, int], few_draws: None) -> None:
    generator, rejected = np.random.default_rng(0), 0
    high = np.tile(np.repeat([True, False], sizes), 20)
    query = np.repeat(np.arange(20), sum(sizes))
    for seed in range(100):
        values = np.exp(generator.normal(size=(len(query), 30)))
        rejected += grade_contrasts(values, query, high, seed=seed).estimates.p_corrected.min() < 0.05
    assert rejected <= 11


def test_a_contrast_is_found_and_its_neighbours_are_not() -> None:
    generator = np.random.default_rng(0)
    high, query = np.tile([True, False, False, False], 12), np.repeat(np.arange(12), 4)
    values = generator.normal(size=(48, 20))
    values[high, 3] += 2
    values[:, 5] = 0.25
    found = grade_contrasts(values, query, high).estimates
    assert found.p_corrected[3] < 0.001 and np.delete(found.p_corrected, 3).min() > 0.05
    assert found.p_corrected[5] == 1 and found.low[5] == pytest.approx(0) == found.high[5]


def test_queries_of_one_grade_say_nothing() -> None:
    values, query = np.arange(6.0)[:, None], np.array(list("aabbcc"))
    found = grade_contrasts(values, query, np.array([True, True, True, False, False, False]))
    assert found.estimates.queries[0] == 1 and found.differences.ravel().tolist() == [-1.0]
    none = grade_contrasts(values, query, np.ones(6, dtype=bool))
    assert np.isnan(none.estimates.estimate[0])


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, math.nan, 0.04, 0.03]), [0.03, math.nan, 0.06, 0.06])
    assert np.isnan(holm([math.nan])).all()
    drawn = np.random.default_rng(0).uniform(size=40) ** 4
    np.testing.assert_allclose(holm(drawn), multipletests(drawn, method="holm")[1])


def test_all_parts_must_hold() -> None:
    assert intersection_union(0.01, 0.2, 0.03) == 0.2
    assert math.isnan(intersection_union(0.01, math.nan))


def test_power_is_that_of_the_test() -> None:
    smallest = detectable(1.0, 40)
    generator = np.random.default_rng(0)
    drawn = generator.normal(smallest, 1.0, (40, 2000))
    assert (stats.ttest_1samp(drawn, 0).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.03)
    assert detectable(1.0, 5) == math.inf and detectable(1.0, 40, tests=72) > smallest
    assert enough(smallest, 1.0) == pytest.approx(40, abs=1) and enough(0.0, 1.0) == 100_000


def test_the_tables_of_the_documentation_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`scripts/measure_inference.py` on a few repetitions; the whole of it takes fifteen minutes."""
    spec = importlib.util.spec_from_file_location("measure_inference", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(studentised, "RESAMPLES", 200)
    wrong, held = script.error(3), script.coverage(50)
    assert len(wrong) == 11 and wrong["here"].between(0, 1).all() and wrong.loc[4, "quantity"] == "grades, a mixture"
    assert held.groupby("values")["n"].count().tolist() == [7, 7, 7] and held["here"].between(0.5, 1).all()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- error -->\nold\n<!-- /error -->\nafter\n")
    monkeypatch.setattr(script, "PAGE", page)
    script.written("error", pd.DataFrame({"a": ["x"], "b": [0.05]}))
    assert (
        page.read_text()
        == "before\n<!-- error -->\n\n| a | b |\n| --- | --- |\n| x | .050 |\n\n<!-- /error -->\nafter\n"
    )
