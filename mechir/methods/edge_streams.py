"""The residual stream where one component has changed and all others are as on one run, half layer by half layer.

The change travels along the skip path through one LayerNorm after another. Four ways to put it through them:

* "live": the LayerNorm of the changed stream, less that of the stream: what really arrives;
* "frozen": gamma C change / sigma, with the run's own sigma: linear, and what edges should be scored with;
* "jacobian": the LayerNorm's derivative, sigma moving along: gradients obey the chain rule with it;
* "none": the change as it was sent, as if there were no LayerNorms; for comparison.

C takes the mean out, sigma is the standard deviation over the stream's coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechir.methods.edge_graph import Graph
from mechir.methods.paths import Run
from mechir.reranker import Weights, needs_edges
from mechir.sites import Head

LN = ("frozen", "live", "jacobian", "none")


def changes(
    model: Weights, run: Run, donor: Run, graph: Graph, ln: str
) -> Iterator[tuple[int, Float[Tensor, "batch sender row d_model"]]]:
    """The change that each sender makes of the stream of `run` at every moment from 0 to 2L.

    Senders come in the graph's order, at each moment those that have written by then. What is sent is what the sender
    writes on `donor` less what it writes on `run`. The tensor is written over at the next step: use it at once. From
    the last layer's MLP on there is the CLS row alone.

    Args:
        model: whose LayerNorms.
        run: all rows of it (`Run.of(model, batch, None)`).
        donor: likewise.
        graph: which senders.
        ln: one of `LN`.
    """
    needs_edges(model, "changes")
    return carried(steps(model, run, donor, graph), len(graph.senders), ln)


@dataclass(frozen=True, eq=False)
class Step:
    """One moment of the way: who writes then, and the LayerNorm that follows.

    `sent` is the change of what the senders of the moment write, one of them for each entry of its third axis, `weight`
    what makes of it a change of the stream (None where it is one). The LayerNorm reads the sum of `stream` and `added`
    and divides by `scale`; before layer 0 there is none.
    """

    sent: Float[Tensor, "batch row new _"]
    weight: Float[Tensor, "new _ d_model"] | None
    norm: nn.LayerNorm | None
    stream: Float[Tensor, "batch row d_model"]
    added: Float[Tensor, "batch row d_model"]
    scale: Float[Tensor, "batch row 1"]

    def part(self, pairs: slice, rows: slice) -> Step:
        """The step of some pairs at some rows: rows do not meet on the way."""
        sent, stream, added, scale = (x[pairs, rows] for x in (self.sent, self.stream, self.added, self.scale))
        return replace(self, sent=sent, stream=stream, added=added, scale=scale)

    @property
    def written(self) -> Float[Tensor, "batch new row d_model"]:
        """The change that each sender writes to the stream."""
        if self.weight is None:
            return self.sent.transpose(1, 2)
        return torch.einsum("brhe,hem->bhrm", self.sent, self.weight)


def steps(model: Weights, run: Run, donor: Run, graph: Graph) -> list[Step]:
    """The way of every change, moment by moment."""
    needs_edges(model, "steps")
    first = donor.resid[0] - run.resid[0]
    sent, embedded = first[:, :, None].expand(-1, -1, graph.before(0), -1), run.resid[0]
    way = [Step(sent, None, None, embedded, embedded, first[..., :1])]
    for moment in range(1, 2 * graph.n_layers + 1):
        layer, mlp = (moment - 1) // 2, moment % 2 == 0
        of, here, there = model.parts.layers[layer], *((x.mlp if mlp else x.z)[layer] for x in (run, donor))
        norm, before, written = (of.ln2, run.mid, run.mlp) if mlp else (of.ln1, run.resid, run.attn)
        stream = before[layer][:, : written[layer].shape[1]]
        x = stream + written[layer]
        scale = ((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + norm.eps).sqrt()
        new = graph.senders[graph.before(moment - 1) : graph.before(moment)]
        sent, weight = there - here, None
        if mlp:
            sent = sent[:, :, None].expand(-1, -1, len(new), -1)
        else:
            heads = [sender.head for sender in new if isinstance(sender, Head)]
            weight = of.o.weight.T.unflatten(0, (model.cfg.n_heads, -1))
            if heads != list(range(model.cfg.n_heads)):  # else nothing needs copying
                sent, weight = sent[:, :, heads], weight[heads]
        way.append(Step(sent, weight, norm, stream, written[layer], scale))
    return way


def carried(
    way: Sequence[Step], senders: int, ln: str
) -> Iterator[tuple[int, Float[Tensor, "batch sender row d_model"]]]:
    """The changes of so many senders at every moment of the way, as `changes` gives them."""
    batch, rows, d_model = way[0].stream.shape
    held, n = way[0].stream.new_empty(batch, senders, rows, d_model), 0
    for moment, step in enumerate(way):
        if step.stream.shape[1] < rows:  # after the last layer's keys and values CLS is all that is read
            rows = step.stream.shape[1]
            held = held[:, :, :rows]
        if not rows:
            return
        new = step.sent.shape[2]
        if new:
            held[:, n : n + new] = step.written
        n += new
        if step.norm is not None:
            through(step.norm, held[:, :n], step, ln)
        yield moment, held[:, :n]


def through(norm: nn.LayerNorm, change: Float[Tensor, "batch sender row d_model"], step: Step, ln: str) -> None:
    """Puts changes of what the LayerNorm of a step reads through it, in place."""
    if ln == "none":
        return
    if ln == "live":
        x = step.stream + step.added
        out = norm(x)
        for place in range(change.shape[1]):
            change[:, place] = norm(x + change[:, place]) - out
        return
    change -= change.mean(-1, keepdim=True)
    if ln == "jacobian":
        # d (Cx / sigma) = C dx / sigma - (Cx / sigma) <Cx / sigma, C dx> / (d sigma)
        x = step.stream + step.added
        unit = (x - x.mean(-1, keepdim=True)) / step.scale
        along = torch.einsum("bsrm,brm->bsr", change, unit / x.shape[-1])
        for place in range(change.shape[1]):
            change[:, place].addcmul_(along[:, place, :, None], unit, value=-1)
    change *= (norm.weight / step.scale)[:, None]
