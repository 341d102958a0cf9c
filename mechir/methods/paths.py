"""Path patching: the effect of one sender through the residual stream alone (of pre-LN models see `sum_paths`).

The sender sees the donor's world, every other head keeps what it wrote on the base, and the change travels along the
skip path, LayerNorm after LayerNorm, to one receiver. With heads frozen no position reads another, so the way to the
score is one CLS column per sender: no forward at all. For a receiver inside the model, the base is run again from the
receiver's layer with nothing but its input replaced.

Source: Wang et al. 2022 (arXiv:2211.00593, appendix B); Lu et al. 2025 (arXiv:2502.04645).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechir.batches import Batch, for_numpy
from mechir.circuits import Edge, Reader, readers_in_order
from mechir.contrasts import Contrast, ContrastBatch, encode_contrasts
from mechir.errors import MechirError
from mechir.interventions import Splice
from mechir.methods.edge_graph import Sender, checked_senders, every_sender, reads_at, writes_at
from mechir.methods.patching import largest, tidy
from mechir.methods.sum_paths import patched_sums
from mechir.model_sites import all_heads, heads_of, sites_of
from mechir.recorder import observe
from mechir.reranker import Reranker, Weights, needs, offers
from mechir.sites import Head, Mlp, Resid, Score, Site

FREEZE = ("heads", "heads+mlps")
LN = ("live", "frozen")


@torch.no_grad()
def path_patch(
    model: Reranker,
    contrasts: Sequence[Contrast],
    senders: Any = None,
    receiver: Any = "score",
    *,
    freeze: str = "heads",
    ln: str = "live",
    max_rows: int = 256,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """The effect of every sender on the score along one path, for every contrast.

    Runs are on the base, the sender's activation comes from the donor; arguments not named here are those of `patch`.
    `senders` are heads (z), MLPs, and "resid0" for the embedding; by default all that come before the receiver, which
    is "score"; a head's input, "h10.1.k"; an MLP's, "mlp3"; or several heads' (their inputs are then replaced together,
    as Wang et al. do).

    `freeze` "heads" keeps the z of all other heads and recomputes MLPs on the way, so sender -> MLP -> receiver counts
    as this path (Wang et al., Lu et al.); "heads+mlps" keeps the MLPs' outputs as well: the direct edge. `ln` "live"
    recomputes every LayerNorm on the way; "frozen" keeps its standard deviation, so that the change that arrives is a
    linear function of what is sent. In a pre-LN model what is sent arrives as it is, and `ln` is "live".

    Returns:
        One row per edge and contrast: `edge` (`h8.1->h10.1.k`), `sender`, `query_id`, `doc_id`, `grade`, `filler`;
        `base`, `donor`, `patched`, `effect` = patched - base; `departure`: by how much the change that arrives differs
        from the sender's change carried there linearly, all standard deviations and MLPs frozen (norm of the
        difference over the norm of the linear one; 0, up to rounding, with "heads+mlps" and "frozen"; missing where
        less than 1e-4 of the stream is sent).
        With a receiver inside the model it is taken over all positions, at the first of several.

    Raises:
        MechirError: for a sender that is not before its receiver, an unknown mode, or contrasts that are not aligned.
    """
    for name, value, known in (("freeze", freeze, FREEZE), ("ln", ln, LN)):
        if value not in known:
            raise MechirError(f"Unknown {name}='{value}': write {' or '.join(map(repr, known))}.")
    sums = of_sums(model, ln)
    receivers = readers_in_order([receiver] if isinstance(receiver, str | Site | Score) else receiver)
    sites_of(model, [reader for reader in receivers if not isinstance(reader, Score)] or [Head(0, 0)])
    sent = _senders(model, senders, receivers)
    encoded = encode_contrasts(model, contrasts, max_length)
    limit = max_tokens or model.max_tokens
    parts: list[pd.DataFrame] = []
    for batch in encoded.batches(model, max_rows=max_rows, max_tokens=limit, progress=progress):
        if sums:
            parts += patched_sums(model, batch, sent, receivers, freeze)
        else:
            parts += _batch(cast(Weights, model), batch, sent, receivers, freeze, ln, limit)
    rows = pd.concat(parts, ignore_index=True)
    rows["edge"] = rows["sender"].map({str(sender): str(Edge(sender, *receivers)) for sender in sent})
    return tidy(encoded, rows, ["edge", "sender"])


def of_sums(model: Reranker, ln: str = "live") -> bool:
    """Whether the stream of a model is a sum, as in a pre-LN model; raises where paths are neither this nor post-LN."""
    if offers(model, Weights):
        needs(model, "path_patch", Weights, norm="post", reads="cls")
        return False
    if model.structure.norm != "pre" or model.structure.reads == "decoder":
        raise MechirError(
            f"path_patch needs a stream that is a sum up to the score, as of pre-LN models, or our own forward of a "
            f"post-LN one, and '{model.cfg.model_name}' has neither: measure it by patching.patch."
        )
    if ln == "frozen":
        raise MechirError(
            f"ln='frozen' is of norms on the way, and on the way through '{model.cfg.model_name}' there are none: "
            "leave ln= out."
        )
    return True


def scoring_heads(model: Reranker, contrasts: Sequence[Contrast], top: int) -> tuple[Head, ...]:
    """The `top` heads with the largest mean effect along head -> score, whatever its sign."""
    return tuple(heads_of(model, largest(path_patch(model, contrasts, all_heads(model)), "sender", top)))


def _batch(
    model: Weights,
    batch: ContrastBatch,
    sent: Sequence[Sender],
    receivers: Sequence[Reader],
    freeze: str,
    ln: str,
    limit: int,
) -> list[pd.DataFrame]:
    rows = 1 if isinstance(receivers[0], Score) else None
    base, donor = Run.of(model, batch.base, rows), Run.of(model, batch.donor, rows)
    at_once = len(sent) if rows == 1 else max(1, limit // batch.base.input_ids.numel())
    frames = []
    for start in range(0, len(sent), at_once):
        chunk = sorted(sent[start : start + at_once], key=writes_at)
        arrived = carry(model, base, donor, chunk, receivers, freeze, ln)
        if rows == 1:
            stream = arrived[receivers[0]].stream
            patched = model.run_head(stream.flatten(0, 1)).unflatten(0, stream.shape[:2])
        else:
            patched = _received(model, batch.base, base, arrived, len(chunk))
        values = {"base": base.score, "donor": donor.score, "patched": patched, "effect": patched - base.score}
        first = min(receivers, key=lambda receiver: reads_at(receiver, model.cfg.n_layers))
        values["departure"] = arrived[first].departure(batch.base.attention_mask)
        frame = pd.DataFrame({name: for_numpy(x.expand_as(patched).flatten()) for name, x in values.items()})
        names = np.repeat([str(sender) for sender in chunk], len(batch.rows))
        frames.append(frame.assign(sender=names, row=np.tile(batch.rows, len(chunk))))
    return frames


@dataclass(frozen=True, eq=False)
class Run:
    """The activations of one run at its first rows (all, or CLS alone), layer by layer.

    `resid[l]` is what layer l reads (the last is what the head reads), `mid[l]` what its MLP reads; `z`, `attn` and
    `mlp` are what its heads and its two halves write; `score` is the score of each pair; `also` has further activations
    by the end of their hooks' names, such as "attn.hook_q".
    """

    resid: list[Float[Tensor, "batch _ d_model"]]
    z: list[Float[Tensor, "batch _ head d_head"]]
    attn: list[Float[Tensor, "batch _ d_model"]]
    mid: list[Float[Tensor, "batch _ d_model"]]
    mlp: list[Float[Tensor, "batch _ d_model"]]
    score: Float[Tensor, "batch"]
    also: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Reranker, batch: Batch, rows: int | None, also: Sequence[str] = ()) -> Run:
        """Runs the model on a batch; of what the last layer writes there is the head's row alone."""
        n = model.cfg.n_layers
        parts = _HOOKS | {hook: hook for hook in also}
        names = {part: [f"blocks.{layer}.{hook}" for layer in range(n)] for part, hook in parts.items()}
        names["resid"].append(f"blocks.{n - 1}.hook_resid_post")
        hooks = itertools.chain.from_iterable(names.values())
        score, values = observe(model, batch, hooks, lambda _, x: x if rows is None else x[:, :rows], head_row=True)
        by_part = {part: [values[name] for name in layers] for part, layers in names.items()}
        further = {hook: by_part.pop(hook) for hook in also}
        return cls(**by_part, score=score, also=further)

    def each(self, change: Callable[[Tensor], Tensor]) -> Run:
        """The same run with every tensor changed, e.g. cut off from its gradients."""
        layers = {part: [change(x) for x in getattr(self, part)] for part in _HOOKS}
        also = {hook: [change(x) for x in values] for hook, values in self.also.items()}
        return Run(**layers, score=change(self.score), also=also)


