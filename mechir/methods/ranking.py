"""Ranking quality from scores: nDCG and MRR, expected over all orders of tied documents; what a random order gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pandas as pd

from mechir.atomic import written
from mechir.errors import MechirError, refuse_below
from mechir.inputs import as_pairs
from mechir.methods.groups import pair_ids
from mechir.pair import Pair

TIE = 1e-5
"""Scores within this distance of their neighbour in the sorted order are tied."""


def ndcg(scores: pd.DataFrame, judged: pd.DataFrame, k: int = 10, *, ties: float | int = TIE) -> pd.DataFrame:
    """The nDCG@k of each query (linear gain), with `tied`, the share of its documents in a tie.

    Scores within `ties` of each other are ties. The value is the mean over all orders of tied documents, in closed
    form: each has the mean discount of the ranks that its tie takes up (0 beyond k). Without ties it is that of
    ir_measures. Neither the ids nor the order of the rows decide anything.

    `scores` holds `query_id`, `doc_id`, `score`; `judged` the documents that the ideal ranking may use: `query_id`,
    `doc_id`, `grade`. Grades below 0 gain 0.

    Returns:
        `query_id`, `value`, `tied`. Queries without a document of positive grade are left out: their nDCG is undefined.

    Raises:
        MechirError: for scores that are not finite.
    """
    refuse_below(1, k=k)
    best = _ideal(judged, k)
    rows = [
        (query_id, _dcg(groups, gains, k) / best[query_id], tied)
        for query_id, groups, gains, tied in _queries(scores, judged, 1, ties)
    ]
    return pd.DataFrame(rows, columns=["query_id", "value", "tied"])


def mrr(scores: pd.DataFrame, judged: pd.DataFrame, relevant: int = 1, *, ties: float | int = TIE) -> pd.DataFrame:
    """The reciprocal rank of each query's first document of grade `relevant` or more, without cutoff.

    Ties, arguments, columns and errors as in `ndcg`; queries without such a document are left out.
    """
    refuse_below(1, relevant=relevant)
    rows = [
        (query_id, _reciprocal(groups, gains >= relevant), tied)
        for query_id, groups, gains, tied in _queries(scores, judged, relevant, ties)
    ]
    return pd.DataFrame(rows, columns=["query_id", "value", "tied"])


def _queries(
    scores: pd.DataFrame, judged: pd.DataFrame, lowest: int, ties: float | int
) -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    """Yields the id, tie groups, gains and share in a tie of each query with a document of grade `lowest`."""
    refuse_infinite(scores)
    scores = scores.loc[scores["query_id"].isin(_relevant(judged, lowest)), ["query_id", "doc_id", "score"]]
    ranked = scores.merge(judged[["query_id", "doc_id", "grade"]], "left", on=["query_id", "doc_id"])
    for query_id, rows in ranked.sort_values("doc_id").groupby("query_id", sort=False):
        groups = tie_groups(rows["score"].to_numpy(dtype=float), ties)
        gains = rows["grade"].fillna(0).clip(lower=0).to_numpy(dtype=float)
        yield query_id, groups, gains, float((np.bincount(groups)[groups] > 1).mean())


def _dcg(groups: np.ndarray, gains: np.ndarray, k: int) -> float:
    """The expected DCG@k: the gain of each tie group times the mean discount of the ranks that it takes up."""
    sizes = np.bincount(groups)
    discounts = np.where(np.arange(len(gains)) < k, _discounts(len(gains)), 0)
    means = np.add.reduceat(discounts, np.cumsum(sizes) - sizes) / sizes
    return float(np.bincount(groups, gains) @ means)


def _reciprocal(groups: np.ndarray, relevant: np.ndarray) -> float:
    """The expected 1 / rank of the first relevant document, which is in the best group that holds one; 0 for none."""
    if not relevant.any():
        return 0.0
    first = groups[relevant].min()
    n, hits, before = int((groups == first).sum()), int(relevant[groups == first].sum()), int((groups < first).sum())
    offset = np.arange(n - hits + 1)
    # The first `offset` of the group miss, one after the other without replacement, and the next one hits.
    missed = np.concatenate([[1.0], np.cumprod((n - hits - offset[:-1]) / (n - offset[:-1]))])
    return float((missed * hits / (n - offset) / (before + 1 + offset)).sum())


def refuse_infinite(scores: pd.DataFrame) -> None:
    """Raises for scores that are not finite, by the first pair."""
    bad = scores[~np.isfinite(scores["score"].to_numpy(dtype=float))]
    if len(bad):
        raise MechirError(f"The score of pair {bad['query_id'].iloc[0]}/{bad['doc_id'].iloc[0]} is not finite.")


def tie_groups(values: np.ndarray, ties: float | int = TIE) -> np.ndarray:
    """The number of each document's tie group, 0 the best."""
    best_first = np.argsort(-values, kind="stable")
    breaks = np.diff(-values[best_first]) > ties
    groups = np.empty(len(values), dtype=np.int64)
    groups[best_first] = np.concatenate([[0], np.cumsum(breaks)])
    return groups


