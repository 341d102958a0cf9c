"""Measures: texts as they are stored, parameters that read back, and what each experiment is the one to write."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pandas as pd
import pytest

from mechir.errors import MechirError
from mechir.measures import (
    CONDUCTANCE,
    CONTRAST,
    GAP,
    LINK_TO,
    MEASURES,
    NEURON_CONDUCTANCE,
    PATCHING,
    PATH_TO_HEADS,
    PATH_TO_SCORE,
    R_IDF,
    WITHOUT_HEADS,
    WITHOUT_UNITS,
    Measure,
    Rank,
    parse_measure,
    stated,
)
from mechir.registry.evidence import EVIDENCE, LINKS

ROOT = Path(__file__).parent.parent
STORED = {
    "contrast, query<-doc": CONTRAST("query<-doc"),
    "contrast of max, doc<-query": CONTRAST("doc<-query", of="max"),
    "patching, tfc1": PATCHING("tfc1"),
    "patching, tfc1, at query|doc": PATCHING("tfc1", at="query|doc"),
    "patching, tfc1, swapped, at all": PATCHING("tfc1, swapped", "all"),
    "gap, lnc2": GAP("lnc2"),
    "path into the scoring heads, tfc1, by v": PATH_TO_HEADS("tfc1", "v"),
    "path to the score, tfc1": PATH_TO_SCORE("tfc1", freeze="heads", ln="live"),
    "path to the score (freeze heads, LayerNorm frozen), tdc": PATH_TO_SCORE("tdc", ln="frozen"),
    "conductance, relevant documents": CONDUCTANCE("relevant", "pad_query", "score", "pattern", "post"),
    "conductance, non-relevant documents, pad_both": CONDUCTANCE("non-relevant", baseline="pad_both"),
    "conductance, relevant documents, margin, z": CONDUCTANCE("relevant", target="margin", heads="z"),
    "conductance, relevant documents, h1.0@query<-doc, pre": CONDUCTANCE(
        "relevant", target="h1.0@query<-doc", neurons="pre"
    ),
    "nDCG@10 without heads linked to tf, by zero": WITHOUT_HEADS("nDCG@10", "linked to tf", "zero"),
    "effect of a term without heads matching, by mean": WITHOUT_HEADS("effect of a term", "matching", "mean"),
    "MRR without": WITHOUT_UNITS("MRR"),
    "r with IDF": R_IDF,
    "link to scoring": LINK_TO("scoring"),
}
"""Texts of registries that were written before measures were values."""


@pytest.mark.parametrize("text", STORED)
def test_a_measure_prints_as_it_is_stored_and_reads_back(text: str) -> None:
    assert str(STORED[text]) == text and parse_measure(text) == STORED[text]
    assert hash(parse_measure(text)) == hash(STORED[text]) and pickle.loads(pickle.dumps(STORED[text])) == STORED[text]
    family = STORED[text].family
    assert family.covers(text) and STORED[text].covers(text) and not STORED[text].covers(text + ", and more")
    others = {one.text for one in MEASURES if one.covers(text)} - {family.text}
    assert others <= {"{metric} without"}  # of directions and of units


def test_what_it_means_follows_from_its_parameters() -> None:
    assert (PATCHING("tfc1", "query|doc").role, PATCHING("tfc1", "query|doc").term) == ("soft-tf", "tf")
    assert (PATCHING("tfc1").role, PATCHING("tdc", "query|doc").role, PATCHING("lnc1").term) == ("", "", "length")
    assert (CONDUCTANCE("relevant").unit, CONDUCTANCE("relevant", target="margin").unit) == ("logits", "margin")
    assert (CONDUCTANCE.role, NEURON_CONDUCTANCE("relevant").role) == ("scoring", "relevance-neuron")
    assert (LINK_TO("tf").role, LINK_TO("scoring").term) == ("soft-tf", "")
    assert dict(parse_measure("conductance, relevant documents, z").parameters)["heads"] == "z"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: PATCHING(), r"takes axiom, at: given none"),
        (lambda: PATCHING("tfc1", where="cls"), r"takes axiom, at: given tfc1, where"),
        (lambda: R_IDF("tf"), "takes no parameter: given tf"),
        (lambda: Measure("x", "r", role="matchin"), "Unknown role 'matchin': the closest are 'matching'"),
        (lambda: parse_measure("patchng, tfc1"), "Unknown measure 'patchng, tfc1': the closest are 'patching, "),
    ],
)
def test_what_is_no_measure_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        wrong()  # type: ignore[operator]


def test_without_parameters_it_stands_for_all() -> None:
    texts = pd.Series(["path to the score, tfc1", "path to the score (freeze heads, LayerNorm x), a", "path", ""])
    assert PATH_TO_SCORE.among(texts).tolist() == [True, True, False, False]
    assert PATH_TO_SCORE("tfc1").among(texts).tolist() == [True, False, False, False]
    assert PATH_TO_SCORE.among(texts[:0]).tolist() == []
    missing = pd.Series([None, texts.iloc[0], None])
    assert PATH_TO_SCORE.among(missing).tolist() == [False, True, False]
    assert not PATH_TO_SCORE.among(missing[[0, 2]]).any()


def test_a_rank_reads_back() -> None:
    assert str(Rank(3, 72)) == "rank 3 of 72" and Rank.parse("rank 3 of 72") == Rank(3, 72)
    assert Rank.parse("lexical") is None and Rank.parse("") is None


def test_a_summary_in_the_common_vocabulary_is_stated() -> None:
    summary = pd.DataFrame({"site": ["h0.1", "h0.2"], "estimate": [1.0, 2], "low": 0.5, "high": 3.0, "rise": 4.0})
    summary = summary.assign(rise_low=3.0, rise_p_corrected=0.01, p_corrected=0.2, queries=7, pairs=9, other="x")
    told = stated(summary, [PATCHING("tfc1"), PATCHING("tfc1", "query|doc")])
    assert told["measure"].tolist() == ["patching, tfc1", "patching, tfc1, at query|doc"]
    assert told["role"].tolist() == ["", "soft-tf"] and told["least"].tolist() == [0.05, 0.05]
    assert told[["value", "low", "p_corrected", "n_queries", "n_pairs"]].iloc[1].tolist() == [2, 0.5, 0.2, 7, 9]
    assert "other" not in told and "rise" not in told
    told = stated(summary, R_IDF, "rise", site="embed.u0")
    assert told[["value", "low", "p_corrected"]].iloc[0].tolist() == [4, 3, 0.01] and "high" not in told
    assert (told["sign"] == 0).all() and (told["site"] == "embed.u0").all() and not told["causal"].any()


def test_nothing_is_told_by_how_a_text_begins() -> None:
    begins = [re.split(r"[\[{]", one.text)[0].rstrip(", ") for one in MEASURES]
    literal = re.compile("|".join(f"{re.escape(text)}(,|$)" if " " in text else f"{text}, " for text in begins if text))
    of_text = re.compile(r"measure['\"]?\]?(\.str)?\.(startswith|partition|removeprefix)|starts_with\(measure")
    for file in [*ROOT.glob("mechir/**/*.py"), *ROOT.glob("analyses/**/*.py")]:
        text = file.read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(text)))
        docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        said = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in docs]
        if file.name != "measures.py":
            assert not of_text.findall(text), file
            assert not [one for one in said if isinstance(one, str) and literal.match(one)], file


def test_links_and_evidence_are_of_listed_measures() -> None:
    known = {one.text for one in MEASURES}
    every = [*EVIDENCE.values(), *(one for link in LINKS for one in (*link.looks, *link.acts, link.conclusion))]
    assert {one.text for one in every} <= known
    assert all(parse_measure(str(one)) == one for one in every)
    assert {str(one) for link in LINKS for one in (*link.looks, *link.acts)} <= {str(one) for one in EVIDENCE.values()}
