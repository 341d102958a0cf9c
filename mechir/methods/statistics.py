"""Comparisons as the papers make them, overlaps of choices, and correlations over pairs of whole queries.

Tests and intervals of means, shares and contrasts over queries are in `mechir.inference`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from mechir.inference import mean_row, means

RESAMPLES = 10_000


class Comparison(NamedTuple):
    """The change of per-query values from the intact to an edited model."""

    n: int
    change: float
    low: float
    high: float
    p_unpaired: float
    p_paired: float

    def row(self, name: str) -> dict[str, float]:
        """The change as columns of a table: `name`, `name_low`, `name_high` and the paired `name_p`."""
        return {name: self.change, f"{name}_low": self.low, f"{name}_high": self.high, f"{name}_p": self.p_paired}


def compare(edited: Sequence[float] | np.ndarray, original: Sequence[float] | np.ndarray) -> Comparison:
    """The mean difference edited - original over queries, its interval, and two two-tailed tests.

    `p_paired` is the test of the mean of the differences (`inference.means`); missing for fewer than 6 queries.
    `p_unpaired` treats the two sides as independent samples of equal variance, as the code of Vast et al. 2025 does
    (Student's, scipy's `ttest_ind`): with the same queries on both sides it is far too cautious. Equal values give 1.
    """
    edited, original = _without_noise(edited), _without_noise(original)
    change = _without_noise(edited - original)
    test = means(change[:, None])
    mean, low, high, p = (float(x[0]) for x in (test.estimate, test.low, test.high, test.p))
    return Comparison(len(change), mean, low, high, _p_unpaired(edited, original), p)


def _p_unpaired(edited: np.ndarray, original: np.ndarray) -> float:
    if len(edited) < 2:
        return float("nan")
    if np.ptp(edited) == 0 and np.ptp(original) == 0:
        return float(edited[0] == original[0])
    sides = [moment for side in (edited, original) for moment in (side.mean(), side.std(ddof=1), len(side))]
    return float(stats.ttest_ind_from_stats(*sides).pvalue)  # as ttest_ind, which warns when one side is constant


def _without_noise(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Makes values equal that differ in the last digits only: their variance is rounding, not a sample's."""
    values = np.asarray(values, dtype=float)
    constant = np.ptp(values) <= 1e-12 * np.abs(values).max()
    return np.full_like(values, values[0]) if constant else values


class Overlap(NamedTuple):
    """The things two choices out of `n` share, how many two random choices would, and the chance of as many."""

    shared: int
    expected: float
    p: float
    n: int


def overlap(first: Iterable[str], second: Iterable[str], n: int) -> Overlap:
    """The intersection of two choices out of n things against chance (hypergeometric, one-sided)."""
    chosen, other = set(first), set(second)
    shared = len(chosen & other)
    p = stats.hypergeom.sf(shared - 1, n, len(chosen), len(other))
    return Overlap(shared, len(chosen) * len(other) / n, float(p), n)


def overlap_of_all(sizes: Sequence[int], shared: int, n: int) -> Overlap:
    """The intersection of several choices of these sizes out of n things against chance (hypergeometric, step by step).

    `shared`: how many things all of them have.
    """
    first, *others = sizes
    chance = np.zeros(first + 1)  # the distribution of how many are in all so far
    chance[first] = 1.0
    for size in others:
        counts = np.arange(first + 1)
        chance = stats.hypergeom.pmf(counts[:, None], n, counts[None, :], size) @ chance
    return Overlap(shared, float(chance @ np.arange(first + 1)), float(min(chance[shared:].sum(), 1.0)), n)


def resampled(query: np.ndarray, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The places of pairs in `draws` resamples of whole queries; no resample where there is one query alone."""
    places = [np.flatnonzero(query == name) for name in dict.fromkeys(query.tolist())]
    generator = np.random.default_rng(seed)
    for _ in range(draws if len(places) > 1 else 0):
        yield np.concatenate([places[k] for k in generator.integers(len(places), size=len(places))])


def percentiles(draws: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95 % interval of resampled values; NaN where there are none."""
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    return float(low), float(high)


def query_means(rows: pd.DataFrame, by: Sequence[str], column: str, name: str = "") -> pd.DataFrame:
    """The mean of a column within queries, then over `queries`: a row per value of `by`, named as by `mean_row`."""
    per_query = rows.groupby([*by, "query_id"], sort=False)[column].mean()
    lines = [
        dict(zip(by, key, strict=True)) | {"queries": len(values)} | mean_row(values.to_numpy(), name)
        for key, values in per_query.groupby(list(by), sort=False)
    ]
    return pd.DataFrame(lines)


def spearman(x: np.ndarray, y: np.ndarray, query: np.ndarray, *, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rho over pairs, and its 95 % interval with whole queries resampled 1,000 times (percentiles)."""
    rho = float(stats.spearmanr(x, y).statistic)
    draws = [
        stats.spearmanr(x[drawn], y[drawn]).statistic
        for drawn in resampled(query, 1000, seed)
        if np.ptp(x[drawn]) > 0 and np.ptp(y[drawn]) > 0
    ]
    return rho, *percentiles(draws)
