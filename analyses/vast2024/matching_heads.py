"""Are the heads that carry the score those that match? Conductance beside attention contrast, head by head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mechir.collection_groups import collection_of
from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs
from mechir.methods.checks import unit_target
from mechir.methods.importance import format_thresholds, labelled, thresholds, unit_rows, with_both
from mechir.methods.matching import SIDES, attention_by_grade
from mechir.methods.schemes import LABELS
from mechir.methods.statistics import overlap, percentiles
from mechir.methods.walk import Way
from mechir.options import option
from mechir.pair import Pair, first_of_each
from mechir.reranker import Reranker
from mechir.sites import is_head
from mechir.views.scatter import scatter

TOP = (3, 5, 10, 20)
DRAWS = 1000


@dataclass(frozen=True)
class MatchingHeads(Experiment):
    """Are the heads that carry the score those that match? Conductance beside attention contrast, head by head.

    Joins the two papers: top heads by conductance (Vast et al. 2024, arXiv:2406.19309) and matching heads, whose
    attention from query to document differs most between labels (Vast et al. 2025, arXiv:2507.14604).
    """

    examples = ("--limit-queries 10", "--take 2 --tol 0.05 --dry-run")
    runs_on = "groups"
    forwards = 100.0  # those of `Importance`

    relevant: str = option(
        "", "the lowest relevant grade, or NAME:GRADE with commas; by default half of the highest, rounded up"
    )
    take: int = option(4, "pairs of each query and label, 0 for all", least=0)
    baseline: str = option("pad_query", "which text becomes [PAD] at the start: pad_query, pad_document or pad_both")
    heads: str = option("pattern", "heads by their weights, or by what they read", among=("pattern", "z"))
    tol: float = option(0.01, "the largest error of a sum of conductances, relative to the change", positive=True)

    def measured(self, material: Sequence[Pair]) -> list[Pair]:
        """Of every query so many pairs of either label, as if none lacked a label."""
        return first_of_each(material, 2 * self.take) if self.take else list(material)

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses what does not fit: every collection needs a query with both labels."""
        unit_target(inputs.model, baseline=self.baseline, target="score", tol=self.tol, heads=self.heads)
        lowest = thresholds(inputs.source, self.relevant)
        there = {collection_of(pair.query_id) for pair in with_both(labelled(inputs.material, lowest, self.take))}
        if lacking := sorted(set(lowest) - there):
            raise MechirError(f"No query of '{lacking[0]}' has a relevant document and another one: take more queries.")
        return self

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """The relevant grades, and of each query `take` relevant pairs and as many of the lowest grade.

        Easy negatives come first: hard ones hold the same words, so heads that match words show no contrast to them.
        """
        lowest = thresholds(inputs.source, self.relevant)

        def weakest_first(pair: Pair) -> int:
            return min(pair.grade or 0, lowest[collection_of(pair.query_id)])

        pairs = labelled(sorted(inputs.material, key=weakest_first), lowest, self.take)
        return replace(self, relevant=format_thresholds(lowest)), pairs

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """A row per query, label and head: `conductance`, mean over pairs, and `mean_max`, see `attention_by_grade`."""
        rows = unit_rows(model, pairs, units=(self.heads,), way=Way(self.baseline, tol=self.tol))
        units, keys = rows[rows["kind"] == "unit"], ["query_id", "label", "site"]
        flow = [
            (row.query_id, row.label, f"h{int(row.layer)}.{k}", float(value))
            for row in units.itertuples()
            for k, value in enumerate(np.asarray(row.conductance).reshape(model.cfg.n_heads, -1).sum(1))
        ]
        seen = attention_by_grade(model, pairs)
        seen = seen[(seen["direction"] == SIDES[0]) & is_head(seen["site"])]
        seen = seen.assign(label=np.where(seen["grade"] == 1, *LABELS))[[*keys, "mean_max"]]
        return pd.DataFrame(flow, columns=[*keys, "conductance"]).merge(seen, on=keys, validate="one_to_one")

    def summarise(self, run: Finished) -> pd.DataFrame:
        """Rows of two kinds for every collection, over `queries` with both labels.

        "head": `site`, `conductance` on relevant documents (units of F, mean over queries) and `contrast`, the mean
        over queries of mean_max (query<-doc) relevant less non-relevant, each with its 95 % interval (whole queries
        resampled); `rank` and `rank_contrast`, 1 the largest. "overlap": of the `k` first by each, `shared` heads with
        `low` and `high` (resampled), `expected` by chance and `p_chance`, that so many are shared or more
        (hypergeometric); and with `k` missing Spearman's rho over all heads in `rho`, `rho_low`, `rho_high`.
        """
        frames, rows = [], run.rows
        names = [collection_of(query_id) for query_id in rows["query_id"]]
        for collection, here in rows.groupby(names, sort=False):
            wide = here.pivot(index="query_id", columns=["label", "site"], values=["conductance", "mean_max"]).dropna()
            sites = list(dict.fromkeys(here["site"]))
            flow = wide["conductance"][LABELS[0]][sites].to_numpy()
            contrast = (wide["mean_max"][LABELS[0]] - wide["mean_max"][LABELS[1]])[sites].to_numpy()
            lines = _heads(sites, flow, contrast) + _overlaps(sites, flow, contrast)
            frames.append(pd.DataFrame(lines).assign(collection=collection, queries=len(wide)))
        return pd.concat(frames).set_index(["collection", "kind"]).reset_index()

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The first ten heads by conductance, and the overlaps."""
        shown = summary[(summary["kind"] == "overlap") | (summary["rank"] <= 10)]
        return shown.astype(dict.fromkeys(("rank", "rank_contrast", "k", "shared"), "Int64"))

    def chart(self, summary: pd.DataFrame) -> Any:
        """Conductance against contrast; named are heads among the ten first of either."""
        heads, contrast = summary[summary["kind"] == "head"], "attention contrast, relevant - non-relevant"
        first = (heads["rank"] <= 10).astype(int) + (heads["rank_contrast"] <= 10)
        among = first.map({0: "neither", 1: "the ten first of one", 2: "the ten first of both"})
        return scatter(
            heads.rename(columns={"contrast": contrast}).assign(named=first > 0, among=among),
            contrast,
            "conductance",
            "among",
            title="Do the heads that carry the score match?",
            subtitle="a point per head: conductance on relevant documents against the contrast of query<-doc attention",
            label="site",
            named="named",
            column="collection",
        )


def _resampled(values: np.ndarray) -> np.ndarray:
    """Means over queries drawn anew, [draw, head]; the same draws for all that is measured on them."""
    n = len(values)
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS) @ values / n


def _heads(sites: Sequence[str], flow: np.ndarray, contrast: np.ndarray) -> list[dict[str, Any]]:
    columns: dict[str, Any] = {"kind": "head", "site": sites}
    for name, values in (("conductance", flow), ("contrast", contrast)):
        low, high = np.quantile(_resampled(values), [0.025, 0.975], axis=0)
        columns |= {name: values.mean(0), f"{name}_low": low, f"{name}_high": high}
    for name, values in (("rank", flow), ("rank_contrast", contrast)):
        columns[name] = stats.rankdata(-values.mean(0), method="ordinal")
    return [dict(line) for line in pd.DataFrame(columns).sort_values("rank").to_dict("records")]


def _overlaps(sites: Sequence[str], flow: np.ndarray, contrast: np.ndarray) -> list[dict[str, Any]]:
    def first(values: np.ndarray, k: int) -> list[str]:
        return [sites[place] for place in np.argsort(-values, kind="stable")[:k]]

    drawn = list(zip(_resampled(flow), _resampled(contrast), strict=True))
    lines: list[dict[str, Any]] = []
    for k in (k for k in TOP if k < len(sites)):
        both = overlap(first(flow.mean(0), k), first(contrast.mean(0), k), len(sites))
        low, high = percentiles(np.array([len({*first(a, k)} & {*first(b, k)}) for a, b in drawn]))
        line = {"kind": "overlap", "k": k, "shared": both.shared, "low": low, "high": high}
        lines.append(line | {"expected": both.expected, "p_chance": both.p})
    low, high = percentiles([stats.spearmanr(a, b).statistic for a, b in drawn])
    rho = float(stats.spearmanr(flow.mean(0), contrast.mean(0)).statistic)
    return [*lines, {"kind": "overlap", "rho": rho, "rho_low": low, "rho_high": high}]
