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

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechir.methods.edge_graph import Graph, Sender, writes_at
from mechir.methods.paths import Run
from mechir.reranker import Weights, needs_edges
from mechir.sites import Head, Mlp, Resid

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
        run: all rows of it (`Run.of(model, batch, None)`), or some of them: rows do not meet here.
        donor: likewise.
        graph: which senders.
        ln: one of `LN`.
    """
    needs_edges(model, "changes")
    shape = run.resid[0].shape
    held = run.resid[0].new_empty(shape[0], len(graph.senders), *shape[1:])
    n = graph.before(0)
    for place in range(n):
        held[:, place] = donor.resid[0] - run.resid[0]
    yield 0, held[:, :n]
    for moment in range(1, 2 * graph.n_layers + 1):
        layer, mlp = (moment - 1) // 2, moment % 2 == 0
        written = (run.mlp if mlp else run.attn)[layer]
        rows = written.shape[1]
        if not rows:  # those of this part end before the last layer writes
            return
        held = held[:, :, :rows]
        new = [sender for sender in graph.senders if writes_at(sender) == moment]
        held[:, n : n + len(new)] = _sent(model, run, donor, new, layer)
        n += len(new)
        of = model.parts.layers[layer]
        norm = of.ln2 if mlp else of.ln1
        through(norm, held[:, :n], (run.mid if mlp else run.resid)[layer][:, :rows] + written, ln)
        yield moment, held[:, :n]


def _sent(
    model: Weights, run: Run, donor: Run, senders: Sequence[Sender], layer: int
) -> Float[Tensor, "batch sender row d_model"]:
    """The change that each of these heads, or MLPs, of a layer writes: its output on the donor less that on the run."""
    if senders and isinstance(senders[0], Head):
        heads = [sender.head for sender in senders if isinstance(sender, Head)]
        weight, change = (
            model.parts.layers[layer].o.weight.unflatten(1, (model.cfg.n_heads, -1)),
            donor.z[layer] - run.z[layer],
        )
        if heads != list(range(model.cfg.n_heads)):  # else nothing needs copying
            weight, change = weight[:, heads], change[:, :, heads]
        return torch.einsum("brhe,mhe->bhrm", change, weight)
    kind = Mlp if not senders else type(senders[0])
    change = donor.resid[0] - run.resid[0] if kind is Resid else donor.mlp[layer] - run.mlp[layer]
    return change[:, None].expand(-1, len(senders), -1, -1)


def through(
    norm: nn.LayerNorm,
    change: Float[Tensor, "batch sender row d_model"],
    x: Float[Tensor, "batch row d_model"],
    ln: str,
) -> None:
    """Puts changes of what a LayerNorm reads, `x`, through it, in place."""
    if ln == "none":
        return
    if ln == "live":
        out = norm(x)
        for place in range(change.shape[1]):
            change[:, place] = norm(x + change[:, place]) - out
        return
    change -= change.mean(-1, keepdim=True)
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    if ln == "jacobian":
        # d (Cx / sigma) = C dx / sigma - (Cx / sigma) <Cx / sigma, C dx> / (d sigma)
        unit = centred / scale
        along = torch.einsum("bsrm,brm->bsr", change, unit / x.shape[-1])
        for place in range(change.shape[1]):
            change[:, place].addcmul_(along[:, place, :, None], unit, value=-1)
    change *= (norm.weight / scale)[:, None]