_HOOKS = {
    "resid": "hook_resid_pre",
    "z": "attn.hook_z",
    "attn": "hook_attn_out",
    "mid": "hook_resid_mid",
    "mlp": "hook_mlp_out",
}


@dataclass(frozen=True, eq=False)
class Arrived:
    """A receiver's input for each sender, and the change that a linear path would have brought there."""

    base: Float[Tensor, "batch row d_model"]
    stream: Float[Tensor, "sender batch row d_model"]
    linear: Float[Tensor, "sender batch row d_model"]

    def departure(self, real: Bool[Tensor, "batch pos"]) -> Float[Tensor, "sender batch"]:
        """The norm of (change that arrived - linear change) over the norm of the latter; NaN where that is rounding."""
        mask = real[:, : self.base.shape[1], None].to(self.base)
        gap = ((self.stream - self.base - self.linear) * mask).flatten(2).norm(dim=-1)
        norm = (self.linear * mask).flatten(2).norm(dim=-1)
        least = 1e-4 * (self.base * mask).flatten(1).norm(dim=-1)
        return torch.where(norm > least, gap / norm, torch.nan)


def carry(
    model: Weights,
    base: Run,
    donor: Run,
    senders: Sequence[Sender],
    receivers: Sequence[Reader],
    freeze: str = "heads",
    ln: str = "live",
) -> dict[Reader, Arrived]:
    """Carries the change of each sender along the base's residual stream to the input of every receiver.

    `senders` come in the order in which they write. A receiver that some sender does not reach has the base there.
    """
    needs(model, "carry", Weights, norm="post")
    linear = _sent(model, base, donor, senders, Resid, 0)
    stream = base.resid[0] + linear
    n = model.cfg.n_layers
    moments = {reads_at(receiver, n) for receiver in receivers}
    arrived: dict[int, Arrived] = {}

    def arrive(moment: int, at: Tensor) -> None:
        if moment in moments:
            rest = at.expand(len(senders) - len(stream), *at.shape)
            arrived[moment] = Arrived(at, torch.cat([stream, rest]), torch.cat([linear, torch.zeros_like(rest)]))

    for layer, weights in enumerate(model.parts.layers):
        arrive(2 * layer, base.resid[layer])
        if max(moments) <= 2 * layer:
            break
        attn, rows = base.attn[layer], base.attn[layer].shape[1]
        read = base.resid[layer][:, :rows] + attn
        sent = _sent(model, base, donor, senders, Head, layer)
        stream, linear = _joined(weights.ln1, stream[:, :, :rows] + attn, linear[:, :, :rows], read, sent, ln)
        arrive(2 * layer + 1, base.mid[layer])
        read = base.mid[layer] + base.mlp[layer]
        written = base.mlp[layer]
        if freeze == "heads":
            written = weights.mlp_out(weights.activation(weights.mlp_in(stream)))
        sent = _sent(model, base, donor, senders, Mlp, layer)
        stream, linear = _joined(weights.ln2, stream + written, linear, read, sent, ln)
    arrive(2 * n, base.resid[-1])
    return {receiver: arrived[reads_at(receiver, n)] for receiver in receivers}


