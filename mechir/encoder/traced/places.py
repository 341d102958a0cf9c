"""Hook points by place: the module whose input or output carries an activation, in the order in which they are reached.

What attention computes inside (q, k, v, scores, pattern) has no module: those points are reached by the attention
function, or by the module that reads the pattern where a model has an attention of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mechir.encoder.forward import branch, has_gradient, is_hooked
from mechir.encoder.traced.layouts import Layout

_INSIDE = tuple(f"hook_{part}" for part in ("q", "k", "v", "attn_scores", "pattern"))


def inside(points: str) -> tuple[str, ...]:
    """The points below `points` that the attention function reaches.

    A decoder that wrote one word reads one position there, with weight 1 whatever its query and key: it has neither.
    """
    own = points.startswith("decoder.") and points.endswith(".attn")
    return tuple(f"{points}.{name}" for name in (_INSIDE[2:] if own else _INSIDE))


class Place(NamedTuple):
    """The input or output of a module, and the hook points that its activation goes through, in order.

    Args:
        path: of the module, below the model that is traced.
        side: "input" or "output".
        points: names of hook points.
        heads: how many heads the last axis holds; 0 where it is not split.
        total: the point of the residual stream with this output added; "" where there is none.
        result: the point of each head's output behind W_O; "" where there is none.
        scores: the point of the scores, where this is a pattern.
        layer: the layer that reads this as its residual stream; -1 where it is none.
        needed_for: the point for which the stream is read here, hooked or not.
    """

    path: str
    side: str
    points: tuple[str, ...]
    heads: int = 0
    total: str = ""
    result: str = ""
    scores: str = ""
    layer: int = -1
    needed_for: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All hook points that are reached here."""
        return tuple(name for name in (*self.points, self.total, self.result, self.scores) if name)


def places(layout: Layout, body: str, n_layers: int, heads: int, kv_heads: int) -> list[Place]:
    """Every place of a model whose body lies at this path, in the order in which it is reached."""
    body = f"{body}." if body else ""
    listed = [Place(body + layout.word, "output", ("embed.hook_embed",))]
    for layer in range(n_layers):
        listed += _of_layer(layout, f"{body}{layout.layers}", layer, heads, kv_heads)
    first = listed[1]
    listed[1] = first._replace(points=("hook_full_embed", *first.points))
    if layout.final_norm:
        listed.append(Place(body + layout.final_norm, "output", ("ln_final.hook_normalized",)))
    return listed


def attentions(layout: Layout, body: str, n_layers: int) -> dict[str, str]:
    """The modules that call the attention function, by their paths, each with where its hook points are."""
    path = f"{body}.{layout.layers}".lstrip(".")
    layers = range(n_layers) if layout.attention else ()
    return {f"{path}.{layer}.{layout.attention}": f"blocks.{layer}.attn" for layer in layers}


def _of_layer(layout: Layout, layers: str, layer: int, heads: int, kv_heads: int) -> Iterator[Place]:
    path, block, post = f"{layers}.{layer}", f"blocks.{layer}.", layout.norm == "post"

    def place(
        module: str, side: str, *points: str, heads: int = 0, total: str = "", result: str = "", scores: str = ""
    ) -> Place:
        at, named = f"{path}.{module}" if module else path, tuple(block + name for name in points)
        total, result, scores = (block + name if name else "" for name in (total, result, scores))
        return Place(at, side, named, heads, total, result, scores)

    stream = place("", "input", "hook_resid_pre")._replace(layer=layer)
    yield stream if post else stream._replace(needed_for=f"{block}hook_resid_mid")
    if not post:
        yield place(layout.ln1, "output", "ln1.hook_normalized")
    if layout.pattern:
        for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield place(getattr(layout, part), "output", f"attn.hook_{part}", heads=count)
        yield place(layout.pattern, "input", "attn.hook_pattern", scores="attn.hook_attn_scores")
    yield place(layout.o, "input", "attn.hook_z", heads=heads, result="attn.hook_result")
    if post:
        yield place(layout.attn_out, "output", "hook_attn_out")
        yield place(layout.ln1, "output", "ln1.hook_normalized", "hook_resid_mid")
    else:
        yield place(layout.attn_out, "output", "hook_attn_out", total="hook_resid_mid")
    yield place(layout.mlp_in, "input", "hook_mlp_in")
    if not post:
        yield place(layout.ln2, "output", "ln2.hook_normalized")
    yield place(layout.activation, "input", "mlp.hook_pre")
    yield place(layout.w_out, "input", "mlp.hook_post")
    yield place(layout.mlp_out, "output", "hook_mlp_out")
    if post:
        yield place(layout.ln2, "output", "ln2.hook_normalized", "hook_resid_post")._replace(layer=layer + 1)
    else:
        yield place("", "output", "hook_resid_post")._replace(layer=layer + 1)


