"""Frames as text for a terminal."""

from __future__ import annotations

import pandas as pd


def summary(frame: pd.DataFrame) -> str:
    """The frame in columns: p-values with three significant digits, other fractions with three decimals."""
    if frame.empty:
        return "no rows"
    filled = frame.dropna(axis=1, how="all")
    shown = {name: [_cell(name, value) for value in column] for name, column in filled.items()}
    return str(pd.DataFrame(shown).to_string(index=False))


def _cell(name: str, value: object) -> str:
    if pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if "p" in name.split("_") else f"{value:.3f}"
