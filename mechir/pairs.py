"""Pairs of query and document, and the batches of them that the model reads."""

from __future__ import annotations

import ctypes
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechir.errors import MechirError
from mechir.segments import FIVE, Segment

Item = TypeVar("Item", bound=Any)
"""Whatever has a `query_id`: a pair or a contrast."""
EASY = -1
"""The grade of an easy negative: drawn at random from the collection, unjudged for that query."""
REAL = 0.9
"""The least share of a batch that is text and no padding: a longer batch is not worth its arithmetic."""
SHOWN = 60
"""Of a text, characters that a pair shows of itself."""
TRIM = 32
"""After so many batches freed memory is given back to the system."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a document with their ids; `grade` is the judgment, -1 an easy negative, None unjudged."""

    query: str
    document: str
    query_id: str = "q"
    doc_id: str = "d"
    grade: int | None = None

    def __str__(self) -> str:
        return f"pair {self.query_id}/{self.doc_id}"

    def __repr__(self) -> str:
        """Both texts to their first `SHOWN` characters, so that a list of pairs can be looked at."""
        texts = [text if len(text) <= SHOWN else f"{text[:SHOWN]}\u2026" for text in (self.query, self.document)]
        return f"Pair({self.query_id!r}, {self.doc_id!r}, grade {self.grade}: {texts[0]!r} | {texts[1]!r})"


def pairs_hash(pairs: Iterable[Pair]) -> str:
    """SHA-256 over ids, texts and grades, in order: what was really read."""
    digest = hashlib.sha256()
    for pair in pairs:
        for part in (pair.query_id, pair.query, pair.doc_id, pair.document, str(pair.grade)):
            digest.update(part.encode())
            digest.update(b"\0")
    return digest.hexdigest()


def first_of_each(pairs: Iterable[Pair], n: int, *, by_grade: bool = False) -> list[Pair]:
    """The first n pairs of every query, or of every query and grade."""
    seen = Counter[tuple[str, int | None]]()
    kept = []
    for pair in pairs:
        key = pair.query_id, pair.grade if by_grade else None
        seen[key] += 1
        kept += [pair] if seen[key] <= n else []
    return kept


def split_queries(material: Sequence[Item], every: int) -> tuple[list[Item], list[Item]]:
    """The pairs or contrasts of one query in `every`, and those of the others: to find something, and to test it.

    Raises:
        MechirError: when there is one query alone.
    """
    queries = list(dict.fromkeys(one.query_id for one in material))
    if len(queries) < 2:
        raise MechirError("One query cannot both find the heads and test them: take more, or name the heads.")
    chosen = set(queries[::every])
    return [one for one in material if one.query_id in chosen], [one for one in material if one.query_id not in chosen]


