"""Collections of tables, datasets and pairs; experiments on them; models in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import ir_datasets
import pandas as pd
import polars
import pytest
import torch
import transformers

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.reporting.commands import command, remark
from tests.models import PAIRS, TOY, TOY_MODEL
from tests.test_inputs import TEXTS

TOYS = mi.collection(TOY)
QUERIES = pd.DataFrame({"qid": list(TOYS.queries), "query": list(TOYS.queries.values())})
DOCS = pd.DataFrame({"docno": list(TOYS.docs), "text": list(TOYS.docs.values())})
QRELS = pd.DataFrame(
    [(query_id, doc_id, grade) for query_id, grades in TOYS.qrels.items() for doc_id, grade in grades.items()],
    columns=["qid", "docno", "label"],
)


@pytest.mark.parametrize(
    ("queries", "docs", "qrels"),
    [
        (QUERIES, DOCS, QRELS),
        (dict(TOYS.queries), dict(TOYS.docs), {key: dict(grades) for key, grades in TOYS.qrels.items()}),
        (list(TOYS.queries.items()), list(TOYS.docs.items()), list(QRELS.itertuples(index=False))),
        (polars.from_pandas(QUERIES), datasets.Dataset.from_pandas(DOCS), QRELS.rename(columns={"label": "relevance"})),
        (QUERIES.set_axis(["query_id", "text"], axis=1), DOCS.to_dict("records"), list(QRELS.itertuples(index=False, name=None))),
    ],
)  # fmt: skip
def test_a_collection_of_tables_is_that_of_their_files(queries: Any, docs: Any, qrels: Any) -> None:
    made = mi.collection(queries=queries, docs=docs, qrels=qrels, name="toy")
    assert (made.hash, made.id, made.full_name) == (TOYS.hash, "toy", "toy")
    assert made.pairs(per_grade=2, easy_negatives=3) == TOYS.pairs(per_grade=2, easy_negatives=3)
    assert mi.pairs(made) == TOYS.pairs()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"queries": QUERIES}, "A collection of tables lacks docs and qrels: give queries=, docs= and qrels="),
        ({"name_or_path": "embedded", "docs": DOCS}, "has a name or tables, and you gave both"),
        ({}, "None names no collection: write the path of a directory, an ir_datasets id, 'embedded', or queries="),
        ({"name_or_path": 7}, "7 names no collection"),
        ({"queries": QUERIES, "docs": DOCS, "qrels": {"q1": 1}}, "qrels is a mapping without mappings inside"),
        ({"queries": "q", "docs": DOCS, "qrels": QRELS}, "queries holds 'q': give a mapping, a frame with qid and query"),
        ({"queries": ["q"], "docs": DOCS, "qrels": QRELS}, "queries holds 'q': give a mapping"),
        ({"queries": QUERIES, "docs": [("d", 3)], "qrels": QRELS}, "docs, row 0 has 3 as 'document', which is no text"),
        ({"queries": QUERIES, "docs": DOCS, "qrels": QRELS.assign(label=None)}, "qrels, row 0 has no grade"),
        ({"queries": QUERIES, "docs": DOCS, "qrels": QRELS.drop(columns="label")}, "qrels has no column 'label' or 'grade'"),
        ({"queries": QUERIES, "docs": DOCS, "qrels": QRELS, "name": ""}, "name='' names no collection"),
        ({"queries": pd.concat([QUERIES, QUERIES.assign(query="x")]), "docs": DOCS, "qrels": QRELS}, "queries, row 6: query id"),
        ({"queries": QUERIES, "docs": DOCS.iloc[:3], "qrels": QRELS}, "judgments of 'in memory' cannot be used"),
    ],
)  # fmt: skip
def test_tables_that_are_no_collection_are_refused(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(MechirError, match=message):
        mi.collection(**tables)


def test_a_title_is_read_or_refused_and_never_lost() -> None:
    from ir_datasets.datasets.beir import BeirTitleDoc

    made = mi.collection(queries={"q": "a"}, docs=[BeirTitleDoc("d", "a red fox", "Foxes")], qrels={"q": {"d": 1}})
    assert made.docs["d"] == "Foxes a red fox"
    frame = pd.DataFrame({"docno": ["d"], "title": ["Foxes"], "text": ["a red fox"]})
    with pytest.raises(
        MechirError, match="docs has a title beside the text: join them in one column, or drop the title"
    ):
        mi.collection(queries={"q": "a"}, docs=frame, qrels={"q": {"d": 1}})


def test_a_dataset_of_ir_datasets_is_pairs_and_a_collection(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TOY, tmp_path / "toy"))  # ir_datasets puts its store of documents there
    files = {"docs_tsv": "docs.tsv", "queries_tsv": "queries.tsv", "qrels_trec": "qrels.txt"}
    made = ir_datasets.create_dataset(**{name: str(folder / file) for name, file in files.items()})
    ir_datasets.registry.register("mechir-test/inputs", made)
    opened = ir_datasets.load("mechir-test/inputs")
    assert mi.pairs(opened) == TOYS.pairs() == mi.collection(opened).pairs()
    assert mi.collection(opened).hash == mi.collection("mechir-test/inputs").hash


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


def test_an_experiment_runs_on_pairs_a_frame_and_a_name(toy: HookedEncoder, tmp_path: Path) -> None:
    runs = {
        name: mi.run("vast2025/layer_sweep", toy, source, registry=tmp_path / "r")
        for name, source in {
            "pairs": TOYS.pairs(),
            "frame": TOYS.pairs().frame(),
            "name": str(TOY),
            "set": TOYS,
        }.items()
    }
    assert runs["pairs"].id == runs["frame"].id and runs["name"].id == runs["set"].id
    assert "--collection 'PATH/in memory/collection'" in command(runs["frame"].record)
    assert "the collection was in memory" in remark(runs["frame"].record)
    first, second = (runs[name].summary for name in ("frame", "name"))
    pd.testing.assert_frame_equal(first, second)
    easy = TOYS.pairs(per_grade=1, easy_negatives=2)
    again = mi.run("vast2025/layer_sweep", toy, easy, registry=tmp_path / "r")
    assert sorted(again.rows["grade"].unique()) == sorted({pair.grade for pair in easy}) and -1 in set(
        again.rows["grade"]
    )
    assert len(again.rows.drop_duplicates(["query_id", "doc_id"])) == len(easy)
    with pytest.raises(
        MechirError, match="2 of 3 pairs have no grade, pair q0/d0 first: an experiment takes judged pairs"
    ):
        mi.run("vast2025/layer_sweep", toy, [*TEXTS[:2], PAIRS[0]], registry=tmp_path / "r")
    below = TOYS.pairs().frame().query("docno == 'd0101'").assign(label=-2)
    with pytest.raises(
        MechirError, match="pair q1/d0101 has grade -2: an experiment takes grades of 0 and more, and -1"
    ):
        mi.run("vast2025/layer_sweep", toy, below, registry=tmp_path / "r")
    with pytest.raises(MechirError, match="3 is no pair"):
        mi.run("vast2025/layer_sweep", toy, 3, registry=tmp_path / "r")


def test_an_experiment_on_contrasts_takes_those_of_term_frequency(toy: HookedEncoder, tmp_path: Path) -> None:
    from mechir.diagnostic_sets import diagnostic

    pool = mi.Pool(per_grade=1, limit_queries=2)
    made = diagnostic("tfc1", TOYS, per_grade=1, limit_queries=2)
    wanted = mi.run("lu2025/block_patching", toy, made, registry=tmp_path / "r")
    assert mi.run("lu2025/block_patching", toy, TOYS, pool=pool, registry=tmp_path / "r").id == wanted.id
    frame = mi.run("lu2025/block_patching", toy, TOYS.pairs().frame(), pool=pool, registry=tmp_path / "r")
    pd.testing.assert_frame_equal(frame.summary, wanted.summary)


def test_a_model_in_memory_is_loaded_with_its_tokenizer(toy: HookedEncoder) -> None:
    hf = transformers.AutoModelForSequenceClassification.from_pretrained(TOY_MODEL)
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOY_MODEL)
    model = mi.load(hf, tokenizer)
    pairs = TOYS.pairs()
    assert torch.equal(model.score(pairs), toy.score(pairs)) and model.certify(pairs[:8])["score"] < 1e-5
    assert next(hf.parameters()).data_ptr() == next(model.hf.parameters()).data_ptr()
    assert mi.load(hf, tokenizer, name="mine", max_length=20).cfg.model_name == "mine"
    for given, message in (
        ((hf,), "A BertForSequenceClassification in memory needs its tokenizer: write mi.load"),
        (
            (torch.nn.Linear(1, 1), tokenizer),
            "This is a Linear, which mechir cannot reproduce: it reads BertForSequence",
        ),
        ((str(TOY_MODEL), tokenizer), "A checkpoint brings its own tokenizer"),
        ((3,), "3 is no model: write a directory, a name on the hub"),
    ):
        with pytest.raises(MechirError, match=message):
            mi.load(*given)
