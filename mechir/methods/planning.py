"""The power of a plan's deciding tests on so many queries, from the spread over queries that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechir.inference import LEVEL, detectable, enough
from mechir.methods import effects
from mechir.sites import is_head

HYPOTHESIS = LEVEL / 3
"""The level of each of the three hypotheses."""


def contrast_spreads(rows: pd.DataFrame, grades: Mapping[str, int]) -> np.ndarray:
    """The standard deviation over queries of every head's relevant - weak, from rows of `attention_by_pair`."""
    heads = rows[(rows["direction"] == "query<-doc") & is_head(rows["site"])]
    means = heads.groupby(["site", "query_id", "grade"], sort=False)["mean_max"].mean().unstack("grade")
    difference = (means[grades["relevant"]] - means[grades["weak"]]).unstack("query_id")
    return difference.std(axis=1).dropna().to_numpy()


def share_spreads(rows: pd.DataFrame) -> np.ndarray:
    """The standard deviation of effect - share gap, in units of the mean gap, of every head that moves the score."""
    heads = rows[is_head(rows["site"])].assign(gap=lambda x: x["donor"] - x["base"])
    means = heads.groupby(["site", "query_id"], sort=False)[["effect", "gap"]].mean()
    effect, gap = (means[name].unstack("query_id") for name in ("effect", "gap"))
    share = effect.mean(axis=1) / gap.mean(axis=1)
    spread = (effect.sub(gap.mul(share, axis=0), axis=0).std(axis=1) / gap.mean(axis=1).abs()).dropna()
    return spread[effect.abs().max(axis=1) > effects.ROUNDING].to_numpy()


def power_table(
    spreads: Mapping[str, Sequence[float] | np.ndarray], counts: Mapping[str, float], queries: int
) -> pd.DataFrame:
    """The smallest values of each measure that so many queries can find.

    `spreads` are the standard deviations over queries of each measure's heads, `counts` the least value of each measure
    that counts.

    Returns:
        `measure`, `queries`, `spread` of the median head and `spread_90`, which nine in ten do not exceed; `finds` and
        `finds_90`, the smallest values found on a head of that spread; `counts`; `queries_for_that`, how many queries
        find that on the median head.
    """
    lines = []
    for measure, values in spreads.items():
        median, wide = np.quantile(values, [0.5, 0.9])
        family: dict[str, Any] = {"tests": len(values), "level": HYPOTHESIS}
        lines.append(
            {
                "measure": measure,
                "queries": queries,
                "spread": median,
                "spread_90": wide,
                "finds": detectable(median, queries, **family),
                "finds_90": detectable(wide, queries, **family),
                "counts": counts[measure],
                "queries_for_that": enough(counts[measure], median, **family),
            }
        )
    return pd.DataFrame(lines)
