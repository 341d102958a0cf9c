"""Is IDF in the embedding? Singular vectors of W_E against IDF (Lu et al. 2025, arXiv:2502.04645, section 5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd

from mechir.experiment import Experiment, Finished, Inputs
from mechir.measures import R_IDF, stated
from mechir.methods.lexical import LEAST, collection_counts, idf_correlations, query_pieces, read_idf, refuse_idf
from mechir.options import frame, option
from mechir.pair import Pair
from mechir.reranker import Weights
from mechir.views import charts

COLUMNS = ["piece", "idf"]


@dataclass(frozen=True)
class IdfDirection(Experiment):
    """Is IDF in the embedding? Singular vectors of W_E against IDF (Lu et al. 2025, arXiv:2502.04645, section 5.1).

    The first 50 left singular vectors of the word embeddings are correlated with IDF and log IDF over word pieces,
    counted in the documents of the collection (or read from --idf TABLE), against IDF permuted over the pieces; and
    once more over the word pieces of the pool's queries alone.
    """

    tier = Weights
    examples = ("", "--vectors 10")
    figure = 8
    answers: ClassVar = {"idf": ()}
    forwards = 0.0  # only weights and word counts
    shown = ("vector", "pearson_idf", "pearson_idf_p_corrected", "spearman_idf", "sigma", "n")

    idf: str = option("", "a table of lines word<TAB>idf; by default IDF is counted in the collection")
    vectors: int = option(50, "singular vectors that are correlated, the strongest first", least=1)
    idf_table: pd.DataFrame = frame(*COLUMNS)
    """IDF by word piece as it was read from the table; empty where it is counted in the collection."""

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses a collection or a table that gives no IDF."""
        refuse_idf(inputs.model, inputs.source, self.idf)
        return self

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """All pairs; the table of a file, so that another one under its name is another run."""
        idf = read_idf(self.idf, inputs.model) if self.idf else {}
        return replace(self, idf_table=pd.DataFrame(idf.items(), columns=COLUMNS)), inputs.material

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The rows of `query_pieces`."""
        return query_pieces(model, pairs)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One row per singular vector: see `idf_correlations`; each document of the collection counts once.

        `n_query`, `pearson_query`, `_low` and `_high`: the same r with IDF over the word pieces of the queries alone,
        which are those that the semantic BM25 reads; missing for fewer than 10.
        """
        model = run.model
        assert model is not None  # every stored run has one
        by_piece = dict(self.idf_table.itertuples(index=False)) or collection_counts(model, run.source).idf
        vectors = idf_correlations(model, by_piece, vectors=self.vectors)
        pieces = run.rows["piece"].unique().tolist()
        in_queries = {piece: by_piece[piece] for piece in pieces if by_piece.get(piece, 0) > 0}
        if len(in_queries) < LEAST:
            return vectors
        of_queries = idf_correlations(model, in_queries, vectors=self.vectors, draws=1)
        names = {"n": "n_query"} | {f"pearson_idf{end}": f"pearson_query{end}" for end in ("", "_low", "_high")}
        return vectors.merge(of_queries.rename(columns=names)[["vector", *names.values()]], on="vector")

    def findings(self, run: Finished) -> pd.DataFrame:
        """The r of every singular vector with IDF over the word pieces of the collection; its sign is a convention."""
        vectors = run.summary[run.summary["vector"] != "norm"]
        label, site = "of " + vectors["n"].astype(str) + " word pieces", "embed.u" + vectors["vector"].astype(str)
        of_weights = {"n_queries": 0, "n_pairs": 0, "family": f"{len(vectors)} vectors"}
        return stated(vectors, R_IDF, "pearson_idf", site=site, label=label, **of_weights)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The vectors, the largest |r| with IDF first; `norm` is the length of the rows of W_E."""
        return super().table(summary.sort_values("pearson_idf", key=abs, ascending=False))

    def chart(self, summary: pd.DataFrame) -> Any:
        """|r| of every singular vector with IDF, by place; the rule is the length of the rows of W_E."""
        vectors = summary[summary["vector"] != "norm"]
        shown = vectors.assign(place=vectors["vector"].astype(int))
        parts = [
            shown.assign(table=title, r=shown[f"pearson_{name}"].abs())[["place", "table", "r"]]
            for name, title in (("idf", "IDF"), ("log_idf", "log IDF"))
        ]
        norm = summary[summary["vector"] == "norm"].iloc[0]
        strongest = vectors["pearson_idf_p_corrected"].min()
        return charts.lines(
            pd.concat(parts, ignore_index=True),
            "place",
            "r",
            "table",
            title="|Pearson r| of the singular vectors of W_E with IDF",
            subtitle=f"{int(norm['n'])} word pieces; the strongest p = {strongest:.3f} (permutations)",
            rule={"length of a row, IDF": abs(float(norm["pearson_idf"]))},
        )
