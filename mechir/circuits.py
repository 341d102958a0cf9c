"""Edges between sites and circuits, which are sets of edges: `h1.3->h8.1.q`, `mlp1->mlp3`, `h8.1->score`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from mechir.errors import MechirError
from mechir.sites import Attn, Head, Mlp, Neuron, Resid, Score, parse_site

PORTS = ("q", "k", "v")
"""The inputs of a head, which an edge into it names."""
Source = Resid | Attn | Head | Neuron | Mlp
Reader = Head | Mlp | Score
_IN_A_LAYER = (Resid, Attn, Head, Neuron, Mlp)
"""The kinds of sites in the order in which a layer computes them."""


@dataclass(frozen=True, init=False)
class Edge:
    """The path from the output of a site to the input of another one: `Edge("h1.3", "h8.1.q")`.

    It prints as `parse_edge` reads it: `h1.3->h8.1.q`, `mlp1->mlp3`, `resid0->h1.2.k` (from the embedding),
    `h8.1->score`. Inputs of several heads that are replaced together are the readers of one edge,
    `h8.1->h10.1.k+h10.4.k`; their order means nothing.

    Args:
        source: a head, neuron, MLP or attention layer, or resid0, the embedding.
        readers: a head's q, k or v, an MLP, or the score; or the inputs of several heads.
    """

    source: Source
    readers: tuple[Reader, ...]

    def __init__(self, source: Any, *readers: Any) -> None:
        site = parse_site(source) if isinstance(source, str) else source
        if not isinstance(site, _IN_A_LAYER) or site != component(site):
            raise MechirError(f"'{site}' is no source of an edge: write a head (h8.1), an MLP (mlp3) or resid0.")
        vars(self).update(source=site, readers=readers_in_order(readers))

    def __repr__(self) -> str:
        return f"Edge({self.source!r}, {', '.join(map(repr, self.readers))})"

    def __str__(self) -> str:
        inputs = [str(component(reader) if isinstance(reader, Mlp) else reader) for reader in self.readers]
        return f"{self.source}->{'+'.join(inputs)}"


@dataclass(frozen=True, init=False)
class Circuit(Set[Edge]):
    """A set of edges: `Circuit(["resid0->h1.2.k", "h1.2->mlp1", "mlp1->h3.1.v", "h3.1->score"])`.

    It prints one edge per line, from the embedding upwards, and `Circuit.parse` reads what it prints;
    `[str(edge) for edge in circuit]` is a list for JSON or a column of a table. Circuits compare and hash; `|`, `&` and
    `-` make new ones, `<=` tests for a subset. An edge with several readers stands for one edge into each of them.
    """

    edges: frozenset[Edge]

    def __init__(self, edges: Any = ()) -> None:
        if isinstance(edges, Circuit):
            object.__setattr__(self, "edges", edges.edges)
            return
        if not isinstance(edges, Edge | Iterable):
            raise MechirError(f"{edges!r:.60} is no circuit: give its edges, such as ['h1.2->mlp1', 'mlp1->score'].")
        listed = [edges] if isinstance(edges, Edge | str) else list(edges)
        other = next((item for item in listed if not isinstance(item, Edge | str)), None)
        if other is not None:
            raise MechirError(f"{other!r:.60} is no edge: a circuit is made of edges, such as 'h1.2->mlp1'.")
        parsed = [parse_edge(edge) if isinstance(edge, str) else edge for edge in listed]
        single = frozenset(Edge(edge.source, reader) for edge in parsed for reader in edge.readers)
        object.__setattr__(self, "edges", single)

    @classmethod
    def parse(cls, text: str) -> Circuit:
        """The circuit that prints as `text`, one edge per line; skips empty lines and raises for any other."""
        return cls(line for line in text.splitlines() if line.strip())

    @property
    def sites(self) -> frozenset[Source]:
        """The components between the embedding and the score that edges leave or enter."""
        ends = (end for edge in self.edges for end in (edge.source, *edge.readers))
        return frozenset(component(end) for end in ends if not isinstance(end, Resid | Score))

    @property
    def heads(self) -> frozenset[Head]:
        """The heads among the sites."""
        return frozenset(site for site in self.sites if isinstance(site, Head))

    def __iter__(self) -> Iterator[Edge]:
        """The edges by the place of their source in the model, then of their reader."""
        return iter(sorted(self.edges, key=lambda edge: [_place(edge.source), *map(_place, edge.readers)]))

    def __len__(self) -> int:
        return len(self.edges)

    def __contains__(self, edge: Any) -> bool:
        return isinstance(edge, Edge | str) and Circuit(edge).edges <= self.edges

    def __or__(self, other: Any) -> Circuit:
        return Circuit(self.edges | Circuit(other).edges)

    def __and__(self, other: Any) -> Circuit:
        return Circuit(self.edges & Circuit(other).edges)

    def __sub__(self, other: Any) -> Circuit:
        return Circuit(self.edges - Circuit(other).edges)

    def __le__(self, other: Any) -> bool:
        return self.edges <= Circuit(other).edges

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __repr__(self) -> str:
        return f"Circuit({list(map(str, self))})"


def parse_edge(text: str) -> Edge:
    """The edge that prints as `text`: `parse_edge("h1.3->h8.1.q") == Edge(Head(1, 3), Head(8, 1, "q"))`.

    `mlp1->mlp3.in` and `h8.1->score.in`, as earlier versions wrote them, are `mlp1->mlp3` and `h8.1->score`.
    Raises for any other text.
    """
    if "\n" in text.strip():
        raise MechirError("Several lines are a circuit, not an edge: read them with Circuit.parse.")
    source, _, readers = text.partition("->")
    try:
        return Edge(source, *(reader.strip().removesuffix(".in") for reader in readers.split("+")))
    except MechirError as error:
        message = f"Cannot read '{text}' as an edge: write h1.3->h8.1.q, mlp1->mlp3 or h8.1->score."
        raise MechirError(message) from error


def readers_in_order(readers: Any) -> tuple[Reader, ...]:
    """The readers of an edge, given as values or as text: one, or the inputs of several heads by layer.

    An MLP, "mlp3", reads at "mlp3.in". Raises for anything else.
    """
    parsed: list[Any] = []
    for given in readers:
        reader = Score() if given == "score" else parse_site(given) if isinstance(given, str) else given
        reader = Mlp(reader.layer, "in") if isinstance(reader, Mlp) and reader.part == "out" else reader
        parsed.append(reader)
        head = isinstance(reader, Head) and reader.part in PORTS
        if not (head or isinstance(reader, Score) or (isinstance(reader, Mlp) and reader.part == "in")):
            raise MechirError(f"'{reader}' receives nothing: write 'score', a head's input such as h10.1.k, or mlp3.")
    if not parsed:
        raise MechirError("There is no receiver: write 'score', a head's input such as h10.1.k, or mlp3.")
    if len(parsed) > 1 and not all(isinstance(reader, Head) for reader in parsed):
        raise MechirError("Several receivers are heads' inputs, such as h10.1.k and h10.4.k: give the others alone.")
    return tuple(sorted(set(parsed))) if len(parsed) > 1 else tuple(parsed)


def component(end: Any) -> Any:
    """The component that an end of an edge belongs to: h8.1 of h8.1.q, mlp3 of mlp3.in; the score is its own."""
    return type(end)(*(number for number in end if not isinstance(number, str))) if isinstance(end, tuple) else end


def _place(site: Source | Reader) -> tuple[int, int, tuple[Any, ...]]:
    """The sort key of a site on the way from the embedding to the score."""
    return (sys.maxsize, 0, ()) if isinstance(site, Score) else (site.layer, _IN_A_LAYER.index(type(site)), tuple(site))
