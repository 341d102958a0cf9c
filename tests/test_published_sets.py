"""The sets that authors published, read from files of the same form, and from their own where those are here."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import pytest

from mechir.contrasts import Contrast, encode_contrasts
from mechir.diagnostic_sets import diagnostic
from mechir.diagnostics import (
    words,
)
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.perturbed import FILLERS, Diagnostic
from mechir.published_sets import PUBLISHED
from tests.models import TOY

# Published sets, in files of the same form


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A directory of published files in small."""
    (tmp_path / "tfc1_add_qids_with_text.csv").write_text("7,what is wifi\n8,a cold river\n")
    texts = {"7": {"1": "a wifi is a  signal", "2": "a a dog, wifi"}, "8": {"3": "a the a stone"}}
    corpus = {q: {d: {"title": "", "text": text} for d, text in docs.items()} for q, docs in texts.items()}
    (tmp_path / "tfc1_add_baseline_final_dd_corpus.json").write_text(json.dumps({"corpus": corpus}))
    rows = "qid,term,context,sims,most_similar_synonym\n7,wifi,what is wifi,\"['radio', 'lan']\",radio\n"
    (tmp_path / "stmc1_qids_perturbation.csv").write_text(f"{rows}8,cold,a cold river,['ice'],ice\n")
    header = "qid\tdocno\tscore_delta\ttext\tperturbed_text\tquery\trelevance\n"
    for axiom in ("TFC1", "TDC"):
        row = f'7\t1\t0.5\tthe "dog" said\tthe "dog" said {axiom}\twhat is wifi\t3\n'
        (tmp_path / f"mechir__org-model_{axiom}_topk_4000.tsv").write_text(f"{header}{row}")
    with (tmp_path / "tfc2_lnc1_query_answer_injected.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("qid", "query", "doc"),
                ("7", "what is wifi", '"Wifi is a signal. Does wifi rise? A wifi-tank!"'),
                ("7", "what is wifi", '"Wifi again."'),
                ("8", "cold river", '"A river. The river pulls. No. A river! Riverside river. Last river."'),
                ("9", "ocean", '"Nothing of it."'),
            ]
        )
    minimal = {
        "query_id": "7",
        "query": {"base": "what is wifi", "neg": "what is without wifi"},
        "doc_pos": {"doc_id": "1_edited", "text": "a tank with no wifi"},
        "doc_neg": {"doc_id": "1", "text": "a tank with wifi"},
        "slice_type": "minpairs",
    }
    lines = [json.dumps(minimal), json.dumps(minimal | {"slice_type": "omission", "query_id": "8"})]
    for name in ("gold.jsonl", "gold_curated.jsonl"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path


def texts(found: Diagnostic, side: int) -> list[str]:
    return [case[side].document for case in found.cases]


BASES = ["wifi is a  signal", "a dog, wifi", "the a stone"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tfc1", ["wifi is a signal wifi", "a dog, wifi wifi", "the a stone cold"]),
        ("tfc1-prepend", ["wifi wifi is a signal", "wifi a dog, wifi", "cold the a stone"]),
        ("stmc1", ["wifi is a signal radio", "a dog, wifi radio", "the a stone ice"]),
    ],
)
def test_chen_s_passages_begin_without_their_filler(published: Path, name: str, wanted: list[str]) -> None:
    found = diagnostic(name, published)
    assert texts(found, 0) == BASES
    assert texts(found, 1) == wanted
    assert [(base.query_id, base.query, base.doc_id) for base, _ in found.cases] == [
        ("7", "what is wifi", "1"),
        ("7", "what is wifi", "2"),
        ("8", "a cold river", "3"),
    ]


def test_chen_s_term_is_injected_or_taken_out(published: Path) -> None:
    for base, donor in diagnostic("tfc1-inject", published).cases:
        added = Counter(donor.document.split()) - Counter(base.document.split())
        assert added == Counter(["cold" if base.query_id == "8" else "wifi"])
    found = diagnostic("tfc1-replace", published)
    assert texts(found, 1) == ["is a signal", "a dog,"]


@pytest.mark.parametrize(("name", "axiom"), [("mechir-tfc1", "TFC1"), ("mechir-tdc", "TDC")])
def test_mechir_s_rows_are_read_as_they_are(published: Path, name: str, axiom: str) -> None:
    base = Pair("what is wifi", 'the "dog" said', "7", "1", 3)
    found = diagnostic(name, published)
    assert found.cases == ((base, replace(base, document=f'the "dog" said {axiom}')),)
    assert found.id == f"parry2025 {axiom.lower()}"


def test_tfc2_restores_one_occurrence_at_a_time(published: Path) -> None:
    found = diagnostic("tfc2", published)
    mine = [(base.document, donor.document) for base, donor in found.cases if base.query_id == "7"]
    assert mine == [
        ("it is a signal. Does it rise? A it-tank!", "Wifi is a signal. Does it rise? A it-tank!"),
        ("Wifi is a signal. Does it rise? A it-tank!", "Wifi is a signal. Does wifi rise? A it-tank!"),
        ("Wifi is a signal. Does wifi rise? A it-tank!", "Wifi is a signal. Does wifi rise? A wifi-tank!"),
    ]
    assert [base.doc_id for base, _ in found.cases] == ["7.0", "7.1", "7.2", "8.0", "8.1", "8.2", "8.3", "8.4"]
    assert "9" not in {base.query_id for base, _ in found.cases}


