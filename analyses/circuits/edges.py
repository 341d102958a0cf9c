"""Scores every edge: embedding, heads, MLPs, score (Syed et al. 2023; Hanna et al. 2024, arXiv:2403.17806)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mechir.circuits import parse_edge
from mechir.contrasts import Contrast
from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import LEVEL
from mechir.measures import EDGE, stated
from mechir.methods import effects
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_scores import FEWEST_EDGES, agree, summary
from mechir.methods.edges import edges
from mechir.methods.patching import ids_of
from mechir.methods.statistics import percentiles
from mechir.options import frame, option
from mechir.pair import split_queries
from mechir.reranker import Weights
from mechir.sites import Score
from mechir.views import charts
from mechir.views.circuits import circuit_graph
from mechir.views.scatter import scatter

from ._scored import Scored, by_queries

SHOWN = 20
"""Edges in the table of a terminal."""
DRAWN = 200
"""Edges that the chart can show."""
DRAWS = 1000
"""Resamples of the edges drawn."""


@dataclass(frozen=True)
class Edges(Scored):
    """Scores every edge: embedding, heads, MLPs, score (Syed et al. 2023; Hanna et al. 2024, arXiv:2403.17806).

    An edge's effect is what the score becomes when its reader sees the donor's sender, less the score. Some edges drawn
    at random are patched exactly as well: how far to believe the estimates of all others.
    """

    tier = Weights
    examples = ("--limit-queries 8", "--method eap --sample 0 --limit-queries 8")
    figure = 21

    sample: int = option(50, "edges drawn at random that are patched exactly as well", least=0)
    seed: int = option(0, "of the edges drawn", least=0)
    every: int = option(1, "edges are scored on one query in so many", least=1)
    drawn: pd.DataFrame = frame("edge")

    def cost(self, model: Weights) -> float:
        """Full forwards per contrast: gradients for all edges, and half a forward for each edge that is patched."""
        n = len(Graph.of(model))
        return self.forwards_of_edges(model) + 0.5 * min(self.sample, n)

    def measured(self, material: Sequence[Contrast]) -> list[Contrast]:
        """The contrasts of one query in `every`."""
        return list(material) if self.every == 1 else split_queries(material, self.every)[0]

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Any]]:
        """The edges that are patched exactly, drawn; of the queries one in `every`."""
        graph = Graph.of(inputs.model)
        count = 0 if self.method == "exact" else min(self.sample, len(graph))
        columns = np.sort(np.random.default_rng(self.seed).choice(len(graph), count, replace=False))
        drawn = pd.DataFrame({"edge": [str(graph.edges[column]) for column in columns]})
        return replace(self, drawn=drawn), self.measured(inputs.material)

    def measure(self, model: Weights, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """A row per contrast: ids, `base`, `donor`, `effects`, those of all edges, and `exact`, those of the drawn."""
        scores = edges(model, contrasts, **self.scoring)
        exact = scores.values[:, :0]
        if len(self.drawn):
            patched = edges(model, contrasts, method="exact", only=self.drawn["edge"].tolist())
            exact = patched.values[:, patched.graph.columns(map(parse_edge, self.drawn["edge"]))]
        columns = {"base": scores.base, "donor": scores.donor, "effects": list(scores.values), "exact": list(exact)}
        return ids_of(contrasts).assign(**columns)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """The effect of every edge, and how well it was estimated.

        `kind` "edge", the largest first: the columns of `EdgeScores.frame`; `exact`, the mean exact effect of an edge
        that was drawn. "agreement", between the two on the edges drawn: `measure` ("r"; "rho"; "signs", the edges whose
        sign differs), `estimate`, `low` and `high`, the 95 % interval with these edges resampled, `edges`.
        """
        assert run.model is not None
        graph = Graph.of(run.model)
        frame = summary(by_queries(run.rows, "effects"))
        frame.insert(0, "edge", [str(edge) for edge in graph.edges])
        frame["exact"] = np.nan
        if len(self.drawn):
            columns = graph.columns(map(parse_edge, self.drawn["edge"]))
            frame.loc[columns, "exact"] = by_queries(run.rows, "exact").mean(0)
        frame = frame.sort_values("estimate", key=abs, ascending=False, ignore_index=True)
        frame.insert(0, "kind", "edge")
        return pd.concat([frame, agreement(frame.dropna(subset="exact"), self.seed)], ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The gap, the effect of each edge whose corrected p is below .05, and of every edge to the score.

        Edges to the score are there whatever their p: where a head has none that holds, that contradicts its role.
        """
        edges = run.summary[run.summary["kind"] == "edge"]
        to_score = edges["edge"].map(lambda edge: parse_edge(edge).readers == (Score(),))
        held = edges[(edges["p_corrected"] < LEVEL) | to_score]
        measure = EDGE(run.diagnostic, self.method, self.ln)
        lines = stated(held.assign(site=held["edge"]), measure, family=f"{len(edges)} edges")
        return pd.concat([effects.gap_stated(run.rows, run.diagnostic), lines], ignore_index=True)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The largest edges, and the agreement with exact effects."""
        edges = summary[summary["kind"] == "edge"].head(SHOWN)
        agreed = summary[summary["kind"] == "agreement"]
        shown = pd.concat([edges.drop(columns="exact"), agreed]).dropna(axis=1, how="all")
        return shown.astype({name: "Int64" for name in ("queries", "edges") if name in shown})

    def chart(self, summary: pd.DataFrame) -> Any:
        """The largest edges as a graph over layers; estimates against exact effects of the edges drawn."""
        edges = summary[summary["kind"] == "edge"]
        graph = circuit_graph(edges.head(DRAWN), title="The edges with the largest effects (logits)")
        drawn = edges.dropna(subset="exact")
        if drawn.empty:
            return graph
        r, rho, signs, n = agree(drawn["estimate"].to_numpy(), drawn["exact"].to_numpy())
        points = scatter(
            drawn.assign(kind=np.where(drawn["p_corrected"] < LEVEL, "holds", "does not hold")),
            "estimate",
            "exact",
            "kind",
            title="Estimated against exact effects of edges drawn at random",
            subtitle=f"r {r:.3f}, rho {rho:.3f}, {signs} of {n} signs differ",
        )
        return charts.stacked(graph, points)


def agreement(drawn: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The agreement of estimated with exact effects on edges that were drawn, a line for each of its measures."""
    estimated, exact = drawn["estimate"].to_numpy(), drawn["exact"].to_numpy()
    n = len(drawn)
    if n < FEWEST_EDGES:
        return pd.DataFrame()
    columns = np.random.default_rng(seed).integers(n, size=(DRAWS, n))
    resampled = np.array([agree(estimated[some], exact[some])[:3] for some in columns])
    lines = pd.DataFrame({"kind": "agreement", "measure": ["r", "rho", "signs"]})
    lines["estimate"] = [float(value) for value in agree(estimated, exact)[:3]]
    lines[["low", "high"]] = [percentiles(column[np.isfinite(column)]) for column in resampled.T]
    return lines.assign(edges=n)
