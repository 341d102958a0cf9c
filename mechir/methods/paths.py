"""Path patching in a post-LN encoder: what one sender changes through the residual stream alone.

The sender sees the donor's world, every other head keeps what it wrote on the base, and the change travels along the
skip path, LayerNorm after LayerNorm, to one receiver. With heads frozen no position reads another, so the way to the
score is one CLS column per sender: no forward at all. For a receiver inside the model, the base is run again from the
receiver's layer with nothing but its input replaced.

Source: Wang et al. 2022 (arXiv:2211.00593, appendix B); Lu et al. 2025 (arXiv:2502.04645).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechir.circuits import Edge, Reader, readers_in_order
from mechir.contrasts import Contrast, ContrastBatch, encode_contrasts
from mechir.errors import MechirError
from mechir.methods.patching import largest, tidy
from mechir.model_sites import all_heads, heads_of, mlps, sites_of
from mechir.pairs import Batch, for_numpy
from mechir.recorder import observe
from mechir.reranker import Reranker, Restarts, Weights, needs
from mechir.sites import Head, Mlp, Resid, Score, Site

FREEZE = ("heads", "heads+mlps")
LN = ("live", "frozen")
Sender = Resid | Head | Mlp
END = (sys.maxsize, 0)
"""Where the score is read, on the scale of `_stop`."""


@torch.no_grad()
def path_patch(
    model: Weights,
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

    Args:
        model: a `HookedEncoder`.
        contrasts: aligned pairs; runs are on the base, the sender's activation comes from the donor.
        senders: heads (z), MLPs, and "resid0" for the embedding; by default all that come before the receiver.
        receiver: "score"; a head's input, "h10.1.k"; an MLP's, "mlp3"; or several heads' (their inputs are then
            replaced together, as Wang et al. do).
        freeze: "heads" keeps the z of all other heads and recomputes MLPs on the way, so sender -> MLP -> receiver
            counts as this path (Wang et al., Lu et al.). "heads+mlps" keeps the MLPs' outputs as well: the direct edge.
        ln: "live" recomputes every LayerNorm on the way; "frozen" keeps its standard deviation, so that the change
            that arrives is a linear function of what is sent.
        max_rows: the most contrasts computed together.
        max_tokens: the most word pieces computed together; by default `model.max_tokens`.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

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
    needs(model, "path_patch", Weights, norm="post", reads="cls")
    _refuse_modes(freeze, ln)
    receivers = _receivers(model, receiver)
    sent = _senders(model, senders, receivers)
    encoded = encode_contrasts(model, contrasts, max_length)
    limit = max_tokens or model.max_tokens
    parts: list[pd.DataFrame] = []
    for batch in encoded.batches(model, max_rows=max_rows, max_tokens=limit, progress=progress):
        parts += _batch(model, batch, sent, receivers, freeze, ln, limit)
    rows = pd.concat(parts, ignore_index=True)
    edges = {str(sender): str(Edge(sender, *receivers)) for sender in sent}
    rows.insert(0, "edge", rows["sender"].map(edges))
    return tidy(encoded, rows, ["edge", "sender"])


def scoring_heads(model: Weights, contrasts: Sequence[Contrast], top: int) -> tuple[Head, ...]:
    """The `top` heads with the largest mean effect along head -> score, whatever its sign."""
    needs(model, "scoring_heads", Weights, norm="post", reads="cls")
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
        chunk = sorted(sent[start : start + at_once], key=_place)
        arrived = carry(model, base, donor, chunk, receivers, freeze, ln)
        if rows == 1:
            patched = _scored(model, arrived[receivers[0]].stream)
        else:
            patched = _received(model, batch.base, base, arrived, len(chunk))
        departure = arrived[min(receivers, key=_stop)].departure(batch.base.attention_mask)
        told = {"base": base.score, "donor": donor.score, "patched": patched, "effect": patched - base.score}
        told = {
            name: for_numpy(x.expand_as(patched).flatten()) for name, x in (told | {"departure": departure}).items()
        }
        names = np.repeat([str(sender) for sender in chunk], len(batch.rows))
        frames.append(pd.DataFrame({"sender": names, "row": np.tile(batch.rows, len(chunk))} | told))
    return frames


@dataclass(frozen=True, eq=False)
class Run:
    """What one run read and wrote at its first rows (all, or CLS alone), layer by layer.

    `resid[l]` is what layer l reads (the last is what the head reads), `mid[l]` what its MLP reads; `z`, `attn` and
    `mlp` are what its heads and its two halves write; `score` is the score of each pair.
    """

    resid: list[Float[Tensor, "batch _ d_model"]]
    z: list[Float[Tensor, "batch _ head d_head"]]
    attn: list[Float[Tensor, "batch _ d_model"]]
    mid: list[Float[Tensor, "batch _ d_model"]]
    mlp: list[Float[Tensor, "batch _ d_model"]]
    score: Float[Tensor, "batch"]

    @classmethod
    def of(cls, model: Reranker, batch: Batch, rows: int | None) -> Run:
        """The run over a batch; of the last layer's writings there is the head's row alone."""
        n = model.cfg.n_layers
        names = {part: [f"blocks.{layer}.{hook}" for layer in range(n)] for part, hook in _KEPT.items()}
        names["resid"].append(f"blocks.{n - 1}.hook_resid_post")
        every = itertools.chain.from_iterable(names.values())
        score, kept = observe(model, batch, every, lambda _, x: x[:, :rows], head_row=True)
        return cls(**{part: [kept[name] for name in of] for part, of in names.items()}, score=score)


_KEPT = {
    "resid": "hook_resid_pre",
    "z": "attn.hook_z",
    "attn": "hook_attn_out",
    "mid": "hook_resid_mid",
    "mlp": "hook_mlp_out",
}


@dataclass(frozen=True, eq=False)
class Arrived:
    """What stands at a receiver's input for each sender, and the change that a linear path would have brought there."""

    base: Float[Tensor, "batch row d_model"]
    stream: Float[Tensor, "sender batch row d_model"]
    linear: Float[Tensor, "sender batch row d_model"]

    def departure(self, real: Bool[Tensor, "batch pos"]) -> Float[Tensor, "sender batch"]:
        """Norm of (change that arrived - linear change) over the norm of the latter; NaN where that is rounding."""
        here = real[:, : self.base.shape[1], None].to(self.base)
        gap = ((self.stream - self.base - self.linear) * here).flatten(2).norm(dim=-1)
        norm = (self.linear * here).flatten(2).norm(dim=-1)
        least = 1e-4 * (self.base * here).flatten(1).norm(dim=-1)
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
    """The change of each sender, carried along the base's residual stream to the input of every receiver.

    `senders` come in the order in which they write. A receiver that some sender does not reach has the base there.
    """
    needs(model, "carry", Weights, norm="post")
    stream = linear = base.resid[0].new_empty(0, *base.resid[0].shape)
    stops = {_stop(receiver) for receiver in receivers}
    found: dict[tuple[int, int], Arrived] = {}

    def arrive(stop: tuple[int, int], at: Tensor) -> None:
        if stop in stops:
            rest = at.expand(len(senders) - len(stream), *at.shape)
            found[stop] = Arrived(at, torch.cat([stream, rest]), torch.cat([linear, torch.zeros_like(rest)]))

    stream, linear = _join(stream, linear, base.resid[0], _sent(model, base, donor, senders, Resid, 0))
    for layer, of in enumerate(model.parts.layers):
        arrive((layer, 0), base.resid[layer])
        if max(stops) <= (layer, 0):
            break
        attn, rows = base.attn[layer], base.attn[layer].shape[1]
        read = base.resid[layer][:, :rows] + attn
        sent = _sent(model, base, donor, senders, Head, layer)
        stream, linear = _join(stream[:, :, :rows] + attn, linear[:, :, :rows], read, sent)
        stream, linear = layer_norm(of.ln1, stream, read, ln), transported(of.ln1, linear, read)
        arrive((layer, 1), base.mid[layer])
        read = base.mid[layer] + base.mlp[layer]
        written = base.mlp[layer] if freeze == "heads+mlps" else of.mlp_out(of.activation(of.mlp_in(stream)))
        stream, linear = _join(stream + written, linear, read, _sent(model, base, donor, senders, Mlp, layer))
        stream, linear = layer_norm(of.ln2, stream, read, ln), transported(of.ln2, linear, read)
    arrive(END, base.resid[-1])
    return {receiver: found[_stop(receiver)] for receiver in receivers}


