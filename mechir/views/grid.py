"""The axes of a grid of layers x heads."""

from __future__ import annotations

import pandas as pd


def grid_axes(cells: pd.DataFrame, sizes: tuple[int, int] = (0, 0)) -> tuple[list[int], list[int]]:
    """Every layer and every head up to the last in `layer` and `head`, and at least as many as `sizes` says."""
    ends = zip(("layer", "head"), sizes, strict=True)
    layers, heads = (list(range(max(least, int(cells[name].max()) + 1))) for name, least in ends)
    return layers, heads
