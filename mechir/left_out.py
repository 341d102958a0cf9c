"""The queries, documents and judgments that a collection and its pools leave out, with the reason."""

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
"""How many pairs of each reason stand in the record; all are in `left_out.parquet`."""
PRINTED = 3


class Row(NamedTuple):
    """A pair that is left out; a whole query has no `doc_id`, a whole document no `query_id`."""

    reason: str
    query_id: str
    doc_id: str

    def __str__(self) -> str:
        return "/".join(filter(None, self[1:]))


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """A table of `reason`, `query_id`, `doc_id`, sorted by reason, else in the order of the rows."""
    table = pd.DataFrame(list(rows), columns=list(Row._fields), dtype=str)
    return table.sort_values("reason", kind="stable", ignore_index=True)


def queries(left_out: pd.DataFrame, reason: str) -> list[str]:
    """The queries that are left out for a reason."""
    return left_out.loc[left_out["reason"] == reason, "query_id"].tolist()


def by_reason(left_out: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """A summary for the record: reason -> `n` and up to 20 `examples`, `query_id/doc_id`."""
    summary = {}
    for reason, rows in left_out.groupby("reason", sort=False):
        examples = [str(Row(*row)) for row in rows[list(Row._fields)].head(EXAMPLES).itertuples(index=False)]
        summary[str(reason)] = {"n": len(rows), "examples": examples}
    return summary


def sentences(record: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each reason of the result of `by_reason`."""
    lines = []
    for reason, summary in record.items():
        examples = summary["examples"][:PRINTED]
        more = ", ..." if summary["n"] > len(examples) else ""
        lines.append(f"left out: {summary['n']} x {reason} ({', '.join(examples)}{more})")
    return lines
