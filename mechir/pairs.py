"""Pairs of query and document, and what reads them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mechir.errors import MechirError

Item = TypeVar("Item", bound=Any)
"""Whatever has a `query_id`: a pair or a contrast."""
EASY = -1
"""The grade of an easy negative: drawn at random from the collection, unjudged for that query."""
SHOWN = 60
"""Of a text, characters that a pair shows of itself."""


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
    """One pair or several, given as pairs or as tuples `(query, document)`, as a list of pairs.

    Raises:
        MechirError: for what is no pair: a text, a frame, a dataset, a mapping, a list of texts.
    """
    if isinstance(inputs, Pair) or _is_tuple_of_texts(inputs):
        return [_as_pair(inputs)]
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Sequence):
        raise _no_pairs(inputs)
    return [_as_pair(one) for one in inputs]


def _as_pair(one: Any) -> Pair:
    if isinstance(one, Pair):
        return one
    if not _is_tuple_of_texts(one):
        raise _no_pairs(one)
    return Pair(*one)


def _is_tuple_of_texts(one: Any) -> bool:
    """Whether this is `(query, document)` or `(query, document, query_id, doc_id)`."""
    return isinstance(one, tuple) and 2 <= len(one) <= 4 and all(isinstance(part, str) for part in one)


def _no_pairs(given: Any) -> MechirError:
    kind = type(given).__name__
    shown = repr(given)[:SHOWN] if isinstance(given, str | int | float | tuple | None) else f"a {kind}"
    return MechirError(
        f"{shown} is no pair of query and document: write Pair(query, document, query_id, doc_id), a tuple "
        "(query, document), or a list of these."
    )


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
