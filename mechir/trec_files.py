"""Strict readers of queries, documents, judgments and runs: a line that cannot be read is named by file and number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection as Known
from collections.abc import Iterator, Mapping
from pathlib import Path

from mechir.errors import MechirError

Qrels = dict[str, dict[str, int]]
UNKNOWN_SHARE = 0.01
"""Judgments or run lines that name unknown queries or documents are dropped and counted up to this share."""


def read_texts(file: Path, what: str) -> dict[str, str]:
    """Id -> text of `id<tab>text` lines, in file order.

    Raises:
        MechirError: for a line without a tab, an empty id or text, a duplicate id, or bytes that are not UTF-8.
    """
    texts: dict[str, str] = {}
    for number, line in _lines(file):
        key, tab, text = line.partition("\t")
        key = key.strip()
        if not tab or not key:
            raise MechirError(f"{file}, line {number}: cannot read '{line[:60]}'; write {what}_id<tab>text.")
        if not text.strip():
            raise MechirError(f"{file}, line {number}: {what} '{key}' is empty; give it a text or leave it out.")
        if key in texts:
            raise MechirError(f"{file}, line {number}: {what} id '{key}' stands here a second time; ids are unique.")
        texts[key] = text.strip()
    return texts


def read_qrels(file: Path) -> Qrels:
    """Query id -> document id -> grade of TREC judgments (`query_id 0 doc_id grade`).

    Raises:
        MechirError: for a malformed line, or two grades for one pair.
    """
    qrels: Qrels = {}
    for number, line in _lines(file):
        try:
            query_id, _, doc_id, written = line.split()
            grade = int(written)
        except ValueError:
            raise MechirError(
                f"{file}, line {number}: cannot read '{line[:60]}'; write query_id 0 doc_id grade."
            ) from None
        grades = qrels.setdefault(query_id, {})
        if grades.setdefault(doc_id, grade) != grade:
            raise MechirError(
                f"{file}, line {number}: document '{doc_id}' has grade {grade} for query '{query_id}' here "
                f"and {grades[doc_id]} above; keep one."
            )
    return qrels


def read_run(file: Path) -> dict[str, list[str]]:
    """Query id -> document ids, best first, of a TREC run (`query_id Q0 doc_id rank score tag`).

    The order is that of the scores, as in trec_eval; equal scores keep the order of the ranks.

    Raises:
        MechirError: for a file that cannot be read, a malformed line, or a document twice for one query.
    """
    if not file.is_file():
        raise MechirError(f"There is no run file '{file}'.")
    scored: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in _lines(file):
        try:
            query_id, _, doc_id, rank, score, _ = line.split()
            place = (-float(score), int(rank))
            if not math.isfinite(place[0]):
                raise ValueError
        except ValueError:
            raise MechirError(
                f"{file}, line {number}: cannot read '{line[:60]}'; write query_id Q0 doc_id rank score tag."
            ) from None
        if doc_id in scored.setdefault(query_id, {}):
            raise MechirError(f"{file}, line {number}: document '{doc_id}' stands twice for query '{query_id}'.")
        scored[query_id][doc_id] = place
    return {query_id: sorted(places, key=lambda doc_id: places[doc_id]) for query_id, places in scored.items()}


def known_only(
    found: Mapping[str, Mapping[str, int]] | Mapping[str, list[str]],
    queries: Known[str],
    docs: Known[str],
    where: str,
) -> int:
    """How many lines of `found` name a query or document that the collection lacks; warns about them.

    Raises:
        MechirError: when they are over 1 % of the lines.
    """
    total = sum(len(one) for one in found.values())
    unknown = [
        (query_id, doc_id)
        for query_id, one in found.items()
        for doc_id in one
        if query_id not in queries or doc_id not in docs
    ]
    if not unknown:
        return 0
    listed = ", ".join(f"{query_id}/{doc_id}" for query_id, doc_id in unknown[:3])
    sentence = f"{len(unknown)} of {total} lines of {where} name unknown queries or documents ({listed}, ...)"
    if len(unknown) > UNKNOWN_SHARE * total:
        raise MechirError(f"{sentence}: over 1 %, so the files do not belong together.")
    warnings.warn(f"{sentence}; they are left out.", stacklevel=4)
    return len(unknown)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, split at newlines alone: texts may hold any other character, exotic separators too."""
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise MechirError(f"{file} is not UTF-8 (byte {error.start}): convert it first.") from error
    for number, line in enumerate(lines, 1):
        if line.strip("\r"):
            yield number, line.rstrip("\r")
