"""Conductance: how much of a target's change flows through each unit (neuron integrated gradients).

Over the residual stream that a layer reads they add up to the whole change (see `walk`). Over the neurons of one MLP
they do not: most of the change goes past it, on the skip.

Source: Vast et al. 2024 (arXiv:2406.19309); conductance: Dhamdhere et al. 2019 (arXiv:1805.12233).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch
from mechir.errors import MechirError
from mechir.inputs import as_pairs
from mechir.methods.groups import Groups, pair_ids
from mechir.methods.targets import Target
from mechir.methods.walk import Walked, Way, walk
from mechir.model_sites import sites_of
from mechir.pair import Pair
from mechir.reranker import Reranker, needs
from mechir.segments import FIVE, Segment, directions

UNITS = {
    "post": "mlp.hook_post",
    "pre": "mlp.hook_pre",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "resid": "hook_resid_pre",
}
"""Neurons after and before the activation; heads by their weights, as in the papers, or by what they read; the residual
stream that a layer reads, as one unit."""
KIND = {"post": "neuron", "pre": "neuron", "pattern": "head", "z": "head", "resid": "resid"}


class Conductances(NamedTuple):
    """The result of `conductance`.

    `rows`: one row per query, grade and layer of units: `query_id`, `grade`, `n` pairs, `layer`, `unit` (of `UNITS`),
    and `conductance`, the array over the layer's neurons or heads of the mean over the pairs of the sum over positions;
    with `split` the array has a second axis: 5 segments (neurons, z, resid) or 25 directions (patterns), in the order
    of `parts`; of a prompt its own segments, which a column `segments` names. "resid" has one unit a layer, and a last
    layer more: what the head of the model reads.
    `checks`: one row per pair: `query_id`, `doc_id`, `grade`; `value`, F(text); `delta`, F(text) - F(baseline);
    `error`, the largest |sum over a residual cut - delta|; `steps`; `converged`.
    """

    rows: pd.DataFrame
    checks: pd.DataFrame


def conductance(
    model: Reranker,
    pairs: Any,
    *,
    units: Sequence[str] = ("post", "pattern"),
    way: Way | None = None,
    target: str = "score",
    against: Sequence[float] | None = None,
    start: Any = None,
    split: bool = False,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> Conductances:
    """The conductance of every unit of every layer, all layers in one backward pass for each step.

    Args:
        model: any reranker.
        pairs: the texts.
        units: of neurons one of "post" and "pre", of heads one of "pattern" and "z", and "resid".
        way: the line, and how it is summed.
        target: F, see `Target`: "score", "p", "margin", or a head or neuron ("h3.5@query<-doc", "n2.17@cls"), whose
            earlier units alone are then attributed.
        against: for "margin", a constant for each pair, such as the score of a document that is not relevant.
        start: a text to begin at for each pair in the place of the baseline, of as many word pieces in each segment,
            such as the same document without a term.
        split: keep segments (neurons) and directions (heads) apart as well.
        max_tokens: the most word pieces computed together; by default `model.max_tokens`.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Raises:
        MechirError: for unknown names, "margin" without `against`, a pair that equals its baseline, a target that no
            unit feeds.
    """
    needs(model, "conductance")
    pairs = as_pairs(pairs)
    goal = Target(target, against)
    segments = model.encode(pairs[:1], max_length).parts
    readers = unit_readers(model, units, goal, split=split, segments=segments)
    groups, checks = Groups.of(pairs), list[pd.DataFrame]()
    counts, sums = groups.ids["n"].to_numpy(dtype=float), dict[str, Tensor]()
    options: dict[str, Any] = {"max_tokens": max_tokens, "max_length": max_length, "progress": progress}
    for done in walk(model, pairs, readers, goal, way=way, start=start, **options):
        group = groups.of_pair[torch.from_numpy(done.index)]
        for hook, flow in done.flows.items():
            if hook not in sums:
                sums[hook] = torch.zeros(len(counts), *flow.shape[1:], dtype=torch.float64)
            sums[hook].index_add_(0, group, flow.double())
        checks.append(checked(pairs, done))
    rows = []
    for hook, reader in readers.items():
        means = (sums[hook].numpy().T / counts).T.astype(np.float32)
        rows.append(groups.ids.assign(layer=reader.layer, unit=reader.kind, conductance=list(means)))
    table = pd.concat(rows, ignore_index=True)
    if split and segments != FIVE:
        table["segments"] = "|".join(map(str, segments))
    return Conductances(table, pd.concat(checks).sort_index())


def checked(pairs: Sequence[Pair], done: Walked) -> pd.DataFrame:
    """The `checks` of pairs that are done, by their place among all."""
    ids = pair_ids(pairs[k] for k in done.index).set_axis(done.index)
    return ids.assign(value=done.value, delta=done.delta, error=done.error, steps=done.steps, converged=done.converged)


def parts(unit: str, rows: pd.DataFrame) -> list[str]:
    """The parts that `split` keeps in these rows: directions of a head's weights, else segments.

    The segments are the five of a pair, or those in the rows' column `segments`.
    """
    named = str(rows["segments"].iloc[0]).split("|") if "segments" in rows else list(map(str, FIVE))
    segments = [Segment.parse(name) for name in named]
    return [str(part) for part in (directions(segments) if unit == "pattern" else segments)]


@dataclass(frozen=True)
class UnitReader:
    """The part of the flow through a layer's activation that goes through each unit, summed over everything else.

    `kind` is one of `UNITS`; `split` keeps `segments` or the directions between them, in a last axis.
    """

    layer: int
    kind: str
    split: bool
    segments: tuple[Segment, ...] = FIVE

    def __call__(self, flow: Float[Tensor, "pair ..."], batch: Batch) -> Float[Tensor, "pair ..."]:
        """The flow of each unit of each pair."""
        if self.kind in ("z", "resid"):
            flow = flow.sum(-1, keepdim=self.kind == "resid")
        if not self.split:
            return flow.sum((2, 3)) if self.kind == "pattern" else flow.sum(1)
        member = batch.members(self.segments).to(flow)
        if self.kind == "pattern":
            return (member[:, None, :, : flow.shape[2]] @ flow @ member[:, None].transpose(2, 3)).flatten(2)
        return (member[:, :, : flow.shape[1]] @ flow).transpose(1, 2)


def unit_readers(
    model: Reranker,
    units: Sequence[str],
    target: Target,
    *,
    split: bool = False,
    segments: tuple[Segment, ...] = FIVE,
) -> dict[str, UnitReader]:
    """The reader of every layer's units that feed the target, by hook.

    Raises:
        MechirError: for unknown units, two readings of the same, a target that the model lacks or nothing feeds.
    """
    unknown = [unit for unit in units if unit not in UNITS]
    if unknown or not units:
        raise MechirError(f"Unknown units '{', '.join(unknown)}': write some of {', '.join(UNITS)}.")
    for both in (("post", "pre"), ("pattern", "z")):
        if set(both) <= set(units):
            raise MechirError(f"'{both[0]}' and '{both[1]}' are two readings of the same units: take one of them.")
    if target.site is not None:
        sites_of(model, target.site)
    readers, n_layers = {}, model.cfg.n_layers
    for layer in range(n_layers + 1):
        for unit in units:
            if layer < n_layers and target.feeds(layer, KIND[unit]):
                readers[f"blocks.{layer}.{UNITS[unit]}"] = UnitReader(layer, unit, split, segments)
            elif layer == n_layers and unit == "resid" and target.site is None:
                readers[f"blocks.{layer - 1}.hook_resid_post"] = UnitReader(layer, unit, split, segments)
    if not readers:
        raise MechirError(f"No unit of {', '.join(units)} feeds '{target.text}': take a later target, or other units.")
    return readers
