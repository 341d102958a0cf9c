"""Are the heads that carry the score those that match? Conductance beside attention contrast, head by head.

Joins the two papers: top heads by conductance (Vast et al. 2024, arXiv:2406.19309) and matching heads, whose attention
from query to document differs most between labels (Vast et al. 2025, arXiv:2507.14604).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mechir.collection_groups import Collections, collection_of
from mechir.errors import MechirError
from mechir.methods.checks import at_least, unit_target
from mechir.methods.importance import labelled, thresholds, told, unit_rows, with_both
from mechir.methods.matching import SIDES, attention_by_grade
from mechir.methods.schemes import LABELS
from mechir.methods.statistics import overlap, percentiles
from mechir.methods.walk import Way
from mechir.pairs import Pair
from mechir.views import charts

TOP = (3, 5, 10, 20)
DRAWS = 1000


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair that is taken: as `importance`."""
    return 100.0


def check(
    model: Any, pairs: Sequence[Pair], collections: Collections, *, relevant: str, take: int, **way: Any
) -> dict[str, Any]:
    """Refuses what does not fit: every collection needs a query with both labels."""
    at_least(0, take=take)
    unit_target(model, target="score", **way)
    lowest = thresholds(collections, relevant)
    there = {collection_of(pair.query_id) for pair in with_both(labelled(pairs, lowest, take))}
    if lacking := sorted(set(lowest) - there):
        raise MechirError(f"No query of '{lacking[0]}' has a relevant document and another one: take more queries.")
    return {}


def prepare(
    model: Any, pairs: list[Pair], collections: Collections, *, relevant: str, take: int, **way: Any
) -> tuple[list[Pair], dict[str, Any]]:
    """Of each query `take` relevant pairs and as many of the lowest grade, easy negatives first; what is relevant."""
    lowest = thresholds(collections, relevant)

    def weakest_first(pair: Pair) -> int:
        return min(pair.grade or 0, lowest[collection_of(pair.query_id)])

    return labelled(sorted(pairs, key=weakest_first), lowest, take), {"relevant": told(lowest)}


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    relevant: str = "",
    take: int = 4,
    baseline: str = "pad_query",
    heads: str = "pattern",
    tol: float = 0.01,
) -> pd.DataFrame:
    """A row per query, label and head: `conductance`, mean over pairs, and `mean_max`, see `attention_by_grade`.

    "non-relevant" are the pairs of the lowest grades, easy negatives where the pool has any: hard ones hold the same
    words, so that heads which match words would show no contrast. Options: see `importance`.
    """
    rows = unit_rows(model, pairs, units=(heads,), way=Way(baseline, tol=tol))
    units = rows[rows["kind"] == "unit"]
    flat = [
        {"query_id": one.query_id, "label": one.label, "site": f"h{int(one.layer)}.{k}", "conductance": float(x)}
        for one in units.itertuples()
        for k, x in enumerate(np.asarray(one.conductance).reshape(model.cfg.n_heads, -1).sum(1))
    ]
    seen = attention_by_grade(model, pairs)
    seen = seen[(seen["direction"] == SIDES[0]) & seen["site"].str.startswith("h")]
    seen = seen.assign(label=np.where(seen["grade"] == 1, *LABELS))[["query_id", "label", "site", "mean_max"]]
    return pd.DataFrame(flat).merge(seen, on=["query_id", "label", "site"], validate="one_to_one")


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """Rows of two kinds for every collection, over `queries` with both labels.

    "head": `site`, `conductance` on relevant documents (units of F, mean over queries) and `contrast`, the mean over
    queries of mean_max (query<-doc) relevant less non-relevant, each with its 95 % interval (whole queries resampled);
    `rank` and `rank_contrast`, 1 the largest. "overlap": of the `k` first by each, `shared` heads with `low` and `high`
    (resampled), `expected` by chance and `p_chance`, that so many are shared or more (hypergeometric); and with `k`
    missing Spearman's rho over all heads in `rho`, `rho_low`, `rho_high`.
    """
    found = []
    names = [collection_of(query_id) for query_id in rows["query_id"]]
    for collection, here in rows.groupby(names, sort=False):
        wide = here.pivot(index="query_id", columns=["label", "site"], values=["conductance", "mean_max"]).dropna()
        sites = list(dict.fromkeys(here["site"]))
        flow = wide["conductance"][LABELS[0]][sites].to_numpy()
        contrast = (wide["mean_max"][LABELS[0]] - wide["mean_max"][LABELS[1]])[sites].to_numpy()
        lines = _heads(sites, flow, contrast) + _overlaps(sites, flow, contrast)
        found.append(pd.DataFrame(lines).assign(collection=collection, queries=len(wide)))
    told_of = pd.concat(found, ignore_index=True)
    return told_of[["collection", "kind", *(name for name in told_of.columns if name not in ("collection", "kind"))]]


