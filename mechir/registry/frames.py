"""Frames in which sites print as `h8.1`, where pandas would write the tuples that they are."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mechir.interventions import Mask
from mechir.registry.findings import address, printed
from mechir.sites import Edge, Site


class SiteSeries(pd.Series):
    """A column of a `SiteFrame`."""

    @property
    def _constructor(self) -> type[SiteSeries]:
        return SiteSeries

    @property
    def _constructor_expanddim(self) -> type[SiteFrame]:
        return SiteFrame

    def __repr__(self) -> str:
        """As pandas writes it, with sites as text."""
        return repr(pd.Series(self.map(_text) if self.dtype == object else self))


class SiteFrame(pd.DataFrame):
    """A frame with sites, which are objects and print as text."""

    @property
    def _constructor(self) -> type[SiteFrame]:
        return SiteFrame

    @property
    def _constructor_sliced(self) -> type[SiteSeries]:
        return SiteSeries

    def __repr__(self) -> str:
        """As pandas writes it, with sites as text."""
        return repr(as_text(self))

    def _repr_html_(self) -> str | None:
        return as_text(self)._repr_html_()


def with_sites(frame: pd.DataFrame) -> SiteFrame:
    """The frame with its column `site`, which is text, as objects."""
    sites = pd.Series([address(text) for text in frame["site"]], index=frame.index, dtype=object)
    return SiteFrame(frame.assign(site=sites))


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The plain frame, sites as text."""
    plain = pd.DataFrame(frame)
    objects = [name for name in plain.columns if plain[name].dtype == object]
    return plain.assign(**{name: [_text(one) for one in plain[name]] for name in objects})


def _text(value: Any) -> Any:
    if value is None:
        return ""
    return printed(value) if isinstance(value, Site | Edge | Mask) else value
