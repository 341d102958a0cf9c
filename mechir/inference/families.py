"""Corrections for several tests: a family of columns, a few planned hypotheses, tests that all must hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

LEVEL = 0.05
"""The significance level of the project: a corrected p below this counts."""


def step_down(
    observed: Float[np.ndarray, "column"], reference: Float[np.ndarray, "draw column"]
) -> Float[np.ndarray, "column"]:
    """p-values corrected for all columns together: step-down max-T (Westfall and Young 1993, algorithm 2.8).

    Columns are taken from the largest statistic to the smallest; each is compared, draw by draw, with the largest
    statistic of itself and all that follow. Controls the chance of any false rejection, whichever columns are true,
    where the draws have the joint distribution of the statistics under the null hypothesis; it uses how columns move
    together, so it is sharper than Holm. No p is below 1 / (1 + draws). Statistics are 0 or more; an infinite one in
    `reference`, which holds those of every draw, counts as larger than anything.
    """
    order = np.argsort(-observed, kind="stable")
    reached = np.zeros(len(observed))
    for part in np.array_split(reference, max(1, reference.size // 4_000_000)):
        largest = np.maximum.accumulate(part[:, order[::-1]], axis=1)[:, ::-1]
        reached += (largest >= observed[order] * (1 - 1e-9)).sum(0)
    p = np.empty(len(observed))
    p[order] = np.maximum.accumulate((1 + reached) / (1 + len(reference)))
    return p


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values corrected by Holm's method for their number (family-wise error); NaN stays NaN and does not count.

    It holds however the tests depend on each other (Holm 1979).
    """
    p_values = np.asarray(p_values, dtype=float)
    known = ~np.isnan(p_values)
    corrected = np.full(len(p_values), np.nan)
    order = np.flatnonzero(known)[np.argsort(p_values[known], kind="stable")]
    # statsmodels' multipletests has the same numbers and collects garbage at every call, which takes 0.3 s.
    steps = np.arange(len(order), 0, -1) * p_values[order]
    corrected[order] = np.maximum.accumulate(steps).clip(max=1)
    return corrected


def intersection_union(*p_values: float) -> float:
    """The p of "all of these hold": the largest (Berger 1982); NaN where one is not known.

    Each part is tested at the full level: to claim all wrongly, one must be claimed wrongly. Cautious where several
    parts are uncertain at once.
    """
    return float("nan") if any(np.isnan(p) for p in p_values) else max(p_values)
