"""The numbers and charts of the documentation, remade from the runs that they come from.

Run: bash scripts/remake_docs [--check] [--only RUN RUN ...]

What is in `build/docs` is not run again: after a change of mechir's own code take that folder away. Runs on collections
that do not ship need MECHIR_SHARED, the folder with `data/` and `models/`. In a page a number, or a table, is between

    <!-- n RUN: CONDITIONS: COLUMNS -->.357 [.324, .390]<!-- /n -->
    <!-- table RUN: CONDITIONS | CELL | CELL ... --> (the table, of which the header stays) <!-- /table -->

CONDITIONS (`site=h1.1 contrast="relevant - weak"`; =, <, <=, >, >=) pick a row of the summary; `row` is its place from
1. One column is a value, two `low to high`, three a value with its interval; `count` is how many rows there are,
`spearman(a,b)` a correlation. `/2` after a column: decimals (by default 3), `/g2` significant digits, `/%` per cent,
`/p` a p-value with its sign, `/code` as code. A CELL is COLUMNS, or of another row CONDITIONS: COLUMNS or RUN:
CONDITIONS: COLUMNS, the one with the same values in columns with a star: `site*`. Nothing here is evaluated as code.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from mechir.registry.runs import find_run

DOCS, REGISTRY = (Path(__file__).parent.parent / name for name in ("docs", "build/docs"))
MADE = REGISTRY / "made.json"
SHARED = "MECHIR_SHARED"
MODEL = "--model SHARED/models/ce-minilm-l6"
TEN, FIVE = (f"{MODEL} --collection SHARED/data/dl19 --per-grade {n} --easy-negatives {n}" for n in (10, 5))
FORTY = f"lu2025/semantic_bm25 {MODEL} --per-grade 5 --easy-negatives 10 --limit-queries 40 --collection SHARED/data"
IN_AND_OUT = "in:SHARED/data/dl19 --collection out:SHARED/data/cranfield --collection out:SHARED/data/vaswani"
GROUPS = f"{MODEL} --collection {IN_AND_OUT} --limit-queries 9 --per-grade 3 --easy-negatives 3 --take 2"
RUNS = {
    "attention_contrast": "vast2025/attention_contrast",
    "attention_contrast-sep2": "vast2025/attention_contrast --sep2",
    "idf_direction": "lu2025/idf_direction",
    "semantic_bm25": "lu2025/semantic_bm25",
    "soft_tf": "lu2025/soft_tf",
    "head_to_score": "lu2025/head_to_score",
    "cls_lens": "vast2025/cls_lens",
    "cls_lens-judged": "vast2025/cls_lens --easy-negatives 0",
    "qk_svd": "vast2025/qk_svd",
    "robust_metric": "polyakov2025/robust_metric --limit-queries 6 --filler a",
    "idf_edit": "lu2025/idf_edit",
    "qk_projection": "vast2025/qk_projection",
    "importance": "vast2024/importance",
    "transfer": "vast2024/transfer",
    "distribution": "vast2024/distribution",
    "pruning": "vast2024/pruning",
    "matching_heads": "vast2024/matching_heads",
    "pathway": "joint/pathway",
    "layer_sweep-dl19": f"vast2025/layer_sweep {FIVE} --limit-queries 12",
    "direction_ablation-dl19": f"vast2025/direction_ablation {FIVE}",
    **{f"forty-{name}": f"{FORTY}/{name}" for name in ("dl19", "dl21", "cranfield", "vaswani")},
    "transfer_groups": f"vast2024/transfer {GROUPS}",
    "pruning_groups": f"vast2024/pruning {GROUPS} --grid 5",
}
AGAIN = "attention_contrast attention_contrast-sep2 idf_direction semantic_bm25 soft_tf qk_svd idf_edit qk_projection"
RUNS |= {f"{name}-dl19": f"{RUNS[name]} {TEN}" for name in AGAIN.split()}
"""Of the runs by name what follows `mechir run`; a chart is docs/figures/NAME.png, where that file is there."""
NUMBER = re.compile(r"<!-- n (?P<spec>[^\n]*?) -->(?P<text>[^\n]*?)<!-- /n -->")
TABLE = re.compile(r"<!-- table (?P<spec>[^\n]*?) -->\n\n(?P<text>(?:\|[^\n]*\n)+)\n<!-- /table -->")
CONDITION = re.compile(r"""\s*(?P<name>\w+)(?P<sign><=|>=|=|<|>)(?:"(?P<quoted>[^"]*)"|(?P<bare>\S+))""")
COLUMN = re.compile(r"(?P<name>[\w\[\]]+|spearman\(\w+,\w+\))(?:/(?P<form>\d|g\d|%|p|code))?(?P<key>\*)?")
COUNT, ROW, DECIMALS = "count", "row", "3"
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
        return {"=": column.eq, "<": column.lt, "<=": column.le, ">": column.gt, ">=": column.ge}[self.sign](of)


