"""Judged collections, and the pools of pairs that are sampled from them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechir import irds, left_out, pools, trec_files
from mechir.errors import MechirError, closest
from mechir.left_out import Row
from mechir.pair import EASY, Pair, Pairs
from mechir.pools import Sample
from mechir.rules import (
    DUPLICATES,
    LEAVE_OUT,
    Counted,
    counted,
    refuse_beyond,
    refuse_counts_below,
)

POOL = ("per_grade", "easy_negatives", "top_k", "run", "limit_queries", "seed")
"""The options of a pool."""
IN_MEMORY = "in memory"
"""The id of a collection of tables, where none is given."""
BM25_LIMIT = 2_000_000
"""The most documents for which BM25 candidates are computed here."""


@dataclass(frozen=True, eq=False)
class Collection:
    """Queries, documents and judgments, from which pools are sampled.

    `queries` and `docs` map ids to texts, in the order of their files; `qrels` maps query id -> document id -> grade,
    as it was read, and `judgments` those that count. `easy_negatives` is the default number of a pool (20 in the
    embedded collection, which `ships` with mechir, else 0). `duplicates` and `leave_out` are the rules it was read by,
    `again` the lines that were repeated. `hash` is the SHA-256 of ids, texts and judgments; for ir_datasets that of its
    id, queries and judgments alone. `easy` are the easy negatives of its own, of one that was made of pairs.
    """

    id: str
    queries: Mapping[str, str]
    docs: pools.Documents
    qrels: Mapping[str, Mapping[str, int]]
    hash: str
    folder: Path | None = None
    easy_negatives: int = 0
    ships: bool = False
    duplicates: str = DUPLICATES[0]
    leave_out: float = LEAVE_OUT
    again: tuple[Row, ...] = ()
    easy: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        n = sum(map(len, self.qrels.values()))
        documents = "documents on demand" if isinstance(self.docs, irds.Documents) else f"{len(self.docs)} documents"
        return f"Collection({self.id}: {len(self.queries)} queries, {documents}, {n} judgments, {self.hash[:12]})"

    @property
    def full_name(self) -> str:
        """The id with the folder above it, `scifact/test`; the id alone if it ships or is of ir_datasets."""
        return self.id if self.folder is None or self.ships else f"{self.folder.resolve().parent.name}/{self.id}"

    @property
    def address(self) -> str:
        """The whole path of the folder, or the id: the argument by which `collection` opens it from anywhere.

        Of a collection of tables the id behind `IN_MEMORY`, for nothing opens it.
        """
        if self.folder is None and isinstance(self.docs, trec_files.Texts):
            return f"{IN_MEMORY}/{self.id.removeprefix(IN_MEMORY) or 'collection'}"
        return self.id if self.folder is None or self.ships else str(self.folder.resolve())

    @property
    def rules(self) -> dict[str, Any]:
        """The rules it was read by, without the defaults: arguments of `collection`."""
        defaults = {"duplicates": DUPLICATES[0], "leave_out": LEAVE_OUT}
        return {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}

    @property
    def judgments(self) -> Mapping[str, Mapping[str, int]]:
        """The judgments that count: grades of 0 and more, of queries and documents that exist and are not empty.

        Raises:
            MechirError: when more than `leave_out` of them cannot be used.
        """
        return self._counted.qrels

    @cached_property
    def _counted(self) -> Counted:
        return counted(self.qrels, self.queries, self.docs.many, f"'{self.folder or self.id}'", self.leave_out)

    def pairs(self, **pool: Any) -> Pairs:
        """The pairs of a pool; see `sample` for its options."""
        refuse_unknown(pool)
        return Pairs(self.sample(**pool).pairs)

    def sample(
        self,
        *,
        per_grade: int | None = None,
        easy_negatives: int | None = None,
        top_k: int | None = None,
        run: str | Path | None = None,
        limit_queries: int | None = None,
        seed: int = 0,
    ) -> Sample:
        """A pool, and what is left out of it and of the collection.

        Its pairs are whole queries one after the other, in the order of the queries' file: by default all documents
        that are judged 0 or more of every judged query, by falling grade. Queries without judgments are in no pool, for
        their nDCG is undefined.

        Args:
            per_grade: the most documents per grade and query, drawn at random; grade 0 are the hard negatives.
            easy_negatives: the number per query that is drawn from the whole collection, unjudged for that query, grade
                -1; by default the collection's own number or its own ones, or 0 with `run` or `top_k`. Never an empty
                document, nor the query itself.
            top_k: the number of first documents of the run, or of BM25 when there is no `run`. Documents of a grade
                below 0 and the query itself are passed over.
            run: a TREC run, by its path or by its name in the directory (`bm25` is `run.bm25.txt`).
            limit_queries: the number of first judged queries that are taken.
            seed: for every draw. Each query and grade draws by itself, so no other option changes what is drawn.

        Raises:
            MechirError: for options that exclude each other or are below 1, an unknown run, a collection too small for
                the easy negatives, more to leave out than `leave_out`, or an empty pool.
        """
        own = self.easy if easy_negatives is None and run is None and top_k is None else {}
        if easy_negatives is None:
            easy_negatives = self.easy_negatives if run is None and top_k is None else 0
        refuse_counts_below(1, per_grade=per_grade, top_k=top_k, limit_queries=limit_queries)
        refuse_counts_below(0, easy_negatives=easy_negatives)
        if per_grade is not None and (run is not None or top_k is not None):
            raise MechirError(
                "per_grade= samples judged documents, and run= and top_k= take a run's: give one or the other."
            )
        judgments, queries = self.judgments, self._judged_queries(limit_queries)
        judged = [query_id for query_id in queries if query_id in judgments]
        rows: list[Row] = []
        if run is not None:
            chosen, rows = self._of_run(run, top_k, judged)
        elif top_k is not None:
            chosen, rows = self._of_bm25(top_k, judged)
        else:
            chosen = {key: pools.judged_documents(key, judgments[key], per_grade, seed) for key in judged}
        if not chosen:
            reason = "the run names documents of none" if run is not None else "there are documents to score for none"
            raise MechirError(f"The pool of '{self.id}' is empty: {reason} of its judged queries.")
        pairs, passed = self._pairs(chosen, own, easy_negatives, seed)
        return Sample(pairs, self._left_out(rows + passed, queries, chosen))

    def judged(self, pairs: Sequence[Pair], *, full: bool) -> pd.DataFrame:
        """The documents of the ideal ranking: `query_id`, `doc_id`, `grade` (0 for unjudged), `pooled`.

        The pool's own documents (`pooled`), and where `full` every other judged document of its queries that counts:
        the nDCG of published results. A sampled pool is measured against its own ideal ranking.
        """
        rows = {(pair.query_id, pair.doc_id): (max(pair.grade or 0, 0), True) for pair in pairs}
        if full:
            for query_id in {pair.query_id: None for pair in pairs}:
                for doc_id, grade in self.judgments[query_id].items():
                    rows.setdefault((query_id, doc_id), (grade, False))
        columns = ["query_id", "doc_id", "grade", "pooled"]
        return pd.DataFrame([(*ids, *rest) for ids, rest in rows.items()], columns=columns)

    def texts(self, limit: int) -> Iterator[str]:
        """The texts of all documents, or of `limit` of them at even distances where there are more."""
        n = len(self.docs)
        places = np.linspace(0, n - 1, min(n, limit)).round().astype(int)
        for part in np.array_split(places, len(places) // 1000 + 1):
            yield from (text for _, text in self.docs.at(part.tolist()))

    def _judged_queries(self, limit: int | None) -> list[str]:
        """The judged queries up to the `limit`-th of them that has a judgment that counts."""
        judged = [query_id for query_id in self.queries if self.qrels.get(query_id)]
        counting = [place for place, query_id in enumerate(judged) if query_id in self.judgments]
        return judged if limit is None or limit >= len(counting) else judged[: counting[limit - 1] + 1]

    def _pairs(
        self, chosen: Mapping[str, list[str]], own: Mapping[str, tuple[str, ...]], n: int, seed: int
    ) -> tuple[list[Pair], list[Row]]:
        """The pairs of the chosen documents, of its own easy negatives and of n that are drawn for each query.

        Also what is passed over in drawing these.
        """
        texts = self.docs.many({doc_id: None for ids in (*chosen.values(), *own.values()) for doc_id in ids})
        pairs, rows = list[Pair](), list[Row]()
        for query_id, ids in chosen.items():
            query, grades = self.queries[query_id], self.judgments[query_id]
            pairs += [Pair(query, texts[doc_id], query_id, doc_id, grades.get(doc_id)) for doc_id in ids]
            pairs += [Pair(query, texts[doc_id], query_id, doc_id, EASY) for doc_id in own.get(query_id, ())]
            if n:
                taken = {*self.qrels[query_id], *ids}
                drawn, passed = pools.easy_negatives(self.id, self.docs, query_id, query, taken, n, seed)
                pairs += [Pair(query, text, query_id, doc_id, EASY) for doc_id, text in drawn.items()]
                rows += passed
        return pairs, rows

    def _left_out(self, rows: Sequence[Row], queries: Sequence[str], chosen: Mapping[str, list[str]]) -> pd.DataFrame:
        """The table of all that is left out, with a warning where a query itself is among the documents."""
        if itself := [row for row in rows if row.reason == left_out.ITSELF]:
            warnings.warn(
                f"'{self.id}' holds documents that are the query itself ({itself[0]}{', ...' * (len(itself) > 1)}): "
                "they are neither drawn nor taken from a ranking.",
                stacklevel=4,
            )
        no_pair = [Row(left_out.NO_PAIR, query_id, "") for query_id in queries if query_id not in chosen]
        irrelevant = [query_id for query_id in chosen if not any(self.judgments[query_id].values())]
        no_relevant = [Row(left_out.NO_RELEVANT, query_id, "") for query_id in irrelevant]
        return left_out.frame([*self.again, *self._counted.left_out, *rows, *no_pair, *no_relevant])

    def _first(self, ranked: Mapping[str, list[str]], k: int | None) -> tuple[dict[str, list[str]], list[Row]]:
        """The first k documents of each ranking that can be scored, and what is left out of the rankings."""
        first, rows = dict[str, list[str]](), list[Row]()
        for query_id, ids in ranked.items():
            texts, grades = self.docs.many(ids), self.qrels[query_id]
            documents, left = pools.of_ranking(query_id, self.queries[query_id], ids, grades, texts)
            rows += left
            if documents:
                first[query_id] = documents[:k]
        return first, rows

    def _of_run(self, run: str | Path, k: int | None, judged: Sequence[str]) -> tuple[dict[str, list[str]], list[Row]]:
        """The first k documents of each query of a run; its lines of every judged query must be of this collection."""
        ranked = trec_files.read_run(trec_files.run_file(run, self.folder, self.id))
        unknown = [Row(left_out.RUN_QUERY, query_id, "") for query_id in ranked if query_id not in self.queries]
        ranked = {query_id: ranked[query_id] for query_id in self.judgments if query_id in ranked}
        chosen, rows = self._first(ranked, k)
        lost = [row for row in rows if row.reason in (left_out.RUN_MISSING, left_out.RUN_EMPTY)]
        refuse_beyond(lost, sum(map(len, ranked.values())), f"lines of the run '{run}'", self.leave_out)
        return {query_id: chosen[query_id] for query_id in judged if query_id in chosen}, unknown + rows

    def _of_bm25(self, k: int, judged: Sequence[str]) -> tuple[dict[str, list[str]], list[Row]]:
        """BM25's first k documents of each query, without the query itself and grades below 0."""
        if len(self.docs) > BM25_LIMIT:
            raise MechirError(
                f"'{self.id}' has {len(self.docs)} documents, too many for BM25 here: give a run of it with run=FILE."
            )
        texts = self.docs.many(list(self.docs))
        queries = {query_id: self.queries[query_id] for query_id in judged}
        spare = pools.passed_over(queries, self.qrels, texts)
        ranked = pools.candidates(queries, list(texts), list(texts.values()), k + spare) if queries else {}
        return self._first(ranked, k)


def refuse_unknown(pool: Iterable[str]) -> None:
    """Raises for an option that a pool does not have, with the closest."""
    if unknown := next((name for name in pool if name not in POOL), None):
        takes = f"it takes {', '.join(POOL)}; the closest is {closest(unknown, POOL, n=1)}"
        raise MechirError(f"A pool has no option '{unknown}': {takes}.")
