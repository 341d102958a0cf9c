"""Conductance: how much of a score's change flows through each unit (neuron integrated gradients).

The word embeddings go on a straight line from a baseline to the text; positions, segments and mask stay. A unit's
conductance is the integral of dF / d unit along the unit's own way, so it is in units of F and has a sign. Over a
complete cut (the residual stream of a layer, all positions) conductances add up to F(text) - F(baseline). Over the
neurons of one MLP they do not: most of the change goes past it, on the skip.

Source: Vast et al. 2024 (arXiv:2406.19309); conductance: Dhamdhere et al. 2019 (arXiv:1805.12233).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.errors import MechirError
from mechir.hooks import Hook
from mechir.methods.groups import Groups
from mechir.pairs import Batch, Encoded, Pair, progress_bar
from mechir.segments import FIVE, Segment, directions
from mechir.subspaces import EMBED

BASELINES = {"pad_query": Segment.QUERY, "pad_document": Segment.DOC, "pad_both": Segment.QUERY | Segment.DOC}
"""What becomes [PAD]; special tokens stay."""
UNITS = {"post": "mlp.hook_post", "pre": "mlp.hook_pre", "pattern": "attn.hook_pattern", "z": "attn.hook_z"}
"""Neurons after and before the activation; heads by their weights, as in the papers, or by what they read."""
TARGETS = ("score", "p", "margin")
RULES = ("trapezoid", "left", "gauss-legendre")


@dataclass(frozen=True)
class Way:
    """Which line is walked, and how it is summed.

    Args:
        baseline: one of `BASELINES`. A zero vector is refused: the embeddings' LayerNorm has no answer to it.
        rule: "trapezoid" on even steps; "left" takes the gradient before each step, on even steps; "gauss-legendre"
            the same at Gauss-Legendre nodes, which leaves out both ends: captum's default, of first order only.
        steps: of the first attempt.
        tol: an attempt is good where the error is at most `tol` times the larger of |F(text) - F(baseline)| and a tenth
            of the standard deviation of the scores; otherwise the steps are doubled.
        max_steps: where that ends.

    Raises:
        MechirError: for unknown names, steps out of range.
    """

    baseline: str = "pad_query"
    rule: str = "trapezoid"
    steps: int = 16
    tol: float = 1e-2
    max_steps: int = 512

    def __post_init__(self) -> None:
        if self.baseline == "zero":
            raise MechirError(
                "The baseline 'zero' is refused: a post-LN model normalises its embeddings, and a vector near zero "
                f"comes out at full length; write one of {', '.join(BASELINES)}."
            )
        for name, value, known in (("baseline", self.baseline, BASELINES), ("rule", self.rule, RULES)):
            if value not in known:
                raise MechirError(f"Unknown {name} '{value}': write one of {', '.join(known)}.")
        if not 1 <= self.steps <= self.max_steps:
            raise MechirError(f"steps={self.steps} is out of range: write 1 to {self.max_steps} (max_steps).")

    def nodes(self, steps: int) -> Float[np.ndarray, "node"]:
        """Where on the line F is looked at, from 0 (baseline) to 1 (text)."""
        if self.rule == "gauss-legendre":
            return (np.polynomial.legendre.leggauss(steps + 1)[0] + 1) / 2
        return np.linspace(0, 1, steps + 1)


class Conductances(NamedTuple):
    """What `conductance` found.

    `rows`: one row per query, grade and layer of units: `query_id`, `grade`, `n` pairs, `layer`, `unit` (of `UNITS`),
    and `conductance`, the array over the layer's neurons or heads of the mean over the pairs of the sum over positions;
    with `split` the array has a second axis: 5 segments (neurons, z) or 25 directions (patterns), in the order of
    `parts`. `checks`: one row per pair: `query_id`, `doc_id`, `grade`, `score`; `delta`, F(text) - F(baseline);
    `error`, the largest |sum over a residual cut - delta|; `steps`; `converged`.
    """

    rows: pd.DataFrame
    checks: pd.DataFrame


def conductance(
    model: Any,
    pairs: Sequence[Pair],
    *,
    units: Sequence[str] = ("post", "pattern"),
    way: Way | None = None,
    target: str = "score",
    against: Sequence[float] | None = None,
    start: Sequence[Pair] | None = None,
    split: bool = False,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> Conductances:
    """The conductance of every unit of every layer, all layers in one backward pass for each step.

    Args:
        model: a `HookedEncoder`.
        pairs: what is read.
        units: of neurons one of "post" and "pre", of heads one of "pattern" and "z".
        way: the line, and how it is summed.
        target: F: "score" (logit or log-odds), "p" = sigmoid(score), "margin" = sigmoid(score - `against`).
        against: for "margin", a constant for each pair, such as the score of a document that is not relevant.
        start: a text to begin at for each pair in the place of the baseline, of as many word pieces in each segment,
            such as the same document without a term.
        split: keep segments (neurons) and directions (heads) apart as well.
        max_tokens: the most word pieces computed together; by default `model.max_tokens`.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Raises:
        MechirError: for unknown names, "margin" without `against`, a pair that equals its baseline.
    """
    way = way or Way()
    readers = _readers(model, units, split)
    encoded, limit = model.encode(pairs, max_length), max_tokens or model.max_tokens
    begins = _begins(model, encoded, start, way, max_length)
    scores = model.score(pairs, max_length=max_length, progress=False)
    value_of = _target(target, against, len(pairs))
    floor = 0.1 * float(scores.double().std()) if len(pairs) > 1 else 0.0
    sums = _Sums.empty(Groups.of(pairs), readers)
    checks: dict[int, dict[str, Any]] = {}
    with progress_bar(len(pairs), progress) as bar:
        pending, steps = np.arange(len(pairs)), way.steps
        while len(pending):
            left: list[np.ndarray] = []
            for index in _buckets(encoded, pending, limit // (steps + 1)):
                found = _walk(model, encoded, begins, index, way, steps, value_of, readers, limit)
                converged = found.error <= way.tol * np.maximum(np.abs(found.delta), floor)
                done = converged | (2 * steps > way.max_steps)
                for row in np.flatnonzero(done):
                    told = {"delta": float(found.delta[row]), "error": float(found.error[row]), "steps": steps}
                    checks[int(index[row])] = told | {"converged": bool(converged[row])}
                sums.add(index[done], {hook: x[torch.from_numpy(done)] for hook, x in found.units.items()})
                bar.update(int(done.sum()))
                left.append(index[~done])
            pending, steps = np.concatenate(left), 2 * steps
    ids = pd.DataFrame(
        [(pair.query_id, pair.doc_id, pair.grade) for pair in pairs], columns=["query_id", "doc_id", "grade"]
    )
    told_of = pd.DataFrame([checks[k] for k in range(len(pairs))])
    return Conductances(sums.frame(readers), ids.assign(score=scores.numpy()).join(told_of))


def _buckets(encoded: Encoded, pending: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """Pairs of like length, so many that they fit along the whole line, at least one."""
    order = pending[np.argsort(-encoded.lengths[pending], kind="stable")]
    start = 0
    while start < len(order):
        n = max(1, limit // int(encoded.lengths[order[start]]))
        yield order[start : start + n]
        start += n


Value = Callable[[Tensor, np.ndarray], Tensor]
"""F of the scores of the pairs at these places."""


def _target(target: str, against: Sequence[float] | None, n: int) -> Value:
    if target not in TARGETS:
        raise MechirError(f"Unknown target '{target}': write one of {', '.join(TARGETS)}.")
    if (target == "margin") != (against is not None):
        raise MechirError("The target 'margin' takes against=, a score for each pair, and no other target does.")
    if against is None:
        return (lambda score, index: score) if target == "score" else (lambda score, index: score.sigmoid())
    if len(against) != n:
        raise MechirError(f"against= has {len(against)} scores for {n} pairs: give one for each.")
    constant = torch.as_tensor(np.asarray(against, dtype=float))
    return lambda score, index: (score - constant[torch.from_numpy(index)].to(score)).sigmoid()


def parts(unit: str) -> list[str]:
    """What `split` keeps apart: directions of a head's weights, else the five segments."""
    return [str(part) for part in (directions() if unit == "pattern" else FIVE)]


