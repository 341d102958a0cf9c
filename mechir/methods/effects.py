"""Summaries of effects per pair: metrics, the gap, intervals and tests over queries.

The reported quantity is the tested one: a share of the gap as a share, an effect in logits as a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mechir import inference, measures
from mechir.errors import MechirError
from mechir.measures import GAP, LOGITS, Measure
from mechir.methods import ranking

PAIR = ["query_id", "doc_id", "filler"]
METRICS = ("difference", "ratio", "robust", "ratio_of_means")
ROUNDING = ranking.TIE
"""Mean effects of a query below this are 0 to the test: they are what float32 makes of nothing."""
MATERIAL = 0.1
"""A gap below this share of the standard deviation of scores within queries is called nothing, whatever its p."""
MIN_GAP = 0.01
"""Score gaps below this carry no ratio: a numerator of rounding over a denominator of nothing."""


def measured(rows: pd.DataFrame, metric: str = "difference", *, min_gap: float = MIN_GAP) -> pd.Series:
    """The effect of each pair on the scale of a metric; NaN where the metric says nothing.

    `rows` hold `base`, `donor`, `effect`. "difference": patched - base, in logits. "ratio": effect / (donor - base),
    the classic metric (Chen et al. 2024; Parry et al. 2025): 0 nothing, 1 all of the perturbation's effect, unbounded
    and unstable where the gap is small. "robust": effect / sqrt(1 + (donor - base)^2) (Polyakov et al. 2025).

    Ratios over a gap |donor - base| below `min_gap`, and over a gap of 0 always, are NaN; a `min_gap` of 0 leaves
    nothing else out, as MechIR does.

    Raises:
        MechirError: for an unknown metric; "ratio_of_means" has no value per pair (see `summarise`).
    """
    if metric == "difference":
        return rows["effect"].astype(float)
    gap = _gaps(rows)
    if metric == "robust":
        return rows["effect"] / np.sqrt(1 + gap**2)
    if metric == "ratio":
        return (rows["effect"] / gap.where(gap != 0)).where(gap.abs() >= min_gap)
    if metric == "ratio_of_means":
        raise MechirError("A ratio of means has no value per pair: write summarise(rows, metric='ratio_of_means').")
    raise MechirError(f"Unknown metric '{metric}': write one of {', '.join(METRICS)}.")


def small_gaps(rows: pd.DataFrame, min_gap: float = MIN_GAP) -> pd.DataFrame:
    """The pairs that a ratio leaves out, by name: `query_id`, `doc_id`, `filler`, `gap` = donor - base."""
    pairs = rows.drop_duplicates(PAIR).assign(gap=_gaps)
    small = (pairs["gap"].abs() < min_gap) | (pairs["gap"] == 0)
    return pairs.loc[small, [*PAIR, "gap"]].reset_index(drop=True)


def summarise(
    rows: pd.DataFrame, by: Sequence[str] = ("site", "at"), metric: str = "difference", *, min_gap: float = MIN_GAP
) -> pd.DataFrame:
    """The mean effect of each site over queries, with its interval and a test over the whole map.

    `rows` are those of `patch` or `path_patch`; each value of `by` makes a line, e.g. of ("site", "at") or ("edge",);
    add "filler" to see the fillers apart. For `metric` and `min_gap` see `measured`; "ratio_of_means" is mean effect /
    mean gap over the pairs whose gap is large enough.

    Returns:
        The columns of `by`; `pairs`, `queries`, `left_out` (pairs whose gap is too small for the metric); `estimate`,
        the mean over queries of the mean over a query's pairs (the ratio of those means), with `low` and `high`, its 95
        % interval over queries; `p_corrected`, the two-sided p-value of that estimate being 0, corrected for all lines
        together (1 where nothing moved; below 1e-5 nothing counts as moved; missing for lines of fewer than 6 queries,
        which are no part of the family). See `mechir.inference`.

    Raises:
        MechirError: for an unknown metric, or when every pair is left out.
    """
    by = list(by)
    if metric == "ratio_of_means":
        gap = _gaps(rows)
        valued = rows.assign(value=rows["effect"].astype(float), gap=gap)[(gap.abs() >= min_gap) & (gap != 0)]
    else:
        valued = rows.assign(value=measured(rows, metric, min_gap=min_gap), gap=1.0).dropna(subset="value")
    if valued.empty:
        raise MechirError(f"Every pair has a score gap below {min_gap}: there is no ratio; use metric='difference'.")
    queries = valued.groupby([*by, "query_id"], sort=False)[["value", "gap"]].mean()
    effects, gaps = (queries[name].unstack("query_id", sort=False) for name in ("value", "gap"))
    effects = effects.where(effects.abs() >= ROUNDING, effects * 0)
    estimates = inference.shares(effects.to_numpy().T, gaps.to_numpy().T)
    pairs = valued.groupby(by, sort=False).size().reindex(effects.index)
    left_out = rows.groupby(by, sort=False).size().reindex(effects.index) - pairs
    frame = pd.DataFrame({"pairs": pairs, "queries": estimates.queries, "left_out": left_out})
    columns = ("estimate", "low", "high", "p_corrected")
    return frame.assign(**{name: getattr(estimates, name) for name in columns}).reset_index()


def table(rows: pd.DataFrame, by: Sequence[str], *, min_gap: float = MIN_GAP) -> pd.DataFrame:
    """The summary of an experiment: `summarise` in logits, beside it the share of the gap and every filler alone.

    Returns:
        `summarise(rows, by)`; `share` = mean effect / mean gap with `share_low`, `share_high` and `left_out` (the pairs
        whose gap is too small); `estimate[a]` for each filler `a`, where there are several. `p_corrected` is of the
        share. Where the mean gap cannot be told from 0 (its 95 % interval holds 0) there is no share, and `p_corrected`
        is of the effect in logits.
    """
    by, lines, whole = list(by), summarise(rows, by), gap(rows)
    if not whole.low * whole.high > 0 or len(small_gaps(rows, min_gap)) == len(rows.drop_duplicates(PAIR)):
        lines = lines.assign(share=np.nan, share_low=np.nan, share_high=np.nan, left_out=lines["pairs"])
    else:
        shares = summarise(rows, by, "ratio_of_means", min_gap=min_gap).drop(columns=["pairs", "queries"])
        shares = shares.rename(columns={"estimate": "share", "low": "share_low", "high": "share_high"})
        shares = shares[[*by, "share", "share_low", "share_high", "left_out", "p_corrected"]]
        lines = lines.drop(columns=["left_out", "p_corrected"]).merge(shares, "left", on=by)
    fillers = [filler for filler in rows["filler"].unique() if filler]
    for filler in fillers if len(fillers) > 1 else []:
        alone = rows[rows["filler"] == filler].groupby([*by, "query_id"], sort=False)["effect"].mean()
        means = alone.groupby(by, sort=False).mean().rename(f"estimate[{filler}]")
        lines = lines.merge(means, "left", left_on=by, right_index=True)
    return lines


class Gap(NamedTuple):
    """The effect of the perturbation on the score of the intact model, in logits.

    The mean over queries of donor - base with its 95 % interval, its p; `spread`, the standard deviation of the base
    scores within queries (NaN where no query has two documents); `queries` and `pairs`.
    """

    mean: float
    low: float
    high: float
    p: float
    spread: float
    queries: int
    pairs: int


def gap(rows: pd.DataFrame) -> Gap:
    """The gap of these rows' contrasts."""
    pairs = rows.drop_duplicates(PAIR)
    per_query = _gaps(pairs).groupby(pairs["query_id"], sort=False).mean()
    test = inference.means(per_query.where(per_query.abs() >= ROUNDING, 0.0).to_numpy()[:, None])
    documents = pairs.groupby(["query_id", "doc_id"], sort=False)["base"].mean().groupby("query_id")
    several = documents.var()[documents.size() > 1]
    spread = float(several.mean() ** 0.5) if len(several) else float("nan")
    mean, low, high, p = (float(x[0]) for x in (test.estimate, test.low, test.high, test.p))
    return Gap(mean, low, high, p, spread, len(per_query), len(pairs))


