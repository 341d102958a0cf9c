"""First-order effects of edges, split by the roles of the positions between which they carry something.

A component writes at a position, and what reads it there may be a head that carries it on to another position: the edge
`resid0->h1.2.k` from `doc match` to `query match` is what the keys of matching document terms do for the queries of the
matching query terms. For v and k the source is where the input is read, for q the reader is; MLPs and the score read
and write at one position. Over all roles it adds up to `edge_gradients.first_order`.

Source: Haklay et al. 2025 (PEAP, arXiv:2502.04577); the roles are those of `contrasts.ROLES`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechir.batches import Batch
from mechir.circuits import PORTS
from mechir.contrasts import ROLES
from mechir.methods.edge_gradients import Leaf, by_head
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_streams import changes
from mechir.methods.paths import Run
from mechir.recorder import observe
from mechir.reranker import Weights, needs_edges
from mechir.sites import Head, Mlp

Attention = tuple[str, int, int]
"""Which gradient: of a port, in a layer, of the part of the attention to or from positions of a role."""


@dataclass(frozen=True, eq=False)
class RoleGradients:
    """The gradients of weight times score, those of queries, keys and values split by the position at the other end."""

    ports: dict[Attention, Float[Tensor, "batch _ head d_head"]]
    pre: list[Float[Tensor, "batch _ d_mlp"]]
    stream: Float[Tensor, "batch d_model"]


def role_gradients(
    model: Weights,
    batch: Batch,
    member: Float[Tensor, "batch pos role"],
    embedded: Float[Tensor, "batch pos d_model"],
    weight: Float[Tensor, "batch"],
) -> RoleGradients:
    """The gradients where layer 0 reads `embedded`.

    With p the pattern, g = d score / d z, w = g v^T (the worth of a unit of attention), ds = p (w - sum p w): by v of a
    source sum_r p g, by k sum_r ds q / sqrt(d), by q of a reader sum_s ds k / sqrt(d), r and s running over one role.
    """
    needs_edges(model, "role_gradients")
    n = model.cfg.n_layers
    parts = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "mlp.hook_pre")
    names = [f"blocks.{layer}.{part}" for layer in range(n) for part in parts]
    names.append(f"blocks.{n - 1}.hook_resid_post")
    with torch.enable_grad(), model.hooks([("hook_full_embed", Leaf(embedded))]):
        score, seen = observe(model, batch, names, head_row=True)
        wanted = [name for name in names if name.endswith(("hook_z", "hook_pre", "hook_resid_post"))]
        by = dict(zip(wanted, torch.autograd.grad((score * weight).sum(), [seen[x] for x in wanted]), strict=True))
    ports: dict[Attention, Tensor] = {}
    allowed = model.allowed(batch)
    for layer in range(n):
        at = f"blocks.{layer}.attn.hook_"
        q, k, v = (seen[at + port].detach().transpose(1, 2) for port in PORTS)
        g = by[at + "z"].transpose(1, 2)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        p = (scores if allowed is None else scores.masked_fill(~allowed, -math.inf)).softmax(-1)
        worth = g @ v.transpose(2, 3)
        ds = p * (worth - (p * worth).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
        for role in range(len(ROLES)):
            there = member[:, None, :, role, None]
            read = there[:, :, : q.shape[2]]
            ports["q", layer, role] = (ds @ (k * there)).transpose(1, 2)
            ports["k", layer, role] = (ds.transpose(2, 3) @ (q * read)).transpose(1, 2)
            ports["v", layer, role] = (p.transpose(2, 3) @ (g * read)).transpose(1, 2)
    pre = [by[f"blocks.{layer}.mlp.hook_pre"] for layer in range(n)]
    return RoleGradients(ports, pre, by[names[-1]][:, 0])


def averaged_roles(
    model: Weights,
    batch: Batch,
    member: Float[Tensor, "batch pos role"],
    ends: tuple[Run, Run],
    points: Sequence[float],
    weights: Sequence[Float[Tensor, "batch"]],
) -> RoleGradients:
    """The mean of the gradients at some points of the way from the first run's embeddings (0) to the second's (1)."""
    needs_edges(model, "averaged_roles")
    start, change = ends[0].resid[0], ends[1].resid[0] - ends[0].resid[0]
    every = [
        role_gradients(model, batch, member, start + point * change, weight / len(points))
        for point, weight in zip(points, weights, strict=True)
    ]
    ports = {key: torch.stack([one.ports[key] for one in every]).sum(0) for key in every[0].ports}
    pre = [torch.stack(of).sum(0) for of in zip(*(one.pre for one in every), strict=True)]
    return RoleGradients(ports, pre, torch.stack([one.stream for one in every]).sum(0))


@torch.no_grad()
def first_order_roles(
    model: Weights,
    graph: Graph,
    member: Float[Tensor, "batch pos role"],
    run: Run,
    donor: Run,
    gradients: RoleGradients,
    ln: str,
) -> Float[Tensor, "batch edge source reader"]:
    """The estimated effect of every edge, by the role of the source and of the reader of what it carries."""
    needs_edges(model, "first_order_roles")
    n = len(ROLES)
    out = run.score.new_zeros(len(member), len(graph), n, n)
    for moment, change in changes(model, run, donor, graph, ln):
        layer, moved = moment // 2, change.permute(0, 2, 3, 1).contiguous()
        for column, reader in graph.reading(moment):
            here = out[:, column : column + change.shape[1]]
            if not isinstance(reader, Head):
                by_input = gradients.stream[:, None]
                if isinstance(reader, Mlp):
                    by_input = gradients.pre[layer] @ model.parts.layers[layer].mlp_in.weight
                at = _at_roles(by_input, moved, member)
                here.diagonal(dim1=2, dim2=3).copy_(at)
                continue
            weight = by_head(model.parts.layers[layer].port(reader.part), model.cfg.n_heads)[reader.head]
            for role in range(n):
                by_input = gradients.ports[reader.part, layer, role][:, :, reader.head] @ weight
                at = _at_roles(by_input, moved, member)
                if reader.part == "q":
                    here[:, :, role] = at  # read at the reader; the role is that of the source
                else:
                    here[:, :, :, role] = at
    return out


def _at_roles(
    by_input: Float[Tensor, "batch row d_model"],
    moved: Float[Tensor, "batch _ d_model sender"],
    member: Float[Tensor, "batch pos role"],
) -> Float[Tensor, "batch sender role"]:
    """Gradient times change at every position, summed over the positions of each role."""
    rows = by_input.shape[1]
    product = (by_input[:, :, None] @ moved[:, :rows])[:, :, 0]
    return product.transpose(1, 2) @ member[:, :rows]


def members(roles: Int[Tensor, "batch pos"], like: Tensor) -> Float[Tensor, "batch pos role"]:
    """1 where a position has a role."""
    return (roles[..., None] == torch.arange(len(ROLES), device=roles.device)).to(like)
