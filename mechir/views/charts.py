"""Charts of frames, as Altair values; saved as offline HTML, PNG and their specification."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from mechir.atomic import whole
from mechir.inference import LEVEL
from mechir.measures import EFFECT
from mechir.sites import is_head
from mechir.views.grid import grid_axes
from mechir.views.page import as_json, document, static

UNDRAWABLE = re.compile("[^\t\n\r\\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""The characters that XML cannot hold."""
BESIDE = 3
"""Panels of lines in one row; more are wrapped."""
VERSION = ".".join(alt.VEGALITE_VERSION.removeprefix("v").split(".")[:2])
COLOURS = alt.Scale(scheme="tableau10")
LEGEND = alt.Legend(symbolOpacity=1, symbolStrokeWidth=2)
FREE = alt.Scale(zero=False, nice=True)
DASHED: dict[str, Any] = {"strokeDash": [5, 4], "color": "#777"}


def heatmap(
    frame: pd.DataFrame,
    x: str,
    y: str,
    value: str,
    *,
    title: str,
    subtitle: str = "",
    star: str | None = None,
    order_x: Sequence[str] | None = None,
    order_y: Sequence[str] | None = None,
) -> alt.LayerChart:
    """Cells coloured by `value`, the number in each to two decimals, with a star where the column `star` is true."""
    shown = columns_of(frame, x, y, value)
    stars = frame[star].map({True: "*"}).fillna("") if star else ""
    shown["written"] = frame[value].map("{:.2f}".format) + stars
    above = frame[value] - frame[value].min()
    shown["dark"] = above < 0.45 * above.max()
    hue = alt.Color(f"{value}:Q", scale=alt.Scale(scheme="viridis"), title=value)
    base = _grid(shown, x, y, order_x, order_y)
    cells = base.mark_rect(stroke="white").encode(color=hue, tooltip=[x, y, f"{value}:Q"])
    text = base.mark_text(fontSize=12).encode(text="written:N", color=_white_where("dark"))
    size = {"width": 46 * shown[x].nunique(), "height": 0.7 * 46 * shown[y].nunique()}
    return (cells + text).properties(title=titled(title, subtitle), **size).configure_view(stroke=None)


def effect_map(
    frame: pd.DataFrame,
    x: str,
    y: str,
    value: str,
    *,
    title: str,
    subtitle: str = "",
    low: str | None = None,
    high: str | None = None,
    ring: str | None = None,
    column: str | None = None,
    order_x: Sequence[Any] | None = None,
    order_y: Sequence[Any] | None = None,
) -> alt.Chart | alt.FacetChart | alt.LayerChart:
    """Signed effects as cells coloured from blue (negative) over white (0) to red, the number in each.

    Under the number stands the interval from `low` to `high`; a ring marks cells where the column `ring` is true.
    `column` splits the map into panels on one scale.
    """
    size = largest(frame[value])
    digits = 2 if size >= 0.1 else 3
    shown = columns_of(frame, x, y, value, low, high, ring, column)
    tips = list(shown)
    shown["written"] = [_number(number, digits) for number in frame[value]]
    shown["light"] = frame[value].abs() > 0.6 * size
    if low and high:
        shown["between"] = [
            "" if pd.isna(a) or a == b == 0 else f"{_number(a, digits)} {_number(b, digits)}"
            for a, b in zip(frame[low].round(digits), frame[high].round(digits), strict=True)
        ]
    wide, tall = 52 * len(order_x or shown[x].unique()), 36 * len(order_y or shown[y].unique())
    legend = alt.Legend(gradientLength=min(200, tall))
    hue, ink = alt.Color(f"{value}:Q", scale=signed(size), title=value, legend=legend), _white_where("light")
    base = _grid(shown, x, y, order_x, order_y)
    layers = [base.mark_rect(stroke="white").encode(color=hue, tooltip=tips)]
    layers.append(base.mark_text(fontSize=11, dy=-4 if low else 0).encode(text="written:N", color=ink))
    if low and high:
        layers.append(base.mark_text(fontSize=7, dy=7).encode(text="between:N", color=ink))
    if ring:
        marked = base.transform_filter(f"datum['{ring}']")
        inside: dict[str, Any] = {"width": alt.RelativeBandSize(band=0.92), "height": alt.RelativeBandSize(band=0.86)}
        layers.append(marked.mark_rect(fill=None, stroke="black", strokeWidth=1.3, cornerRadius=13, **inside))
    chart: Any = alt.layer(*layers).properties(width=wide, height=tall)
    return panels(chart, frame, column).properties(title=titled(title, subtitle)).configure_view(stroke=None)


