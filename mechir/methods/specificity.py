"""Whether a circuit is specific: on its contrasts, circuits of other diagnostics with as many edges do worse.

    estimate = f(circuit) - f(other)

Without this a faithful circuit may be no more than what every input needs: circuits of other tasks are often as
faithful as the circuit of the task.

Source: Li and Subramani 2026 (arXiv:2605.08348).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mechir.circuits import Circuit
from mechir.errors import MechirError
from mechir.methods.circuit_runs import as_contrasts
from mechir.methods.edge_scores import EdgeScores
from mechir.methods.effects import MIN_GAP
from mechir.methods.faithfulness import Reached, circuit_scores, reached, refuse_unknown_options
from mechir.methods.metrics import Metric
from mechir.reranker import Weights, needs_edges


@dataclass(frozen=True, eq=False)
class Specificity:
    """What a circuit and others of its size reach on the same contrasts, on every query.

    Attributes:
        circuit: the circuit.
        others: the others, by name.
        reached: what the circuit (the first column) and the others reach of the gap between donor and base.
    """

    circuit: Circuit
    others: Mapping[str, Circuit]
    reached: Reached

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line for each other circuit.

        `other`, its name; `size`; `shared`, the edges that both have; `f` of the circuit and `f_other`; `estimate` =
        f - f_other with its 95 % interval `low`, `high` over queries, `p` alone and `p_corrected` for all lines
        together (bootstrap-t of the queries' differences, max-T); `queries`, `pairs`; `left_out`, the contrasts whose
        gap is too small.
        """
        toward, f = self.reached.toward, self.reached.shares.estimate
        shared = [len(self.circuit & other) for other in self.others.values()]
        columns = {"other": list(self.others), "size": len(self.circuit), "shared": shared, "f": f[0], "f_other": f[1:]}
        return pd.DataFrame(columns | self.reached.compared(toward[:, :1] - toward[:, 1:]))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One line for each other circuit and query: `other`, `query_id`, `gap`, and `f`, `f_other`, `estimate`."""
        f, n, m = self.reached.rows, len(self.reached.query_ids), len(self.others)
        ids = {"query_id": np.tile(self.reached.query_ids, m), "gap": np.tile(self.reached.gaps, m)}
        shares = {"f": np.tile(f[:, 0], m), "f_other": f[:, 1:].T.flatten()}
        frame = pd.DataFrame({"other": np.repeat(list(self.others), n)} | ids | shares)
        return frame.assign(estimate=frame["f"] - frame["f_other"])


def specificity(
    model: Weights,
    contrasts: Any,
    circuit: Any,
    others: Any,
    *,
    metric: str | Metric = "score",
    min_gap: float = MIN_GAP,
    **options: Any,
) -> Specificity:
    """How much better a circuit does than others of its size.

    Args:
        model: a `HookedEncoder`.
        contrasts: aligned pairs of queries on which none of the circuits was found.
        circuit: its edges.
        others: by name: circuits of other diagnostics, or random ones, with as many edges; or the `EdgeScores` of other
            diagnostics, whose largest edges are taken.
        metric: see `faithfulness`; likewise `min_gap` and `options`.
        min_gap: see `faithfulness`.
        options: of `circuit_scores`.

    Raises:
        MechirError: for circuits of unequal size, no others; as `faithfulness`.

    It misleads where a circuit overshoots: f above 1 is no better than 1, and the difference counts it so.
    """
    needs_edges(model, "specificity")
    refuse_unknown_options("specificity", options)
    whole, listed = Circuit(circuit), as_contrasts(contrasts)
    if not whole:
        raise MechirError("The circuit has no edges to compare: give one, e.g. scores.circuit(20).")
    if not isinstance(others, Mapping) or any(other is None for other in others.values()):
        raise MechirError("others= holds no circuits by name: give a dictionary, {'query': circuit or scores}.")
    if not others:
        raise MechirError("There is no other circuit: give others={'query': edges(model, other_contrasts)}.")
    equal = {name: _of_size(name, other, len(whole)) for name, other in others.items()}
    scores = circuit_scores(model, listed, dict(enumerate([whole, *equal.values()])), **options)
    return Specificity(whole, equal, reached(scores, listed, metric, min_gap))


def _of_size(name: str, given: Any, size: int) -> Circuit:
    """The circuit of a name, checked to have so many edges; the largest edges of scores."""
    if isinstance(given, EdgeScores):
        measured = int(np.isfinite(given.estimate).sum())
        if measured < size:
            raise MechirError(f"'{name}' scores {measured} edges, and the circuit has {size}: score all edges.")
        return given.circuit(size)
    other = Circuit(given)
    if len(other) != size:
        raise MechirError(
            f"'{name}' has {len(other)} edges and the circuit {size}, and more edges do better: make it of "
            f"scores.circuit({size}), or give the scores."
        )
    return other
