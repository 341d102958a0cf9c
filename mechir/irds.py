"""Collections of ir_datasets: documents fetched when they are read, and one sentence when they cannot be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mechir.errors import MechirError, closest


def is_dataset(name: str) -> bool:
    """Whether ir_datasets knows a dataset of this name."""
    import ir_datasets

    try:
        ir_datasets.load(name)
    except KeyError:
        return False
    return True


def open_dataset(name: str) -> Any:
    """The dataset; nothing is downloaded yet.

    Raises:
        MechirError: for an unknown name, with the closest.
    """
    import ir_datasets

    # A dataset that cannot be reached is reported at once, not after three tries.
    os.environ.setdefault("IR_DATASETS_DL_TRIES", "1")
    try:
        return ir_datasets.load(name)
    except KeyError as error:
        known = list(ir_datasets.registry._registered)
        raise MechirError(
            f"'{name}' is neither a directory nor an ir_datasets id. The closest ids are {closest(name, known)}."
        ) from error


@contextlib.contextmanager
def reachable(name: str) -> Iterator[None]:
    """Turns ir_datasets' two unrelated ways to fail without a network into one sentence."""
    import requests

    try:
        yield
    except (RuntimeError, OSError, requests.exceptions.RequestException) as error:
        home = os.environ.get("IR_DATASETS_HOME", str(Path.home() / ".ir_datasets"))
        raise MechirError(
            f"Cannot get '{name}' ({type(error).__name__}: {str(error)[:80]}): run `mechir fetch {name}` where there "
            f"is a network and make its IR_DATASETS_HOME visible here (now {home})."
        ) from error


def queries(name: str, dataset: Any) -> dict[str, str]:
    """Query id -> text."""
    with reachable(name):
        return {query.query_id: query.default_text() for query in dataset.queries_iter()}


def qrels(name: str, dataset: Any) -> dict[str, dict[str, int]]:
    """Query id -> document id -> grade."""
    found: dict[str, dict[str, int]] = {}
    with reachable(name):
        for line in dataset.qrels_iter():
            found.setdefault(line.query_id, {})[line.doc_id] = line.relevance
    return found


class Documents:
    """Document id -> text, read from the dataset's own store when asked for, and not before."""

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

    def many(self, doc_ids: Iterable[str]) -> dict[str, str]:
        """The texts of these documents, in one go.

        Raises:
            KeyError: for a document that is not there.
        """
        wanted = list(doc_ids)
        with reachable(self.name):
            found = self.dataset.docs_store().get_many(wanted)
        return {doc_id: found[doc_id].default_text() for doc_id in wanted}

    def ids_at(self, places: Iterable[int]) -> list[str]:
        """The ids of the documents at these places of the collection's order."""
        with reachable(self.name):
            iterator = self.dataset.docs_iter()
            return [iterator[int(place)].doc_id for place in places]


def fetch_dataset(name: str) -> str:
    """Downloads queries, judgments and documents, and says where they are."""
    dataset = open_dataset(name)
    n_queries, n_qrels = len(queries(name, dataset)), sum(map(len, qrels(name, dataset).values()))
    documents = Documents(name, dataset)
    with reachable(name):
        dataset.docs_store().get(next(iter(documents)))
    return f"'{name}' is here: {n_queries} queries, {n_qrels} judgments, {len(documents)} documents."
