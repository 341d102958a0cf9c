"""W_QK of a model that turns queries and keys by their positions: one matrix for each distance.

Position i looks at j with the score x_i W_Q R(i) R(j)^T W_K^T x_j / sqrt(d_head), which depends on i - j alone; x is
what the layer's norm gives.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from mechir.errors import MechirError


def turned_qk(model: Any, distance: int) -> FactoredMatrix:
    """W_QK [layer, head, d_model, d_model] between a position and the one `distance` before it, in float64.

    Raises:
        MechirError: for a model whose queries and keys are not turned, or go through a norm of their own.
    """
    if model.structure.positions != "rotary" or not model.layout.turned:
        raise MechirError(
            f"'{model.cfg.model_name}' does not turn queries and keys by their positions, and it has no W_QK at a "
            "distance: compare what its heads look at by matching.attention_by_pair."
        )
    layers = model.hf.base_model.get_submodule(model.layout.layers)
    if any(hasattr(layer.get_submodule(model.layout.attention), "q_norm") for layer in layers):
        raise MechirError(
            f"'{model.cfg.model_name}' puts every query and key through a norm of its own, so that no W_QK gives its "
            "scores: compare what its heads look at by matching.attention_by_pair."
        )
    places = max(distance, 0), max(-distance, 0)
    sides = zip("qk", places, strict=True)
    q, k = (torch.stack([_turned(model, layer, part, at) for layer in layers]) for part, at in sides)
    return FactoredMatrix(q, k.transpose(-1, -2))


def _turned(model: Any, layer: Any, part: str, place: int) -> Float[Tensor, "head d_model d_head"]:
    """The weights of a layer's queries or keys, turned as at this position; shared keys once for each head."""
    attention, c = layer.get_submodule(model.layout.attention), model.cfg
    if part in model.layout.turned:
        weight = attention.get_submodule(model.layout.turned[part]).weight
    else:
        weight = attention.get_submodule(model.layout.turned["qkv"]).weight.chunk(3)["qkv".index(part)]
    rows = weight.detach().double().unflatten(0, (-1, c.d_head)).transpose(1, 2)
    rows = rows.repeat_interleave(c.n_heads // len(rows), 0)
    kind = (layer.attention_type,) if c.family == "modernbert" else ()
    position = torch.tensor([[place]], device=rows.device)
    cos, sin = (x[0, 0].double() for x in model.hf.base_model.rotary_emb(rows, position, *kind))
    first, second = rows.chunk(2, -1)
    return rows * cos + torch.cat([-second, first], -1) * sin
