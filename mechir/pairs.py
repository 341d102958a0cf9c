"""Pairs of query and document: reading, hashing, selecting and splitting them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mechir.errors import MechirError

Item = TypeVar("Item", bound=Any)
"""A pair or a contrast: anything with a `query_id`."""
EASY = -1
"""The grade of an easy negative: drawn at random from the collection, unjudged for that query."""
SHOWN = 60
"""How many characters of each text `repr(pair)` shows."""


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


def as_pairs(inputs: Any) -> list[Pair]:
    """A list of pairs from one pair or several, given as pairs or as tuples `(query, document)`.

    Raises:
        MechirError: for anything else, such as a text, a frame, a dataset, a mapping or a list of texts.
    """
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Pair | Sequence):
        raise _no_pair(inputs)
    pairs = []
    for item in [inputs] if isinstance(inputs, Pair) or _is_tuple_of_texts(inputs) else inputs:
        if not isinstance(item, Pair) and not _is_tuple_of_texts(item):
            raise _no_pair(item)
        pairs.append(item if isinstance(item, Pair) else Pair(*item))
    return pairs


def _is_tuple_of_texts(value: Any) -> bool:
    """Whether this is `(query, document)` or `(query, document, query_id, doc_id)`."""
    return isinstance(value, tuple) and 2 <= len(value) <= 4 and all(isinstance(part, str) for part in value)


def _no_pair(value: Any) -> MechirError:
    simple = isinstance(value, str | int | float | tuple | None)
    shown = repr(value)[:SHOWN] if simple else f"a {type(value).__name__}"
    return MechirError(
        f"{shown} is no pair of query and document: write Pair(query, document, query_id, doc_id), a tuple "
        "(query, document), or a list of these."
    )


def pairs_hash(pairs: Iterable[Pair]) -> str:
    """The SHA-256 over ids, texts and grades, in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        for part in (pair.query_id, pair.query, pair.doc_id, pair.document, str(pair.grade)):
            digest.update(part.encode())
            digest.update(b"\0")
    return digest.hexdigest()


def first_of_each(pairs: Iterable[Pair], n: int, *, by_grade: bool = False) -> list[Pair]:
    """The first n pairs of every query, or of every query and grade."""
    counts = Counter[tuple[str, int | None]]()
    first = []
    for pair in pairs:
        key = pair.query_id, pair.grade if by_grade else None
        counts[key] += 1
        if counts[key] <= n:
            first.append(pair)
    return first


def split_queries(material: Sequence[Item], every: int) -> tuple[list[Item], list[Item]]:
    """The pairs or contrasts of every `every`-th query, to find something on, and those of the others, to test it on.

    Raises:
        MechirError: when there is one query alone.
    """
    queries = list(dict.fromkeys(item.query_id for item in material))
    if len(queries) < 2:
        raise MechirError("One query cannot both find heads or edges and test them: take more, or name the heads.")
    chosen = set(queries[::every])
    others = [item for item in material if item.query_id not in chosen]
    return [item for item in material if item.query_id in chosen], others
