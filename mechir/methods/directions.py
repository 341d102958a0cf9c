"""Tables of ranking quality under interventions: each condition beside the original and the random."""

from __future__ import annotations

import pandas as pd

from mechir import measures
from mechir.inference import holm, mean_row
from mechir.interventions import RENORMALISED
from mechir.measures import WITHOUT_DIRECTION
from mechir.methods import ranking, statistics

DRAWS = 1000
"""Random rankings behind the row `random`, as in the paper."""
COLUMNS = ["name", "queries", "estimate", "low", "high", "tied", "change", "change_low", "change_high"]
COLUMNS += ["change_p_unpaired", "change_p"]


def stated(table: pd.DataFrame, renormalise: bool) -> pd.DataFrame:
    """The cuts of `condition_table` as findings; `renormalise`: they were made before the softmax."""
    cuts = table[table["name"].str.contains("<-", regex=False)]
    sites = cuts["name"] + (RENORMALISED if renormalise else "")
    return measures.stated(cuts, WITHOUT_DIRECTION, "change", site=sites, family=f"{len(cuts)} cuts")


def condition_table(
    rows: pd.DataFrame, judged: pd.DataFrame, *, original: str = "original", k: int = 10
) -> pd.DataFrame:
    """The nDCG@k of every condition, and its difference from the intact model, over queries.

    `rows` is one score per condition and pair: `name`, `query_id`, `doc_id`, `score`; `judged` the documents that the
    ideal ranking may use: `query_id`, `doc_id`, `grade`; `original` the `name` of the intact model.

    Returns:
        One row per condition in the order of `rows`, then `random` (the mean of 1,000 random rankings) and
        `random_analytic` (its expectation). Columns: `name`; `queries`; `ndcg`, mean nDCG@k over queries (linear gain),
        with `low` and `high`, the 95 % bootstrap interval over queries; `change` = condition - original, with
        `change_low` and `change_high` (queries resampled in pairs; negative: the cut harmed); `change_p_unpaired`
        (two-tailed Student test on per-query values, unpaired with equal variances, as the authors' code does),
        `change_p` (the paired test, the better one here), `change_p_corrected` (paired, corrected by Holm over all
        conditions of the table); `tied`, the mean share of documents with a tied score. `low` and `high` of `random`
        hold 95 % of the 1,000 draws. A value is the mean over all orders of tied documents (see `ranking.ndcg`).
        Queries without a relevant document are left out.

    Source: arXiv:2507.14604, Table 1.
    """
    judgments, pool = judged[["query_id", "doc_id", "grade"]], rows[rows["name"] == original]
    baseline = ranking.ndcg(pool, judgments, k).set_index("query_id")["value"]
    table = []
    for name, scores in rows.groupby("name", sort=False):
        quality = ranking.ndcg(scores, judgments, k).set_index("query_id")
        values = quality["value"].reindex(baseline.index)
        line = {"name": name, "queries": len(values)} | mean_row(values.to_numpy()) | {"tied": quality["tied"].mean()}
        if name != original:
            comparison = statistics.compare(values.to_numpy(), baseline.to_numpy())
            line |= comparison.row("change") | {"change_p_unpaired": comparison.p_unpaired}
        table.append(line)
    frame = pd.DataFrame(table)[COLUMNS]
    frame["change_p_corrected"] = holm(frame["change_p"].to_numpy())
    expected = ranking.random_ndcg(pool, judgments, k).set_index("query_id")["value"]
    draws = ranking.random_draws(pool, judgments, k, draws=DRAWS)
    low, high = statistics.percentiles(draws)
    random = [
        {"name": "random", "queries": len(baseline), "estimate": float(draws.mean()), "low": low, "high": high},
        {"name": "random_analytic", "queries": len(expected)} | mean_row(expected.to_numpy()),
    ]
    return pd.concat([frame, pd.DataFrame(random)], ignore_index=True).rename(columns={"estimate": "ndcg"})
