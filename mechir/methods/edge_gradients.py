"""First-order effects of all edges, from the gradients at every reader's own input.

    effect(u -> v) ~ <T (what u writes on the donor - what it writes on the run), d score / d input of v>

T carries the change along the skip path (`edge_streams`), the gradient is that of everything after v. Gradients are
taken at one run (EAP) or averaged over the way from the donor's embeddings to the base's (EAP-IG). Queries and keys may
be put through the softmax exactly and linearised after it (the QK fix).

Source: Syed et al. 2023 (arXiv:2310.10348); Hanna et al. 2024 (arXiv:2403.17806); QK fix: Kramar et al. 2024
(arXiv:2403.00745). That frozen LayerNorms make a sum of a post-LN stream: docs/circuits.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechir.batches import Batch
from mechir.circuits import PORTS, Reader
from mechir.hooks import Edit
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_streams import changes
from mechir.methods.paths import Run
from mechir.reranker import Weights, needs_edges
from mechir.sites import Head, Mlp

CACHE, HELD = 16_000_000, 600_000_000
"""Bytes that the changes of all senders may take on a CPU and on a GPU."""


@dataclass(frozen=True, eq=False)
class Leaf(Edit):
    """The edit that starts the gradients: at the activation, or at another one in its place."""

    value: Tensor | None

    def __call__(self, x: Tensor, hook: Any) -> Tensor:
        """A leaf of the graph of gradients."""
        return (x if self.value is None else self.value).detach().requires_grad_()


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
        embedded: Float[Tensor, "batch pos d_model"] | None,
        weight: Float[Tensor, "batch"],
        qk_fix: bool,
    ) -> tuple[Gradients, Run]:
        """The gradients of weight times score where layer 0 reads `embedded`, or the batch, and the run there."""
        also = (*(f"attn.hook_{port}" for port in PORTS), "mlp.hook_pre")
        start = Leaf(None if embedded is None else embedded.detach())
        with torch.enable_grad(), model.hooks([("hook_full_embed", start)]):
            run = Run.of(model, batch, None, also)
            wanted = [*itertools.chain.from_iterable(run.also.values()), run.resid[-1], *(run.z if qk_fix else ())]
            by = iter(torch.autograd.grad((run.score * weight).sum(), wanted))
        run = run.each(Tensor.detach)
        ports = {port: list(itertools.islice(by, len(run.z))) for port in PORTS}
        pre, stream = list(itertools.islice(by, len(run.z))), next(by)[:, 0]
        values = run.also["attn.hook_v"]
        worth = [torch.einsum("brhe,bshe->bhrs", z, v) for z, v in zip(by, values, strict=False)]
        return cls(ports, pre, stream, worth), run

    def rows(self, some: slice) -> Gradients:
        """Those of some pairs."""
        ports = {port: [x[some] for x in layers] for port, layers in self.ports.items()}
        return Gradients(ports, [x[some] for x in self.pre], self.stream[some], [x[some] for x in self.worth])

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
    needs_edges(model, "averaged")
    change, made = donor.resid[0] - run.resid[0], None
    for point, weight in zip(points, weights, strict=True):
        here, _ = Gradients.at(model, batch, run.resid[0] + point * change, weight / len(points), qk_fix)
        if made is None:
            made = here
        else:
            made.add(here)
    if made is None:
        raise ValueError("There is no point.")
    return made


@torch.no_grad()
def first_order(
    model: Weights, graph: Graph, batch: Batch, run: Run, donor: Run, gradients: Gradients, ln: str, qk_fix: bool
) -> Float[Tensor, "batch edge"]:
    """The estimated effect of every edge on every pair's score, columns as in the graph.

    A few pairs at a time, so that the changes of all senders stay in a CPU's caches.
    """
    needs_edges(model, "first_order")
    out = run.score.new_empty(len(batch), len(graph))
    size = len(graph.senders) * run.resid[0][0].numel() * run.score.element_size()
    together = max(1, (CACHE if run.score.device.type == "cpu" else HELD) // size)
    allowed = model.allowed(batch)
    for start in range(0, len(batch), together):
        some = slice(start, start + together)
        here, there, slopes = run.rows(some), donor.rows(some), gradients.rows(some)
        softmax = _Softmax(model, None if allowed is None else allowed[some], here, slopes) if qk_fix else None
        for moment, change in changes(model, here, there, graph, ln):
            for columns, value in _read(model, graph.reading(moment), change, slopes, softmax, moment // 2):
                for place, column in enumerate(columns):
                    out[some, column : column + change.shape[1]] = value[:, place]
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
        weight = by_head(model.parts.layers[layer].port(port), model.cfg.n_heads)[of]
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


def by_head(linear: nn.Linear, n_heads: int) -> Float[Tensor, "head d_head d_model"]:
    """The weights that make the queries, keys or values of each head."""
    return linear.weight.unflatten(0, (n_heads, -1))


@dataclass(frozen=True, eq=False)
class _Softmax:
    """What a change of a head's queries or keys does to its pattern exactly, and that to the score to first order."""

    model: Weights
    allowed: Tensor | None
    run: Run
    gradients: Gradients

    def effects(
        self, change: Float[Tensor, "batch sender row d_model"], layer: int, port: str, heads: Sequence[int]
    ) -> Float[Tensor, "batch reader sender"]:
        """Sum over readers and sources of (pattern changed - pattern) times what that attention is worth."""
        of, allowed = self.model.parts.layers[layer], self.allowed
        x, worth = self.run.resid[layer], self.gradients.worth[layer]
        readers = worth.shape[2]
        n = self.model.cfg.n_heads
        weight = by_head(of.port(port), n)
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
