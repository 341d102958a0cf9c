"""Frames whose sites print as `h8.1`, where pandas would write tuples."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, TypeVar

import pandas as pd

from mechir.circuits import Edge
from mechir.interventions import Mask
from mechir.registry.findings import address
from mechir.registry.names import model_name
from mechir.sites import Site
from mechir.views.tables import first_rows, terminal_width

Kind = TypeVar("Kind", bound=type)


def _with_text(*names: str) -> Callable[[Kind], Kind]:
    """A class decorator: these methods of pandas act on the plain frame or series, sites as text."""

    def on_text(name: str, inherited: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inherited)
        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            return getattr(as_text(self), name)(*arguments, **options)

        return method

    def decorate(kind: Kind) -> Kind:
        for name in names:
            setattr(kind, name, on_text(name, getattr(kind, name)))
        return kind

    return decorate


def _text_in_view(self: Any) -> str:
    """What a terminal shows: the first rows of the visible columns, and the names of the hidden ones."""
    if not len(self):
        return _nothing(self)
    visible = seen(self)
    if visible == list(self.columns):
        return repr(as_text(self))
    text = as_text(self)[visible]
    text = text.assign(model=text["model"].map(model_name)) if "model" in text else text
    shown = first_rows(text, terminal_width())
    hidden = [str(name) for name in self.columns if name not in visible or name in shown.left_out]
    rows = f"{shown.rows} of {len(self)} rows; " if shown.rows < len(self) else ""
    note = f"{rows}and {len(hidden)} more columns: {', '.join(hidden)}"
    return f"{shown.text}\n{textwrap.fill(note, terminal_width())}"


def _html_in_view(self: Any) -> Any:
    """What a notebook shows: the visible columns, and the names of the hidden ones."""
    if not len(self):
        return f"<p>{escape(_nothing(self))}</p>"
    visible = seen(self)
    hidden = [str(column) for column in self.columns if column not in visible]
    shown = as_text(self)[visible]._repr_html_()
    note = f"and {len(hidden)} more columns: {', '.join(hidden)}"
    hint = f"<p>{escape(note)}</p>" if hidden else ""
    return shown and f"{shown}\n{hint}".strip()  # pandas has no HTML where its option says so


def _nothing(frame: Any) -> str:
    return f"no rows; columns: {', '.join(map(str, frame.columns))}"


def seen(frame: pd.DataFrame) -> list[Any]:
    """The visible columns, those that were added behind the first; all where somebody has already chosen columns."""
    view, made = frame.attrs.get("view", []), frame.attrs.get("columns", [])
    if not (view and frame.columns.is_unique and set(made) <= set(frame.columns)):
        return list(frame.columns)
    told_apart = [name for name in view if name in ("model", "collection") and frame[name].nunique() > 1]
    others = [name for name in view[1:] if name not in ("model", "collection")]
    return [*view[:1], *(name for name in frame.columns if name not in made), *told_apart, *others]


@_with_text("__repr__", "to_string", "to_csv", "to_json", "value_counts")
class SiteSeries(pd.Series):
    """A column of a `SiteFrame`."""

    _constructor = property(lambda self: SiteSeries)
    _constructor_expanddim = property(lambda self: SiteFrame)


@_with_text("to_string", "to_html", "to_csv", "to_json", "to_latex", "to_markdown", "to_parquet")
@_with_text("groupby", "pivot", "pivot_table", "set_index", "value_counts")
class SiteFrame(pd.DataFrame):
    """A frame with sites, which are objects and print as text.

    In an index and in files they are text: `groupby("site")` and `pivot` have the names h8.1. A frame of many columns
    shows the most important, and names the others.
    """

    _constructor = property(lambda self: SiteFrame)
    _constructor_sliced = property(lambda self: SiteSeries)
    __repr__ = _text_in_view
    _repr_html_ = _html_in_view

    def sort_values(self, by: Any, *, key: Callable[[Any], Any] | None = None, **options: Any) -> Any:
        """Sorts as pandas does, sites by kind, layer and unit: h2.1 before h10.0."""
        return super().sort_values(by, key=key or _in_order, **options)


def with_sites(frame: pd.DataFrame, view: Sequence[str] = ()) -> SiteFrame:
    """Turns the texts in the column `site` into objects; `view`: the columns to show, in their order.

    `model` and `collection` are hidden where they have one value; columns that are added later are shown.
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
            texts = [_text(value) for value in plain.iloc[:, place]]
            plain.isetitem(place, pd.Series(texts, plain.index, None if texts else "str"))
    return plain


def _text(value: Any) -> Any:
    if value is None:
        return ""
    return str(value) if isinstance(value, Site | Edge | Mask) else value


def _in_order(column: pd.Series) -> pd.Series:
    """The keys by which a column with sites is sorted: their text, numbers by their size."""
    if column.dtype != object:
        return column
    return column.map(lambda value: re.sub(r"\d+", lambda number: number[0].zfill(9), str(_text(value))))
