"""Is the score a BM25? A linear model of IDF, soft-TF and their product (Lu et al. 2025, arXiv:2502.04645, 6)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs
from mechir.measures import IDF_WEIGHT, SEMANTIC_BM25, WEIGHT, stated
from mechir.methods import semantic_bm25 as semantic
from mechir.methods.checks import SELECTION, embedding_vector, heads_or_search
from mechir.methods.lexical import Counts, collection_counts, find_idf, refuse_idf, singular_direction
from mechir.methods.matching import choose_matching
from mechir.model_sites import all_heads
from mechir.options import OR_FOUND, option
from mechir.pair import Pair
from mechir.reranker import Weights
from mechir.sites import Head
from mechir.views import charts

DRAWS = 20
WHOLE = str(SEMANTIC_BM25)


@dataclass(frozen=True)
class SemanticBm25(Experiment):
    """Is the score a BM25? A linear model of IDF, soft-TF and their product (Lu et al. 2025, arXiv:2502.04645, 6).

    IDF is the coordinate of a query token along the singular vector of W_E that goes with it, soft-TF the mass that
    matching heads pay from it to the document. Fitted on two thirds of the queries and tested on the others, beside
    BM25 tuned on the same queries. Matching heads are found on a third that is not tested.
    """

    tier = Weights
    examples = ("", "--heads h1.1,h2.9 --limit-queries 10")
    figure = 10
    answers: ClassVar = {"bm25": ()}
    forwards = 3.0  # the query whole, and cut to five pieces
    shown = ("model", "estimate", "spearman", "within", "r2", "queries")

    heads: tuple[Head, ...] = option((), f"matching heads {OR_FOUND}", in_order=True)
    top: int = option(13, "matching heads found by the run where none are named", least=1)
    vector: int = option(-1, "singular vector of W_E, 0 the first; -1 for the one that goes with IDF")
    sign: int = option(0, "1 or -1, which way the vector is taken; 0 for up with IDF")
    idf: str = option("", "a table of lines word<TAB>idf; by default IDF is counted in the collection")
    exponential: bool = option(False, "take exp of the IDF coordinate, for a direction that carries log IDF")

    def check(self, inputs: Inputs) -> Experiment:
        """Heads by layer; refuses what does not fit."""
        embedding_vector(inputs.model, self.vector, self.sign)
        refuse_idf(inputs.model, inputs.source, self.idf)
        if (n := len({pair.query_id for pair in inputs.material})) < SELECTION:
            raise MechirError(f"{n} queries cannot be fitted and tested on: take {SELECTION} or more.")
        return replace(self, heads=heads_or_search(inputs.model, inputs.material, self.heads, matching=True))

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """All pairs; the matching heads, found on the first of every three queries, and the IDF direction."""
        model, pairs = inputs.model, inputs.material
        along = find_idf(model, inputs.source, idf=self.idf, vector=self.vector, sign=self.sign)
        heads, _ = choose_matching(model, pairs, heads=self.heads, top=self.top, every=SELECTION)
        return replace(self, heads=heads, vector=along["vector"], sign=along["sign"]), pairs

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The rows of `lexical_features`."""
        direction = singular_direction(model, self.vector, self.sign)
        return semantic.lexical_features(model, pairs, direction, heads=self.heads, exponential=self.exponential)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One row per model of the score: `model`, `features` (how many), and `quality` on the held-out queries.

        "semantic BM25" and, as ablations, "IDF only", "soft-TF only", "random heads" (as many; the mean of 20 draws),
        "random features" (normal, of the same shape); baselines "BM25 tuned" (k1 and b in `note`; IDF and lengths of
        the collection), "TF", "IDF", whose `r2` and `rmse` are of a line from them to the score, fitted on the training
        queries. "first five tokens" is the paper's design on queries of five pieces or more, "..., stale index" the
        same with its published index (see `lexical_features`); both on held-out queries. "..., random split" mixes the
        pairs of a query between training and test as the paper does, which flatters.
        """
        rows, model = run.rows, run.model
        assert model is not None  # every stored run has one
        target, query = rows["score"].to_numpy(), rows["query_id"].to_numpy()
        train = pd.factorize(query)[0] % 3 != 2
        lines = _models(rows, _columns(model, self.heads), target, train, query)
        lines += _baselines(rows, collection_counts(model, run.source), target, train, query)
        long = rows["score5"].notna().to_numpy()
        if rows.loc[long, "query_id"].nunique() >= 6:
            lines += _first_five(rows[long], train[long])
        return pd.DataFrame(lines).astype(dict.fromkeys(("pairs", "queries", "features"), int))

    @staticmethod
    def across(summaries: pd.DataFrame) -> pd.DataFrame:
        """One row per collection, as in the paper's table: the held-out Pearson r of every model of the score.

        `low`, `high`, `queries` and `pairs` belong to the r of "semantic BM25".
        """
        wide = summaries.pivot(index="collection", columns="model", values="estimate")[summaries["model"].unique()]
        tested = summaries[summaries["model"] == WHOLE].set_index("collection")[["queries", "pairs", "low", "high"]]
        return tested.join(wide).loc[summaries["collection"].unique()].reset_index()

    def findings(self, run: Finished) -> pd.DataFrame:
        """The weight of every chosen head in the semantic BM25, by soft-TF and its product with IDF; its quality."""
        rows, model, n = run.rows, run.model, len(self.heads)
        assert model is not None  # every stored run has one
        features = semantic.pooled(rows, _columns(model, self.heads), "soft_tf,product")
        weights = semantic.weights(features, rows["score"].to_numpy(), rows["query_id"].to_numpy())
        sites = [*map(str, self.heads)] * 2
        weights = weights.assign(site=sites, queries=rows["query_id"].nunique(), pairs=len(rows))
        whole = run.summary[run.summary["model"] == WHOLE]
        parts = stated(weights[:n], WEIGHT), stated(weights[n:], IDF_WEIGHT), stated(whole, SEMANTIC_BM25, site="")
        return pd.concat(parts, ignore_index=True)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Pearson r with the score on held-out queries, with its interval."""
        shown = summary.rename(columns={"estimate": "Pearson r"})
        title = "How much of the score a linear model of IDF and soft-TF says"
        subtitle = "Pearson r on held-out queries, 95 % interval over queries; 'random split': over held-out pairs"
        return charts.bars(shown, "Pearson r", "model", title=title, subtitle=subtitle, low="low", high="high")