def points_below(names: list[str], root: nn.Module) -> None:
    """Adds a hook point for each dotted name below a module, with plain modules in between."""
    for name in names:
        *above, last = name.split(".")
        module = root
        for part in above:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.add_module(last, HookPoint())


class Visit(NamedTuple):
    """A place that a run stops at: its module in the trace, the module itself, and its hook points."""

    place: Place
    envoy: Any
    module: nn.Module
    point: Callable[[str], HookPoint]

    def wanted(self) -> bool:
        """Whether anything is hooked here, or needs what is here."""
        names = (*self.place.names, *filter(None, [self.place.needed_for]))
        return any(is_hooked(self.point(name)) for name in names)

    def pass_through(self, stream: Tensor | None) -> Tensor:
        """Sends the activation through its points and writes what comes out; returns it as the model has it.

        `stream` is the residual stream that the layer read.
        """
        whole = getattr(self.envoy, self.place.side)
        x = branch(whole[0] if isinstance(whole, tuple) else whole)
        new = split = x.unflatten(-1, (self.place.heads, -1)) if self.place.heads else x
        if self.place.scores and is_hooked(self.point(self.place.scores)):
            new = _scores(x, self.point(self.place.scores))
        for name in self.place.points:
            new = self.point(name)(new)
        written = self._added(new, stream)
        flat = written.flatten(-2) if self.place.heads else written
        if has_gradient(x) or not (flat is x or _unused(split, written)):
            setattr(self.envoy, self.place.side, (flat, *whole[1:]) if isinstance(whole, tuple) else flat)
        if self.place.result and is_hooked(self.point(self.place.result)):
            self._write_result(written)
        return flat

    def _added(self, x: Tensor, stream: Tensor | None) -> Tensor:
        """What is added to the stream, after an edit of their sum."""
        if not self.place.total or not is_hooked(self.point(self.place.total)):
            return x
        assert stream is not None
        total = stream + x
        edited = self.point(self.place.total)(total)
        return x if _unused(total, edited) else edited - stream

    def _write_result(self, z: Float[Tensor, "batch pos head d_head"]) -> None:
        """Sends what each head adds through its point, and writes the sum as the module's output."""
        o: Any = self.module
        weight = o.weight.unflatten(1, (z.shape[2], -1))
        result = torch.einsum("bphd,mhd->bphm", z, weight)
        edited = self.point(self.place.result)(result)
        if not _unused(result, edited):
            self.envoy.output = edited.sum(2) + (0 if o.bias is None else o.bias)


def _unused(computed: Tensor, edited: Tensor) -> bool:
    """Whether what was computed for a hook point alone can be dropped: no edit, and no gradient goes through it."""
    return edited is computed and not has_gradient(computed)


def _scores(pattern: Float[Tensor, "batch head reader source"], point: HookPoint) -> Float[Tensor, "..."]:
    """The pattern after an edit of its scores: of these the logarithm of the pattern is known, up to one constant."""
    scores = torch.where(pattern > 0, pattern.clamp_min(torch.finfo(pattern.dtype).tiny).log(), -math.inf)
    edited = point(scores)
    if _unused(scores, edited):
        return pattern
    return edited.softmax(-1).masked_fill((edited == -math.inf).all(-1, keepdim=True), 0.0)
