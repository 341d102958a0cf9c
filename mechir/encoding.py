"""Pairs as token ids: encoding, the reasons why a pair cannot be read, and batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mechir.batches import Batch, give_back, padded
from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.segments import Segment

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


def encode(tokenizer: Any, pairs: Sequence[Pair], max_length: int) -> Encoded:
    """The pairs as Hugging Face's tokenizer writes them: `[CLS] query [SEP] document [SEP]`, documents cut to fit.

    Queries are never cut, and `max_length` includes special word pieces. Token types are the tokenizer's own, and 0
    everywhere where it writes none.

    Raises:
        MechirError: for no pairs, and for the first pair that cannot be read (see `encode_readable`).
    """
    if not pairs:
        raise MechirError("There are no pairs to encode: the pool is empty.")
    encoded, unreadable = encode_readable(tokenizer, pairs, max_length)
    if unreadable:
        raise MechirError(unreadable[min(unreadable)].sentence)
    return encoded


def encode_readable(tokenizer: Any, pairs: Sequence[Pair], max_length: int) -> tuple[Encoded, dict[int, Unreadable]]:
    """The readable pairs, encoded, and the reason for every other pair, by its place among all.

    Not readable are pairs with a text or an id that is no text (None, NaN, half a surrogate pair), an empty text, one
    without a word piece, a query that leaves no room for a document, and a query that would have to be cut: where query
    and document together are too long, Hugging Face (`truncation=True`, the longest first) cuts a query that has more
    than half of the room.
    """
    unreadable = {place: why for place, pair in enumerate(pairs) if (why := _not_text(pair))}
    queries = list(dict.fromkeys(pair.query for place, pair in enumerate(pairs) if place not in unreadable))
    ids = tokenizer(queries, add_special_tokens=False, verbose=False)["input_ids"] if queries else []
    lengths = dict(zip(queries, map(len, ids), strict=True))
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for place, pair in enumerate(pairs):
        if place not in unreadable and lengths[pair.query] + special >= max_length:
            unreadable[place] = Unreadable(
                TOO_LONG,
                f"Query '{pair.query_id}' has {lengths[pair.query]} word pieces and alone fills the model, which reads "
                f"{max_length} with {special} special ones: queries are never truncated, so leave it out.",
            )
    places = [place for place in range(len(pairs)) if place not in unreadable]
    rows: list[tuple[Pair, Written]] = []
    for place, written in zip(places, write(tokenizer, [pairs[place] for place in places], max_length), strict=True):
        if why := _spoilt(pairs[place], written, lengths[pairs[place].query], max_length):
            unreadable[place] = why
        else:
            rows.append((pairs[place], written))
    encoded = Encoded(
        pairs=tuple(pair for pair, _ in rows),
        ids=tuple(written.ids for _, written in rows),
        types=tuple(written.types for _, written in rows),
        segments=tuple(segments_of(written.text) for _, written in rows),
        truncated=sum(written.cut for _, written in rows),
        pad_id=tokenizer.pad_token_id,
        pad_type=tokenizer.pad_token_type_id,
    )
    return encoded, unreadable


class Written(NamedTuple):
    """A pair as a tokenizer writes it: ids, types, and the text of each id (0 query, 1 document, -1 neither).

    `cut` is whether something was cut off.
    """

    ids: np.ndarray
    types: np.ndarray
    text: np.ndarray
    cut: bool


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
        Written(np.asarray(ids, dtype=np.int64), np.asarray(kinds, dtype=np.int64), np.asarray(text), cut)
        for ids, kinds, (text, cut) in zip(read["input_ids"], types, origins, strict=True)
    ]


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


def _spoilt(pair: Pair, written: Written, query_length: int, max_length: int) -> Unreadable | None:
    """The reason why a pair cannot be read as it was written, or None."""
    n_query, n_document = int((written.text == 0).sum()), int((written.text == 1).sum())
    if written.cut and n_query < query_length:
        return Unreadable(
            CUT_QUERY,
            f"Query '{pair.query_id}' has {query_length} word pieces, more than half of the {max_length} that are "
            f"read, and beside document '{pair.doc_id}' it would be cut: queries are never truncated, so leave it out.",
        )
    for part, length, named in (("Query", n_query, pair.query_id), ("Document", n_document, pair.doc_id)):
        if not length:
            return Unreadable(NO_PIECE, f"{part} '{named}' holds no word piece of this tokenizer: leave it out.")
    return None


def segments_of(text: np.ndarray, name: str = "") -> np.ndarray:
    """The segment of each position, from the text of each token; `name` is the model's, for the message.

    Raises:
        MechirError: for a pair that lacks CLS or a separator.
    """
    query, document = np.flatnonzero(text == 0), np.flatnonzero(text == 1)
    segment = np.full(len(text), Segment.SEP2.value, dtype=np.int64)
    segment[: query[0]] = Segment.CLS.value
    segment[query[0] : query[-1] + 1] = Segment.QUERY.value
    segment[query[-1] + 1 : document[0]] = Segment.SEP1.value
    segment[document[0] : document[-1] + 1] = Segment.DOC.value
    gaps = {"before the query": query[0], "between query and document": document[0] - query[-1] - 1}
    gaps["after the document"] = len(text) - 1 - document[-1]
    missing = [where for where, size in gaps.items() if size < 1]
    if missing:
        tokenizer = f"The tokenizer of '{name}'" if name else "The tokenizer"
        raise MechirError(
            f"{tokenizer} writes no special token {missing[0]}, where [CLS] query [SEP] document [SEP] is read: "
            "give it the post-processor that writes them (TemplateProcessing in tokenizer.json)."
        )
    return segment
