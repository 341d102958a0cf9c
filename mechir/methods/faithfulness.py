"""How much of the model a circuit is: the score with the circuit alone, between those of the donor and of the base.

    f(C) = (m(C) - m(none)) / (m(all) - m(none))

0: the circuit does nothing that the donor's text does not; 1: it does all that sets base and donor apart; above 1 it
overshoots, because edges that hold the score back are missing. Every contrast counts as much as its gap
|m(all) - m(none)|; gaps that are too small carry no ratio and are counted instead.

Source: Hanna et al. 2024 (arXiv:2403.17806); Mueller et al. 2025 (MIB, arXiv:2504.13151).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from mechir import inference
from mechir.batches import for_numpy
from mechir.circuits import Circuit
from mechir.contrasts import Contrast, encode_contrasts
from mechir.errors import MechirError, refuse_below
from mechir.methods.circuit_runs import CircuitRun, Donor, Plan, as_contrasts, run_hooks
from mechir.methods.edge_graph import Graph, refuse_foreign_edges
from mechir.methods.effects import MIN_GAP
from mechir.methods.metrics import Metric, as_metric, by_query, evaluated, refuse_non_finite_runs, score
from mechir.reranker import Weights, needs_edges

TOKENS = 512
"""Word pieces computed together on a CPU: the streams of many readers stay in its caches."""
OPTIONS = ("max_rows", "max_tokens", "max_length", "progress")
"""The options of `circuit_scores` that methods which run circuits pass on."""
NAMED = 3
"""Contrasts whose gap is too small that a table names."""


class CircuitScores(NamedTuple):
    """The scores of every contrast with all edges (`base`), with none (`donor`), and with each circuit alone."""

    base: Float[np.ndarray, "contrast"]
    donor: Float[np.ndarray, "contrast"]
    only: dict[Any, Float[np.ndarray, "contrast"]]


@torch.no_grad()
def circuit_scores(
    model: Weights,
    contrasts: Any,
    circuits: Any,
    *,
    complement: bool = False,
    max_rows: int = 64,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> CircuitScores:
    """The scores with each circuit alone, as `Only` gives them, the donors' run shared; `Without`'s where `complement`.

    Raises:
        MechirError: for contrasts that are not aligned, for an edge that the model lacks, and without any circuit.
    """
    needs_edges(model, "circuit_scores")
    circuits = as_circuits(circuits)
    refuse_below(1, max_rows=max_rows, max_tokens=max_tokens)
    for circuit in circuits.values():
        refuse_foreign_edges(model, circuit)
    encoded = encode_contrasts(model, as_contrasts(contrasts), max_length)
    graph, n = Graph.of(model), len(encoded.contrasts)
    plans = {name: Plan.of(graph, circuit, complement) for name, circuit in circuits.items()}
    scores = {name: np.empty(n, dtype=np.float32) for name in circuits}
    base, out = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.float32)
    limit = max_tokens or (TOKENS if model.device.type == "cpu" else None)
    for batch in encoded.batches(model, max_rows=max_rows, max_tokens=limit, progress=progress):
        donor = Donor.of(model, batch.donor)
        base[batch.rows] = for_numpy(model(batch.base, head_row=True)).numpy()
        out[batch.rows] = for_numpy(donor.run.score).numpy()
        for name, plan in plans.items():
            with model.hooks(run_hooks(CircuitRun(model, plan, donor))):
                scores[name][batch.rows] = for_numpy(model(batch.base, head_row=True)).numpy()
    runs = ["of the base", "of the donor", *(f"with circuit {name!r:.40}" for name in scores)]
    refuse_non_finite_runs(np.stack([base, out, *scores.values()]), encoded.contrasts, runs)
    return CircuitScores(base, out, scores)


def as_circuits(given: Any) -> dict[Any, Circuit]:
    """Circuits by name; edges as text become circuits, and one circuit alone is called "circuit".

    Raises:
        MechirError: for anything else, and for none.
    """
    named = {"circuit": given} if isinstance(given, Circuit) else given
    if not (isinstance(named, Mapping) and named):
        raise MechirError(f"{given!r:.60} are no circuits: give a dictionary of some, e.g. mi.nested(scores).")
    return {name: Circuit(circuit) for name, circuit in named.items()}


def refuse_unknown_options(method: str, options: Mapping[str, Any]) -> None:
    """Raises for an option that is none of `OPTIONS`."""
    other = next((name for name in options if name not in OPTIONS), None)
    if other is not None:
        raise MechirError(f"{method} has no option '{other}': write {', '.join(OPTIONS[:-1])} or {OPTIONS[-1]}.")


class Reached(NamedTuple):
    """What circuits reach of the way from the donor's score to the base's, query by query.

    Attributes:
        toward: (score with the circuit - score of the donor), positive toward the base: a query's mean over contrasts.
        gaps: |base - donor|, likewise.
        large: whether the gap of each contrast is large enough to be measured by.
        query_ids: the queries with such a contrast, in the order of the rows.
    """

    toward: Float[np.ndarray, "query circuit"]
    gaps: Float[np.ndarray, "query"]
    large: Bool[np.ndarray, "contrast"]
    query_ids: tuple[str, ...]

    @classmethod
    def of(
        cls,
        base: Float[np.ndarray, "contrast"],
        donor: Float[np.ndarray, "contrast"],
        only: Float[np.ndarray, "contrast circuit"],
        queries: Sequence[str],
        min_gap: float = MIN_GAP,
    ) -> Reached:
        """Compares the scores with circuits alone with those of base and donor.

        Raises:
            MechirError: when every gap is too small.
        """
        gap = base - donor
        large = np.abs(gap) >= max(min_gap, float(np.finfo(np.float32).tiny))
        if not large.any():
            raise MechirError(
                f"Base and donor differ by less than {min_gap} on all {len(gap)} contrasts, e.g. that of query "
                f"{queries[0] if len(queries) else 'none'}: there is nothing to be faithful to; give other contrasts, "
                "or a smaller min_gap."
            )
        rows = {query: some[large[some]] for query, some in by_query(queries).items() if large[some].any()}
        turned = (only - donor[:, None]) * np.sign(gap)[:, None]
        toward = np.stack([turned[some].mean(0) for some in rows.values()])
        return cls(toward, np.array([np.abs(gap[some]).mean() for some in rows.values()]), large, tuple(rows))

    @property
    def counts(self) -> dict[str, int]:
        """`queries`; `pairs`, the contrasts that are measured by; `left_out`, those whose gap is too small."""
        return {"queries": len(self.gaps), "pairs": int(self.large.sum()), "left_out": int((~self.large).sum())}

    def compared(self, difference: Float[np.ndarray, "query circuit"]) -> dict[str, Any]:
        """A difference of `toward` as a share of the gaps: `estimate`, `low`, `high`, `p`, `p_corrected`, `counts`."""
        shares = inference.shares(difference, self.gaps[:, None])
        names = ("estimate", "low", "high", "p", "p_corrected")
        return {name: getattr(shares, name) for name in names} | self.counts

    @property
    def shares(self) -> inference.Estimates:
        """The share f of each circuit, with its interval over queries."""
        return inference.shares(self.toward, self.gaps[:, None])

    @property
    def rows(self) -> Float[np.ndarray, "query circuit"]:
        """The share of each circuit on each query; their mean, each query counted as its gap, is that of `shares`."""
        return self.toward / self.gaps[:, None]


def reached(
    scores: CircuitScores, contrasts: Sequence[Contrast], metric: str | Metric = "score", min_gap: float = MIN_GAP
) -> Reached:
    """What the circuits of these scores reach, by a metric of the scores of a query's contrasts.

    Raises:
        MechirError: as `Reached.of`.
    """
    queries = [contrast.query_id for contrast in contrasts]
    base, donor, only = scores.base, scores.donor, np.stack([*scores.only.values()], 1)
    of = as_metric(metric)
    if of is not score:
        base, donor = (_each(of, x[:, None], queries)[:, 0] for x in (base, donor))
        only, queries = _each(of, only, queries), list(dict.fromkeys(queries))
    return Reached.of(base, donor, only, queries, min_gap)


def faithfulness(
    model: Weights,
    contrasts: Any,
    circuits: Any,
    *,
    metric: str | Metric = "score",
    complement: bool = False,
    min_gap: float = MIN_GAP,
    max_rows: int = 64,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """How much of what sets base and donor apart each circuit does alone.

    Args:
        model: a `HookedEncoder`.
        contrasts: aligned pairs of queries on which the circuits were not found.
        circuits: by name, e.g. of `nested`.
        metric: "score", or a function of the scores of a query's contrasts.
        complement: of the model without each circuit instead: what is left of it.
        min_gap: contrasts (queries, with another metric) whose gap is smaller are left out, counted and named.
        max_rows: the most contrasts computed together.
        max_tokens: the most word pieces computed together.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Returns:
        One line for each circuit: `circuit`, its name; `size`, its edges; `estimate` = f with `low` and `high`, the
        95 % interval over queries; `queries`, `pairs`; `left_out`, the contrasts whose gap is too small, and
        `left_out_names`, the first of them by query and document.

    Raises:
        MechirError: as `circuit_scores`; when every gap is too small.
    """
    needs_edges(model, "faithfulness")
    circuits = as_circuits(circuits)
    refuse_below(0, min_gap=min_gap)
    listed = as_contrasts(contrasts)
    scores = circuit_scores(
        model,
        listed,
        circuits,
        complement=complement,
        max_rows=max_rows,
        max_tokens=max_tokens,
        max_length=max_length,
        progress=progress,
    )
    names = [f"{contrast.query_id}/{contrast.doc_id}" for contrast in listed]
    if as_metric(metric) is not score:
        names = list(dict.fromkeys(contrast.query_id for contrast in listed))
    reach = reached(scores, listed, metric, min_gap)
    small = np.flatnonzero(~reach.large)
    more = f" and {len(small) - NAMED} more" if len(small) > NAMED else ""
    return pd.DataFrame(
        {
            "circuit": list(circuits),
            "size": [len(circuit) for circuit in circuits.values()],
            **{name: getattr(reach.shares, name) for name in ("estimate", "low", "high")},
            "queries": len(reach.gaps),
            "pairs": int(reach.large.sum()),
            "left_out": len(small),
            "left_out_names": ", ".join(names[row] for row in small[:NAMED]) + more,
        }
    )


def _each(
    metric: Metric, scores: Float[np.ndarray, "contrast circuit"], queries: list[str]
) -> Float[np.ndarray, "query circuit"]:
    """The metric of each query's scores."""
    rows = [
        evaluated(metric, torch.from_numpy(scores[some].T), query).numpy() for query, some in by_query(queries).items()
    ]
    return np.stack(rows).astype(np.float32)
