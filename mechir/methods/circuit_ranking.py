"""The ranking that a circuit alone makes: how good it is, and how well it agrees with that of the whole model.

The documents of a query are the bases of its contrasts; a document with several fillers has the mean of their scores.
It misleads where a query has few documents: with two or three of them any order has a high nDCG.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from mechir import inference
from mechir.methods.evaluation import NDCG, per_query, ranking_measures


def ranking_table(
    ids: pd.DataFrame,
    intact: Float[np.ndarray, "contrast"],
    only: Float[np.ndarray, "contrast circuit"],
    judged: pd.DataFrame,
    evaluate: str = NDCG,
) -> pd.DataFrame:
    """The ranking of the bases with each circuit alone.

    Args:
        ids: `query_id` and `doc_id` of each contrast.
        intact: the scores with all edges.
        only: the scores with each circuit alone.
        judged: the documents that the ideal ranking may use: `query_id`, `doc_id`, `grade`.
        evaluate: a measure of ir_measures.

    Returns:
        One line for each circuit: `ndcg`, or a column of the measure's name, the mean over queries, and `kendall`, the
        mean over queries of Kendall's tau-b between the scores of the circuit and those of the model, each with `_low`,
        `_high` (95 % over queries) and `_queries`; `ndcg_loss`, the measure of the model less that of the circuit, with
        `_low` and `_high`. Queries without a relevant document have no value, those with one document and those whose
        scores are all equal no tau.
    """
    pairs = [ids["query_id"], ids["doc_id"]]
    whole = pd.Series(np.asarray(intact, dtype=float)).groupby(pairs, sort=False).mean().rename("score")
    name, (measure,) = column_of(evaluate), ranking_measures([evaluate])
    before = _per_query(whole, judged, measure)
    lines = []
    for scores in np.asarray(only, dtype=float).T:
        alone = pd.Series(scores).groupby(pairs, sort=False).mean().rename("score")
        after, tau = _per_query(alone, judged, measure), kendall(whole, alone)
        line = inference.mean_row(after.to_numpy(), name) | {f"{name}_queries": len(after)}
        line |= inference.mean_row((before - after).to_numpy(), f"{name}_loss")
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


def column_of(evaluate: str) -> str:
    """The column of a ranking measure in a table of circuits."""
    return "ndcg" if evaluate == NDCG else evaluate


def _per_query(scores: pd.Series, judged: pd.DataFrame, measure: Any) -> pd.Series:
    return per_query(scores.rename_axis(["query_id", "doc_id"]).reset_index(), judged, measure).astype(float)
