"""The smallest effect that a number of queries can find, and the queries that an effect needs."""

from __future__ import annotations

import numpy as np
from scipy import stats

from mechir.inference.families import LEVEL
from mechir.inference.studentised import FEWEST

POWER = 0.8
"""The chance to find an effect of that size."""
MOST = 100_000
"""The largest answer of `enough`."""


def detectable(spread: float, queries: int, *, tests: int = 1, level: float = LEVEL) -> float:
    """The smallest mean over queries that a two-sided test finds four times in five.

    (t + z) spread / sqrt(queries), with t the point of Student's distribution for `level` shared out over the tests and
    z = .84 for the power. It misleads where values are skewed: then some more queries are needed. Infinite for fewer
    queries than are tested at all. `spread` is the standard deviation over queries.
    """
    if queries < FEWEST:
        return float("inf")
    t = stats.t.ppf(1 - level / (2 * tests), queries - 1)
    return float((t + stats.norm.ppf(POWER)) * spread / queries**0.5)


def enough(effect: float, spread: float, *, tests: int = 1, level: float = LEVEL) -> int:
    """The fewest queries on which an effect of this size is found four times in five; see `detectable`."""
    if not (effect > 0 and spread >= 0):
        return MOST
    sizes = np.unique(np.geomspace(FEWEST, MOST, 2000).astype(int))
    reached = [detectable(spread, int(n), tests=tests, level=level) <= effect for n in sizes]
    return int(sizes[int(np.argmax(reached))]) if any(reached) else MOST
