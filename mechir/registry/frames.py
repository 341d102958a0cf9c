"""Frames in which sites print as `h8.1`, where pandas would write the tuples that they are."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import pandas as pd

from mechir.circuits import Edge
from mechir.interventions import Mask
from mechir.registry.findings import address
from mechir.sites import Site


def _of_text(name: str, of: type = pd.DataFrame) -> Callable[..., Any]:
    """A method of pandas' own, on the frame or series with its sites as text."""

    @functools.wraps(getattr(of, name))
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        return getattr(as_text(self), name)(*arguments, **options)

    return method


def _in_view(name: str, note: Callable[[str], str]) -> Callable[[Any], Any]:
    """How pandas shows a frame, by its columns in view; `note` makes what is said of the others part of it."""

    @functools.wraps(getattr(pd.DataFrame, name))
    def method(self: Any) -> Any:
        if not len(self):
            return note(f"no rows; columns: {', '.join(map(str, self.columns))}")
        seen = _seen(self)
        hidden = [column for column in self.columns if column not in seen]
        if not hidden:
            return getattr(as_text(self), name)()
        shown = getattr(as_text(self)[seen], name)()
        told = f"and {len(hidden)} more columns: {', '.join(hidden)}"
        return shown and f"{shown}\n{note(told)}"  # pandas has no HTML where its option says so

    return method


def _seen(frame: pd.DataFrame) -> list[Any]:
    """The columns to show: all of a frame that somebody has chosen columns of."""
    view, made = frame.attrs.get("view", []), frame.attrs.get("columns", [])
    if not (view and frame.columns.is_unique and set(made) <= set(frame.columns)):
        return list(frame.columns)
    view = [name for name in view if name not in ("model", "collection") or frame[name].nunique() > 1]
    return view + [name for name in frame.columns if name not in made]


class SiteSeries(pd.Series):
    """A column of a `SiteFrame`."""

    @property
    def _constructor(self) -> type[SiteSeries]:
        return SiteSeries

    @property
    def _constructor_expanddim(self) -> type[SiteFrame]:
        return SiteFrame

    __repr__ = _of_text("__repr__", pd.Series)
    to_string = _of_text("to_string", pd.Series)
    to_csv = _of_text("to_csv", pd.Series)
    to_json = _of_text("to_json", pd.Series)
    value_counts = _of_text("value_counts", pd.Series)


class SiteFrame(pd.DataFrame):
    """A frame with sites, which are objects and print as text.

    Whatever makes an index of them, or a file, takes them as text: `groupby("site")` and `pivot` have the names h8.1.
    What has many columns shows the first to look at, and names the others.
    """

    @property
    def _constructor(self) -> type[SiteFrame]:
        return SiteFrame

    @property
    def _constructor_sliced(self) -> type[SiteSeries]:
        return SiteSeries

    __repr__ = _in_view("__repr__", lambda told: textwrap.fill(told, 100))
    _repr_html_ = _in_view("_repr_html_", lambda told: f"<p>{escape(told)}</p>")
    to_string = _of_text("to_string")
    to_html = _of_text("to_html")
    to_csv = _of_text("to_csv")
    to_json = _of_text("to_json")
    to_latex = _of_text("to_latex")
    to_markdown = _of_text("to_markdown")
    to_parquet = _of_text("to_parquet")
    groupby = _of_text("groupby")
    pivot = _of_text("pivot")
    pivot_table = _of_text("pivot_table")
    set_index = _of_text("set_index")
    value_counts = _of_text("value_counts")

    def sort_values(self, by: Any, *, key: Callable[[Any], Any] | None = None, **options: Any) -> Any:
        """As pandas sorts, sites by kind, layer and unit: h2.1 before h10.0."""
        return super().sort_values(by, key=key or _in_order, **options)


def with_sites(frame: pd.DataFrame, view: Sequence[str] = ()) -> SiteFrame:
    """The frame with its column `site`, which is text, as objects; `view`: the columns that it shows, in their order.

    Columns of the view that say one model or one collection are not shown; those that are added are.
    """
    sites = pd.Series([address(text) for text in frame["site"]], index=frame.index, dtype=object)
    made = SiteFrame(frame.assign(site=sites))
    if view:
        made.attrs = {"view": list(view), "columns": list(made.columns)}
    return made


def as_text(frame: Any) -> Any:
    """The plain frame or series, sites as text."""
    if isinstance(frame, pd.Series):
        return pd.Series(frame.map(_text) if frame.dtype == object else frame)
    plain = pd.DataFrame(frame).copy(deep=False)
    for place, kind in enumerate(plain.dtypes):
        if pd.api.types.is_object_dtype(kind):
            texts = [_text(one) for one in plain.iloc[:, place]]
            plain.isetitem(place, pd.Series(texts, plain.index, None if texts else "str"))
    return plain


def _text(value: Any) -> Any:
    if value is None:
        return ""
    return str(value) if isinstance(value, Site | Edge | Mask) else value


def _in_order(column: pd.Series) -> pd.Series:
    """What a column with sites is sorted by: their text, numbers by their size."""
    if column.dtype != object:
        return column
    return column.map(lambda one: re.sub(r"\d+", lambda number: number[0].zfill(9), str(_text(one))))