def _join(stream: Tensor, linear: Tensor, base: Tensor, sent: Tensor) -> tuple[Tensor, Tensor]:
    """The senders so far, and those that write here for the first time."""
    return torch.cat([stream, base + sent]), torch.cat([linear, sent])


def _sent(
    model: Weights, base: Run, donor: Run, senders: Sequence[Sender], kind: type, layer: int
) -> Float[Tensor, "sender batch row d_model"]:
    """What each sender of this kind and layer writes on the donor, less what it writes on the base."""
    here = [sender for sender in senders if isinstance(sender, kind) and sender.layer == layer]
    if kind is Head:
        weight = model.parts.layers[layer].o.weight.unflatten(1, (model.cfg.n_heads, -1))
        index = [sender.head for sender in here if isinstance(sender, Head)]
        change = (donor.z[layer] - base.z[layer])[:, :, index]
        return torch.einsum("brhe,mhe->hbrm", change, weight[:, index])
    change = donor.mlp[layer] - base.mlp[layer] if kind is Mlp else donor.resid[0] - base.resid[0]
    return change.expand(len(here), *change.shape)


def layer_norm(
    of: nn.LayerNorm, x: Float[Tensor, "*axes d"], base: Float[Tensor, "*_ d"], ln: str
) -> Float[Tensor, "*axes d"]:
    """LayerNorm of x; where `ln` is "frozen" with the standard deviation of `base`."""
    if ln == "live":
        return of(x)
    return transported(of, x, base) + of.bias


