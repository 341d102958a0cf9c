"""Pictures of circuits: the graph over layers, and the curve of faithfulness over the size."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from mechir.circuits import parse_edge
from mechir.errors import MechirError
from mechir.sites import Head, Mlp, Resid, Score
from mechir.views.charts import DASHED, titled
from mechir.views.pictures import Picture

PORT = {"q": -0.25, "k": 0.0, "v": 0.25}
"""Where the inputs of a head lie beside its middle."""
SHOWN = 40
"""Edges that are drawn where the slider stands at first, and in a picture without one."""


def circuit_graph(edges: pd.DataFrame, *, title: str, subtitle: str = "", shown: int = SHOWN) -> Any:
    """The edges of a frame as lines from sender to reader: width is the size of the effect, colour its sign.

    Columns are layers, the embedding on the left and the score on the right; heads lie by number, MLPs below them. On a
    page a slider under the graph says how many edges are drawn, the first ones of the frame.

    Args:
        edges: `edge`, `estimate`; `disagrees`, if there, is true where live and frozen LayerNorms disagree: dashed.
        title: above it.
        subtitle: under the title.
        shown: how many edges are drawn at first, and in a picture without the slider.
    """
    parsed = [parse_edge(text) for text in edges["edge"]]
    ends = [end for edge in parsed for end in (edge.source, *edge.readers)]
    last = max((end.layer for end in ends if not isinstance(end, Score)), default=0)
    most = max((end.head for end in ends if isinstance(end, Head)), default=0)
    places = [[*place(edge.source, last, most), *place(edge.readers[0], last, most)] for edge in parsed]
    drawn = pd.DataFrame(places, columns=["x", "y", "x2", "y2"])
    drawn = drawn.assign(edge=edges["edge"].to_numpy(), effect=edges["estimate"].to_numpy(), rank=range(len(edges)))
    drawn["dashed"] = edges["disagrees"].to_numpy() if "disagrees" in edges else False
    drawn = drawn.assign(size=drawn["effect"].abs(), sign="raises the score")
    drawn.loc[drawn["effect"] < 0, "sign"] = "lowers it"
    names: dict[str, list[Any]] = {}
    for rank, edge in enumerate(parsed):
        for end in (edge.source, *edge.readers):
            names.setdefault(name(end), [*place(end, last, most, whole=True), rank])
    nodes = pd.DataFrame([[text, *at] for text, at in names.items()], columns=["name", "x", "y", "rank"])
    layers = alt.Axis(values=list(range(last + 1)), grid=False, format="d")
    heads = alt.Axis(values=list(range(most + 1)), grid=False, format="d")
    x = alt.X("x:Q", title="layer", axis=layers, scale=alt.Scale(domain=[-1.2, last + 1.5]))
    y = alt.Y("y:Q", title="head", axis=heads, scale=alt.Scale(reverse=True, domain=[-0.8, most + 2.2]))
    slider = alt.binding_range(min=1, max=len(edges), step=1, name="edges ")
    many = alt.param(name="edges", bind=slider, value=min(shown, len(edges)))
    lines = _lines(alt.Chart(drawn).transform_filter("datum.rank < edges"), x, y, float(drawn["size"].max()))
    base = alt.Chart(nodes).transform_filter("datum.rank < edges").encode(x=x, y=y)
    boxes = base.mark_circle(size=520, color="white", stroke="#444", strokeWidth=1, opacity=1)
    chart = (lines + boxes + base.mark_text(fontSize=9).encode(text="name:N")).add_params(many)
    size = {"width": 90 * (last + 2), "height": 38 * (most + 3)}
    return chart.properties(title=titled(title, subtitle), **size).configure_view(stroke=None)


def largest(edges: pd.DataFrame, size: int) -> Picture:
    """The edges with the largest effects as a graph, see `mechir.show.circuit`."""
    measured = _measured(edges)
    first = measured.sort_values("estimate", key=abs, ascending=False, kind="stable", ignore_index=True).head(size)
    some = len(first) < len(measured)
    title = f"The {len(first)} largest of {len(measured):,} edges" if some else f"All {len(first)} edges"
    text = first[["edge", "estimate"]].to_string(index=False, float_format="{:.4f}".format)
    return Picture(circuit_graph(first, title=title, shown=size), f"{title}\n{text}")


def _measured(edges: pd.DataFrame) -> pd.DataFrame:
    """The edges that have an effect, each by the name that it prints as; raises for what cannot be drawn."""
    if missing := [name for name in ("edge", "estimate") if name not in edges]:
        raise MechirError(f"There is no column '{missing[0]}' in this frame: give one of edges and their estimates.")
    if not pd.api.types.is_numeric_dtype(edges["estimate"]):
        raise MechirError("The column 'estimate' of this frame holds no numbers: give effects.")
    if pd.api.types.is_complex_dtype(edges["estimate"]):
        raise MechirError("The column 'estimate' of this frame holds complex numbers: give effects, which are real.")
    measured = edges.dropna(subset="estimate")
    infinite = np.isinf(measured["estimate"].to_numpy(dtype=float))
    if infinite.any():
        raise MechirError(f"The effect of '{measured['edge'][infinite].iloc[0]}' is not finite: leave the edge out.")
    if measured.empty:
        raise MechirError("No edge of this frame has an effect: there is nothing to draw.")
    measured = measured.assign(edge=[str(parse_edge(str(edge))) for edge in measured["edge"]])
    twice, several = measured["edge"].duplicated(), measured["edge"].str.contains("+", regex=False)
    if twice.any():
        raise MechirError(f"'{measured['edge'][twice].iloc[0]}' has several effects: keep one row of each edge.")
    if several.any():
        name = measured["edge"][several].iloc[0]
        raise MechirError(f"'{name}' has several readers, and a line has one: give the effect of each edge.")
    return measured


def _lines(chart: Any, x: Any, y: Any, most: float) -> Any:
    """The edges, `most` the size of the largest effect."""
    dashes = alt.Scale(domain=[False, True], range=[[1, 0], [5, 4]])
    widths = alt.Scale(type="sqrt", range=[0.3, 8], domain=[0, most or 1.0])
    signs = alt.Scale(domain=["raises the score", "lowers it"], range=["#c8553d", "#3d6fa8"])
    return chart.mark_rule(opacity=0.7, strokeCap="round").encode(
        x=x,
        y=y,
        x2="x2:Q",
        y2="y2:Q",
        color=alt.Color("sign:N", scale=signs, title=None),
        strokeWidth=alt.StrokeWidth("size:Q", scale=widths, legend=None),
        strokeDash=alt.StrokeDash("dashed:N", scale=dashes, legend=None),
        tooltip=["edge", "effect"],
    )


def faithfulness_curve(frame: pd.DataFrame, *, subtitle: str = "") -> Any:
    """What circuits reach by their size, with the model without them and the range of random circuits.

    `frame`: `size`, `estimate`, `low`, `high`; where there, `without`, `without_low`, `without_high`, and `random`,
    `random_low`, `random_high`.
    """
    kinds = {"circuit alone": "", "model without it": "without", "random circuits": "random"}
    parts = []
    for label, prefix in kinds.items():
        if prefix and prefix not in frame:
            continue
        columns = [prefix or "estimate", *(f"{prefix}_{end}".strip("_") for end in ("low", "high"))]
        lines = frame[["size", *columns]].set_axis(["size", "f", "low", "high"], axis=1)
        parts.append(lines.assign(run=label).dropna(subset="f"))
    shown = pd.concat(parts, ignore_index=True)
    x = alt.X("size:Q", scale=alt.Scale(type="log"), title="edges (log)", axis=alt.Axis(grid=False, format="~s"))
    hue = alt.Color("run:N", title=None, scale=alt.Scale(domain=list(kinds), range=["#4c78a8", "#e45756", "#999999"]))
    base = alt.Chart(shown).encode(x=x, color=hue)
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title="faithfulness f"), y2="high:Q")
    line = base.mark_line(point=alt.OverlayMarkDef(size=28), strokeWidth=1.8)
    rules = alt.Chart(pd.DataFrame({"f": [0.0, 1.0]})).mark_rule(**DASHED).encode(y="f:Q")
    chart = band + rules + line.encode(y="f:Q", tooltip=["run", "size", "f", "low", "high"])
    title = titled("Faithfulness of circuits by their size, on queries that they were not found on", subtitle)
    return chart.properties(width=460, height=240, title=title)


def place(end: Any, last: int, most: int, *, whole: bool = False) -> tuple[float, float]:
    """The place of an end of an edge, its inputs apart unless the whole component is meant."""
    if isinstance(end, Resid):
        return -0.8, most / 2
    if isinstance(end, Score):
        return last + 1.1, most / 2
    if isinstance(end, Mlp):
        return end.layer + 0.45, most + 1.4
    return float(end.layer), end.head + (0.0 if whole else PORT.get(end.part, 0.0))


def name(end: Any) -> str:
    """The name of the component that an end of an edge belongs to."""
    if isinstance(end, Resid):
        return "embed"
    return str(end).removesuffix(".in").removesuffix(f".{getattr(end, 'part', '')}")
