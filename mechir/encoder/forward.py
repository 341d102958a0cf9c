"""The forward of a post-LN encoder with every activation passed through a hook point.

A layer is LN2(n + MLP(n)) with n = LN1(x + attention(x)), in two halves, `read` and `write`. Axis names: `reader` and
`source` are the two position axes of attention; `row` is 1 instead of the length where only the CLS row is computed
(last layer, when nothing else is hooked). Fused attention is used in a layer unless something there reads or writes the
scores or the pattern.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mechir.batches import Batch
from mechir.parts import Layer, Parts


class LayerNormHooks(nn.Module):
    """Hook points of a LayerNorm: its input, the standard deviation it divides by, its output."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_in, self.hook_scale, self.hook_normalized = HookPoint(), HookPoint(), HookPoint()


class AttentionHooks(nn.Module):
    """Hook points inside the attention of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()
        self.hook_z, self.hook_result = HookPoint(), HookPoint()


class MlpHooks(nn.Module):
    """Hook points inside an MLP: before and after the activation function."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()


class BlockHooks(nn.Module):
    """Hook points of one layer, in the order in which they fire."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_resid_pre = HookPoint()
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        self.attn = AttentionHooks()
        self.hook_attn_out = HookPoint()
        self.ln1 = LayerNormHooks()
        self.hook_resid_mid, self.hook_mlp_in = HookPoint(), HookPoint()
        self.mlp = MlpHooks()
        self.hook_mlp_out = HookPoint()
        self.ln2 = LayerNormHooks()
        self.hook_resid_post = HookPoint()


class EmbedHooks(nn.Module):
    """Hook points of the three embeddings and their LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_embed, self.hook_pos_embed, self.hook_token_type_embed = HookPoint(), HookPoint(), HookPoint()
        self.ln = LayerNormHooks()


def embed(
    parts: Parts, hooks: EmbedHooks, batch: Batch, positions_after: int | None
) -> Float[Tensor, "batch pos d_model"]:
    """The first residual stream. `positions_after`: RoBERTa's pad id, after which it counts positions; else None."""
    modules = parts.embeddings
    if positions_after is None:
        positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)[None]
    else:
        token = batch.input_ids != positions_after
        positions = token.cumsum(1) * token + positions_after
    x = hooks.hook_embed(modules.word(batch.input_ids))
    if modules.token_type is not None:
        x = x + hooks.hook_token_type_embed(modules.token_type(batch.token_type_ids))
    x = x + hooks.hook_pos_embed(modules.position(positions).expand_as(x))
    x = layer_norm(modules.ln, hooks.ln, x)
    return x if modules.project is None else modules.project(x)


def write(
    layer: Layer,
    hooks: BlockHooks,
    rows: Float[Tensor, "batch row d_model"],
    z: Float[Tensor, "batch row head d_head"],
) -> Float[Tensor, "batch row d_model"]:
    """The second half of a layer: the output of the heads is added to the stream, then that of the MLP."""
    z = hooks.attn.hook_z(z)
    if is_hooked(hooks.attn.hook_result):
        weight = layer.o.weight.unflatten(1, (z.shape[2], -1))
        attn_out = hooks.attn.hook_result(torch.einsum("bphd,mhd->bphm", z, weight)).sum(2) + layer.o.bias
    else:
        attn_out = layer.o(z.flatten(2))
    attn_out = hooks.hook_attn_out(attn_out)
    mid = hooks.hook_resid_mid(layer_norm(layer.ln1, hooks.ln1, rows + attn_out))
    pre = hooks.mlp.hook_pre(layer.mlp_in(hooks.hook_mlp_in(branch(mid))))
    mlp_out = hooks.hook_mlp_out(layer.mlp_out(hooks.mlp.hook_post(layer.activation(pre))))
    return hooks.hook_resid_post(layer_norm(layer.ln2, hooks.ln2, mid + mlp_out))


def read(
    layer: Layer,
    hooks: BlockHooks,
    x: Float[Tensor, "batch source d_model"],
    allowed: Bool[Tensor, "batch 1 1 source"] | None,
    *,
    n_heads: int,
    explicit: bool = False,
    head_row: bool = False,
) -> tuple[Float[Tensor, "batch reader d_model"], Float[Tensor, "batch reader head d_head"]]:
    """The first half of a layer: the stream at the rows that are computed, and what each head reads for them (z).

    `allowed` is True at sources that are no padding (None: there is no padding). `head_row` computes the first row
    alone, which is all that the classification head reads.
    """
    x = hooks.hook_resid_pre(x)
    rows = x[:, :1] if head_row else x
    at = hooks.attn

    def split(y: Tensor) -> Float[Tensor, "batch pos head d_head"]:
        return y.unflatten(-1, (n_heads, -1))

    q = at.hook_q(split(layer.q(hooks.hook_q_input(branch(rows)))))
    k = at.hook_k(split(layer.k(hooks.hook_k_input(branch(x)))))
    v = at.hook_v(split(layer.v(hooks.hook_v_input(branch(x)))))
    if explicit or is_hooked(at.hook_attn_scores) or is_hooked(at.hook_pattern):
        return rows, _explicit_z(at, q, k, v, allowed)
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))
    return rows, F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2)


def _explicit_z(
    at: AttentionHooks,
    q: Float[Tensor, "batch reader head d_head"],
    k: Float[Tensor, "batch source head d_head"],
    v: Float[Tensor, "batch source head d_head"],
    allowed: Bool[Tensor, "batch 1 1 source"] | None,
) -> Float[Tensor, "batch reader head d_head"]:
    """Attention with scores and pattern in the open. A reader without any source left reads 0, never NaN."""
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * (1 / math.sqrt(q.shape[-1]))
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    edited = at.hook_attn_scores(scores)
    pattern = edited.softmax(-1)
    if edited is not scores:
        pattern = pattern.masked_fill((edited == -math.inf).all(-1, keepdim=True), 0.0)
    return (at.hook_pattern(pattern) @ v.transpose(1, 2)).transpose(1, 2)


def layer_norm(norm: nn.LayerNorm, hooks: LayerNormHooks, x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes d"]:
    """LayerNorm, computed in steps only where its scale is hooked."""
    x = hooks.hook_in(x)
    if not is_hooked(hooks.hook_scale):
        return hooks.hook_normalized(norm(x))
    centred = x - x.mean(-1, keepdim=True)
    scale = hooks.hook_scale((centred.square().mean(-1, keepdim=True) + norm.eps).sqrt())
    return hooks.hook_normalized(centred / scale * norm.weight + norm.bias)


def branch(x: Tensor) -> Tensor:
    """The activation as one reader has it, so that a gradient there is of this reader and not of the others too."""
    return x.view_as(x) if has_gradient(x) else x


def has_gradient(x: Tensor) -> bool:
    """Whether the graph of a backward pass goes through it."""
    return torch.is_grad_enabled() and x.requires_grad


def anything_hooked(layer: nn.Module) -> bool:
    """Whether any point of a layer has a hook."""
    return any(point.has_hooks() for point in layer.modules() if isinstance(point, HookPoint))


def is_hooked(point: HookPoint) -> bool:
    """Whether anything reads or writes here, in either direction."""
    return bool(point._forward_hooks or point._backward_hooks)
