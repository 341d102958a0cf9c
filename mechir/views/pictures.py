"""A chart that shows itself: in a notebook as SVG, in a terminal as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt

from mechir.atomic import written
from mechir.errors import MechirError
from mechir.views import charts

SUFFIXES = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class Picture:
    """A chart: a notebook shows it as SVG, which needs no network, a terminal as `text`; `chart` is Altair's."""

    chart: Any = field(repr=False)
    text: str

    @classmethod
    def of_spec(cls, spec: dict[str, Any], text: str) -> Picture:
        """The chart of a Vega-Lite specification, as `charts.save` stores it."""
        return cls(alt.Chart.from_dict(spec), text)

    def __repr__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return charts.picture(self.chart.to_dict(), ".svg").decode()

    def save(self, file: Path | str) -> Path:
        """Writes the chart as `.svg`, `.png` or `.pdf`, whole or not at all.

        Raises:
            MechirError: for another suffix, or a path that cannot be written.
        """
        target = Path(file)
        if target.suffix not in SUFFIXES:
            raise MechirError(f"Cannot save a chart as '{target}': write {', '.join(SUFFIXES)}.")
        content = charts.picture(self.chart.to_dict(), target.suffix)
        return written(target, lambda temporary: temporary.write_bytes(content))
