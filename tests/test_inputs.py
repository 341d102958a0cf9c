"""Pairs as users have them: the same pairs from every form, back again, and one sentence for what is none."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow
import pytest
import torch

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.opening import of_pairs
from mechir.pair import Pair, Pairs
from tests.models import PAIRS

FRAME = Pairs(PAIRS).frame()
LONG = {"qid": "query_id", "docno": "doc_id", "text": "passage", "label": "relevance"}
TEXTS = [(pair.query, pair.document) for pair in PAIRS]
IDS = [(pair.query, pair.document, pair.query_id, pair.doc_id) for pair in PAIRS]
Named = namedtuple("Named", "text query docno qid")

FORMS: dict[str, Callable[[], Any]] = {
    "a list of pairs": lambda: PAIRS,
    "a tuple of pairs": lambda: tuple(PAIRS),
    "a generator of pairs": lambda: iter(PAIRS),
    "pandas": lambda: FRAME,
    "pandas with other names": lambda: FRAME.rename(columns=LONG),
    "pandas with an index and columns of others": lambda: FRAME.assign(score=1.0, rank=0).set_index(np.arange(8)[::-1]),
    "pandas of Arrow's types": lambda: FRAME.convert_dtypes(dtype_backend="pyarrow"),
    "pandas of objects": lambda: FRAME.astype(object),
    "pandas of categories": lambda: FRAME.astype({"qid": "category", "query": "category"}),
    "polars": lambda: polars.from_pandas(FRAME),
    "Arrow": lambda: pyarrow.Table.from_pandas(FRAME),
    "datasets": lambda: datasets.Dataset.from_pandas(FRAME),
    "datasets as a stream": lambda: datasets.Dataset.from_pandas(FRAME).to_iterable_dataset(),
    "mappings": lambda: FRAME.to_dict("records"),
    "a generator of mappings": lambda: (row for row in FRAME.to_dict("records")),
    "rows with names": lambda: list(FRAME.itertuples()),
    "named tuples in another order": lambda: [
        Named(pair.document, pair.query, pair.doc_id, pair.query_id) for pair in PAIRS
    ],
    "tuples with ids": lambda: IDS,
    "tuples": lambda: TEXTS,
    "lists of two": lambda: [list(two) for two in TEXTS],
    "a zip": lambda: zip(*zip(*TEXTS, strict=True), strict=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_scores_to_the_last_bit(tiny: HookedEncoder, form: str) -> None:
    read = mi.pairs(FORMS[form]())
    assert [(pair.query, pair.document) for pair in read] == TEXTS
    if form not in ("tuples", "lists of two", "a zip"):
        assert [(pair.query_id, pair.doc_id) for pair in read] == [ids[2:] for ids in IDS]
    if "tuples" not in form and form not in ("lists of two", "a zip"):
        assert read == tuple(PAIRS)
    assert torch.equal(tiny.score(FORMS[form]()), tiny.score(PAIRS))
    assert torch.equal(tiny(FORMS[form]()), tiny(PAIRS))


def everything(model: HookedEncoder) -> dict[str, Callable[[Any], Any]]:
    """What takes pairs, and gives numbers of them."""
    from mechir.methods.dose import dose_response
    from mechir.methods.lens import read_depths

    def scores(values: Any) -> Any:
        return [values.values[name] for name in sorted(values.values)]

    return {
        "score": lambda given: model.score(given, do=mi.Mask("doc<-query")),
        "run_with_cache": lambda given: model.run_with_cache(given)[0],
        "sweep": lambda given: mi.sweep(model, given, {"cut": mi.Ablate("h1.1")})["score"],
        "record": lambda given: scores(mi.record(model, given, "h1.1"))[0],
        "means": lambda given: scores(mi.means(model, given)),
        "samples": lambda given: scores(mi.samples(model, given, draws=3)),
        "attention_by_grade": lambda given: mi.attention_by_grade(model, given)["mass"],
        "conductance": lambda given: list(mi.conductance(model, given).rows["conductance"]),
        "token_attribution": lambda given: mi.token_attribution(model, given).rows["attribution"],
        "attend": lambda given: mi.attend(model, given, "h1.1").frame["estimate"],
        "certify": lambda given: model.certify(given)["n_pairs"],
        "read_depths": lambda given: read_depths(model, given).rows["score"],
        "dose_response": lambda given: dose_response(model, given, {"h": ["h1.1"]})["score"],
    }


@pytest.mark.parametrize("name", ["score", "run_with_cache", "sweep", "record", "means", "samples", "attention_by_grade",
                                  "conductance", "token_attribution", "attend", "certify"])  # fmt: skip
@pytest.mark.parametrize("form", ["pandas", "datasets as a stream", "a generator of pairs"])
def test_all_that_takes_pairs_takes_every_form(tiny: HookedEncoder, name: str, form: str) -> None:
    call = everything(tiny)[name]
    torch.manual_seed(0)
    given, pairs = call(FORMS[form]()), call(PAIRS)
    assert flat(given).tolist() == flat(pairs).tolist()


def flat(values: Any) -> np.ndarray:
    """All numbers, one after the other."""
    if isinstance(values, list | tuple):
        return np.concatenate([flat(value) for value in values])
    return np.nan_to_num(np.asarray(values, dtype=float)).ravel()


def test_pairs_are_a_value_that_goes_to_a_frame_and_back(tmp_path: Path) -> None:
    pairs = mi.pairs(PAIRS)
    assert list(pairs.frame()) == ["qid", "docno", "query", "text", "label"]
    assert mi.pairs(pairs.frame()) == pairs == mi.pairs(pairs) and hash(pairs) == hash(mi.pairs(pairs.frame()))
    assert repr(pairs) == "Pairs(8 of 4 queries: q0/d0, q1/d1, q2/d2, ...)"
    assert repr(pairs[:1]) == "Pairs(1 of 1 query: q0/d0)" and repr(pairs[:0]) == "Pairs(0 of 0 queries)"
    assert (
        isinstance(pairs[2:4], Pairs)
        and pairs[3] == PAIRS[3]
        and pairs[:2] + PAIRS[2:] == pairs == PAIRS[:2] + pairs[2:]
    )
    assert pickle.loads(pickle.dumps(pairs)) == pairs == copy.deepcopy(pairs)
    some = mi.pairs([PAIRS[0], Pair("a", "b")])
    assert some.frame()["label"].tolist() == [0, pd.NA] and mi.pairs(some.frame()) == some
    assert list(mi.pairs(TEXTS).frame()) == ["qid", "docno", "query", "text"]
    with pytest.raises(MechirError, match="Query 'q1' has two texts"):
        mi.pairs([("a", "b")]) + mi.pairs([("c", "d")])
    wrong: Any = [("a", "b")]
    for call in (lambda: pairs + wrong, lambda: Pairs(wrong)):
        with pytest.raises(MechirError, match=r"\('a', 'b'\) is no Pair: write mi.pairs"):
            call()
    hostile = mi.pairs([("<script>alert(1)</script>", "b")])._repr_html_()
    assert "<script>" not in hostile and "&lt;script&gt;" in hostile
    pairs.frame().to_csv(tmp_path / "pairs.csv", index=False)
    assert mi.pairs(pd.read_csv(tmp_path / "pairs.csv")) == pairs


def test_texts_without_ids_get_one_each() -> None:
    pairs = mi.pairs([("dog", "a cat"), ("dog", "a dog"), ("cat", "a cat"), Pair("x", "y", "q1", "d2")])
    assert [(pair.query_id, pair.doc_id) for pair in pairs] == [("q2", "d1"), ("q2", "d3"), ("q3", "d1"), ("q1", "d2")]
    some = mi.pairs([{"query": "a", "text": "b", "qid": "q9"}, {"query": "a", "text": "z"}])
    assert [(pair.query_id, pair.doc_id) for pair in some] == [("q9", "d1"), ("q9", "d2")]
    numbers = pd.DataFrame({"qid": [7, 8], "docno": [1, 1], "query": ["dog", "cat"], "text": ["a", "b"]})
    assert [(pair.query_id, pair.doc_id) for pair in mi.pairs(numbers)] == [("7", "1"), ("8", "1")]
    assert mi.pairs([]) == ()


def test_labels_are_read_as_grades() -> None:
    labels = [1, 2.0, True, np.int64(3), "2", None, float("nan"), pd.NA]
    frame = pd.DataFrame({"query": "dog", "text": list("abcdefgh"), "label": pd.Series(labels, dtype=object)})
    assert [pair.grade for pair in mi.pairs(frame)] == [1, 2, 1, 3, 2, None, None, None]


def test_scores_are_joined_to_their_ids(tiny: HookedEncoder) -> None:
    frame = tiny.score(FRAME, frame=True)
    assert list(frame) == ["query_id", "doc_id", "grade", "score"]
    assert frame["score"].to_numpy().tolist() == tiny.score(PAIRS).tolist()
    assert frame["doc_id"].tolist() == FRAME["docno"].tolist() and frame["grade"].tolist() == FRAME["label"].tolist()
    assert list(tiny.score(TEXTS, frame=True)) == ["query_id", "doc_id", "score"]


class Rows:
    """What a dataset of torch looks like: rows by number, columns by name, without an end."""

    def __getitem__(self, place: int) -> dict[str, str]:
        return {"query": "dog", "text": "a cat"}

    def __len__(self) -> int:
        return 1


def changed(**columns: Any) -> pd.DataFrame:
    """The frame with columns of other values, those of None left out."""
    frame = FRAME.drop(columns=[name for name, value in columns.items() if value is None])
    return frame.assign(
        **{name: pd.Series(value, dtype=object) for name, value in columns.items() if value is not None}
    )


NO_PAIR = "is no pair of query and document: write Pair"
WRONG: dict[str, tuple[Any, str]] = {
    "a text": ("dog", f"'dog' {NO_PAIR}"),
    "bytes": (b"dog", f"a bytes {NO_PAIR}"),
    "nothing": (None, f"None {NO_PAIR}"),
    "a number": (3, f"3 {NO_PAIR}"),
    "texts": (["cat", "dog"], f"'cat' {NO_PAIR}"),
    "a text of two letters": (["ab"], f"'ab' {NO_PAIR}"),
    "a tuple of three numbers": ((1, 2, 3), f"1 {NO_PAIR}"),
    "a tuple of one": ([("dog",)], rf"\('dog',\) {NO_PAIR}"),
    "a triple": ([("what is x", "a good text", "a bad text")], rf"\('what is x', 'a good text', 'a bad text'\) {NO_PAIR}"),
    "PyTerrier's order": ([("q1", "what is x", "d1", "a text")], rf"\('q1', 'what is x', 'd1', 'a text'\) {NO_PAIR}"),
    "ids in the index": (FRAME.set_index("qid"), r"'qid' is the index of this DataFrame, .*write frame.reset_index"),
    "half of a surrogate pair": (changed(text=["a \ud800"]), r"Row 0 .* holds half of a surrogate pair in 'text'"),
    "a pair and a row of one id": (
        [Pair("a", "b", "1", "2"), ("c", "d", "1", "2")], "Query '1' has two texts: give each an id of its own",
    ),
    "a tuple of five": ([("a", "b", "c", "d", "e")], rf"\('a', 'b', 'c', 'd', 'e'\) {NO_PAIR}"),
    "a tuple with nothing": ([("dog", None)], rf"\('dog', None\) {NO_PAIR}"),
    "a tuple with a label": ([("dog", "cat", 1)], rf"\('dog', 'cat', 1\) {NO_PAIR}"),
    "a pair and a number": ([("dog", "cat"), 3], f"3 {NO_PAIR}"),
    "a list of three": ([["a", "b", "c"]], f"a list {NO_PAIR}"),
    "a mapping": ({"query": "dog", "text": "cat"}, f"a dict {NO_PAIR}"),
    "columns": ({"query": ["dog"], "text": ["cat"]}, f"a dict {NO_PAIR}"),
    "a set": ({("dog", "cat")}, f"a set {NO_PAIR}"),
    "a Series": (FRAME["query"], f"'how do goldfish grow' {NO_PAIR}"),
    "a column of polars": (polars.Series(["dog"]), f"'dog' {NO_PAIR}"),
    "an array": (FRAME[["query", "text"]].to_numpy(), f"a ndarray {NO_PAIR}"),
    "a tensor": (torch.zeros(2, 2), f"a Tensor {NO_PAIR}"),
    "a torch dataset": (Rows(), f"a Rows {NO_PAIR}"),
    "datasets in splits": (datasets.DatasetDict(train=datasets.Dataset.from_pandas(FRAME)), f"a DatasetDict {NO_PAIR}"),
    "groups of a frame": (FRAME.groupby("qid"), f"a tuple {NO_PAIR}"),
    "rows of a frame with their index": (FRAME.iterrows(), f"a tuple {NO_PAIR}"),
    "a contrast": (mi.Contrast(PAIRS[0], PAIRS[0]), f"a Contrast {NO_PAIR}"),
    "contrasts": ([mi.Contrast(PAIRS[0], PAIRS[0])], f"a Contrast {NO_PAIR}"),
    "a path": (Path("queries.tsv"), f"a (Posix|Windows)Path {NO_PAIR}"),
    "a frame that is not read": (polars.from_pandas(FRAME).lazy(), r"A LazyFrame is not read yet: give its \.collect\(\)\."),
    "no query": (changed(query=None), "This DataFrame has no column 'query': its columns are 'qid', 'docno', 'text', 'label'"),
    "no text": (changed(text=None), "has no column 'text' or 'document' or 'passage': its columns are"),
    "no columns": (pd.DataFrame(), ""),
    "columns without names": (FRAME.set_axis(range(5), axis=1), "has no column 'query': its columns are '0', '1'"),
    "two texts": (FRAME.assign(passage="x"), "has 'text' and 'passage', which may both be the document: drop one"),
    "two ids": (FRAME.assign(query_id="x"), "has 'qid' and 'query_id', which may both be the query_id: drop one"),
    "two columns of one name": (pd.concat([FRAME, FRAME["text"]], axis=1), "This DataFrame has two columns 'text'"),
    "a missing text": (changed(text=["a", None]), r"Row 1 \(from 0\) of this DataFrame has no 'text' \(.*\): fill it in"),
    "a text that is a number": (changed(query=[1, 2]), r"Row 0 .* has 1 as 'query', which is no text: give a string"),
    "a text in a list": (changed(text=[["a"]]), r"Row 0 .* has \['a'\] as 'text', which is no text"),
    "a missing id": (changed(qid=["q", None]), r"Row 1 .* has no 'qid' \(.*\): fill it in, or leave the row out"),
    "an id that is a fraction": (changed(qid=[1.0, 2.0]), r"Row 0 .* has 1.0 as 'qid', which is no text: write ids as text"),
    "a grade that is a fraction": (changed(label=[0.5]), r"Row 0 .* has 0.5 as 'label': a grade is a whole number"),
    "a grade in words": (changed(label=["good"]), r"Row 0 .* has 'good' as 'label': a grade is a whole number"),
    "a grade without end": (changed(label=[float("inf")]), r"Row 0 .* has inf as 'label': a grade is a whole number"),
    "one id of two queries": (changed(qid=["q"] * 8), "Query 'q' has two texts: give each an id of its own"),
    "one id of two documents": (
        FRAME.iloc[:2].assign(qid="q", docno="d", query="a"), "Document 'd' of query 'q' has two texts: give each an id",
    ),
    "rows of other columns": ([{"query": "a", "text": "b"}, {"query": "a"}], "has no column 'text' or 'document'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_pair_is_refused_in_one_sentence(tiny: HookedEncoder, kind: str) -> None:
    given, message = WRONG[kind]
    if not message:  # a frame without rows holds no pair, as an empty list
        assert mi.pairs(given) == ()
        return
    with pytest.raises(MechirError, match=message) as raised:
        mi.pairs(given)
    assert "\n" not in str(raised.value)
    with pytest.raises(MechirError):
        tiny.score(given)


def test_there_are_forty_of_them() -> None:
    assert len(WRONG) >= 40


def test_a_relation_of_duckdb_is_read_by_its_own_method() -> None:
    relation = duckdb.sql("select 'a' as query, 'b' as text")
    with pytest.raises(MechirError, match=r"A DuckDBPyRelation is not read yet: give its \.df\(\)\."):
        mi.pairs(relation)
    with pytest.raises(MechirError, match=r"A LazyFrame is not read yet: give its \.collect\(\)\."):
        mi.pairs(polars.LazyFrame({"query": ["a"], "text": ["b"]}))
    assert len(mi.pairs(relation.df())) == 1


def test_a_row_that_stands_twice_counts_once() -> None:
    pairs = [mi.Pair("q", "a", "1", "d1", 1), mi.Pair("q", "b", "1", "d2", -1)]
    once, twice = of_pairs(pairs), of_pairs([*pairs, pairs[1], pairs[0]])
    assert twice.easy == once.easy and twice.hash == once.hash and twice.pairs() == once.pairs()
    assert not any("listed again" in str(row) for row in of_pairs(pairs).again)
