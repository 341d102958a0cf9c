"""The exact effect of every edge: one reader's input has one sender's activation from the donor, LayerNorms live.

What arrives at the reader is `edge_streams.changes(..., "live")`, all other components as on the base; from the reader
on everything is computed anew. It is `path_patch(freeze="heads+mlps")` for all edges, with nothing computed twice: the
way to the readers is walked once for all of them, a head's input changes in its own layer its own z alone, and of the
last layer the CLS row is all that is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mechir.batches import Batch
from mechir.circuits import Reader
from mechir.methods.edge_graph import Graph, reads_at
from mechir.methods.edge_streams import changes
from mechir.methods.paths import Run
from mechir.reranker import Weights, needs_edges
from mechir.sites import Head, Mlp, Score


@torch.no_grad()
def exact(
    model: Weights,
    graph: Graph,
    batch: Batch,
    run: Run,
    donor: Run,
    *,
    limit: int,
    wanted: Bool[np.ndarray, "edge"] | None = None,
) -> Float[Tensor, "batch edge"]:
    """The effect of every edge on every pair's score: the score with the edge from the donor, less the score.

    Args:
        model: a `HookedEncoder`.
        graph: which edges, and the order of the columns.
        batch: of the base.
        run: over it, all rows.
        donor: the run over the donors, row by row.
        limit: the most word pieces computed together.
        wanted: the edges to measure, the others are NaN; None for all.
    """
    needs_edges(model, "exact")
    out = run.score.new_full((len(batch), len(graph)), torch.nan)
    few = max(1, limit // batch.input_ids.numel())
    for moment, change in changes(model, run, donor, graph, "live"):
        last = moment >= 2 * graph.n_layers - 2
        for column, reader in graph.reading(moment):
            places = np.arange(change.shape[1])
            places = places if wanted is None else places[wanted[column : column + len(places)]]
            read, together = _Input(model, batch, run, reader), max(1, len(places)) if last else few
            for start in range(0, len(places), together):
                some = places[start : start + together]
                score = read.score(change[:, some].flatten(0, 1)).unflatten(0, (len(batch), len(some)))
                out[:, column + some] = score - run.score[:, None]
    return out


@dataclass(frozen=True, eq=False)
class _Input:
    """One reader on the base: what the score becomes when its input alone is another one."""

    model: Weights
    batch: Batch
    run: Run
    reader: Reader

    def score(self, change: Float[Tensor, "many row d_model"]) -> Float[Tensor, "many"]:
        """The scores where the input is that of the base plus a change, several for each pair, pair by pair."""
        n = self.model.cfg.n_layers
        resid = self._after(change)
        layer = reads_at(self.reader, n) // 2
        allowed = self._allowed(len(change))
        for later in range(layer + 1, n):
            resid = self.model.run_block(later, resid, allowed, head_row=later == n - 1)
        return self.model.run_head(resid)

    def _after(self, change: Float[Tensor, "many source d_model"]) -> Float[Tensor, "many row d_model"]:
        """The stream after the reader's layer."""
        many, run = len(change), self.run
        if isinstance(self.reader, Score):
            return self._several(run.resid[-1], many) + change
        layer, of = self.reader.layer, self.model.parts.layers[self.reader.layer]
        if isinstance(self.reader, Mlp):
            mid = self._several(run.mid[layer], many)
            read = mid + change
        else:
            attn = self._several(run.attn[layer], many) + self._written(self.reader, change)
            mid = read = of.ln1(self._several(run.resid[layer][:, : attn.shape[1]], many) + attn)
        return of.ln2(mid + of.mlp_out(of.activation(of.mlp_in(read))))

    def _written(self, reader: Head, change: Float[Tensor, "many source d_model"]) -> Float[Tensor, "many row d_model"]:
        """The change of what the reader's head writes."""
        layer, head, port = reader
        of, d_head = self.model.parts.layers[layer], self.model.cfg.d_head
        rows, mine = self.run.z[layer].shape[1], slice(head * d_head, (head + 1) * d_head)
        x = self.run.resid[layer]
        inputs: dict[str, Tensor] = {}
        for name, linear, read in (("q", of.q, x[:, :rows]), ("k", of.k, x), ("v", of.v, x)):
            value = self._several(F.linear(read, linear.weight[mine], linear.bias[mine]), len(change))
            if name == port:
                value = value + F.linear(change[:, : read.shape[1]], linear.weight[mine])
            inputs[name] = value[:, None]
        allowed = self._allowed(len(change))
        z = F.scaled_dot_product_attention(inputs["q"], inputs["k"], inputs["v"], attn_mask=allowed)[:, 0]
        return F.linear(z - self._several(self.run.z[layer][:, :, head], len(change)), of.o.weight[:, mine])

    def _allowed(self, many: int) -> Tensor | None:
        allowed = self.model.allowed(self.batch)
        return None if allowed is None else self._several(allowed, many)

    def _several(self, x: Tensor, many: int) -> Tensor:
        """Each row of the batch as often as there are changes of it."""
        return x.repeat_interleave(many // len(self.batch), 0)
