"""From effects per pair to numbers one can claim: metrics, intervals over queries, and what happens to the ranking."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mechir.errors import MechirError
from mechir.methods import ranking, statistics

PAIR = ["query_id", "doc_id", "filler"]
METRICS = ("difference", "ratio", "robust", "ratio_of_means")
ROUNDING = ranking.TIE
"""Mean effects of a query below this are 0 to the test: they are what float32 makes of nothing."""
LEAST = 0.05
"""An effect below this share of the gap (or below so many logits) is called nothing, whatever its p."""
TERM_OF = {"tfc": "tf", "tdc": "idf", "lnc": "length"}
"""Which part of BM25 a diagnostic changes, by the beginning of its name."""
MIN_GAP = 0.01
"""Score gaps below this carry no ratio: a numerator of rounding over a denominator of nothing."""


def measured(rows: pd.DataFrame, metric: str = "difference", *, min_gap: float = MIN_GAP) -> pd.Series:
    """Each pair's effect on the scale of a metric; NaN where the metric says nothing.

    Args:
        rows: `base`, `donor`, `effect`.
        metric: "difference": patched - base, in logits. "ratio": effect / (donor - base), the classic metric (Chen et
            al. 2024; Parry et al. 2025): 0 nothing, 1 all of the perturbation's effect, unbounded and unstable where
            the gap is small. "robust": effect / sqrt(1 + (donor - base)^2) (Polyakov et al. 2025).
        min_gap: ratios over a gap |donor - base| smaller than this, and over a gap of 0 always, are NaN. 0 leaves
            nothing else out, as MechIR does.

    Raises:
        MechirError: for an unknown metric; "ratio_of_means" has no value per pair (see `summarise`).
    """
    if metric == "difference":
        return rows["effect"].astype(float)
    gap = (rows["donor"] - rows["base"]).astype(float)
    if metric == "robust":
        return rows["effect"] / np.sqrt(1 + gap**2)
    if metric == "ratio":
        return (rows["effect"] / gap.where(gap != 0)).where(gap.abs() >= min_gap)
    if metric == "ratio_of_means":
        raise MechirError("A ratio of means has no value per pair: write summarise(rows, metric='ratio_of_means').")
    raise MechirError(f"Unknown metric '{metric}': write one of {', '.join(METRICS)}.")


def small_gaps(rows: pd.DataFrame, min_gap: float = MIN_GAP) -> pd.DataFrame:
    """The pairs that a ratio leaves out, by name: `query_id`, `doc_id`, `filler`, `gap` = donor - base."""
    pairs = rows.drop_duplicates(PAIR)
    gap = pairs["donor"] - pairs["base"]
    kept = pairs.assign(gap=gap)[(gap.abs() < min_gap) | (gap == 0)]
    return kept[[*PAIR, "gap"]].reset_index(drop=True)


def summarise(
    rows: pd.DataFrame,
    by: Sequence[str] = ("site", "at"),
    metric: str = "difference",
    *,
    min_gap: float = MIN_GAP,
) -> pd.DataFrame:
    """The mean effect of each site over queries, with its interval and a test over the whole map.

    Args:
        rows: of `patch` or `path_patch`.
        by: what makes a line, e.g. ("site", "at") or ("edge",); add "filler" to see the fillers apart.
        metric: see `measured`; "ratio_of_means" is mean effect / mean gap over the pairs whose gap is large enough.
        min_gap: see `measured`.

    Returns:
        The columns of `by`; `n` pairs, `queries`, `left_out` (pairs whose gap is too small for the metric);
        `estimate`, the mean over queries of the mean over a query's pairs (the ratio of those means), with `low` and
        `high`, the 95 % bootstrap interval over queries; `p_max`, the two-sided p-value of no effect, corrected for
        all lines together by the largest statistic under sign flips of whole queries (1 where nothing moved; below 1e-5
        nothing is said to move).

    Raises:
        MechirError: for an unknown metric, or when every pair is left out.
    """
    by = list(by)
    if metric == "ratio_of_means":
        gap = (rows["donor"] - rows["base"]).astype(float)
        kept = rows.assign(value=rows["effect"].astype(float), gap=gap)[(gap.abs() >= min_gap) & (gap != 0)]
    else:
        kept = rows.assign(value=measured(rows, metric, min_gap=min_gap), gap=1.0).dropna(subset="value")
    if kept.empty:
        raise MechirError(f"Every pair has a score gap below {min_gap}: there is no ratio; use metric='difference'.")
    queries = kept.groupby([*by, "query_id"], sort=False)[["value", "gap"]].mean()
    table = queries["value"].unstack("query_id", sort=False)
    gaps = queries["gap"].unstack("query_id", sort=False)
    ratio = metric == "ratio_of_means"
    lines = [_line(table.loc[key], gaps.loc[key] if ratio else None) for key in table.index]
    frame = pd.DataFrame(lines, index=table.index)
    counts, asked = kept.groupby(by, sort=False).size(), rows.groupby(by, sort=False).size()
    frame.insert(0, "n", counts)
    frame.insert(2, "left_out", asked.reindex(counts.index) - counts)
    frame["p_max"] = statistics.sign_flips(table.where(table.abs() >= ROUNDING, table * 0).to_numpy().T)
    return frame.reset_index()


def table(rows: pd.DataFrame, by: Sequence[str], *, min_gap: float = MIN_GAP) -> pd.DataFrame:
    """The summary of an experiment: `summarise` in logits, beside it the share of the gap and every filler alone.

    Returns:
        `summarise(rows, by)`; `share` = mean effect / mean gap with `share_low`, `share_high` and `left_out` (the pairs
        whose gap is too small); `estimate[a]` for each filler `a`, where there are several.
    """
    found = summarise(rows, by)
    if len(small_gaps(rows, min_gap)) == len(rows.drop_duplicates(PAIR)):
        return found.drop(columns="left_out").assign(
            share=np.nan, share_low=np.nan, share_high=np.nan, left_out=found["n"]
        )
    ratios = summarise(rows, by, "ratio_of_means", min_gap=min_gap).set_index(list(by))
    shares = ratios[["estimate", "low", "high", "left_out"]].set_axis(
        ["share", "share_low", "share_high", "left_out"], axis=1
    )
    found = found.drop(columns="left_out").merge(shares, "left", left_on=list(by), right_index=True)
    fillers = [filler for filler in rows["filler"].unique() if filler]
    for filler in fillers if len(fillers) > 1 else []:
        alone = rows[rows["filler"] == filler].groupby([*by, "query_id"], sort=False)["effect"].mean()
        means = alone.groupby(list(by), sort=False).mean().rename(f"estimate[{filler}]")
        found = found.merge(means, "left", left_on=list(by), right_index=True)
    return found


def stated(found: pd.DataFrame, what: str, axiom: str, site: str = "site") -> pd.DataFrame:
    """The lines of `table` as findings: the share of the gap, or the effect in logits where no gap is large enough.

    `what` was done, on the diagnostic `axiom`, which says the term; both are in `measure`, and where patched (`at`).
    A share counts from 0.05 on, an effect from 0.05 logits on.
    """
    share = bool(found["share"].notna().all())
    told = {site: "site", "p_max": "p_corrected", "queries": "n_queries", "n": "n_pairs"}
    names = ("share", "share_low", "share_high") if share else ("estimate", "low", "high")
    told |= dict(zip(names, ("value", "low", "high"), strict=True))
    term = next((term for start, term in TERM_OF.items() if re.search(rf"\b{start}", axiom)), "")
    where = ", at " + found["at"] if "at" in found else ""
    how = {"unit": "share of the gap" if share else "logits", "least": LEAST, "term": term, "causal": True}
    return (
        found[list(told)]
        .rename(columns=told)
        .assign(**how, measure=f"{what}, {axiom}" + where, family=f"{len(found)} {site}s")
    )


def _line(values: pd.Series, gaps: pd.Series | None) -> dict[str, Any]:
    """The mean over queries and its interval, or where there are gaps the ratio of the two means."""
    value = values.dropna().to_numpy()
    if gaps is None:
        estimate, (low, high) = float(value.mean()), statistics.bootstrap_mean(value)
    else:
        estimate, low, high = _ratio(value, gaps.dropna().to_numpy())
    return {"queries": len(value), "estimate": estimate, "low": low, "high": high}


def _ratio(value: np.ndarray, gap: np.ndarray) -> tuple[float, float, float]:
    estimate = float(value.mean() / gap.mean())
    if len(value) < 2:
        return estimate, float("nan"), float("nan")
    found = stats.bootstrap(
        (value, gap),
        lambda x, y, axis=-1: x.mean(axis) / y.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=statistics.RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return estimate, float(found.low), float(found.high)


def thirds(rows: pd.DataFrame) -> pd.Series:
    """`top`, `middle` or `bottom`: the third of its query's documents that a pair's base score puts it in."""
    pairs = rows.drop_duplicates(PAIR)
    share = pairs.groupby(["query_id", "filler"])["base"].rank(method="first", ascending=False, pct=True)
    names = pd.cut(share, [0, 1 / 3 + 1e-9, 2 / 3 + 1e-9, 1], labels=["top", "middle", "bottom"]).astype(str)
    known = pd.Series(names.to_numpy(), index=pd.MultiIndex.from_frame(pairs[PAIR]))
    return pd.Series(known.reindex(pd.MultiIndex.from_frame(rows[PAIR])).to_numpy(), index=rows.index)


def rank_effects(rows: pd.DataFrame, by: Sequence[str] = ("site", "at")) -> pd.DataFrame:
    """The rows with the rank of each document before and after, when it alone is patched.

    `rank_base` and `rank_patched` count from 1, the best, among the base scores of the query's other pairs (ties take
    the middle); `rank_effect` = rank_base - rank_patched, positive where the document rises. Ranks move in steps: a
    real effect on the score may move none.
    """
    parts = []
    for _, group in rows.groupby([*by, "filler", "query_id"], sort=False):
        base, patched = group["base"].to_numpy(), group["patched"].to_numpy()
        before, after = _ranks(base, base), _ranks(patched, base)
        parts.append(pd.DataFrame({"rank_base": before, "rank_patched": after}, index=group.index))
    ranks = pd.concat(parts).reindex(rows.index)
    return rows.assign(**ranks, rank_effect=ranks["rank_base"] - ranks["rank_patched"])


def _ranks(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The rank of each score among all others but its own."""
    apart = ~np.eye(len(scores), dtype=bool)
    above = (others[None, :] > scores[:, None]) & apart
    level = (others[None, :] == scores[:, None]) & apart
    return 1 + above.sum(1) + 0.5 * level.sum(1)


