"""Runs the largest edges alone: how many does an effect need? (Hanna et al. 2024, arXiv:2403.17806; MIB)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mechir.circuits import Circuit, parse_edge
from mechir.contrasts import Contrast
from mechir.experiment import Experiment, Finished, Inputs, Step
from mechir.inference import Estimates
from mechir.measures import CIRCUIT, stated
from mechir.methods import effects
from mechir.methods.checks import measures_there
from mechir.methods.circuit_ranking import ranking_table
from mechir.methods.edge_graph import Graph
from mechir.methods.edges import edges
from mechir.methods.evaluation import NDCG
from mechir.methods.faithfulness import Reached, circuit_scores
from mechir.methods.faithfulness_curve import FAITHFUL, curve_table
from mechir.methods.patching import ids_of
from mechir.methods.selection import HOW, SIZES, circuits_of, random_alike, ranked_edges
from mechir.options import frame, option
from mechir.pair import split_queries
from mechir.reranker import Weights
from mechir.views import charts
from mechir.views.circuits import circuit_graph, faithfulness_curve

from ._scored import Scored, scores_of, stacked
from .edges import DRAWN, Edges

PART = 2
"""Edges are scored on one query in so many, and circuits run on the others."""
LARGEST = 0.2
"""The share of all edges up to which random circuits run."""
RUN, FEW = 4, 0.25
"""Forwards that a run of a circuit takes, roughly, and the share of contrasts that are the largest of their query."""
PATCHED = 40
"""The largest edges, which are patched exactly on the other queries as well."""


@dataclass(frozen=True)
class Faithfulness(Scored):
    """Runs the largest edges alone: how many does an effect need? (Hanna et al. 2024, arXiv:2403.17806; MIB).

    Edges are scored on half of the queries. On the other half the model runs on circuits of ten sizes alone, and
    without them; beside these run random circuits with as many edges between the same layers, on one contrast of each
    query. The documents are ranked with each circuit alone.
    """

    tier = Weights
    examples = ("--draws 5 --limit-queries 8", "--how greedy --dry-run")
    figure = 22

    how: str = option("top", "the largest edges, or the largest that lead to the score", among=HOW)
    draws: int = option(20, "random circuits beside each", least=1)
    seed: int = option(0, "of the random circuits", least=0)
    evaluate: str = option(NDCG, "measure of ir_measures of the ranking with each circuit alone, such as RR(rel=2)@10")
    scored: pd.DataFrame = frame("edge", "estimate", "size", derived=True)

    def cost(self, model: Weights) -> float:
        """Full forwards per contrast that circuits run on, roughly."""
        runs = RUN * 2 * len(SIZES)  # each circuit alone, and the model without it
        on_few = RUN * len(SIZES) * self.draws + 0.5 * PATCHED + self.forwards_of_edges(model)
        return runs + FEW * on_few

    def measured(self, material: Sequence[Contrast]) -> list[Contrast]:
        """The contrasts of the queries that edges are not scored on."""
        return split_queries(material, PART)[1]

    def check(self, inputs: Inputs) -> Experiment:
        """The measure in normal form; refuses options that do not go together, and a measure that finds nothing."""
        super().check(inputs)
        (measure,) = measures_there(inputs.judged, [self.evaluate])
        return replace(self, evaluate=measure)

    def needs(self, inputs: Inputs) -> Sequence[Step]:
        """The effects of edges on half of the queries."""
        return (inputs.step(Edges(**self.scoring, sample=0, every=PART)),)

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Any]]:
        """The edges by their effect on half of the queries, each with the smallest circuit that it is in."""
        return self.on(inputs.model, inputs.done[0].rows), self.measured(inputs.material)

    def on(self, model: Weights, rows: pd.DataFrame) -> "Faithfulness":
        """The experiment on the circuits of the rows of `Edges`."""
        return replace(self, scored=ranked_edges(scores_of(rows, Graph.of(model)), self.how))

    def measure(self, model: Weights, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """A row per contrast: ids, `base`, `donor`; `only` and `without`, the scores with and without each circuit.

        On each query's contrast with the largest gap also `random`, the scores with the random circuits of one size
        after the other, and `exact` and `estimated`, the effects of the largest edges; elsewhere these are NaN.
        """
        circuits = circuits_of(self.scored)
        only, without = (circuit_scores(model, contrasts, circuits, complement=left) for left in (False, True))
        rows = ids_of(contrasts).assign(base=only.base, donor=only.donor)
        some = largest_gaps(rows)
        few = [contrasts[row] for row in some]
        random = circuit_scores(model, few, self._random(Graph.of(model), circuits)).only
        largest = [parse_edge(edge) for edge in self.scored["edge"][:PATCHED]]
        patched = edges(model, few, method="exact", only=largest)
        estimated = patched if self.method == "exact" else edges(model, few, **self.scoring)
        columns = patched.graph.columns(largest)
        on_few = {"exact": patched.values[:, columns], "estimated": estimated.values[:, columns]}
        on_few["random"] = _columns(random)
        lists = {"only": _columns(only.only), "without": _columns(without.only)}
        lists |= {name: _spread(values, some, len(rows)) for name, values in on_few.items()}
        return rows.assign(**{name: list(values) for name, values in lists.items()})

    def _random(self, graph: Graph, circuits: Mapping[int, Circuit]) -> dict[tuple[int, int], Circuit]:
        """The random circuits by size and draw; large ones are left out, which take longest and say least."""
        return {
            (size, draw): drawn
            for size, circuit in circuits.items()
            if size <= round(LARGEST * len(graph))
            for draw, drawn in enumerate(random_alike(graph, circuit, self.draws, self.seed))
        }

    def summarise(self, run: Finished) -> pd.DataFrame:
        """What circuits reach, by size; the curve in a few numbers; the largest edges.

        `kind` "size", the first that without any edges: `size`, its `share` of all edges; `estimate` = f with `low`,
        `high`, `queries`, `pairs` and `left_out` (gaps that are too small); `random`, the mean f of the random
        circuits, with the extremes `random_low`, `random_high`, and `p_draws` = (1 + random circuits that reach as
        much) / (1 + draws), on the contrasts that both ran on; `without`, the f of the model without the circuit, with
        `without_low`, `without_high`; the columns of `ranking_table`. "curve": `measure` ("cmd", "cpr", "cmd_log",
        "cpr_log", "size" of the smallest faithful circuit), `estimate`, `low`, `high`: see `curve_table`. "edge":
        `edge`, `estimate` on the queries that edges were scored on; `exact` and `estimated`, on the
        contrasts that random circuits ran on; `size` of the smallest circuit.
        """
        assert run.model is not None
        rows, sizes, n = run.rows, sorted(set(self.scored["size"])), len(Graph.of(run.model))
        only, left = (_reached(rows, stacked(rows, name)) for name in ("only", "without"))
        table = pd.DataFrame({"kind": "size", "size": sizes, "share": np.array(sizes) / n})
        table = table.assign(**_interval(only.shares), queries=len(only.gaps), pairs=int(only.large.sum()))
        table = table.assign(left_out=int((~only.large).sum()), **_interval(left.shares, "without"))
        ranked = ranking_table(rows, rows["base"].to_numpy(), stacked(rows, "only"), run.judged, self.evaluate)
        some = rows[[not np.isnan(values).all() for values in rows["random"]]]
        table = pd.concat([table, self._beside(some), ranked], axis=1)
        table = pd.concat([self._empty(rows, run.judged), table], ignore_index=True)
        curve = curve_table(only, sizes, n, seed=self.seed).assign(kind="curve")
        again = {name: pd.Series(stacked(some, name).mean(0)) for name in ("exact", "estimated")}
        largest = self.scored[:DRAWN].assign(kind="edge", **again)
        return pd.concat([table, curve, largest], ignore_index=True)

    def _empty(self, rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
        """The line of the circuit without edges, which scores the donors: their ranking is what circuits start from."""
        ends = rows["base"].to_numpy(), rows["donor"].to_numpy()[:, None]
        line = pd.DataFrame({"kind": ["size"], "size": 0, "share": 0.0, "estimate": 0.0, "without": 1.0})
        return pd.concat([line, ranking_table(rows, *ends, judged, self.evaluate)], axis=1)

    def _beside(self, rows: pd.DataFrame) -> pd.DataFrame:
        """`random` and what belongs to it, a line for each size; `rows`: those that random circuits ran on."""
        only, random = stacked(rows, "only"), stacked(rows, "random")
        f = _reached(rows, np.concatenate([only, random], 1)).shares.estimate
        circuit, drawn = f[: only.shape[1]], f[only.shape[1] :].reshape(-1, self.draws)
        reach = (drawn >= circuit[: len(drawn), None] - 1e-12).sum(1)
        lines = {"random": drawn.mean(1), "random_low": drawn.min(1), "random_high": drawn.max(1)}
        return pd.DataFrame(lines | {"p_draws": (1 + reach) / (1 + self.draws)})

    def findings(self, run: Finished) -> pd.DataFrame:
        """The gap, and f of each circuit, with the p of random circuits beside it."""
        lines = run.summary[(run.summary["kind"] == "size") & (run.summary["size"] > 0)]
        measures = [CIRCUIT(f"{size:.0f}", run.diagnostic) for size in lines["size"]]
        reached = stated(lines, measures, site="", p=lines["p_draws"])
        return pd.concat([effects.gap_stated(run.rows, run.diagnostic), reached], ignore_index=True)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The circuits by size, and the curve."""
        names = ["kind", "size", "measure", "estimate", "low", "high", "random", "random_high", "without"]
        ranked = [name.removesuffix("_loss") for name in summary if name.endswith("_loss")]
        shown = summary.loc[summary["kind"] != "edge", [*names, *ranked, "kendall", "queries"]]
        return shown.astype({"size": "Int64", "queries": "Int64"})

    def chart(self, summary: pd.DataFrame) -> Any:
        """The circuit, as large as one likes, and the curve of faithfulness over its size."""
        kinds = dict(iter(summary.groupby("kind")))
        largest = kinds["edge"].reset_index(drop=True)
        away = (largest["exact"] - largest["estimated"]).abs() > largest["estimated"].abs() / 2
        graph = circuit_graph(
            largest.assign(disagrees=away),
            title="The edges with the largest effects (logits)",
            subtitle=f"dashed: of the {PATCHED} largest, those whose exact effect differs by more than half",
        )
        curve = kinds["curve"].set_index("measure")["estimate"]
        least = f"{curve['size']:.0f} edges reach" if curve["size"] > 0 else "no circuit reaches"
        numbers = f"{least} {FAITHFUL}; CMD {curve['cmd']:.3f} (log {curve['cmd_log']:.3f}), CPR {curve['cpr']:.3f}"
        return charts.stacked(graph, faithfulness_curve(kinds["size"].query("size > 0"), subtitle=numbers))


def _reached(rows: pd.DataFrame, scores: np.ndarray) -> Reached:
    return Reached.of(rows["base"].to_numpy(), rows["donor"].to_numpy(), scores, rows["query_id"].tolist())


def largest_gaps(rows: pd.DataFrame) -> list[int]:
    """The row of each query's contrast whose base and donor differ most."""
    gaps = (rows["base"] - rows["donor"]).abs()
    return gaps.groupby(rows["query_id"], sort=False).idxmax().tolist()


def _columns(scores: Mapping[Any, np.ndarray]) -> np.ndarray:
    """Scores by circuit as an array, a row for each contrast."""
    return np.stack([*scores.values()], 1)


def _spread(values: np.ndarray, rows: Sequence[int], n: int) -> np.ndarray:
    """The values at these of n rows, NaN at the others."""
    spread = np.full((n, values.shape[1]), np.nan, dtype=np.float32)
    spread[list(rows)] = values
    return spread


def _interval(shares: Estimates, name: str = "") -> dict[str, np.ndarray]:
    begins = f"{name}_" if name else ""
    return {name or "estimate": shares.estimate, f"{begins}low": shares.low, f"{begins}high": shares.high}