def _resampled(values: np.ndarray) -> np.ndarray:
    """Means over queries drawn anew, [draw, head]; the same draws for all that is measured on them."""
    n = len(values)
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS) @ values / n


def _heads(sites: Sequence[str], flow: np.ndarray, contrast: np.ndarray) -> list[dict[str, Any]]:
    told_of: dict[str, Any] = {"kind": "head", "site": sites}
    for name, values in (("conductance", flow), ("contrast", contrast)):
        low, high = np.quantile(_resampled(values), [0.025, 0.975], axis=0)
        told_of |= {name: values.mean(0), f"{name}_low": low, f"{name}_high": high}
    told_of |= {"rank": _ranks(flow.mean(0)), "rank_contrast": _ranks(contrast.mean(0))}
    return [dict(line) for line in pd.DataFrame(told_of).sort_values("rank").to_dict("records")]


def _ranks(values: np.ndarray) -> np.ndarray:
    return stats.rankdata(-values, method="ordinal")


def _overlaps(sites: Sequence[str], flow: np.ndarray, contrast: np.ndarray) -> list[dict[str, Any]]:
    def first(values: np.ndarray, k: int) -> list[str]:
        return [sites[place] for place in np.argsort(-values, kind="stable")[:k]]

    drawn = list(zip(_resampled(flow), _resampled(contrast), strict=True))
    lines: list[dict[str, Any]] = []
    for k in (k for k in TOP if k < len(sites)):
        found = overlap(first(flow.mean(0), k), first(contrast.mean(0), k), len(sites))
        low, high = percentiles(np.array([len(set(first(one, k)) & set(first(other, k))) for one, other in drawn]))
        told_of = {"kind": "overlap", "k": k, "shared": found.shared, "low": low, "high": high}
        lines.append(told_of | {"expected": found.expected, "p_chance": found.p})
    low, high = percentiles(np.array([stats.spearmanr(one, other).statistic for one, other in drawn]))
    rho = float(stats.spearmanr(flow.mean(0), contrast.mean(0)).statistic)
    return [*lines, {"kind": "overlap", "rho": rho, "rho_low": low, "rho_high": high}]


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """The first ten heads by conductance, and the overlaps."""
    shown = summary[(summary["kind"] == "overlap") | (summary["rank"] <= 10)]
    return shown.astype(dict.fromkeys(("rank", "rank_contrast", "k", "shared"), "Int64"))


def chart(summary: pd.DataFrame) -> Any:
    """Conductance against contrast; named are heads among the ten first of either."""
    heads = summary[summary["kind"] == "head"]
    first = (heads["rank"] <= 10).astype(int) + (heads["rank_contrast"] <= 10)
    heads = heads.assign(
        named=first > 0, among=first.map({0: "neither", 1: "the ten first of one", 2: "the ten first of both"})
    )
    return charts.scatter(
        heads.rename(columns={"contrast": "attention contrast, relevant - non-relevant"}),
        "attention contrast, relevant - non-relevant",
        "conductance",
        "among",
        title="Do the heads that carry the score match?",
        subtitle="a point per head: conductance on relevant documents against the contrast of query<-doc attention",
        label="site",
        named="named",
        column="collection",
    )