@dataclass(frozen=True)
class Reader:
    """What of a hook is one unit: its flow [pair, ...] summed over everything else.

    `kind` is one of `UNITS`; `split` keeps segments or directions, in a last axis of 5 or 25.
    """

    hook: str
    layer: int
    kind: str
    n: int
    split: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one pair's result: units, and parts where they are kept apart."""
        return (self.n, len(parts(self.kind))) if self.split else (self.n,)

    def __call__(self, flow: Float[Tensor, "pair ..."], batch: Batch) -> Float[Tensor, "pair ..."]:
        """The flow of each unit of each pair."""
        if self.kind == "z":
            flow = flow.sum(-1)
        if not self.split:
            return flow.sum((2, 3)) if self.kind == "pattern" else flow.sum(1)
        member = torch.stack([batch.at(segment) for segment in FIVE], 1).to(flow)  # pair segment pos
        if self.kind == "pattern":
            rows = member[:, None, :, : flow.shape[2]] @ flow @ member[:, None].transpose(2, 3)
            return rows.flatten(2)
        return (member[:, :, : flow.shape[1]] @ flow).transpose(1, 2)


def _readers(model: Any, units: Sequence[str], split: bool) -> dict[str, Reader]:
    unknown = [unit for unit in units if unit not in UNITS]
    if unknown or not units:
        raise MechirError(f"Unknown units '{', '.join(unknown)}': write some of {', '.join(UNITS)}.")
    for both in (("post", "pre"), ("pattern", "z")):
        if set(both) <= set(units):
            raise MechirError(f"'{both[0]}' and '{both[1]}' are two readings of the same units: take one of them.")
    found, c = {}, model.cfg
    for layer in range(c.n_layers):
        for kind in units:
            hook = f"blocks.{layer}.{UNITS[kind]}"
            found[hook] = Reader(hook, layer, kind, c.d_mlp if kind in ("post", "pre") else c.n_heads, split)
    return found