def _gaps(rows: pd.DataFrame) -> pd.Series:
    return (rows["donor"] - rows["base"]).astype(float)


def stated(lines: pd.DataFrame, measure: Measure | Sequence[Measure], site: str = "site") -> pd.DataFrame:
    """The lines of `table` as findings: the share of the gap, or the effect in logits where there is no share.

    `measure`: of all lines, or one for each; `site`: the column of what was changed. `effect` with its interval is in
    logits either way.
    """
    share = bool(lines["share"].notna().all())
    more = {"effect": lines["estimate"], "effect_low": lines["low"], "effect_high": lines["high"]}
    more |= {"site": lines[site], "p_corrected": lines["p_corrected"]}
    more |= {"family": f"{len(lines)} {site}s"} | ({} if share else {"unit": LOGITS})
    return measures.stated(lines, measure, "share" if share else "estimate", **more)


def gap_stated(rows: pd.DataFrame, axiom: str) -> pd.DataFrame:
    """The gap as a finding; every share is a share of it.

    It counts where it is a tenth of the standard deviation of scores within queries, or 0.05 logits where no query has
    two documents.
    """
    whole = gap(rows)
    least = MATERIAL * whole.spread if whole.spread > 0 else GAP.least
    line = {"estimate": whole.mean, "p_corrected": whole.p, "site": ""} | whole._asdict()
    return measures.stated(pd.DataFrame([line]), GAP(axiom), least=least, family="the gap alone")


