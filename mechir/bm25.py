"""BM25 candidates for queries over the documents of a collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def candidates(queries: Mapping[str, str], ids: Sequence[str], texts: Sequence[str], k: int) -> dict[str, list[str]]:
    """The first k documents of each query that hold a word of it, best first.

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
