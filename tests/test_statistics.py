"""Comparisons that agree with the formulas, degenerate samples without warnings, and overlaps against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mechir.inference import means
from mechir.methods.statistics import compare, overlap, overlap_of_all


def test_the_paired_test_is_of_the_mean_change_and_the_papers_is_student_s() -> None:
    edited = np.array([0.2, 0.4, 0.3, 0.9, 0.5, 0.6, 0.7, 0.1])
    original = edited + np.array([0.1, 0.2, 0.15, 0.05, 0.2, 0.12, 0.18, 0.1])
    found, change = compare(edited, original), edited - original
    assert found.n == 8 and found.change == pytest.approx(change.mean())
    assert found.low < found.change < found.high < 0
    assert (found.p_paired, found.low) == (means(change[:, None]).p[0], means(change[:, None]).low[0])
    t = (edited.mean() - original.mean()) / math.sqrt((edited.var(ddof=1) + original.var(ddof=1)) / 8)
    assert found.p_unpaired == pytest.approx(2 * stats.t.sf(abs(t), 14))
    assert found.p_paired < 0.05 < found.p_unpaired


def test_equal_samples_give_1_and_few_queries_are_not_tested() -> None:
    same = compare([0.5, 0.7] * 3, [0.5, 0.7] * 3)
    assert (same.p_paired, same.p_unpaired, same.change, same.low, same.high) == (1, 1, 0, 0, 0)
    assert compare([0.5, 0.5], [0.5, 0.5]).p_unpaired == 1
    assert compare([0.5, 0.5], [0.7, 0.7]).p_unpaired == 0
    assert math.isnan(compare([0.5, 0.6, 0.7, 0.8, 0.9], [0.1, 0.2, 0.3, 0.5, 0.5]).p_paired)
    one = compare([0.5], [0.7])
    assert one.n == 1
    assert all(math.isnan(value) for value in (one.p_paired, one.p_unpaired, one.low, one.high))


def test_overlap_is_against_chance() -> None:
    first, second = [f"h{k}" for k in range(10)], [f"h{k}" for k in range(6, 16)]
    found = overlap(first, second, 72)
    assert found.shared == 4 and found.expected == pytest.approx(100 / 72)
    rng = np.random.default_rng(0)
    drawn = [len(set(rng.permutation(72)[:10]) & set(range(10))) >= 4 for _ in range(4000)]
    assert found.p == pytest.approx(np.mean(drawn), abs=0.015)
    assert overlap(first, ["x"], 72).p == 1


def test_the_overlap_of_several_choices_equals_drawing() -> None:
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
