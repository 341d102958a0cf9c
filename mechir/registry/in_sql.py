"""Entries of findings as DuckDB reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mechir.errors import MechirError
from mechir.registry.findings import COLUMNS, TYPES

_SQL = {"str": "VARCHAR", "float64": "DOUBLE", "int64": "BIGINT", "bool": "BOOLEAN"}


def rows_of(connection: Any, files: Iterable[Path]) -> str:
    """A query for all rows of some entries, and in `entry` their files' names; columns that are not there are empty.

    `files`: whole paths, one at least.
    """
    listed = ", ".join(quoted(pattern(file)) for file in files)
    source = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false, filename = true)"
    there = {row[0] for row in connection.execute(f"describe from {source}").fetchall()}
    empty = {name: f"cast(null as {_SQL[TYPES[str(field.type)]]}) as {name}" for name, field in COLUMNS.items()}
    columns = [name if name in there else empty[name] for name in COLUMNS]
    return f"select {', '.join(columns)}, parse_filename(filename) as entry from {source}"


def quoted(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def pattern(path: Path) -> str:
    """Escapes a path for DuckDB, which reads every path as a pattern, in which a backslash separates folders."""
    if "\\" in str(path) and re.search(r"[*?\[]", str(path)):
        raise MechirError(
            f"Cannot read the registry in '{path.parent}', whose path holds a backslash and one of * ? [: move it, or "
            "give registry=DIR."
        )
    return re.sub(r"([*?\[])", r"[\1]", str(path))
