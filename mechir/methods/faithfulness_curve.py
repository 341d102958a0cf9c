"""A curve of faithfulness over the size of circuits in a few numbers.

CMD is the area between f and 1, CPR that under f, over the share of edges from 0 to that of the
largest circuit, all edges where it is `nested`'s last, as the MIB benchmark has it:
there the two largest of ten circuits make up most of the area, and a CPR above 1 says that circuits overshoot, not that
they are good. The means over the logarithm of the size give each factor of the size equal weight.

Source: Mueller et al. 2025 (MIB, arXiv:2504.13151), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechir.errors import MechirError, refuse_other_than_whole
from mechir.methods.faithfulness import Reached

FAITHFUL = 0.9
"""The share from which on a circuit is called faithful."""
DRAWS = 1000


class Curve(NamedTuple):
    """`cmd`, `cpr` over the share of edges; `cmd_log`, `cpr_log` over the logarithm of the size; `size`, the least that
    reaches `FAITHFUL`, missing where none does.
    """

    cmd: float
    cpr: float
    cmd_log: float
    cpr_log: float
    size: float


def curve(frame: pd.DataFrame, edges: int) -> Curve:
    """The curve of the lines of `faithfulness` of nested circuits; `edges`: how many the whole model has.

    Raises:
        MechirError: for lines without circuits or without f, and for fewer edges than a circuit has.
    """
    lines = frame[frame["size"] > 0].sort_values("size")
    refuse_other_than_whole(1, edges=edges)
    if lines.empty or lines["estimate"].isna().any() or lines["size"].max() > edges:
        raise MechirError(
            "A curve needs circuits of one edge or more, f of each, and the number of all edges: give the lines of "
            "mi.faithfulness(...) of nested circuits, and len(scores)."
        )
    return _curve(lines["estimate"].to_numpy(dtype=float), lines["size"].to_numpy(), edges)


def curve_table(reached: Reached, sizes: Sequence[int], edges: int, *, seed: int = 0) -> pd.DataFrame:
    """The curve with 95 % intervals: `measure`, `estimate`, `low`, `high`, `queries`.

    Whole queries are drawn anew 1,000 times, with the circuits as they are. `size` is one of the sizes, so its interval
    goes from one of them to another; where no circuit reaches `FAITHFUL` in a draw, its size there is infinite, and a
    missing end says so.

    Args:
        reached: by the circuits of these sizes, growing.
        sizes: their numbers of edges.
        edges: how many the whole model has.
        seed: of the draws.
    """
    n = len(reached.gaps)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    drawn = (counts @ reached.toward) / (counts @ reached.gaps)[:, None]
    at = np.asarray(sizes)
    every = np.array([_curve(f, at, edges) for f in drawn], dtype=float)
    every[:, -1] = np.where(np.isnan(every[:, -1]), np.inf, every[:, -1])
    ends = [np.quantile(column, [0.025, 0.975], method="nearest") for column in every.T]
    table = pd.DataFrame(ends, columns=["low", "high"]).replace(np.inf, np.nan)
    table.insert(0, "measure", list(Curve._fields))
    table.insert(1, "estimate", list(_curve(reached.toward.mean(0) / reached.gaps.mean(), at, edges)))
    return table.assign(queries=n)


def _curve(f: Float[np.ndarray, "size"], sizes: np.ndarray, edges: int) -> Curve:
    linear, logarithm = np.concatenate([[0.0], sizes / edges]), np.log10(sizes)
    from_none = np.concatenate([[0.0], f])
    faithful = np.flatnonzero(f >= FAITHFUL)
    return Curve(
        cmd=float(np.trapezoid(np.abs(1 - from_none), linear)),
        cpr=float(np.trapezoid(from_none, linear)),
        cmd_log=_mean(np.abs(1 - f), logarithm),
        cpr_log=_mean(f, logarithm),
        size=float(sizes[faithful[0]]) if len(faithful) else float("nan"),
    )


def _mean(y: Float[np.ndarray, "size"], x: Float[np.ndarray, "size"]) -> float:
    """The mean of y along x; the plain mean where all are at one place."""
    span = float(np.ptp(x))
    return float(np.trapezoid(y, x)) / span if span else float(y.mean())