def head_map(frame: pd.DataFrame, site: str, *, title: str, column: str | None = None) -> Any:
    """Layer x head of the rows whose `site` is a head: `estimate`, `low`, `high`, a ring where it holds."""
    cells = frame[is_head(frame[site], parts=True)].copy()
    cells[["layer", "head"]] = cells[site].str.extract(r"h(\d+)\.(\d+)").astype(int).to_numpy()
    ring, held = holding(cells)
    shown: dict[str, Any] = {"low": "low", "high": "high", "ring": "holds", "column": column}
    subtitle = f"95 % interval over queries; {ring}"
    return head_grid(cells.assign(holds=held), "estimate", title=title, subtitle=subtitle, **shown)


def tested_map(frame: pd.DataFrame, x: str, y: str, value: str, **options: Any) -> Any:
    """An `effect_map` with a ring where it holds."""
    ring, held = holding(frame)
    return effect_map(frame.assign(holds=held), x, y, value, subtitle=ring, ring="holds", **options)


def holding(frame: pd.DataFrame) -> tuple[str, pd.Series]:
    """The words for a ring, and the rows that have one: p_corrected < .05, and a share of the gap that counts.

    Where the frame has no `share`, as for attention, p decides alone. In a registry, where several runs answer one
    question, p is also times their number.
    """
    sure = frame["p_corrected"] < LEVEL
    if "share" not in frame or frame["share"].isna().all():
        return f"ring: it holds (p < {LEVEL:g} over the whole map)", sure
    ring = f"ring: it holds (p < {LEVEL:g} over the whole map, and at least {EFFECT:g} of the gap)"
    return ring, sure & (frame["share"].abs() >= EFFECT)


def head_grid(cells: pd.DataFrame, value: str, *, sizes: tuple[int, int] = (0, 0), **options: Any) -> Any:
    """An `effect_map` of the columns `layer` and `head`, empty rows and columns included: see `grid_axes`."""
    layers, heads = grid_axes(cells, sizes)
    return effect_map(cells, "head", "layer", value, order_x=heads, order_y=layers, **options)


def columns_of(frame: pd.DataFrame, *names: str | None) -> pd.DataFrame:
    """A copy of the columns that are named, each once."""
    return frame[[name for name in dict.fromkeys(names) if name]].copy()


def _grid(shown: pd.DataFrame, x: str, y: str, order_x: Sequence[Any] | None, order_y: Sequence[Any] | None) -> Any:
    """The axes of a map of cells, `x` above it."""
    # A domain keeps the rows and columns that have no cell: without them the others would be read in wrong places.
    across, down = (alt.Undefined if order is None else alt.Scale(domain=list(order)) for order in (order_x, order_y))
    above = alt.X(f"{x}:N", sort=order_x, scale=across, axis=alt.Axis(orient="top", labelAngle=0, title=x))
    return alt.Chart(shown).encode(x=above, y=alt.Y(f"{y}:N", sort=order_y, scale=down, title=y))


def _white_where(name: str) -> Any:
    """White text where the column is true, black elsewhere."""
    return alt.condition(getattr(alt.datum, name), alt.value("white"), alt.value("black"))


def largest(column: pd.Series) -> float:
    """The largest |value|, the end of a scale around 0; 1 where there is no value, or 0 alone."""
    size = float(column.abs().max())
    return size if size > 0 else 1.0


def signed(size: float) -> alt.Scale:
    """Blue below 0, white at 0, red above."""
    return alt.Scale(scheme="redblue", domain=[-size, size], reverse=True)


