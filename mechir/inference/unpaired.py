"""The difference of two means over different queries: bootstrap-t with both groups drawn anew.

Queries are drawn within each group 10,000 times; t* = (difference* - difference) / se*, with se^2 = s1^2 / n1 +
s2^2 / n2, takes the place of Welch's t. The interval is difference +- c se, with c the 95 % point of |t*|; p is how
often |t*| is as large as |t|. Below `FEWEST` queries in a group the interval is Welch's and nothing is tested.

It assumes that the queries of the groups are drawn independently. Source: Efron and Tibshirani 1993, section 16.2.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from mechir.inference.studentised import CONFIDENCE, FEWEST, RESAMPLES


class Difference(NamedTuple):
    """The mean of one group less that of another, its 95 % interval, and a two-sided p, NaN where nothing is tested."""

    estimate: float
    low: float
    high: float
    p: float


def difference(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray, *, seed: int = 0) -> Difference:
    """The mean of `one` less the mean of `other`, values of different queries; NaN where a query has no value."""
    groups = [np.asarray(values, dtype=float) for values in (one, other)]
    groups = [values[~np.isnan(values)] for values in groups]
    n = np.array([len(values) for values in groups])
    if n.min() < 1:
        return Difference(np.nan, np.nan, np.nan, np.nan)
    estimate = float(groups[0].mean() - groups[1].mean())
    if n.min() < 2:
        return Difference(estimate, np.nan, np.nan, np.nan)
    parts = np.array([values.var(ddof=1) / len(values) for values in groups])
    error = float(np.sqrt(parts.sum()))
    if error <= 1e-12 * max(np.abs(values).max() for values in groups):  # all alike in both groups
        tested = n.min() >= FEWEST
        p = (2.0 ** (1 - n.min()) if estimate else 1.0) if tested else np.nan
        return Difference(estimate, estimate, estimate, p)
    freedom = parts.sum() ** 2 / (parts**2 / (n - 1)).sum()
    point, p = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)), np.nan
    if n.min() >= FEWEST:
        t = _resampled(groups, estimate, seed)
        high, observed = float(np.quantile(t, CONFIDENCE, method="higher")), abs(estimate) / error
        if np.isfinite(high):
            point, p = high, float((1 + (t >= observed * (1 - 1e-9)).sum()) / (1 + len(t)))
        else:  # too many resamples without spread: Welch's interval, and Welch's p
            p = float(2 * stats.t.sf(observed, freedom))
    return Difference(estimate, estimate - point * error, estimate + point * error, p)


def _resampled(groups: list[np.ndarray], estimate: float, seed: int) -> Float[np.ndarray, "draw"]:
    """|t*| of every resample; infinite where it has no spread and another difference.

    Each group draws by its own values, so that the order of the groups decides nothing.
    """
    shift, square = np.zeros(RESAMPLES) - estimate, np.zeros(RESAMPLES)
    for sign, values in zip((1, -1), groups, strict=True):
        n = len(values)
        generator = np.random.default_rng([seed, zlib.crc32(values.tobytes())])
        drawn = values[generator.integers(n, size=(RESAMPLES, n))]
        shift += sign * drawn.mean(1)
        square += drawn.var(1, ddof=1) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(shift) / np.sqrt(square)
    return np.where(square > 1e-20 * np.square(shift).max(), t, np.where(np.abs(shift) < 1e-12, 0.0, np.inf))
