"""The edges of a post-LN encoder: every component that writes to the stream, and every input that reads from it.

The embedding, the heads and the MLPs write; the queries, keys and values of heads, the MLPs and the score read. There
is an edge from each writer to each reader after it: 32,491 in a model of 12 layers with 12 heads, 7,588 with 6 layers.

Time counts half layers: at 2l layer l's attention reads, at 2l + 1 its MLP reads, at 2L the score is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from mechir.circuits import PORTS, Circuit, Edge, Reader, readers_in_order
from mechir.errors import MechirError
from mechir.model_sites import all_heads, mlps, sites_of
from mechir.reranker import Reranker
from mechir.sites import Head, Mlp, Resid, Score

Sender = Resid | Head | Mlp


def writes_at(sender: Sender) -> int:
    """The first moment at which the stream holds what a component writes."""
    return 0 if isinstance(sender, Resid) else 2 * sender.layer + 1 + isinstance(sender, Mlp)


def reads_at(reader: Reader, n_layers: int) -> int:
    """The moment at which an input reads the stream."""
    return 2 * n_layers if isinstance(reader, Score) else 2 * reader.layer + isinstance(reader, Mlp)


def written_order(sender: Sender) -> tuple[int, Sender]:
    """The key that sorts senders in the order in which they write, heads of a layer by their number."""
    return writes_at(sender), sender


def every_sender(model: Reranker) -> list[Sender]:
    """The embedding, all heads and all MLPs."""
    return [Resid(0), *all_heads(model), *mlps(model)]


@dataclass(frozen=True)
class Graph:
    """Senders in the order in which they write, readers in the order in which they read, of a model of `n_layers`."""

    senders: tuple[Sender, ...]
    readers: tuple[Reader, ...]
    n_layers: int

    @classmethod
    def of(cls, model: Reranker, senders: Any = None, readers: Any = None) -> Graph:
        """The graph of a model, or the part of it between some senders and readers.

        Args:
            model: whose components.
            senders: the embedding "resid0", heads, MLPs; None for all.
            readers: "score", a head's input ("h8.1.k"), an MLP ("mlp3"); None for all.

        Raises:
            MechirError: for what does not write or read, is none of this model's, or if no edge is left.
        """
        for name, ends in (("senders", senders), ("receivers", readers)):
            if isinstance(ends, Sized) and not isinstance(ends, str) and not len(ends):
                raise MechirError(f"{name} is empty: name some, or leave it out for all.")
        writers = every_sender(model) if senders is None else checked_senders(model, senders)
        inputs: list[Reader] = [
            *(Head(layer, head, port) for layer, head, _ in all_heads(model) for port in PORTS),
            *(Mlp(layer, "in") for layer in range(model.cfg.n_layers)),
            Score(),
        ]
        if readers is not None:
            listed = [readers] if isinstance(readers, str | Head | Mlp | Score) else list(readers)
            inputs = [checked_reader(model, reader) for reader in listed]
        n = model.cfg.n_layers
        inputs = sorted(dict.fromkeys(inputs), key=lambda reader: reads_at(reader, n))
        in_order = sorted(dict.fromkeys(writers), key=written_order)
        graph = cls(tuple(in_order), tuple(inputs), n)
        if not len(graph):
            raise MechirError(
                f"No edge leads from {', '.join(map(str, writers[:3]))} to {', '.join(map(str, inputs[:3]))}: each "
                "sender writes after its reader reads."
            )
        return graph

    @cached_property
    def written(self) -> Int[np.ndarray, "sender"]:
        """When each sender writes."""
        return np.array([writes_at(sender) for sender in self.senders])

    def moments(self, sender: Any, reader: Any) -> tuple[int, int]:
        """When the sender of an edge writes and when its reader reads."""
        return writes_at(sender), reads_at(reader, self.n_layers)

    def before(self, moment: int) -> int:
        """How many senders, the first ones, have written by then."""
        return int(np.searchsorted(self.written, moment, side="right"))

    def reading(self, moment: int) -> list[tuple[int, Reader]]:
        """The readers of one moment, each with the column of its first edge."""
        times = [reads_at(reader, self.n_layers) for reader in self.readers]
        return [(self._first[i], self.readers[i]) for i, time in enumerate(times) if time == moment]

    @cached_property
    def _first(self) -> list[int]:
        counts = [self.before(reads_at(reader, self.n_layers)) for reader in self.readers]
        return [0, *np.cumsum(counts).tolist()]

    def __len__(self) -> int:
        return self._first[-1]

    def __iter__(self) -> Iterator[tuple[Sender, Reader]]:
        """The edges in the order of the columns of `EdgeScores.values`: by reader, then by sender."""
        for reader in self.readers:
            for sender in self.senders[: self.before(reads_at(reader, self.n_layers))]:
                yield sender, reader

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """The edges as values, in the order of the columns."""
        return tuple(Edge(sender, reader) for sender, reader in self)

    def columns(self, edges: Iterable[Edge]) -> list[int]:
        """The columns of these edges.

        Raises:
            MechirError: for an edge that the graph lacks.
        """
        place, listed = self._places, list(edges)
        missing = [edge for edge in listed if edge not in place]
        if missing:
            raise MechirError(
                f"'{missing[0]}' is no edge of this graph of {self.n_layers} layers: a sender of an earlier layer "
                "leads to a reader of a later one, e.g. h0.1->h1.2.k."
            )
        return [place[edge] for edge in listed]

    @cached_property
    def _places(self) -> dict[Edge, int]:
        return {edge: column for column, edge in enumerate(self.edges)}


def checked_senders(model: Reranker, senders: Any) -> list[Sender]:
    """The senders as values, checked against the model.

    Raises:
        MechirError: for a site that is no sender, or none of this model's.
    """
    parsed = sites_of(model, senders)
    for sender in parsed:
        if not (sender == Resid(0) or (isinstance(sender, Head | Mlp) and sender.part in ("z", "out"))):
            raise MechirError(f"'{sender}' is no sender: write a head (h8.1), an MLP (mlp3) or resid0, the embedding.")
    return parsed


def checked_reader(model: Reranker, reader: Any) -> Reader:
    """A reader as a value, checked against the model.

    Raises:
        MechirError: for what reads nothing, or is none of this model's.
    """
    (parsed,) = readers_in_order([reader])
    if not isinstance(parsed, Score):
        sites_of(model, [parsed])
    return parsed


def refuse_foreign_edges(model: Reranker, circuit: Circuit) -> None:
    """Refuses the edges that a model cannot have.

    Raises:
        MechirError: for an edge between sites that the model lacks, or whose sender writes after its reader reads.
    """
    n = model.cfg.n_layers
    if circuit:
        checked_senders(model, list(dict.fromkeys(edge.source for edge in circuit)))
    for reader in dict.fromkeys(edge.readers[0] for edge in circuit):
        checked_reader(model, reader)
    for edge in circuit:
        source: Any = edge.source
        if writes_at(source) > reads_at(edge.readers[0], n):
            raise MechirError(
                f"'{edge}' leads backwards: {edge.source} writes after {str(edge).partition('->')[2]} reads."
            )
