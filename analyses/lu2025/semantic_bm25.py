"""Is the score a BM25? A linear model of IDF, soft-TF and their product (Lu et al. 2025, arXiv:2502.04645, section 6).

IDF is the coordinate of a query token along the singular vector of W_E that goes with it, soft-TF the mass that
matching heads pay from it to the document. Fitted on two thirds of the queries and tested on the others, beside BM25
tuned on the same queries. Matching heads are found on a third that is not tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechir.collection import Collection
from mechir.errors import MechirError
from mechir.methods import semantic_bm25 as semantic
from mechir.methods.checks import SELECTION, embedding_vector, heads_or_search
from mechir.methods.lexical import Counts, collection_counts, find_idf, refuse_idf, singular_direction
from mechir.methods.matching import matching_heads
from mechir.methods.patching import all_heads
from mechir.pairs import Pair, split_queries
from mechir.views import charts

DRAWS = 20
WHOLE = "semantic BM25"


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair: the query whole, and cut to five pieces."""
    return 3.0


def check(
    model: Any,
    pairs: Sequence[Pair],
    collection: Collection,
    *,
    heads: str,
    top: int,
    vector: int,
    sign: int,
    idf: str,
    exponential: bool,
) -> dict[str, Any]:
    """Heads by layer; refuses what does not fit."""
    embedding_vector(model, vector, sign)
    refuse_idf(model, collection, idf)
    if (n := len({pair.query_id for pair in pairs})) < SELECTION:
        raise MechirError(f"{n} queries cannot be fitted and tested on: take {SELECTION} or more.")
    return {"heads": heads_or_search(model, pairs, heads, top=top, matching=True)}


def prepare(
    model: Any,
    pairs: list[Pair],
    collection: Collection,
    *,
    heads: str,
    top: int,
    vector: int,
    sign: int,
    idf: str,
    **options: Any,
) -> tuple[list[Pair], dict[str, Any]]:
    """All pairs; the matching heads, found on the first of every three queries, and the IDF direction."""
    found: dict[str, Any] = dict(find_idf(model, collection, idf=idf, vector=vector, sign=sign))
    if heads:
        return pairs, found
    chosen, _ = split_queries(pairs, SELECTION)
    return pairs, found | {"heads": ",".join(matching_heads(model, chosen, top))}


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    heads: str = "",
    top: int = 13,
    vector: int = -1,
    sign: int = 0,
    idf: str = "",
    exponential: bool = False,
) -> pd.DataFrame:
    """The rows of `lexical_features`.

    `heads`, `vector` (-1) and `sign` (0) are found by the run where none are given; `exponential` takes exp of the IDF
    coordinate, for a direction that carries log IDF.
    """
    direction = singular_direction(model, vector, sign)
    return semantic.lexical_features(model, pairs, direction, heads=heads.split(","), exponential=exponential)


def summarise(
    rows: pd.DataFrame, judged: pd.DataFrame, model: Any, collection: Collection, *, heads: str = ""
) -> pd.DataFrame:
    """One row per model of the score: `model`, `features` (how many), and `quality` on the held-out queries.

    "semantic BM25" and, as ablations, "IDF only", "soft-TF only", "random heads" (as many; the mean of 20 draws),
    "random features" (normal, of the same shape); baselines "BM25 tuned" (k1 and b in `note`; IDF and lengths of the
    collection), "TF", "IDF", whose `r2` and `rmse` are of a line from them to the score, fitted on the training
    queries. "first five tokens" is the paper's design on queries of five pieces or more, "..., stale index" the same
    with its published index (see `lexical_features`); both on held-out queries. "..., random split" mixes the pairs of
    a query between training and test as the paper does, which flatters.
    """
    target, query = rows["score"].to_numpy(), rows["query_id"].to_numpy()
    order = {one: k for k, one in enumerate(dict.fromkeys(query.tolist()))}
    train = np.array([order[one] % 3 != 2 for one in query])
    every = [str(head) for head in all_heads(model)]
    chosen = [every.index(name) for name in heads.split(",")]
    lines = _models(rows, chosen, target, train, query) + _baselines(
        rows, collection_counts(model, collection), target, train, query
    )
    long = rows["score5"].notna().to_numpy()
    if rows.loc[long, "query_id"].nunique() >= 6:
        lines += _first_five(rows[long], train[long])
    return pd.DataFrame(lines).astype(dict.fromkeys(("n", "queries", "features"), int))


def _told(name: str, predicted: np.ndarray, target: np.ndarray, test: np.ndarray, query: np.ndarray) -> dict[str, Any]:
    return {"model": name} | semantic.quality(predicted[test], target[test], query[test])