@dataclass(frozen=True)
class _Sums:
    """Sums over the pairs of each group, by hook."""

    groups: Groups
    values: dict[str, Float[Tensor, "group ..."]]

    @classmethod
    def empty(cls, groups: Groups, readers: Mapping[str, Reader]) -> _Sums:
        n = len(groups.ids)
        return cls(groups, {hook: torch.zeros(n, *r.shape, dtype=torch.float64) for hook, r in readers.items()})

    def add(self, index: np.ndarray, units: Mapping[str, Tensor]) -> None:
        for hook, x in units.items():
            self.values[hook].index_add_(0, self.groups.of_pair[torch.from_numpy(index)], x.double().cpu())

    def frame(self, readers: Mapping[str, Reader]) -> pd.DataFrame:
        ids, found = self.groups.ids, []
        counts = ids["n"].to_numpy(dtype=float)
        for hook, reader in readers.items():
            values = self.values[hook].numpy() / counts.reshape(-1, *[1] * len(reader.shape))
            found.append(ids.assign(layer=reader.layer, unit=reader.kind, conductance=list(values.astype(np.float32))))
        return pd.concat(found, ignore_index=True)


class _Found(NamedTuple):
    """Of a few pairs: F(text) - F(baseline), the largest error over the cuts, and the units by hook."""

    delta: Float[np.ndarray, "pair"]
    error: Float[np.ndarray, "pair"]
    units: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Replaced:
    """The edit that puts a tensor in an activation's place."""

    value: Tensor

    def __call__(self, x: Tensor, hook: Any) -> Tensor:
        """The tensor."""
        return self.value


