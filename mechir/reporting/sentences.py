"""Sentences of the report: findings, numbers, lists of them.

A sentence is a list of parts: text, `{"site": "h8.1"}` (a component), `{"code": "mechir run ..."}`, `{"strong": text}`,
`{"run": id}` (the run that a number stands on).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

Part = str | dict[str, str]
Sentence = list[Part]
NAMED = 4
"""Components that a sentence names."""


def as_text(sentence: Sequence[Part]) -> str:
    """A sentence as plain text; of a run the first eight letters of its id."""
    parts = (part if isinstance(part, str) else next(iter(part.items())) for part in sentence)
    return "".join(part if isinstance(part, str) else part[1][:8] if part[0] == "run" else part[1] for part in parts)


def described(row: pd.Series) -> Sentence:
    """A component with its value, interval, unit, p over all tries, and the run."""
    tested = f", {chance(row['p_all'])}" if pd.notna(row["p_all"]) else ""
    value = f" {number(row['value'])}{interval(row)} {row['unit']}{tested} (run "
    return [{"site": row["site"]}, value, {"run": row["run_id"]}, ")"]


def listed(rows: pd.DataFrame) -> Sentence:
    """The first components with their values, and once the unit and the runs."""
    first = rows.head(NAMED)
    unit, rest = first["unit"].iloc[0], f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    flat: Sentence = []
    for _, row in first.iterrows():
        flat += [", " if flat else "", {"site": row["site"]}, f" {number(row['value'])}{interval(row)}"]
    return [*flat, f"{rest} ({unit}, ", *of_runs(first), ")"]


def of_runs(rows: pd.DataFrame) -> Sentence:
    """The runs that findings stand on."""
    ids = list(rows["run_id"].unique())
    return ["run " if len(ids) == 1 else "runs ", *with_commas([{"run": id_} for id_ in ids])]


def with_commas(parts: Sequence[Part]) -> Sentence:
    """Parts with commas between them."""
    flat: Sentence = []
    for place, part in enumerate(parts):
        flat += [", " if place else "", part]
    return flat


def counted(n: int, singular: str, plural: str) -> str:
    """A number and the noun that it counts."""
    return f"{n or 'no'} {singular if n == 1 else plural}"


def number(value: float) -> str:
    """A number to three digits, with a true minus."""
    return f"{value:.3g}".replace("-", "\u2212")


def interval(row: Mapping[str, Any] | pd.Series) -> str:
    """The 95 % interval of a row, where it has one."""
    return f" [{number(row['low'])}, {number(row['high'])}]" if pd.notna(row["low"]) else ""


def chance(value: float) -> str:
    """A p, the smallest as a bound; of what was not tested that it was not."""
    if pd.isna(value):
        return "not tested"
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
