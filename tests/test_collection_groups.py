"""Several collections as one: the same pools, with ids that say where they are from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.collection_groups import Collections, collections
from mechir.errors import MechirError
from tests.models import TOY


@pytest.fixture
def both(tmp_path: Path) -> Collections:
    shutil.copytree(TOY, tmp_path / "other")
    return collections([f"in:{TOY}", f"out:{tmp_path / 'other'}"])


def test_pools_are_those_of_each(both: Collections) -> None:
    one = mi.collection(TOY)
    pool = {"per_grade": 1, "easy_negatives": 1, "limit_queries": 2, "seed": 3}
    alone, together = one.pairs(**pool), both.pairs(**pool)
    assert len(together) == 2 * len(alone)
    for name, half in ((TOY.name, together[: len(alone)]), ("other", together[len(alone) :])):
        assert [pair.query_id for pair in half] == [f"{name}::{pair.query_id}" for pair in alone]
        assert [pair.doc_id for pair in half] == [f"{name}::{pair.doc_id}" for pair in alone]
        assert [(pair.query, pair.document, pair.grade) for pair in half] == [
            (pair.query, pair.document, pair.grade) for pair in alone
        ]
    assert both.groups == {TOY.name: "in", "other": "out"} and both.id == f"in:{TOY.name}+out:other"
    for full in (False, True):
        own, judged = one.judged(alone, full=full), both.judged(together, full=full)
        assert len(judged) == 2 * len(own)
        first = judged.iloc[: len(own)].assign(
            query_id=lambda frame: frame["query_id"].str.removeprefix(f"{TOY.name}::"),
            doc_id=lambda frame: frame["doc_id"].str.removeprefix(f"{TOY.name}::"),
        )
        pd.testing.assert_frame_equal(first, own)


def test_the_hash_follows_groups_and_contents(both: Collections, tmp_path: Path) -> None:
    swapped = collections([f"out:{TOY}", f"in:{tmp_path / 'other'}"])
    assert swapped.hash != both.hash != collections([f"in:{TOY}"]).hash
    queries = tmp_path / "other" / "queries.tsv"
    queries.write_text(queries.read_text().replace("\t", "\tnew ", 1))
    assert collections([f"in:{TOY}", f"out:{tmp_path / 'other'}"]).hash != both.hash


@pytest.mark.parametrize("text", [str(TOY), f":{TOY}", "in:", f"in and out:{TOY}"])
def test_a_group_is_needed(text: str) -> None:
    with pytest.raises(MechirError, match=r"Cannot read the collection '.*': write group:name, such as in:PATH"):
        collections([text])


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(MechirError, match=r"Two collections are called 'toy': give each once, under a name of its own"):
        collections([f"in:{TOY}", f"out:{TOY}"])
