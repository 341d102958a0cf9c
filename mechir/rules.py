"""The rules for queries, documents and judgments, the same for every source."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mechir import left_out
from mechir.errors import MechirError
from mechir.left_out import Row

Qrels = dict[str, dict[str, int]]
DUPLICATES = ("refuse", "max")
LEAVE_OUT = 0.01
"""Judgments, queries or lines of a run that cannot be used are left out up to this share of them."""


class Counted(NamedTuple):
    """The judgments that count, query id -> document id -> grade (0 or more), and the others."""

    qrels: Qrels
    left_out: list[Row]


def refuse_options(duplicates: Any, leave_out: Any) -> None:
    """Raises for an unknown rule for duplicates, or a share that is not between 0 and 1."""
    if duplicates not in DUPLICATES:
        raise MechirError(f"Cannot take duplicates='{duplicates}': write 'refuse', or 'max' for the largest grade.")
    if isinstance(leave_out, bool) or not isinstance(leave_out, int | float) or not 0 <= leave_out <= 1:
        raise MechirError(f"leave_out={leave_out} is no share: write a number from 0 to 1, such as 0.05.")


def refuse_counts_below(least: int, **options: int | None) -> None:
    """Raises for an option below the least value that selects anything."""
    for name, value in options.items():
        if value is not None and value < least:
            raise MechirError(f"{name}={value} asks for nothing: write {least} or more, or leave it out.")


def grade_of(written: Any) -> int:
    """Reads a grade, a whole number of at most nine digits.

    Raises:
        ValueError: for anything else, such as 1_0, which Python reads as 10, or a grade of 0.5.
    """
    if not re.fullmatch(r"[+-]?\d{1,9}(\.0+)?", str(written), re.ASCII):
        raise ValueError(f"{written!r} is no whole number")
    return int(float(written))


def one_text_each(lines: Iterable[tuple[int, str, str]], kind: str, place: str) -> tuple[dict[str, str], list[Row]]:
    """Id -> text without white space around it, from numbered lines; a repeated id with the same text counts once.

    `kind` is "query" or "document", and `place` stands before a number in the message: "queries.tsv, line".

    Raises:
        MechirError: for one id with two texts.
    """
    texts: dict[str, str] = {}
    rows = []
    for number, key, text in lines:
        text = text.strip()
        if key not in texts:
            texts[key] = text
        elif texts[key] == text:
            again = Row(left_out.QUERY_AGAIN, key, "") if kind == "query" else Row(left_out.DOCUMENT_AGAIN, "", key)
            rows.append(again)
        else:
            raise MechirError(
                f"{place} {number}: {kind} id '{key}' stands here a second time, with another text; ids are unique."
            )
    return texts, rows


def one_grade_each(
    lines: Iterable[tuple[int, str, str, int]], place: str, duplicates: str = "refuse"
) -> tuple[Qrels, list[Row]]:
    """Query id -> document id -> grade, from numbered lines; a pair judged again with the same grade counts once.

    Where the grades differ, `duplicates` is "refuse", or "max" for the largest. `place` stands before a number in the
    message: "qrels.txt, line".

    Raises:
        MechirError: for one pair with two grades, where they are refused.
    """
    qrels: Qrels = {}
    rows = []
    for number, query_id, doc_id, grade in lines:
        grades = qrels.setdefault(query_id, {})
        if doc_id not in grades:
            grades[doc_id] = grade
        elif grades[doc_id] == grade:
            rows.append(Row(left_out.SAME_GRADE, query_id, doc_id))
        elif duplicates == "max":
            rows.append(Row(left_out.LARGEST_GRADE, query_id, doc_id))
            grades[doc_id] = max(grade, grades[doc_id])
        else:
            raise MechirError(
                f"{place} {number}: document '{doc_id}' has grade {grade} for query '{query_id}' here and "
                f"{grades[doc_id]} above; keep one, or take the largest with duplicates='max'."
            )
    return qrels, rows


def counted(
    qrels: Mapping[str, Mapping[str, int]],
    queries: Mapping[str, str],
    find: Callable[[Iterable[str]], Mapping[str, str]],
    where: str,
    leave_out: float,
) -> Counted:
    """Divides judgments: those of a grade below 0, or of an empty or missing query or document, do not count.

    `find` gives id -> text of the documents that exist, and `where` is the name of the collection in messages.

    Raises:
        MechirError: where the share of judgments, or of judged queries, to leave out is above `leave_out`.
    """
    judged = [query_id for query_id in qrels if query_id in queries]
    texts = find({doc_id: None for query_id in judged for doc_id, grade in qrels[query_id].items() if grade >= 0})
    counting: Qrels = {}
    rows = []
    for query_id, grades in qrels.items():
        for doc_id, grade in grades.items():
            if query_id not in queries:
                rows.append(Row(left_out.UNKNOWN_QUERY, query_id, doc_id))
            elif grade < 0:
                rows.append(Row(left_out.NEGATIVE, query_id, doc_id))
            elif not texts.get(doc_id):
                rows.append(Row(left_out.EMPTY if doc_id in texts else left_out.MISSING, query_id, doc_id))
            elif queries[query_id]:
                counting.setdefault(query_id, {})[doc_id] = grade
    lost = [row for row in rows if row.reason != left_out.NEGATIVE]
    refuse_beyond(lost, sum(map(len, qrels.values())), f"judgments of {where}", leave_out)
    empty = [Row(left_out.EMPTY_QUERY, query_id, "") for query_id in judged if not queries[query_id]]
    refuse_beyond(empty, len(judged), f"judged queries of {where}", leave_out)
    return Counted(counting, rows + empty)


def refuse_beyond(lost: Sequence[Row], total: int, kind: str, leave_out: float) -> None:
    """Warns of what is left out of `total` lines of a kind, and raises where it is more than the allowed share."""
    if not lost:
        return
    reasons = "; ".join(dict.fromkeys(row.reason for row in lost))
    listed = ", ".join(map(str, lost[:3]))
    sentence = f"{len(lost)} of {total} {kind} cannot be used ({reasons}: {listed}{', ...' if len(lost) > 3 else ''})"
    if len(lost) / total > leave_out:
        enough = -(-100 * len(lost) // total) / 100
        advice = f"or leave them out with leave_out={enough:g}"
        if len(lost) == total:
            advice = "for nothing would be left: the files do not belong together"
        raise MechirError(f"{sentence}: over {100 * leave_out:g} %; mend them, {advice}.")
    warnings.warn(f"{sentence}; they are left out.", stacklevel=2)


def is_query(query_id: str, query: str, doc_id: str, text: str) -> bool:
    """Whether a document is the query itself: by its text, white space and case aside, or by its id.

    Ids that are plain running numbers say nothing: document 1 of Cranfield is not its query 1.
    """
    return (doc_id == query_id and not numbered(query_id)) or plain(text) == plain(query)


def numbered(key: str) -> bool:
    """Whether an id is a plain running number."""
    return key.isascii() and key.isdigit()


def plain(text: str) -> str:
    """The text without regard to white space and case."""
    return " ".join(text.casefold().split())
