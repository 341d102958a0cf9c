"""From the effects of edges to circuits: the largest, those that reach the score, those whose sign is sure."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechir.circuits import Circuit, Edge, component
from mechir.errors import MechirError, refuse_other_than_whole
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_scores import EdgeScores
from mechir.sites import Resid, Score

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges at which MIB looks at a circuit (Mueller et al. 2025)."""
HOW = ("top", "greedy")
BAR = 0.8
"""The mean Jaccard index from which on a circuit is called stable (Meloux et al. 2025)."""


def greedy(scores: EdgeScores, size: int) -> Circuit:
    """The largest edges that lead to the score: the best next edge into what the circuit reads already, `size` times.

    Edges that nothing leads to from the embedding are then left out, so it may be smaller.
    """
    refuse_other_than_whole(1, size=size)
    return connected(Circuit(_toward_score(scores, size)))


def _toward_score(scores: EdgeScores, most: int) -> list[Edge]:
    """So many edges in the order in which `greedy` takes them."""
    into: dict[Any, list[tuple[float, int]]] = {}
    for column, (_, reader) in enumerate(scores.graph):
        if np.isfinite(scores.estimate[column]):
            into.setdefault(component(reader), []).append((-abs(float(scores.estimate[column])), column))
    waiting = list(into.get(Score(), ()))
    heapq.heapify(waiting)
    opened: set[Any] = {Score()}
    taken: list[Edge] = []
    while waiting and len(taken) < most:
        _, column = heapq.heappop(waiting)
        edge = scores.graph.edges[column]
        taken.append(edge)
        if edge.source not in opened:
            opened.add(edge.source)
            for more in into.get(edge.source, ()):
                heapq.heappush(waiting, more)
    return taken


def connected(circuit: Circuit) -> Circuit:
    """The edges on some path from the embedding to the score: the others carry nothing from the one to the other.

    A component that nothing leads to writes what it writes on the donor, and one that leads nowhere is not read.
    """
    edges = set(circuit.edges)
    while True:
        fed = {component(edge.readers[0]) for edge in edges} | {Resid(0)}
        read = {edge.source for edge in edges} | {Score()}
        on_the_way = {edge for edge in edges if edge.source in fed and component(edge.readers[0]) in read}
        if on_the_way == edges:
            return Circuit(edges)
        edges = on_the_way


def constant_sign(scores: EdgeScores, *, draws: int = 1000, seed: int = 0) -> Circuit:
    """The edges whose mean effect has one sign in every one of so many resamples of the queries."""
    refuse_other_than_whole(1, draws=draws)
    refuse_other_than_whole(0, seed=seed)
    refuse_one_query(len(scores.queries))
    means = resampled(scores.queries, draws, seed)
    sure = np.flatnonzero((means > 0).all(0) | (means < 0).all(0))
    return Circuit(scores.graph.edges[column] for column in sure)


def nested(scores: EdgeScores, sizes: Any = SIZES, how: str = "top") -> dict[int, Circuit]:
    """Circuits of growing size, each with all edges of the one before.

    Args:
        scores: of `edges`.
        sizes: numbers of edges; those of 1.0 and less are shares of all edges.
        how: "top" or "greedy", whose circuits may be smaller than asked.

    Returns:
        The circuits by their numbers of edges, without empty ones.

    Raises:
        MechirError: for an unknown way, or a size below 1.
    """
    if how not in HOW:
        raise MechirError(f"Unknown how='{how}': write {' or '.join(map(repr, HOW))}.")
    n = len(scores.graph)
    if isinstance(sizes, str) or not isinstance(sizes, Iterable):
        raise MechirError(f"sizes={sizes!r:.40} is no list: write numbers of edges, or shares, such as [10, 100, 0.5].")
    numbers = sorted({max(1, min(_number(size, n), n)) for size in sizes})
    if how == "top":
        circuits = [scores.circuit(number) for number in numbers]
    else:
        toward_score = _toward_score(scores, max(numbers, default=0))
        circuits = [connected(Circuit(toward_score[:number])) for number in numbers]
    return {len(circuit): circuit for circuit in circuits if len(circuit)}


