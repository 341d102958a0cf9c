"""Ranking quality from scores: nDCG and MRR with ties broken at random, and what a random ranking gives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pandas as pd

from mechir.atomic import written
from mechir.errors import MechirError, refuse_below
from mechir.pairs import Pair

TIE = 1e-5
"""Scores within this distance of their neighbour in the sorted order are tied."""
PERMUTATIONS = 100


def ndcg(scores: pd.DataFrame, judged: pd.DataFrame, k: int = 10, *, seed: int = 0) -> pd.DataFrame:
    """nDCG@k of each query (linear gain, by ir_measures), with `tied`, the share of its documents in a tie.

    Scores within 1e-5 of each other are ties and broken by a random permutation; a query with ties gets the mean over
    100 of them. Neither the ids nor the order of the rows decide anything.

    Args:
        scores: `query_id`, `doc_id`, `score`.
        judged: `query_id`, `doc_id`, `grade`: the documents the ideal ranking may use. Grades below 0 gain 0.
        k: the cutoff.
        seed: of the permutations; each query draws by itself.

    Returns:
        `query_id`, `value`, `tied`. Queries without a document of positive grade are left out: their nDCG is undefined.

    Raises:
        MechirError: for scores that are not finite.
    """
    refuse_below(1, k=k)
    return _quality(scores, judged, ir_measures.nDCG @ k, 1, seed)


def mrr(scores: pd.DataFrame, judged: pd.DataFrame, relevant: int = 1, *, seed: int = 0) -> pd.DataFrame:
    """The reciprocal rank of each query's first document of grade `relevant` or more, by ir_measures, without cutoff.

    Ties, arguments, columns and errors as in `ndcg`; queries without such a document are left out.
    """
    refuse_below(1, relevant=relevant)
    return _quality(scores, judged, ir_measures.RR(rel=relevant), relevant, seed)


def _quality(scores: pd.DataFrame, judged: pd.DataFrame, measure: Any, lowest: int, seed: int) -> pd.DataFrame:
    """A measure of each query, ties broken at random; `lowest`: the grade that a query must have."""
    _refuse_infinite(scores)
    scores = scores[scores["query_id"].isin(_relevant(judged, lowest))]
    orders: dict[tuple[str, int], list[str]] = {}
    tied: dict[str, float] = {}
    for query_id, found in scores.sort_values("doc_id").groupby("query_id", sort=False):
        ids, values = found["doc_id"].to_numpy(), found["score"].to_numpy(dtype=float)
        groups = _tie_groups(values)
        sizes = np.bincount(groups)
        tied[query_id] = float((sizes[groups] > 1).mean())
        generator = _generator(seed, query_id)
        for draw in range(PERMUTATIONS if tied[query_id] else 1):
            order = np.lexsort((generator.permutation(len(ids)), groups))
            orders[query_id, draw] = ids[order].tolist()
    return _mean(orders, judged, measure).assign(tied=lambda frame: frame["query_id"].map(tied))


def _refuse_infinite(scores: pd.DataFrame) -> None:
    bad = scores[~np.isfinite(scores["score"].to_numpy(dtype=float))]
    if len(bad):
        raise MechirError(f"The score of pair {bad['query_id'].iloc[0]}/{bad['doc_id'].iloc[0]} is not finite.")


def _tie_groups(values: np.ndarray) -> np.ndarray:
    """The number of each document's tie group, 0 the best."""
    best_first = np.argsort(-values, kind="stable")
    breaks = np.diff(-values[best_first]) > TIE
    groups = np.empty(len(values), dtype=np.int64)
    groups[best_first] = np.concatenate([[0], np.cumsum(breaks)])
    return groups


def random_ndcg(pool: pd.DataFrame, judged: pd.DataFrame, k: int = 10) -> pd.DataFrame:
    """The expected nDCG@k of a uniformly random order of each query's pool: `query_id`, `value`.

    The mean gain of the pool times the sum of 1 / log2(r + 1) over the first min(k, n) ranks, over the ideal DCG.
    """
    gains = _gains(pool, judged)
    ideal = judged.assign(gain=judged["grade"].clip(lower=0)).groupby("query_id")["gain"]
    rows = []
    for query_id, gain in gains.groupby("query_id", sort=False)["gain"]:
        best = np.sort(ideal.get_group(query_id).to_numpy(dtype=float))[::-1][:k]
        if best.sum() > 0:
            rows.append((query_id, gain.mean() * _discounts(min(k, len(gain))).sum() / (best @ _discounts(len(best)))))
    return pd.DataFrame(rows, columns=["query_id", "value"])


