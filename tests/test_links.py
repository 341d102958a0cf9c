"""What evidence adds up to: links by their rule, conflicts in their words, and the dossier of one component."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir.errors import MechirError
from mechir.registry.entries import record
from mechir.registry.evidence import held
from mechir.registry.findings import checked
from mechir.registry.links import link_table
from mechir.registry.queries import matching

OF = {"model": "m", "model_fingerprint": "f" * 64, "n_queries": 13, "n_pairs": 90}
SURE, NOT = 0.001, 0.6
CONTRAST = {"measure": "contrast, query<-doc", "unit": "attention", "role": "matching", "least": 0.02}
PATCHING = {
    "measure": "patching, tfc1, at query|doc",
    "unit": "share of the gap",
    "role": "soft-tf",
    "term": "tf",
    "causal": True,
}
PATH = {
    "measure": "path to the score, tfc1",
    "unit": "share of the gap",
    "role": "scoring",
    "term": "tf",
    "causal": True,
}
R_IDF = {"measure": "r with IDF", "unit": "r", "role": "idf", "term": "idf", "sign": 0, "least": 0.1}
EDIT = {"measure": "score, a matched term up IDF", "unit": "logits", "role": "idf", "term": "idf", "causal": True}
TURNED = {
    "measure": "attention, a matched term up IDF",
    "unit": "attention",
    "role": "idf",
    "term": "idf",
    "causal": True,
}


def tell(registry: Path, run_id: str, rows: list[dict[str, Any]], collection: str = "c", **of: Any) -> None:
    told = [{"family": row["measure"].partition(",")[0], "least": 0.05} | row for row in rows]
    record(registry, run_id, checked(pd.DataFrame(told), OF | {"run_id": run_id, "collection": collection} | of))


def row(kind: dict[str, Any], site: str, value: float, p: float, spread: float = 0.01, **more: Any) -> dict[str, Any]:
    return kind | {"site": site, "value": value, "p_corrected": p, "low": value - spread, "high": value + spread} | more


def one(registry: Path, *, p: float = SURE, collection: str = "c", run: str = "a") -> None:
    """A head that matches and counts, one that only matches, one that writes the score; two directions like IDF."""
    heads = [row(CONTRAST, "h1.2", 0.3, p), row(CONTRAST, "h0.0", 0.3, p), row(CONTRAST, "h3.1", 0.001, p)]
    tell(registry, f"{run}1", heads, collection)
    patched = [row(PATCHING, "h1.2", 0.9, p), row(PATCHING, "h0.0", 0.0, NOT), row(PATCHING, "h3.1", 0.9, p)]
    tell(registry, f"{run}2", patched, collection)
    tell(registry, f"{run}3", [row(PATH, "h1.2", 0.0, NOT), row(PATH, "h3.1", 0.9, p)], collection)
    tell(registry, f"{run}4", [row(R_IDF, "embed.u0", -0.9, p), row(R_IDF, "embed.u1", 0.95, p)], collection)
    tell(registry, f"{run}5", [row(EDIT, "embed.u0", 0.4, p), row(EDIT, "embed.u1", 0.01, NOT, 0.1)], collection)


def test_a_link_needs_looks_and_effect(tmp_path: Path) -> None:
    one(tmp_path)
    tell(tmp_path, "a6", [{"site": "h1.2", "measure": "conductance, relevant documents", "value": 0.5, "unit": "logits",
                           "label": "rank 2 of 16", "role": "scoring"}])  # fmt: skip
    table = mi.links(registry=tmp_path)
    assert (table["links"] == "").all()  # no plan was tested
    assert dict(zip(map(str, table["site"]), table["exploratory"], strict=True)) == {
        "h1.2": "tf",
        "h3.1": "scoring",
        "embed.u0": "idf",
        "h0.0": "",
        "embed.u1": "",
    }
    first = table.iloc[0]
    assert first["site"] == mi.Head(1, 2) and (first["effect"], first["unit"]) == (0.9, "share of the gap")
    assert first["p_all"] == pytest.approx(SURE) and first["conductance_rank"] == 2
    assert (first["contrast"], first["patching"], first["to_score"]) == (0.3, 0.9, 0.0) and np.isnan(first["k1"])
    conflicts = dict(zip(map(str, table["site"]), table["conflicts"], strict=True))
    assert conflicts["h0.0"].startswith(
        "flagged by its pattern but causally dead: contrast, query<-doc 0.3 [0.29, 0.31], yet"
    )
    assert conflicts["embed.u1"].startswith(
        "goes with IDF but no causal effect shown: r with IDF 0.95"
    )  # too wide to tell
    assert conflicts["h1.2"] == conflicts["h3.1"] == conflicts["embed.u0"] == ""


@pytest.mark.parametrize(
    ("p", "least", "value", "linked"),
    [
        (0.0249, 0.05, 0.9, True),
        (0.0251, 0.05, 0.9, False),  # the second answer to the same question
        (0.001, 0.05, 0.04, False),
        (0.001, 0.05, -0.9, False),
    ],
)
def test_the_rule_counts_tries_sizes_and_signs(
    tmp_path: Path, p: float, least: float, value: float, linked: bool
) -> None:
    one(tmp_path)
    others = [row(PATCHING, site, 0.0, NOT) for site in ("h0.0", "h3.1")]
    tell(tmp_path, "b2", [row(PATCHING, "h1.2", value, p, least=least), *others], written="later")
    tell(tmp_path, "a9", [row(PATCHING, "h3.1", 0.9, SURE)], collection="other")  # counts there, not here
    heads = mi.links(registry=tmp_path, collection="c")
    (own,) = heads[[site == mi.Head(1, 2) for site in heads["site"]]].to_dict("records")
    assert (own["exploratory"] == "tf") is linked


@pytest.mark.parametrize(("queries", "verdict"), [(6, "causally dead"), (5, "no causal effect shown")])
def test_none_is_dead_on_fewer_queries_than_a_test_needs(tmp_path: Path, queries: int, verdict: str) -> None:
    one(tmp_path)
    patched = [row(PATCHING, "h0.0", 0.0, 1.0, n_queries=queries), row(PATCHING, "h1.2", 0.9, SURE)]
    tell(tmp_path, "b2", patched, written="later")
    (sentence,) = mi.dossier("h0.0", registry=tmp_path).conflicts
    assert sentence.startswith(f"flagged by its pattern but {verdict}: ")


def test_a_newer_run_supersedes_an_older_one(tmp_path: Path) -> None:
    tell(tmp_path, "a1", [row(CONTRAST, "h1.2", 0.3, SURE)], written="2026-01-01")
    tell(tmp_path, "a2", [row(PATCHING, "h1.2", 0.9, SURE)], written="2026-01-01")
    tell(tmp_path, "b2", [row(PATCHING, "h1.2", 0.0, NOT)], written="2026-01-02")
    assert mi.links(registry=tmp_path)["exploratory"].tolist() == [""]
    told = mi.dossier("h1.2", registry=tmp_path).findings.set_index("run_id")
    assert len(told) == 3 and pd.isna(told.loc["a2", "holds"]) and not told.loc["b2", "holds"]
    tell(tmp_path, "b1", [row(CONTRAST, "h1.2", 0.0, NOT, label="semantic")], written="2026-01-02")
    assert mi.links(registry=tmp_path).empty  # what the head is called has changed, and the older contrast with it


def test_collections_and_signs_conflict(tmp_path: Path) -> None:
    one(tmp_path)
    one(tmp_path, p=NOT, collection="other", run="b")
    told = mi.dossier("h1.2", registry=tmp_path)
    assert told.conflicts == (
        "contrast, query<-doc holds on c and not on other",
        "patching, tfc1, at query|doc holds on c and not on other",
    )
    tell(tmp_path, "b6", [row(TURNED, "embed.u0", -0.3, SURE)])
    told = mi.dossier(mi.Singular(0), registry=tmp_path, collection="c")
    (sentence,) = told.conflicts
    assert sentence.startswith("acts for and against idf: ") and "-0.3" in sentence and "0.4" in sentence
    tell(tmp_path, "b7", [row(PATCHING, "h3.1", -0.9, SURE)], collection="other", written="later")
    assert (
        "patching, tfc1, at query|doc has opposite signs: +0.9 on c, -0.9 on other"
        in mi.dossier("h3.1", registry=tmp_path).conflicts
    )


def test_the_dossier_says_everything(tmp_path: Path) -> None:
    one(tmp_path)
    told = mi.dossier("h1.2", registry=tmp_path)
    assert told.site == mi.Head(1, 2) and len(told.findings) == 3
    assert told.agreements == (
        "linked to tf (exploratory), m on c: patching, tfc1, at query|doc 0.9 [0.89, 0.91] share of the gap, p = 0.001, "
        "13 queries",
    )
    text = str(told)
    assert text.splitlines()[0] == "h1.2: 3 findings of 3 runs" and repr(told) == text
    assert "contrast, query<-doc" in text and "linked to tf" in text
    assert "! flagged by its pattern but causally dead" in str(mi.dossier("h0.0", registry=tmp_path))
    assert "writes the score (exploratory), m on c" in mi.dossier("h3.1", registry=tmp_path).agreements[0]
    with pytest.raises(MechirError, match=r"no finding of site 'h9.9': the closest are 'h"):
        mi.dossier("h9.9", registry=tmp_path)


def test_a_change_of_its_own_attention_is_no_effect(tmp_path: Path) -> None:
    one(tmp_path)
    own = {"measure": "attention without aligned directions", "unit": "attention", "role": "matching", "causal": True}
    tell(tmp_path, "a7", [row(own, "h0.0", -0.2, SURE, sign=-1)])
    told = mi.dossier("h0.0", registry=tmp_path)
    assert told.findings.set_index("measure").loc["attention without aligned directions", "holds"]
    assert told.conflicts[0].startswith("flagged by its pattern but causally dead beyond its own attention: ")


def test_an_effect_that_is_there_and_small_is_not_called_dead(tmp_path: Path) -> None:
    one(tmp_path)
    tell(tmp_path, "b2", [row(PATCHING, "h0.0", 0.03, SURE), row(PATCHING, "h1.2", 0.9, SURE)], written="later")
    (sentence,) = mi.dossier("h0.0", registry=tmp_path).conflicts
    assert sentence.startswith("flagged by its pattern but smaller than what counts (0.05): contrast, query<-doc 0.3")
    assert sentence.endswith("yet patching, tfc1, at query|doc 0.03 [0.02, 0.04]")


def test_a_head_with_any_causal_finding_that_holds_is_not_dead(tmp_path: Path) -> None:
    one(tmp_path)
    backup = {"measure": "effect gained without h1.2, tfc1", "unit": "logits", "causal": True, "sign": 0, "term": "tf"}
    tell(tmp_path, "a8", [row(backup, "h0.0", 0.2, SURE)])
    assert mi.dossier("h0.0", registry=tmp_path).conflicts == ()


def test_links_of_some_runs_alone(tmp_path: Path) -> None:
    one(tmp_path)
    tell(tmp_path, "b2", [row(PATCHING, "h1.2", 0.0, NOT)], written="later")
    assert "tf" not in mi.links(registry=tmp_path)["exploratory"].to_list()
    found = link_table(held(matching(tmp_path, runs=["a1", "a2"], newest=True)))
    assert found[["site", "exploratory"]].to_numpy().tolist() == [["h1.2", "tf"], ["h0.0", ""]]
    assert link_table(held(matching(tmp_path, runs=[], newest=True))).empty
