"""One attention function for every model that lets its function be chosen: scores and pattern in the open.

It comes with its mask function: without that, transformers passes no mask at all, and padding and causal masks vanish
without a word. It computes what the model's own "eager" function does, in the number type of the model or float32,
whichever is finer, and goes through the hook points of the layer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from mechir.encoder.forward import is_hooked

NAME = "mechir"
"""The name of the function in transformers."""
OPENED: ContextVar[Mapping[nn.Module, nn.Module]] = ContextVar("OPENED")
"""The hook points of each attention module, while a model runs with its attention in the open."""


def attend(
    module: nn.Module,
    query: Float[Tensor, "batch head reader d_head"],
    key: Float[Tensor, "batch kv_head source d_head"],
    value: Float[Tensor, "batch kv_head source d_head"],
    attention_mask: Float[Tensor, "#batch 1 #reader source"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Float[Tensor, "#batch head reader source"] | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "batch reader head d_head"], None]:
    """The output of the heads, each activation passed through its hook point [batch, pos, head, d_head].

    `query` and `key` are as they are compared, after norms and rotation. Keys and values of fewer heads are shared by
    as many heads each. The bias of relative positions and the cap of scores are part of the scores. A reader with no
    source reads 0.
    """
    points: Any = OPENED.get()[module]
    q, k, v = (_through(points, part, x) for part, x in (("q", query), ("k", key), ("v", value)))
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, 1) if shared > 1 else x for x in (k, v))
    if softcap is None and not is_hooked(points.hook_attn_scores) and not is_hooked(points.hook_pattern):
        bias = (
            attention_mask
            if position_bias is None
            else position_bias + (0 if attention_mask is None else attention_mask)
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling).transpose(1, 2).contiguous(), None
    scores = q @ k.transpose(2, 3) * (1 / math.sqrt(q.shape[-1]) if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores.masked_fill(attention_mask < 0, -math.inf)
    scores = points.hook_attn_scores(scores)
    number = torch.promote_types(scores.dtype, torch.float32)
    pattern = scores.softmax(-1, dtype=number).to(v.dtype)
    pattern = pattern.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return (points.hook_pattern(pattern) @ v).transpose(1, 2).contiguous(), None


def _through(points: Any, part: str, x: Float[Tensor, "batch head pos d_head"]) -> Float[Tensor, "..."]:
    point = getattr(points, f"hook_{part}", None)
    return x if point is None or not is_hooked(point) else point(x.transpose(1, 2)).transpose(1, 2)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)


@contextlib.contextmanager
def opened(hf: Any, points: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Runs Hugging Face's model with its attention in the open; afterwards it has its own function again."""
    own, token = hf.config._attn_implementation, OPENED.set(points)
    hf.set_attn_implementation(NAME)
    try:
        yield
    finally:
        hf.set_attn_implementation(own)
        OPENED.reset(token)
