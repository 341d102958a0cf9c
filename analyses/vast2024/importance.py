"""Measures the conductance of every unit: neurons and heads that carry relevance (Vast et al., arXiv:2406.19309)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd

from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs
from mechir.measures import CONDUCTANCE, NEURON_CONDUCTANCE, Rank, stated
from mechir.methods.checks import unit_target
from mechir.methods.importance import (
    RELEVANT,
    against_others,
    format_thresholds,
    importance,
    labelled,
    thresholds,
    unconverged,
    unit_rows,
    with_both,
)
from mechir.methods.schemes import top
from mechir.methods.walk import Way
from mechir.options import option
from mechir.pair import Pair, first_of_each, split_queries
from mechir.reranker import Reranker
from mechir.views import charts

ENDS = 0.01
"""Neurons that become findings: this share at either end."""
SHARE = 0.01
"""The share of the neurons that the chart counts layer by layer."""
PRINTED, NAMED = 10, 3
MARGIN = "margin"


@dataclass(frozen=True)
class Importance(Experiment):
    """Measures the conductance of every unit: neurons and heads that carry relevance (Vast et al., arXiv:2406.19309).

    The word embeddings go from a baseline of [PAD] to the text; a unit's conductance is its part of the change of the
    score. Means over relevant and over other documents, each unit with interval and rank.
    """

    examples = ("--limit-queries 10", "--target 'h2.9@doc<-query' --limit-queries 10")
    runs_on = "groups"
    figure: ClassVar[int | None] = 14
    forwards = 100.0  # a forward and a backward pass at each of some 32 places of the line

    relevant: str = option(
        "", "the lowest relevant grade, or NAME:GRADE with commas; by default half of the highest, rounded up"
    )
    take: int = option(4, "pairs of each query and label, 0 for all", least=0)
    every: int = option(1, "one query in so many is measured", least=1)
    baseline: str = option("pad_query", "which text becomes [PAD] at the start: pad_query, pad_document or pad_both")
    target: str = option(
        "score",
        "what is attributed: score, p, margin (over the query's pairs of the other label), or a head or neuron, such "
        "as h3.5@query<-doc",
    )
    heads: str = option("pattern", "heads by their weights, or by what they read", among=("pattern", "z"))
    neurons: str = option("post", "neurons after the activation, or before it", among=("post", "pre"))
    tol: float = option(0.01, "the largest error of a sum of conductances, relative to the change", positive=True)

    def measured(self, material: Sequence[Pair]) -> list[Pair]:
        """Of one query in `every` so many pairs of either label, as if none lacked a label."""
        some = split_queries(material, self.every)[0] if self.every > 1 else material
        return first_of_each(some, 2 * self.take) if self.take else list(some)

    def check(self, inputs: Inputs) -> Experiment:
        """The target in its normal form; refuses what does not fit."""
        goal = self.goal(inputs.model)
        self._taken(inputs.material, thresholds(inputs.source, self.relevant), goal)
        return replace(self, target=goal)

    def goal(self, model: Reranker) -> str:
        """The target in its normal form; refuses what the model lacks."""
        read = {"heads": self.heads, "neurons": self.neurons}
        return unit_target(model, baseline=self.baseline, target=self.target, tol=self.tol, **read)

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """The lowest relevant grades; of one query in `every` the first `take` pairs of each label."""
        lowest = thresholds(inputs.source, self.relevant)
        return replace(self, relevant=format_thresholds(lowest)), self._taken(inputs.material, lowest, self.target)

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The rows of `unit_rows`; a margin is over the mean score of the query's pairs of the other label."""
        return unit_rows(
            model,
            pairs,
            units=(self.neurons, self.heads, "resid"),
            way=Way(self.baseline, tol=self.tol),
            target=self.target,
            against=against_others(model, pairs) if self.target == MARGIN else None,
        )

    def summarise(self, run: Finished) -> pd.DataFrame:
        """`importance`, relevant first and by rank; `unconverged` names the label's pairs that did not converge."""
        table, failed = importance(run.rows), unconverged(run.rows)
        names = failed["query_id"] + "/" + failed["doc_id"]
        names = names.groupby([failed["collection"], failed["label"]]).agg(_some)
        keys = pd.MultiIndex.from_frame(table[["collection", "label"]])
        table = table.assign(unconverged=names.reindex(keys).to_numpy(), order=table["label"].ne(RELEVANT))
        return table.sort_values(["collection", "order", "kind", "rank"], ignore_index=True).drop(columns="order")

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The first ten of each kind."""
        return summary[summary["rank"] <= PRINTED]

    def findings(self, run: Finished) -> pd.DataFrame | None:
        """The conductance of every head, and of the neurons at either end: the first and the last per cent."""
        summary = run.summary
        sizes = summary.groupby(["collection", "label", "kind"])["rank"].transform("max")
        ends = (summary["rank"] <= sizes * ENDS) | (summary["rank"] > sizes * (1 - ENDS))
        rows = summary[(summary["kind"] == "head") | ends]
        by_kind = {"head": CONDUCTANCE, "neuron": NEURON_CONDUCTANCE}
        how = (self.baseline, self.target, self.heads, self.neurons)
        measures = [by_kind[row.kind](row.label, *how) for row in rows.itertuples()]
        ranks = [str(Rank(*places)) for places in zip(rows["rank"], sizes[rows.index], strict=True)]
        return stated(rows, measures, label=ranks)

    def chart(self, summary: pd.DataFrame) -> Any:
        """The conductance of every head, and how many of the top 1 % of neurons each layer has."""
        heads = summary[summary["kind"] == "head"].rename(columns={"estimate": "conductance"})
        heads[["layer", "head"]] = heads["site"].str.extract(r"h(\d+)\.(\d+)").astype(int).to_numpy()
        neurons = summary[summary["kind"] == "neuron"].set_index("site").rename(columns={"collection": "panel"})
        sides = neurons.groupby(["panel", "label"], sort=False)
        best = [part.assign(neurons=part.index.isin(top(part["estimate"], SHARE))) for _, part in sides]
        lines = pd.concat(best).groupby(["panel", "label", "layer"], sort=False)["neurons"].sum().reset_index()
        maps = [
            charts.head_grid(
                part,
                "conductance",
                title=f"Conductance of heads on {collection}",
                subtitle="mean over pairs, 95 % interval over queries",
                low="low",
                high="high",
                column="label",
            )
            for collection, part in heads.groupby("collection", sort=False)
        ]
        title = "Where the top 1 % of neurons sit"
        return charts.stacked(*maps, charts.lines(lines, "layer", "neurons", "label", title=title, column="panel"))

    def _taken(self, pairs: Sequence[Pair], lowest: Mapping[str, int], target: str) -> list[Pair]:
        """The first `take` pairs of each label of one query in `every`; for a margin, of queries with both labels."""
        taken = labelled(split_queries(pairs, self.every)[0] if self.every > 1 else pairs, lowest, self.take)
        if target != MARGIN:
            return taken
        if both := with_both(taken):
            return both
        raise MechirError("No query has a relevant document and another one, so there is no margin: take more queries.")


def _some(names: pd.Series) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
