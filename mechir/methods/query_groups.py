"""Groups of queries, such as exact matches and paraphrases: query id -> group, from a file, a mapping or a frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechir.columns import NAMES, cell, chosen_columns, table_rows
from mechir.errors import MechirError


def query_groups(given: Any) -> dict[str, str]:
    """The group of each query.

    Args:
        given: a mapping query id -> group, a frame with `qid` (or `query_id`) and `group`, whose rows may repeat a
            query, the path of a file of lines query_id<TAB>group, with or without a line of these names above, or a
            text that is such lines.

    Raises:
        MechirError: for anything else, a query in two groups, and fewer than two groups.
    """
    groups: dict[str, str] = {}
    for place, (query_id, group) in enumerate(_read(given)):
        if groups.setdefault(query_id, group) != group:
            raise MechirError(f"groups, row {place}: query '{query_id}' is in '{groups[query_id]}' and in '{group}'.")
    if reserved := next((name for name in groups.values() if name == "all" or " - " in name), None):
        raise MechirError(
            f"A group is called '{reserved}', which tables use for all queries or a difference: rename it."
        )
    if len(names := dict.fromkeys(groups.values())) < 2:
        held = f"only '{next(iter(names))}'" if names else "none"
        raise MechirError(f"Groups of queries are compared with each other, and there is {held}: give two or more.")
    return groups


def group_lines(given: Any) -> str:
    """The groups as lines query_id<TAB>group, of a path the path: what an option of the command line takes.

    Raises:
        MechirError: as `query_groups`.
    """
    if isinstance(given, Path):
        return str(given)
    return "\n".join(f"{query_id}\t{group}" for query_id, group in query_groups(given).items())


def unmatched(groups: Mapping[str, str], queries: Iterable[str]) -> str:
    """A sentence on the ids of groups that no query has, and on queries in no group; empty where all fit."""
    there = set(queries)
    unknown, alone = [one for one in groups if one not in there], sorted(there - set(groups))
    misfits = [f"{len(unknown)} of {len(groups)} ids are no query here, such as '{unknown[0]}'"] if unknown else []
    misfits += [f"{len(alone)} of {len(there)} queries are in no group, such as '{alone[0]}'"] if alone else []
    return f"groups: {' and '.join(misfits)}." if misfits else ""


def _read(given: Any) -> Iterable[tuple[str, str]]:
    if isinstance(given, str) and "\t" in given:
        return _of_lines(given.splitlines(), "groups")
    if isinstance(given, str | Path):
        return _of_file(Path(given))
    if isinstance(given, Mapping):
        if wrong := next((pair for pair in given.items() if not all(isinstance(x, str) for x in pair)), None):
            raise MechirError(f"groups holds {wrong!r:.60}: write query_id: group, both text.")
        return given.items()
    if (rows := table_rows(given)) is None:
        raise MechirError(
            f"groups={given!r:.60} names no groups: give a mapping query_id -> group, a frame with qid and group, or a "
            "file of lines query_id<TAB>group."
        )
    return [_of_row(row, place) for place, row in enumerate(rows)]


def _of_row(row: Mapping[str, Any], place: int) -> tuple[str, str]:
    columns, where = chosen_columns(list(row), ("query_id", "group"), (), "groups"), f"groups, row {place}"
    query_id, group = (cell(row, columns[field], field, where) for field in ("query_id", "group"))
    return query_id, group


def _of_file(file: Path) -> Iterable[tuple[str, str]]:
    if len(str(file)) > 4096 or not file.is_file():
        raise MechirError(f"There is no file of groups '{str(file)[:200]}': give lines query_id<TAB>group.")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MechirError(f"Cannot read the groups '{file}': give lines query_id<TAB>group in UTF-8.") from error
    return _of_lines(lines, str(file))


def _of_lines(lines: Sequence[str], name: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        fields = [field.strip() for field in line.split("\t")]
        header = number == 1 and fields[0].lower() in NAMES["query_id"] and fields[1:] == ["group"]
        if not line.strip() or header:
            continue
        if len(fields) != 2 or not all(fields):
            raise MechirError(f"{name}, line {number}: cannot read '{line[:60]}'; write query_id<TAB>group.")
        yield fields[0], fields[1]
