"""Is IDF in the embedding? Singular vectors of W_E against IDF (Lu et al. 2025, arXiv:2502.04645, section 5.1).

The first 50 left singular vectors of the word embeddings are correlated with IDF and log IDF over word pieces, counted
in the documents of the collection (or read from --idf TABLE), against IDF permuted over the pieces; and once more over
the word pieces of the pool's queries alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.collection import Collection
from mechir.methods.checks import at_least
from mechir.methods.lexical import LEAST, collection_counts, idf_correlations, query_pieces, read_idf, refuse_idf
from mechir.pairs import Pair
from mechir.views import charts

COLUMNS = ["piece", "idf"]
COUNTED = pd.DataFrame(columns=COLUMNS)
"""The table where none is read: IDF is counted in the collection."""


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair: none, only weights and word counts."""
    return 0.0


def check(model: Any, pairs: Sequence[Pair], collection: Collection, *, idf: str, vectors: int) -> dict[str, Any]:
    """Refuses what nothing can be correlated with."""
    at_least(1, vectors=vectors)
    refuse_idf(model, collection, idf)
    return {}


def prepare(model: Any, pairs: list[Pair], *, idf: str, **options: Any) -> tuple[list[Pair], dict[str, Any]]:
    """All pairs; a table that is read from a file, so that another one under its name is another run."""
    return pairs, {"table": pd.DataFrame(read_idf(idf, model).items(), columns=COLUMNS)} if idf else {}


def measure(
    model: Any, pairs: Sequence[Pair], *, table: pd.DataFrame = COUNTED, idf: str = "", vectors: int = 50
) -> pd.DataFrame:
    """The rows of `query_pieces`. `idf`, a table of lines word<TAB>idf, and `vectors` are the summary's."""
    return query_pieces(model, pairs)


def summarise(
    rows: pd.DataFrame,
    judged: pd.DataFrame,
    model: Any,
    collection: Collection,
    table: pd.DataFrame = COUNTED,
    *,
    vectors: int = 50,
) -> pd.DataFrame:
    """One row per singular vector: see `idf_correlations`; each document of the collection counts once.

    `n_query`, `pearson_query`, `_low` and `_high`: the same r with IDF over the word pieces of the queries alone, which
    are those that the semantic BM25 reads; missing for fewer than 10.
    """
    read = dict(zip(table["piece"].tolist(), table["idf"].tolist(), strict=True))
    by_piece = read or collection_counts(model, collection).idf
    found = idf_correlations(model, by_piece, vectors=vectors)
    asked = {piece: by_piece[piece] for piece in rows["piece"].unique().tolist() if by_piece.get(piece, 0) > 0}
    if len(asked) < LEAST:
        return found
    own = idf_correlations(model, asked, vectors=vectors, draws=1)
    names = {"n": "n_query"} | {f"pearson_idf{end}": f"pearson_query{end}" for end in ("", "_low", "_high")}
    return found.merge(own.rename(columns=names)[["vector", *names.values()]], on="vector")


def findings(summary: pd.DataFrame) -> pd.DataFrame:
    """The r of every singular vector with IDF over the word pieces of the collection; its sign is a convention."""
    kept = summary[summary["vector"] != "norm"]
    names = {f"pearson_idf{end}": name for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))}
    told = kept.rename(columns=names | {"p_idf": "p_corrected"})[["value", "low", "high", "p_corrected"]]
    how = {"measure": "r with IDF", "unit": "r", "role": "idf", "term": "idf", "sign": 0, "least": 0.1}
    of = {
        "label": "of " + kept["n"].astype(str) + " word pieces",
        "family": f"{len(kept)} vectors",
        "n_queries": 0,
        "n_pairs": 0,
    }
    return told.assign(site="embed.u" + kept["vector"].astype(str), **how, **of)


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
