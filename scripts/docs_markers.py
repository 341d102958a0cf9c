"""Numbers and tables of the pages that say where they come from: markers read, formatted, and pages written anew.

`scripts/remake_docs.py` says how a marker is written. Nothing in one is evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy.stats import hypergeom

from scripts.docs_runs import FRAMES, RUNS

NUMBER = re.compile(r"<!-- n (?P<spec>[^\n]*?) -->(?P<text>[^\n]*?)<!-- /n -->")
TABLE = re.compile(r"<!-- table (?P<spec>[^\n]*?) -->\n\n(?P<text>(?:\|[^\n]*\n)+)\n<!-- /table -->")
CONDITION = re.compile(r"""\s*(?P<name>\w+)(?P<sign><=|>=|!=|=|<|>)(?:"(?P<quoted>[^"]*)"|(?P<bare>\S+))""")
CALL = re.compile(r"(?P<name>\w+)\((?P<of>\w+(?:,\w+)*)\)")
_OF = r"[\w\[\]]+|\w+\(\w+(?:,\w+)*\)"
COLUMN = re.compile(rf"(?P<name>{_OF})(?:/(?P<form>\d|g\d|c\d|%|p|code|star))?(?P<key>\*)?")
SIGNS = {
    "=": pd.Series.eq,
    "!=": pd.Series.ne,
    "<": pd.Series.lt,
    "<=": pd.Series.le,
    ">": pd.Series.gt,
    ">=": pd.Series.ge,
}
COUNT, ROW, DECIMALS, STAR = "count", "row", "3", "star"
NOISE = 1e-6
"""What float32 makes of nothing is smaller."""
Frames = Mapping[str, pd.DataFrame]


class Wrong(ValueError):
    """A marker that cannot be read, or names what is not there."""


class Condition(NamedTuple):
    """A column and what it must be."""

    name: str
    sign: str
    value: str

    def holds(self, frame: pd.DataFrame) -> pd.Series:
        """Where it does; numbers are compared as numbers."""
        column: pd.Series = _column(frame, self.name)
        of: str | float = self.value
        if pd.api.types.is_numeric_dtype(column):
            column, of = column.astype(float), float(self.value)
        else:
            column = column.fillna("").astype(str)
        return SIGNS[self.sign](column, of)


class Column(NamedTuple):
    """A column, how it is written, and whether lines are found by it in other runs."""

    name: str
    form: str
    key: bool


class Cell(NamedTuple):
    """What stands in one place: columns of the row of a frame that meets the conditions."""

    run: str
    conditions: tuple[Condition, ...]
    columns: tuple[Column, ...]


def split(text: str, mark: str) -> list[str]:
    """The parts between marks that stand in no quotes."""
    quoted = text.split('"')
    quoted[::2] = [part.replace(mark, "\n") for part in quoted[::2]]
    return [part.strip() for part in '"'.join(quoted).split("\n")]


def parsed_cell(text: str, run: str = "") -> Cell:
    """`[RUN:] [CONDITIONS:] COLUMNS`; a part before the columns without a sign is a run."""
    *before, columns = split(text.replace(r"\|", "|"), ":")
    if before and not CONDITION.match(before[0]):
        run, *before = before
    if named(run) not in RUNS | FRAMES:
        raise Wrong(f"There is no run '{run}' in '{text}': there are {', '.join(RUNS | FRAMES)}.")
    conditions = before[0] if before else ""
    if len(before) > 1 or CONDITION.sub("", conditions).strip():
        raise Wrong(f"Cannot read '{text}': write RUN: CONDITIONS: COLUMNS, in conditions spaces in quotes.")
    of = CONDITION.finditer(conditions)
    met = tuple(Condition(part["name"], part["sign"], part["quoted"] or part["bare"] or "") for part in of)
    return Cell(run, met, parsed_columns(columns))


def named(run: str) -> str:
    """Of `pathway.findings` the run: `pathway`."""
    return run.partition(".")[0]


