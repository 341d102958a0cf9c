"""Whether two measures agree on the components of one model: their order, their first, their signs, against chance.

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
    """How far two measures agree, what chance gives, the 95 % interval, and the p of chance giving as much."""

    value: float
    expected: float
    low: float
    high: float
    p: float


NONE = Agreement(*[float("nan")] * 5)


def rank_agreement(one: Values, two: Values, *, draws: int = RESAMPLES, seed: int = 0) -> Agreement:
    """Spearman's rho; p two-sided over `draws` pairings at random; NaN where a side is constant or has fewer than 3."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return NONE
    ranks = np.stack([stats.rankdata(one), stats.rankdata(two)])
    rho = float(_correlations(*ranks[:, None])[0])
    generator = np.random.default_rng(seed)
    paired = _correlations(ranks[:1], generator.permuted(np.tile(ranks[1], (draws, 1)), axis=1))
    p = (1 + (np.abs(paired) >= abs(rho) - 1e-12).sum()) / (1 + draws)
    drawn = generator.integers(len(one), size=(draws, len(one)))
    again = _correlations(stats.rankdata(one[drawn], axis=1), stats.rankdata(two[drawn], axis=1))
    return Agreement(rho, 0.0, *percentiles(again[~np.isnan(again)]), float(p))


def first(one: Values, two: Values, k: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which k components are the largest of each measure, by their place.

    Ties are broken at random, for each measure anew, so that components which both leave at 0 are not shared by it.
    """
    chosen = [np.flatnonzero(_places(values, seed + side) < k) for side, values in enumerate((one, two))]
    return chosen[0], chosen[1]


def top_agreement(one: Values, two: Values, k: int, *, draws: int = RESAMPLES, seed: int = 0) -> Agreement:
    """Jaccard's index of the k largest of each: shared / (2 k - shared); p one-sided (hypergeometric).

    Which they are, `first` says.
    """
    generator = np.random.default_rng(seed)
    chosen, other = (map(str, side.tolist()) for side in first(one, two, k, seed=seed))
    found, counts = overlap(chosen, other, len(one)), np.arange(k + 1)
    expected = stats.hypergeom.pmf(counts, len(one), k, k) @ (counts / (2 * k - counts))
    drawn = generator.integers(len(one), size=(draws, len(one)))
    inside = [_first(_places(values, seed + side)[drawn], k) for side, values in enumerate((one, two))]
    shared = (inside[0] & inside[1]).sum(axis=1)
    interval = percentiles(shared / (2 * k - shared))
    return Agreement(found.shared / (2 * k - found.shared), float(expected), *interval, found.p)


def sign_agreement(one: Values, two: Values, *, draws: int = RESAMPLES, seed: int = 0) -> Agreement:
    """The share of components with the same sign; Wilson's interval; p one-sided over `draws` pairings at random."""
    signs = np.sign(one), np.sign(two)
    same = int((signs[0] == signs[1]).sum())
    expected = sum((signs[0] == sign).mean() * (signs[1] == sign).mean() for sign in (-1, 0, 1))
    generator = np.random.default_rng(seed)
    paired = (generator.permuted(np.tile(signs[1], (draws, 1)), axis=1) == signs[0]).sum(axis=1)
    low, high = proportion_confint(same, len(one), method="wilson")
    p = (1 + (paired >= same).sum()) / (1 + draws)
    return Agreement(same / len(one), float(expected), float(low), float(high), float(p))


def _correlations(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Pearson's r of each row with the same row of the other; NaN without spread."""
    sides = [side - side.mean(axis=1, keepdims=True) for side in (one, two)]
    spread = np.sqrt((sides[0] ** 2).sum(axis=1) * (sides[1] ** 2).sum(axis=1))
    products = (sides[0] * sides[1]).sum(axis=1)
    return np.divide(products, spread, out=np.full(products.shape, np.nan), where=spread > 0)


def _places(values: Values, seed: int) -> Int[np.ndarray, "component"]:
    """The place of each component from the largest value, 0, on."""
    order = np.lexsort((np.random.default_rng(seed).random(len(values)), -values))
    places = np.empty(len(values), dtype=int)
    places[order] = np.arange(len(values))
    return places


def _first(places: np.ndarray, k: int) -> np.ndarray:
    """Which of each row are among its k smallest; those that were drawn twice come one after the other."""
    inside = np.zeros(places.shape, dtype=bool)
    np.put_along_axis(inside, np.argsort(places, axis=1, kind="stable")[:, :k], True, axis=1)
    return inside
