"""Collections of ir_datasets: documents are fetched when they are read, or an error says why they cannot be."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mechir.errors import MechirError, beside, closest
from mechir.rules import grade_of


def is_dataset(name: str) -> bool:
    """Whether ir_datasets knows a dataset of this name."""
    import ir_datasets

    try:
        ir_datasets.load(name)
    except KeyError:
        return False
    return True


def is_opened(value: Any) -> bool:
    """Whether this is a dataset that ir_datasets has opened."""
    module = sys.modules.get("ir_datasets")
    return module is not None and isinstance(value, module.Dataset)


def open_dataset(name: str) -> Any:
    """Opens a dataset without a download; raises for an unknown name, with the closest."""
    import ir_datasets

    # A dataset that cannot be reached is reported at once, not after three tries.
    os.environ.setdefault("IR_DATASETS_DL_TRIES", "1")
    try:
        return ir_datasets.load(name)
    except KeyError as error:
        known = ["embedded", *ir_datasets.registry._registered]
        raise MechirError(
            f"'{name}' is neither a directory nor an ir_datasets id: the closest ids are {closest(name, known)}"
            f"{beside(Path(name))}."
        ) from error


@contextlib.contextmanager
def reachable(name: str) -> Iterator[None]:
    """Turns the errors of ir_datasets without a network into a MechirError."""
    import requests

    try:
        yield
    except (RuntimeError, OSError, requests.exceptions.RequestException) as error:
        home = os.environ.get("IR_DATASETS_HOME", str(Path.home() / ".ir_datasets"))
        raise MechirError(
            f"Cannot get '{name}' ({type(error).__name__}: {str(error)[:80]}): run `mechir fetch {name}` where there "
            f"is a network and make its IR_DATASETS_HOME visible here (now {home})."
        ) from error


def queries(name: str, dataset: Any) -> Iterator[tuple[int, str, str]]:
    """The number, id and text of each query."""
    with reachable(name):
        for number, query in enumerate(dataset.queries_iter(), 1):
            yield number, query.query_id, query.default_text() or ""


def qrels(name: str, dataset: Any) -> Iterator[tuple[int, str, str, int]]:
    """The number, query id, document id and grade of each judgment."""
    with reachable(name):
        for number, line in enumerate(dataset.qrels_iter(), 1):
            try:
                yield number, line.query_id, line.doc_id, grade_of(line.relevance)
            except ValueError:
                raise MechirError(
                    f"'{name}', judgment {number}: document '{line.doc_id}' has grade {line.relevance!r} for query "
                    f"'{line.query_id}'; a grade is a whole number."
                ) from None


class Documents:
    """A mapping from document id to text, read from the dataset's store on demand."""

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self.dataset = name, dataset

    def __getitem__(self, doc_id: str) -> str:
        return self.many([doc_id])[doc_id]

    def __repr__(self) -> str:
        return f"Documents({self.name})"

    def __iter__(self) -> Iterator[str]:
        with reachable(self.name):
            yield from (doc.doc_id for doc in self.dataset.docs_iter())

    def __len__(self) -> int:
        with reachable(self.name):
            count = self.dataset.docs_count()
            return int(self.dataset.docs_store().count() if count is None else count)

    def many(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> text of these documents, without those that do not exist, in one go."""
        wanted = list(ids)
        with reachable(self.name):
            docs = self.dataset.docs_store().get_many(wanted)
        return {doc_id: _text(docs[doc_id]) for doc_id in wanted if doc_id in docs}

    def at(self, places: Iterable[int]) -> list[tuple[str, str]]:
        """Id and text of the documents at these places of the collection's order."""
        with reachable(self.name):
            docs = self.dataset.docs_iter()
            return [(doc.doc_id, _text(doc)) for doc in (docs[int(place)] for place in places)]


def _text(doc: Any) -> str:
    """The text without white space around it, as documents of a directory are read."""
    return (doc.default_text() or "").strip()


def fetch_dataset(name: str) -> str:
    """Downloads queries, judgments and documents, and counts them in a sentence."""
    dataset = open_dataset(name)
    n_queries = len({query_id for _, query_id, _ in queries(name, dataset)})
    n_qrels = len({(query_id, doc_id) for _, query_id, doc_id, _ in qrels(name, dataset)})
    documents = Documents(name, dataset)
    with reachable(name):
        dataset.docs_store().get(next(iter(documents)))
    return f"'{name}' is here: {n_queries} queries, {n_qrels} judgments, {len(documents)} documents."
