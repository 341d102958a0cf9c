"""Collections of ir_datasets: the same pools as from files, and what cannot be reached is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import ir_datasets
import pytest
import requests

import mechir as mi
from mechir import irds
from mechir.errors import MechirError
from mechir.pair import EASY
from tests.models import TOY
from tests.test_collection import append


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the toy collection, to be spoilt."""
    return Path(shutil.copytree(TOY, tmp_path / "toy"))


@pytest.fixture
def dataset(folder: Path) -> str:
    """The toy collection as a dataset of ir_datasets."""
    name = f"mechir-test/{folder.parent.name}"
    made = ir_datasets.create_dataset(
        docs_tsv=str(folder / "docs.tsv"), queries_tsv=str(folder / "queries.tsv"), qrels_trec=str(folder / "qrels.txt")
    )
    ir_datasets.registry.register(name, made)
    return name


def test_ir_datasets_gives_the_same_pools(dataset: str, folder: Path) -> None:
    there, here = mi.collection(dataset), mi.collection(folder)
    assert there.pairs(per_grade=2) == here.pairs(per_grade=2)
    assert len(there.docs) == len(here.docs)
    assert there.docs["d0101"] == here.docs["d0101"]
    easy = there.pairs(easy_negatives=5)
    assert sum(pair.grade == EASY for pair in easy) == 30
    assert easy == here.pairs(easy_negatives=5)
    assert there.pairs(top_k=3) == here.pairs(top_k=3)
    assert list(there.docs) == list(here.docs)
    assert irds.is_dataset(dataset)
    assert "6 queries, 72 judgments, 72 documents" in irds.fetch_dataset(dataset)


@pytest.mark.parametrize(
    "error", [RuntimeError("All download sources failed", []), requests.ConnectionError("refused")]
)
def test_a_dataset_that_cannot_be_reached_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, dataset: str, error: Exception
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    read = mi.collection(dataset)
    monkeypatch.setattr(ir_datasets.load(dataset), "docs_store", fail, raising=False)
    with pytest.raises(
        MechirError, match=rf"Cannot get '{dataset}' \(.*run `mechir fetch {dataset}`.*IR_DATASETS_HOME"
    ):
        read.pairs()
    monkeypatch.setattr(ir_datasets.load(dataset), "queries_iter", fail, raising=False)
    with pytest.raises(MechirError, match=rf"Cannot get '{dataset}'"):
        mi.collection(dataset)


def test_a_dataset_without_judgments_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(MechirError, match=r"'beir/scifact' has no judgments in ir_datasets: write .* judged subsets"):
        mi.collection("beir/scifact")
    with pytest.raises(MechirError, match=r"'msmarco-passage' has no queries and no judgments"):
        mi.collection("msmarco-passage")


def test_a_document_that_a_dataset_lacks_is_named(dataset: str, folder: Path) -> None:
    append("foreign.txt", "q1 Q0 nope 1 2 t\n")(folder)
    with pytest.raises(MechirError, match=r"1 of 1 lines of the run '.*' cannot be used .*: q1/nope\): over 1 %"):
        mi.collection(dataset).pairs(run=folder / "foreign.txt")
    append("qrels.txt", "q1 0 nowhere 2\n")(folder)
    with pytest.raises(
        MechirError, match=rf"1 of 73 judgments of '{dataset}' cannot be used .*: q1/nowhere\): over 1 %"
    ):
        mi.collection(dataset).pairs()


def test_titles_are_part_of_a_beir_document() -> None:
    from ir_datasets.datasets.beir import BeirTitleDoc

    class Store:
        def get_many(self, ids: list[str]) -> dict[str, BeirTitleDoc]:
            return {doc_id: BeirTitleDoc(doc_id, "text of it", "A title") for doc_id in ids}

    class Dataset:
        def docs_store(self) -> Store:
            return Store()

    assert irds.Documents("beir/x", Dataset()).many(["d"]) == {"d": "A title text of it"}
