"""What is left out of a collection and its pools: for what reason, and which query and document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

QUERY_AGAIN = "query listed again with the same text"
DOCUMENT_AGAIN = "document listed again with the same text"
SAME_GRADE = "pair judged again with the same grade"
LARGEST_GRADE = "pair judged again with another grade, the largest counts"
NEGATIVE = "grade below 0"
UNKNOWN_QUERY = "judgment of an unknown query"
MISSING = "judged document that is missing"
EMPTY = "judged document that is empty"
EMPTY_QUERY = "query that is empty"
RUN_QUERY = "query of the run that the collection lacks"
RUN_MISSING = "document of the run that is missing"
RUN_EMPTY = "document of the run that is empty"
PASSED_OVER = "empty document, not drawn"
ITSELF = "document that is the query itself"
NO_PAIR = "judged query without a document in the pool"
NO_RELEVANT = "query without a relevant document, in no mean of ranking quality"

EXAMPLES = 20
"""Of each reason, so many pairs stand in the record; all are in `left_out.parquet`."""
PRINTED = 3


class Row(NamedTuple):
    """One thing that is left out; a whole query has no `doc_id`, a whole document no `query_id`."""

    reason: str
    query_id: str
    doc_id: str

    def __str__(self) -> str:
        return _named(self.query_id, self.doc_id)


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """`reason`, `query_id`, `doc_id`, sorted by reason, else in the order of the rows."""
    table = pd.DataFrame(list(rows), columns=list(Row._fields), dtype=str)
    return table.sort_values("reason", kind="stable", ignore_index=True)


def queries(left_out: pd.DataFrame, reason: str) -> list[str]:
    """The queries that are left out for a reason."""
    return left_out.loc[left_out["reason"] == reason, "query_id"].tolist()


def by_reason(left_out: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """What a record says of it: reason -> `n` and up to 20 `examples`, `query_id/doc_id`."""
    return {
        str(reason): {"n": len(rows), "examples": [_named(*ids) for ids in _ids(rows)]}
        for reason, rows in left_out.groupby("reason", sort=False)
    }


def sentences(record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What `by_reason` says, a line for each reason."""
    lines = []
    for reason, one in record.items():
        some = one["examples"][:PRINTED]
        more = ", ..." if one["n"] > len(some) else ""
        lines.append(f"left out: {one['n']} x {reason} ({', '.join(some)}{more})")
    return lines


def _ids(rows: pd.DataFrame) -> Iterable[tuple[str, str]]:
    some = rows[:EXAMPLES]
    return zip(some["query_id"], some["doc_id"], strict=True)


def _named(query_id: str, doc_id: str) -> str:
    return "/".join(one for one in (query_id, doc_id) if one)
