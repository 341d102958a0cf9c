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
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechir.batches import Batch
from mechir.circuits import PORTS, Reader
from mechir.hooks import Edit
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_streams import carried, steps
from mechir.methods.paths import Run
from mechir.reranker import Weights, needs_edges
from mechir.sites import Head, Mlp

CACHE, HELD = 10_000_000, 600_000_000
"""Bytes that the changes of all senders may take on a CPU, so that they stay near one core, and on a GPU."""


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

    `ports[l]`: by the queries of all heads, then their keys, then their values; `mlp[l]`: by what the MLP reads;
    `stream`: by what the head reads. `worth[l]`, for the QK fix: what a unit of attention to each source is worth to
    the score.
    """

    ports: list[Float[Tensor, "batch _ port d_head"]]
    mlp: list[Float[Tensor, "batch _ d_model"]]
    stream: Float[Tensor, "batch 1 d_model"]
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
        also = (*(f"attn.hook_{port}" for port in PORTS), "hook_mlp_in")
        start = Leaf(None if embedded is None else embedded.detach())
        with torch.enable_grad(), model.hooks([("hook_full_embed", start)]):
            run = Run.of(model, batch, None, also)
            wanted = [*itertools.chain.from_iterable(run.also.values()), run.resid[-1], *(run.z if qk_fix else ())]
            by = iter(torch.autograd.grad((run.score * weight).sum(), wanted))
        values, run = run.also["attn.hook_v"], replace(run, also={}).each(Tensor.detach)
        q, k, v, mlp = (list(itertools.islice(by, len(run.z))) for _ in also)
        # In the last layer the queries of CLS are all that is read: those of the others have no effect.
        ports = [
            torch.cat([F.pad(left, (0, 0, 0, 0, 0, middle.shape[1] - left.shape[1])), middle, right], 2)
            for left, middle, right in zip(q, k, v, strict=True)
        ]
        stream = next(by)[:, :1]
        worth = [torch.einsum("brhe,bshe->bhrs", z, x.detach()) for z, x in zip(by, values, strict=False)]
        return cls(ports, mlp, stream, worth), run

    def add(self, other: Gradients) -> None:
        """Adds another run's gradients to these, in place."""
        for mine, theirs in zip(self._all(), other._all(), strict=True):
            mine += theirs

    def _all(self) -> Iterator[Tensor]:
        yield from self.ports
        yield from self.mlp
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
    change = donor.resid[0] - run.resid[0]
    each = (
        Gradients.at(model, batch, run.resid[0] + point * change, weight / len(points), qk_fix)[0]
        for point, weight in zip(points, weights, strict=True)
    )
    total = next(each)
    for gradients in each:
        total.add(gradients)
        del gradients  # before the next point needs the memory
    return total


