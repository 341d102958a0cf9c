"""First-order effects of all edges, from the gradients at every reader's own input.

    effect(u -> v) ~ <T (what u writes on the donor - what it writes on the run), d score / d input of v>

T carries the change along the skip path (`edge_streams`), the gradient is that of everything after v. Gradients are
taken at one run (EAP) or averaged over the way from the donor's embeddings to the base's (EAP-IG). Queries and keys may
be put through the softmax exactly and linearised after it (the QK fix).

Source: Syed et al. 2023 (arXiv:2310.10348); Hanna et al. 2024 (arXiv:2403.17806); QK fix: Kramar et al. 2024
(arXiv:2403.00745). That frozen LayerNorms make a sum of a post-LN stream: docs/circuits.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch
from mechir.circuits import PORTS, Reader
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_streams import changes
from mechir.methods.paths import Run
from mechir.methods.walk import Replaced
from mechir.recorder import observe
from mechir.reranker import Weights
from mechir.sites import Head, Mlp


@dataclass(frozen=True, eq=False)
class Gradients:
    """The gradients of each pair's score, layer by layer, by what the readers make of the stream.

    `ports["q"][l]` and likewise k and v; `pre`: by the MLP's hidden units before their activation function; `stream`:
    by what the head reads. `worth[l]`, for the QK fix: what a unit of attention to each source is worth to the score.
    """

    ports: dict[str, list[Float[Tensor, "batch _ head d_head"]]]
    pre: list[Float[Tensor, "batch _ d_mlp"]]
    stream: Float[Tensor, "batch d_model"]
    worth: list[Float[Tensor, "batch head _ source"]]

    @classmethod
    def at(
        cls,
        model: Weights,
        batch: Batch,
        embedded: Float[Tensor, "batch pos d_model"],
        weight: Float[Tensor, "batch"],
        qk_fix: bool,
    ) -> Gradients:
        """The gradients of weight times score where layer 0 reads `embedded`."""
        n = model.cfg.n_layers
        parts = [*(f"attn.hook_{port}" for port in PORTS), "mlp.hook_pre", *(["attn.hook_z"] * qk_fix)]
        names = {part: [f"blocks.{layer}.{part}" for layer in range(n)] for part in parts}
        last = f"blocks.{n - 1}.hook_resid_post"
        every = [*(name for of in names.values() for name in of), last]
        with torch.enable_grad(), model.hooks([("hook_full_embed", Replaced(embedded.detach().requires_grad_()))]):
            score, seen = observe(model, batch, every, head_row=True)
            by = dict(
                zip(every, torch.autograd.grad((score * weight).sum(), [seen[name] for name in every]), strict=True)
            )
        worth = [
            torch.einsum("brhe,bshe->bhrs", by[z], seen[v].detach())
            for z, v in zip(names.get("attn.hook_z", ()), names["attn.hook_v"], strict=False)
        ]
        ports = {port: [by[name] for name in names[f"attn.hook_{port}"]] for port in PORTS}
        return cls(ports, [by[name] for name in names["mlp.hook_pre"]], by[last][:, 0], worth)

    def add(self, other: Gradients) -> None:
        """Adds another run's gradients to these, in place."""
        for mine, theirs in zip(self._all(), other._all(), strict=True):
            mine += theirs

    def _all(self) -> Iterator[Tensor]:
        for of in self.ports.values():
            yield from of
        yield from self.pre
        yield self.stream
        yield from self.worth


def averaged(
    model: Weights,
    batch: Batch,
    run: Run,
    donor: Run,
    points: Sequence[float],
    weights: Sequence[Float[Tensor, "batch"]],
    qk_fix: bool,
) -> Gradients:
    """The mean of the gradients at some points of the way from the run's embeddings (0) to the donor's (1).

    `weights` has for each point what each pair's score counts.
    """
    change, made = donor.resid[0] - run.resid[0], None
    for point, weight in zip(points, weights, strict=True):
        here = Gradients.at(model, batch, run.resid[0] + point * change, weight / len(points), qk_fix)
        if made is None:
            made = here
        else:
            made.add(here)
    if made is None:
        raise ValueError("There is no point.")
    return made


