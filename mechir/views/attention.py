"""What heads look at on one pair: its query and document as two strips of word pieces."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from mechir.views import page
from mechir.views.tokens import as_read, word_mark

SCALE = 10_000
"""A weight of 1, in the whole numbers that pages hold."""
PRINTED = 5
"""Pairs of pieces that a terminal prints of each head and direction."""


def strips(rows: pd.DataFrame) -> page.Drawing:
    """The texts of one pair as strips: pointing at a word piece shows its attention to the other text, and back.

    `rows` are those of `pair_attention` for one pair, a row per head.
    """
    (pair,) = pairs_of(rows)
    text = _printed(rows)
    body = (
        f'<div class="mechir-attention">\n<style>\n{page.static("attention.css")}{page.static("strips.css")}</style>\n'
        f'<div class="mechir-strips"><pre>{escape(text)}</pre></div>\n'
        f'<script type="application/json">{page.as_json(pair)}</script>\n</div>'
    )
    return page.Drawing(body, text, f"Attention on {pair['query_id']}/{pair['doc_id']}", page.static("strips.js"))


def grids(tokens: Sequence[str], patterns: np.ndarray, heads: Sequence[str], rows: pd.DataFrame) -> page.Drawing:
    """Whole patterns, special tokens included, drawn by CircuitsVis in the form that needs no network.

    Args:
        tokens: of the pair, n of them.
        patterns: [head, n, n], what reader (row) takes from source (column).
        heads: their names.
        rows: of `pair_attention`, for the text.
    """
    from circuitsvis.attention import attention_heads

    drawn = attention_heads(np.round(patterns, 3), list(tokens), list(heads), mask_upper_tri=False).local_src
    start, end = drawn.index("<script"), drawn.rindex("</script>")
    library, call, data = drawn[drawn.index(">", start) + 1 : end].rpartition("\n    CircuitsVis.render(\n")
    script = library + call + data.replace("<", "\\u003c")  # the tokens are in there
    title = f"Attention on {rows['query_id'].iloc[0]}/{rows['doc_id'].iloc[0]}"
    return page.Drawing(drawn[:start].replace("/>", "></div>"), _printed(rows), title, script)


def pairs_of(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The pairs as `strips.js` draws them, in their order, from rows of `pair_attention`: a row per pair and head.

    Returns:
        `query_id`, `doc_id`, `grade`, `score`; `query`, `doc`: for each word piece how it reads and whether it goes on
        with the word before; `heads`: site -> the weights of query<-doc and of doc<-query, 10000 for 1.
    """
    pairs = []
    for _, part in rows.groupby(["query_id", "doc_id"], sort=False):
        first = part.iloc[0]
        pair = {name: first[name] for name in ("query_id", "doc_id", "grade", "score")}
        pair["grade"] = None if pd.isna(pair["grade"]) else int(pair["grade"])
        mark = word_mark([*first["query"], *first["doc"]])
        pieces = {side: [as_read(str(piece), mark) for piece in first[side]] for side in ("query", "doc")}
        heads = {row["site"]: [_whole(row[name]) for name in ("query_doc", "doc_query")] for _, row in part.iterrows()}
        pairs.append(pair | pieces | {"heads": heads})
    return pairs


def _whole(weights: Any) -> list[int]:
    return np.rint(np.asarray(weights, dtype=float) * SCALE).astype(int).tolist()


def _printed(rows: pd.DataFrame) -> str:
    """The largest weights of each head: the pieces that read, those that are read, and how much."""
    lines = []
    for row in rows.to_dict("records"):
        lines.append(f"{row['site']} on {row['query_id']}/{row['doc_id']}, score {row['score']:.2f}")
        for reader, source in (("query", "doc"), ("doc", "query")):
            weights = np.asarray(row[f"{reader}_{source}"], dtype=float)
            listed = []
            for place in np.argsort(-weights, kind="stable")[:PRINTED]:
                at, to = divmod(place, len(row[source]))
                listed.append(f"{row[reader][at]} \u2192 {row[source][to]} {weights[place]:.2f}")
            lines.append(f"  {reader}<-{source}: {', '.join(listed)}")
    return "\n".join(lines)
