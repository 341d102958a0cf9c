"""Every measure that links, evidence and the report read is written by one experiment, when that experiment is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechir as mi
from mechir.catalog import experiments
from mechir.diagnostic_sets import diagnostic
from mechir.inference import studentised
from mechir.material import Pool
from mechir.measures import GAP, K1, LINK_TO, MEASURES, RISE, SEMANTIC_BM25, WITHOUT_HEADS, Measure, parse_measure
from mechir.methods import directions
from mechir.registry.evidence import EVIDENCE, LINKS, TF
from mechir.registry.queries import matching
from mechir.views import charts
from tests.models import TOY_MODEL, nine_queries

GRADES = {"relevant": 3, "hard": 1, "weak": 0}
QUICK = {"tol": 1.0, "take": 1}
RUNS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("chen2024/block_maps", {}),
    ("chen2024/head_attention", {}),
    ("chen2024/head_maps", {}),
    ("chen2024/head_maps", {"at": "query|doc"}),
    ("chen2024/head_positions", {}),
    ("circuits/backup", {"heads": "h0.1"}),
    ("circuits/edges", {"sample": 4}),
    ("circuits/faithfulness", {"draws": 2}),
    ("joint/cut", {"sites": "h0.1", "draws": 2, "ways": "zero"}),
    ("lu2025/block_patching", {}),
    ("lu2025/head_to_heads", {}),
    ("lu2025/head_to_score", {}),
    ("lu2025/idf_direction", {"vectors": 3}),
    ("lu2025/idf_edit", {"factors": "", "draws": 2, "per_query": 4, "heads": "h0.0"}),
    ("lu2025/semantic_bm25", {"top": 2}),
    ("lu2025/soft_tf", {"per_query": 1, "top": 2}),
    ("vast2024/importance", QUICK),
    ("vast2024/pruning", QUICK | {"grid": "10"}),
    ("vast2025/attention_contrast", GRADES),
    ("vast2025/direction_ablation", {}),
    ("vast2025/layer_sweep", {"cut": "doc<-query"}),
    ("vast2025/qk_projection", {"heads": "h0.0,h1.1", "draws": 1}),
    ("vast2025/qk_svd", GRADES),
)
"""Every experiment that has findings, on the toy model, with the options that the table of links is of."""
SILENT = {
    "circuits/stability", "joint/across", "joint/across_models", "joint/examples", "joint/overlap", "polyakov2025/robust_metric", "vast2024/distribution",
    "vast2024/matching_heads", "vast2024/transfer", "vast2025/cls_lens",
}  # fmt: skip
READ = {
    *EVIDENCE.values(),
    *(measure for link in LINKS for measure in (*link.looks, *link.acts)),
    *(RISE, K1, SEMANTIC_BM25, GAP(TF)),
}
"""What links, evidence and the report read."""
GAPS = {"chen2024/head_maps", "lu2025/head_to_score", "circuits/edges", "circuits/faithfulness"}
"""The gap belongs to the contrasts: every experiment that measures shares of it, or edges, says it."""
OF_THE_PATHWAY = (WITHOUT_HEADS, LINK_TO)
"""What `joint/pathway` concludes from all of these: see `tests/test_pathway.py`."""


def written(folder: Path, *names: str) -> pd.DataFrame:
    """The findings of these experiments."""
    collection = mi.collection(nine_queries(folder / "nine"))
    model, registry = mi.load(TOY_MODEL), folder / "registry"
    contrasts = diagnostic(TF, collection, limit_queries=3, per_grade=1, fillers=("a",))
    for name, options in RUNS:
        if name in names:
            on_pairs = {} if name in ON_CONTRASTS else {"pool": Pool(limit_queries=3)}
            source = contrasts if name in ON_CONTRASTS else collection
            mi.run(name, model, source, registry=registry, **on_pairs, **options)
    return matching(registry)


ON_CONTRASTS = {name for name, _ in RUNS if name.startswith(("chen2024/", "circuits/", "lu2025/block", "lu2025/head"))}


def unwritten(found: pd.DataFrame) -> dict[str, set[str]]:
    """Of what is read, the measures that not exactly one experiment writes in their role, and those that do."""
    producers = found.groupby(["measure", "role"])["experiment"].agg(set).to_dict()
    own = {str(measure): producers.get((str(measure), measure.role), set()) for measure in READ}
    return {
        text: names for text, names in own.items() if len(names) != 1 and not (text == str(GAP(TF)) and names == GAPS)
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(charts, "save", lambda chart, stem: [])
        patched.setattr(studentised, "RESAMPLES", 10)
        patched.setattr(directions, "DRAWS", 10)
        return written(tmp_path_factory.mktemp("producers"), *experiments())


def test_what_is_read_is_written_by_one_experiment(found: pd.DataFrame) -> None:
    assert {name for name, _ in RUNS} | SILENT | {"joint/pathway"} == set(experiments())
    assert unwritten(found) == {}


def test_what_is_written_is_listed_and_means_what_its_measure_says(found: pd.DataFrame) -> None:
    known: dict[str, Measure] = {text: parse_measure(text) for text in found["measure"].unique()}
    assert {measure.text for measure in MEASURES} == {one.text for one in (*known.values(), *OF_THE_PATHWAY)}
    for text, rows in found.groupby("measure"):
        meant = {
            (one.role, one.term, one.sign, one.causal)
            for family in MEASURES
            if family.covers(str(text))
            for one in [
                family(**{name: dict(known[str(text)].parameters).get(name, "nDCG@10") for name in family.takes})
            ]
        }
        assert {*rows[["role", "term", "sign", "causal"]].itertuples(index=False, name=None)} <= meant, text
