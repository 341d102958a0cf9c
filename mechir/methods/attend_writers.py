"""What wrote the queries and keys of a head: the stream that it reads as a sum over writers, LayerNorms frozen.

    x[p] = sum over writers u of A_u out_u[p] / (product of sigma[p] of the LayerNorms after u) + biases

A_u is the product of gamma C over the LayerNorms after u; C takes the mean out, sigma is the standard deviation that
each LayerNorm of this run divides by. With it frozen the sum is the stream itself, not an approximation. A_u is the
same at every position, so the mean of W x over positions takes of each writer the mean of what it wrote, weighted by
1 / sigma: the walk goes back from the head to the embedding with W A_u, and no writer's stream is ever held.

Source: the query, key and value composition of Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits),
there without LayerNorms; frozen LayerNorms: docs/circuits.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechir.batches import Batch
from mechir.methods.edge_graph import Graph
from mechir.recorder import observe
from mechir.reranker import Weights, needs
from mechir.sites import Head

BIASES = ("b_O", "b_LN")
"""The writers that are constants: output biases of attention, and biases of LayerNorms, of all layers together."""


@dataclass(frozen=True, eq=False)
class Record:
    """What was written in the layers before one layer, and what every LayerNorm there divided by.

    `z` and `mlp` are what heads and MLPs write, `sigma1` and `sigma2` belong to the LayerNorms after them; `stream` is
    what the layer reads. In float32, or in float64 where the model is.
    """

    embedded: Float[Tensor, "batch pos d_model"]
    z: list[Float[Tensor, "batch pos head d_head"]]
    sigma1: list[Float[Tensor, "batch pos"]]
    mlp: list[Float[Tensor, "batch pos d_model"]]
    sigma2: list[Float[Tensor, "batch pos"]]
    stream: Float[Tensor, "batch pos d_model"]

    @classmethod
    def of(cls, model: Weights, batch: Batch, layer: int) -> Record:
        """The record of a run that stops where `layer` reads."""
        hooks = {"z": "attn.hook_z", "sigma1": "ln1.hook_scale", "mlp": "hook_mlp_out", "sigma2": "ln2.hook_scale"}
        names = {part: [f"blocks.{at}.{hook}" for at in range(layer)] for part, hook in hooks.items()}
        wanted = ["hook_full_embed", *(name for of in names.values() for name in of)]
        stream, seen = observe(model, batch, wanted, lambda _, x: precise(x), stop_at_layer=layer)
        layers = {part: [seen[name] for name in of] for part, of in names.items()}
        for part in ("sigma1", "sigma2"):
            layers[part] = [x.squeeze(-1) for x in layers[part]]
        return cls(embedded=seen["hook_full_embed"], stream=precise(stream), **layers)


def precise(x: Tensor) -> Tensor:
    """Numbers in float32 at least."""
    return x.float() if x.dtype == torch.bfloat16 else x


def writers(graph: Graph, head: Head) -> tuple[str, ...]:
    """The names of what writes before a head's layer: the embedding, heads and MLPs in order, then the `BIASES`."""
    senders = graph.senders[: graph.before(2 * head.layer)]
    return (*map(str, senders), *(BIASES if head.layer else ()))


def written(
    model: Weights,
    record: Record,
    layer: int,
    weight: Float[Tensor, "d_read d_model"],
    share: Float[Tensor, "batch pos"],
) -> Float[Tensor, "batch writer d_read"]:
    """The weighted sum over positions of `weight` times what each writer put into the stream that `layer` reads.

    Args:
        model: whose weights.
        record: of a run up to this layer.
        layer: the layer that reads.
        weight: what reads the stream there, e.g. a head's W_Q.
        share: what each position counts.

    Returns:
        In the order of `writers`.
    """
    needs(model, "written", Weights, norm="post")
    parts: list[Float[Tensor, "batch writer d_read"]] = []
    constant = {name: share.new_zeros(len(share), len(weight)) for name in BIASES}
    for at in reversed(range(layer)):
        of = model.parts.layers[at]
        constant["b_LN"] += _everywhere(share, weight, of.ln2.bias)
        weight, share = _before(of.ln2, weight), share / record.sigma2[at]
        parts.append((torch.einsum("bp,bpm->bm", share, record.mlp[at]) @ weight.T)[:, None])
        constant["b_LN"] += _everywhere(share, weight, of.ln1.bias)
        weight, share = _before(of.ln1, weight), share / record.sigma1[at]
        constant["b_O"] += _everywhere(share, weight, of.o.bias)
        output = precise(of.o.weight).unflatten(1, (model.cfg.n_heads, -1))
        z = torch.einsum("bp,bphe->bhe", share, record.z[at])
        parts.append(torch.einsum("bhe,rhe->bhr", z, torch.einsum("rm,mhe->rhe", weight, output)))
    parts.append((torch.einsum("bp,bpm->bm", share, record.embedded) @ weight.T)[:, None])
    biases = [constant[name][:, None] for name in BIASES] if layer else []
    return torch.cat([*reversed(parts), *biases], 1)


def _before(norm: nn.LayerNorm, weight: Float[Tensor, "d_read d_model"]) -> Float[Tensor, "d_read d_model"]:
    """What reads a LayerNorm's input as `weight` reads its output, but for sigma and the bias: weight gamma C."""
    scaled = weight * precise(norm.weight)
    return scaled - scaled.mean(-1, keepdim=True)


def _everywhere(
    share: Float[Tensor, "batch pos"], weight: Float[Tensor, "d_read d_model"], bias: Float[Tensor, "d_model"]
) -> Float[Tensor, "batch d_read"]:
    """What reads a bias that is the same at every position."""
    return share.sum(-1)[:, None] * (weight @ precise(bias))
