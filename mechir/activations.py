"""Activations of other runs as values: means and samples by segment for ablation, whole runs for patching."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from operator import or_
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch
from mechir.encoding import Encoded
from mechir.errors import MechirError, closest
from mechir.hooks import AnyOf, EveryLayer
from mechir.inputs import as_pairs
from mechir.pair import Pair, pairs_hash
from mechir.recorder import observe
from mechir.reranker import Reranker
from mechir.segments import FIVE, Segment, parts_of
from mechir.sites import Site, as_sites

HOOKS = ("attn.hook_z", "mlp.hook_post", "hook_mlp_out", "hook_attn_out")
"""The hooks of all that can be ablated: heads, neurons, MLPs, attention outputs."""


@dataclass(frozen=True, eq=False)
class Activations(ABC):
    """Activations by hook name; equality, hash and repr are the SHA-256 of the content.

    `recipe` describes their origin, `model` is the fingerprint of the model that they were taken in: another model
    refuses them.
    """

    recipe: str
    values: Mapping[str, Any] = field(repr=False)
    model: str = ""
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256("\0".join([self.recipe, *self._keys()]).encode())
        for name in sorted(self.values):
            digest.update(name.encode())
            value = self.values[name]
            for tensor in value if isinstance(value, tuple) else (value,):
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        object.__setattr__(self, "sha256", digest.hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Activations) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Activations({self.recipe!r}, sha256={self.sha256[:16]!r})"

    def at(self, name: str, batch: Batch, rows: int) -> Float[Tensor, "batch row ..."]:
        """The activations at the first `rows` positions of each pair of the batch (0 at padding).

        Raises for a hook or a pair that these activations lack.
        """
        if name not in self.values:
            held = ", ".join(list(self.values)[:3])
            raise MechirError(f"These activations hold no '{name}' (they hold {held}, ...).")
        return self._at(name, batch, rows)

    @abstractmethod
    def _at(self, name: str, batch: Batch, rows: int) -> Tensor: ...

    @abstractmethod
    def _keys(self) -> Iterable[str]: ...


@dataclass(frozen=True, eq=False, repr=False)
class BySegment(Activations):
    """Activations by segment: `values` [segment, draw, ...] for each of `segments`. Means have one draw.

    With several draws, each position takes one of its segment; the seed, the ids of the pair and the position alone
    decide which, so the same pair is ablated alike in every batch and at every site.
    """

    seed: int = 0
    segments: tuple[Segment, ...] = FIVE

    def _at(self, name: str, batch: Batch, rows: int) -> Float[Tensor, "batch row ..."]:
        held = reduce(or_, self.segments, Segment.PAD)
        if batch.present not in held:
            lacking, parts = batch.present & ~held, ", ".join(map(str, self.segments))
            raise MechirError(
                f"These activations hold no '{lacking}' (they hold {parts}): take them from pairs of the same prompt."
            )
        value = self.values[name].to(batch.segment.device)
        filled = torch.zeros(len(batch), rows, *value.shape[2:], dtype=value.dtype, device=value.device)
        draws = _draws(batch.pairs, rows, value.shape[1], self.seed).to(value.device)
        for number, segment in enumerate(self.segments):
            here = batch.at(segment)[:, :rows]
            filled[here] = value[number][draws[here]]
        return filled

    def _keys(self) -> Iterator[str]:
        yield str(self.seed)
        yield from map(str, () if self.segments == FIVE else self.segments)

    def frame(self) -> pd.DataFrame:
        """As a frame to store: `recipe`, `model`, `hook`, `shape` of one draw of a segment, `values` (a list).

        Those of a prompt have a column `segments` too.
        """
        rows = [
            (self.recipe, self.model, hook, list(value.shape[2:]), value.flatten().tolist())
            for hook, value in self.values.items()
        ]
        frame = pd.DataFrame(rows, columns=["recipe", "model", "hook", "shape", "values"])
        return frame if self.segments == FIVE else frame.assign(segments=" ".join(map(str, self.segments)))

    @classmethod
    def of_frame(cls, frame: pd.DataFrame) -> BySegment:
        """The activations of a stored frame."""
        segments: tuple[Segment, ...] = FIVE
        if "segments" in frame:
            segments = tuple(map(Segment.parse, str(frame["segments"].iloc[0]).split()))
        shaped = {
            hook: torch.tensor(list(values)).reshape(len(segments), -1, *shape)
            for hook, shape, values in zip(frame["hook"], frame["shape"], frame["values"], strict=True)
        }
        return cls(str(frame["recipe"].iloc[0]), shaped, str(frame["model"].iloc[0]), segments=segments)


@dataclass(frozen=True, eq=False, repr=False)
class ByPair(Activations):
    """Whole runs: `values` has a tensor [pos, ...] for every pair of `ids`, without padding.

    A pattern is [head, reader, source].
    """

    ids: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _places(self) -> dict[tuple[str, str], int]:
        return {ids: place for place, ids in enumerate(self.ids)}

    def _at(self, name: str, batch: Batch, rows: int) -> Float[Tensor, "batch row ..."]:
        lengths = batch.attention_mask.sum(1).tolist()
        values = [self._whole(name, pair, length) for pair, length in zip(batch.pairs, lengths, strict=True)]
        pattern, first = name.endswith("pattern"), values[0]
        shape = (len(first), rows, batch.input_ids.shape[1]) if pattern else (rows, *first.shape[1:])
        filled = torch.zeros(len(batch), *shape, dtype=first.dtype, device=batch.segment.device)
        for row, value in zip(filled, values, strict=True):
            part = value[:, :rows] if pattern else value[:rows]
            row[tuple(map(slice, part.shape))] = part
        return filled

    def _whole(self, name: str, pair: Pair, length: int) -> Tensor:
        place = self._places.get((pair.query_id, pair.doc_id))
        if place is None:
            raise MechirError(f"These activations are of other pairs: they hold none of {pair}.")
        value: Tensor = self.values[name][place]
        held = value.shape[-1] if name.endswith("pattern") else len(value)
        if held != length:
            raise MechirError(
                f"These activations hold {held} positions of {pair}, which has {length} here: align the texts first."
            )
        return value

    def _keys(self) -> Iterator[str]:
        return (f"{query_id}\t{doc_id}" for query_id, doc_id in self.ids)


def _draws(pairs: Sequence[Pair], rows: int, n: int, seed: int) -> Tensor:
    if n == 1:
        return torch.zeros(len(pairs), rows, dtype=torch.int64)

    def drawn(pair: Pair) -> np.ndarray:
        key = hashlib.sha256(f"{seed}\0{pair.query_id}\0{pair.doc_id}".encode()).digest()
        return np.random.default_rng(int.from_bytes(key[:8])).integers(n, size=rows)

    return torch.from_numpy(np.stack([drawn(pair) for pair in pairs]))


@torch.no_grad()
def record(
    model: Reranker, pairs: Any, sites: Site | str | Iterable[Site | str], *, max_length: int | None = None
) -> Activations:
    """The activations of these sites over whole runs, for `Patch`: one tensor per pair, all heads or neurons of a hook.

    All stay in memory, 4 bytes a number: `patching.patch` holds one batch at a time instead.

    Args:
        model: a `HookedEncoder`.
        pairs: the pairs to run; a patch finds its pair by the ids, so no two may have the same.
        sites: one or several, e.g. `Head(8, 1)`, "h8.1.q", "resid3".
        max_length: as in `model.score`.

    Raises:
        MechirError: for a site that this model lacks, or two pairs with the same ids.
    """
    pairs = as_pairs(pairs)
    names = {site.hook for site in as_sites(sites)}
    ids = tuple((pair.query_id, pair.doc_id) for pair in pairs)
    if len(set(ids)) < len(ids):
        twice = next(pair for pair in pairs if ids.count((pair.query_id, pair.doc_id)) > 1)
        raise MechirError(
            f"Pair {twice.query_id}/{twice.doc_id} is there twice: a patch finds activations by the ids of a pair."
        )
    by_pair: dict[str, dict[int, Tensor]] = {name: {} for name in names}
    for index, batch in model.batches(pairs, max_length=max_length):
        for name, rows in observe(model, batch, names, partial(_unpadded, batch), head_row=False)[1].items():
            by_pair[name] |= zip(index.tolist(), rows, strict=True)
    values = {name: tuple(rows[place] for place in range(len(pairs))) for name, rows in by_pair.items()}
    return ByPair(_recipe(", ".join(sorted(names)), model, pairs), values, model.fingerprint, ids)


def _unpadded(batch: Batch, name: str, x: Float[Tensor, "batch ..."]) -> list[Tensor]:
    """Each pair's activation without padding, on the CPU."""
    lengths = batch.attention_mask.sum(1).tolist()
    pattern = name.endswith("pattern")
    return [(row[:, :n, :n] if pattern else row[:n]).cpu().clone() for row, n in zip(x, lengths, strict=True)]


