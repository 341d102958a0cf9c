"""Asks whether other queries would give the same circuit (Meloux et al. 2025, arXiv:2510.00845)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechir.experiment import Finished
from mechir.methods.edge_graph import Graph
from mechir.methods.selection import BAR, SIZES, overlap, resampled, within
from mechir.views import charts
from mechir.views.scatter import scatter

from ._scored import by_queries
from .edges import Edges

DRAWS = 200
"""Resamples of the queries."""
AT = 0.01
"""The share of all edges in the circuit whose edges are listed one by one."""
NAMED = 2
"""Edges whose names the chart shows."""


@dataclass(frozen=True)
class Stability(Edges):
    """Asks whether other queries would give the same circuit (Meloux et al. 2025, arXiv:2510.00845).

    Whole queries are drawn anew 200 times, and the largest edges taken each time: the mean Jaccard index of two such
    circuits, for ten sizes, beside that of circuits drawn at random; and how often each edge is in.
    """

    examples = ("--limit-queries 8", "--method eap --dry-run")
    rows_of = Edges
    figure = 23

    def summarise(self, run: Finished) -> pd.DataFrame:
        """The agreement of circuits by size, and of the circuit of 1 % of the edges how often each edge is in.

        `kind` "size": `size`, its `share` of all edges, `estimate`, the mean Jaccard index of two circuits, `low` and
        `high`, between which 95 % of the pairs lie (no interval of the mean), `chance`, that of two random circuits of
        the size, `queries`. "edge": `edge`, `estimate`, the share of draws whose circuit has it, `effect`, its mean
        effect, `same_sign`, the share of draws in which the effect has that sign.
        """
        assert run.model is not None
        effects, graph = by_queries(run.rows, "effects"), Graph.of(run.model)
        alike = len(effects) < 2  # resamples of one query say nothing
        means, n = resampled(effects, DRAWS, self.seed), len(graph)
        lines = []
        for size in sorted({max(1, round(share * n)) for share in SIZES}):
            pairs = np.array([np.nan]) if alike else overlap(within(means, size))
            low, high = np.quantile(pairs, [0.025, 0.975])
            line = {"kind": "size", "size": size, "share": size / n, "estimate": pairs.mean(), "low": low, "high": high}
            lines.append(line | {"chance": size / (2 * n - size), "queries": len(effects)})
        mean = effects.mean(0)
        often = within(means, max(1, round(AT * n))).mean(0)
        some = np.flatnonzero(often)[np.argsort(-often[often > 0], kind="stable")]
        same = (np.sign(means[:, some]) == np.sign(mean[some])).mean(0)
        edges = pd.DataFrame({"kind": "edge", "edge": [str(graph.edges[column]) for column in some]})
        edges = edges.assign(estimate=often[some], effect=mean[some], same_sign=same)
        return pd.concat([pd.DataFrame(lines), edges], ignore_index=True)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The agreement by size."""
        sizes = summary[summary["kind"] == "size"]
        names = ["size", "share", "estimate", "low", "high", "chance", "queries"]
        return sizes[names].astype({"size": int, "queries": int})

    def findings(self, run: Finished) -> None:
        """None: the findings are those of `Edges`."""

    def chart(self, summary: pd.DataFrame) -> Any:
        """The Jaccard index by size, and the edges that are in most often."""
        kinds = dict(iter(summary.groupby("kind")))
        sizes = kinds["size"].assign(edges=kinds["size"]["size"].map("{:,.0f} edges".format))
        subtitle = f"mean over pairs of {DRAWS} resamples of the queries; {BAR} is the bar of Meloux et al."
        agreement = charts.bars(
            sizes,
            "estimate",
            "edges",
            title="Agreement of circuits (Jaccard)",
            subtitle=subtitle,
            low="low",
            high="high",
        )
        edges = kinds["edge"].rename(columns={"estimate": "share of draws", "effect": "mean effect (logits)"})
        edges = edges.assign(sign=np.where(edges["same_sign"] == 1, "always one sign", "both signs"))
        edges["named"] = edges["mean effect (logits)"].abs().rank(ascending=False) <= NAMED
        title = f"How often an edge is among the largest {AT:.0%}"
        often = scatter(
            edges, "mean effect (logits)", "share of draws", "sign", title=title, label="edge", named="named"
        )
        return charts.stacked(agreement, often)
