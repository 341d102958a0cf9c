"""What edges say of the roles of heads: a role is confirmed where edges carry it, contradicted where none leaves.

The edges that hold of one model on one collection make a graph. A head **writes the score** where a way of holding
edges leads from it to the score through MLPs alone, as in path patching with heads frozen. It **counts terms** where a
holding edge leads into its queries or keys and a way leads on from it to the score. It **gathers the query** where a
holding edge leads into the values of a head that writes the score.

It misleads where few queries were measured: an edge that does not hold may carry something all the same, so a role
without its edges is "open" as long as any edge leaves the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from mechir.circuits import Edge, component, parse_edge
from mechir.measures import EDGE, parse_measure
from mechir.registry.evidence import TF
from mechir.sites import Head, Mlp, Score

Verdicts = Mapping[str, str]
"""By role: "confirmed", "contradicted" or "open"."""
ROLES = {"tf": "soft-tf", "scoring": "scoring", "to_context": "query-context"}
"""Roles by the link, or the column of the table of links, that speaks for them."""


class EdgeGraph:
    """The edges that hold of one model on one collection."""

    def __init__(self, edges: Iterable[Edge]) -> None:
        self.steps = tuple((edge.source, reader) for edge in edges for reader in edge.readers)
        self.writers = self._leading(Mlp)
        self.senders = self._leading(Head | Mlp)

    @classmethod
    def of(cls, findings: pd.DataFrame) -> EdgeGraph | None:
        """The graph of findings of one model and collection, `held`; None where no edges were measured."""
        edges = findings[EDGE.among(findings["measure"])]
        edges = edges[[("axiom", TF) in parse_measure(text).parameters for text in edges["measure"]]]
        return cls(map(parse_edge, edges["site"][edges["holds"]])) if len(edges) else None

    def verdicts(self, head: Head, roles: Iterable[str]) -> Verdicts:
        """What the edges say of these roles of a head."""
        sent = [reader for source, reader in self.steps if source == head]
        matches = any(Head(*head[:2], port) == reader for _, reader in self.steps for port in ("q", "k"))
        gathered = [reader for reader in sent if isinstance(reader, Head) and reader.part == "v"]
        says = {
            "scoring": head in self.writers,
            "soft-tf": head in self.senders and matches,
            "query-context": any(component(reader) in self.writers for reader in gathered),
        }
        return {role: "confirmed" if says[role] else "open" if sent else "contradicted" for role in roles}

    def _leading(self, through: Any) -> set[Any]:
        """The components from which a way leads to the score through components of these kinds alone."""
        reached: set[Any] = set()
        while True:
            open_to = [
                source
                for source, reader in self.steps
                if isinstance(reader, Score) or (isinstance(reader, through) and component(reader) in reached)
            ]
            if reached.issuperset(open_to):
                return reached
            reached.update(open_to)