@torch.no_grad()
def first_order(
    model: Weights, graph: Graph, batch: Batch, run: Run, donor: Run, gradients: Gradients, ln: str, qk_fix: bool
) -> Float[Tensor, "batch edge"]:
    """The estimated effect of every edge on every pair's score, columns as in the graph.

    A few rows at a time, so that the changes of all senders stay in a CPU's caches: the effect is a sum over rows. The
    QK fix needs all rows of a pair.
    """
    needs_edges(model, "first_order")
    moments = range(2 * graph.n_layers + 1)
    softmax = _Softmax(model, model.allowed(batch), run, gradients) if qk_fix else None
    reading = [list(_reading(model, graph.reading(moment), gradients, softmax, moment)) for moment in moments]
    sums = [
        [run.score.new_zeros(len(batch), graph.before(moment), len(some.columns)) for some in reading[moment]]
        for moment in moments
    ]
    size = len(graph.senders) * model.cfg.d_model * run.score.element_size()
    together = max(1, (CACHE if run.score.device.type == "cpu" else HELD) // size)
    way = steps(model, run, donor, graph)
    for pairs, rows in blocks(batch.attention_mask, together, whole=qk_fix):
        for moment, change in carried([step.part(pairs, rows) for step in way], len(graph.senders), ln):
            if not change.shape[1]:
                continue  # no sender has written yet
            for total, some in zip(sums[moment], reading[moment], strict=True):
                total[pairs] += some.effects(change, pairs, rows)
    out = run.score.new_empty(len(batch), len(graph))
    for total, some in zip(itertools.chain(*sums), itertools.chain(*reading), strict=True):
        for place, column in enumerate(some.columns):
            out[:, column : column + total.shape[1]] = total[:, :, place]
    return out


def blocks(mask: Bool[Tensor, "batch pos"], together: int, whole: bool) -> Iterator[tuple[slice, slice]]:
    """A batch cut into parts of about so many rows together: some pairs, or some rows of one pair unless `whole`.

    The rows after a pair's end are left out where they can be: padding has no gradient.
    """
    pairs, rows = mask.shape
    if whole or together >= rows:
        several = max(1, together // rows)
        for start in range(0, pairs, several):
            yield slice(start, start + several), slice(None)
        return
    ends = (mask * torch.arange(1, rows + 1, device=mask.device)).amax(1)
    for pair, end in enumerate(ends.tolist()):
        several = math.ceil(end / math.ceil(end / together))
        for start in range(0, end, several):
            yield slice(pair, pair + 1), slice(start, min(start + several, end))


def _reading(
    model: Weights,
    readers: Sequence[tuple[int, Reader]],
    gradients: Gradients,
    softmax: _Softmax | None,
    moment: int,
) -> Iterator[_Linear | _Attending]:
    """The readers of one moment, those together that are computed together."""
    layer, n = moment // 2, model.cfg.n_heads
    linear: dict[int, int] = {}
    for column, reader in readers:
        if not isinstance(reader, Head):
            by = gradients.mlp[layer] if isinstance(reader, Mlp) else gradients.stream
            yield _Linear([column], by[:, :, None], None)
        elif softmax is not None and reader.part != "v":
            yield _Attending([column], softmax, layer, reader)
        else:
            linear[PORTS.index(reader.part) * n + reader.head] = column
    if linear:
        weight = torch.cat([by_head(model.parts.layers[layer].port(port), n) for port in PORTS])
        by, places = gradients.ports[layer], sorted(linear)
        if len(places) < len(weight):
            weight, by = weight[places], by[:, :, places]
        yield _Linear([linear[place] for place in places], by, weight)


@dataclass(frozen=True, eq=False)
class _Linear:
    """Readers whose input counts as the gradient by it does: by what `weight` makes of it, or by the input itself."""

    columns: list[int]
    by: Float[Tensor, "batch row reader _"]
    weight: Float[Tensor, "reader _ d_model"] | None

    def effects(
        self, change: Float[Tensor, "batch sender row d_model"], pairs: slice, rows: slice
    ) -> Float[Tensor, "batch sender reader"]:
        """Gradient times change, over these rows."""
        by = self.by[pairs, rows]
        by_input = by.transpose(1, 2) if self.weight is None else torch.einsum("brhe,hem->bhrm", by, self.weight)
        return change[:, :, : by.shape[1]].flatten(2) @ by_input.flatten(2).transpose(1, 2)


def by_head(linear: nn.Linear, n_heads: int) -> Float[Tensor, "head d_head d_model"]:
    """The weights that make the queries, keys or values of each head."""
    return linear.weight.unflatten(0, (n_heads, -1))


@dataclass(frozen=True, eq=False)
class _Softmax:
    """What the QK fix needs beside the change: the run, and what attention is worth on it."""

    model: Weights
    allowed: Tensor | None
    run: Run
    gradients: Gradients


@dataclass(frozen=True, eq=False)
class _Attending:
    """The queries or keys of a head: what their change does to its pattern exactly, and that to first order."""

    columns: list[int]
    at: _Softmax
    layer: int
    reader: Head

    def effects(
        self, change: Float[Tensor, "batch sender row d_model"], pairs: slice, rows: slice
    ) -> Float[Tensor, "batch sender 1"]:
        """Sum over readers and sources of (pattern changed - pattern) times what that attention is worth."""
        of, n, head = self.at.model.parts.layers[self.layer], self.at.model.cfg.n_heads, self.reader.head
        x, worth = self.at.run.resid[self.layer][pairs], self.at.gradients.worth[self.layer][pairs, head]
        allowed = None if self.at.allowed is None else self.at.allowed[pairs]
        read = worth.shape[1]
        q, k = x[:, :read] @ by_head(of.q, n)[head].T, x @ by_head(of.k, n)[head].T
        q, k = (a + linear.bias.unflatten(0, (n, -1))[head] for a, linear in ((q, of.q), (k, of.k)))
        scores = _scores(q, k, allowed)
        now = (scores.softmax(-1) * worth).sum((-1, -2))
        moved = change[:, :, :read] if self.reader.part == "q" else change
        along = moved @ by_head(of.port(self.reader.part), n)[head].T
        values = []
        for place in range(change.shape[1]):
            left, right = (along[:, place], k) if self.reader.part == "q" else (q, along[:, place])
            new = (scores + _scores(left, right, None)).softmax(-1)
            values.append((new * worth).sum((-1, -2)) - now)
        return torch.stack(values, 1)[:, :, None]


def _scores(
    q: Float[Tensor, "batch reader d_head"], k: Float[Tensor, "batch source d_head"], allowed: Tensor | None
) -> Float[Tensor, "batch reader source"]:
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores if allowed is None else scores.masked_fill(~allowed[:, 0], -math.inf)
