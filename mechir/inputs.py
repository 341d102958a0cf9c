"""Pairs as users have them: values, tuples, frames, datasets, a collection, or whatever yields these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import count
from typing import Any, NamedTuple

from mechir import irds
from mechir.collection_groups import Collections
from mechir.columns import cell, chosen_columns, table_rows
from mechir.errors import MechirError
from mechir.judged_collection import Collection
from mechir.opening import collection
from mechir.pair import SHOWN, Pair, Pairs, refuse_two_texts

NEEDED, OPTIONAL = ("query", "document"), ("query_id", "doc_id", "grade")


class Row(NamedTuple):
    """A pair as it was given; ids are None where it has none."""

    query: str
    document: str
    query_id: str | None = None
    doc_id: str | None = None
    grade: int | None = None


def as_pairs(given: Any) -> Pairs:
    """The pairs of whatever holds them, in its order.

    Args:
        given: a `Pair`; a tuple `(query, document)`, also with the ids of both behind; a list, tuple or generator of
            these, of lists `[query, document]`, or of mappings with the columns of a frame; a frame of pandas, polars
            or Arrow, or a `datasets.Dataset`, with the columns `query` and `text` (or `document`, `passage`), and where
            there `qid` (or `query_id`), `docno` (or `doc_id`) and `label` (or `grade`, `rel`, `relevance`); a
            collection, or a dataset of ir_datasets, whose judged pairs are taken.

    Where there are no ids, equal queries get one, q1, q2, ..., and equal documents d1, d2, ....

    Raises:
        MechirError: for anything else, by its name; for a missing or wrong value, by its row; for one query id with two
            texts, and two texts of one document under one query.
    """
    if isinstance(given, Pairs):
        return given
    if isinstance(given, Pair):
        return Pairs([given])
    if irds.is_opened(given):
        given = collection(given)
    if isinstance(given, Collection | Collections):
        return Pairs(given.pairs())
    if (rows := table_rows(given)) is not None:
        items: Iterable[Any] = rows
    elif is_tuple_of_texts(given):
        items = [given]
    elif isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping | Set):
        items = given
    else:
        raise _no_pair(given)
    return _named([_read(item, place, given) for place, item in enumerate(items)])


def _read(item: Any, place: int, given: Any) -> Pair | Row:
    """One item as a pair, or as a row whose ids are named later."""
    if isinstance(item, Pair):
        return item
    names = getattr(item, "_fields", ()) if isinstance(item, tuple) else ()
    if names:
        item = dict(zip(names, item, strict=True))
    if isinstance(item, Mapping):
        where = f"Row {place} (from 0) of this {type(given).__name__}"
        columns = chosen_columns(list(item), NEEDED, OPTIONAL, f"This {type(given).__name__}")
        return Row(**{field: cell(item, column, field, where) for field, column in columns.items()})
    two_texts = isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)
    if two_texts or is_tuple_of_texts(item):
        return Row(*item)
    raise _no_pair(item)


def is_tuple_of_texts(value: Any) -> bool:
    """Whether this is `(query, document)` or `(query, document, query_id, doc_id)`, without names of its own.

    A triple may be a query with a good and a bad document, and ids with white space are texts in another order.
    """
    plain = isinstance(value, tuple) and not hasattr(value, "_fields") and len(value) in (2, 4)
    return plain and all(isinstance(part, str) for part in value) and all(part.split() == [part] for part in value[2:])


def _named(read: list[Pair | Row]) -> Pairs:
    """The pairs with ids; raises for ids that name two texts."""
    if all(isinstance(item, Pair) for item in read):
        return Pairs(item for item in read if isinstance(item, Pair))
    rows = [row for row in read if isinstance(row, Row)]
    named = [item for item in read if isinstance(item, Pair)]
    queries = _ids([(row.query_id, row.query) for row in rows], "q", {pair.query: pair.query_id for pair in named})
    documents = _ids([(row.doc_id, row.document) for row in rows], "d", {pair.document: pair.doc_id for pair in named})
    made = (
        Pair(row.query, row.document, query, document, row.grade)
        for row, query, document in zip(rows, queries, documents, strict=True)
    )
    return refuse_two_texts(Pairs(pair if isinstance(pair, Pair) else next(made) for pair in read))


def _ids(given: list[tuple[str | None, str]], letter: str, id_of: dict[str, str]) -> list[str]:
    """An id for each text: its own, that of an equal text, or the letter with a number that no other id has."""
    id_of = id_of | {text: own for own, text in given if own is not None}
    taken = set(id_of.values())
    fresh: Iterator[str] = (name for number in count(1) if (name := f"{letter}{number}") not in taken)
    ids = []
    for own, text in given:
        if own is None and text not in id_of:
            id_of[text] = next(fresh)
        ids.append(id_of[text] if own is None else own)
    return ids


def _no_pair(value: Any) -> MechirError:
    scalar = str | int | float | None
    simple = all(isinstance(part, scalar) for part in (value if isinstance(value, tuple) else (value,)))
    shown = repr(value)[:SHOWN] if simple else f"a {type(value).__name__}"
    return MechirError(
        f"{shown} is no pair of query and document: write Pair(query, document, query_id, doc_id), a tuple "
        "(query, document) or (query, document, query_id, doc_id), a list of these, or a frame with query and text."
    )
