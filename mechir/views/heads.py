"""Layers x heads of any frame of sites, for a notebook; as text for a terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mechir.errors import MechirError, closest
from mechir.inference import LEVEL
from mechir.views import charts
from mechir.views.latex import ESTIMATES, INTERVAL

TESTED = ("p_all", "p_corrected")
"""What says whether the estimate counts, the first that is there; before them the column `holds`."""


@dataclass(frozen=True)
class HeadMap:
    """A map of heads: a notebook shows it as SVG, which needs no network, a terminal as text; `chart` is Altair's."""

    chart: Any = field(repr=False)
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return charts.picture(self.chart.to_dict(), ".svg").decode()


def heads(frame: pd.DataFrame, value: str = "") -> HeadMap:
    """A map of layers x heads for each measure of a frame, see `mechir.show.heads`."""
    rows, value = _of_heads(frame, value)
    ends = (f"{value}_low", f"{value}_high")
    own = value in ESTIMATES
    low, high = ends if {*ends} <= {*rows} else INTERVAL if own and {*INTERVAL} <= {*rows} else ("", "")
    tested = next((name for name in TESTED if name in rows), "")
    ring = ""
    if own and ("holds" in rows or tested):
        holds = rows["holds"].astype(object).eq(True) if "holds" in rows else rows[tested] < LEVEL
        rows, ring = rows.assign(significant=holds), "it holds" if "holds" in rows else f"{tested} < {LEVEL:g}"
    maps: list[Any] = []
    texts: list[str] = []
    for measure, part in rows.groupby("measure" if "measure" in rows else rows.assign(of=value)["of"], sort=False):
        _refuse_twice(part, str(measure))
        unit = f", {part['unit'].iloc[0]}" if "unit" in part and part["unit"].iloc[0] else ""
        title = f"{measure}{unit}"
        under = "; ".join(["95 % interval"] * bool(low) + [f"ring: {ring}"] * bool(ring))
        chart = charts.effect_map(
            part,
            "head",
            "layer",
            value,
            title=title,
            subtitle=under,
            low=low or None,
            high=high or None,
            ring="significant" if ring else None,
            order_x=sorted(set(part["head"].tolist())),
            order_y=sorted(set(part["layer"].tolist())),
        )
        maps.append(chart)
        texts.append(_text(part, value, title, ring))
    return HeadMap(maps[0] if len(maps) == 1 else charts.stacked(*maps), "\n\n".join(texts))


def _of_heads(frame: pd.DataFrame, value: str) -> tuple[pd.DataFrame, str]:
    """The rows of heads that have a value, with `layer` and `head`, and the column that is shown."""
    if "site" not in frame:
        raise MechirError("There is no column 'site' in this frame: give findings, links or a summary of heads.")
    numbers = [name for name in frame if pd.api.types.is_float_dtype(frame[name])]
    shown = value or next((name for name in ESTIMATES if name in frame), "")
    if shown not in numbers:
        names = f"the closest are {closest(shown, numbers)}" if numbers else "it has none"
        raise MechirError(f"There is no column of numbers '{shown}' in this frame: {names}.")
    sites = pd.Series(["" if site is None else str(site) for site in frame["site"]], index=frame.index)
    places = sites.str.extract(r"^h(\d+)\.(\d+)$").set_axis(["layer", "head"], axis=1)
    rows = pd.DataFrame(frame).assign(site=sites, **places)[places["head"].notna() & frame[shown].notna()]
    if rows.empty:
        raise MechirError(
            f"No head in this frame has a '{shown}': ask for others, such as mi.findings(role='matching')."
        )
    return rows.astype({"layer": int, "head": int}), shown


def _refuse_twice(part: pd.DataFrame, measure: str) -> None:
    """Refuses two values of one head: a map shows one."""
    twice = part[part.duplicated("site", keep=False)]
    if twice.empty:
        return
    own = twice[twice["site"] == twice["site"].iloc[0]]
    texts = [name for name in own if not pd.api.types.is_float_dtype(own[name]) and own[name].nunique() > 1]
    example = f", such as those whose '{texts[0]}' is {own[texts[0]].iloc[0]!r}" if texts else ""
    raise MechirError(f"{own['site'].iloc[0]} has {len(own)} values by '{measure}': keep one of each head{example}.")


def _text(part: pd.DataFrame, value: str, title: str, ring: str) -> str:
    """The map in columns, to three digits of the largest, with a star where there is a ring."""
    stars = ["*" if ring and one else "" for one in part["significant"]] if ring else [""] * len(part)
    size = float(part[value].abs().max())
    digits = max(0, 2 - math.floor(math.log10(size))) if size else 0
    shown = [f"{round(number, digits) + 0.0:.6g}{star}" for number, star in zip(part[value], stars, strict=True)]
    written = part.assign(written=shown)
    table = written.pivot(index="layer", columns="head", values="written").fillna("")
    told = f"{title} (layer x head{f'; *: {ring}' if ring else ''})"
    return f"{told}\n{table.to_string()}"
