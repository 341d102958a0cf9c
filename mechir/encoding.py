"""Pairs as token ids: encoding, the reasons why a pair cannot be read, and batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from mechir.batches import Batch, give_back, padded
from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.segments import Segment, parts_of

REAL = 0.9
"""The least share of a batch that is text and no padding: a longer batch is not worth its arithmetic."""
TRIM = 32
"""The number of batches after which freed memory is given back to the system."""


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
    def parts(self) -> tuple[Segment, ...]:
        """The parts that the pairs consist of: five, or those of a prompt."""
        values = np.unique(np.concatenate(self.segments)).tolist()
        return parts_of(reduce(or_, map(Segment, values)))

    @property
    def lengths(self) -> np.ndarray:
        """Word pieces of each pair, special tokens included."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def take(self, index: np.ndarray) -> Encoded:
        """The pairs at `index`."""
        names = ("pairs", "ids", "types", "segments")
        selected: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in index) for name in names}
        return replace(self, **selected)

    def batch(self, index: Sequence[int] | np.ndarray) -> Batch:
        """The pairs at `index`, padded to the longest of them."""
        segment = padded([self.segments[i] for i in index], Segment.PAD.value)
        return Batch(
            input_ids=padded([self.ids[i] for i in index], self.pad_id),
            token_type_ids=padded([self.types[i] for i in index], self.pad_type),
            attention_mask=segment != Segment.PAD.value,
            segment=segment,
            pairs=tuple(self.pairs[i] for i in index),
        )

    def buckets(self, max_rows: int = 64, max_tokens: int = 4096) -> Iterator[tuple[np.ndarray, Batch]]:
        """Batches of pairs of similar length, with the index of each row among the pairs.

        The longest come first, so that a lack of memory shows at once and the estimate of the time left is not too low.
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


class Unreadable(NamedTuple):
    """The reason why a pair cannot be read, in a few words and as a sentence that names the pair."""

    reason: str
    sentence: str


TOO_LONG, CUT_QUERY = "query too long for the model", "query would be cut"
NO_TEXT, EMPTY, NO_PIECE = "not a text", "empty text", "no word piece"
REASONS = (TOO_LONG, CUT_QUERY, NO_TEXT, EMPTY, NO_PIECE)


class Written(NamedTuple):
    """A pair as token ids: ids, types, and the segment of each id, 0 where a tokenizer says of none of the two texts.

    `cut` is whether something was cut off.
    """

    ids: np.ndarray
    types: np.ndarray
    segments: np.ndarray
    cut: bool


@runtime_checkable
class Writer(Protocol):
    """What writes the pairs of a model as token ids, where that is more than its tokenizer: see `mechir.templates`."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, as Hugging Face loads it."""

    def write(self, pairs: Sequence[Pair], max_length: int) -> list[Written | Unreadable]:
        """Every pair as it is written, or the reason why it cannot be read; queries are never cut."""

    def before(self, segment: Segment) -> str:
        """The literal text right before the query or the document, on which its first word pieces may depend."""


@dataclass(frozen=True)
class TwoTexts:
    """Writes a query and a document as the two texts of a tokenizer: `[CLS] query [SEP] document [SEP]`."""

    tokenizer: Any

    def write(self, pairs: Sequence[Pair], max_length: int) -> list[Written | Unreadable]:
        """The pairs as `write` gives them; where query and document are too long, see `encode_readable`."""
        queries = list(dict.fromkeys(pair.query for pair in pairs))
        ids = self.tokenizer(queries, add_special_tokens=False, verbose=False)["input_ids"] if queries else []
        lengths = dict(zip(queries, map(len, ids), strict=True))
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        fitting = [pair for pair in pairs if lengths[pair.query] + special < max_length]
        rows = iter(write(self.tokenizer, fitting, max_length))
        return [
            too_long(pair, lengths[pair.query], f"{special} special ones", max_length)
            if lengths[pair.query] + special >= max_length
            else _completed(pair, next(rows), lengths[pair.query], max_length)
            for pair in pairs
        ]

    def before(self, segment: Segment) -> str:
        """Nothing: both texts begin by themselves."""
        return ""


def writer_of(given: Any) -> Writer:
    """The writer that was given, or that of the two texts of a tokenizer."""
    return given if isinstance(given, Writer) else TwoTexts(given)


