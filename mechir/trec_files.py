"""Strict readers of queries, documents, judgments and runs: a line that cannot be read is named by file and number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from mechir.errors import MechirError
from mechir.rules import grade_of
from mechir.text_lines import numbered_lines, stored


class Texts(dict[str, str]):
    """Id -> text of documents in memory, in the order of their file."""

    def many(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> text of these documents, without those that do not exist."""
        return {doc_id: self[doc_id] for doc_id in ids if doc_id in self}

    def at(self, places: Iterable[int]) -> list[tuple[str, str]]:
        """Id and text of the documents at these places of the order."""
        ids = [self._ids[place] for place in places]
        return [(doc_id, self[doc_id]) for doc_id in ids]

    @cached_property
    def _ids(self) -> list[str]:
        return list(self)


def read_texts(file: Path, kind: str) -> Iterator[tuple[int, str, str]]:
    """The number, id and text of `id<tab>text` lines, in file order; a text may be empty.

    Raises:
        MechirError: for a line without a tab, an empty id, a line of column names, or CSV's quotation marks.
    """
    for number, line in numbered_lines(file, columns=True):
        key, tab, text = line.partition("\t")
        key = key.strip()
        if not tab or not key:
            raise MechirError(f"{file}, line {number}: cannot read '{line[:60]}'; write {kind}_id<tab>text.")
        yield number, key, text


def read_qrels(file: Path) -> Iterator[tuple[int, str, str, int]]:
    """The number, query id, document id and grade of TREC judgments (`query_id 0 doc_id grade`).

    Raises:
        MechirError: for a malformed line.
    """
    for number, line in numbered_lines(file):
        try:
            query_id, _, doc_id, written = line.split()
            grade = grade_of(written)
        except ValueError:
            raise MechirError(
                f"{file}, line {number}: cannot read '{line[:60]}'; write query_id 0 doc_id grade, ids without spaces."
            ) from None
        yield number, query_id, doc_id, grade


def run_file(run: str | Path, folder: Path | None, name: str) -> Path:
    """The file of a run, given by its path or by its name in a collection's folder (`bm25` is `run.bm25.txt`).

    Raises:
        MechirError: when there is no such file; `name` is the collection's.
    """
    if Path(run).is_file():
        return Path(run)
    if folder is not None and Path(run).name == str(run):
        inside = [stored(folder, file) for file in (str(run), f"run.{run}.txt")]
        if file := inside[0] or inside[1]:
            return file
    here = sorted(file.name for file in folder.glob("run.*.txt*")) if folder is not None else []
    raise MechirError(f"There is no run file '{run}'; '{name}' has {', '.join(here) or 'none of its own'}.")


def read_run(file: Path) -> dict[str, list[str]]:
    """Query id -> document ids, best first, of a TREC run (`query_id Q0 doc_id rank score tag`).

    The order is that of the scores, as in trec_eval; equal scores keep the order of the ranks.

    Raises:
        MechirError: for a file that cannot be read, a malformed line, or a document twice for one query.
    """
    scored: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in numbered_lines(file):
        try:
            query_id, _, doc_id, rank, score, _ = line.split()
            place = (-float(score), int(rank))
            if not math.isfinite(place[0]):
                raise ValueError
        except ValueError:
            raise MechirError(
                f"{file}, line {number}: cannot read '{line[:60]}'; write query_id Q0 doc_id rank score tag, "
                "ids without spaces."
            ) from None
        if doc_id in scored.setdefault(query_id, {}):
            raise MechirError(f"{file}, line {number}: document '{doc_id}' stands twice for query '{query_id}'.")
        scored[query_id][doc_id] = place
    return {query_id: sorted(places, key=lambda doc_id: places[doc_id]) for query_id, places in scored.items()}