def ranked_edges(scores: EdgeScores, how: str = "top") -> pd.DataFrame:
    """The edges of nested circuits, those of the smallest first: `edge`, `estimate`, `size`, that of its circuit."""
    size_of: dict[Edge, int] = {}
    for circuit in nested(scores, how=how).values():
        for edge in circuit.edges:
            size_of.setdefault(edge, len(circuit))
    estimates = scores.estimate[scores.graph.columns(size_of)]
    table = pd.DataFrame({"edge": [*map(str, size_of)], "estimate": estimates, "size": list(size_of.values())})
    order = table.assign(large=-table["estimate"].abs()).sort_values(["size", "large", "edge"]).index
    return table.loc[order].reset_index(drop=True)


def circuits_of(ranked: pd.DataFrame) -> dict[int, Circuit]:
    """The nested circuits of `ranked_edges`, by size."""
    return {size: Circuit(ranked["edge"][ranked["size"] <= size]) for size in sorted(set(ranked["size"]))}


def resampled(queries: Float[np.ndarray, "query edge"], draws: int, seed: int) -> Float[np.ndarray, "draw edge"]:
    """The mean effect of every edge in resamples of the queries."""
    n = len(queries)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    return (counts / n).astype(np.float32) @ queries.astype(np.float32)


def stability(scores: EdgeScores, size: int, *, draws: int = 100, seed: int = 0) -> float:
    """The mean Jaccard index of two circuits of the `size` largest edges, each found on a resample of the queries.

    1: the same edges whichever queries are drawn. Published circuits of language models reach .39 to .67; .8 is the bar
    of Meloux et al. 2025 (arXiv:2510.00845).

    Raises:
        MechirError: for numbers out of range, one query alone, and edges that were not measured.
    """
    refuse_other_than_whole(1, size=size)
    refuse_other_than_whole(2, draws=draws)
    refuse_other_than_whole(0, seed=seed)
    if not np.isfinite(scores.estimate).all():
        raise MechirError("Stability needs the effects of all edges, and some were not measured: leave out only=.")
    refuse_one_query(len(scores.queries))
    return float(overlap(within(resampled(scores.queries, draws, seed), size)).mean())


def within(means: Float[np.ndarray, "draw edge"], size: int) -> Float[np.ndarray, "draw edge"]:
    """1 where an edge is among the `size` largest of a draw, 0 elsewhere."""
    size = min(size, means.shape[1])
    inside = np.zeros(means.shape, dtype=np.float32)
    np.put_along_axis(inside, np.argpartition(-np.abs(means), size - 1, axis=1)[:, :size], 1.0, axis=1)
    return inside


def overlap(inside: Float[np.ndarray, "draw edge"]) -> Float[np.ndarray, "pair"]:
    """The Jaccard index of every two draws of `within`, which have equally many edges."""
    both = (inside @ inside.T)[np.triu_indices(len(inside), 1)]
    return both / (2 * inside[0].sum() - both)


def random_alike(graph: Graph, circuit: Circuit, draws: int = 20, seed: int = 0) -> list[Circuit]:
    """Random circuits with as many edges as `circuit` between the same half layers."""
    profile: dict[tuple[int, int], list[int]] = {}
    for column, (sender, reader) in enumerate(graph):
        profile.setdefault(graph.moments(sender, reader), []).append(column)
    graph.columns(circuit)  # refuses what is no edge of the graph
    wanted = Counter(graph.moments(edge.source, edge.readers[0]) for edge in circuit)
    generator = np.random.default_rng(seed)
    return [
        Circuit(
            graph.edges[column]
            for key, count in wanted.items()
            for column in generator.choice(profile[key], count, replace=False)
        )
        for _ in range(draws)
    ]


def refuse_one_query(queries: int) -> None:
    """Raises for one query, whose resamples are all alike."""
    if queries < 2:
        raise MechirError("Queries are drawn anew, and there is one alone: take more.")


def _number(size: Any, edges: int) -> int:
    """The number of edges that a size asks for: a whole number, or a share of all.

    Raises:
        MechirError: for anything else.
    """
    if isinstance(size, Integral) and not isinstance(size, bool) and int(size) >= 1:
        return int(size)
    if isinstance(size, Real) and not isinstance(size, Integral) and 0 < float(size) <= 1:
        return round(float(size) * edges)
    raise MechirError(f"size={size!r:.40} is out of range: write a whole number from 1, or a share up to 1.0.")
