"""Tables of ranking quality under interventions: each condition beside the original and the random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir import measures
from mechir.inference import holm, mean_row
from mechir.interventions import RENORMALISED
from mechir.measures import WITHOUT_DIRECTION, WITHOUT_DIRECTION_BY
from mechir.methods import ranking, statistics
from mechir.methods.evaluation import NDCG, in_closed_form, per_query, ranking_measures

DRAWS = 1000
"""Random rankings behind the row `random`, as in the paper."""
COLUMNS = ["name", "queries", "estimate", "low", "high", "tied", "change", "change_low", "change_high"]
COLUMNS += ["change_p_unpaired", "change_p"]


def stated(table: pd.DataFrame, renormalise: bool) -> pd.DataFrame:
    """The cuts of `condition_table` as findings; `renormalise`: they were made before the softmax."""
    cuts = table[table["name"].str.contains("<-", regex=False)]
    sites = cuts["name"] + (RENORMALISED if renormalise else "")
    by = cuts["measure"] if "measure" in cuts else [NDCG] * len(cuts)
    kinds = [WITHOUT_DIRECTION if name == NDCG else WITHOUT_DIRECTION_BY(name) for name in by]
    return measures.stated(cuts, kinds, "change", site=sites, family=f"{len(cuts)} cuts")


def first_of(summary: pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """The rows of the first measure of a `condition_table`, the column of its value, and its name: for a chart."""
    if "measure" not in summary:
        return summary, "ndcg", NDCG
    name = str(summary["measure"].iloc[0])
    return summary[summary["measure"] == name], "value", name


def condition_table(
    rows: pd.DataFrame, judged: pd.DataFrame, *, original: str = "original", evaluate: Sequence[str] = (NDCG,)
) -> pd.DataFrame:
    """The nDCG@10 of every condition, and its difference from the intact model, over queries; or other measures.

    `rows` is one score per condition and pair: `name`, `query_id`, `doc_id`, `score`; `judged` the documents that the
    ideal ranking may use: `query_id`, `doc_id`, `grade`; `original` the `name` of the intact model; `evaluate` the
    measures of ir_measures.

    Returns:
        One row per condition in the order of `rows`, then `random` (the mean of 1,000 random rankings) and
        `random_analytic` (its expectation). Columns: `name`; `queries`; `ndcg`, mean nDCG@10 over queries (linear
        gain), with `low` and `high`, the 95 % bootstrap interval over queries; `change` = condition - original, with
        `change_low` and `change_high` (queries resampled in pairs; negative: the cut harmed); `change_p_unpaired`
        (two-tailed Student test on per-query values, unpaired with equal variances, as the authors' code does),
        `change_p` (the paired test, the better one here), `change_p_corrected` (paired, corrected by Holm over all
        rows of the table); `tied`, the mean share of documents with a tied score. `low` and `high` of `random`
        hold 95 % of the 1,000 draws. A value is the mean over all orders of tied documents (see `ranking.ndcg`).
        Queries without a relevant document are left out. By other measures than nDCG@10 alone, the table has these rows
        for each `measure`, and the mean is in `value`; `random_analytic` stands where it is known in closed form.

    Source: arXiv:2507.14604, Table 1.
    """
    parts = []
    for measure in ranking_measures(evaluate):
        parts.append(_by_measure(rows, judged[["query_id", "doc_id", "grade"]], original, measure))
    frame = pd.concat(parts, ignore_index=True)
    tested = frame["name"].isin(rows["name"])
    frame.loc[tested, "change_p_corrected"] = holm(frame.loc[tested, "change_p"].to_numpy())
    if tuple(evaluate) == (NDCG,):
        return frame.drop(columns="measure").rename(columns={"estimate": "ndcg"})
    return frame.rename(columns={"estimate": "value"})


def _by_measure(rows: pd.DataFrame, judged: pd.DataFrame, original: str, measure: Any) -> pd.DataFrame:
    """The rows of one measure."""
    pool = rows[rows["name"] == original]
    baseline = per_query(pool, judged, measure)
    table = []
    for name, scores in rows.groupby("name", sort=False):
        values = per_query(scores, judged, measure).reindex(baseline.index)
        tied = ranking.ndcg(scores, judged).set_index("query_id")["tied"].reindex(baseline.index)
        line = {"name": name, "queries": len(values)} | mean_row(values.to_numpy()) | {"tied": tied.mean()}
        if name != original:
            comparison = statistics.compare(values.to_numpy(), baseline.to_numpy())
            line |= comparison.row("change") | {"change_p_unpaired": comparison.p_unpaired}
        table.append(line)
    frame = pd.DataFrame(table)[COLUMNS]
    draws = ranking.random_draws(pool, judged, measure=measure, draws=DRAWS)
    low, high = statistics.percentiles(draws)
    random = [{"name": "random", "queries": len(baseline), "estimate": float(draws.mean()), "low": low, "high": high}]
    if in_closed_form(measure):
        expected = per_query(pool.assign(score=0.0), judged, measure)
        random.append({"name": "random_analytic", "queries": len(expected)} | mean_row(expected.to_numpy()))
    whole = pd.concat([frame, pd.DataFrame(random)], ignore_index=True)
    whole.insert(0, "measure", str(measure))
    return whole
