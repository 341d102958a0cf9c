"""Means and shares over queries: the interval and the test of exactly the number that is reported (bootstrap-t).

Whole queries are drawn anew 10,000 times. Each resample gives t* = (estimate* - estimate) / se*, and the distribution
of |t*| takes the place of Student's: it reflects how skewed the values are, and how much the spread of so few of them
varies. The interval is estimate +- c se, with c the 95 % point of |t*| (the symmetric bootstrap-t); a test
rejects where the interval leaves 0 out.

A share is the mean effect over the mean gap, so a query weighs as much as its gap; its se is that of the residuals
effect - share gap. A mean is a share of gaps of 1.

It assumes that queries are drawn independently of one another. It misleads below `FEWEST` queries, where intervals are
Student's and nothing is tested; and where a tail is so heavy that the sample does not show it (log-normal values: see
the table in docs/inference.md). Sources: Hall 1988 and 1992 (bootstrap-t, symmetric intervals); Westfall and Young 1993
(step-down max-T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from mechir.inference.families import step_down

CONFIDENCE = 0.95
"""The confidence of every interval."""
RESAMPLES = 10_000
"""Draws of the queries; with thousands of queries fewer, down to 1,000."""
FEWEST = 6
"""Queries below which nothing is tested: with 5, all on one side of 0, chance does that once in 16."""
CONCENTRATED = 1 / 3
"""A column with (sum |x|)^2 / (n sum x^2) below this hangs on few queries and is tested apart: .64 for normal values,
.54 for exponential ones, k / n where k of n queries move alike and the others not at all."""
ALIKE = 1e-12
"""Values that differ by this share of the largest are equal: what is left is rounding, not spread."""
CELLS = 20_000_000
"""The most numbers in a table of resamples."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """The estimate of each column, its interval and its tests; all arrays have one value for each column.

    Attributes:
        estimate: the mean, or the share.
        low: the lower end of the 95 % interval of this column alone.
        high: the upper end of it.
        low_all: the lower ends of intervals that hold for all tested columns together.
        high_all: the upper ends of these.
        p: two-sided, of this column alone.
        p_corrected: two-sided, corrected for all tested columns together (step-down max-T).
        queries: the number of queries with a value. A column with fewer than `FEWEST` is not tested and not part of
            the family: both p are NaN, and so are `low_all` and `high_all`. Nor is one that is 0 for all but fewer than
            that: its p are 1.
    """

    estimate: Float[np.ndarray, "column"]
    low: Float[np.ndarray, "column"]
    high: Float[np.ndarray, "column"]
    low_all: Float[np.ndarray, "column"]
    high_all: Float[np.ndarray, "column"]
    p: Float[np.ndarray, "column"]
    p_corrected: Float[np.ndarray, "column"]
    queries: np.ndarray


def mean_interval(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over queries.

    NaN with fewer than 2 values, Student's with fewer than 6, without width where all are equal.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        return float("nan"), float("nan")
    estimates = means(values[:, None], seed=seed)
    return float(estimates.low[0]), float(estimates.high[0])


def mean_row(values: Sequence[float] | np.ndarray, name: str = "") -> dict[str, float]:
    """The mean over queries and its interval as `estimate`, `low`, `high`, or as `name`, `name_low`, `name_high`.

    NaN where a query has no value, as in `means`.
    """
    values = np.asarray(values, dtype=float)
    present = values[~np.isnan(values)]
    begins, (low, high) = f"{name}_" if name else "", mean_interval(values)
    mean = float(present.mean()) if len(present) else float("nan")
    return {name or "estimate": mean, f"{begins}low": low, f"{begins}high": high}


def means(values: Float[np.ndarray, "query column"], *, seed: int = 0) -> Estimates:
    """The mean over queries of each column, tested against 0; NaN where a query has no value."""
    values = np.asarray(values, dtype=float)
    return shares(values, np.ones((len(values), 1)), seed=seed)


def shares(
    effects: Float[np.ndarray, "query column"], gaps: Float[np.ndarray, "query _"], *, seed: int = 0
) -> Estimates:
    """The mean effect over the mean gap of each column, tested against 0; NaN where a query has no effect.

    `gaps` is one column for all, or one for each.
    """
    effects = np.asarray(effects, dtype=float)
    known = ~np.isnan(effects)
    parts = _Parts.from_values(effects, np.asarray(gaps, dtype=float), known)
    tested = (parts.queries >= FEWEST) & parts.spread & (parts.moving >= FEWEST)
    reference = np.full((_draws(len(effects)), tested.sum()), np.nan, dtype=np.float32)
    if tested.any():
        reference[:] = _resampled(parts, tested, seed)
    return _estimates(parts, tested, reference)


@dataclass(frozen=True, eq=False)
class _Parts:
    """The parts of an estimate by column: which values are known, the ratio, its standard error, and its residuals.

    `spread`: whether the values differ; `moving`: how many are not 0; `heavy`: whether it hangs on few of them.
    """

    known: np.ndarray
    gaps: np.ndarray
    queries: np.ndarray
    ratio: np.ndarray
    error: np.ndarray
    residuals: np.ndarray
    spread: np.ndarray
    moving: np.ndarray
    heavy: np.ndarray

    @classmethod
    def from_values(cls, effects: np.ndarray, gaps: np.ndarray, known: np.ndarray) -> _Parts:
        if known.all() and gaps.shape[1] == 1:
            known = known[:, :1]  # one column speaks for all: the sums below are then taken once
        filled, weights = np.where(known, effects, 0.0), np.where(known, gaps, 0.0)
        n = np.broadcast_to(known.sum(0), effects.shape[1:])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = filled.sum(0) / weights.sum(0)
            residuals = np.where(known, filled - ratio * weights, 0.0)
            squares = (residuals**2).sum(0)
            error = np.sqrt(squares * n / (n - 1)) / np.abs(weights.sum(0))
            size, largest = np.abs(filled), np.abs(filled).max(0, initial=0)
            spread = np.abs(residuals).max(0, initial=0) > ALIKE * largest
            heavy = size.sum(0) ** 2 < CONCENTRATED * n * (size**2).sum(0)
        moving = (size > ALIKE * largest).sum(0)
        return cls(known, weights, n, ratio, np.where(spread, error, 0.0), residuals, spread, moving, heavy)


@lru_cache(maxsize=4)
def _weights(n: int, draws: int, seed: int) -> np.ndarray:
    """The number of times that each of n queries is in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(float)


