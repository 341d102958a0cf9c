"""Pairs of query and document: a pair, several, their hash, and some of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeVar, overload

import pandas as pd

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


class Pairs(tuple[Pair, ...]):
    """Pairs in their order, as a tuple that prints in one line; `frame()` gives them as PyTerrier takes them.

    `+` raises where one id would name two texts.
    """

    __slots__ = ()

    def __new__(cls, pairs: Iterable[Any] = ()) -> Pairs:
        """Raises for anything but pairs."""
        made = super().__new__(cls, pairs)
        other = next((item for item in made if not isinstance(item, Pair)), None)
        if other is not None:
            raise MechirError(f"{other!r:.60} is no Pair: write mi.pairs(...), which reads tuples and frames.")
        return made

    def __repr__(self) -> str:
        n = len({pair.query_id for pair in self})
        first = ", ".join(f"{pair.query_id}/{pair.doc_id}" for pair in self[:3])
        more = ", ..." if len(self) > 3 else ""
        return f"Pairs({len(self)} of {n} quer{'y' if n == 1 else 'ies'}{': ' if self else ''}{first}{more})"

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", SHOWN):
            return str(self.frame().to_html(max_rows=10))

    @overload
    def __getitem__(self, place: SupportsIndex) -> Pair: ...
    @overload
    def __getitem__(self, place: slice) -> Pairs: ...
    def __getitem__(self, place: Any) -> Any:
        """A pair, or some of them as `Pairs`."""
        item = super().__getitem__(place)
        return Pairs(item) if isinstance(place, slice) else item

    def __add__(self, other: Iterable[Any]) -> Pairs:
        return refuse_two_texts(Pairs((*self, *other)))

    def __radd__(self, other: Iterable[Any]) -> Pairs:
        return refuse_two_texts(Pairs((*other, *self)))

    def frame(self) -> pd.DataFrame:
        """A row per pair: `qid`, `docno`, `query`, `text`, and where any is judged `label`."""
        columns: dict[str, Any] = {
            "qid": [pair.query_id for pair in self],
            "docno": [pair.doc_id for pair in self],
            "query": [pair.query for pair in self],
            "text": [pair.document for pair in self],
        }
        grades = [pair.grade for pair in self]
        if any(grade is not None for grade in grades):
            columns["label"] = pd.array(grades, dtype="int64" if None not in grades else "Int64")
        return pd.DataFrame(columns)


def refuse_two_texts(pairs: Pairs) -> Pairs:
    """The pairs; raises where one query id has two texts, or one document of a query."""
    queries: dict[str, str] = {}
    documents: dict[tuple[str, str], str] = {}
    for pair in pairs:
        if queries.setdefault(pair.query_id, pair.query) != pair.query:
            named = f"Query '{pair.query_id}'"
        elif documents.setdefault((pair.query_id, pair.doc_id), pair.document) != pair.document:
            named = f"Document '{pair.doc_id}' of query '{pair.query_id}'"
        else:
            continue
        raise MechirError(f"{named} has two texts: give each an id of its own, or leave the ids out.")
    return pairs


def joined(pairs: Iterable[Pair], **columns: Any) -> pd.DataFrame:
    """A row per pair: `query_id`, `doc_id`, `grade` where any is judged, and these columns."""
    frame = Pairs(pairs).frame().rename(columns={"qid": "query_id", "docno": "doc_id", "label": "grade"})
    return frame.drop(columns=["query", "text"]).assign(**columns)


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