@dataclass(frozen=True, eq=False)
class Batch:
    """What the model reads, padded on the right to one length; equal only to itself.

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
        return Batch(
            self.input_ids.to(device),
            self.token_type_ids.to(device),
            self.attention_mask.to(device),
            self.segment.to(device),
            self.pairs,
        )

    def at(self, segment: Segment) -> Bool[Tensor, "batch pos"]:
        """True at the positions that belong to `segment` (a union counts each of its parts)."""
        return (self.segment & segment.value) != 0

    def members(self, segments: Sequence[Segment] = FIVE) -> Bool[Tensor, "batch segment pos"]:
        """`at` of several segments."""
        return torch.stack([self.at(segment) for segment in segments], 1)


def shares(member: Bool[Tensor, "*axes pos"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*axes pos"]:
    """Weights that average over the positions marked: `shares(member) @ x`; all 0 where none is."""
    weights = member.to(dtype)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Pairs as token ids, not padded; `truncated` counts the documents that were cut to fit."""

    pairs: tuple[Pair, ...]
    ids: tuple[np.ndarray, ...] = field(repr=False)
    types: tuple[np.ndarray, ...] = field(repr=False)
    segments: tuple[np.ndarray, ...] = field(repr=False)
    truncated: int
    pad_id: int
    pad_type: int = 0

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def lengths(self) -> np.ndarray:
        """Word pieces of each pair, special tokens included."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def take(self, index: np.ndarray) -> Encoded:
        """Some of the pairs."""
        some = ([rows[k] for k in index] for rows in (self.pairs, self.ids, self.types, self.segments))
        pairs, ids, types, segments = map(tuple, some)
        return replace(self, pairs=pairs, ids=ids, types=types, segments=segments)

    def batch(self, index: Sequence[int] | np.ndarray) -> Batch:
        """The pairs at `index`, padded to the longest of them."""
        width = max(len(self.ids[i]) for i in index)

        def padded(rows: tuple[np.ndarray, ...], fill: int) -> Tensor:
            out = np.full((len(index), width), fill, dtype=np.int64)
            for row, i in enumerate(index):
                out[row, : len(rows[i])] = rows[i]
            return torch.from_numpy(out)

        segment = padded(self.segments, Segment.PAD.value)
        return Batch(
            input_ids=padded(self.ids, self.pad_id),
            token_type_ids=padded(self.types, self.pad_type),
            attention_mask=segment != Segment.PAD.value,
            segment=segment,
            pairs=tuple(self.pairs[i] for i in index),
        )

    def buckets(self, max_rows: int = 64, max_tokens: int = 4096) -> Iterator[tuple[np.ndarray, Batch]]:
        """Batches of pairs of like length, longest first, with the index of each row among the pairs.

        The longest come first so that a lack of memory shows at once and the estimate of the time left is high
        rather than low.
        """
        order = np.argsort(-self.lengths, kind="stable")
        sorted_lengths, start, batches = self.lengths[order], 0, 0
        while start < len(order):
            width = sorted_lengths[start]
            lengths = sorted_lengths[start : start + max(1, min(max_rows, max_tokens // width))]
            real = lengths.cumsum() / (width * np.arange(1, len(lengths) + 1))
            index = order[start : start + int((real >= REAL).sum())]
            yield index, self.batch(index)
            start, batches = start + len(index), batches + 1
            if batches % TRIM == 0:
                give_back()


def give_back() -> None:
    """Gives freed memory back to the system, where its allocator can (glibc).

    Batches of ever other shapes leave holes that later ones do not fit, and a long loop would grow by a half.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def encode(tokenizer: Any, pairs: Sequence[Pair], max_length: int) -> Encoded:
    """The pairs as the model reads them: `[CLS] query [SEP] document [SEP]`, documents cut to `max_length`.

    Queries are never truncated. `tokenizer` is a fast tokenizer of `transformers`.

    Raises:
        MechirError: for an empty query or document, or a query that leaves no room for a document.
    """
    for pair in pairs:
        if not pair.query.strip():
            raise MechirError(f"Query '{pair.query_id}' is empty: give it a text or leave it out.")
        if not pair.document.strip():
            raise MechirError(f"Document '{pair.doc_id}' (query '{pair.query_id}') is empty: leave it out.")
    if not pairs:
        raise MechirError("There are no pairs to encode: the pool is empty.")
    _refuse_long_queries(tokenizer, pairs, max_length)
    read = tokenizer(
        [pair.query for pair in pairs],
        [pair.document for pair in pairs],
        truncation="only_second",
        max_length=max_length,
        return_token_type_ids=True,
    )
    encodings = read.encodings
    segments = tuple(_segments(encoding, pair) for encoding, pair in zip(encodings, pairs, strict=True))
    return Encoded(
        pairs=tuple(pairs),
        ids=tuple(np.asarray(ids, dtype=np.int64) for ids in read["input_ids"]),
        types=tuple(np.asarray(types, dtype=np.int64) for types in read["token_type_ids"]),
        segments=segments,
        truncated=sum(bool(encoding.overflowing) for encoding in encodings),
        pad_id=tokenizer.pad_token_id,
        pad_type=tokenizer.pad_token_type_id,
    )


def _refuse_long_queries(tokenizer: Any, pairs: Sequence[Pair], max_length: int) -> None:
    special = tokenizer.num_special_tokens_to_add(pair=True)
    queries = {pair.query: pair.query_id for pair in pairs}
    lengths = [len(ids) for ids in tokenizer(list(queries), add_special_tokens=False)["input_ids"]]
    for query_id, length in zip(queries.values(), lengths, strict=True):
        if length + special >= max_length:
            raise MechirError(
                f"Query '{query_id}' has {length} word pieces and alone fills the model, which reads {max_length} "
                f"with {special} special ones: queries are never truncated, so leave it out."
            )


def _segments(encoding: Any, pair: Pair) -> np.ndarray:
    """The segment of each position, from the tokenizer's own account of which text each token came from."""
    text = np.array([-1 if i is None else i for i in encoding.sequence_ids], dtype=np.int64)
    query, document = np.flatnonzero(text == 0), np.flatnonzero(text == 1)
    for part, where in (("Query", query), ("Document", document)):
        if not len(where):
            named = pair.query_id if part == "Query" else pair.doc_id
            raise MechirError(f"{part} '{named}' holds no word piece of this tokenizer: leave it out.")
    segment = np.full(len(text), Segment.SEP2.value, dtype=np.int64)
    segment[: query[0]] = Segment.CLS.value
    segment[query[0] : query[-1] + 1] = Segment.QUERY.value
    segment[query[-1] + 1 : document[0]] = Segment.SEP1.value
    segment[document[0] : document[-1] + 1] = Segment.DOC.value
    return segment


def progress_bar(total: int, show: bool | None) -> Any:
    """A bar over pairs with the time left; where `show` is None, on a terminal and after two seconds."""
    from tqdm.auto import tqdm

    hidden = None if show is None else not show
    return tqdm(total=total, unit="pair", disable=hidden, delay=0 if show else 2, leave=False)
