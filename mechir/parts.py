"""What a model consists of: its sizes, its structure, and the modules that the forward reads, by their role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a model, under the names of TransformerLens's `cfg`.

    `n_params` counts all parameters (TransformerLens leaves out embeddings, biases and LayerNorms). `device` and
    `dtype` are those of now. `n_key_value_heads` is None where each head has keys and values of its own.
    """

    model_name: str
    family: str
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    n_labels: int
    act_fn: str
    n_params: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    n_key_value_heads: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The sizes by name."""
        return asdict(self)


@dataclass(frozen=True)
class Structure:
    """The structure that the arithmetic of a method may rely on.

    Attributes:
        norm: "post": a norm of the sum after each sublayer; "pre": one of what each sublayer reads, and a final one;
            "both": one more of what each sublayer adds.
        positions: "absolute": added to the word embeddings; "rotary" or "relative": part of the attention score.
        reads: the rows of the last layer that the head reads; "decoder": those of generated tokens.
        causal: whether a position sees only those before it.
        window: how far a position sees; None for the whole text.
        scaled: whether an attention score is q k / sqrt(d_head), q and k as they are compared, and nothing else.
    """

    norm: Literal["post", "pre", "both"]
    positions: Literal["absolute", "rotary", "relative"]
    reads: Literal["cls", "mean", "last", "decoder"]
    causal: bool = False
    window: int | None = None
    scaled: bool = True


class Embeddings(NamedTuple):
    """The modules that turn token ids into the first residual stream."""

    word: nn.Embedding
    position: nn.Embedding
    token_type: nn.Embedding | None
    ln: nn.LayerNorm
    project: nn.Linear | None


class Layer(NamedTuple):
    """The modules of one layer: Hugging Face's own, shared and not copied."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    ln1: nn.LayerNorm
    mlp_in: nn.Linear
    activation: Callable[[torch.Tensor], torch.Tensor]
    mlp_out: nn.Linear
    ln2: nn.LayerNorm

    def port(self, name: str) -> nn.Linear:
        """The projection that makes queries, keys or values: "q", "k" or "v"."""
        return {"q": self.q, "k": self.k, "v": self.v}[name]


class Parts(NamedTuple):
    """All modules that the forward reads, by their role."""

    embeddings: Embeddings
    layers: tuple[Layer, ...]
    pooler: nn.Linear
    pooler_activation: Callable[[torch.Tensor], torch.Tensor]
    classifier: nn.Linear
