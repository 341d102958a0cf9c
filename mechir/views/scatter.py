"""Points on two axes, with labels that are not printed over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from mechir.views import charts
from mechir.views.labels import placed

WIDE, TALL = 380, 300
"""Pixels of a scatter."""
PLACES = ("label_x", "label_y", "line_x", "line_y")
MARGIN = 0.06
"""The share of an axis that a scatter leaves free at each end."""


def scatter(
    frame: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    *,
    title: str,
    subtitle: str = "",
    label: str | None = None,
    named: str | None = None,
    column: str | None = None,
) -> alt.FacetChart | alt.LayerChart:
    """Points coloured by a word or, around 0, by a number; the text in `label` beside those where `named` is true.

    `column` splits the chart into panels on common axes. Labels that would be printed over others are left out, and
    those that stand apart from their point have a line to it.
    """
    ends = {name: _range(frame[name]) for name in dict.fromkeys((x, y))}
    shown = charts.columns_of(frame, x, y, colour, label, named, column).reset_index(drop=True)
    tips = [name for name in shown if name != named]
    if label:
        shown = _with_places(shown, ends, (x, y), shown[label], shown[named] if named else None, column)
    across, up = (alt.Scale(domain=ends[name], nice=False) for name in (x, y))
    base = alt.Chart(shown).encode(x=alt.X(f"{x}:Q", title=x, scale=across), y=alt.Y(f"{y}:Q", title=y, scale=up))
    numeric = pd.api.types.is_numeric_dtype(shown[colour])
    scale = charts.signed(charts.largest(shown[colour])) if numeric else charts.COLOURS
    hue = alt.Color(f"{colour}:{'Q' if numeric else 'N'}", scale=scale, title=colour)
    zero = alt.Chart(shown).mark_rule(strokeDash=[3, 3], color="#999")
    layers: list[Any] = [zero.encode(x=alt.datum(0)), zero.encode(y=alt.datum(0))]
    if label:
        written = base.transform_filter("isValid(datum.label_x)")
        far = base.transform_filter("isValid(datum.line_x)")
        layers.append(far.mark_rule(strokeWidth=0.5, color="#999").encode(x2="line_x:Q", y2="line_y:Q"))
        at = {"x": alt.X("label_x:Q", title=x, scale=across), "y": alt.Y("label_y:Q", title=y, scale=up)}
        layers.append(written.mark_text(fontSize=10).encode(**at, text=f"{label}:N"))
    points = base.mark_circle(size=46, opacity=0.85, stroke="#333", strokeWidth=0.4)
    layers.append(points.encode(color=hue, tooltip=tips))
    chart: Any = alt.layer(*layers).properties(width=WIDE, height=TALL)
    return charts.panels(chart, frame, column).properties(title=charts.titled(title, subtitle))


def _range(values: pd.Series) -> list[float]:
    """The ends of an axis: all values and 0, with room for labels."""
    finite = [value for value in values.astype(float) if np.isfinite(value)]
    low, high = min([*finite, 0.0]), max([*finite, 0.0])
    room = MARGIN * ((high - low) or 1.0)
    return [low - room, high + room]


def _with_places(
    shown: pd.DataFrame,
    ends: Mapping[str, Sequence[float]],
    axes: tuple[str, str],
    texts: pd.Series,
    named: pd.Series | None,
    column: str | None,
) -> pd.DataFrame:
    """The frame with `PLACES` in its own units: the middles of labels, and the ends of lines to them."""
    low, high = np.array([ends[name] for name in axes]).T
    scale = np.array([WIDE, TALL]) / (high - low)
    wanted = pd.Series(True, shown.index) if named is None else named.astype(bool)
    parts = [part for _, part in shown.groupby(column, sort=False)] if column else [shown]
    placed_parts = []
    for part in parts:
        points = (np.stack([part[name].astype(float) for name in axes], axis=1) - low) * scale
        there = np.isfinite(points).all(axis=1) & wanted[part.index].to_numpy()
        written = texts[part.index].astype(str).tolist()
        places = np.array(placed(np.nan_to_num(points), written, there.tolist(), WIDE, TALL)).reshape(-1, 4)
        middles = places / np.tile(scale, 2) + np.tile(low, 2)
        placed_parts.append(part.assign(**dict(zip(PLACES, middles.T, strict=True))))
    return pd.concat(placed_parts) if placed_parts else shown.assign(**dict.fromkeys(PLACES, np.nan))
