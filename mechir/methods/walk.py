"""The way from a baseline to a text, and how much of a target's change flows through each activation on it.

The word embeddings go on a straight line from a baseline to the text; positions, segments and mask stay. What flows
through an activation is the integral of dF / d activation along its own way: its conductance, in units of F, signed.
Over a complete cut (the residual stream that a layer reads, all positions) it adds up to F(text) - F(baseline).

Source: Vast et al. 2024 (arXiv:2406.19309); conductance: Dhamdhere et al. 2019 (arXiv:1805.12233).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechir.batches import Batch, give_back, progress_bar
from mechir.encoding import Encoded
from mechir.errors import MechirError
from mechir.hooks import Hook
from mechir.methods.targets import Target
from mechir.model_sites import sites_of
from mechir.pair import Pair
from mechir.reranker import Reranker, needs
from mechir.segments import Segment
from mechir.subspaces import EMBED

BASELINES = {"pad_query": Segment.QUERY, "pad_document": Segment.DOC, "pad_both": Segment.QUERY | Segment.DOC}
"""The texts that become [PAD]; special tokens stay."""
RULES = ("trapezoid", "left", "gauss-legendre")


@dataclass(frozen=True)
class Way:
    """The line from a baseline to the text, and how the gradient is summed along it.

    Args:
        baseline: one of `BASELINES`. A zero vector is refused: the embeddings' LayerNorm has no answer to it.
        rule: "trapezoid" on even steps; "left" takes the gradient before each step, on even steps; "gauss-legendre"
            the same at Gauss-Legendre nodes, which leaves out both ends: captum's default, of first order only.
        steps: of the first attempt.
        tol: an attempt is good where the error is at most `tol` times the larger of |F(text) - F(baseline)| and a tenth
            of the standard deviation of F over the pairs; otherwise the steps are doubled.
        max_steps: the most steps of an attempt.

    Raises:
        MechirError: for unknown names, steps out of range.
    """

    baseline: str = "pad_query"
    rule: str = "trapezoid"
    steps: int = 32
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
        if not self.tol > 0:  # infinite: any error will do
            raise MechirError(f"tol={self.tol} is no tolerance: write a number above 0, e.g. 0.01.")
        if not 1 <= self.steps <= self.max_steps:
            raise MechirError(f"steps={self.steps} is out of range: write 1 to {self.max_steps} (max_steps).")

    def nodes(self, steps: int) -> Float[np.ndarray, "node"]:
        """The places on the line where F is computed, from 0 (baseline) to 1 (text)."""
        if self.rule == "gauss-legendre":
            return (np.polynomial.legendre.leggauss(steps + 1)[0] + 1) / 2
        return np.linspace(0, 1, steps + 1)


Reader = Callable[[Float[Tensor, "pair ..."], Batch], Tensor]
"""A reduction of the flow through an activation, from [pair, ...] of its shape to [pair, ...]."""


@dataclass(frozen=True)
class Walked:
    """The results of `walk` for some pairs; `index` is their places among all pairs.

    `value` is F(text), `delta` F(text) - F(baseline), `error` the largest |sum over a residual cut - delta|; `flows`
    holds the result of each reader, by hook.
    """

    index: Int[np.ndarray, "pair"]
    value: Float[np.ndarray, "pair"]
    delta: Float[np.ndarray, "pair"]
    error: Float[np.ndarray, "pair"]
    converged: Bool[np.ndarray, "pair"]
    steps: int
    flows: dict[str, Tensor]

    def only(self, rows: Bool[np.ndarray, "pair"]) -> Walked:
        """The results of these rows alone."""
        arrays = {name: getattr(self, name)[rows] for name in ("index", "value", "delta", "error", "converged")}
        return replace(self, **arrays, flows={hook: x[torch.from_numpy(rows)] for hook, x in self.flows.items()})


def walk(
    model: Reranker,
    pairs: Sequence[Pair],
    readers: Mapping[str, Reader],
    target: Target,
    *,
    way: Way | None = None,
    start: Sequence[Pair] | None = None,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> Iterator[Walked]:
    """Walks every pair's line, steps doubled until the sums over residual cuts agree with F(text) - F(baseline).

    `readers` reduce the flow through activations, by hook name, all in one backward pass; the other arguments are those
    of `conductance`.

    Raises:
        MechirError: for a pair that equals its baseline, a target that the model lacks, `against` of another length.
    """
    needs(model, "walk")
    if target.site is not None:
        sites_of(model, target.site)
    if target.against is not None and len(target.against) != len(pairs):
        raise MechirError(f"against= has {len(target.against)} scores for {len(pairs)} pairs: give one for each.")
    way, limit = way or Way(), max_tokens or model.max_tokens
    encoded = model.encode(pairs, max_length)
    line = _Line(model, encoded, _begins(model, encoded, start, way, max_length), target, limit)
    floor = line.floor() if way.tol < np.inf else np.inf
    with progress_bar(len(pairs), progress) as bar:
        pending, steps = np.arange(len(pairs)), way.steps
        while len(pending):
            left: list[np.ndarray] = []
            for rows, _ in model.batches(encoded.take(pending), max_tokens=limit // (steps + 1)):
                attempt = line.walked(pending[rows], way, steps, readers)
                good = attempt.error <= way.tol * np.maximum(np.abs(attempt.delta), floor)
                done = good | (2 * steps > way.max_steps)
                bar.update(int(done.sum()))
                left.append(attempt.index[~done])
                if done.any():
                    yield replace(attempt, converged=good).only(done)
                give_back()  # a line of nodes is a large batch, and every one has a shape of its own
            pending, steps = np.concatenate(left), 2 * steps


@dataclass(frozen=True)
class _Line:
    """The lines of all pairs, each from `begins` to its word pieces; `limit` word pieces are computed together."""

    model: Reranker
    encoded: Encoded
    begins: Sequence[np.ndarray]
    target: Target
    limit: int

    @torch.no_grad()
    def floor(self) -> float:
        """The least size of a change to compare errors with: a tenth of the standard deviation of F over the texts."""
        if len(self.encoded) == 1:
            return 0.0
        batches = self.model.batches(self.encoded, max_tokens=self.limit)
        values = [self.target.value(self.model, batch, index).double().cpu() for index, batch in batches]
        return 0.1 * float(torch.cat(values).std())

    def walked(self, index: np.ndarray, way: Way, steps: int, readers: Mapping[str, Reader]) -> Walked:
        """Walks a few pairs along the whole line, as many nodes at a time as fit; the next begin with the last of them.

        F at both ends is that of the nodes, unless the rule leaves them out.
        """
        batch, nodes = self.encoded.batch(index).to(self.model.device), way.nodes(steps)
        cuts = self.target.cuts(self.model)
        at_once = max(2, self.limit // batch.input_ids.numel())
        through: dict[str, list[Tensor]] = {name: [] for name in cuts}
        flows: dict[str, Tensor] = {}
        values: list[Tensor] = []

        def add(n: int, name: str, x: Tensor, gradient: Tensor) -> None:
            flow = _flow(x.unflatten(0, (n, -1)), gradient.unflatten(0, (n, -1)), way.rule)
            if name in through:
                through[name].append(flow.flatten(1).sum(1))
            if name in readers:
                read = readers[name](flow, batch)
                flows[name] = flows[name] + read if name in flows else read

        for first in range(0, len(nodes) - 1, at_once - 1):
            some = nodes[first : first + at_once]
            with torch.enable_grad():
                value, line = self.value(index, some, _watched([*cuts, *readers], partial(add, len(some))))
                torch.autograd.grad(value.sum(), line)
            values.append(value.detach())
        if nodes[0] > 0:
            with torch.no_grad():
                values = [self.value(index, np.array([0.0, 1.0]))[0]]
        low, high = (end.double().cpu() for end in (values[0][: len(index)], values[-1][-len(index) :]))
        sums = torch.stack([torch.stack(part) for part in through.values()]).double().cpu().sum(1)
        error = (sums - (high - low)).abs().amax(0)
        read, converged = {name: x.cpu() for name, x in flows.items()}, np.ones(len(index), dtype=bool)
        return Walked(index, high.numpy(), (high - low).numpy(), error.numpy(), converged, steps, read)

    def value(self, index: np.ndarray, some: np.ndarray, watched: Sequence[Hook] = ()) -> tuple[Tensor, Tensor]:
        """The value of F of these pairs at these places of the line, pairs within places, and the line."""
        batch = self.encoded.batch(np.tile(index, len(some))).to(self.model.device)
        start = replace(self.encoded, ids=tuple(self.begins)).batch(index).input_ids.to(self.model.device)
        begin, end = (self.model.W_E[ids].detach() for ids in (start, batch.input_ids[: len(index)]))
        place = torch.from_numpy(some).to(end)[:, None, None, None]
        line = (begin + place * (end - begin)).flatten(0, 1).requires_grad_(torch.is_grad_enabled())
        with self.model.hooks([(EMBED, lambda x, hook: line), *watched]):
            return self.target.value(self.model, batch, np.tile(index, len(some))), line


def _begins(
    model: Reranker, encoded: Encoded, start: Sequence[Pair] | None, way: Way, max_length: int | None
) -> list[np.ndarray]:
    """The word pieces at the beginning of each pair's line."""
    if start is None:
        padded, name = BASELINES[way.baseline].value, f"its baseline '{way.baseline}'"
        texts = zip(encoded.ids, encoded.segments, strict=True)
        begins = [np.where((segments & padded) != 0, encoded.pad_id, ids) for ids, segments in texts]
    else:
        if len(start) != len(encoded):
            raise MechirError(f"start= has {len(start)} texts for {len(encoded)} pairs: give one for each.")
        other, name = model.encode(start, max_length), "the text it starts from"
        for pair, end, begin in zip(encoded.pairs, encoded.segments, other.segments, strict=True):
            if not np.array_equal(begin, end):
                raise MechirError(f"{pair} and the text it starts from differ in length: fill up with a neutral word.")
        begins = list(other.ids)
    for pair, begin, end in zip(encoded.pairs, begins, encoded.ids, strict=True):
        if np.array_equal(begin, end):
            raise MechirError(f"{pair} equals {name}, so nothing changes on the way: leave it out.")
    return begins


def _watched(names: Sequence[str], add: Callable[[str, Tensor, Tensor], None]) -> list[Hook]:
    """Hooks that hand over each activation with its gradient as soon as the backward pass has it, and then let go."""
    values: dict[str, Tensor] = {}

    def watch(x: Tensor, hook: Any) -> None:
        values[hook.name] = x.detach()
        x.register_hook(lambda gradient: add(hook.name, values.pop(hook.name), gradient))

    return [(name, watch) for name in dict.fromkeys(names)]


def _flow(
    x: Float[Tensor, "node pair ..."], gradient: Float[Tensor, "node pair ..."], rule: str
) -> Float[Tensor, "pair ..."]:
    """Sums gradient times change over the steps, node by node so that nothing large is made.

    The trapezoid gives each gradient half the change before and half the change after it.
    """
    flow, last = torch.zeros_like(x[0]), len(x) - 1
    back, share = (1, 0.5) if rule == "trapezoid" else (0, 1.0)
    for node in range(last + back):
        change = x[min(node + 1, last)] - x[max(node - back, 0)]
        flow.addcmul_(gradient[node], change, value=share)
    return flow
