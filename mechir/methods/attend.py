"""Why a head attends there: its attention score, split into what wrote its queries and what wrote its keys.

The score before the softmax, q.k / sqrt(d), is a product of two sums: over what wrote the query at the reader, and over
what wrote the key at the source (`attend_writers`). So it is the sum of a table of writers by writers, exactly: the
embedding, heads and MLPs of the layers before, and the biases by name. Means over positions change nothing in that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechir.batches import Batch, for_numpy, shares
from mechir.contrasts import ROLES, Contrast, EncodedContrasts, encode_contrasts
from mechir.errors import MechirError
from mechir.inputs import as_pairs
from mechir.methods.attend_split import AttentionSplit
from mechir.methods.attend_writers import Record, precise, writers, written
from mechir.methods.circuit_runs import as_contrasts
from mechir.methods.edge_graph import Graph
from mechir.model_sites import heads_of
from mechir.pair import Pair
from mechir.reranker import Weights, needs
from mechir.segments import FIVE, Segment
from mechir.sites import Head, Site, as_sites

OF = ("difference", "base", "donor")
HELD = 600_000_000
"""Bytes that the record of a run may take: a batch is cut accordingly."""


@torch.no_grad()
def attend(
    model: Weights,
    contrasts: Any,
    head: Any,
    reader: str | Segment = "query",
    source: str | Segment = "doc",
    *,
    relative: bool = True,
    of: str | None = None,
    max_rows: int = 64,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> AttentionSplit:
    """The attention score of a head, split into what wrote its queries and what wrote its keys.

    For each pair the mean of q_r . k_s / sqrt(d) over the readers r and the sources s. The softmax takes no notice of
    what is the same for all sources of a reader, so by default the mean over all of them is subtracted: what is split
    is why the head attends there rather than elsewhere,

        mean over r of (mean over s in source of q_r . k_s - mean over all s of q_r . k_s) / sqrt(d)

    A part is (W_Q x_u) . (W_K x_w) / sqrt(d), with x_u what writer u put into the stream, carried through the
    LayerNorms at their standard deviations in this run. The parts add up exactly. They are no effects: without a
    writer the LayerNorms would divide by something else, and the softmax of scores is not linear; see `edges` for what
    a writer does to the score of the pair. In the last layer only what CLS reads matters to the model.

    Args:
        model: a `HookedEncoder`.
        contrasts: pairs, whose attention scores are split; or aligned contrasts, as `Contrast`s or (base, donor) pairs.
        head: one head, "h8.1".
        reader: where queries are read: segments ("query", "cls|query"), and of contrasts also roles ("query match").
        source: where keys are read, likewise ("doc", "injected", "doc match|doc other").
        relative: subtract the mean over all sources of each reader; the biases of keys then drop out.
        of: of contrasts, what is split: the "difference" of scores, base less donor (the default), that of the "base",
            or that of the "donor".
        max_rows: the most pairs computed together.
        max_tokens: the most word pieces computed together; by default `model.max_tokens`, fewer where the record of a
            run would take more than 0.6 GB.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Raises:
        MechirError: for anything but one whole head of this model, an unknown segment or role, roles of plain pairs,
            contrasts that are not aligned, no pair with a position of both, and `relative` where the source is
            everything that is read.
    """
    needs(model, "attend", Weights, norm="post", positions="absolute", causal=False, window=None)
    if not isinstance(relative, bool):
        raise MechirError(f"relative={relative!r:.40} is neither: write True or False.")
    site, given = _whole_head(model, head), _material(contrasts)
    of = _side(of, given)
    split = _Split(model, site, _place("reader", reader, given), _place("source", source, given), relative, of)
    encoded = _encoded(model, given, max_length)
    there = split.rows(encoded)
    names = writers(Graph.of(model), site)
    q_from, k_from = (*names, "b_Q"), names if relative else (*names, "b_K")
    values = np.empty((len(there), len(q_from), len(k_from)), dtype=np.float32)
    score = np.empty(len(there), dtype=np.float32)
    fit = max(1, HELD // (8 * model.cfg.d_model * (site.layer + 1)))
    limit = min(max_tokens or model.max_tokens, fit)
    batches = _take(encoded, there).batches(model, max_rows=max_rows, max_tokens=limit, progress=progress)
    for batch in batches:
        parts, whole = split.batch({"base": batch.base, "donor": batch.donor}, batch.roles)
        values[batch.rows], score[batch.rows] = for_numpy(parts).numpy(), for_numpy(whole).numpy()
    items, out = (tuple(given[k] for k in some) for some in (there, np.setdiff1d(np.arange(len(given)), there)))
    named = str(split.reader), str(split.source)
    return AttentionSplit(site, *named, of, relative, items, q_from, k_from, values, score, out)


@dataclass(frozen=True)
class _Place:
    """Positions by segments and roles; prints as it was written."""

    name: str
    segments: Segment
    roles: tuple[int, ...]

    def at(self, segment: Int[Tensor, "*axes pos"], roles: Int[Tensor, "*axes pos"]) -> Bool[Tensor, "*axes pos"]:
        """True where a position belongs to one of the segments or roles."""
        there = (segment & self.segments.value) != 0
        for role in self.roles:
            there = there | (roles == role)
        return there

    def __str__(self) -> str:
        return self.name


def _place(side: str, name: str | Segment, given: Sequence[Pair | Contrast]) -> _Place:
    """The positions that a caller names for one side."""
    segments, roles = Segment(0), []
    paired = bool(given) and isinstance(given[0], Contrast)
    for word in (part.strip() for part in str(name).split("|")):
        if word in ROLES and word != "cls":
            if not paired:
                raise MechirError(
                    f"{side}='{word}' is a role, which positions of contrasts have, and these are pairs: give "
                    f"contrasts, or write a segment ({', '.join(map(str, FIVE))})."
                )
            roles.append(ROLES.index(word))
            continue
        try:
            segments |= Segment.parse(word)
        except MechirError:
            segments |= Segment.PAD  # no position that is read
        if Segment.PAD in segments:
            raise MechirError(
                f"Unknown {side}='{word}': write a segment ({', '.join(map(str, FIVE))}, all), of contrasts also a "
                f"role ({', '.join(ROLES[1:])}), several with '|'."
            )
    return _Place(str(name), segments, tuple(roles))


@dataclass(frozen=True, eq=False)
class _Split:
    """What one call splits."""

    model: Weights
    head: Head
    reader: _Place
    source: _Place
    relative: bool
    of: str

    def rows(self, encoded: EncodedContrasts) -> Int[np.ndarray, "row"]:
        """The rows that have positions of the reader and of the source."""
        rows = []
        for row, (segments, roles) in enumerate(zip(encoded.base.segments, encoded.roles, strict=True)):
            at = torch.from_numpy(segments), torch.from_numpy(roles)
            reader, source = self.reader.at(*at), self.source.at(*at)
            if self.relative and bool(source.all()):
                raise MechirError(
                    f"source='{self.source}' is everything that is read, and relative to its own mean every score is "
                    "0: name a part of it, or write relative=False."
                )
            if bool(reader.any()) and bool(source.any()):
                rows.append(row)
        if not rows:
            raise MechirError(
                f"None of {len(encoded.contrasts)} pairs has positions of both reader='{self.reader}' and "
                f"source='{self.source}': write other segments or roles."
            )
        return np.array(rows)

    def batch(
        self, sides: dict[str, Batch], roles: Int[Tensor, "batch pos"]
    ) -> tuple[Float[Tensor, "batch q_from k_from"], Float[Tensor, "batch"]]:
        """The parts of the score of each pair, and the score."""
        if self.of == "difference":
            (parts, score), (donor, donor_score) = (self.table(sides[name], roles) for name in ("base", "donor"))
            return parts - donor, score - donor_score
        return self.table(sides[self.of], roles)

    def table(
        self, batch: Batch, roles: Int[Tensor, "batch pos"]
    ) -> tuple[Float[Tensor, "batch q_from k_from"], Float[Tensor, "batch"]]:
        """The parts and the score on one text of each pair."""
        record, of = Record.of(self.model, batch, self.head.layer), self.model.parts.layers[self.head.layer]
        dtype = record.stream.dtype
        reader, source = (shares(place.at(batch.segment, roles), dtype) for place in (self.reader, self.source))
        if self.relative:
            source = source - shares(batch.attention_mask, dtype)
        q, query = self._port(record, of.q, reader, True)
        k, key = self._port(record, of.k, source, not self.relative)
        root = math.sqrt(q.shape[-1])
        return q @ k.transpose(1, 2) / root, (query * key).sum(-1) / root

    def _port(
        self, record: Record, linear: nn.Linear, share: Float[Tensor, "batch pos"], biased: bool
    ) -> tuple[Float[Tensor, "batch writer d_head"], Float[Tensor, "batch d_head"]]:
        """The queries or keys summed over positions: by what wrote them, and from the stream itself."""
        n = self.model.cfg.n_heads
        weight, bias = (precise(x).unflatten(0, (n, -1))[self.head.head] for x in (linear.weight, linear.bias))
        whole = torch.einsum("bp,bpm->bm", share, record.stream) @ weight.T
        parts = written(self.model, record, self.head.layer, weight, share)
        if not biased:  # a bias of keys has the same score at every source
            return parts, whole
        return torch.cat([parts, bias.expand(len(share), 1, -1)], 1), whole + bias


def _whole_head(model: Weights, head: Any) -> Head:
    """One head of the model."""
    if not isinstance(head, str | Site | Iterable):
        raise MechirError(f"head={head!r:.40} is no head: write e.g. 'h8.1'.")
    sites = as_sites(head)
    if len(sites) != 1:
        raise MechirError(f"mi.attend splits the scores of one head, and you gave {len(sites)}: write e.g. 'h8.1'.")
    (site,) = heads_of(model, sites)
    if site.part != "z":
        raise MechirError(
            f"'{site}' is a part of a head, and an attention score belongs to queries and keys together: write "
            f"'{Head(site.layer, site.head)}'."
        )
    return site


def _material(given: Any) -> Sequence[Any]:
    """The pairs, or the contrasts, as values."""
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(item, Pair) for item in given):
        raise MechirError(
            "A tuple of two pairs may be one contrast or two pairs: write [(base, donor)] or [pair, pair]."
        )
    listed = [given] if isinstance(given, Contrast) else given
    if isinstance(listed, Iterator | pd.Series | np.ndarray):
        listed = [tuple(item) if isinstance(item, np.ndarray) else item for item in listed]
    if isinstance(listed, Sequence) and any(_is_contrast(item) for item in listed):
        return as_contrasts(listed)
    return as_pairs(listed)


def _is_contrast(item: Any) -> bool:
    return isinstance(item, Contrast) or (isinstance(item, tuple) and any(isinstance(side, Pair) for side in item))


def _side(of: str | None, given: Sequence[Pair | Contrast]) -> str:
    """What is split: of pairs their own scores."""
    if given and isinstance(given[0], Contrast):
        if of is not None and of not in OF:
            raise MechirError(f"Unknown of='{of}': write {' or '.join(map(repr, OF))}.")
        return of or OF[0]
    if of is not None:
        raise MechirError(f"of='{of}' belongs to contrasts, and these are pairs: leave it out.")
    return "base"


def _encoded(model: Weights, given: Sequence[Any], max_length: int | None) -> EncodedContrasts:
    """The material as contrasts; a pair is one with itself, without roles."""
    if given and isinstance(given[0], Contrast):
        return encode_contrasts(model, given, max_length)
    encoded = model.encode(given, max_length)
    roles = tuple(np.full(int(length), -1) for length in encoded.lengths)
    return EncodedContrasts(tuple(Contrast(pair, pair) for pair in given), encoded, encoded, roles)


def _take(encoded: EncodedContrasts, rows: Int[np.ndarray, "row"]) -> EncodedContrasts:
    """The contrasts of some rows."""
    contrasts, roles = (tuple(of[row] for row in rows) for of in (encoded.contrasts, encoded.roles))
    return EncodedContrasts(contrasts, encoded.base.take(rows), encoded.donor.take(rows), roles)
