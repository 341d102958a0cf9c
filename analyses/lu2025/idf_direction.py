"""Is IDF in the embedding? Singular vectors of W_E against IDF (Lu et al. 2025, arXiv:2502.04645, section 5.1).

The first 50 left singular vectors of the word embeddings are correlated with IDF and log IDF over word pieces, counted
in the documents of the pool (or read from --idf TABLE), against IDF permuted over the pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.methods.lexical import idf_correlations, piece_idf, piece_rows, read_idf
from mechir.pairs import Pair
from mechir.views import charts


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair: none, only weights and word counts."""
    return 0.0


def measure(model: Any, pairs: Sequence[Pair], *, idf: str = "", vectors: int = 50) -> pd.DataFrame:
    """One row per document: its distinct word pieces. `idf`, a table word<TAB>idf, and `vectors` are the summary's."""
    return piece_rows(model, pairs)


def summarise(
    rows: pd.DataFrame, judged: pd.DataFrame, model: Any, *, idf: str = "", vectors: int = 50
) -> pd.DataFrame:
    """One row per singular vector: see `idf_correlations`. Each document counts once."""
    table = read_idf(idf, model) if idf else piece_idf(rows.drop_duplicates("doc_id")["pieces"].to_list())
    return idf_correlations(model, table, vectors=vectors)


def chart(summary: pd.DataFrame) -> Any:
    """|r| of every singular vector with IDF, by place; the rule is the length of the rows of W_E."""
    vectors = summary[summary["vector"] != "norm"]
    shown = vectors.assign(place=vectors["vector"].astype(int))
    parts = [
        shown.assign(table=title, r=shown[f"pearson_{name}"].abs())[["place", "table", "r"]]
        for name, title in (("idf", "IDF"), ("log_idf", "log IDF"))
    ]
    norm = summary[summary["vector"] == "norm"].iloc[0]
    return charts.lines(
        pd.concat(parts, ignore_index=True),
        "place",
        "r",
        "table",
        title="|Pearson r| of the singular vectors of W_E with IDF",
        subtitle=f"{int(norm['n'])} word pieces; the strongest p = {vectors['p_idf'].min():.3f} (permutations)",
        rule={"length of a row, IDF": abs(float(norm["pearson_idf"]))},
    )
