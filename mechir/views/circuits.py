"""A circuit as a layered graph: components in columns by layer, edges as lines between them."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from mechir.circuits import parse_edge
from mechir.sites import Head, Mlp, Resid, Score
from mechir.views.charts import _signed, _title

PORT = {"q": -0.25, "k": 0.0, "v": 0.25}
"""Where the inputs of a head lie beside its middle."""


def circuit_graph(edges: pd.DataFrame, *, title: str, subtitle: str = "") -> Any:
    """The edges of a frame as lines from sender to reader: width is the size of the effect, colour its sign.

    Args:
        edges: `edge`, `estimate`; `disagrees`, if there, is true where live and frozen LayerNorms disagree: dashed.
        title: above it.
        subtitle: under the title.

    Columns are layers, the embedding on the left and the score on the right; heads lie by number, MLPs below them.
    """
    parsed = [parse_edge(text) for text in edges["edge"]]
    ends = [end for edge in parsed for end in (edge.source, *edge.readers)]
    last = max((end.layer for end in ends if not isinstance(end, Score)), default=0)
    most = max((end.head for end in ends if isinstance(end, Head)), default=0)
    places = [[*place(edge.source, last, most), *place(edge.readers[0], last, most)] for edge in parsed]
    drawn = pd.DataFrame(places, columns=["x", "y", "x2", "y2"])
    drawn = drawn.assign(edge=edges["edge"].to_numpy(), effect=edges["estimate"].to_numpy())
    drawn["dashed"] = edges["disagrees"].to_numpy() if "disagrees" in edges else False
    drawn["size"] = drawn["effect"].abs()
    names = {name(end): place(end, last, most, whole=True) for end in ends}
    nodes = pd.DataFrame([[text, *at] for text, at in names.items()], columns=["name", "x", "y"])
    layers = alt.Axis(values=list(range(last + 1)), grid=False, format="d")
    heads = alt.Axis(values=list(range(most + 1)), grid=False, format="d")
    x = alt.X("x:Q", title="layer", axis=layers, scale=alt.Scale(domain=[-1.2, last + 1.5]))
    y = alt.Y("y:Q", title="head", axis=heads, scale=alt.Scale(reverse=True, domain=[-0.8, most + 2.2]))
    colour = _signed(float(drawn["size"].max()) or 1.0)
    dashes = alt.Scale(domain=[False, True], range=[[1, 0], [5, 4]])
    lines = alt.Chart(drawn).mark_rule(opacity=0.75, strokeCap="round")
    rules = lines.encode(
        x=x,
        y=y,
        x2="x2:Q",
        y2="y2:Q",
        color=alt.Color("effect:Q", scale=colour, title="effect"),
        strokeWidth=alt.StrokeWidth("size:Q", scale=alt.Scale(range=[0.6, 7]), legend=None),
        strokeDash=alt.StrokeDash("dashed:N", scale=dashes, legend=None),
        tooltip=["edge", "effect"],
    )
    base = alt.Chart(nodes).encode(x=x, y=y)
    boxes = base.mark_circle(size=520, color="white", stroke="#444", strokeWidth=1, opacity=1)
    chart = rules + boxes + base.mark_text(fontSize=9).encode(text="name:N")
    size = {"width": 90 * (last + 2), "height": 38 * (most + 3)}
    return chart.properties(title=_title(title, subtitle), **size).configure_view(stroke=None)


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
