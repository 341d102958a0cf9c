"""A directory and ir_datasets give the same pools of the same content, or refuse it in the same words."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

import mechir as mi
from mechir import irds
from mechir.errors import MechirError
from mechir.trec_files import COLUMN

NAME = "generated"
LETTERS = st.characters(categories=["L", "N", "S", "P"], exclude_characters='"')
KNOWN = ["1", "2", "3", "q1", "q2", "d1", "d2", "\u00fc-1", "x::y"]
WRITTEN = st.text(LETTERS, min_size=1, max_size=4).filter(lambda key: not COLUMN.fullmatch(key.lower()))
IDS = st.sampled_from(KNOWN) | WRITTEN
"""No names of columns, which a directory refuses in its first line."""
TEXTS = st.sampled_from(["wifi", " WIFI  radio ", "wifi radio", "a cold river", "the of and", "", " \u2003"]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters='\n\r"\ufeff'), max_size=20
)
DUPLICATES, SHARES = st.sampled_from(["max", "max", "max", "refuse"]), st.sampled_from([1.0, 1.0, 0.3, 0.01])
POOLS: list[dict[str, Any]] = [
    {},
    {"per_grade": 1},
    {"per_grade": 1, "easy_negatives": 1, "seed": 1},
    {"easy_negatives": 2},
    {"limit_queries": 1},
    {"top_k": 2},
    {"top_k": 1, "easy_negatives": 1},
    {"run": "given"},
    {"run": "given", "top_k": 1, "limit_queries": 2},
]


class Content(NamedTuple):
    """What both sources hold."""

    queries: list[tuple[str, str]]
    docs: dict[str, str]
    judgments: list[tuple[str, str, str, int]]
    ranked: dict[str, list[str]]


@st.composite
def contents(draw: st.DrawFn) -> Content:
    docs = draw(st.dictionaries(IDS, TEXTS, min_size=2, max_size=10))
    asked = st.sampled_from(["wifi", "wifi radio", "river", *docs.values()]) | TEXTS
    queries = draw(st.lists(st.tuples(IDS, asked), min_size=1, max_size=5, unique_by=lambda one: one[0]))
    queries += draw(st.sampled_from([[], [], [], [], [], [], [queries[0]], [(queries[0][0], "another")]]))
    a_query, a_doc = st.sampled_from([key for key, _ in queries]), st.sampled_from(list(docs))
    most = st.integers(0, 19)
    pairs = st.tuples(
        most.flatmap(lambda k: IDS if k == 0 else a_query),
        st.sampled_from(["0", "1", "Q0"]),
        most.flatmap(lambda k: IDS if k == 0 else a_doc),
        st.sampled_from([1, 0, 2, 3, 1, 0, -1, -100]),
    )
    judgments = draw(st.lists(pairs, min_size=5, max_size=25))
    if draw(st.booleans()):  # one grade for each pair, but for the order of the lines
        judgments = list({(one[0], one[2]): one for one in judgments}.values())
    ranked = draw(st.dictionaries(a_query, st.lists(most.flatmap(lambda k: IDS if k == 0 else a_doc), unique=True)))
    return Content(queries, docs, judgments, ranked)


class Record(NamedTuple):
    """A query, document or judgment of ir_datasets."""

    query_id: str = ""
    doc_id: str = ""
    text: str = ""
    relevance: int = 0

    def default_text(self) -> str:
        return self.text


class Dataset:
    """A dataset as ir_datasets serves it."""

    def __init__(self, content: Content) -> None:
        self.content = content
        self.docs = {key: Record(doc_id=key, text=text) for key, text in content.docs.items()}

    def has_queries(self) -> bool:
        return True

    def has_qrels(self) -> bool:
        return True

    def queries_iter(self) -> Iterator[Record]:
        return (Record(query_id=key, text=text) for key, text in self.content.queries)

    def qrels_iter(self) -> Iterator[Record]:
        return (Record(query_id, doc_id, "", grade) for query_id, _, doc_id, grade in self.content.judgments)

    def docs_iter(self) -> list[Record]:
        return list(self.docs.values())

    def docs_count(self) -> int:
        return len(self.docs)

    def docs_store(self) -> Dataset:
        return self

    def get_many(self, ids: list[str]) -> dict[str, Record]:
        return {one: self.docs[one] for one in ids if one in self.docs}


def write(content: Content, folder: Path) -> None:
    def lines(name: str, every: list[str]) -> None:
        (folder / name).write_text("".join(f"{line}\n" for line in every), encoding="utf-8", newline="")

    lines("queries.tsv", [f"{key}\t{text}" for key, text in content.queries])
    lines("docs.tsv", [f"{key}\t{text}" for key, text in content.docs.items()])
    lines("qrels.txt", [" ".join(map(str, one)) for one in content.judgments])
    ranked = [(key, doc_id, rank) for key, ids in content.ranked.items() for rank, doc_id in enumerate(ids, 1)]
    lines("run.given.txt", [f"{key} Q0 {doc_id} {rank} {-rank} t" for key, doc_id, rank in ranked])


def found(source: Path | str, rules: dict[str, Any], pool: dict[str, Any], folder: Path) -> tuple[Any, ...]:
    """Everything that a source gives, or its refusal, and what it warns of, without the place."""

    def placed(sentence: object) -> str:
        told = re.sub(r"^[^ ]*, (line|query|judgment) (\d+)", r"PLACE \2", str(sentence))
        return told.replace(str(folder), NAME)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            read = mi.collection(source, **rules)
            sample = read.sample(**pool)
            frames = [read.judged(sample.pairs, full=full).to_dict("records") for full in (False, True)]
            gives: tuple[Any, ...] = (sample.pairs, frames, sample.left_out.to_dict("records"), read.judgments)
        except MechirError as error:
            gives = (placed(error),)
    return *gives, [placed(one.message) for one in said]


def test_a_directory_and_a_dataset_of_the_same_content_agree() -> None:
    seen: list[tuple[Any, ...]] = []

    @settings(max_examples=150, derandomize=True, deadline=None, database=None)
    @given(contents(), st.sampled_from(POOLS), DUPLICATES, SHARES)
    def agree(content: Content, pool: dict[str, Any], duplicates: str, leave_out: float) -> None:
        rules = {"duplicates": duplicates, "leave_out": leave_out}
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / NAME
            folder.mkdir()
            write(content, folder)
            asked = pool | {"run": folder / "run.given.txt"} if "run" in pool else pool
            with mock.patch.object(irds, "open_dataset", return_value=Dataset(content)):
                served = found(NAME, rules, asked, folder)
            assert found(folder, rules, asked, folder) == served
        seen.append(served)

    agree()
    pools = [one for one in seen if len(one) > 2]
    reasons = {row["reason"] for one in pools for row in one[2]}
    assert len(pools) > 30 and len(seen) - len(pools) > 20  # both happen, and nearly all that can be left out is
    assert len(reasons) > 8
