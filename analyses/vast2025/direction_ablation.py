"""Which directions of attention the ranking depends on: Table 1 of Vast et al. 2025 (arXiv:2507.14604, section 3).

Each of the 25 directions X<-Y between CLS, query, SEP1, document and SEP2 is cut in all layers and heads, then all five
sources of a reader together. The cut is 0 after the softmax without renormalisation, as in the paper;
`--renormalise` cuts before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.collection import Collection
from mechir.interventions import Mask
from mechir.material import Pool
from mechir.methods.checks import relevant_there
from mechir.methods.directions import condition_table, stated
from mechir.pairs import Pair
from mechir.segments import FIVE, Direction, Segment, directions
from mechir.sweep import sweep
from mechir.views import charts

ORIGINAL = "original"


def interventions(model: Any, *, renormalise: bool = False) -> dict[str, Any]:
    """The intact model, the 25 directions, and each reader cut from all five sources."""
    cut = [*directions(), *(Direction(reader, Segment.ALL) for reader in FIVE)]
    return {ORIGINAL: ()} | {str(direction): Mask(direction, renormalise=renormalise) for direction in cut}


def check(
    model: Any, pairs: Sequence[Pair], collection: Collection, pool: Pool, *, renormalise: bool
) -> dict[str, Any]:
    """Refuses a pool without a relevant document."""
    relevant_there(collection.judged(pairs, full=pool.full))
    return {}


def measure(model: Any, pairs: Sequence[Pair], *, renormalise: bool = False) -> pd.DataFrame:
    """Scores of every pair under every cut: `name`, `query_id`, `doc_id`, `grade`, `score`."""
    return sweep(model, pairs, interventions(model, renormalise=renormalise))


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """nDCG@10 of every cut beside the original and the random ranking: see `condition_table`."""
    return condition_table(rows, judged, original=ORIGINAL)


def findings(summary: pd.DataFrame, *, renormalise: bool = False) -> pd.DataFrame:
    """What cutting each direction does to nDCG@10; Holm over all of them."""
    return stated(summary, renormalise)


def chart(summary: pd.DataFrame) -> Any:
    """The paper's table: readers in rows, sources in columns, a star where the paired test holds after Holm."""
    cells = summary[summary["name"].str.contains("<-", regex=False)].copy()
    cells[["reader", "source"]] = cells["name"].str.split("<-", expand=True)
    cells["significant"] = cells["p_holm"] <= 0.05
    order = [str(segment) for segment in FIVE]
    fixed = summary.set_index("name")["ndcg"]
    return charts.heatmap(
        cells,
        "source",
        "reader",
        "ndcg",
        title="nDCG@10 with reader<-source cut in all layers",
        subtitle=f"original {fixed[ORIGINAL]:.2f}, random {fixed['random']:.2f}; * p <= 0.05 (paired, Holm)",
        star="significant",
        order_x=[*order, "all"],
        order_y=order,
    )