def _walk(
    model: Any,
    encoded: Encoded,
    begins: Sequence[np.ndarray],
    index: np.ndarray,
    way: Way,
    steps: int,
    value_of: Value,
    readers: Mapping[str, Reader],
    limit: int,
) -> _Found:
    """A few pairs along the whole line, as many nodes at a time as fit; the next ones begin with the last of them."""
    batch, nodes = encoded.batch(index).to(model.device), way.nodes(steps)
    start = replace(encoded, ids=tuple(begins)).batch(index).input_ids.to(model.device)
    begin, end = model.W_E[start].detach(), model.W_E[batch.input_ids].detach()
    at_once = max(2, limit // batch.input_ids.numel())
    sums: dict[str, Tensor] = {}

    def value_at(some: np.ndarray, watched: Sequence[Hook] = ()) -> tuple[Tensor, Tensor]:
        """F of every pair at these places of the line, pairs within places, and the line."""
        place = torch.from_numpy(some).to(end)[:, None, None, None]
        line = (begin + place * (end - begin)).flatten(0, 1).requires_grad_(torch.is_grad_enabled())
        repeated = np.tile(index, len(some))
        with model.hooks([(EMBED, Replaced(line)), *watched]):
            return value_of(model(encoded.batch(repeated).to(model.device), last_rows="cls"), repeated), line

    def add(n: int, name: str, x: Tensor, gradient: Tensor) -> None:
        flow = _flow(x.unflatten(0, (n, -1)), gradient.unflatten(0, (n, -1)), way.rule)
        read = readers[name](flow, batch) if name in readers else flow.flatten(1).sum(1)
        sums[name] = sums[name] + read if name in sums else read

    for first in range(0, len(nodes) - 1, at_once - 1):
        some = nodes[first : first + at_once]
        with torch.enable_grad():
            value, line = value_at(some, _watched([*_cuts(model), *readers], partial(add, len(some))))
            torch.autograd.grad(value.sum(), line)
    with torch.no_grad():
        low, high = value_at(np.array([0.0, 1.0]))[0].unflatten(0, (2, -1)).double()
    delta = high - low
    error = torch.stack([sums[name].double() - delta for name in _cuts(model)]).abs().amax(0)
    return _Found(delta.cpu().numpy(), error.cpu().numpy(), {name: sums[name].cpu() for name in readers})


def _begins(
    model: Any, encoded: Encoded, start: Sequence[Pair] | None, way: Way, max_length: int | None
) -> list[np.ndarray]:
    """The word pieces at the beginning of each pair's line."""
    if start is None:
        padded = BASELINES[way.baseline].value
        told = f"its baseline '{way.baseline}'"
        found = [
            np.where((segments & padded) != 0, encoded.pad_id, ids)
            for ids, segments in zip(encoded.ids, encoded.segments, strict=True)
        ]
    else:
        if len(start) != len(encoded):
            raise MechirError(f"start= has {len(start)} texts for {len(encoded)} pairs: give one for each.")
        other, told = model.encode(start, max_length), "the text it starts from"
        for pair, own, theirs in zip(encoded.pairs, encoded.segments, other.segments, strict=True):
            if not np.array_equal(own, theirs):
                raise MechirError(f"{pair} and the text it starts from differ in length: fill up with a neutral word.")
        found = list(other.ids)
    for pair, begin, end in zip(encoded.pairs, found, encoded.ids, strict=True):
        if np.array_equal(begin, end):
            raise MechirError(f"{pair} equals {told}, so nothing changes on the way: leave it out.")
    return found


def _cuts(model: Any) -> list[str]:
    """The residual stream that each layer reads and the last one leaves: all of the change goes through each."""
    n = model.cfg.n_layers
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n)), f"blocks.{n - 1}.hook_resid_post"]


def _watched(names: Sequence[str], add: Callable[[str, Tensor, Tensor], None]) -> list[Hook]:
    """Hooks that hand over each activation with its gradient as soon as the backward pass has it."""

    def watch(x: Tensor, hook: Any) -> None:
        kept = x.detach()
        x.register_hook(lambda gradient: add(hook.name, kept, gradient))

    return [(name, watch) for name in names]


def _flow(
    x: Float[Tensor, "node pair ..."], gradient: Float[Tensor, "node pair ..."], rule: str
) -> Float[Tensor, "pair ..."]:
    """Sum over the steps of gradient times change, step by step so that nothing large is made."""
    found = torch.zeros_like(x[0])
    for step in range(len(x) - 1):
        slope = gradient[step] if rule != "trapezoid" else (gradient[step] + gradient[step + 1]) / 2
        found.addcmul_(slope, x[step + 1] - x[step])
    return found