def _joined(
    norm: nn.LayerNorm, stream: Tensor, linear: Tensor, base: Tensor, sent: Tensor, ln: str
) -> tuple[Tensor, Tensor]:
    """Adds the senders that write here to those so far, and takes both through the LayerNorm that follows."""
    stream, linear = torch.cat([stream, base + sent]), torch.cat([linear, sent])
    normed = norm(stream) if ln == "live" else transported(norm, stream, base) + norm.bias
    return normed, transported(norm, linear, base)


def _sent(
    model: Weights, base: Run, donor: Run, senders: Sequence[Sender], kind: type, layer: int
) -> Float[Tensor, "sender batch row d_model"]:
    """The output of each sender of this kind and layer on the donor, less that on the base."""
    here = [sender for sender in senders if isinstance(sender, kind) and sender.layer == layer]
    if kind is Head:
        weight = model.parts.layers[layer].o.weight.unflatten(1, (model.cfg.n_heads, -1))
        index = [sender.head for sender in here if isinstance(sender, Head)]
        change = (donor.z[layer] - base.z[layer])[:, :, index]
        return torch.einsum("brhe,mhe->hbrm", change, weight[:, index])
    change = donor.mlp[layer] - base.mlp[layer] if kind is Mlp else donor.resid[0] - base.resid[0]
    return change.expand(len(here), *change.shape)


