"""Rows of tables as users have them: frames of any library and mappings, with columns under their usual names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import narwhals.stable.v2 as nw
import pandas as pd

from mechir.errors import MechirError
from mechir.rules import grade_of

NAMES = {
    "query_id": ("qid", "query_id"),
    "doc_id": ("docno", "doc_id"),
    "query": ("query",),
    "document": ("text", "document", "passage"),
    "grade": ("label", "grade", "rel", "relevance"),
    "group": ("group",),
}
"""What a column holds, and the names under which it is found."""
IDS = ("query_id", "doc_id")


def table_rows(given: Any) -> Iterator[Mapping[str, Any]] | None:
    """The rows of a frame (pandas, polars, Arrow, ...) by column; None for anything else.

    Raises:
        MechirError: for a frame that is not read yet, and two columns of one name.
    """
    if isinstance(given, pd.DataFrame):
        twice = given.columns[given.columns.duplicated()]
        if len(twice):
            raise MechirError(f"This DataFrame has two columns '{twice[0]}': rename one.")
        read = {name for names in NAMES.values() for name in names}
        if index := next((name for name in given.index.names if name in read and name not in given.columns), None):
            raise MechirError(
                f"'{index}' is the index of this DataFrame, which is not read: write frame.reset_index()."
            )
    frame = nw.from_native(given, pass_through=True)
    if isinstance(frame, nw.LazyFrame):
        how = ".df()" if hasattr(given, "df") else ".collect()"  # DuckDB's, and that of lazy frames
        raise MechirError(f"A {type(given).__name__} is not read yet: give its {how}.")
    return frame.iter_rows(named=True) if isinstance(frame, nw.DataFrame) else None


def chosen_columns(names: Sequence[Any], needed: Sequence[str], optional: Sequence[str], kind: str) -> dict[str, str]:
    """The column of each field that is there, by its name in `NAMES`; `kind` names the table in messages.

    Raises:
        MechirError: where a needed field has no column, or a field has two.
    """
    columns = {}
    for field in (*needed, *optional):
        there = [name for name in NAMES[field] if name in names]
        if len(there) > 1:
            raise MechirError(f"{kind} has '{there[0]}' and '{there[1]}', which may both be the {field}: drop one.")
        if there:
            columns[field] = there[0]
        elif field in needed:
            wanted = " or ".join(f"'{name}'" for name in NAMES[field])
            has = ", ".join(f"'{name}'" for name in list(names)[:8]) or "none"
            raise MechirError(f"{kind} has no column {wanted}: its columns are {has}; rename the one that is meant.")
    return columns


def cell(row: Mapping[str, Any], column: str, field: str, where: str) -> Any:
    """The value of a field: texts as they are, ids as text, a grade as a whole number or None.

    `where` names the row in messages.

    Raises:
        MechirError: for a missing text or id, or a value of another kind.
    """
    value = row[column]
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        if field == "grade":
            return None
        raise MechirError(f"{where} has no '{column}' ({value!r}): fill it in, or leave the row out.")
    if field == "grade":
        return _grade(value, column, where)
    if field in IDS and isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str):
        advice = "write ids as text" if field in IDS else "give a string"
        raise MechirError(f"{where} has {value!r:.40} as '{column}', which is no text: {advice}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MechirError(f"{where} holds half of a surrogate pair in '{column}': repair the text.") from error
    return str(value)


def _grade(value: Any, column: str, where: str) -> int:
    whole = float(value) if isinstance(value, Real) else value
    try:
        return grade_of(whole if isinstance(whole, float | str) else None)
    except (ValueError, OverflowError):
        raise MechirError(f"{where} has {value!r:.40} as '{column}': a grade is a whole number.") from None
