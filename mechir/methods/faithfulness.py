"""How much of the model a circuit is: the score with the circuit alone, between those of the donor and of the base.

    f(C) = (m(C) - m(none)) / (m(all) - m(none))

0: the circuit does nothing that the donor's text does not; 1: it does all that sets base and donor apart; above 1 it
overshoots, because edges that hold the score back are missing. Every contrast counts as much as its gap
|m(all) - m(none)|; gaps that are too small carry no ratio and are counted instead.

Source: Hanna et al. 2024; CMD and CPR: Mueller et al. 2025 (MIB, arXiv:2504.13151).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mechir import inference
from mechir.batches import for_numpy
from mechir.circuits import Circuit
from mechir.contrasts import encode_contrasts
from mechir.errors import MechirError
from mechir.methods.circuit_runs import CircuitRun, Donor, Plan, as_contrasts, run_hooks
from mechir.methods.edge_graph import Graph, refuse_foreign_edges
from mechir.methods.effects import MIN_GAP
from mechir.methods.metrics import Metric, as_metric, by_query, evaluated, score
from mechir.reranker import Weights, needs_edges

FAITHFUL = 0.9
"""The share from which on a circuit is called faithful."""


class CircuitScores(NamedTuple):
    """The scores of every contrast with all edges (`base`), with none (`donor`), and with each circuit alone."""

    base: Float[np.ndarray, "contrast"]
    donor: Float[np.ndarray, "contrast"]
    only: dict[Any, Float[np.ndarray, "contrast"]]


@torch.no_grad()
def circuit_scores(
    model: Weights,
    contrasts: Any,
    circuits: Mapping[Any, Circuit],
    *,
    complement: bool = False,
    max_rows: int = 64,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> CircuitScores:
    """The scores with each circuit alone, as `Only` gives them, the donors' run shared; `Without`'s where `complement`.

    Raises:
        MechirError: for contrasts that are not aligned, and for an edge that the model lacks.
    """
    needs_edges(model, "circuit_scores")
    for circuit in circuits.values():
        refuse_foreign_edges(model, circuit)
    encoded = encode_contrasts(model, as_contrasts(contrasts), max_length)
    graph, n = Graph.of(model), len(encoded.contrasts)
    plans = {name: Plan.of(graph, circuit, complement) for name, circuit in circuits.items()}
    scores = {name: np.empty(n, dtype=np.float32) for name in circuits}
    base, out = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    for batch in encoded.batches(model, max_rows=max_rows, max_tokens=max_tokens, progress=progress):
        donor = Donor.of(model, batch.donor)
        base[batch.rows] = for_numpy(model(batch.base, head_row=True)).numpy()
        out[batch.rows] = for_numpy(donor.run.score).numpy()
        for name, plan in plans.items():
            with model.hooks(run_hooks(CircuitRun(model, plan, donor))):
                scores[name][batch.rows] = for_numpy(model(batch.base, head_row=True)).numpy()
    return CircuitScores(base, out, scores)


def faithfulness(
    model: Weights,
    contrasts: Any,
    circuits: Mapping[Any, Circuit],
    *,
    metric: str | Metric = "score",
    complement: bool = False,
    min_gap: float = MIN_GAP,
    **options: Any,
) -> pd.DataFrame:
    """How much of what sets base and donor apart each circuit does alone.

    Args:
        model: a `HookedEncoder`.
        contrasts: aligned pairs of queries on which the circuits were not found.
        circuits: by name, e.g. of `nested`.
        metric: "score", or a function of the scores of a query's contrasts.
        complement: of the model without each circuit instead: what is left of it.
        min_gap: contrasts (queries, with another metric) whose gap is smaller are left out and counted.
        options: of `circuit_scores`.

    Returns:
        One line for each circuit: `circuit`, its name; `size`, its edges; `estimate` = f with `low` and `high`, the
        95 % interval over queries; `queries`, `pairs`; `left_out`, the contrasts whose gap is too small.

    Raises:
        MechirError: as `circuit_scores`; when every gap is too small.
    """
    needs_edges(model, "faithfulness")
    listed = as_contrasts(contrasts)
    scores = circuit_scores(model, listed, circuits, complement=complement, **options)
    queries = [contrast.query_id for contrast in listed]
    ends, only = (scores.base, scores.donor), list(scores.only.values())
    of = as_metric(metric)
    if of is not score:
        ends, only = tuple(_each(of, x, queries) for x in ends), [_each(of, x, queries) for x in only]  # type: ignore[assignment]
        queries = list(dict.fromkeys(queries))
    gap = ends[0] - ends[1]
    large = np.abs(gap) >= max(min_gap, np.finfo(np.float32).tiny)
    if not large.any():
        raise MechirError(
            f"Base and donor differ by less than {min_gap} on every contrast, e.g. that of {listed[0]}: there is "
            "nothing to be faithful to; give other contrasts, or a smaller min_gap."
        )
    rows = [own[large[own]] for own in by_query(queries).values() if large[own].any()]
    gaps = np.array([np.abs(gap[own]).mean() for own in rows])
    toward = np.sign(gap)
    reached = np.array([[((x - ends[1]) * toward)[own].mean() for x in only] for own in rows])
    shares = inference.shares(reached, gaps[:, None])
    return pd.DataFrame(
        {
            "circuit": list(circuits),
            "size": [len(circuit) for circuit in circuits.values()],
            "estimate": shares.estimate,
            "low": shares.low,
            "high": shares.high,
            "queries": len(rows),
            "pairs": int(large.sum()),
            "left_out": int((~large).sum()),
        }
    )


def _each(metric: Metric, scores: Float[np.ndarray, "contrast"], queries: list[str]) -> Float[np.ndarray, "query"]:
    return np.array(
        [float(evaluated(metric, torch.from_numpy(scores[own]), query)) for query, own in by_query(queries).items()],
        dtype=np.float32,
    )


class Curve(NamedTuple):
    """A curve of faithfulness over sizes in four numbers, and the smallest size that is faithful.

    `cmd`: the area between f and 1, `cpr`: that under f, over the share of edges from 0 to 1 as MIB has it, where the
    sizes above a half weigh most. `cmd_log`, `cpr_log`: the means over the logarithm of the size. A `cpr` above 1 says
    that circuits overshoot, not that they are good: read `cmd`. `size`: None where no circuit reaches `FAITHFUL`.
    """

    cmd: float
    cpr: float
    cmd_log: float
    cpr_log: float
    size: int | None


def curve(frame: pd.DataFrame, edges: int) -> Curve:
    """The curve of the lines of `faithfulness` of nested circuits; `edges`: how many the whole model has."""
    lines = frame.sort_values("size")
    f, share = lines["estimate"].to_numpy(), lines["size"].to_numpy() / edges
    linear, logarithm = np.concatenate([[0.0], share]), np.log10(share)
    from_none = np.concatenate([[0.0], f])
    span = max(float(np.ptp(logarithm)), np.finfo(float).tiny)
    reached = lines["size"][lines["estimate"] >= FAITHFUL]
    return Curve(
        cmd=float(np.trapezoid(np.abs(1 - from_none), linear)),
        cpr=float(np.trapezoid(from_none, linear)),
        cmd_log=float(np.trapezoid(np.abs(1 - f), logarithm)) / span,
        cpr_log=float(np.trapezoid(f, logarithm)) / span,
        size=None if reached.empty else int(reached.iloc[0]),
    )
