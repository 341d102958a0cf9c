"""What heads look at: their attention between query and document on a few pairs, word piece by word piece.

Of queries spread over the pool, the first document of the highest grade and the first of the lowest. Nothing is
averaged and nothing claimed: it shows what the numbers of other experiments are about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError
from mechir.methods.attention import pair_attention
from mechir.methods.checks import at_least, head_list
from mechir.pairs import Pair, first_of_each
from mechir.views import charts


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair that is taken."""
    return 1.0


def check(model: Any, pairs: Sequence[Pair], *, heads: str, queries: int) -> dict[str, Any]:
    """Heads in the order in which they are shown; refuses what does not fit."""
    at_least(1, queries=queries)
    if not (found := head_list(model, heads, ordered=True)):
        raise MechirError("--heads is empty: write the heads to look at with commas, e.g. h1.1,h2.9.")
    return {"heads": found}


def prepare(model: Any, pairs: list[Pair], *, queries: int, **options: Any) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs to look at."""
    ids = list(dict.fromkeys(pair.query_id for pair in pairs))
    spread = {ids[place] for place in np.linspace(0, len(ids) - 1, min(queries, len(ids))).round().astype(int).tolist()}
    kept = first_of_each([pair for pair in pairs if pair.query_id in spread], 1, by_grade=True)
    found = []
    for query in ids:
        own = sorted((pair for pair in kept if pair.query_id == query), key=lambda pair: -(pair.grade or 0))
        found += [own[0], own[-1]][: len(own)] if own else []
    return found, {}


def measure(model: Any, pairs: Sequence[Pair], *, heads: str = "h0.0", queries: int = 3) -> pd.DataFrame:
    """The rows of `pair_attention`. `heads` with commas; `queries`: how many are shown."""
    return pair_attention(model, pairs, heads.split(","))


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One row per head and pair: `site`, ids, `grade`, `score` (logits).

    `query_doc`, the largest weight to the document of a query piece, averaged over them; `doc_query` the reverse.
    """
    found = rows[["site", "query_id", "doc_id", "grade", "score"]].copy()
    for name, readers in (("query_doc", "query"), ("doc_query", "doc")):
        largest = [np.reshape(row[name], (len(row[readers]), -1)).max(axis=1) for _, row in rows.iterrows()]
        found[name] = [float(values.mean()) for values in largest]
    return found


def chart(summary: pd.DataFrame) -> Any:
    """How much each head looks across, a row per pair."""
    named = summary.assign(pair=summary["query_id"] + "/" + summary["doc_id"])
    return charts.heatmap(
        named, "site", "pair", "query_doc", title="Largest weight of a query piece to the document, mean over pieces"
    )