@torch.no_grad()
def first_order(
    model: Weights, graph: Graph, batch: Batch, run: Run, donor: Run, gradients: Gradients, *, ln: str, qk_fix: bool
) -> Float[Tensor, "batch edge"]:
    """The estimated effect of every edge on every pair's score, columns as in the graph."""
    out = run.score.new_empty(len(batch), len(graph))
    softmax = _Softmax(model, batch, run, donor, gradients) if qk_fix else None
    for moment, change in changes(model, run, donor, graph, ln):
        readers = graph.reading(moment)
        for columns, value in _read(model, readers, change, gradients, softmax, moment // 2):
            for place, column in enumerate(columns):
                out[:, column : column + change.shape[1]] = value[:, place]
    return out


def _read(
    model: Weights,
    readers: Sequence[tuple[int, Reader]],
    change: Float[Tensor, "batch sender row d_model"],
    gradients: Gradients,
    softmax: _Softmax | None,
    layer: int,
) -> Iterator[tuple[list[int], Float[Tensor, "batch reader sender"]]]:
    """The effects of the changes at the readers of one moment, with the columns where each reader's begin."""
    heads = [(column, reader) for column, reader in readers if isinstance(reader, Head)]
    for port in PORTS:
        here = [(column, reader.head) for column, reader in heads if reader.part == port]
        if not here:
            continue
        columns, of = [column for column, _ in here], [head for _, head in here]
        if softmax is not None and port != "v":
            yield columns, softmax.effects(change, layer, port, of)
            continue
        weight = port_weight(model, layer, port)[of]
        by_input = torch.einsum("brhe,hem->bhrm", gradients.ports[port][layer][:, :, of], weight)
        yield columns, _product(by_input, change)
    for column, reader in readers:
        if isinstance(reader, Head):
            continue
        mlp = isinstance(reader, Mlp)
        by_input = gradients.pre[layer] @ model.parts.layers[layer].mlp_in.weight if mlp else gradients.stream[:, None]
        yield [column], _product(by_input[:, None], change)


def _product(
    by_input: Float[Tensor, "batch reader row d_model"], change: Float[Tensor, "batch sender _ d_model"]
) -> Float[Tensor, "batch reader sender"]:
    rows = by_input.shape[2]
    return by_input.flatten(2) @ change[:, :, :rows].flatten(2).transpose(1, 2)


def port_weight(model: Weights, layer: int, port: str) -> Float[Tensor, "head d_head d_model"]:
    """The weights that make the queries, keys or values of each head of a layer."""
    of = model.parts.layers[layer]
    linear = {"q": of.q, "k": of.k, "v": of.v}[port]
    return linear.weight.unflatten(0, (model.cfg.n_heads, -1))


@dataclass(frozen=True, eq=False)
class _Softmax:
    """What a change of a head's queries or keys does to its pattern exactly, and that to the score to first order."""

    model: Weights
    batch: Batch
    run: Run
    donor: Run
    gradients: Gradients

    def effects(
        self, change: Float[Tensor, "batch sender row d_model"], layer: int, port: str, heads: Sequence[int]
    ) -> Float[Tensor, "batch reader sender"]:
        """Sum over readers and sources of (pattern changed - pattern) times what that attention is worth."""
        of, allowed = self.model.parts.layers[layer], self.model.allowed(self.batch)
        x, worth = self.run.resid[layer], self.gradients.worth[layer]
        readers = worth.shape[2]
        weight, n = port_weight(self.model, layer, port), self.model.cfg.n_heads
        q, k = (linear(rows).unflatten(-1, (n, -1)) for linear, rows in ((of.q, x[:, :readers]), (of.k, x)))
        effects = []
        for head in heads:
            scores = _scores(q[:, :, head], k[:, :, head], allowed)
            now = (scores.softmax(-1) * worth[:, head]).sum((-1, -2))
            moved = change[:, :, :readers] if port == "q" else change
            along = moved @ weight[head].T
            values = []
            for place in range(change.shape[1]):
                left, right = (along[:, place], k[:, :, head]) if port == "q" else (q[:, :, head], along[:, place])
                new = (scores + _scores(left, right, None)).softmax(-1)
                values.append((new * worth[:, head]).sum((-1, -2)) - now)
            effects.append(torch.stack(values, 1))
        return torch.stack(effects, 1)


def _scores(
    q: Float[Tensor, "batch reader d_head"], k: Float[Tensor, "batch source d_head"], allowed: Tensor | None
) -> Float[Tensor, "batch reader source"]:
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores if allowed is None else scores.masked_fill(~allowed[:, 0], -math.inf)
