"""Addresses inside the model: `h8.1 n5.1203 mlp3 attn3 resid0`, and edges between them."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

from mechir.errors import MechirError


class Site(Protocol):
    """Anything that names one activation: a layer, and the hook under which it is read and edited."""

    @property
    def layer(self) -> int:
        """The layer, counted from 0."""

    @property
    def hook(self) -> str:
        """The full name of the hook point that carries this site."""


class Head(NamedTuple):
    """An attention head; its activation is `z` (before W_O), its index the third axis."""

    layer: int
    head: int

    @property
    def hook(self) -> str:  # noqa: D102
        return f"blocks.{self.layer}.attn.hook_z"

    def __str__(self) -> str:
        return f"h{self.layer}.{self.head}"


class Neuron(NamedTuple):
    """One hidden unit of an MLP, after the activation function."""

    layer: int
    neuron: int

    @property
    def hook(self) -> str:  # noqa: D102
        return f"blocks.{self.layer}.mlp.hook_post"

    def __str__(self) -> str:
        return f"n{self.layer}.{self.neuron}"


class Mlp(NamedTuple):
    """What a whole MLP adds to the residual stream, bias included."""

    layer: int

    @property
    def hook(self) -> str:  # noqa: D102
        return f"blocks.{self.layer}.hook_mlp_out"

    def __str__(self) -> str:
        return f"mlp{self.layer}"


class Attn(NamedTuple):
    """What a whole attention layer adds to the residual stream, bias included."""

    layer: int

    @property
    def hook(self) -> str:  # noqa: D102
        return f"blocks.{self.layer}.hook_attn_out"

    def __str__(self) -> str:
        return f"attn{self.layer}"


class Resid(NamedTuple):
    """The residual stream that layer `layer` reads."""

    layer: int

    @property
    def hook(self) -> str:  # noqa: D102
        return f"blocks.{self.layer}.hook_resid_pre"

    def __str__(self) -> str:
        return f"resid{self.layer}"


class Score(NamedTuple):
    """What the model says of a pair, as the reader of an edge; `layer` is the number of layers."""

    layer: int

    @property
    def hook(self) -> str:  # noqa: D102
        return "head.hook_logits"

    def __str__(self) -> str:
        return "score"


class Edge(NamedTuple):
    """What `port` (`q`, `k`, `v` or `in`) of the site `reader` takes from the site `source`."""

    source: Site
    reader: Site
    port: str = "in"

    def __str__(self) -> str:
        return f"{self.source}->{self.reader}.{self.port}"


_PATTERNS = {
    r"h(\d+)\.(\d+)": Head,
    r"n(\d+)\.(\d+)": Neuron,
    r"mlp(\d+)": Mlp,
    r"attn(\d+)": Attn,
    r"resid(\d+)": Resid,
}


def parse_site(text: str) -> Head | Neuron | Mlp | Attn | Resid:
    """The site that prints as `text`: `parse_site("h8.1") == Head(8, 1)`.

    Raises:
        MechirError: when `text` is no site.
    """
    for pattern, site in _PATTERNS.items():
        match = re.fullmatch(pattern, text.strip())
        if match:
            return site(*map(int, match.groups()))
    raise MechirError(
        f"Cannot read '{text}' as a site. Write h8.1 (head), n5.1203 (neuron), mlp3, attn3 or resid0, counting from 0."
    )
