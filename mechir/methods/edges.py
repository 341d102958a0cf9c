"""The effect of every edge on the score, exactly or from gradients, with its interval and test over queries.

An edge's effect is what the score becomes when its reader sees the sender's activation of the donor, less the score:
negative where the edge carries relevance that the donor lacks. See docs/circuits.md for when each method misleads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch, for_numpy
from mechir.circuits import Circuit
from mechir.contrasts import ROLES, ContrastBatch, EncodedContrasts, encode_contrasts
from mechir.errors import MechirError, refuse_below
from mechir.methods.circuit_runs import as_contrasts
from mechir.methods.edge_gradients import Gradients, Leaf, averaged, first_order
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_patching import exact
from mechir.methods.edge_roles import averaged_roles, first_order_roles, members
from mechir.methods.edge_scores import EdgeRoles, EdgeScores, Way, agree
from mechir.methods.metrics import Metric, as_metric, by_query, evaluated, score, weights
from mechir.methods.paths import Run
from mechir.reranker import Weights, needs_edges

HELD = 300_000_000
"""Bytes that the changes of all senders may take: a batch is cut accordingly."""


def edges(
    model: Weights,
    contrasts: Any,
    *,
    method: str = "eap-ig",
    senders: Any = None,
    receivers: Any = None,
    at: str = "all",
    ln: str = "frozen",
    metric: str | Metric = "score",
    point: str = "base",
    points: int = 5,
    qk_fix: bool = False,
    top: float = 0.05,
    seed: int = 0,
    only: Any = None,
    max_rows: int = 64,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> EdgeScores | EdgeRoles:
    """The effect of every edge between embedding, heads, MLPs and score.

    Args:
        model: a `HookedEncoder`.
        contrasts: aligned pairs, or (base, donor) pairs of equal length; activations come from the donor.
        method: see `Way`; likewise `ln`, `point`, `points`, `qk_fix`, `top` and `seed`.
        senders: "resid0" (the embedding), heads, MLPs; by default all.
        receivers: "score", heads' inputs ("h8.1.k"), MLPs; by default all.
        at: "all" positions together, or "roles": by the roles of the positions between which an edge carries something;
            they add up to the whole, so they are for first-order methods without the QK fix.
        ln: see `Way`.
        metric: "score", or a function of the scores of a query's contrasts (see `metrics.Metric`).
        point: see `Way`.
        points: see `Way`.
        qk_fix: see `Way`.
        top: see `Way`.
        seed: see `Way`.
        only: of "exact": the edges to patch, e.g. ["h1.2->mlp1"]; the others are NaN. None for all.
        max_rows: the most contrasts computed together.
        max_tokens: the most word pieces computed together; by default `model.max_tokens`, fewer where the changes of
            all senders would take more than 0.3 GB.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Raises:
        MechirError: for contrasts that are not aligned, unknown words, no edge between senders and receivers, a metric
            that is constant in a query's scores.
    """
    needs_edges(model, "edges")
    way = Way(method, ln, point, points, qk_fix, top, seed)
    refuse_below(1, max_rows=max_rows, max_tokens=max_tokens)
    graph = Graph.of(model, senders, receivers)
    encoded = encode_contrasts(model, as_contrasts(contrasts), max_length)
    fit = max(1, HELD // (4 * model.cfg.d_model * len(graph.senders)))
    limit = min(max_tokens or model.max_tokens, fit)
    batches = {"max_rows": max_rows, "max_tokens": limit, "progress": progress}
    if only is not None:
        if method != "exact":
            raise MechirError(f"only= names the edges to patch, and method='{method}' patches none: write 'exact'.")
        if at != "all":
            raise MechirError(f"only= patches whole edges, and at='{at}' splits them: leave one of the two out.")
        circuit = Circuit(only)
        graph.columns(circuit)  # refuses what is no edge of the graph
        part = Graph.of(model, {edge.source for edge in circuit}, [edge.readers[0] for edge in circuit])
        wanted = np.zeros(len(part), dtype=bool)
        wanted[part.columns(circuit)] = True
        return _Work(model, part, encoded, as_metric(metric), batches).scored(way, wanted).within(graph)
    work = _Work(model, graph, encoded, as_metric(metric), batches)
    if at != "all":
        refuse_roles(way, at)
        return work.by_roles(way)
    return work.screened(way) if method == "screen" else work.scored(way)


@dataclass(frozen=True, eq=False)
class _Work:
    """The contrasts of one call, and how many are computed together."""

    model: Weights
    graph: Graph
    encoded: EncodedContrasts
    metric: Metric
    batches: dict[str, Any]

    def scored(self, way: Way, wanted: np.ndarray | None = None) -> EdgeScores:
        """All edges on all contrasts, or the wanted ones."""
        n, queries = len(self.encoded.contrasts), tuple(contrast.query_id for contrast in self.encoded.contrasts)
        values = np.empty((n, len(self.graph)), dtype=np.float32)
        ends = np.empty((2, n), dtype=np.float32)
        points = way.places
        counts = self._weights(points, queries) if points else []
        for batch in self.encoded.batches(self.model, **self.batches):
            run, donor, value = self._batch(way, batch, [count[batch.rows] for count in counts], wanted)
            ends[:, batch.rows] = for_numpy(torch.stack([run.score, donor.score])).numpy()
            values[batch.rows] = for_numpy(value).numpy()
            del run, donor, value  # not beside those of the next batch
        if way.method == "exact" and self.metric is not score:
            weights(self.metric, torch.from_numpy(ends[0]), queries)  # refuses a metric that is constant
            values = on_metric(self.metric, values, ends[0], queries)
        return EdgeScores(self.graph, queries, values, ends[0], ends[1], way)

    def _batch(
        self, way: Way, batch: ContrastBatch, counts: Sequence[Tensor], wanted: np.ndarray | None
    ) -> tuple[Run, Run, Float[Tensor, "batch edge"]]:
        """The runs of bases and donors, and the effects."""
        model, graph = self.model, self.graph
        if way.method == "eap":
            texts = (batch.donor, batch.base) if way.point == "donor" else (batch.base, batch.donor)
            gradients, run = Gradients.at(model, texts[0], None, counts[0], way.qk_fix)
            donor = self._run(texts[1])
            effects = first_order(model, graph, texts[0], run, donor, gradients, way.ln, way.qk_fix)
            # At the donor the run is the donor's, and what is sent the base's: the effect the other way round.
            return (donor, run, -effects) if way.point == "donor" else (run, donor, effects)
        run, donor = self._run(batch.base), self._run(batch.donor)
        if way.method == "exact":
            limit = self.batches["max_tokens"]
            return run, donor, exact(model, graph, batch.base, run, donor, limit=limit, wanted=wanted)
        gradients = averaged(model, batch.base, run, donor, way.places, counts, way.qk_fix)
        return run, donor, first_order(model, graph, batch.base, run, donor, gradients, way.ln, way.qk_fix)

    @torch.no_grad()
    def _run(self, batch: Batch) -> Run:
        return Run.of(self.model, batch, None)

    @torch.no_grad()
    def _weights(self, points: Sequence[float], queries: Sequence[str]) -> list[Float[Tensor, "contrast"]]:
        """What each contrast's score counts at each point, from a forward at each where the metric is not the score."""
        scores = torch.zeros(len(points), len(queries), device=self.model.device)
        for batch in self.encoded.batches(self.model, **self.batches) if self.metric is not score else ():
            base, donor = (self.model.embedded(of) for of in (batch.base, batch.donor))
            for row, place in enumerate(points):
                with self.model.hooks([("hook_full_embed", Leaf(base + place * (donor - base)))]):
                    scores[row, batch.rows] = self.model(batch.base, head_row=True)
        return [weights(self.metric, at, queries) for at in scores]

    def by_roles(self, way: Way) -> EdgeRoles:
        """All edges on all contrasts, by roles."""
        n, queries = len(self.encoded.contrasts), tuple(contrast.query_id for contrast in self.encoded.contrasts)
        values = np.empty((n, len(self.graph), len(ROLES), len(ROLES)), dtype=np.float32)
        ends = np.empty((2, n), dtype=np.float32)
        points = way.places
        counts = self._weights(points, queries)
        for batch in self.encoded.batches(self.model, **self.batches):
            run, donor = self._run(batch.base), self._run(batch.donor)
            ends[:, batch.rows] = for_numpy(torch.stack([run.score, donor.score])).numpy()
            member, of = members(batch.roles, run.resid[0]), [count[batch.rows] for count in counts]
            gradients = averaged_roles(self.model, batch.base, member, (run, donor), points, of)
            value = first_order_roles(self.model, self.graph, member, run, donor, gradients, way.ln)
            values[batch.rows] = for_numpy(value).numpy()
        return EdgeRoles(self.graph, queries, values, ends[0], ends[1], way)

    def screened(self, way: Way) -> EdgeScores:
        """Estimates of all, exact effects of the largest and of as many others drawn at random."""
        estimates = self.scored(replace(way, method="eap-ig"))
        n, order = len(self.graph), np.argsort(-np.abs(estimates.estimate), kind="stable")
        most = int(np.ceil(way.top * n))
        drawn = np.random.default_rng(way.seed).choice(order[most:], min(most, n - most), replace=False)
        wanted = np.zeros(n, dtype=bool)
        wanted[order[:most]] = wanted[drawn] = True
        measured = self.scored(replace(way, method="exact"), wanted)
        values = np.where(wanted, measured.values, estimates.values)
        agreement = agree(estimates.estimate[drawn], measured.estimate[drawn])
        return replace(estimates, values=values, way=way, patched=wanted, agreement=agreement)


def refuse_roles(way: Way, at: str) -> None:
    """Raises for another word than "roles", and for a way of scoring whose roles do not add up to the whole."""
    if at != "roles":
        raise MechirError(f"Unknown at='{at}': write 'all' or 'roles'.")
    if way.method not in ("eap", "eap-ig") or way.point != "base" or way.qk_fix:
        raise MechirError(
            "at='roles' splits what adds up, first-order effects at the base: write method='eap-ig' or 'eap', without "
            "qk_fix and point."
        )


def on_metric(
    metric: Metric, effects: np.ndarray, base: np.ndarray, queries: Sequence[str]
) -> Float[np.ndarray, "contrast edge"]:
    """The effects on the metric where those on the scores of all contrasts of a query come together."""
    out = np.empty_like(effects)
    for query, rows in by_query(queries).items():
        start = torch.from_numpy(base[rows])
        moved = evaluated(metric, start + torch.from_numpy(effects[rows]).T, query)
        out[rows] = (moved - evaluated(metric, start, query)).numpy()
    return out
