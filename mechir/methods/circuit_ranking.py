"""The ranking that a circuit alone makes: its nDCG@10, and its agreement with the ranking of the whole model.

The documents of a query are the bases of its contrasts; a document with several fillers has the mean of their scores.
It misleads where a query has few documents: with two or three of them any order has a high nDCG.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from mechir import inference
from mechir.methods.ranking import ndcg


def ranking_table(
    ids: pd.DataFrame,
    intact: Float[np.ndarray, "contrast"],
    only: Float[np.ndarray, "contrast circuit"],
    judged: pd.DataFrame,
) -> pd.DataFrame:
    """The ranking of the bases with each circuit alone.

    Args:
        ids: `query_id` and `doc_id` of each contrast.
        intact: the scores with all edges.
        only: the scores with each circuit alone.
        judged: the documents that the ideal ranking may use: `query_id`, `doc_id`, `grade`.

    Returns:
        One line for each circuit: `ndcg`, the mean over queries, and `kendall`, the mean over queries of Kendall's
        tau-b between the scores of the circuit and those of the model, each with `_low`, `_high` (95 % over queries)
        and `_queries`; `ndcg_loss`, the nDCG@10 of the model less that of the circuit, with `_low` and `_high`. Queries
        without a relevant document have no nDCG, those with one document and those whose scores are all equal no tau.
    """
    pairs = [ids["query_id"], ids["doc_id"]]
    whole = pd.Series(np.asarray(intact, dtype=float)).groupby(pairs, sort=False).mean().rename("score")
    before = _ndcg(whole, judged)
    lines = []
    for scores in np.asarray(only, dtype=float).T:
        alone = pd.Series(scores).groupby(pairs, sort=False).mean().rename("score")
        after, tau = _ndcg(alone, judged), kendall(whole, alone)
        line = inference.mean_row(after, "ndcg") | {"ndcg_queries": len(after)}
        line |= inference.mean_row(before - after, "ndcg_loss")
        lines.append(line | inference.mean_row(tau, "kendall") | {"kendall_queries": int(np.isfinite(tau).sum())})
    return pd.DataFrame(lines)


def kendall(first: pd.Series, second: pd.Series) -> Float[np.ndarray, "query"]:
    """Kendall's tau-b within each query between scores by query and document; NaN where either does not vary."""
    both = pd.DataFrame({"first": first, "second": second})
    values: Sequence[float] = [
        stats.kendalltau(rows["first"], rows["second"]).statistic if len(rows) > 1 else np.nan
        for _, rows in both.groupby(level=0, sort=False)
    ]
    return np.array(values, dtype=float)


def _ndcg(scores: pd.Series, judged: pd.DataFrame) -> Float[np.ndarray, "query"]:
    return ndcg(scores.rename_axis(["query_id", "doc_id"]).reset_index(), judged)["value"].to_numpy(dtype=float)