class Column(NamedTuple):
    """A column, how it is written, and whether lines are found by it in other runs."""

    name: str
    form: str
    key: bool


class Cell(NamedTuple):
    """What stands in one place: columns of the row of a run that meets the conditions."""

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
    if run not in RUNS:
        raise Wrong(f"There is no run '{run}' in '{text}': there are {', '.join(RUNS)}.")
    conditions = before[0] if before else ""
    if len(before) > 1 or CONDITION.sub("", conditions).strip():
        raise Wrong(f"Cannot read '{text}': write RUN: CONDITIONS: COLUMNS, in conditions spaces in quotes.")
    of = CONDITION.finditer(conditions)
    met = tuple(Condition(one["name"], one["sign"], one["quoted"] or one["bare"] or "") for one in of)
    return Cell(run, met, parsed_columns(columns))


def parsed_columns(text: str) -> tuple[Column, ...]:
    """`estimate/2 low high`: how the first is written holds for those after it that say nothing else."""
    found: list[Column] = []
    for word in text.split():
        one = COLUMN.fullmatch(word)
        if one is None:
            raise Wrong(f"Cannot read the column '{word}': write its name, and /2, /g2, /%, /p or /code after it.")
        form = one["form"] or (found[0].form if found else DECIMALS)
        found.append(Column(one["name"], form, bool(one["key"])))
    if not 1 <= len(found) <= 3:
        raise Wrong(f"'{text}' is {len(found)} columns: write one, two (from, to) or three (value, low, high).")
    return tuple(found)


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    if name == ROW and name not in frame:
        return pd.Series(range(1, len(frame) + 1), frame.index)
    if name not in frame.columns:
        raise Wrong(f"There is no column '{name}': there are {', '.join(map(str, frame.columns))}.")
    return frame[name]


def chosen(frame: pd.DataFrame, conditions: Sequence[Condition]) -> pd.DataFrame:
    """The rows that meet all conditions."""
    for one in conditions:
        frame = frame[one.holds(frame)]
    return frame


def written(cell: Cell, rows: pd.DataFrame, *, zero: bool) -> str:
    """The chosen rows, one but for `count` and correlations, as text; `zero`: with the 0 before the point."""
    first = cell.columns[0]
    if first.name == COUNT:
        return f"{len(rows):,}"
    if first.name.startswith("spearman("):
        one, other = first.name.removeprefix("spearman(")[:-1].split(",")
        return number(_column(rows, one).corr(_column(rows, other), method="spearman"), first.form, zero=zero)
    if len(rows) != 1:
        told = " ".join("".join(one) for one in cell.conditions)
        raise Wrong(f"'{cell.run}: {told}' chooses {len(rows)} rows: it must be one.")
    texts = [number(_column(rows, one.name).iloc[0], one.form, zero=zero) for one in cell.columns]
    if len(texts) < 3 or not texts[1]:
        return " to ".join(text for text in texts if text)
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def number(value: object, form: str = DECIMALS, *, zero: bool = False) -> str:
    """A value as the pages write it; nothing where it is missing."""
    if isinstance(value, str):
        return f"`{value}`" if form == "code" else value.replace("|", r"\|")
    if value is None or pd.isna(value):
        return ""
    of = float(value)  # type: ignore[arg-type]
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
    known = {tuple(line[k] for k in keys): line for line in map(cells_of, old)}
    frame = chosen(frames[lines.run], lines.conditions)
    for place in range(len(frame)):
        row = frame.iloc[[place]]
        same = tuple(Condition(name, "=", str(row[name].iloc[0])) for name in (cells[k].columns[0].name for k in keys))
        stays = known.get(tuple(written(cells[k], row, zero=zero) for k in keys), [""] * len(cells))
        found = []
        for k, cell in enumerate(cells):  # what its line is chosen by holds where it says nothing else of the column
            own = {one.name for one in cell.conditions}
            other = same if cell.run != lines.run else (*lines.conditions, *same)
            met = [*cell.conditions, *(one for one in other if one.name not in own)]
            rows = chosen(frames[cell.run], met) if cell.run in frames else None
            found.append(stays[k] if rows is None else written(cell, rows, zero=zero))
        made.append(f"| {' | '.join(found)} |")
    return "\n".join([*made, ""])