def parsed_columns(text: str) -> tuple[Column, ...]:
    """`estimate/2 low high`: how the first is written holds for those after it that say nothing else."""
    columns: list[Column] = []
    for word in text.split():
        column = COLUMN.fullmatch(word)
        if column is None:
            raise Wrong(f"Cannot read the column '{word}': write its name, and /2, /g2, /%, /p or /code after it.")
        form = column["form"] or (columns[0].form if columns else DECIMALS)
        columns.append(Column(column["name"], form, bool(column["key"])))
    shown = [column for column in columns if column.form != STAR]
    if not 1 <= len(shown) <= 3:
        raise Wrong(f"'{text}' is {len(shown)} columns: write one, two (from, to) or three (value, low, high).")
    return tuple(columns)


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    if name == ROW and name not in frame:
        return pd.Series(range(1, len(frame) + 1), frame.index)
    if name not in frame.columns:
        raise Wrong(f"There is no column '{name}': there are {', '.join(map(str, frame.columns))}.")
    return frame[name]


def selected(frame: pd.DataFrame, conditions: Sequence[Condition]) -> pd.DataFrame:
    """The rows that meet all conditions."""
    for condition in conditions:
        frame = frame[condition.holds(frame)]
    return frame


def _shared(rows: pd.DataFrame, one: str, other: str, k: str) -> int:
    """How many of the k rows that are first by the one column are first by the other."""
    tops = [set(_column(rows, name).nlargest(int(k)).index) for name in (one, other)]
    return len(tops[0] & tops[1])


def _by_chance(rows: pd.DataFrame, one: str, other: str, k: str) -> float:
    """How often chance alone shares as many (hypergeometric)."""
    return float(hypergeom.sf(_shared(rows, one, other, k) - 1, len(rows), int(k), int(k)))


CALLS: dict[str, Callable[..., float]] = {
    "mean": lambda rows, of: _column(rows, of).mean(),
    "min": lambda rows, of: _column(rows, of).min(),
    "max": lambda rows, of: _column(rows, of).max(),
    "median": lambda rows, of: _column(rows, of).median(),
    "spearman": lambda rows, one, other: _column(rows, one).corr(_column(rows, other), method="spearman"),
    "pearson": lambda rows, one, other: _column(rows, one).corr(_column(rows, other)),
    "shared": _shared,
    "by_chance": _by_chance,
}
"""What can be asked of all chosen rows together."""


def _value(cell: Cell, name: str, rows: pd.DataFrame) -> object:
    """What a column, or a call, gives for these rows: of a column, one row."""
    if call := CALL.fullmatch(name):
        if call["name"] not in CALLS:
            raise Wrong(f"There is no '{call['name']}' in '{name}': there are {', '.join(CALLS)}.")
        return CALLS[call["name"]](rows, *call["of"].split(","))
    if len(rows) != 1:
        conditions = " ".join("".join(condition) for condition in cell.conditions)
        raise Wrong(f"'{cell.run}: {conditions}' chooses {len(rows)} rows: it must be one.")
    return _column(rows, name).iloc[0]


def written(cell: Cell, rows: pd.DataFrame, *, zero: bool) -> str:
    """The chosen rows, one but for `count` and calls, as text; `zero`: with the 0 before the point."""
    if cell.columns[0].name == COUNT:
        return f"{len(rows):,}"
    values = [(column, _value(cell, column.name, rows)) for column in cell.columns]
    texts = [number(value, column.form, zero=zero) for column, value in values if column.form != STAR]
    shown = f"{texts[0]} [{texts[1]}, {texts[2]}]" if len(texts) == 3 and texts[1] else ""
    shown = shown or " to ".join(text for text in texts if text)
    sure = any(float(value) < 0.05 for column, value in values if column.form == STAR)  # type: ignore[arg-type]
    return f"**{shown}***" if sure else shown


def number(value: object, form: str = DECIMALS, *, zero: bool = False) -> str:
    """A value as the pages write it; nothing where it is missing."""
    if isinstance(value, str):
        if form.startswith("c") and form != "code":
            value = ", ".join(value.split(", ")[: int(form[1])])
        return f"`{value}`" if form == "code" else value.replace("|", r"\|")
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return ""
    of = float(value)  # type: ignore[arg-type]
    of = 0.0 if abs(of) < NOISE and form in "0123" else of  # without a sign
    if form == "p":
        text = "< 0.0001" if of < 0.0001 else f"= {float(f'{of:.2g}'):.10g}"
    elif form == "%":
        text = f"{100 * of:.0f}"
    elif form.startswith("g"):
        text = f"{float(f'{of:.{form[1]}g}'):,.10g}"
    else:
        text = f"{of:,.0f}" if pd.api.types.is_integer(value) else f"{of:,.{form}f}"
    return text if zero else re.sub(r"(?<!\d)0\.(?=\d)", ".", text)


