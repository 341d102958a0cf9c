"""The mean of very many columns tested together: signs of whole queries are flipped, and the largest statistic kept.

Where a column's mean is 0 because its values are as likely above as below, a query with its signs turned is as likely
as the query itself, whatever columns have to do with each other. Each flip gives a statistic |mean| / rms for every
column; a column's corrected p is the share of flips whose largest statistic reaches its own (max-T). It is exact for
values that are symmetric about 0, and needs n queries for 2^(n - 1) different flips. It misleads where values are
skewed about a mean of 0: the bootstrap-t of `means` assumes less, and takes too long for tens of thousands of columns.

Source: Westfall and Young 1993; Nichols and Holmes 2002 (sign flips).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mechir.inference.studentised import FEWEST

FLIPS = 10_000
"""Flips drawn where there are more than so many in all."""
COLUMNS = 2_000
"""Columns computed together."""


class Flipped(NamedTuple):
    """Of each column its p alone and corrected for all columns; NaN with fewer than `FEWEST` queries."""

    p: Float[np.ndarray, "column"]
    p_corrected: Float[np.ndarray, "column"]


def sign_flips(values: Float[np.ndarray, "query column"], *, seed: int = 0) -> Flipped:
    """The two-sided p of each column's mean being 0. Columns of zeros have p = 1 and are part of the family.

    Args:
        values: one row for each query; a column with a NaN has no p and is no part of the family.
        seed: of the flips.
    """
    n, columns = values.shape
    p, corrected = np.full((2, columns), np.nan)
    measured = ~np.isnan(values).any(0)
    if n < FEWEST or not measured.any():
        return Flipped(p, corrected)
    if not measured.all():  # the others are no part of the family
        p[measured], corrected[measured] = sign_flips(values[:, measured], seed=seed)
        return Flipped(p, corrected)
    signs = _signs(n, seed)
    size = np.sqrt(np.square(values, dtype=np.float64).sum(0))
    unit = (values / np.where(size > 0, size, 1)).astype(np.float32)
    unflipped = np.abs(unit.astype(np.float64).sum(0))
    reached, largest = np.empty(columns), np.zeros(len(signs), dtype=np.float32)
    for start in range(0, columns, COLUMNS):
        some = slice(start, start + COLUMNS)
        drawn = np.abs(signs @ unit[:, some])
        reached[some] = (drawn >= unflipped[some] * (1 - 1e-6)).sum(0)
        np.maximum(largest, drawn.max(1), out=largest)
    largest.sort()
    above = len(signs) - np.searchsorted(largest, unflipped * (1 - 1e-6))
    dead = size == 0
    p, corrected = ((count / len(signs)).clip(1 / len(signs)) for count in (reached, above))
    return Flipped(np.where(dead, 1.0, p), np.where(dead, 1.0, corrected))


def _signs(n: int, seed: int) -> Float[np.ndarray, "flip query"]:
    """All flips but for the sign of the whole, or `FLIPS` drawn ones; the first is the sample itself."""
    if 2 ** (n - 1) <= FLIPS:
        rest = list(itertools.product((1.0, -1.0), repeat=n - 1))
        return np.array([(1.0, *signs) for signs in rest], dtype=np.float32)
    signs = np.random.default_rng(seed).choice(np.array([1, -1], dtype=np.float32), (FLIPS, n))
    signs[0] = 1
    return signs
