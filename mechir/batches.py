"""Batches of pairs that the model reads: their positions and weights, the progress over them and their memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, reduce
from operator import or_
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.segments import FIVE, Segment


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs as the model reads them, padded on the right to one length; equal only to itself.

    `segment` holds for every position the value of its `Segment`.
    """

    input_ids: Int[Tensor, "batch pos"]
    token_type_ids: Int[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch pos"]
    segment: Int[Tensor, "batch pos"]
    pairs: tuple[Pair, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        tensors = [item.name for item in fields(self) if item.name != "pairs"]
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    @cached_property
    def present(self) -> Segment:
        """The segments that some position belongs to, as one union."""
        return reduce(or_, map(Segment, self.segment.unique().tolist()), Segment(0))

    def at(self, segment: Segment) -> Bool[Tensor, "batch pos"]:
        """True at the positions that belong to `segment` (a union counts each of its parts)."""
        return (self.segment & segment.value) != 0

    def members(self, segments: Sequence[Segment] = FIVE) -> Bool[Tensor, "batch segment pos"]:
        """`at` of several segments."""
        return torch.stack([self.at(segment) for segment in segments], 1)


def padded(rows: Sequence[np.ndarray], fill: int) -> Int[Tensor, "batch pos"]:
    """Rows of whole numbers as one tensor, filled up on the right to the longest."""
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=fill)


def segment_or_positions(at: str | Segment | int | Iterable[int] | None) -> Segment | tuple[int, ...] | None:
    """Where an intervention acts, from a segment or its name, one position or several, or None for all.

    Raises:
        MechirError: for an unknown segment.
    """
    if at is None or isinstance(at, Segment):
        return at
    if isinstance(at, str):
        return Segment.parse(at)
    return (at,) if isinstance(at, int) else tuple(at)


def positions(at: Segment | tuple[int, ...] | None, batch: Batch) -> Bool[Tensor, "batch pos"] | None:
    """True at these positions of each pair, None for all.

    Raises for a position that none of the pairs has, and for a segment that such pairs never have: CLS in a prompt. A
    single pair may well lack a text or padding.
    """
    if at is None:
        return None
    if isinstance(at, Segment):
        if not at & (batch.present | Segment.QUERY | Segment.DOC | Segment.PAD):
            there = str(batch.present & Segment.ALL).replace("|", ", ")
            raise MechirError(f"These pairs have no {at}; the segments there are {there}: write one of these.")
        return batch.at(at)
    where = torch.zeros_like(batch.attention_mask)
    for position in at:
        if not 0 <= position < where.shape[1]:
            raise MechirError(f"Position {position} is out of range: the longest pair has 0-{where.shape[1] - 1}.")
        where[:, position] = True
    return where & batch.attention_mask


def shares(member: Bool[Tensor, "*axes pos"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*axes pos"]:
    """Weights that average over the marked positions, `shares(member) @ x`; all 0 where none is marked."""
    weights = member.to(dtype)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1)


def for_numpy(x: Tensor) -> Tensor:
    """The values on the CPU, in a number type that NumPy has: bfloat16 becomes float32."""
    x = x.detach().cpu()
    return x.float() if x.dtype == torch.bfloat16 else x


def give_back() -> None:
    """Gives freed memory back to the system, where its allocator can (glibc).

    Batches of many shapes leave holes that later ones do not fit, and a long loop would grow by a half.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


_no_bars = ContextVar("no_bars", default=False)


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars of single calls, where a run shows its own progress."""
    token = _no_bars.set(True)
    try:
        yield
    finally:
        _no_bars.reset(token)


def progress_bar(total: int, show: bool | None) -> Any:
    """A bar over pairs with the time left; where `show` is None, on a terminal and after two seconds."""
    from tqdm.auto import tqdm

    hidden = True if _no_bars.get() else None if show is None else not show
    return tqdm(total=total, unit="pair", disable=hidden, delay=0 if show else 2, leave=False)
