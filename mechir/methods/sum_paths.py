"""Path patching where the residual stream is a sum: what a sender writes arrives at every later reader as it was sent.

In a pre-LN model nothing on the skip path changes the stream, so the transport of a change is the identity, whatever
the positions and the mask. Heads are frozen by writing what they added on the base; MLPs are computed anew, or frozen
as well. A receiver's own norm is always computed anew.

Source: Wang et al. 2022 (arXiv:2211.00593, appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch, for_numpy
from mechir.circuits import Reader
from mechir.contrasts import ContrastBatch
from mechir.hooks import Hook
from mechir.interventions import Splice
from mechir.methods.edge_graph import Sender, reads_at
from mechir.model_sites import refuse_shared
from mechir.recorder import observe
from mechir.reranker import Reranker
from mechir.sites import Head, Mlp, Score


def patched_sums(
    model: Reranker, batch: ContrastBatch, sent: Sequence[Sender], receivers: Sequence[Reader], freeze: str
) -> list[pd.DataFrame]:
    """The rows of `path_patch` of one batch: a run for every sender, and one more for a receiver inside the model."""
    base, donor = Written.of(model, batch.base), Written.of(model, batch.donor)
    frames = []
    for sender in sent:
        change = donor.by(sender) - base.by(sender)
        arrived = _carried(model, batch.base, base, sender, change, receivers, freeze)
        patched = arrived.score if arrived.score is not None else _received(model, batch.base, arrived.streams)
        values = {"base": base.score, "donor": donor.score, "patched": patched, "effect": patched - base.score}
        first = min(receivers, key=lambda receiver: reads_at(receiver, model.cfg.n_layers))
        values["departure"] = _departure(arrived.streams[first], base.at(first), change, batch.base)
        frame = pd.DataFrame({name: for_numpy(x) for name, x in values.items()})
        frames.append(frame.assign(sender=str(sender), row=np.asarray(batch.rows)))
    return frames


@dataclass(frozen=True, eq=False)
class Written:
    """What one run adds to the stream: by hook name, `attn.hook_result` of each head, and the streams between."""

    values: Mapping[str, Tensor]
    score: Float[Tensor, "batch"]

    @classmethod
    def of(cls, model: Reranker, batch: Batch) -> Written:
        """Runs the model on a batch."""
        kinds = ("attn.hook_result", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_pre")
        score, values = observe(model, batch, lambda name: name.endswith((*kinds, "hook_resid_post")))
        return cls(values, score)

    def by(self, sender: Sender) -> Float[Tensor, "batch pos d_model"]:
        """What a sender adds."""
        if isinstance(sender, Head):
            return self.values[f"blocks.{sender.layer}.attn.hook_result"][:, :, sender.head]
        return self.values[f"blocks.{sender.layer}.hook_{'mlp_out' if isinstance(sender, Mlp) else 'resid_pre'}"]

    def at(self, receiver: Reader) -> Float[Tensor, "batch pos d_model"]:
        """The stream that a receiver reads."""
        return self.values[_read_by(receiver, self.n_layers)]

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return sum(name.endswith("hook_mlp_out") for name in self.values)


@dataclass(frozen=True, eq=False)
class Arrived:
    """The stream that each receiver reads, changed by one sender; the score, where that is the receiver."""

    streams: Mapping[Reader, Float[Tensor, "batch pos d_model"]]
    score: Float[Tensor, "batch"] | None


def _carried(
    model: Reranker,
    batch: Batch,
    base: Written,
    sender: Sender,
    change: Float[Tensor, "batch pos d_model"],
    receivers: Sequence[Reader],
    freeze: str,
) -> Arrived:
    """One run of the base in which the sender's change goes along the stream and no head looks anew."""
    frozen = ("hook_attn_out", "hook_mlp_out") if freeze == "heads+mlps" else ("hook_attn_out",)
    begins = {Head: "hook_attn_out", Mlp: "hook_mlp_out"}.get(type(sender), "hook_resid_pre")
    start = f"blocks.{sender.layer}.{begins}"

    def written(x: Tensor, hook: Any) -> Tensor:
        kept = base.values[hook.name] if hook.name.endswith(frozen) else x
        return kept + change if hook.name == start else kept

    streams = {receiver: _read_by(receiver, model.cfg.n_layers) for receiver in receivers}
    with model.hooks([(lambda name: name == start or name.endswith(frozen), written)]):
        score, seen = observe(model, batch, set(streams.values()))
    to_score = any(isinstance(receiver, Score) for receiver in receivers)
    return Arrived({receiver: seen[name] for receiver, name in streams.items()}, score if to_score else None)


def _received(model: Reranker, batch: Batch, arrived: Mapping[Reader, Tensor]) -> Float[Tensor, "batch"]:
    """The score of the base with nothing but the receivers' inputs new."""
    hooks: list[Hook] = []
    for receiver, stream in arrived.items():
        if isinstance(receiver, Head):
            refuse_shared(receiver, model)
            with model.hooks([(f"blocks.{receiver.layer}.hook_resid_pre", lambda x, hook, stream=stream: stream)]):
                _, seen = observe(model, batch, [receiver.hook], stop_at_layer=receiver.layer + 1)
            hooks.append((receiver.hook, Splice(receiver, seen[receiver.hook])))
        elif isinstance(receiver, Mlp):
            hooks.append((receiver.hook, Splice(receiver, stream)))
    with model.hooks(hooks):
        score: Tensor = model(batch)
    return score


def _read_by(receiver: Reader, n_layers: int) -> str:
    """The hook of the stream that a receiver reads."""
    if isinstance(receiver, Score):
        return f"blocks.{n_layers - 1}.hook_resid_post"
    return f"blocks.{receiver.layer}.{'hook_resid_mid' if isinstance(receiver, Mlp) else 'hook_resid_pre'}"


def _departure(
    arrived: Float[Tensor, "batch pos d_model"],
    base: Float[Tensor, "batch pos d_model"],
    change: Float[Tensor, "batch pos d_model"],
    batch: Batch,
) -> Float[Tensor, "batch"]:
    """The norm of (what arrived - what was sent) over the norm of what was sent; NaN where that is rounding."""
    real = batch.attention_mask[..., None].to(base)
    gap = ((arrived - base - change) * real).flatten(1).norm(dim=-1)
    norm = (change * real).flatten(1).norm(dim=-1)
    return torch.where(norm > 1e-4 * (base * real).flatten(1).norm(dim=-1), gap / norm, torch.nan)