def _draws(n: int) -> int:
    return min(RESAMPLES, max(1000, CELLS // max(n, 1)))


def _resampled(parts: _Parts, columns: np.ndarray, seed: int) -> np.ndarray:
    """|t*| of these columns in every resample; infinite where a resample has no spread and another ratio."""
    n = len(parts.residuals)
    drawn, u = _weights(n, _draws(n), seed), parts.residuals[:, columns]
    g, known = (x if parts.gaps.shape[1] == 1 else x[:, columns] for x in (parts.gaps, parts.known))
    squares = (u**2).sum(0)
    draws = []
    for w in np.array_split(drawn, max(1, drawn.shape[0] * u.shape[1] // 1_000_000)):
        size, total = w @ known, w @ g
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = (w @ u) / total
            rest = w @ u**2 - 2 * shift * (w @ (u * g)) + shift**2 * (w @ g**2)
            flat = (rest <= 1e-10 * squares) | (size < 2)
            t = np.abs(shift * total) / np.sqrt(rest * size / (size - 1))
        still = np.abs(shift * total) <= 1e-10 * np.sqrt(squares)
        draws.append(np.where(flat, np.where(still | (size < 1), 0.0, np.inf), t))
    return np.concatenate(draws)


def _estimates(parts: _Parts, tested: np.ndarray, reference: np.ndarray) -> Estimates:
    """The intervals and tests that |t*| of the tested columns gives; Student's intervals for the others."""
    m, n = len(parts.ratio), parts.queries
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(parts.ratio) / parts.error
    student = stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(n - 1, 1))
    point = student.copy()
    if tested.any():
        high = np.quantile(reference, CONFIDENCE, axis=0, method="higher")
        point[tested] = np.where(np.isfinite(high), high, student[tested])
    p, corrected, wide = (np.full(m, np.nan) for _ in range(3))
    level = (n >= FEWEST) & ~tested  # all values equal: above 0 or below it every time; or hardly any that moves
    equal = level & ~parts.spread & (parts.ratio != 0)
    family = tested | equal
    for place in _together(parts, tested):
        there = reference[:, np.flatnonzero(tested).searchsorted(place)]
        share = len(place) / family.sum()
        p[place] = (1 + (there >= t[place] * (1 - 1e-9)).sum(0)) / (1 + len(there))
        corrected[place] = step_down(t[place], there) / share
        wide[place] = np.quantile(there.max(1), 1 - (1 - CONFIDENCE) * share, method="higher")
    p[level], corrected[level] = 1.0, 1.0
    p[equal] = np.maximum(2.0 ** (1 - n[equal]), 1 / (1 + RESAMPLES))
    corrected[equal] = p[equal] * family.sum()
    wide[level] = point[level]
    few = n < 2
    error, estimate = np.where(few, np.nan, parts.error), parts.ratio
    half, all_half = (np.where(error > 0, x * error, error * 0) for x in (point, wide))
    all_half = np.where(np.isnan(wide), np.nan, all_half)
    return Estimates(
        estimate,
        estimate - half,
        estimate + half,
        estimate - all_half,
        estimate + all_half,
        p,
        corrected.clip(max=1),
        np.asarray(n),
    )


def _together(parts: _Parts, tested: np.ndarray) -> list[np.ndarray]:
    """The places of columns that share one distribution of the largest |t*|.

    Columns are grouped by their number of queries, and by whether they hang on few of them: such a column would
    otherwise set the bar for all. The level is shared out between the groups by their size.
    """
    keys = {place: (int(parts.queries[place]), bool(parts.heavy[place])) for place in np.flatnonzero(tested)}
    return [np.array([place for place in keys if keys[place] == key]) for key in dict.fromkeys(keys.values())]