def _known(hooks: Sequence[str]) -> tuple[str, ...]:
    """The hooks as they are; raises for one that is not among `HOOKS`."""
    for hook in hooks:
        if hook not in HOOKS:
            raise MechirError(
                f"Unknown hook '{hook}': the closest of {', '.join(HOOKS)} is {closest(hook, HOOKS, n=1)}."
            )
    return tuple(hooks)


@torch.no_grad()
def means(model: Reranker, pairs: Any, *, by: str = "segment", hooks: Sequence[str] = HOOKS) -> BySegment:
    """The mean activation of every head, neuron, MLP and attention output over the positions of all pairs.

    Args:
        model: a `HookedEncoder`.
        pairs: the pairs to average over; every position counts once, padding never.
        by: "segment" keeps one mean per segment (a head's mean at CLS differs from that at document tokens), "all"
            takes one over all positions. Sums run in float64.
        hooks: which of `HOOKS`.
    """
    pairs = as_pairs(pairs)
    if by not in ("segment", "all"):
        raise MechirError(f"Cannot average by '{by}': write by='segment' or by='all'.")
    suffixes = _known(hooks)
    sums: dict[str, Tensor] = {}
    encoded = model.encode(pairs)
    segments = _segments(encoded)
    counts = torch.zeros(len(segments), dtype=torch.float64)
    for _, batch in model.batches(encoded, max_tokens=4096):
        counts += batch.members(segments).sum((0, 2)).cpu()
        total = partial(_totals, batch.members(segments).double())
        for name, x in observe(model, batch, _in_layers(suffixes), total, head_row=False)[1].items():
            sums[name] = sums.get(name, torch.zeros_like(x)) + x
    if by == "all":
        counts = counts.sum().expand(len(segments))
        sums = {name: total.sum(0, keepdim=True).expand_as(total) for name, total in sums.items()}
    values = {
        name: (total / counts.view(-1, *[1] * (total.ndim - 1)))[:, None].to(model.dtype)
        for name, total in sums.items()
    }
    return BySegment(_recipe(f"means by {by}", model, pairs), values, model.fingerprint, segments=segments)