def panels(chart: Any, frame: pd.DataFrame, column: str | None) -> Any:
    """The chart once for each value of a column, in the order of their first rows."""
    if not column:
        return chart
    return chart.facet(column=alt.Column(f"{column}:N", title=None, sort=list(frame[column].unique())))


def _number(value: float, digits: int) -> str:
    """A number without a zero before the point, and 0 where no digit is left."""
    if round(abs(value), digits) == 0:
        return "0"
    return f"{value:.{digits}f}".replace("-0.", "\u2212.").removeprefix("0") if abs(value) < 1 else f"{value:.1f}"


def lines(
    frame: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    *,
    title: str,
    subtitle: str = "",
    low: str | None = None,
    high: str | None = None,
    row: str | None = None,
    column: str | None = None,
    rule: Mapping[str, float] | None = None,
) -> alt.Chart | alt.FacetChart | alt.LayerChart:
    """Lines with points over an integer axis, bands between `low` and `high`, dashed rules at named values.

    `row` and `column` name columns that split it into panels on common axes.
    """
    shown = columns_of(frame, x, y, colour, low, high, row, column)
    axis = alt.X(f"{x}:Q", axis=alt.Axis(format="d", tickMinStep=1, grid=False), title=x)
    hue = alt.Color(f"{colour}:N", title=colour, scale=COLOURS, legend=LEGEND)
    named = {f"rule {name}": value for name, value in (rule or {}).items()}
    base = alt.Chart(shown.assign(**named)).encode(y=alt.Y(f"{y}:Q", scale=FREE, title=y))
    layers: list[Any] = []
    if low and high:
        layers.append(base.mark_area(opacity=0.12).encode(x=axis, y=f"{low}:Q", y2=f"{high}:Q", color=hue))
    drawn = base.mark_line(point=alt.OverlayMarkDef(size=28), strokeWidth=1.8)
    layers.append(drawn.encode(x=axis, color=hue, tooltip=[colour, f"{x}:Q", f"{y}:Q"]))
    for name in rule or {}:
        height = alt.Y(f"mean(rule {name}):Q", title=y)
        layers.append(base.mark_rule(**DASHED).encode(y=height))
        label = base.mark_text(align="right", dy=-6, color="#777", fontSize=10, text=name)
        layers.append(label.encode(x=f"max({x}):Q", y=height))
    chart: Any = alt.layer(*layers).properties(width=250, height=170)
    if column and not row and shown[column].nunique() > BESIDE:
        chart = chart.facet(alt.Facet(f"{column}:N", title=None), columns=BESIDE)
    elif row or column:
        rows = alt.Row(f"{row}:N", title=row) if row else alt.Undefined
        columns = alt.Column(f"{column}:N", title=None) if column else alt.Undefined
        chart = chart.facet(row=rows, column=columns)
    return chart.properties(title=titled(title, subtitle))


def bars(
    frame: pd.DataFrame, x: str, y: str, *, title: str, subtitle: str = "", low: str = "", high: str = ""
) -> alt.LayerChart | alt.FacetChart:
    """A bar a row from 0 to `x`, in the order of the frame, its number beside it and a line from `low` to `high`."""
    shown = columns_of(frame, y, x, low, high).assign(written=frame[x].map("{:.3f}".format))
    axis = alt.Axis(labelLimit=300)
    base = alt.Chart(shown).encode(y=alt.Y(f"{y}:N", sort=frame[y].tolist(), title=None, axis=axis))
    bar = base.mark_bar(color="#4c78a8", opacity=0.75)
    layers: list[Any] = [bar.encode(x=alt.X(f"{x}:Q", title=x), tooltip=[y, x])]
    if low:
        layers.append(base.mark_rule(strokeWidth=1.5).encode(x=f"{low}:Q", x2=f"{high}:Q"))
    layers.append(base.mark_text(align="left", fontSize=10, dx=4).encode(x=alt.value(460), text="written:N"))
    return alt.layer(*layers).properties(width=450, height=24 * len(frame), title=titled(title, subtitle))