def with_zero(text: str) -> bool:
    """Whether most numbers of a text are written with the 0 before the point."""
    return len(re.findall(r"(?<!\d)0\.\d", text)) > len(re.findall(r"(?<!\d)\.\d", text))


def cells_of(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def parsed_table(spec: str) -> tuple[Cell, list[Cell]]:
    """Which rows are lines, and the cells of a line."""
    rows, *cells = split(spec, "|")
    lines = parsed_cell(f"{rows}: {COUNT}")
    return lines, [parsed_cell(cell, lines.run) for cell in cells]


def table(spec: str, text: str, frames: Frames) -> str:
    """The Markdown table with its lines written anew; of a run that is not there cells stay as they are."""
    lines, cells = parsed_table(spec)
    if lines.run not in frames:
        return text
    header, rule, *old = text.splitlines()
    if len(cells_of(header)) != len(cells):
        raise Wrong(f"The table '{spec}' has {len(cells)} cells, and its header {len(cells_of(header))}.")
    keys, zero, made = [k for k, cell in enumerate(cells) if cell.columns[0].key], with_zero(text), [header, rule]
    old_rows = {tuple(line[k] for k in keys): line for line in map(cells_of, old)}
    frame = selected(frames[lines.run], lines.conditions)
    for place in range(len(frame)):
        row = frame.iloc[[place]]
        same = tuple(Condition(name, "=", str(row[name].iloc[0])) for name in (cells[k].columns[0].name for k in keys))
        stays = old_rows.get(tuple(written(cells[k], row, zero=zero) for k in keys), [""] * len(cells))
        texts = []
        for k, cell in enumerate(cells):  # what its line is chosen by holds where it says nothing else of the column
            named = {condition.name for condition in cell.conditions}
            other = same if cell.run != lines.run else (*lines.conditions, *same)
            met = [*cell.conditions, *(condition for condition in other if condition.name not in named)]
            rows = selected(frames[cell.run], met) if cell.run in frames else None
            texts.append(stays[k] if rows is None else written(cell, rows, zero=zero))
        made.append(f"| {' | '.join(texts)} |")
    return "\n".join([*made, ""])


def runs_of(page: str) -> Iterator[str]:
    """The runs that the markers of a page name; refuses a marker that cannot be read."""
    numbers, tables = list(NUMBER.finditer(page)), list(TABLE.finditer(page))
    if len(numbers) + len(tables) != page.count("<!-- n ") + page.count("<!-- table "):
        raise Wrong("A marker is not closed, spans lines, or has no empty line between it and its table.")
    for marker in numbers:
        yield named(parsed_cell(marker["spec"]).run)
    for marker in tables:
        lines, cells = parsed_table(marker["spec"])
        yield from (named(lines.run), *(named(cell.run) for cell in cells))


def rewritten(page: str, frames: Frames) -> str:
    """The page with the numbers and tables of these runs; those of other runs stay."""

    def number_text(marker: re.Match[str]) -> str:
        cell = parsed_cell(marker["spec"])
        if cell.run not in frames:
            return marker[0]
        text = written(cell, selected(frames[cell.run], cell.conditions), zero=with_zero(marker["text"]))
        return f"<!-- n {marker['spec']} -->{text}<!-- /n -->"

    def lines(marker: re.Match[str]) -> str:
        return f"<!-- table {marker['spec']} -->\n\n{table(marker['spec'], marker['text'], frames)}\n<!-- /table -->"

    list(runs_of(page))
    return TABLE.sub(lines, NUMBER.sub(number_text, page))


def put(page: Path, name: str, lines: Sequence[Sequence[object]]) -> None:
    """Writes a table, its header first, between `<!-- NAME -->` and `<!-- /NAME -->` of a page.

    Raises:
        Wrong: where the page lacks one of the two.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise Wrong(f"{page.name} has no '{begin}' with '{end}' after it.")
    header, *others = lines
    text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, ["---"] * len(header), *others))
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