def test_lnc2_appends_another_query_s_sentences_without_its_term(published: Path) -> None:
    found = diagnostic("lnc2", published)
    assert texts(found, 0) == ["Wifi is a signal.", "A river."]
    assert texts(found, 1) == [
        "Wifi is a signal. A it. The it pulls. No. A it!",
        "A river. it is a signal. Does it rise? A it-tank!",
    ]


def test_negation_minimal_pairs_are_the_two_documents(published: Path) -> None:
    base = Pair("what is wifi", "a tank with wifi", "7", "1")
    assert diagnostic("negation", published).cases == ((base, replace(base, document="a tank with no wifi")),)


def test_negated_queries_keep_their_documents(published: Path) -> None:
    found = diagnostic("negation-query", published)
    assert found.axiom == found.id == "negation of the query"
    assert [(base.query_id, base.doc_id, base.grade) for base, _ in found.cases] == [
        ("7", "1_edited", 1),
        ("7", "1", 0),
        ("8", "1_edited", 1),
        ("8", "1", 0),
    ]
    assert all(
        donor == replace(base, query="what is without wifi") and base.query == "what is wifi"
        for base, donor in found.cases
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_are_limited_aligned_and_hashed(published: Path, tiny: HookedEncoder, name: str) -> None:
    whole = diagnostic(name, published)
    one = diagnostic(name, published, limit_queries=1, per_grade=1, seed=3)
    assert {base.query_id for base, _ in one.cases} == {"7"}
    assert set(one.cases) <= set(whole.cases)
    assert diagnostic(name, str(published)).hash == whole.hash
    found = whole.align(tiny, "of")
    assert all(isinstance(contrast, Contrast) for contrast in found.contrasts)
    assert diagnostic(name, published, swap=True, fillers=["of"]).align(tiny).bases == found.donors


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("tfc1", "tfc1_add_qids_with_text.csv"),
        ("tfc1-inject", "tfc1_add_baseline_final_dd_corpus.json"),
        ("tfc1-replace", "stmc1_qids_perturbation.csv"),
        ("stmc1", "stmc1_qids_perturbation.csv"),
        ("mechir-tfc1", "*TFC1_topk_4000.tsv"),
        ("mechir-tdc", "*TDC_topk_4000.tsv"),
        ("tfc2", "tfc2_lnc1_query_answer_injected.csv"),
        ("lnc2", "tfc2_lnc1_query_answer_injected.csv"),
        ("negation", "gold_curated.jsonl"),
        ("negation-query", "gold.jsonl"),
    ],
)
def test_a_missing_file_is_refused_by_its_name(published: Path, name: str, file: str) -> None:
    for found in published.glob(file):
        found.unlink()
    with pytest.raises(MechirError, match=rf"holds no '{re.escape(file)}': give the directory of the published files"):
        diagnostic(name, published)


def test_an_unknown_published_set_is_refused_with_the_known_ones(published: Path) -> None:
    with pytest.raises(
        MechirError, match=rf"Unknown diagnostic set 'tdc': in files there are {', '.join(PUBLISHED)}\."
    ):
        diagnostic("tdc", published)


def test_options_that_files_do_not_have_are_refused(published: Path) -> None:
    with pytest.raises(
        MechirError, match=r"A set read from files has no top_k=: only limit_queries=, per_grade= and seed="
    ):
        diagnostic("tfc1", published, top_k=3, seed=1)
    assert diagnostic("tfc1", published, top_k=None).cases
    with pytest.raises(MechirError, match=r"per_grade=0 asks for nothing"):
        diagnostic("tfc1", published, per_grade=0)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MechirError, match=r"There is no directory"):
        diagnostic("tfc1", tmp_path / "nowhere")


# The published files themselves


Read = Callable[[str], Diagnostic]


@pytest.fixture(scope="module")
def real(shared: Path) -> Read:
    """The sets of the real files, each read once."""
    return cache(
        lambda name: diagnostic(name, shared / "data" / ("negation-minpairs" if "negation" in name else "tfc1"))
    )


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "cases", "queries"),
    [
        ("tfc1", 10_000, 100),
        ("tfc1-prepend", 10_000, 100),
        ("tfc1-inject", 10_000, 100),
        ("tfc1-replace", 1_044, 92),
        ("mechir-tfc1", 4_000, 97),
        ("mechir-tdc", 4_000, 95),
        ("tfc2", 3_826, 748),
        ("lnc2", 748, 748),
        ("stmc1", 10_000, 100),
        ("negation", 5, 5),
        ("negation-query", 100, 50),
    ],
)
def test_published_sets_are_whole(real: Read, name: str, cases: int, queries: int) -> None:
    found = real(name)
    assert len(found.cases) == cases
    assert len({base.query_id for base, _ in found.cases}) == queries
    assert all(
        (base.query_id, base.doc_id, base.grade) == (donor.query_id, donor.doc_id, donor.grade)
        and (base.query == donor.query) == (name != "negation-query")
        and (base.document == donor.document) == (name == "negation-query")
        for base, donor in found.cases
    )


