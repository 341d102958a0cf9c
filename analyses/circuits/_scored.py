"""What every experiment on edges shares: how edges are scored, and on which contrasts."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechir.experiment import Experiment, Inputs
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_scores import EdgeScores, Way
from mechir.methods.edge_streams import LN
from mechir.methods.metrics import means_by_query
from mechir.options import option
from mechir.reranker import Weights


@dataclass(frozen=True)
class Scored(Experiment):
    """An experiment that scores edges."""

    runs_on = "contrasts"
    embedded: ClassVar = {"limit_queries": 40, "per_grade": 1, "easy_negatives": 0}

    method: str = option("eap-ig", "how edges are scored", among=("exact", "eap", "eap-ig"))
    points: int = option(5, "points of eap-ig between the donor's embeddings and the base's", least=1)
    ln: str = option("frozen", "the LayerNorms that a change passes on its way, for gradients", among=LN)
    qk_fix: bool = option(False, "put changed queries and keys through the softmax exactly")

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses options that do not go together."""
        Way(**self.scoring)
        return self

    @property
    def scoring(self) -> dict[str, Any]:
        """The arguments of `edges`."""
        return {"method": self.method, "points": self.points, "ln": self.ln, "qk_fix": self.qk_fix}

    def forwards_of_edges(self, model: Weights) -> float:
        """Full forwards per contrast that scoring all edges takes, roughly."""
        return {"eap": 5.0, "eap-ig": 3.5 * self.points + 3, "exact": 0.4 * len(Graph.of(model))}[self.method]


def stacked(rows: pd.DataFrame, column: str) -> np.ndarray:
    """A column of lists as an array, a row for each contrast."""
    return np.stack(rows[column].to_list())


def scores_of(rows: pd.DataFrame, graph: Graph) -> EdgeScores:
    """The rows of `Edges` as the value that `edges` returns."""
    base, donor = (rows[end].to_numpy() for end in ("base", "donor"))
    return EdgeScores(graph, tuple(rows["query_id"]), stacked(rows, "effects"), base, donor, Way())


def by_queries(rows: pd.DataFrame, column: str) -> np.ndarray:
    """The mean over each query's contrasts of a column of lists: one row for each query."""
    return means_by_query(stacked(rows, column), rows["query_id"].tolist())
