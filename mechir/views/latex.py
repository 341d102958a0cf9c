"""Frames as LaTeX tables."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

INTERVAL = ("low", "high")
ESTIMATES = ("estimate", "value", "effect", "change")
"""The columns that `low` and `high` are of, the first that is there; those of another column are `x_low`, `x_high`."""
SMALL = 1e-4
"""A number below this is written with a power of ten, and a p below 10 times this as less than it."""
ESCAPED = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
    | {"[": "{[}", "]": "{]}", "-": "{-}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}"}
    | {chr(code): " " for code in (*range(32), 127)}
)
"""Escapes, so that no text is a command, an option of the line before it, or a ligature."""


def table(frame: pd.DataFrame, digits: int = 2) -> str:
    r"""The frame as a `tabular` of booktabs, every text escaped.

    An estimate and its ends stand in one column, `0.12 [0.10, 0.15]`: `low` and `high` with the first of `ESTIMATES`,
    `x_low` and `x_high` with `x`. Numbers have `digits` decimals, small ones more; p-values three; columns without any
    value are left out. The preamble needs `\usepackage{booktabs, textcomp}` and `\usepackage[T1]{fontenc}`; texts
    beyond Latin need XeLaTeX or LuaLaTeX.
    """
    plain = _flat(frame)
    plain = plain[[name for name in plain.columns if not plain[name].isna().all()]]
    ends = interval_ends(list(plain.columns))
    names = [name for name in plain.columns if not any(name in pair for pair in ends.values())]
    cells = {}
    for place, name in enumerate(names):
        low, high = ([None] * len(plain),) * 2 if name not in ends else (plain[end] for end in ends[name])
        cells[place] = [_cell(name, *row, digits) for row in zip(plain[name], low, high, strict=True)]
    written = pd.DataFrame(cells, index=range(len(plain)), dtype=object)
    written.columns = pd.Index([escape(name) + (r" [95\,\%]" if name in ends else "") for name in names])
    sides = "".join("r" if plain[name].dtype.kind in "iuf" else "l" for name in names)
    return str(written.to_latex(index=False, escape=False, column_format=sides))


def escape(text: object) -> str:
    """The text as LaTeX shows it, whatever it holds."""
    return str(text).translate(ESCAPED)


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its named index as columns, and names that are texts."""
    named = any(name is not None for name in frame.index.names)
    flat = pd.DataFrame(frame).reset_index(drop=not named)
    names = [name if isinstance(name, tuple) else (name,) for name in flat.columns]
    return flat.set_axis([" ".join(str(part) for part in name if str(part)) for name in names], axis=1)


def interval_ends(names: list[str]) -> dict[str, tuple[str, str]]:
    """The columns with the ends of the interval, by the column that it is of."""
    ends = {name: (f"{name}_low", f"{name}_high") for name in names if {f"{name}_low", f"{name}_high"} <= {*names}}
    ends.pop("random", None)  # the least and the most of random draws, which are no interval
    # Beside a change, `value` is the level that it led to, and `low` and `high` are the ends of the change.
    ordered = sorted(ESTIMATES, key=lambda name: name == "value" and "change" in names)
    first = next((name for name in ordered if name in names and name not in ends), None)
    return ends | ({first: INTERVAL} if first and {*INTERVAL} <= {*names} else {})


def _cell(name: str, value: Any, low: Any, high: Any, digits: int) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if not isinstance(value, float):
        return _minus(str(value)) if isinstance(value, int) and not isinstance(value, bool) else escape(value)
    if "p" in name.split("_"):
        return f"$<${10 * SMALL:g}" if value < 10 * SMALL else f"{value:.3f}"
    if low is None or pd.isna(low) or pd.isna(high):
        return _number(value, _decimals(abs(value), digits))
    decimals = _decimals(max(map(abs, (value, low, high))), digits)
    return f"{_number(value, decimals)} [{_number(low, decimals)}, {_number(high, decimals)}]"


def _decimals(size: float, digits: int) -> int | None:
    """How many decimals a number of this size has; None for a power of ten."""
    if size == 0 or not math.isfinite(size):
        return digits
    return None if size < SMALL else max(digits, digits - 1 - math.floor(math.log10(size)))


def _number(value: float, decimals: int | None) -> str:
    if not math.isfinite(value):
        return rf"${'-' * (value < 0)}\infty$"
    if decimals is None:
        base, power = f"{value:.1e}".split("e")
        return rf"${base} \times 10^{{{int(power)}}}$" if value else "0"
    return _minus(f"{value:.{decimals}f}")


def _minus(text: str) -> str:
    return text.replace("-", "$-$") if text.strip("-0.") else text.replace("-", "")