@pytest.mark.shared
def test_chen_s_donors_are_the_passages_and_one_term_of_the_query(shared: Path, real: Read) -> None:
    folder = shared / "data" / "tfc1"
    corpus = json.loads((folder / "tfc1_add_baseline_final_dd_corpus.json").read_text(encoding="utf-8"))["corpus"]
    with (folder / "stmc1_qids_perturbation.csv").open(encoding="utf-8", newline="") as file:
        chosen = {row["qid"]: row for row in csv.DictReader(file)}
    added, synonyms = real("tfc1"), real("stmc1")
    for (base, donor), (_, other) in zip(added.cases, synonyms.cases, strict=True):
        raw, row = corpus[base.query_id][base.doc_id]["text"], chosen[base.query_id]
        assert raw == f"a {base.document}"
        passage = " ".join(base.document.split())
        assert donor.document == f"{passage} {row['term']}"
        assert row["term"] in base.query.split()
        assert other.document == f"{passage} {row['most_similar_synonym']}"
        assert row["most_similar_synonym"].strip()
    prepended = real("tfc1-prepend").cases
    assert all(donor.document.split() == [chosen[b.query_id]["term"], *b.document.split()] for b, donor in prepended)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mechir-tfc1", "mechir-tdc"])
def test_mechir_s_sets_are_balanced_and_append_a_query_word(real: Read, name: str) -> None:
    found = real(name)
    assert Counter(base.grade for base, _ in found.cases) == {0: 1000, 1: 1000, 2: 1000, 3: 1000}
    for base, donor in found.cases:
        assert donor.document.startswith(f"{base.document} ")
        assert set(words(donor.document[len(base.document) :])) <= set(words(base.query))


@pytest.mark.shared
def test_lu_s_occurrences_come_back_one_by_one(real: Read) -> None:
    found = real("tfc2")
    for base, donor in found.cases:
        sides = words(base.document), words(donor.document)
        changed = [(one, other) for one, other in zip(*sides, strict=True) if one != other]
        assert len(changed) == 1
        assert changed[0][0] == "it"
        assert changed[0][1] in words(base.query)
    before = {(base.query_id, base.doc_id): base.document for base, _ in found.cases}
    for _, donor in found.cases:
        query_id, k = donor.doc_id.rsplit(".", 1)
        following = before.get((query_id, f"{query_id}.{int(k) + 1}"))
        assert following in (None, donor.document)


@pytest.mark.shared
def test_minimal_pairs_differ_in_inserted_words(real: Read) -> None:
    for base, donor in real("negation").cases:
        one, other = base.document.split(), donor.document.split()
        edits = [edit for edit in SequenceMatcher(None, one, other, autojunk=False).get_opcodes() if edit[0] != "equal"]
        assert [edit[0] for edit in edits] == ["insert"]
        assert len(other) == len(one) + 1
    found = real("negation-query")
    assert Counter(base.grade for base, _ in found.cases) == {0: 50, 1: 50}


@pytest.mark.shared
def test_chen_s_passages_are_cases_or_refused(real: Read) -> None:
    found = real("tfc1-replace")
    assert len(found.cases) + len(found.refused) == 10_000


@pytest.mark.shared
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_real_model_reads_the_published_sets(real: Read, trained: HookedEncoder, name: str) -> None:
    found = real(name).limited(limit_queries=2)
    aligned = found.align(trained)
    assert {contrast.query_id for contrast in aligned.contrasts} == {base.query_id for base, _ in found.cases}
    assert len(aligned.contrasts) + len(aligned.skipped) - len(found.refused) == 2 * len(found.cases)
    assert len(aligned.skipped) == len(found.refused)
    encoded = encode_contrasts(trained, aligned.contrasts)
    for contrast, base, donor in zip(aligned.contrasts, encoded.base.ids, encoded.donor.ids, strict=True):
        assert (base != donor).any()
        assert contrast.filler in FILLERS


def test_two_models_files_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("one_TFC1_topk_4000.tsv", "other_TFC1_topk_4000.tsv"):
        (tmp_path / name).write_text("qid\tdocno\n")
    with pytest.raises(MechirError, match=r"holds several '\*TFC1_topk_4000.tsv' \(one_TFC1_topk_4000.tsv, other_"):
        diagnostic("mechir-tfc1", tmp_path)


def test_an_unknown_option_of_a_pool_is_refused() -> None:
    with pytest.raises(MechirError, match=r"A pool has no option 'foo': it takes per_grade, easy_negatives"):
        diagnostic("tfc1", TOY, foo=1)
    with pytest.raises(MechirError, match=r"A set read from files has no foo=: only limit_queries="):
        diagnostic("mechir-tfc1", Path(__file__).parent, foo=1)
