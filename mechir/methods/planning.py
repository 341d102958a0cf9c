"""What the deciding tests of a plan can find on so many queries, from the spread over queries that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mechir.inference import LEVEL, detectable, enough
from mechir.methods import effects
from mechir.sites import is_head

HYPOTHESIS = LEVEL / 3
"""The level of each of the three hypotheses."""


def contrast_spreads(rows: pd.DataFrame, grades: Mapping[str, int]) -> np.ndarray:
    """Of every head the standard deviation over queries of relevant - weak, of rows of `attention_by_pair`."""
    own = rows[(rows["direction"] == "query<-doc") & is_head(rows["site"])]
    means = own.groupby(["site", "query_id", "grade"], sort=False)["mean_max"].mean().unstack("grade")
    difference = (means[grades["relevant"]] - means[grades["weak"]]).unstack("query_id")
    return difference.std(axis=1).dropna().to_numpy()


def share_spreads(rows: pd.DataFrame) -> np.ndarray:
    """Of every head that moves the score the standard deviation of effect - share gap, in units of the mean gap."""
    own = rows[is_head(rows["site"])]
    means = (
        own.assign(gap=own["donor"] - own["base"]).groupby(["site", "query_id"], sort=False)[["effect", "gap"]].mean()
    )
    effect, gap = (means[name].unstack("query_id") for name in ("effect", "gap"))
    share = effect.mean(axis=1) / gap.mean(axis=1)
    spread = (effect.sub(gap.mul(share, axis=0), axis=0).std(axis=1) / gap.mean(axis=1).abs()).dropna()
    return spread[effect.abs().max(axis=1) > effects.ROUNDING].to_numpy()


def power_table(
    spreads: Mapping[str, Sequence[float] | np.ndarray], counts: Mapping[str, float], queries: int
) -> pd.DataFrame:
    """What so many queries can find of each measure.

    Args:
        spreads: by measure, the standard deviations of its heads over queries.
        counts: by measure, the value from which on it counts.
        queries: that the tests will be on.

    Returns:
        `measure`, `queries`, `spread` of the median head and `spread_90`, which nine in ten do not exceed; `finds` and
        `finds_90`, the smallest values found on a head of that spread; `counts`; `queries_for_that`, how many queries
        find that on the median head.
    """
    lines = []
    for measure, own in spreads.items():
        median, wide = np.quantile(own, [0.5, 0.9])
        line = {"measure": measure, "queries": queries, "spread": median, "spread_90": wide}
        line |= {
            name: detectable(of, queries, tests=len(own), level=HYPOTHESIS)
            for name, of in (("finds", median), ("finds_90", wide))
        }
        line |= {
            "counts": counts[measure],
            "queries_for_that": enough(counts[measure], median, tests=len(own), level=HYPOTHESIS),
        }
        lines.append(line)
    return pd.DataFrame(lines)
