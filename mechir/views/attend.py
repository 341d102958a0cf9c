"""The parts of a head's attention score: what wrote the queries by what wrote the keys."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mechir.inference import LEVEL
from mechir.views import charts
from mechir.views.pictures import Picture

RING = f"it holds (p_corrected < {LEVEL:g})"


def writers(frame: pd.DataFrame, q_from: Sequence[str], k_from: Sequence[str], *, title: str) -> Picture:
    """A map of the parts, writers of queries down and writers of keys across, each side in the order given.

    Args:
        frame: `q_from`, `k_from`, `estimate`, `low`, `high`, `p_corrected`.
        q_from: the rows, each once.
        k_from: the columns, each once.
        title: above it.
    """
    marked = frame.assign(significant=frame["p_corrected"] < LEVEL)
    chart = charts.effect_map(
        marked,
        "k_from",
        "q_from",
        "estimate",
        title=title,
        subtitle=f"95 % interval over queries; ring: {RING}",
        low="low",
        high="high",
        ring="significant",
        order_x=k_from,
        order_y=q_from,
    )
    stars = marked["significant"].map({True: "*", False: ""})
    written = [f"{round(value, 3) + 0.0:.3f}{star}" for value, star in zip(marked["estimate"], stars, strict=True)]
    cells = marked.assign(written=written).pivot(index="q_from", columns="k_from", values="written")
    table = cells.reindex(index=list(q_from), columns=list(k_from))
    return Picture(chart, f"{title} (q_from x k_from; *: {RING})\n{table.to_string()}")
