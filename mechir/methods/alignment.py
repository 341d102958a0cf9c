"""Components of two models, aligned by what was measured of them, and whether what was held out agrees.

A profile is what was measured of a component. Profiles of two models say which components look alike; that they look
alike is no evidence, for they were paired so. Evidence is a measure that the profiles do not hold. Chance is the same
alignment after the profiles of the other model were dealt out anew among its components. Dealing them out anew gives
the same alignment under other names, so it is enough to deal out the values that were held out; `among` names groups,
such as layers, within which they are dealt out, and what the groups explain is then no agreement.

The components of a model are all there are, not a sample: an interval here says how much a number hangs on single
ones.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from statsmodels.stats.proportion import proportion_confint

from mechir.methods.agreement import Agreement, correlations
from mechir.methods.statistics import RESAMPLES, percentiles

Profiles = Float[np.ndarray, "component measure"]
Others = Float[np.ndarray, "other measure"]
Values = Float[np.ndarray, "component"]
Groups = Int[np.ndarray, "other"]
Alignment = tuple[Int[np.ndarray, "pair"], Int[np.ndarray, "pair"]]
"""The places of components in their model, and of those that they are aligned with in the other."""


def distances(one: Profiles, other: Others) -> Float[np.ndarray, "component other"]:
    """How unlike components of two models are: the root mean square difference of their profiles.

    Each measure is standardised within its model, so that its scale there decides nothing; one without spread is 0.
    """
    sides = []
    for profiles in (one, other):
        centred = profiles - profiles.mean(axis=0)
        spread = centred.std(axis=0)
        sides.append(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12))
    squares: Float[np.ndarray, "component other"] = ((sides[0][:, None] - sides[1]) ** 2).mean(axis=2)
    return np.sqrt(squares)


def align(distance: Float[np.ndarray, "component other"]) -> Alignment:
    """Pairs components one to one so that the sum of squared distances is least; the larger model has some left."""
    one, other = linear_sum_assignment(distance**2)
    return one, other


def held_out(
    x: Values,
    y: Float[np.ndarray, "other"],
    aligned: Alignment,
    *,
    among: Groups | None = None,
    draws: int = RESAMPLES,
    seed: int = 0,
) -> Agreement:
    """Pearson's r of a held-out measure over aligned components; NaN where a side is constant or has fewer than 3.

    p is one-sided: how often the values of the other model, dealt out anew, agree as much. The interval is of aligned
    pairs resampled, as they are aligned.
    """
    one, other = aligned
    left, right = x[one], y[other]
    if len(one) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return Agreement(*[float("nan")] * 5)
    r = float(correlations(left[None], right[None])[0])
    chance = correlations(left[None], _dealt(y, among, draws, seed)[:, other])
    drawn = np.random.default_rng(seed).integers(len(one), size=(draws, len(one)))
    again = correlations(left[drawn], right[drawn])
    interval = percentiles(again[~np.isnan(again)])
    chance = np.nan_to_num(chance)
    return Agreement(r, float(chance.mean()), *interval, _p(chance, r, draws))


def found_again(
    x: Bool[np.ndarray, "component"],
    y: Bool[np.ndarray, "other"],
    aligned: Alignment,
    *,
    among: Groups | None = None,
    draws: int = RESAMPLES,
    seed: int = 0,
) -> Agreement:
    """Of the components of which something holds, the share aligned with one of which it holds too.

    Wilson's interval; p one-sided, with what holds of the other model dealt out anew; NaN where it holds of none.
    """
    one, other = aligned
    if not x.any():
        return Agreement(*[float("nan")] * 5)
    n, there = int(x.sum()), int((x[one] & y[other]).sum())
    chance = (x[one] & _dealt(y, among, draws, seed)[:, other]).sum(axis=1)
    low, high = proportion_confint(there, n, method="wilson")
    return Agreement(there / n, float(chance.mean() / n), float(low), float(high), _p(chance, float(there), draws))


def same_numbers(
    aligned: Alignment, *, among: Int[np.ndarray, "component"] | None = None, draws: int = RESAMPLES, seed: int = 0
) -> Agreement:
    """The share of components aligned with their own number, of two models of one numbering: a known answer.

    Wilson's interval; p one-sided, with the numbers dealt out anew.
    """
    one, other = aligned
    n, there = len(one), int((one == other).sum())
    chance = (_dealt(np.arange(n), among, draws, seed)[:, other] == one).sum(axis=1)
    low, high = proportion_confint(there, n, method="wilson")
    return Agreement(there / n, float(chance.mean() / n), float(low), float(high), _p(chance, float(there), draws))


def _p(chance: np.ndarray, value: float, draws: int) -> float:
    """How often chance gives as much, the value itself counted as one draw."""
    return float((1 + (chance >= value - 1e-12).sum()) / (1 + draws))


def _dealt(values: np.ndarray, among: Groups | None, draws: int, seed: int) -> np.ndarray:
    """The values dealt out anew among the components of each group, in a row for each draw."""
    generator, dealt = np.random.default_rng(seed), np.tile(values, (draws, 1))
    for group in [None] if among is None else np.unique(among):
        places = np.arange(len(values)) if group is None else np.flatnonzero(among == group)
        dealt[:, places] = generator.permuted(dealt[:, places], axis=1)
    return dealt
