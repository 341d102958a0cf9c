"""Folded entries: a copy of the rows of many entries in one file, for registries of very many runs.

To open a file takes longer than to read a thousand findings of it. A reader that meets `EACH` entries which are in no
fold writes `<registry>/findings/folded/<n>.v<schema>.parquet`: their rows, sorted by component, and of each entry its
name, size and time. Entries stay what counts. A fold answers for those of its entries that are there as it found them
and are not superseded; all others are read themselves. A fold that is deleted, damaged or cannot be written costs time
and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from mechir.atomic import whole
from mechir.errors import MechirError
from mechir.registry.entries import SCHEMA, Entry, latest
from mechir.registry.findings import COLUMNS
from mechir.registry.in_sql import pattern, quoted, rows_of

EACH = 1000
"""Entries of one fold; with fewer that are in none, nothing is folded."""
TOGETHER = 2**26
"""Bytes of the entries of one fold, as their rows are sorted in memory."""
LARGE = 2**20
"""Bytes from which an entry is not folded: reading it takes longer than opening it."""
ORDER = "site, model_fingerprint, collection, measure, written"
"""What is asked of one component lies in few places."""


class Mark(NamedTuple):
    """What tells an entry from another, or from a changed one, without reading it: its time is in nanoseconds."""

    name: str
    size: int
    time: int


class Fold(NamedTuple):
    """A fold in use: the entries that it answers for, and the names of others of which it holds rows."""

    path: Path
    answers: frozenset[Mark]
    stale: frozenset[str]


def rows_that_count(connection: Any, registry: Path, *, folded: bool = True) -> str:
    """A query for the rows of all entries that count, taken from folds where there are any; empty without an entry.

    `folded`: False to read every entry itself.
    """
    counting = {_mark(entry) for entry in latest(registry)}
    folds = _in_use(registry, counting) if folded else []
    if folded and _fold(connection, registry, _alone(counting, folds), folds):
        folds = _in_use(registry, counting)
    queries = [_rows(fold) for fold in folds]
    if alone := sorted(_alone(counting, folds)):
        folder = (registry / "findings").resolve()
        queries.append(rows_of(connection, [folder / mark.name for mark in alone]))
    return " union all ".join(f"select {', '.join(COLUMNS)} from ({query})" for query in queries)


def discard_damaged(registry: Path) -> bool:
    """Deletes every fold that cannot be read; whether there was one."""
    damaged = False
    for path in _paths(registry):
        try:
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                file.read_row_group(group)
        except (OSError, pa.ArrowException):
            damaged = True
            _delete(path)
    return damaged


def _mark(entry: Entry) -> Mark:
    try:
        status = entry.path.stat()
    except FileNotFoundError:  # set aside by another reader since; reading it fails, and is tried again
        return Mark(entry.path.name, 0, 0)
    return Mark(entry.path.name, status.st_size, status.st_mtime_ns)


def _alone(counting: set[Mark], folds: Iterable[Fold]) -> set[Mark]:
    """The entries for which no fold answers."""
    return counting.difference(*(fold.answers for fold in folds))


def _paths(registry: Path) -> list[Path]:
    return sorted((registry / "findings" / "folded").glob(f"*.v{SCHEMA}.parquet"))


def _in_use(registry: Path, counting: set[Mark]) -> list[Fold]:
    """The folds that answer for half of what they hold or more, and for nothing that one before them answers for."""
    folds: list[Fold] = []
    for path in _paths(registry):
        held = _held(path)
        answers = held & counting
        if 2 * len(answers) >= len(held) > 0 and answers <= _alone(counting, folds):
            folds.append(Fold(path, answers, frozenset(mark.name for mark in held - answers)))
    return folds


def _held(path: Path) -> frozenset[Mark]:
    """The entries whose rows a fold holds; none where it cannot be read."""
    try:
        return frozenset(Mark(*mark) for mark in json.loads(pq.read_metadata(path).metadata[b"entries"]))
    except (OSError, pa.ArrowException, KeyError, TypeError):  # or it names none
        return frozenset()


def _rows(fold: Fold) -> str:
    """A query for the rows of the entries that a fold answers for."""
    source = f"from read_parquet({quoted(pattern(fold.path.resolve()))}, hive_partitioning = false)"
    return f"{source} where entry not in ({', '.join(map(quoted, sorted(fold.stale)))})" if fold.stale else source


def _fold(connection: Any, registry: Path, alone: set[Mark], in_use: Iterable[Fold]) -> bool:
    """Folds entries that are in no fold, and deletes the folds that are of no use any more; whether it wrote one."""
    small = sorted((mark for mark in alone if mark.size < LARGE), key=lambda mark: (mark.time, mark.name))
    if len(small) < EACH:
        return False
    useless = set(_paths(registry)) - {fold.path for fold in in_use}
    wrote = list(itertools.takewhile(lambda batch: _write(connection, registry, batch), _batches(small)))
    for path in useless:
        _delete(path)
    return bool(wrote)


def _batches(marks: Iterable[Mark]) -> Iterator[list[Mark]]:
    """The entries of each fold, all of them full; what is left over waits for more."""
    batch, size = [], 0
    for mark in marks:
        batch.append(mark)
        size += mark.size
        if len(batch) == EACH or size >= TOGETHER:
            yield batch
            batch, size = [], 0


def _write(connection: Any, registry: Path, batch: Iterable[Mark]) -> bool:
    """Writes a fold under the next number; False where it cannot be written, or another reader was faster."""
    findings = (registry / "findings").resolve()
    numbers = [int(file.name[:4]) for file in (findings / "folded").glob("[0-9][0-9][0-9][0-9].v*.parquet")]
    path = findings / "folded" / f"{max(numbers, default=-1) + 1:04d}.v{SCHEMA}.parquet"
    try:
        path.parent.mkdir(exist_ok=True)
        with whole(path, once=True) as file:
            rows = rows_of(connection, [findings / mark.name for mark in batch])
            notes = f"kv_metadata {{entries: {quoted(json.dumps(list(batch)))}}}"
            options = f"format parquet, compression zstd, use_tmp_file false, {notes}"
            connection.execute(f"copy ({rows} order by {ORDER}) to {quoted(str(file))} ({options})")
    except (OSError, MechirError, duckdb.Error):
        return False
    return True


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
