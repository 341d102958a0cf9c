"""Layers x heads of any frame of sites, for a notebook; as text for a terminal."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from mechir.errors import MechirError, closest
from mechir.inference import LEVEL
from mechir.views import charts
from mechir.views.grid import grid_axes
from mechir.views.latex import ESTIMATES, INTERVAL
from mechir.views.pictures import Picture

TESTED = ("p_all", "p_corrected")
"""The p that decides on a ring, the first that is there, where there is no column `holds`."""


def heads(frame: pd.DataFrame, value: str = "", sizes: tuple[int, int] = (0, 0)) -> Picture:
    """A map of layers x heads for each measure of a frame, see `mechir.show.heads`."""
    rows, value = _of_heads(frame, value)
    ends = (f"{value}_low", f"{value}_high")
    main = value in ESTIMATES  # of other columns it is not known which p is theirs
    low, high = ends if {*ends} <= {*rows} else INTERVAL if main and {*INTERVAL} <= {*rows} else (None, None)
    tested = next((name for name in TESTED if name in rows), "")
    ring = ""
    if main and ("holds" in rows or tested):
        sure = rows[tested] < LEVEL if tested else False
        counts = rows[value].abs() >= rows["least"] if "least" in rows else True
        holds = rows["holds"].astype(object).eq(True) if "holds" in rows else sure & counts
        counted = ", and at least what counts" if "least" in rows else ""
        ring = "it holds" if "holds" in rows else f"it holds ({tested} < {LEVEL:g}{counted})"
        rows = rows.assign(significant=holds)
    maps, texts = [], []
    for measure, part in rows.groupby("measure" if "measure" in rows else rows.assign(of=value)["of"], sort=False):
        _refuse_twice(part, str(measure))
        unit = part["unit"].iloc[0] if "unit" in part else ""
        title = f"{measure}, {unit}" if unit else str(measure)
        under = "; ".join(["95 % interval"] * bool(low) + [f"ring: {ring}"] * bool(ring))
        mark = "significant" if ring else None
        shown: dict[str, Any] = {"low": low, "high": high, "ring": mark, "sizes": sizes}
        maps.append(charts.head_grid(part, value, title=title, subtitle=under, **shown))
        texts.append(_text(part, value, title, ring, sizes))
    return Picture(maps[0] if len(maps) == 1 else charts.stacked(*maps), "\n\n".join(texts))


def _of_heads(frame: pd.DataFrame, value: str) -> tuple[pd.DataFrame, str]:
    """The rows of heads that have a value, with `layer` and `head`, and the name of the column to show."""
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
    """Raises for two values of one head."""
    twice = part[part.duplicated("site", keep=False)]
    if twice.empty:
        return
    same = twice[twice["site"] == twice["site"].iloc[0]]
    texts = [name for name in same if not pd.api.types.is_float_dtype(same[name]) and same[name].nunique() > 1]
    example = f", such as those whose '{texts[0]}' is {same[texts[0]].iloc[0]!r}" if texts else ""
    raise MechirError(f"{same['site'].iloc[0]} has {len(same)} values by '{measure}': keep one of each head{example}.")


def _text(part: pd.DataFrame, value: str, title: str, ring: str, sizes: tuple[int, int]) -> str:
    """The map in columns, to three digits of the largest, with a star where there is a ring."""
    layers, heads = grid_axes(part, sizes)
    stars = part["significant"].map({True: "*", False: ""}) if ring else [""] * len(part)
    size = float(part[value].abs().max())
    digits = max(0, 2 - math.floor(math.log10(size))) if size else 0
    shown = [f"{round(number, digits) + 0.0:.6g}{star}" for number, star in zip(part[value], stars, strict=True)]
    table = part.assign(written=shown).pivot(index="layer", columns="head", values="written")
    table = (
        table.reindex(index=layers, columns=heads).rename_axis(index="layer", columns="head").astype(object).fillna("")
    )
    return f"{title} (layer x head{f'; *: {ring}' if ring else ''})\n{table.to_string()}"