def _models(
    rows: pd.DataFrame, chosen: Sequence[int], target: np.ndarray, train: np.ndarray, query: np.ndarray
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)

    def told(name: str, features: np.ndarray, split: np.ndarray = train) -> dict[str, Any]:
        predicted = semantic.fitted(features, target, split)
        return _told(name, predicted, target, ~split, query) | {"features": features.shape[1]}

    whole = semantic.pooled(rows, chosen)
    others = np.setdiff1d(np.arange(len(rows["mass"].iloc[0])), chosen)
    drawn = [
        told(
            "random heads",
            semantic.pooled(rows, rng.choice(others, min(len(chosen), len(others)), replace=False).tolist()),
        )
        for _ in range(DRAWS)
    ]
    noise = rng.normal(whole.mean(0), whole.std(0), size=whole.shape)
    mixed = rng.random(len(rows)) < 0.8
    return [
        told(WHOLE, whole),
        told("IDF only", semantic.pooled(rows, chosen, "idf")),
        told("soft-TF only", semantic.pooled(rows, chosen, "soft_tf")),
        {"model": "random heads"} | pd.DataFrame(drawn).drop(columns="model").mean().to_dict(),
        told("random features", noise),
        told(f"{WHOLE}, random split", whole, mixed),
    ]


def _baselines(
    rows: pd.DataFrame, counts: Counts, target: np.ndarray, train: np.ndarray, query: np.ndarray
) -> list[dict[str, Any]]:
    idf = counts.idf
    tuned = semantic.tuned_bm25(rows, idf, target, train, average=counts.length)
    matching = semantic.bm25_scores(rows, idf, k1=0.0, b=0.0, average=counts.length)
    test, lines = ~train, []
    for name, values in (("BM25 tuned", tuned.scores), ("TF", rows["tf"].map(sum).to_numpy(float)), ("IDF", matching)):
        logits = semantic.fitted(values[:, None], target, train)
        told = semantic.quality(values[test], target[test], query[test], logits=logits[test])
        lines.append({"model": name} | told | {"features": 1.0})
    lines[0]["note"] = tuned.note
    return lines


def _first_five(long: pd.DataFrame, train: np.ndarray) -> list[dict[str, Any]]:
    target, query = long["score5"].to_numpy(), long["query_id"].to_numpy()
    mixed = np.random.default_rng(42).random(len(long)) < 0.8
    lines = []
    for name, column in (("first five tokens", "design5"), ("first five tokens, stale index", "stale5")):
        features = np.stack(long[column].to_list())
        for ending, split in (("", train), (", random split", mixed)):
            predicted = semantic.fitted(features, target, split)
            told = _told(name + ending, predicted, target, ~split, query)
            lines.append(told | {"features": float(features.shape[1])})
    return lines


def across(summaries: pd.DataFrame) -> pd.DataFrame:
    """One row per collection, as in the paper's table: the held-out Pearson r of every model of the score.

    `low` and `high` are the interval of "semantic BM25", `queries` and `n` what its r is measured on.
    """
    wide = summaries.pivot(index="collection", columns="model", values="pearson")[summaries["model"].unique()]
    own = summaries[summaries["model"] == WHOLE].set_index("collection")[["queries", "n", "low", "high"]]
    return own.join(wide).loc[summaries["collection"].unique()].reset_index()


def findings(summary: pd.DataFrame, rows: pd.DataFrame, model: Any, *, heads: str = "") -> pd.DataFrame:
    """What every chosen head weighs in the semantic BM25, by soft-TF and its product with IDF; and how good that is."""
    every, chosen = [str(head) for head in all_heads(model)], heads.split(",")
    features = semantic.pooled(rows, [every.index(name) for name in chosen], "soft_tf,product")
    weights = semantic.weights(features, rows["score"].to_numpy(), rows["query_id"].to_numpy())
    weights = weights.rename(columns={"weight": "value"}).assign(site=chosen * 2, unit="logits per sd")
    kinds = (("weight of soft-TF", "soft-tf", "tf"), ("weight of IDF x soft-TF", "idf", "idf"))
    parts = zip((weights[: len(chosen)], weights[len(chosen) :]), kinds, strict=True)
    found = [part.assign(measure=measure, role=role, term=term) for part, (measure, role, term) in parts]
    whole = summary[summary["model"] == WHOLE].rename(
        columns={"pearson": "value", "queries": "n_queries", "n": "n_pairs"}
    )
    whole = whole[["value", "low", "high", "n_queries", "n_pairs"]].assign(
        site="", measure="semantic BM25", unit="r, held out"
    )
    found = [one.assign(n_queries=rows["query_id"].nunique(), n_pairs=len(rows)) for one in found]
    return pd.concat([*found, whole], ignore_index=True).fillna({"role": "", "term": ""})


def chart(summary: pd.DataFrame) -> Any:
    """Pearson r with the score on held-out queries, with its interval."""
    return charts.bars(
        summary.rename(columns={"pearson": "Pearson r"}),
        "Pearson r",
        "model",
        title="How much of the score a linear model of IDF and soft-TF says",
        subtitle="Pearson r on held-out queries, 95 % interval over queries; 'random split': over held-out pairs",
        low="low",
        high="high",
    )