def _segments(encoded: Encoded) -> tuple[Segment, ...]:
    """The segments that activations of these pairs are kept by."""
    return parts_of(reduce(or_, map(Segment, np.unique(np.concatenate(encoded.segments)).tolist())))


def _totals(member: Float[Tensor, "batch segment pos"], _: str, x: Float[Tensor, "batch pos ..."]) -> Tensor:
    """Sums over the positions of each segment, in float64, on the CPU."""
    return torch.einsum("bsp,bp...->s...", member, x.double()).cpu()


@torch.no_grad()
def samples(model: Reranker, pairs: Any, *, draws: int = 64, seed: int = 0, hooks: Sequence[str] = HOOKS) -> BySegment:
    """Activations of `draws` positions of each segment, from pairs drawn at random, for resample ablation.

    One position per segment is taken from each drawn pair (with replacement), the same for every site. `hooks`: which
    of `HOOKS`.
    """
    suffixes = _known(hooks)
    pairs = as_pairs(pairs)
    rng = np.random.default_rng(seed)
    drawn = [pairs[i] for i in rng.integers(len(pairs), size=draws)]
    rows_of: dict[str, list[Tensor]] = {}
    segments = _segments(model.encode(drawn))
    for pair in drawn:
        batch = model.batch(pair)
        where = [int(rng.choice(batch.at(segment)[0].nonzero().flatten().cpu().numpy())) for segment in segments]
        for name, x in observe(model, batch, _in_layers(suffixes), head_row=False)[1].items():
            rows_of.setdefault(name, []).append(x[0, where].clone())
    values = {name: torch.stack(rows, 1) for name, rows in rows_of.items()}
    return BySegment(_recipe(f"{draws} samples by segment", model, pairs), values, model.fingerprint, seed, segments)


def _in_layers(hooks: Sequence[str]) -> AnyOf:
    """A filter on names: these hooks in every layer."""
    return AnyOf(tuple(map(EveryLayer, hooks)))


def _recipe(content: str, model: Reranker, pairs: Sequence[Pair]) -> str:
    return f"{content} of {len(pairs)} pairs {pairs_hash(pairs)[:12]} in model {model.fingerprint[:12]}"