def by_layer(table: pd.DataFrame, components: dict[str, str]) -> pd.DataFrame:
    """The `component` and `layer` of each site such as `resid3`, named by `components`, before the table's columns."""
    parsed = table["site"].str.extract(r"(?P<component>[a-z]+)(?P<layer>\d+)")
    parsed = parsed.assign(component=parsed["component"].map(components), layer=parsed["layer"].astype(int))
    return pd.concat([parsed, table], axis=1)


def thirds(rows: pd.DataFrame) -> pd.Series:
    """The third of its query's documents by base score that each pair is in: `top`, `middle` or `bottom`."""
    pairs = rows.drop_duplicates(PAIR)
    share = pairs.groupby(["query_id", "filler"])["base"].rank(method="first", ascending=False, pct=True)
    third = pd.cut(share, [0, 1 / 3 + 1e-9, 2 / 3 + 1e-9, 1], labels=["top", "middle", "bottom"]).astype(str)
    return rows[PAIR].merge(pairs[PAIR].assign(third=third), "left", on=PAIR)["third"].set_axis(rows.index)


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
    """Measures how patching every document of a query, each from its own donor, changes the query's ranking.

    `rows` are those of `patch` or `path_patch`, with grades; `k` is the cutoff of nDCG.

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
        columns = {}
        for when in ("base", "patched"):
            scores = group[["query_id", "doc_id"]].assign(score=group[when])
            columns[f"ndcg_{when}"] = ranking.ndcg(scores, judged, k).set_index("query_id")["value"]
            columns[f"margin_{when}"] = _margins(group[when], judged)
        frame = pd.DataFrame(columns).loc[lambda rows: rows["ndcg_base"].notna()]
        for name in ("ndcg", "margin"):
            frame[f"{name}_effect"] = frame[f"{name}_patched"] - frame[f"{name}_base"]
        parts.append(frame.rename_axis("query_id").reset_index().assign(**dict(zip([*by, "filler"], key, strict=True))))
    names = [f"{name}_{part}" for name in ("ndcg", "margin") for part in ("base", "patched", "effect")]
    return pd.concat(parts, ignore_index=True)[[*by, "filler", "query_id", *names]]


def _margins(scores: pd.Series, judged: pd.DataFrame) -> pd.Series:
    means = scores.groupby([judged["query_id"], judged["grade"] > 0]).mean().unstack()
    return means.reindex(columns=[True, False]).pipe(lambda kinds: kinds[True] - kinds[False])