def transported(
    norm: nn.LayerNorm, change: Float[Tensor, "*axes d"], base: Float[Tensor, "*_ d"]
) -> Float[Tensor, "*axes d"]:
    """The LayerNorm of a change, gamma * C change / sigma: sigma is the base's, C takes the mean out."""
    scale = (base.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return (change - change.mean(-1, keepdim=True)) / scale * norm.weight


def _received(
    model: Weights, batch: Batch, base: Run, arrived: Mapping[Reader, Arrived], n: int
) -> Float[Tensor, "sender batch"]:
    """The score when the base runs again from the first receiver's layer with nothing but the receivers' inputs new."""
    inside = {receiver: at for receiver, at in arrived.items() if not isinstance(receiver, Score)}
    first = min(receiver.layer for receiver in inside)
    hooks = [(receiver.hook, _input(model, receiver, at)) for receiver, at in inside.items()]
    allowed = model.allowed(batch)
    allowed = None if allowed is None else allowed.repeat(n, 1, 1, 1)
    resid = base.resid[first].repeat(n, 1, 1)
    with model.hooks(hooks):
        for layer in range(first, model.cfg.n_layers):
            resid = model.run_block(layer, resid, allowed, head_row=layer == model.cfg.n_layers - 1)
        score = model.run_head(resid)
    return score.unflatten(0, (n, len(batch)))


def _input(model: Weights, receiver: Head | Mlp, arrived: Arrived) -> Splice:
    """The edit that puts what arrived into this receiver's input alone."""
    new = arrived.stream.flatten(0, 1)
    if isinstance(receiver, Head):
        read = model.parts.layers[receiver.layer].port(receiver.part)
        new = read(new).unflatten(-1, (model.cfg.n_heads, -1))
    return Splice(receiver, new)


def _senders(model: Reranker, senders: Any, receivers: Sequence[Reader]) -> list[Sender]:
    last = max(reads_at(receiver, model.cfg.n_layers) for receiver in receivers)
    if senders is None:
        return [sender for sender in every_sender(model) if writes_at(sender) <= last]
    parsed = checked_senders(model, senders)
    late = next((sender for sender in parsed if writes_at(sender) > last), None)
    if late is not None:
        raise MechirError(f"'{late}' writes after '{receivers[0]}' reads: give a sender of an earlier layer.")
    return parsed
