"""The hash of a collection: the SHA-256 of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

Qrels = Mapping[str, Mapping[str, int]]


def of_directory(queries: Mapping[str, str], docs: Mapping[str, str], qrels: Qrels) -> str:
    """The hash of ids and texts, and of the judgments of queries and documents that exist."""
    known = ((query_id, grades) for query_id, grades in qrels.items() if query_id in queries)
    judged = {query_id: {key: grade for key, grade in grades.items() if key in docs} for query_id, grades in known}
    return _digest(_texts(queries), _texts(docs), _judgments(judged))


def of_dataset(name: str, queries: Mapping[str, str], qrels: Qrels) -> str:
    """The hash of the id in ir_datasets, queries and judgments: the documents are not read."""
    return _digest([name], _texts(queries), _judgments(qrels))


def _texts(texts: Mapping[str, str]) -> Iterator[str]:
    return (f"{key}\t{text}" for key, text in texts.items())


def _judgments(qrels: Qrels) -> Iterator[str]:
    return (f"{query_id}\t{sorted(grades.items())}" for query_id, grades in qrels.items())


def _digest(*parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for line in part:
            digest.update(line.encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()