def encode(writer: Any, pairs: Sequence[Pair], max_length: int) -> Encoded:
    """The pairs as a model reads them: Hugging Face's `[CLS] query [SEP] document [SEP]`, or the prompt of a `Writer`.

    Documents are cut to fit and queries never; `max_length` includes special word pieces. Token types are the
    tokenizer's own, and 0 everywhere where it writes none.

    Args:
        writer: a tokenizer, or a `Writer` such as `model.writer`.
        pairs: the pairs.
        max_length: the most word pieces of a pair.

    Raises:
        MechirError: for no pairs, and for the first pair that cannot be read (see `encode_readable`).
    """
    if not pairs:
        raise MechirError("There are no pairs to encode: the pool is empty.")
    encoded, unreadable = encode_readable(writer, pairs, max_length)
    if unreadable:
        raise MechirError(unreadable[min(unreadable)].sentence)
    return encoded


def encode_readable(writer: Any, pairs: Sequence[Pair], max_length: int) -> tuple[Encoded, dict[int, Unreadable]]:
    """The readable pairs, encoded, and the reason for every other pair, by its place among all.

    Not readable are pairs with a text or an id that is no text (None, NaN, half a surrogate pair), an empty text, one
    without a word piece, a query that leaves no room for a document, and a query that would have to be cut: where query
    and document together are too long, Hugging Face (`truncation=True`, the longest first) cuts a query that has more
    than half of the room.
    """
    known = writer_of(writer)
    unreadable = {place: why for place, pair in enumerate(pairs) if (why := _not_text(pair))}
    places = [place for place in range(len(pairs)) if place not in unreadable]
    rows: list[tuple[Pair, Written]] = []
    for place, found in zip(places, known.write([pairs[place] for place in places], max_length), strict=True):
        why = found if isinstance(found, Unreadable) else _without_piece(pairs[place], found)
        if why:
            unreadable[place] = why
        elif isinstance(found, Written):
            rows.append((pairs[place], found))
    encoded = Encoded(
        pairs=tuple(pair for pair, _ in rows),
        ids=tuple(written.ids for _, written in rows),
        types=tuple(written.types for _, written in rows),
        segments=tuple(written.segments for _, written in rows),
        truncated=sum(written.cut for _, written in rows),
        pad_id=known.tokenizer.pad_token_id,
        pad_type=known.tokenizer.pad_token_type_id,
    )
    return encoded, unreadable


def write(tokenizer: Any, pairs: Sequence[Pair], max_length: int) -> list[Written]:
    """The pairs as Hugging Face's users write them: `tokenizer(query, document, truncation=True)`."""
    if not pairs:
        return []
    texts = [[pair.query for pair in pairs], [pair.document for pair in pairs]]
    read = tokenizer(*texts, truncation=True, max_length=max_length, verbose=False)
    typed = "token_type_ids" in tokenizer.model_input_names
    types = read["token_type_ids"] if typed else [[0] * len(ids) for ids in read["input_ids"]]
    if read.encodings is None:
        origins = _template_origins(tokenizer, texts, read["input_ids"])
    else:
        sides = ([-1 if side is None else side for side in written.sequence_ids] for written in read.encodings)
        origins = zip(sides, (bool(written.overflowing) for written in read.encodings), strict=True)
    return [
        Written(np.asarray(ids, dtype=np.int64), np.asarray(kinds, dtype=np.int64), _SIDES[np.asarray(side)], cut)
        for ids, kinds, (side, cut) in zip(read["input_ids"], types, origins, strict=True)
    ]


_SIDES = np.array([Segment.QUERY.value, Segment.DOC.value, 0], dtype=np.int64)
"""The segment of a token by the text that it is of: 0 the query, 1 the document, -1 neither."""


