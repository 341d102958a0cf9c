"""Backup edges: what an edge does once another one carries the donor's activation.

    single      = score without the candidate - score
    conditional = score without the primary and the candidate - score without the primary

"Without" is `Without`: the edges carry what the donor's text makes them carry. For heads see `backups`.

Source: Gong et al. 2026 (conditional co-ablation, arXiv:2607.01940).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mechir.circuits import Circuit
from mechir.errors import MechirError
from mechir.methods.backups import Backups, by_queries
from mechir.methods.circuit_runs import as_contrasts
from mechir.methods.faithfulness import circuit_scores, refuse_unknown_options
from mechir.methods.metrics import Metric, as_metric
from mechir.reranker import Weights, needs_edges


def edge_backups(
    model: Weights,
    contrasts: Any,
    primary: Any,
    candidates: Any,
    *,
    metric: str | Metric = "score",
    **options: Any,
) -> Backups:
    """What each candidate edge does alone, and once each primary edge is gone.

    Args:
        model: a `HookedEncoder`.
        contrasts: aligned pairs, or (base, donor) pairs of equal length.
        primary: edges, each taken as a primary of its own, e.g. "h1.2->mlp1", or a circuit.
        candidates: edges, e.g. `scores.circuit(50)`; each takes about four forwards for each primary.
        metric: "score", or a function of the scores of a query's contrasts (see `metrics.Metric`).
        options: of `circuit_scores`.

    Raises:
        MechirError: for an edge that the model lacks, contrasts that are not aligned, or no candidate beside the
            primary.
    """
    needs_edges(model, "edge_backups")
    refuse_unknown_options("edge_backups", options)
    columns = [(first, then) for first in Circuit(primary) for then in Circuit(candidates) if then != first]
    if not columns:
        raise MechirError(
            "There is no edge to remove beside the primary: give a primary edge and others as candidates, e.g. "
            "scores.circuit(50)."
        )
    sets = [Circuit(first) for first, _ in columns] + [Circuit(then) for _, then in columns]
    sets += [Circuit(pair) for pair in columns]
    listed = as_contrasts(contrasts)
    scores = circuit_scores(model, listed, dict(zip(sets, sets, strict=True)), complement=True, **options)
    every = np.stack([scores.base, *scores.only.values()])
    by_set, queries = by_queries(as_metric(metric), every, listed)
    values, intact = dict(zip(scores.only, by_set[1:], strict=True)), by_set[0]
    gone = {pair: values[Circuit(pair)] - values[Circuit(pair[0])] for pair in columns}
    return Backups(
        primary=tuple(str(first) for first, _ in columns),
        candidate=tuple(str(then) for _, then in columns),
        query_ids=queries,
        single=np.stack([values[Circuit(then)] - intact for _, then in columns], 1),
        conditional=np.stack([gone[pair] for pair in columns], 1),
        removal=np.stack([values[Circuit(first)] - intact for first, _ in columns], 1),
    )
