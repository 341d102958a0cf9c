"""Agreement of two measures on the components of one model: their order, their first, their signs, against chance.

The components of a model are all there are, not a sample. An interval here, components resampled, says how much the
number hangs on single ones; it says nothing of how sure each value is. Chance is any pairing of one measure's values
with the other's, so that two measures which both grow with depth agree beyond it, whatever they measure.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from mechir.methods.statistics import RESAMPLES, overlap, percentiles

Values = Float[np.ndarray, "component"]


class Agreement(NamedTuple):
    """The agreement of two measures, what chance gives, the 95 % interval, and the p of chance giving as much."""

    value: float
    expected: float
    low: float
    high: float
    p: float


def rank_agreement(x: Values, y: Values, *, draws: int = RESAMPLES, seed: int = 0) -> Agreement:
    """Spearman's rho; p two-sided over `draws` pairings at random; NaN where a side is constant or has fewer than 3."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Agreement(*[float("nan")] * 5)
    ranks = np.stack([stats.rankdata(x), stats.rankdata(y)])
    rho = float(correlations(*ranks[:, None])[0])
    generator = np.random.default_rng(seed)
    paired = correlations(ranks[:1], generator.permuted(np.tile(ranks[1], (draws, 1)), axis=1))
    p = (1 + (np.abs(paired) >= abs(rho) - 1e-12).sum()) / (1 + draws)
    drawn = generator.integers(len(x), size=(draws, len(x)))
    again = correlations(stats.rankdata(x[drawn], axis=1), stats.rankdata(y[drawn], axis=1))
    return Agreement(rho, 0.0, *percentiles(again[~np.isnan(again)]), float(p))


def first(x: Values, y: Values, k: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The places of the k largest components of each measure.

    Ties are broken at random, for each measure anew, so that components which both leave at 0 are not shared by it.
    """
    tops = [np.flatnonzero(_places(values, seed + side) < k) for side, values in enumerate((x, y))]
    return tops[0], tops[1]


def top_agreement(x: Values, y: Values, k: int, *, draws: int = RESAMPLES, seed: int = 0) -> Agreement:
    """Jaccard's index of the k largest of each (`first`): shared / (2 k - shared); p one-sided (hypergeometric)."""
    generator = np.random.default_rng(seed)
    chosen, other = (map(str, side.tolist()) for side in first(x, y, k, seed=seed))
    both, counts = overlap(chosen, other, len(x)), np.arange(k + 1)
    expected = stats.hypergeom.pmf(counts, len(x), k, k) @ (counts / (2 * k - counts))
    drawn = generator.integers(len(x), size=(draws, len(x)))
    again = [_places(values, seed + side)[drawn] for side, values in enumerate((x, y))]
    inside = [places.argsort(axis=1, kind="stable").argsort(axis=1) < k for places in again]
    shared = (inside[0] & inside[1]).sum(axis=1)
    interval = percentiles(shared / (2 * k - shared))
    return Agreement(both.shared / (2 * k - both.shared), float(expected), *interval, both.p)


def sign_agreement(x: Values, y: Values, *, draws: int = RESAMPLES, seed: int = 0) -> Agreement:
    """The share of components with the same sign; Wilson's interval; p one-sided over `draws` pairings at random."""
    signs = np.sign(x), np.sign(y)
    same = int((signs[0] == signs[1]).sum())
    expected = sum((signs[0] == sign).mean() * (signs[1] == sign).mean() for sign in (-1, 0, 1))
    generator = np.random.default_rng(seed)
    paired = (generator.permuted(np.tile(signs[1], (draws, 1)), axis=1) == signs[0]).sum(axis=1)
    low, high = proportion_confint(same, len(x), method="wilson")
    p = (1 + (paired >= same).sum()) / (1 + draws)
    return Agreement(same / len(x), float(expected), float(low), float(high), float(p))


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of each row with the same row of the other; NaN without spread."""
    sides = [side - side.mean(axis=1, keepdims=True) for side in (x, y)]
    spread = np.sqrt((sides[0] ** 2).sum(axis=1) * (sides[1] ** 2).sum(axis=1))
    products = (sides[0] * sides[1]).sum(axis=1)
    return np.divide(products, spread, out=np.full(products.shape, np.nan), where=spread > 0)


def _places(values: Values, seed: int) -> Int[np.ndarray, "component"]:
    """The place of each component from the largest value, 0, on."""
    return np.lexsort((np.random.default_rng(seed).random(len(values)), -values)).argsort()
