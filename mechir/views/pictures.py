"""A chart that shows itself: in a notebook as SVG, in a terminal as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mechir.views import charts


@dataclass(frozen=True)
class Picture:
    """A chart: a notebook shows it as SVG, which needs no network, a terminal as `text`; `chart` is Altair's."""

    chart: Any = field(repr=False)
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return charts.picture(self.chart.to_dict(), ".svg").decode()