def transported(
    of: nn.LayerNorm, change: Float[Tensor, "*axes d"], base: Float[Tensor, "*_ d"]
) -> Float[Tensor, "*axes d"]:
    """That is gamma * C change / sigma: the LayerNorm of a change, sigma being the base's and C taking the mean out."""
    scale = (base.var(-1, unbiased=False, keepdim=True) + of.eps).sqrt()
    return (change - change.mean(-1, keepdim=True)) / scale * of.weight


def _scored(model: Restarts, stream: Float[Tensor, "sender batch row d_model"]) -> Float[Tensor, "sender batch"]:
    return model.run_head(stream.flatten(0, 1)).unflatten(0, stream.shape[:2])


def _received(
    model: Weights, batch: Batch, base: Run, arrived: Mapping[Reader, Arrived], n: int
) -> Float[Tensor, "sender batch"]:
    """The base run again from the first receiver's layer, with nothing but the receivers' inputs replaced."""
    first = min(receiver.layer for receiver in arrived if not isinstance(receiver, Score))
    hooks = [(receiver.hook, _input(model, receiver, at)) for receiver, at in arrived.items()]
    allowed = model.allowed(batch)
    allowed = None if allowed is None else allowed.repeat(n, 1, 1, 1)
    resid = base.resid[first].repeat(n, 1, 1)
    with model.hooks(hooks):
        for layer in range(first, model.cfg.n_layers):
            resid = model.run_block(layer, resid, allowed, head_row=layer == model.cfg.n_layers - 1)
        score = model.run_head(resid)
    return score.unflatten(0, (n, len(batch)))


def _input(model: Weights, receiver: Reader, arrived: Arrived) -> Callable[..., Tensor]:
    """The edit that gives a receiver what arrived, and nobody else."""
    new = arrived.stream.flatten(0, 1)
    if isinstance(receiver, Head):
        of = getattr(model.parts.layers[receiver.layer], receiver.part)
        new = of(new).unflatten(-1, (model.cfg.n_heads, -1))[:, :, receiver.head]

    def edit(x: Tensor, hook: Any) -> Tensor:
        if not isinstance(receiver, Head):
            return new[:, : x.shape[1]]
        out = x.clone()
        out[:, :, receiver.head] = new[:, : x.shape[1]]
        return out

    return edit


def _receivers(model: Reranker, receiver: Any) -> tuple[Reader, ...]:
    receivers = readers_in_order([receiver] if isinstance(receiver, str | Site | Score) else receiver)
    sites_of(model, [reader for reader in receivers if not isinstance(reader, Score)] or [Head(0, 0)])
    return receivers


def _senders(model: Reranker, senders: Any, receivers: Sequence[Reader]) -> list[Sender]:
    last = max(map(_stop, receivers))
    if senders is None:
        everything: list[Sender] = [Resid(0), *all_heads(model), *mlps(model)]
        return [sender for sender in everything if _place(sender) < last]
    parsed = sites_of(model, senders)
    for sender in parsed:
        if not (sender == Resid(0) or (isinstance(sender, Head | Mlp) and sender.part in ("z", "out"))):
            raise MechirError(f"'{sender}' is no sender: write a head (h8.1), an MLP (mlp3) or resid0, the embedding.")
        if _place(sender) >= last:
            raise MechirError(f"'{sender}' writes after '{receivers[0]}' reads: give a sender of an earlier layer.")
    return parsed


def _stop(receiver: Reader) -> tuple[int, int]:
    """Where a receiver reads: before a layer (l, 0), between its attention and its MLP (l, 1), or after all layers."""
    return END if isinstance(receiver, Score) else (receiver.layer, int(isinstance(receiver, Mlp)))


def _place(sender: Sender) -> tuple[float, float]:
    """Where a sender writes, on the same scale."""
    return (-1.0, 0.0) if isinstance(sender, Resid) else (float(sender.layer), 0.5 + isinstance(sender, Mlp))


def _refuse_modes(freeze: str, ln: str) -> None:
    for name, value, known in (("freeze", freeze, FREEZE), ("ln", ln, LN)):
        if value not in known:
            raise MechirError(f"Unknown {name}='{value}': write {' or '.join(map(repr, known))}.")