def random_draws(
    pool: pd.DataFrame, judged: pd.DataFrame, k: int = 10, *, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """Mean nDCG@k over queries of each of `draws` random rankings of the pool: the papers' random baseline."""
    total, relevant = np.zeros(draws), _relevant(judged)
    pools = pool[pool["query_id"].isin(relevant)].sort_values("doc_id").groupby("query_id", sort=False)["doc_id"]
    for query_id, ids in pools:
        generator, listed = _generator(seed, query_id), ids.to_numpy()
        orders = {(query_id, draw): generator.permutation(listed).tolist() for draw in range(draws)}
        total += _each(orders, judged[judged["query_id"] == query_id], ir_measures.nDCG @ k)["value"].to_numpy()
    return total / pools.ngroups


def write_trec_run(file: Path, pairs: Sequence[Pair], scores: Sequence[float], tag: str, *, seed: int = 0) -> None:
    """A TREC run, best first within each query. Whole or not at all.

    Scores within 1e-5 of each other are ties, as in `ndcg`: their order is random, by the seed, and they are written
    as one score, the largest of them, so that a tool that sorts by score sees the tie. Neither the order of the pairs
    nor the ids decide anything.

    Raises:
        MechirError: for an id that is empty or holds white space, a score that is not finite, a file that cannot be
            written.
    """
    refuse_spaces(pairs)
    frame = pd.DataFrame(
        {"query_id": [pair.query_id for pair in pairs], "doc_id": [pair.doc_id for pair in pairs], "score": scores}
    )
    _refuse_infinite(frame)
    lines = []
    for query_id, found in frame.groupby("query_id", sort=False):
        found = found.sort_values("doc_id", kind="stable")
        ids, values = found["doc_id"].to_numpy(), found["score"].to_numpy(dtype=float)
        groups = _tie_groups(values)
        order = np.lexsort((_generator(seed, query_id).permutation(len(ids)), groups))
        best = pd.Series(values).groupby(groups).max()
        lines += [f"{query_id} Q0 {ids[i]} {rank} {best[groups[i]]:.9g} {tag}" for rank, i in enumerate(order, 1)]
    text = "\n".join(lines) + "\n"
    written(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def refuse_spaces(pairs: Sequence[Pair]) -> None:
    """Refuses what the fields of a TREC run, with white space between them, cannot hold.

    Raises:
        MechirError: for an id that is empty or holds white space.
    """
    for pair in pairs:
        for what, key in (("query", pair.query_id), ("document", pair.doc_id)):
            if key.split() != [key]:
                raise MechirError(
                    f"A TREC run has white space between its fields and cannot hold the {what} id {key!a}: "
                    "give ids without spaces."
                )


def _relevant(judged: pd.DataFrame, lowest: int = 1) -> set[str]:
    return set(judged.loc[judged["grade"] >= lowest, "query_id"])


def _gains(pool: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    merged = pool[["query_id", "doc_id"]].merge(judged, on=["query_id", "doc_id"], how="left")
    return merged.assign(gain=merged["grade"].fillna(0).clip(lower=0).astype(float))


def _discounts(n: int) -> np.ndarray:
    return 1 / np.log2(np.arange(2, n + 2))


def _each(orders: dict[tuple[str, int], list[str]], judged: pd.DataFrame, measure: Any) -> pd.DataFrame:
    """A measure of ir_measures of each order, best first: `query_id`, `draw`, `value`, in the order of `orders`.

    Ranks are handed over as distinct scores, so that trec_eval's own rule for ties (by document id) never acts.
    """
    grades = {
        query_id: dict(zip(one["doc_id"], one["grade"], strict=True)) for query_id, one in judged.groupby("query_id")
    }
    qrels = {
        f"{query_id}#{draw}": {d: max(int(g), 0) for d, g in grades[query_id].items()} for query_id, draw in orders
    }
    runs = {
        f"{query_id}#{draw}": {doc_id: float(-rank) for rank, doc_id in enumerate(order)}
        for (query_id, draw), order in orders.items()
    }
    found = {one.query_id: one.value for one in ir_measures.iter_calc([measure], qrels, runs)}
    rows = [(query_id, draw, found[f"{query_id}#{draw}"]) for query_id, draw in orders]
    return pd.DataFrame(rows, columns=["query_id", "draw", "value"])


def _mean(orders: dict[tuple[str, int], list[str]], judged: pd.DataFrame, measure: Any) -> pd.DataFrame:
    each = _each(orders, judged, measure)
    return each.groupby("query_id", as_index=False, sort=False)["value"].mean()


def _generator(seed: int, query_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}\0{query_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