def random_ndcg(pool: pd.DataFrame, judged: pd.DataFrame, k: int = 10) -> pd.DataFrame:
    """The expected nDCG@k of a uniformly random order of each query's pool: `query_id`, `value`.

    The mean gain of the pool times the sum of 1 / log2(r + 1) over the first min(k, n) ranks, over the ideal DCG.
    """
    return ndcg(pool[["query_id", "doc_id"]].assign(score=0.0), judged, k)[["query_id", "value"]]


def random_draws(
    pool: pd.DataFrame, judged: pd.DataFrame, k: int = 10, *, measure: Any = None, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """The mean nDCG@k over queries of each of `draws` random rankings of the pool: the papers' random baseline.

    `measure` of ir_measures: in the place of nDCG@k.
    """
    by = ir_measures.nDCG @ k if measure is None else measure
    total, relevant = np.zeros(draws), _relevant(judged, int(by.params.get("rel", 1)))
    pools = pool[pool["query_id"].isin(relevant)].sort_values("doc_id").groupby("query_id", sort=False)["doc_id"]
    for query_id, ids in pools:
        grades = judged[judged["query_id"] == query_id].set_index("doc_id")["grade"].clip(lower=0).astype(int).to_dict()
        generator, documents = query_generator(seed, query_id), ids.to_numpy()
        # Ranks are handed over as distinct scores, so that trec_eval's own rule for ties (by document id) never acts.
        orders = {str(draw): generator.permutation(documents).tolist() for draw in range(draws)}
        runs = {draw: {doc_id: -float(rank) for rank, doc_id in enumerate(order)} for draw, order in orders.items()}
        for value in ir_measures.iter_calc([by], dict.fromkeys(orders, grades), runs):
            total[int(value.query_id)] += value.value
    return total / pools.ngroups


def write_trec_run(file: Path, pairs: Any, scores: Sequence[float], tag: str, *, seed: int = 0) -> None:
    """Writes a TREC run, best first within each query; whole or not at all.

    Scores within 1e-5 of each other are ties, as in `ndcg`: their order is random, by the seed, and they are written
    as one score, the largest of them, so that a tool that sorts by score sees the tie. Neither the order of the pairs
    nor the ids decide anything.

    Raises:
        MechirError: for an id that is empty or holds white space, a score that is not finite, a file that cannot be
            written.
    """
    pairs = as_pairs(pairs)
    refuse_spaces(pairs)
    frame = pair_ids(pairs).assign(score=scores)
    refuse_infinite(frame)
    lines = []
    for query_id, rows in frame.groupby("query_id", sort=False):
        rows = rows.sort_values("doc_id", kind="stable")
        ids, values = rows["doc_id"].to_numpy(), rows["score"].to_numpy(dtype=float)
        groups = tie_groups(values)
        order = np.lexsort((query_generator(seed, query_id).permutation(len(ids)), groups))
        best = pd.Series(values).groupby(groups).max()
        lines += [f"{query_id} Q0 {ids[i]} {rank} {best[groups[i]]:.9g} {tag}" for rank, i in enumerate(order, 1)]
    text = "\n".join(lines) + "\n"
    written(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def refuse_spaces(pairs: Sequence[Pair]) -> None:
    """Raises for ids that are empty or hold white space, which separates the fields of a TREC run."""
    for pair in pairs:
        for kind, key in (("query", pair.query_id), ("document", pair.doc_id)):
            if key.split() != [key]:
                raise MechirError(
                    f"A TREC run has white space between its fields and cannot hold the {kind} id {key!a}: "
                    "give ids without spaces."
                )


def _relevant(judged: pd.DataFrame, lowest: int = 1) -> set[str]:
    return set(judged.loc[judged["grade"] >= lowest, "query_id"])


def _ideal(judged: pd.DataFrame, k: int) -> dict[str, float]:
    """The DCG@k of the best order of each query's judged documents."""
    gains = judged.assign(gain=judged["grade"].clip(lower=0).astype(float)).groupby("query_id")["gain"]
    return {query_id: float(np.sort(x)[::-1][:k] @ _discounts(min(k, len(x)))) for query_id, x in gains}


def _discounts(n: int) -> np.ndarray:
    return 1 / np.log2(np.arange(2, n + 2))


def query_generator(seed: int, query_id: str) -> np.random.Generator:
    """The generator of what is drawn for one query."""
    digest = hashlib.sha256(f"{seed}\0{query_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