def _template_origins(
    tokenizer: Any, texts: Sequence[Sequence[str]], written: Sequence[Sequence[int]]
) -> Iterator[tuple[list[int], bool]]:
    """The text of each id, and whether something was cut off, for a tokenizer written in Python.

    It reports neither: they are read off its template around markers.
    """
    queries, documents = (tokenizer(list(side), add_special_tokens=False, verbose=False)["input_ids"] for side in texts)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for query, document, ids in zip(queries, documents, written, strict=True):
        room = len(ids) - special - len(query)
        template = tokenizer.build_inputs_with_special_tokens([-2] * len(query), [-1] * max(room, 0))
        text = [token + 2 if token < 0 else -1 for token in template]
        expected = [query, document[:room] if tokenizer.truncation_side == "right" else document[-room:]]
        sides = [[token for token, side in zip(ids, text, strict=False) if side == which] for which in (0, 1)]
        # Where the query was cut the template does not fit: no position counts as the query's.
        yield (text if sides == expected else [-1] * len(ids)), room < len(document)


def _not_text(pair: Pair) -> Unreadable | None:
    """The reason why a pair does not consist of two texts, or None."""
    fields = {"query": pair.query, "document": pair.document, "query id": pair.query_id, "document id": pair.doc_id}
    for name, value in fields.items():
        subject = f"The {name} of pair {pair.query_id!r}/{pair.doc_id!r}"
        if not isinstance(value, str):
            return Unreadable(NO_TEXT, f"{subject} is {value!r} and no text: give a string, or leave the pair out.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"half of a surrogate pair at position {error.start}, which is no character"
            return Unreadable(NO_TEXT, f"{subject} holds {half}: repair the text, or leave the pair out.")
    if not pair.query.strip():
        return Unreadable(EMPTY, f"Query '{pair.query_id}' is empty: give it a text or leave it out.")
    if not pair.document.strip():
        return Unreadable(EMPTY, f"Document '{pair.doc_id}' (query '{pair.query_id}') is empty: leave it out.")
    return None


def too_long(pair: Pair, length: int, others: str, max_length: int) -> Unreadable:
    """The reason why a pair cannot be read whose query of so many word pieces leaves no room beside the others."""
    return Unreadable(
        TOO_LONG,
        f"Query '{pair.query_id}' has {length} word pieces and alone fills the model, which reads "
        f"{max_length} with {others}: queries are never truncated, so leave it out.",
    )


def _completed(pair: Pair, written: Written, query_length: int, max_length: int) -> Written | Unreadable:
    """The pair as it was written, every segment named, or why not: its query, of so many word pieces, was cut."""
    if written.cut and np.count_nonzero(written.segments == Segment.QUERY.value) < query_length:
        return Unreadable(
            CUT_QUERY,
            f"Query '{pair.query_id}' has {query_length} word pieces, more than half of the {max_length} that are "
            f"read, and beside document '{pair.doc_id}' it would be cut: queries are never truncated, so leave it out.",
        )
    return written if _without_piece(pair, written) else written._replace(segments=segments_of(written.segments))


def _without_piece(pair: Pair, written: Written) -> Unreadable | None:
    """The reason why a pair of which one text has no word piece cannot be read, or None."""
    texts = (("Query", Segment.QUERY, pair.query_id), ("Document", Segment.DOC, pair.doc_id))
    for part, segment, named in texts:
        if segment.value not in written.segments:
            return Unreadable(NO_PIECE, f"{part} '{named}' holds no word piece of this tokenizer: leave it out.")
    return None


def segments_of(known: np.ndarray, name: str = "") -> np.ndarray:
    """The segment of each position, from those that are known and no 0; `name` is the model's, for the message.

    Raises:
        MechirError: for a pair that lacks CLS or a separator.
    """
    query, document = (np.flatnonzero(known == text.value) for text in (Segment.QUERY, Segment.DOC))
    segment = np.full(len(known), Segment.SEP2.value, dtype=np.int64)
    segment[: query[0]] = Segment.CLS.value
    segment[query[0] : query[-1] + 1] = Segment.QUERY.value
    segment[query[-1] + 1 : document[0]] = Segment.SEP1.value
    segment[document[0] : document[-1] + 1] = Segment.DOC.value
    gaps = {"before the query": query[0], "between query and document": document[0] - query[-1] - 1}
    gaps["after the document"] = len(known) - 1 - document[-1]
    missing = [where for where, size in gaps.items() if size < 1]
    if missing:
        tokenizer = f"The tokenizer of '{name}'" if name else "The tokenizer"
        raise MechirError(
            f"{tokenizer} writes no special token {missing[0]}, where [CLS] query [SEP] document [SEP] is read: "
            "give it the post-processor that writes them (TemplateProcessing in tokenizer.json)."
        )
    return segment