def runs_of(page: str) -> Iterator[str]:
    """The runs that the markers of a page name; refuses a marker that cannot be read."""
    numbers, tables = list(NUMBER.finditer(page)), list(TABLE.finditer(page))
    if len(numbers) + len(tables) != page.count("<!-- n ") + page.count("<!-- table "):
        raise Wrong("A marker is not closed, spans lines, or has no empty line between it and its table.")
    for one in numbers:
        yield parsed_cell(one["spec"]).run
    for one in tables:
        lines, cells = parsed_table(one["spec"])
        yield from (lines.run, *(cell.run for cell in cells))


def rewritten(page: str, frames: Frames) -> str:
    """The page with the numbers and tables of these runs; those of other runs stay."""

    def one(found: re.Match[str]) -> str:
        cell = parsed_cell(found["spec"])
        if cell.run not in frames:
            return found[0]
        text = written(cell, chosen(frames[cell.run], cell.conditions), zero=with_zero(found["text"]))
        return f"<!-- n {found['spec']} -->{text}<!-- /n -->"

    def lines(found: re.Match[str]) -> str:
        return f"<!-- table {found['spec']} -->\n\n{table(found['spec'], found['text'], frames)}\n<!-- /table -->"

    list(runs_of(page))
    return TABLE.sub(lines, NUMBER.sub(one, page))


def noted() -> dict[str, list[str]]:
    """Of the runs that are there the command and the id, by name."""
    found = json.loads(MADE.read_text(encoding="utf-8")) if MADE.is_file() else {}
    return {name: found[name] for name, command in RUNS.items() if found.get(name, [""])[0] == command}


def make(name: str) -> None:
    """Runs one, or what is missing of it, and notes its id."""
    words = [word.replace("SHARED", os.environ.get(SHARED, "")) for word in RUNS[name].split()]
    started = [str(Path(sys.executable).with_name("mechir")), "run", *words, "--registry", str(REGISTRY)]
    said = subprocess.run(started, stdout=subprocess.PIPE, text=True, check=True).stdout
    (*_, found) = re.findall(r"^Run ([0-9a-f]+): ", said, re.MULTILINE)
    MADE.write_text(json.dumps(noted() | {name: [RUNS[name], found]}, indent=1) + "\n", encoding="utf-8")


def changes() -> Iterator[tuple[Path, bytes]]:
    """The pages and figures that would be other than they are, with what they would hold."""
    runs = {name: find_run(REGISTRY, id_) for name, (_, id_) in noted().items()}
    frames = {name: run.summary for name, run in runs.items()}
    for page in sorted(DOCS.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        try:
            new = rewritten(old, frames)
        except Wrong as error:
            raise SystemExit(f"docs/{page.name}: {error}") from error
        if new != old:
            yield page, new.encode()
    for name, run in runs.items():
        figure = DOCS / "figures" / f"{name}.png"
        if figure.is_file() and figure.read_bytes() != (drawn := small(run.path / "chart.png")):
            yield figure, drawn


def small(chart: Path) -> bytes:
    """The picture in 256 colours, a fifth of its size."""
    Image.open(chart).convert("RGB").quantize().save(drawn := io.BytesIO(), "PNG", optimize=True)
    return drawn.getvalue()


def lines_of(file: Path, new: bytes) -> Iterator[str]:
    """What changes in a page, marker by marker; of a figure its name."""
    if file.suffix == ".png":
        yield file.name
        return
    old = file.read_text(encoding="utf-8")
    for pattern in (NUMBER, TABLE):
        for one, other in zip(pattern.finditer(old), pattern.finditer(new.decode()), strict=True):
            if one["text"] != other["text"]:
                says = f"{one['text']} -> {other['text']}" if pattern is NUMBER else "the table"
                yield f"{file.name}:{old.count(chr(10), 0, one.start()) + 1}: {one['spec'].split(':')[0]}: {says}"


def main() -> None:
    """Makes what is missing, then writes pages and figures, or says what would change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run and write nothing: say what would change")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS, metavar="RUN", help="make only these runs")
    arguments = parser.parse_args()
    for name in [] if arguments.check else arguments.only:
        if "SHARED" in RUNS[name] and not os.environ.get(SHARED):
            print(f"{name}: needs {SHARED}, its numbers stay as they are")
        else:
            make(name)
    found = list(changes())
    for file, new in found:
        print("\n".join(lines_of(file, new)))
        if not arguments.check:
            file.write_bytes(new)
    sys.exit(int(arguments.check and bool(found)))


if __name__ == "__main__":
    main()
