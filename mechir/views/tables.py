"""Frames as text for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from typing import NamedTuple

import pandas as pd

from mechir.views.latex import ESTIMATES, INTERVAL, interval_ends

LINES = 20
"""The most lines of a table that a terminal shows by itself, its header among them."""
SHORTEST = 24
"""Letters that are left of a text that is shortened."""
REFERENCES = 3
"""Rows without an estimate, such as the intact model beside changes, that stand first; more of them stand last."""
DECIDES = ("p_corrected", "p_all", "p", "p_draws", "holds")
"""Columns that go last when a table is too wide: they decide what an estimate is worth."""


def summary(frame: pd.DataFrame) -> str:
    """The frame in columns: p-values with three significant digits, other fractions with three decimals."""
    if frame.empty:
        return "no rows"
    filled = frame.dropna(axis=1, how="all")
    shown = {name: [_cell(name, value) for value in column] for name, column in filled.items()}
    return str(pd.DataFrame(shown).to_string(index=False))


class Fitted(NamedTuple):
    """A table that fits a terminal: its text, how many rows it shows, and the columns that did not fit."""

    text: str
    rows: int
    left_out: list[str]


def fitted(frame: pd.DataFrame, width: int, lines: int = LINES) -> Fitted:
    """The frame in at most so many lines and so many letters across.

    An estimate and its interval share a column, `0.219 [0.187, 0.251]`; a text that is the same in every row stands
    above the table. Of more rows those of the largest |estimate| are shown, or the first where there is none. Columns
    that do not fit are shortened, if they are texts, or left out from the right, those of its p last, and never the
    first and the estimate.
    """
    if frame.empty:
        return Fitted("no rows", 0, [])
    filled = frame.reset_index(drop=True).dropna(axis=1, how="all")
    main = _estimate(list(filled.columns))
    return _laid_out(_largest(filled, main, lines - 1) if len(filled) >= lines else filled, width, lines)


def first_rows(frame: pd.DataFrame, width: int, lines: int = LINES) -> Fitted:
    """The same of the first rows, in their order."""
    if frame.empty:
        return Fitted("no rows", 0, [])
    return _laid_out(frame.reset_index(drop=True).dropna(axis=1, how="all"), width, lines)


def terminal_width() -> int:
    """The letters of a line of this terminal; 80 where there is none, or where it says nothing."""
    return shutil.get_terminal_size((80, 24)).columns


def _estimate(names: list[str]) -> str:
    """The column of the estimate; empty where there is none."""
    main = next((name for name, ends in interval_ends(names).items() if ends == INTERVAL), "")
    return main or next((name for name in ESTIMATES if name in names), "")


def _laid_out(filled: pd.DataFrame, width: int, lines: int) -> Fitted:
    """The rows that have room, below what all of them share."""
    main = _estimate(list(filled.columns))
    same = {name: str(column.iloc[0]) for name, column in filled.items() if _is_one_text(column)}
    same = dict(list(same.items())[: len(filled.columns) - 1])  # a table keeps a column
    above = textwrap.wrap("; ".join(f"{name} {text}" for name, text in same.items() if text), width)[: lines - 2]
    rows = filled.drop(columns=list(same)).head(lines - 1 - len(above))
    columns = _joined(rows)
    texts = {name for name, column in rows.items() if not pd.api.types.is_numeric_dtype(column)}
    left_out: list[str] = []
    while (over := _width(columns) - width) > 0 and (spare := _spare(list(columns), main)):
        first = next(iter(columns))
        shorter = first if spare in DECIDES else spare
        room = max(map(len, columns[shorter])) - over
        if shorter in texts and room >= max(SHORTEST, len(shorter)):
            columns[shorter] = [cell if len(cell) <= room else f"{cell[: room - 1]}\u2026" for cell in columns[shorter]]
        else:
            left_out.insert(0, spare)
            del columns[spare]
    table = str(pd.DataFrame(columns).to_string(index=False))
    return Fitted("\n".join([*above, table]), len(rows), left_out)


def _largest(frame: pd.DataFrame, main: str, lines: int) -> pd.DataFrame:
    """The rows of the largest |estimate|, behind up to three without one, such as the intact model."""
    if not main:
        return frame.head(lines)
    without, others = frame[frame[main].isna()], frame.sort_values(main, key=abs, ascending=False, kind="stable")
    first = without if len(without) <= REFERENCES else without.head(0)
    return pd.concat([first, others[~others.index.isin(first.index)]]).head(lines)


def _is_one_text(column: pd.Series) -> bool:
    """Whether a column holds one text in several rows."""
    first = column.iloc[0]
    return len(column) > 1 and isinstance(first, str) and all(value == first for value in column)


def _joined(frame: pd.DataFrame) -> dict[str, list[str]]:
    """The cells of each column, an estimate with its interval in one."""
    ends = interval_ends(list(frame.columns))
    inside = {end for pair in ends.values() for end in pair}
    columns = {name: [_cell(name, value) for value in frame[name]] for name in frame if name not in inside}
    for name, (low, high) in ends.items():
        rows = zip(columns[name], frame[low], frame[high], strict=True)
        columns[name] = [cell if pd.isna(a) else f"{cell} [{_cell(low, a)}, {_cell(high, b)}]" for cell, a, b in rows]
    return columns


def _width(columns: dict[str, list[str]]) -> int:
    return sum(max(map(len, [name, *cells])) for name, cells in columns.items()) + len(columns) - 1


def _spare(names: list[str], main: str) -> str:
    """The column to leave out next; empty where none may be."""
    less = [name for name in names[1:] if name not in (main, *DECIDES)]
    decides = [name for name in names[1:] if name in DECIDES]
    return next(reversed(less or decides), "")


def _cell(name: str, value: object) -> str:
    if pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    small = 0 < abs(value) < 0.0005  # three decimals would say 0
    return f"{value:.3g}" if "p" in name.split("_") or small else f"{value:.3f}"
