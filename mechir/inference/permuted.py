"""Contrasts between the documents of two grades of a query: tested by permuting grades within queries.

If grades say nothing of a quantity, each assignment of a query's grades to its documents was as likely: the test is
exact then, whatever the sizes of the two groups and however skewed the values are (Pesarin 2001, chapter 6). Signs of
whole queries, flipped, would assume that the differences are symmetric, which they are not where one group is small.

It misleads where the grades differ in spread and not in mean and one group is much the smaller: it rejects that, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from mechir.inference import studentised
from mechir.inference.families import step_down
from mechir.inference.studentised import Estimates


class Contrasts(NamedTuple):
    """Contrasts of grades: `estimates` (tests by permutation, intervals over queries), `differences` of each query."""

    estimates: Estimates
    differences: Float[np.ndarray, "query column"]


def grade_contrasts(
    values: Float[np.ndarray, "pair column"],
    query: np.ndarray,
    high: Bool[np.ndarray, "pair"],
    *,
    seed: int = 0,
) -> Contrasts:
    """The mean over queries of (mean of the higher grade - mean of the lower one), column by column.

    `values` are of pairs of the two grades alone; `high` marks the pairs of the higher grade. Queries without both
    grades are left out.

    Returns:
        The statistic of the tests is the estimate over its standard deviation under permutation, which is known:
        sqrt(sum s^2 (1/m + 1/k)) / queries, with s^2 the variance of a query's values, m and k the sizes of its groups.
    """
    places = [np.flatnonzero(query == name) for name in dict.fromkeys(query.tolist())]
    both = [here for here in places if 0 < high[here].sum() < len(here)]
    signed = [np.where(high[here], 1 / high[here].sum(), -1 / (~high[here]).sum()) for here in both]
    differences = np.array([weights @ values[here] for weights, here in zip(signed, both, strict=True)])
    differences = differences.reshape(len(both), values.shape[1])
    estimates = studentised.means(differences, seed=seed)
    variances = [values[here].var(0, ddof=1) * (weights**2).sum() for weights, here in zip(signed, both, strict=True)]
    if not both:
        return Contrasts(estimates, differences)
    spread = np.sqrt(np.sum(variances, axis=0)) / len(both)
    moves = spread > studentised.ALIKE * np.abs(values).max(0)
    scale = np.where(moves, spread, np.inf)
    reference = _permuted(values, both, signed, seed) / scale
    observed = np.abs(estimates.estimate) / scale
    p, corrected = np.ones(len(observed)), np.ones(len(observed))
    p[moves] = (1 + (reference[:, moves] >= observed[moves] * (1 - 1e-9)).sum(0)) / (1 + len(reference))
    corrected[moves] = step_down(observed[moves], reference[:, moves])
    return Contrasts(replace(estimates, p=p, p_corrected=corrected), differences)


def _permuted(
    values: np.ndarray, places: list[np.ndarray], signed: list[np.ndarray], seed: int
) -> Float[np.ndarray, "draw column"]:
    """The |estimate| of each draw, in which the grades of every query are dealt out anew; all columns together."""
    generator = np.random.default_rng(seed)
    total = np.zeros((studentised.RESAMPLES, values.shape[1]))
    for here, weights in zip(places, signed, strict=True):
        dealt = generator.permuted(np.broadcast_to(weights, (len(total), len(weights))), axis=1)
        total += dealt @ values[here]
    return np.abs(total) / len(places)