def strips(
    frame: pd.DataFrame,
    x: str,
    y: str,
    colour: str,
    *,
    title: str,
    subtitle: str = "",
    faint: str,
    rule: str,
    column: str,
) -> alt.FacetChart:
    """Lines over steps of `x`, and single draws as faint points beside them: rows whose `faint` is 0 or more.

    A dashed line stands at the panel's value of the column `rule`.
    """
    shown = columns_of(frame, x, y, colour, faint, rule, column)
    plain = alt.Chart(shown)
    base = plain.encode(x=alt.X(f"{x}:O", title=x, axis=alt.Axis(labelAngle=0)))
    hue = alt.Color(f"{colour}:N", title=colour, scale=COLOURS, sort=list(shown[colour].unique()), legend=LEGEND)
    height = alt.Y(f"{y}:Q", title=y, scale=FREE)
    whole, single = (base.transform_filter(f"datum['{faint}'] {sign} 0") for sign in ("<", ">="))
    layers = [
        plain.mark_rule(**DASHED).encode(y=alt.Y(f"mean({rule}):Q", title=y)),
        single.mark_tick(opacity=0.5, thickness=1, width=14).encode(y=height, color=hue),
        whole.mark_line(point=alt.OverlayMarkDef(size=40), strokeWidth=1.6).encode(y=height, color=hue, tooltip=[x, y]),
    ]
    panels = alt.Facet(f"{column}:N", title=None, sort=list(shown[column].unique()))
    chart: Any = alt.layer(*layers).properties(width=190, height=170).facet(panels, columns=BESIDE)
    return chart.properties(title=titled(title, subtitle))


def stacked(*charts: Any) -> alt.VConcatChart:
    """Charts one above the other, each with colours of its own."""
    bare = [chart.copy(deep=False) for chart in charts]
    for chart in bare:
        chart.config = alt.Undefined  # only the whole may have one
    return alt.vconcat(*bare).resolve_scale(color="independent").configure_view(stroke=None)


def titled(title: str, subtitle: str) -> alt.TitleParams:
    """The title of a chart, with a line under it."""
    return alt.TitleParams(title, subtitle=subtitle, anchor="start", offset=12)


def save(chart: Any, stem: Path) -> list[Path]:
    """Writes `<stem>.html`, which needs no network, `<stem>.png` and `<stem>.json`, its Vega-Lite specification.

    Each is whole or not there.
    """
    spec = chart.to_dict()
    body = f'<div id="chart"></div><script type="application/json" id="spec">{as_json(spec)}</script>'
    page = document("mechir", "body { margin: 12px; background: #fff; }", body, [vega(), static("chart.js")])
    text = json.dumps(spec, allow_nan=False)
    files = []
    for suffix, content in (("html", page.encode()), ("png", picture(spec, ".png")), ("json", text.encode())):
        files.append(stem.with_name(f"{stem.name}.{suffix}"))
        with whole(files[-1]) as temporary:
            temporary.write_bytes(content)
    return files


def picture(spec: Mapping[str, Any], suffix: str) -> bytes:
    """A Vega-Lite specification as `.png`, `.svg` or `.pdf`; no browser, and nothing is fetched for it."""
    settings: dict[str, Any] = {"vl_version": VERSION, "allowed_base_urls": []}
    drawn = _drawable(spec)
    if suffix == ".svg":
        return str(vl_convert.vegalite_to_svg(drawn, **settings)).encode()
    if suffix == ".pdf":
        return bytes(vl_convert.vegalite_to_pdf(drawn, **settings))
    return bytes(vl_convert.vegalite_to_png(drawn, scale=2, **settings))


def _drawable(value: Any) -> Any:
    """The value without characters that no SVG can hold, such as control characters, which would end the process."""
    if isinstance(value, str):
        return UNDRAWABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_drawable(name): _drawable(part) for name, part in value.items()}
    return [_drawable(part) for part in value] if isinstance(value, list) else value


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, of the version that Altair's charts are written for."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VERSION)
    assert not any(text in bundle for text in ("</script", "<!--", "\r")), "Vega's bundle would end its script"
    return bundle
