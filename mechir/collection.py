"""Judged collections, and the pools of pairs that are sampled from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from mechir import irds, trec_files
from mechir.errors import MechirError
from mechir.pairs import EASY, Pair

FILES = ("queries.tsv", "docs.tsv", "qrels.txt")
EMBEDDED = Path(__file__).parent / "data" / "embedded"
BM25_LIMIT = 2_000_000
"""Documents above which BM25 candidates are not computed here."""


@dataclass(frozen=True, eq=False)
class Collection:
    """Queries, documents and judgments, and what can be sampled from them.

    `queries` and `docs` map ids to texts, in the order of their files; `qrels` maps query id -> document id -> grade.
    `dropped` counts judgments that name unknown queries or documents; `easy_negatives` is how many a pool has where
    none are asked for (20 in the embedded collection, else 0). `hash` is the SHA-256 of ids and texts of queries and
    documents and of the judgments; for ir_datasets that of its id, queries and judgments alone.
    """

    id: str
    queries: Mapping[str, str] = field(repr=False)
    docs: dict[str, str] | irds.Documents = field(repr=False)
    qrels: Mapping[str, Mapping[str, int]] = field(repr=False)
    hash: str
    folder: Path | None = None
    dropped: int = 0
    easy_negatives: int = 0

    def __repr__(self) -> str:
        n = sum(map(len, self.qrels.values()))
        documents = "documents on demand" if isinstance(self.docs, irds.Documents) else f"{len(self.docs)} documents"
        return f"Collection({self.id}: {len(self.queries)} queries, {documents}, {n} judgments, {self.hash[:12]})"

    @property
    def full_name(self) -> str:
        """Its id with the folder above it, `scifact/test`; of what lies in no folder of the reader's the id."""
        return self.id if self.folder is None else f"{self.folder.resolve().parent.name}/{self.id}"

    @property
    def address(self) -> str:
        """What `collection` opens it by from anywhere: the whole path of its folder, or its id."""
        return self.id if self.folder is None else str(self.folder.resolve())

    @property
    def unjudged(self) -> int:
        """How many queries have no judgments: they are left out of every pool, for their nDCG is undefined."""
        return sum(not self.qrels.get(query_id) for query_id in self.queries)

    def pairs(
        self,
        *,
        per_grade: int | None = None,
        easy_negatives: int | None = None,
        top_k: int | None = None,
        run: str | Path | None = None,
        limit_queries: int | None = None,
        seed: int = 0,
    ) -> list[Pair]:
        """A pool: the pairs to score, whole queries one after the other, in the order of the queries' file.

        By default all judged documents of every judged query, by falling grade. Negative grades count as 0.

        Args:
            per_grade: at most so many per grade and query, drawn at random; grade 0 are the hard negatives.
            easy_negatives: so many per query drawn from the whole collection, unjudged for that query, grade -1;
                by default the collection's own number, or 0 with `run` or `top_k`.
            top_k: the first so many documents of the run, or of BM25 when there is no `run`.
            run: a TREC run, by its path or by its name in the directory (`bm25` is `run.bm25.txt`).
            limit_queries: only the first so many judged queries.
            seed: of everything drawn. Each query and grade draws by itself, so no other option changes what is drawn.

        Raises:
            MechirError: for options that exclude each other or are below 1, an unknown run, a collection too small for
                the easy negatives, a document that is not there, or an empty pool.
        """
        if easy_negatives is None:
            easy_negatives = self.easy_negatives if run is None and top_k is None else 0
        _refuse_below(1, per_grade=per_grade, top_k=top_k, limit_queries=limit_queries)
        _refuse_below(0, easy_negatives=easy_negatives)
        if per_grade is not None and (run is not None or top_k is not None):
            raise MechirError("per_grade samples judged documents and run/top_k takes a run's: give one or the other.")
        judged = [query_id for query_id in self.queries if self.qrels.get(query_id)][:limit_queries]
        if run is not None or top_k is not None:
            ranked = self._ranked(run, top_k, judged)
            chosen = {query_id: ranked[query_id][:top_k] for query_id in judged if ranked.get(query_id)}
        else:
            chosen = {query_id: self._sample(query_id, per_grade, seed) for query_id in judged}
        easy = {query_id: self._easy(query_id, chosen[query_id], easy_negatives, seed) for query_id in chosen}
        texts = self._texts(doc_id for ids in (chosen, easy) for query_id in ids for doc_id in ids[query_id])
        pairs = [
            Pair(self.queries[query_id], texts[doc_id], query_id, doc_id, grade)
            for query_id in chosen
            for doc_id, grade in [
                *((doc_id, self._grade(query_id, doc_id)) for doc_id in chosen[query_id]),
                *((doc_id, EASY) for doc_id in easy[query_id]),
            ]
        ]
        if not pairs:
            raise MechirError(f"The pool of '{self.id}' is empty: none of its queries has judged documents to score.")
        return pairs

    def judged(self, pairs: Sequence[Pair], *, full: bool) -> pd.DataFrame:
        """What the ideal ranking may use: `query_id`, `doc_id`, `grade` (0 for unjudged), `pooled`.

        The pool's own documents (`pooled`), and where `full` every other judged document of its queries: the nDCG of
        published results. A sampled pool is measured against its own ideal ranking.
        """
        rows = {(pair.query_id, pair.doc_id): (max(pair.grade or 0, 0), True) for pair in pairs}
        if full:
            for query_id in {pair.query_id: None for pair in pairs}:
                for doc_id, grade in self.qrels[query_id].items():
                    rows.setdefault((query_id, doc_id), (max(grade, 0), False))
        columns = ["query_id", "doc_id", "grade", "pooled"]
        return pd.DataFrame([(*ids, *rest) for ids, rest in rows.items()], columns=columns)

    def _grade(self, query_id: str, doc_id: str) -> int | None:
        grade = self.qrels[query_id].get(doc_id)
        return None if grade is None else max(grade, 0)

    def _sample(self, query_id: str, per_grade: int | None, seed: int) -> list[str]:
        by_grade: dict[int, list[str]] = {}
        for doc_id, grade in sorted(self.qrels[query_id].items()):
            by_grade.setdefault(max(grade, 0), []).append(doc_id)
        sampled: list[str] = []
        for grade in sorted(by_grade, reverse=True):
            ids = by_grade[grade]
            if per_grade is not None and len(ids) > per_grade:
                ids = sorted(_generator(seed, query_id, str(grade)).choice(ids, per_grade, replace=False).tolist())
            sampled += ids
        return sampled

    def _easy(self, query_id: str, chosen: Sequence[str], n: int, seed: int) -> list[str]:
        if not n:
            return []
        taken = {*self.qrels[query_id], *chosen}
        if len(self.docs) - len(taken) < n:
            raise MechirError(
                f"'{self.id}' has {len(self.docs)} documents, {len(taken)} of them judged or pooled for query "
                f"'{query_id}': too few for {n} easy negatives."
            )
        generator, drawn = _generator(seed, query_id, "easy"), dict[str, None]()
        while len(drawn) < n:
            ids = self._ids_at(generator.integers(len(self.docs), size=2 * n))
            drawn |= {doc_id: None for doc_id in ids if doc_id not in taken}
        return list(drawn)[:n]

    def texts(self, limit: int) -> Iterator[str]:
        """The texts of all documents, or of `limit` of them at even distances where there are more."""
        n = len(self.docs)
        places = np.linspace(0, n - 1, min(n, limit)).round().astype(int)
        for some in np.array_split(places, len(places) // 1000 + 1):
            ids = self._ids_at(some)
            texts = self._texts(ids)
            yield from (texts[doc_id] for doc_id in ids)

    def _ids_at(self, places: np.ndarray) -> list[str]:
        if isinstance(self.docs, irds.Documents):
            return self.docs.ids_at(places.tolist())
        return [self._ids[place] for place in places]

    @cached_property
    def _ids(self) -> list[str]:
        return list(self.docs)

    def _texts(self, doc_ids: Iterable[str]) -> Mapping[str, str]:
        if not isinstance(self.docs, irds.Documents):
            return self.docs
        try:
            return self.docs.many({doc_id: None for doc_id in doc_ids})
        except KeyError as error:
            # Directories are checked when they are read; a dataset's documents are first seen here.
            raise MechirError(
                f"'{self.id}' has no document {error}, which its judgments or the run name: "
                "give a run of this collection, or limit_queries to leave the query out."
            ) from error

    def _ranked(self, run: str | Path | None, top_k: int | None, queries: Sequence[str]) -> dict[str, list[str]]:
        if run is None:
            assert top_k is not None
            return self._bm25(top_k, queries)
        ranked = trec_files.read_run(self._run_file(run))
        if isinstance(self.docs, irds.Documents):
            return ranked
        trec_files.known_only(ranked, self.queries.keys(), self.docs.keys(), f"the run '{run}'")
        return {query_id: [doc_id for doc_id in ids if doc_id in self.docs] for query_id, ids in ranked.items()}

    def _run_file(self, run: str | Path) -> Path:
        if Path(run).is_file():
            return Path(run)
        if self.folder is not None and Path(run).name == str(run):
            inside = [self.folder / str(run), self.folder / f"run.{run}.txt"]
            found = [file for file in inside if file.is_file()]
            if found:
                return found[0]
        here = [] if self.folder is None else sorted(file.name for file in self.folder.glob("run.*.txt"))
        raise MechirError(f"There is no run file '{run}'; '{self.id}' has {', '.join(here) or 'none of its own'}.")

    def _bm25(self, k: int, queries: Sequence[str]) -> dict[str, list[str]]:
        """Anserini's defaults (k1 0.9, b 0.4, Lucene's IDF) over lower-cased words without English stop words."""
        import bm25s

        if len(self.docs) > BM25_LIMIT:
            raise MechirError(
                f"'{self.id}' has {len(self.docs)} documents, too many for BM25 here: give a run of it with --run FILE."
            )
        ids = list(self.docs)
        texts = self._texts(ids)
        quiet = {"show_progress": False}
        retriever = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        retriever.index(bm25s.tokenize([texts[doc_id] for doc_id in ids], stopwords="en", **quiet), **quiet)
        asked = bm25s.tokenize([self.queries[query_id] for query_id in queries], stopwords="en", **quiet)
        places, scores = retriever.retrieve(asked, k=min(k, len(ids)), **quiet)
        return {
            query_id: [ids[place] for place, score in zip(row, values, strict=True) if score > 0]
            for query_id, row, values in zip(queries, places, scores, strict=True)
        }


def collection(name_or_path: str | Path) -> Collection:
    """A directory with queries.tsv, docs.tsv and qrels.txt, an ir_datasets id, or "embedded" (which ships).

    The embedded collection was written for mechir: each query has 12 judged passages of known make-up
    (`mechir/data/embedded/design.tsv`; see `mechir/data/embedded/DATASHEET.md`).

    Raises:
        MechirError: for anything else, and for files that cannot be trusted.
    """
    if str(name_or_path) == EMBEDDED.name:
        return replace(_directory(EMBEDDED), folder=None, easy_negatives=20)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return _directory(folder)
    name = str(name_or_path)
    if name.startswith((".", "/", "~")):
        raise MechirError(f"There is no directory '{name}': write the path of a collection or an ir_datasets id.")
    dataset = irds.open_dataset(name)
    lacking = [
        what for what, has in (("queries", dataset.has_queries()), ("judgments", dataset.has_qrels())) if not has
    ]
    if lacking:
        raise MechirError(
            f"'{name}' has no {' and no '.join(lacking)} in ir_datasets: write the id of one of its judged subsets, "
            "such as 'msmarco-passage/trec-dl-2019/judged' of 'msmarco-passage'."
        )
    queries, qrels = irds.queries(name, dataset), irds.qrels(name, dataset)
    digest = _digest([name], _lines(queries), _judgments(qrels))
    return Collection(name, queries, irds.Documents(name, dataset), qrels, digest)


def _directory(folder: Path) -> Collection:
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise MechirError(f"'{folder}' is no collection: it holds no {' and no '.join(missing)}.")
    queries = trec_files.read_texts(folder / "queries.tsv", "query")
    docs = trec_files.read_texts(folder / "docs.tsv", "document")
    qrels = trec_files.read_qrels(folder / "qrels.txt")
    dropped = trec_files.known_only(qrels, queries.keys(), docs.keys(), str(folder / "qrels.txt"))
    kept = {
        query_id: {doc_id: grade for doc_id, grade in grades.items() if doc_id in docs}
        for query_id, grades in qrels.items()
        if query_id in queries
    }
    digest = _digest(_lines(queries), _lines(docs), _judgments(kept))
    return Collection(folder.resolve().name, queries, docs, kept, digest, folder, dropped)


def _refuse_below(least: int, **options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < least:
            raise MechirError(f"{name}={value} asks for nothing: write {least} or more, or leave it out.")


def _lines(texts: Mapping[str, str]) -> Iterator[str]:
    return (f"{key}\t{text}" for key, text in texts.items())


def _judgments(qrels: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    return (f"{query_id}\t{sorted(grades.items())}" for query_id, grades in qrels.items())


def _digest(*parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for line in part:
            digest.update(line.encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()


def _generator(seed: int, *key: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join([str(seed), *key]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
