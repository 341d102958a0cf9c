"""Whether a circuit is complete: knock some of its edges out, and the whole model must fail as the circuit does.

    estimate = f(all edges without K) - f(C without K)

K is a part of the circuit C whose edges carry the donor's activations. If C holds all that does the work, the model
without K has nothing that C without K lacks, and the two agree for every K. Where the model does better, edges outside
C stand in for those of K: backups, or a second way.

Source: Wang et al. 2022 (arXiv:2211.00593, section 4: completeness), who knock nodes out; here edges are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from mechir.circuits import Circuit, Edge
from mechir.errors import MechirError, refuse_other_than_whole
from mechir.methods.circuit_runs import as_contrasts
from mechir.methods.effects import MIN_GAP
from mechir.methods.faithfulness import Reached, circuit_scores, reached, refuse_unknown_options
from mechir.methods.metrics import Metric
from mechir.reranker import Weights, needs_edges


@dataclass(frozen=True, eq=False)
class Completeness:
    """What circuit and model reach without the same edges, on every query.

    Attributes:
        sets: the edges that were knocked out, by column.
        circuit: what the circuit without each set reaches of the gap between donor and base.
        model: what all edges without it reach.
    """

    sets: tuple[Circuit, ...]
    circuit: Reached
    model: Reached

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line for each set of edges.

        `without`, the edges; `size`, how many; `f_circuit` and `f_model`, the shares of the gap that are left;
        `estimate` = f_model - f_circuit with its 95 % interval `low`, `high` over queries, `p` alone and `p_corrected`
        for all lines together (bootstrap-t, max-T); `queries`, `pairs`; `left_out`, the contrasts whose gap is too
        small. Its largest |estimate| says how incomplete the circuit is.
        """
        columns = {"without": self._names, "size": list(map(len, self.sets))}
        columns |= {"f_circuit": self.circuit.shares.estimate, "f_model": self.model.shares.estimate}
        return pd.DataFrame(columns | self.model.compared(self.model.toward - self.circuit.toward))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One line for each set and query: `without`, `query_id`, `gap`, and `f_circuit`, `f_model`, `estimate`."""
        n, m = self.model.toward.shape
        f = {"f_circuit": self.circuit.rows.T.flatten(), "f_model": self.model.rows.T.flatten()}
        ids = {"query_id": np.tile(self.model.query_ids, m), "gap": np.tile(self.model.gaps, m)}
        frame = pd.DataFrame({"without": np.repeat(self._names, n)} | ids | f)
        return frame.assign(estimate=frame["f_model"] - frame["f_circuit"])

    @property
    def _names(self) -> list[str]:
        return [", ".join(map(str, edges)) for edges in self.sets]


def completeness(
    model: Weights,
    contrasts: Any,
    circuit: Any,
    *,
    draws: int = 20,
    share: float = 0.1,
    seed: int = 0,
    sets: Any = None,
    metric: str | Metric = "score",
    min_gap: float = MIN_GAP,
    **options: Any,
) -> Completeness:
    """What is left of circuit and model when both lack the same edges of the circuit.

    Args:
        model: a `HookedEncoder`.
        contrasts: aligned pairs of queries on which the circuit was not found.
        circuit: its edges.
        draws: how many sets of edges are drawn, no set twice; all of them where there are no more.
        share: how much of the circuit each set holds, at least one edge. Large sets stop circuit and model alike.
        seed: of the draw.
        sets: the sets themselves in place of drawn ones, e.g. the edges out of each head.
        metric: see `faithfulness`; likewise `min_gap` and `options`.
        min_gap: see `faithfulness`.
        options: of `circuit_scores`.

    Raises:
        MechirError: for an empty circuit, sets that are no part of it, numbers out of range; as `faithfulness`.

    It misleads where drawn sets all hold an edge that nothing goes without (the last one, into the score): circuit and
    model then fail alike, whatever the circuit lacks. Look at the largest line and not the mean, and give `sets`.
    """
    needs_edges(model, "completeness")
    refuse_unknown_options("completeness", options)
    whole, listed = Circuit(circuit), as_contrasts(contrasts)
    knocked = drawn(whole, draws, share, seed) if sets is None else _parts(whole, sets)
    rest, out = {place: whole - some for place, some in enumerate(knocked)}, dict(enumerate(knocked))
    without = (
        circuit_scores(model, listed, rest, **options),
        circuit_scores(model, listed, out, complement=True, **options),
    )
    return Completeness(tuple(knocked), *(reached(scores, listed, metric, min_gap) for scores in without))


def drawn(circuit: Circuit, draws: int, share: float, seed: int) -> list[Circuit]:
    """Random parts of a circuit, each with this share of its edges; all such parts where there are no more than draws.

    Raises:
        MechirError: for a circuit without edges, draws or a seed that is no whole number, or a share that is none.
    """
    _refuse_empty(circuit)
    refuse_other_than_whole(1, draws=draws)
    refuse_other_than_whole(0, seed=seed)
    if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share <= 1:
        raise MechirError(f"share={share!r:.40} is no fraction: write e.g. share=0.1 of the circuit's edges.")
    edges = list(circuit)
    size = min(len(edges), max(1, round(share * len(edges))))
    if math.comb(len(edges), size) <= draws:
        return [Circuit(some) for some in itertools.combinations(edges, size)]
    generator, parts = np.random.default_rng(seed), dict[Circuit, None]()
    while len(parts) < draws:
        parts[Circuit(edges[place] for place in generator.choice(len(edges), size, replace=False))] = None
    return list(parts)


def _parts(circuit: Circuit, sets: Any) -> list[Circuit]:
    """The sets as circuits, checked to be parts of the circuit."""
    _refuse_empty(circuit)
    sets = [sets] if isinstance(sets, str | Edge) else sets
    if not isinstance(sets, Iterable):
        raise MechirError(f"sets={sets!r:.40} are no sets of edges: give some, e.g. [[edge] for edge in circuit].")
    listed: Sequence[Circuit] = [some if isinstance(some, Circuit) else Circuit(some) for some in sets]
    if not listed:
        raise MechirError("sets= holds no set of edges: give some, e.g. [[edge] for edge in circuit].")
    for some in listed:
        if not some:
            raise MechirError("sets= holds a set without edges, which knocks out nothing: leave it out.")
        if not some <= circuit:
            foreign = next(iter(some - circuit))
            raise MechirError(f"'{foreign}' is no edge of the circuit: knock out what belongs to it.")
    return list(dict.fromkeys(listed))


def _refuse_empty(circuit: Circuit) -> None:
    if not circuit:
        raise MechirError("The circuit has no edges to knock out: give one, e.g. scores.circuit(20).")