def _columns(model: Weights, heads: Sequence[Head]) -> list[int]:
    """The places of these heads among all heads of the model."""
    every = all_heads(model)
    return [every.index(head) for head in heads]


def _fitted(
    name: str, features: np.ndarray, target: np.ndarray, train: np.ndarray, query: np.ndarray
) -> dict[str, Any]:
    """The quality of a linear model on the pairs that it was not fitted on."""
    predicted, test = semantic.fitted(features, target, train), ~train
    quality = semantic.quality(predicted[test], target[test], query[test])
    return {"model": name} | quality | {"features": float(features.shape[1])}


def _models(
    rows: pd.DataFrame, chosen: Sequence[int], target: np.ndarray, train: np.ndarray, query: np.ndarray
) -> list[dict[str, Any]]:
    rng, others = np.random.default_rng(0), np.setdiff1d(np.arange(len(rows["mass"].iloc[0])), chosen)
    whole, size = semantic.pooled(rows, chosen), min(len(chosen), len(others))
    random = [semantic.pooled(rows, rng.choice(others, size, replace=False).tolist()) for _ in range(DRAWS)]
    drawn = [_fitted("random heads", features, target, train, query) for features in random]
    noise = rng.normal(whole.mean(0), whole.std(0), size=whole.shape)
    mixed = rng.random(len(rows)) < 0.8
    return [
        _fitted(WHOLE, whole, target, train, query),
        _fitted("IDF only", semantic.pooled(rows, chosen, "idf"), target, train, query),
        _fitted("soft-TF only", semantic.pooled(rows, chosen, "soft_tf"), target, train, query),
        {"model": "random heads"} | pd.DataFrame(drawn).drop(columns="model").mean().to_dict(),
        _fitted("random features", noise, target, train, query),
        _fitted(f"{WHOLE}, random split", whole, target, mixed, query),
    ]


def _baselines(
    rows: pd.DataFrame, counts: Counts, target: np.ndarray, train: np.ndarray, query: np.ndarray
) -> list[dict[str, Any]]:
    tuned = semantic.tuned_bm25(rows, counts.idf, target, train, average=counts.length)
    matching = semantic.bm25_scores(rows, counts.idf, k1=0.0, b=0.0, average=counts.length)
    test, lines = ~train, []
    for name, values in (("BM25 tuned", tuned.scores), ("TF", rows["tf"].map(sum).to_numpy(float)), ("IDF", matching)):
        logits = semantic.fitted(values[:, None], target, train)
        quality = semantic.quality(values[test], target[test], query[test], logits=logits[test])
        lines.append({"model": name} | quality | {"features": 1.0})
    lines[0]["note"] = tuned.note
    return lines


def _first_five(long: pd.DataFrame, train: np.ndarray) -> list[dict[str, Any]]:
    target, query = long["score5"].to_numpy(), long["query_id"].to_numpy()
    mixed = np.random.default_rng(42).random(len(long)) < 0.8
    return [
        _fitted(name + ending, np.stack(long[column].to_list()), target, split, query)
        for name, column in (("first five tokens", "design5"), ("first five tokens, stale index", "stale5"))
        for ending, split in (("", train), (", random split", mixed))
    ]
