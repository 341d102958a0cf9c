"""Intervals and tests over queries: queries are the sample, documents within one are not independent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 10_000


class Comparison(NamedTuple):
    """Per-query values of an edited model beside those of the intact one."""

    n: int
    change: float
    low: float
    high: float
    p_unpaired: float
    p_paired: float


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The bootstrap interval of the mean, queries resampled 10,000 times (bias-corrected and accelerated).

    NaN with fewer than 2 values; without width when all values are equal.
    """
    values = _without_noise(values)
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    # With one value apart from otherwise equal ones the acceleration of BCa is degenerate: percentiles instead.
    method = "BCa" if len(np.unique(values.round(12))) > 2 else "percentile"
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=RESAMPLES,
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def compare(edited: Sequence[float] | np.ndarray, original: Sequence[float] | np.ndarray) -> Comparison:
    """The mean difference edited - original over queries, its interval, and Student's test in two forms.

    Both tests are two-tailed. `p_unpaired` treats the two sides as independent samples of equal variance, as the code
    of Vast et al. 2025 does (scipy's `ttest_ind`): with the same queries on both sides it is far too cautious.
    `p_paired` is the test of the differences (`ttest_rel`). Equal values give p = 1; fewer than 2 queries give NaN.
    """
    edited, original = _without_noise(edited), _without_noise(original)
    change = _without_noise(edited - original)
    low, high = bootstrap_mean(change)
    return Comparison(len(change), float(change.mean()), low, high, _p_unpaired(edited, original), _p_paired(change))


def _p_unpaired(edited: np.ndarray, original: np.ndarray) -> float:
    if len(edited) < 2:
        return float("nan")
    if np.ptp(edited) == 0 and np.ptp(original) == 0:
        return float(edited[0] == original[0])
    sides = [moment for side in (edited, original) for moment in (side.mean(), side.std(ddof=1), len(side))]
    return float(stats.ttest_ind_from_stats(*sides).pvalue)  # as ttest_ind, which warns when one side is constant


def _p_paired(change: np.ndarray) -> float:
    if len(change) < 2:
        return float("nan")
    if np.ptp(change) == 0:
        return float(change[0] == 0)
    return float(stats.ttest_1samp(change, 0.0).pvalue)


def _without_noise(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Values that differ in the last digits only made equal: their variance is rounding, not a sample's."""
    values = np.asarray(values, dtype=float)
    constant = np.ptp(values) <= 1e-12 * np.abs(values).max()
    return np.full_like(values, values[0]) if constant else values


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values corrected by Holm's method for their number (family-wise error); NaN stays NaN and does not count."""
    p_values = np.asarray(p_values, dtype=float)
    known = ~np.isnan(p_values)
    corrected = np.full(len(p_values), np.nan)
    order = np.flatnonzero(known)[np.argsort(p_values[known], kind="stable")]
    # statsmodels' multipletests has the same numbers and collects garbage at every call, which takes 0.3 s.
    steps = np.arange(len(order), 0, -1) * p_values[order]
    corrected[order] = np.maximum.accumulate(steps).clip(max=1)
    return corrected


class Overlap(NamedTuple):
    """How many things two choices out of `n` share, how many two random choices would, and the chance of as many."""

    shared: int
    expected: float
    p: float
    n: int


def overlap(first: Iterable[str], second: Iterable[str], n: int) -> Overlap:
    """The intersection of two choices out of n things against chance (hypergeometric, one-sided)."""
    one, other = set(first), set(second)
    shared = len(one & other)
    chance = stats.hypergeom(n, len(one), len(other))
    return Overlap(shared, len(one) * len(other) / n, float(chance.sf(shared - 1)), n)


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
    """The places of pairs when whole queries are drawn anew, so often; none where there is one query alone."""
    places = [np.flatnonzero(query == one) for one in dict.fromkeys(query.tolist())]
    generator = np.random.default_rng(seed)
    for _ in range(draws if len(places) > 1 else 0):
        yield np.concatenate([places[k] for k in generator.integers(len(places), size=len(places))])


def percentiles(draws: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95 % interval of resampled values; NaN where there are none."""
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
    return float(low), float(high)


def spearman(x: np.ndarray, y: np.ndarray, query: np.ndarray, *, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rho over pairs, and its 95 % interval with whole queries resampled 1,000 times (percentiles)."""
    rho = float(stats.spearmanr(x, y).statistic)
    draws = [
        stats.spearmanr(x[drawn], y[drawn]).statistic
        for drawn in resampled(query, 1000, seed)
        if np.ptp(x[drawn]) > 0 and np.ptp(y[drawn]) > 0
    ]
    return rho, *percentiles(draws)


def sign_flips(values: np.ndarray, *, draws: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """p-values of "the mean is 0" for every column, corrected for all columns together.

    The signs of whole rows (queries) are flipped at random, or in every way where that is fewer; p is the share of
    flips whose largest |t| over the columns reaches a column's own. Strong control of the family-wise error, sharper
    than Holm where columns move together. With n rows no p is below 2^(1 - n). NaN entries do not count; a column
    without any spread or mean (a site that moves nothing) gets 1.

    Args:
        values: [row, column].
        draws: flips drawn.
        seed: of the flips.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if 2 ** (n - 1) <= draws:  # a flip of all signs changes no |t|
        bits = (np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, size=(draws, n))
        bits[0] = 0
    known, filled = ~np.isnan(values), np.nan_to_num(values)
    squares, counts = (filled**2).sum(0), known.sum(0)
    own = _t_squared(filled.sum(0), squares, counts)
    largest = np.concatenate(
        [
            _t_squared(part @ filled, squares, counts).max(1)
            for part in np.array_split(1.0 - 2 * bits, len(bits) // 256 + 1)
        ]
    )
    p = (largest[:, None] >= own * (1 - 1e-9)).mean(0)
    return np.where(own > 0, p, 1.0)


def _t_squared(sums: np.ndarray, squares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The squared sums over counts and sums of squares: rises with t^2, and stays finite without spread."""
    return np.divide(sums**2, squares * counts, out=np.zeros_like(sums), where=squares > 0)


def simultaneous(values: np.ndarray, *, level: float = 0.95, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of the means of all columns that hold together: mean +- c se.

    c is the quantile of the largest |t| over the columns when the signs of whole rows, centred, are flipped at random:
    the intervals that go with `sign_flips`. NaN with fewer than 2 rows; without width for a column without spread;
    infinite where so few rows cannot give the level.

    Args:
        values: [row, column].
        level: of all intervals together.
        seed: of the flips.
    """
    values = np.asarray(values, dtype=float)
    n, mean = len(values), values.mean(0)
    if n < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    centred = values - mean
    squares = (centred**2).sum(0)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(RESAMPLES, n))
    largest = []
    for part in np.array_split(signs, len(signs) // 500 + 1):
        shift = part @ centred / n
        spread = np.sqrt(np.maximum(squares / n - shift**2, 0) / (n - 1))
        t = np.divide(np.abs(shift), spread, out=np.full_like(shift, np.inf), where=spread > 0)
        largest.append(np.where(squares > 1e-24 * mean**2, t, 0).max(1))
    c = float(np.quantile(np.concatenate(largest), level, method="higher"))
    error = np.sqrt(squares / (n - 1) / n)
    width = np.multiply(c, error, out=np.zeros_like(error), where=error > 0)
    return mean - width, mean + width
