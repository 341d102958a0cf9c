"""The parts of a pool: judged documents, documents drawn at random, and documents of a ranking, a run or BM25."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

from mechir import irds, left_out
from mechir.errors import MechirError
from mechir.left_out import Row
from mechir.pair import Pair
from mechir.rules import is_query, numbered, plain
from mechir.trec_files import Texts

Documents = Texts | irds.Documents
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Sample:
    """A pool: `pairs` are whole queries one after the other.

    `left_out` has `reason`, `query_id`, `doc_id` of the collection and of this pool.
    """

    pairs: list[Pair]
    left_out: pd.DataFrame

    def __repr__(self) -> str:
        return f"Sample({len(self.pairs)} pairs, {len(self.left_out)} left out)"


def judged_documents(query_id: str, grades: Mapping[str, int], per_grade: int | None, seed: int) -> list[str]:
    """The judged documents of a query by falling grade; of each grade at most so many, drawn at random."""
    ordered = sorted(grades, key=lambda doc_id: (-grades[doc_id], doc_id))
    return [
        doc_id
        for grade, ids in itertools.groupby(ordered, key=grades.__getitem__)
        for doc_id in sorted(draw(list(ids), per_grade, seed, query_id, str(grade)))
    ]


def draw(items: Sequence[Item], n: int | None, seed: int, *key: str) -> list[Item]:
    """At most n of the items, drawn at random by the seed and the key."""
    if n is None or len(items) <= n:
        return list(items)
    return [items[place] for place in _generator(seed, *key).choice(len(items), n, replace=False)]


def easy_negatives(
    name: str, docs: Documents, query_id: str, query: str, taken: Iterable[str], n: int, seed: int
) -> tuple[dict[str, str], list[Row]]:
    """Draws n documents from the whole collection, id -> text, and lists those that were passed over.

    Neither an empty document is drawn, nor the query itself, nor one of `taken`: judged for the query, or in its pool.
    `name` is the collection's, for the message.

    Raises:
        MechirError: when there are too few.
    """
    size = len(docs)
    known, seen, generator = set(taken), set[int](), _generator(seed, query_id, "easy")
    drawn, passed = dict[str, str](), dict[Row, None]()
    while len(drawn) < n:
        if len(seen) == size:
            raise MechirError(
                f"'{name}' has {size} documents, {size - len(drawn)} of them judged, pooled or empty for query "
                f"'{query_id}': too few for {n} easy negatives."
            )
        places = generator.integers(size, size=2 * n).tolist()
        seen.update(places)
        for doc_id, text in docs.at(places):
            if len(drawn) == n or doc_id in known:
                continue
            if not text:
                passed[Row(left_out.PASSED_OVER, query_id, doc_id)] = None
            elif is_query(query_id, query, doc_id, text):
                passed[Row(left_out.ITSELF, query_id, doc_id)] = None
            else:
                drawn[doc_id] = text
    return drawn, list(passed)


def of_ranking(
    query_id: str, query: str, ranked: Iterable[str], excluded: Mapping[str, int], texts: Mapping[str, str]
) -> tuple[list[str], list[Row]]:
    """The documents of a ranking that can be scored, in its order, and those that are left out.

    Left out are documents that are missing, empty, or the query itself, judged or not, as BEIR leaves them out.
    Documents of a grade below 0 (`excluded`) are passed over: they are listed with the judgments.
    """
    documents, rows = [], []
    for doc_id in ranked:
        if doc_id not in texts:
            rows.append(Row(left_out.RUN_MISSING, query_id, doc_id))
        elif not texts[doc_id]:
            rows.append(Row(left_out.RUN_EMPTY, query_id, doc_id))
        elif is_query(query_id, query, doc_id, texts[doc_id]):
            rows.append(Row(left_out.ITSELF, query_id, doc_id))
        elif excluded.get(doc_id, 0) >= 0:
            documents.append(doc_id)
    return documents, rows


def candidates(queries: Mapping[str, str], ids: Sequence[str], texts: Sequence[str], k: int) -> dict[str, list[str]]:
    """The first k documents of each query by BM25 that hold a word of it, best first.

    Anserini's defaults (k1 0.9, b 0.4, Lucene's IDF) over lower-cased words without English stop words.
    """
    import bm25s

    quiet = {"show_progress": False}
    words = bm25s.tokenize(list(texts), stopwords="en", **quiet)
    if not words.vocab:
        return {query_id: [] for query_id in queries}
    retriever = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    retriever.index(words, **quiet)
    query_words = bm25s.tokenize(list(queries.values()), stopwords="en", **quiet)
    places, scores = retriever.retrieve(query_words, k=min(k, len(ids)), **quiet)
    return {
        query_id: [ids[place] for place, score in zip(row, values, strict=True) if score > 0]
        for query_id, row, values in zip(queries, places, scores, strict=True)
    }


def passed_over(queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]], texts: Mapping[str, str]) -> int:
    """The most documents that `of_ranking` leaves out of the ranking of one of these queries."""
    wanted = {plain(query) for query in queries.values()}
    same = Counter(text for text in map(plain, texts.values()) if text in wanted)
    return max(
        (
            same[plain(query)]
            + (query_id in texts and not numbered(query_id))
            + sum(g < 0 for g in qrels[query_id].values())
            for query_id, query in queries.items()
        ),
        default=0,
    )


def _generator(seed: int, *key: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join([str(seed), *key]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
