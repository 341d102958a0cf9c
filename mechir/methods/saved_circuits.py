"""What a file of a circuit holds, whatever its format, and what is checked when it is written and when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mechir.circuits import Circuit, Edge, Reader
from mechir.errors import MechirError
from mechir.methods.edge_graph import Sender, reads_at, writes_at
from mechir.reranker import Reranker
from mechir.sites import Head, Mlp, Resid

LIMITS = {"n_layers": 1000, "n_heads": 1000, "d_model": 1_000_000}
"""More than any model has: a file that claims more is damaged, and to list its nodes would fill the memory."""
FLOAT32 = 3.4028234e38
"""The largest score: the tools that read these files hold scores as float32."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide which edges it has; its name does not count in comparisons.

    Raises:
        MechirError: for a size that is out of range.
    """

    n_layers: int
    n_heads: int
    d_model: int
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _refuse_sizes(self.sizes)

    @classmethod
    def of(cls, model: Reranker) -> Shape:
        """The shape of a model."""
        cfg = model.cfg
        return cls(cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.model_name)

    @classmethod
    def parse(cls, sizes: Mapping[str, Any], name: str = "") -> Shape:
        """The shape that a file states; raises for a size that is missing, no whole number, or out of range."""
        _refuse_sizes(sizes)
        return cls(sizes["n_layers"], sizes["n_heads"], sizes["d_model"], name)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by name."""
        return {size: getattr(self, size) for size in LIMITS}

    def __str__(self) -> str:
        return f"{self.n_layers} layers with {self.n_heads} heads and d_model {self.d_model}"


class SavedCircuit(NamedTuple):
    """What a file holds.

    Attributes:
        circuit: its edges.
        scores: the mean effect of each edge that was measured, inside the circuit or outside.
        shape: the sizes of the model.
    """

    circuit: Circuit
    scores: Mapping[Edge, float]
    shape: Shape


def checked(circuit: Circuit, scores: Mapping[Edge, Any], shape: Shape) -> SavedCircuit:
    """A circuit that a file can hold; scores that are None or NaN say that an edge was not measured, and are left out.

    Raises:
        MechirError: for an edge that a model of this shape lacks or that leads backwards, a score that is no finite
            number.
    """
    for edge in (*circuit, *scores):
        refuse_edge(edge, shape)
    values = {edge: as_score(str(edge), value) for edge, value in scores.items()}
    return SavedCircuit(circuit, {edge: value for edge, value in values.items() if value is not None}, shape)


def refuse_edge(edge: Edge, shape: Shape) -> None:
    """Raises for an edge that a model of this shape lacks, or whose sender writes after its reader reads."""
    source, reader = edge.source, edge.readers[0]
    if len(edge.readers) > 1 or not isinstance(source, Sender) or (isinstance(source, Resid) and source.layer):
        raise MechirError(
            f"{edge} does not lead from resid0, a head or an MLP to one input, as an edge in a file does."
        )
    if not (shape_has(shape, source) and shape_has(shape, reader)):
        raise MechirError(f"{edge} is no edge of a model of {shape}.")
    if writes_at(source) > reads_at(reader, shape.n_layers):
        raise MechirError(f"{edge} leads backwards: {source} writes after {str(edge).partition('->')[2]} reads.")


def shape_has(shape: Shape, end: Sender | Reader) -> bool:
    """Whether a model of this shape has a component."""
    if not isinstance(end, Head | Mlp):
        return True
    return 0 <= end.layer < shape.n_layers and (isinstance(end, Mlp) or 0 <= end.head < shape.n_heads)


def as_score(what: str, value: Any) -> float | None:
    """A score as a float; None for None and NaN. Raises for what is no number, or too large for a float32."""
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if value is None or (number and value != value):
        return None
    if not (number and abs(value) <= FLOAT32):
        raise MechirError(f"the score of {what} is {short(value)}, which is no finite number of 32 bits.")
    return float(value)


def filler(scores: Mapping[Edge, float]) -> float:
    """What stands for the score of an edge of the circuit that has none, where a format requires a number.

    1 where no edge has a score, so that tools rank the circuit above all else and draw its edges alike; else 0.
    """
    return 0.0 if scores else 1.0


def as_object(value: Any, name: str) -> dict[str, Any]:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise MechirError(f"{name} is no JSON object but {short(value)}.")
    return value


def short(value: Any) -> str:
    """The value as Python writes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_sizes(sizes: Mapping[str, Any]) -> None:
    for size, most in LIMITS.items():
        value = sizes.get(size)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise MechirError(f"{size}={short(value)} is no size of a model: write a whole number from 1 to {most}.")