def query_effects(rows: pd.DataFrame, by: Sequence[str] = ("site", "at"), k: int = 10) -> pd.DataFrame:
    """What patching every document of a query, each from its own donor, does to the query's ranking.

    Args:
        rows: of `patch` or `path_patch`, with grades.
        by: what makes a line.
        k: cutoff of nDCG.

    Returns:
        Columns of `by`, `filler`, `query_id`; `ndcg_base`, `ndcg_patched`, `ndcg_effect`; `margin_base`,
        `margin_patched`, `margin_effect`: the mean score of documents of grade 1 and more less that of the others, in
        logits (missing where a query has only one kind). Queries without a relevant document are left out.

    Raises:
        MechirError: when no pair has a grade.
    """
    if rows["grade"].isna().all():
        raise MechirError("These pairs have no grades, so there is no nDCG: use rank_effects, or a judged collection.")
    parts = []
    for key, group in rows.groupby([*by, "filler"], sort=False):
        judged = group[["query_id", "doc_id"]].assign(grade=group["grade"].fillna(0).clip(lower=0).astype(int))
        told = {}
        for when in ("base", "patched"):
            scores = group[["query_id", "doc_id"]].assign(score=group[when])
            told[f"ndcg_{when}"] = ranking.ndcg(scores, judged, k).set_index("query_id")["value"]
            told[f"margin_{when}"] = _margins(group[when], judged)
        frame = pd.DataFrame(told).loc[lambda found: found["ndcg_base"].notna()]
        for name in ("ndcg", "margin"):
            frame[f"{name}_effect"] = frame[f"{name}_patched"] - frame[f"{name}_base"]
        parts.append(frame.rename_axis("query_id").reset_index().assign(**dict(zip([*by, "filler"], key, strict=True))))
    columns = [f"{name}_{part}" for name in ("ndcg", "margin") for part in ("base", "patched", "effect")]
    return pd.concat(parts, ignore_index=True)[[*by, "filler", "query_id", *columns]]


def _margins(scores: pd.Series, judged: pd.DataFrame) -> pd.Series:
    means = scores.groupby([judged["query_id"], judged["grade"] > 0]).mean().unstack()
    return means.reindex(columns=[True, False]).pipe(lambda found: found[True] - found[False])
