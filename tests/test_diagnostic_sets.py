"""Diagnostic sets: sampled, aligned, hashed, and over a collection its pool perturbed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

import mechir as mi
from mechir import irds
from mechir.contrasts import encode_contrasts
from mechir.diagnostic_sets import AXIOMS, diagnostic
from mechir.diagnostics import (
    COMMON,
    WHERE,
    Idf,
    Lnc1,
    Lnc2,
    Negate,
    QuerySwap,
    Shuffle,
    Stmc1,
    Term,
    Tfc1,
    Tfc2,
    neighbours,
    words,
)
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.pair import EASY, Pair
from mechir.perturbed import FILLERS, Diagnostic, perturbed
from mechir.reranker import Weights
from tests.models import PAIRS, TOY, stub

# Diagnostic


def made(n_queries: int = 4, n: int = 6) -> Diagnostic:
    """Cases of several queries with grades 0, 1, 2 and texts of their own."""
    bases = [
        Pair(f"zebra {q}", f"dog cat {k}", f"q{q}", f"d{q}.{k}", k % 3) for q in range(n_queries) for k in range(n)
    ]
    return perturbed("made", bases, Tfc1("append", Term({f"q{q}": "wifi" for q in range(n_queries)})))


@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_limited_queries_are_the_first(n: int) -> None:
    whole = made()
    found = whole.limited(limit_queries=n)
    assert found.cases == whole.cases[: n * 6]
    assert found.id == whole.id


@pytest.mark.parametrize("n", [1, 2, 3])
def test_of_each_query_and_grade_at_most_so_many_are_drawn(n: int) -> None:
    whole = made()
    found = whole.limited(per_grade=n)
    assert set(Counter((base.query_id, base.grade) for base, _ in found.cases).values()) == {min(n, 2)}
    places = [whole.cases.index(case) for case in found.cases]
    assert places == sorted(set(places))
    assert whole.limited(per_grade=n, limit_queries=2).cases == tuple(
        case for case in found.cases if case[0].query_id in ("q0", "q1")
    )


def test_what_is_limited_is_drawn_by_seed_query_and_grade() -> None:
    whole = made(6, 30)
    one, other = (whole.limited(per_grade=3, seed=seed) for seed in (0, 1))
    assert one.cases != other.cases
    assert one.cases == made(6, 30).limited(per_grade=3).cases
    drawn = [
        tuple(base.doc_id.split(".")[1] for base, _ in one.cases if base.query_id == f"q{q}" and base.grade == 0)
        for q in range(6)
    ]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize("option", ["limit_queries", "per_grade"])
@pytest.mark.parametrize("value", [0, -2])
def test_nothing_cannot_be_asked_for(option: str, value: int) -> None:
    message = rf"{option}={value} asks for nothing: write 1 or more, or leave it out"
    with pytest.raises(MechirError, match=message):
        made().limited(**{option: value})
    with pytest.raises(MechirError, match=message):
        diagnostic("tfc1", TOY, **{option: value})


def test_the_refused_of_the_queries_that_are_kept_are_kept() -> None:
    pairs = [Pair("zebra", text, f"q{q}", f"d{q}.{k}") for q in range(3) for k, text in enumerate(("zebra dog", "dog"))]
    whole = perturbed("made", pairs, Tfc1("replace"))
    assert [pair.doc_id for pair, _ in whole.refused] == ["d0.1", "d1.1", "d2.1"]
    assert all("does not hold 'zebra'" in reason for _, reason in whole.refused)
    assert [pair.doc_id for pair, _ in whole.limited(limit_queries=2).refused] == ["d0.1", "d1.1"]


def test_no_limit_loses_nothing() -> None:
    whole = perturbed(
        "made", [Pair("zebra", "zebra dog", "q0", "d0"), Pair("wifi", "dog", "q1", "d1")], Tfc1("replace")
    )
    assert len(whole.refused) == 1
    assert whole.limited().refused == whole.refused


def test_a_changed_text_id_or_grade_changes_the_hash() -> None:
    whole = made(2, 3)
    seen = {whole.hash}
    assert made(2, 3).hash == whole.hash
    for side, change in product(
        (0, 1), ({"document": "x"}, {"query": "x"}, {"doc_id": "x"}, {"query_id": "x"}, {"grade": 3})
    ):
        cases = [list(case) for case in whole.cases]
        cases[3][side] = replace(cases[3][side], **change)
        seen.add(replace(whole, cases=tuple((base, donor) for base, donor in cases)).hash)
    seen |= {replace(whole, cases=whole.cases[:-1]).hash, replace(whole, cases=whole.cases[::-1]).hash}
    seen.add(replace(whole, cases=tuple((donor, base) for base, donor in whole.cases)).hash)
    assert len(seen) == 14
    assert repr(whole) == f"Diagnostic(made: 6 pairs of 2 queries, {whole.hash[:12]})"


def test_what_was_judged_is_each_pair_of_the_pool_once() -> None:
    whole = made(2, 3)
    pairs = [base for base, _ in whole.cases] * 2 + [Pair("zebra", "dog", "q5", "d5")]
    found = whole.judged(pairs, full=True)
    assert list(found) == ["query_id", "doc_id", "grade", "pooled"]
    assert list(zip(found["query_id"], found["doc_id"], strict=True)) == [
        (p.query_id, p.doc_id) for p in [*pairs[:6], pairs[-1]]
    ]
    assert found["grade"].tolist()[:6] == [0, 1, 2] * 2
    assert found["grade"].isna().tolist() == [False] * 6 + [True]
    assert found["pooled"].all()
    assert list(whole.judged([])) == list(found)


def test_every_pair_is_aligned_with_every_filler(tiny: HookedEncoder) -> None:
    whole = made(2, 3)
    found = whole.align(tiny)
    assert [(c.base.document, c.filler) for c in found.contrasts] == [
        (f"{base.document} {filler}", filler) for base, _ in whole.cases for filler in FILLERS
    ]
    assert found.donors == [donor for _, donor in whole.cases for _ in FILLERS]
    assert found.bases == [contrast.base for contrast in found.contrasts]
    assert list(found.skipped.columns) == ["query_id", "doc_id", "filler", "reason"]
    assert found.skipped.empty
    assert whole.align(tiny, "of").contrasts == replace(whole, fillers=("of",)).align(tiny).contrasts
    assert [c.filler for c in whole.align(tiny, ["of", "in", "a"]).contrasts] == ["of", "in", "a"] * 6


def test_pairs_that_need_no_filler_are_aligned_once(tiny: HookedEncoder) -> None:
    cases = (
        (Pair("zebra", "dog"), Pair("zebra", "cat")),
        (Pair("zebra", "dog"), Pair("zebra", "dogs")),
    )
    assert [c.filler for c in Diagnostic("x", cases).align(tiny).contrasts] == ["", "a", "the"]
    shuffled = perturbed("x", PAIRS[:3], Shuffle())
    assert shuffled.moves
    assert len(shuffled.align(tiny).contrasts) == 3


def test_swapped_sets_run_on_the_perturbed_text(tiny: HookedEncoder) -> None:
    whole = made(2, 3)
    found, turned = whole.align(tiny), replace(whole, swap=True).align(tiny)
    assert turned.contrasts == [contrast.swapped() for contrast in found.contrasts]
    assert turned.bases == found.donors
    assert turned.donors == found.bases
    assert diagnostic("tfc1", TOY, swap=True).swap
    assert diagnostic("tfc1", TOY, swap=True).hash == diagnostic("tfc1", TOY).hash


def test_what_cannot_be_aligned_is_left_out_with_its_reason(tiny: HookedEncoder) -> None:
    good = Pair("zebra", "dog", "q0", "good"), Pair("zebra", "dog cat", "q0", "good")
    same = (Pair("zebra", "dog", "q1", "same"),) * 2
    far = Pair("zebra", "dog " * 80, "q2", "far"), Pair("zebra", "dog " * 80 + "cat", "q2", "far")
    empty = Pair("zebra", "", "q3", "empty"), Pair("moon", "", "q3", "empty")
    article = Pair("zebra", "dog", "q4", "article"), Pair("zebra", "dog the", "q4", "article")
    refused = ((Pair("zebra", "dog", "q5", "refused"), "it was refused before"),)
    found = Diagnostic("x", (same, far, good, empty, article), refused).align(tiny)
    assert [(c.doc_id, c.filler) for c in found.contrasts] == [("good", "a"), ("good", "the"), ("article", "a")]
    rows = found.skipped.set_index("doc_id")["reason"]
    assert list(zip(found.skipped["query_id"], found.skipped["doc_id"], found.skipped["filler"], strict=True)) == [
        ("q5", "refused", ""),
        *((f"q{k}", name, filler) for k, name in ((1, "same"), (2, "far"), (3, "empty")) for filler in FILLERS),
        ("q4", "article", "the"),
    ]
    assert rows["refused"] == "it was refused before"
    assert set(rows["same"]) == {"Pair q1/same gives no contrast: the perturbation changes nothing."}
    n_ctx = tiny.cfg.n_ctx
    assert set(rows["far"]) == {
        f"Pair q2/far gives no contrast: what is edited lies beyond the {n_ctx} word pieces that the model reads."
    }
    assert set(rows["empty"]) == {"Pair q3/empty gives no contrast: its query or its document is empty."}
    assert rows["article"] == "Pair q4/article gives no contrast: the perturbation changes no word piece."


def test_a_set_of_nothing_that_can_be_aligned_is_refused(tiny: HookedEncoder) -> None:
    same = (Pair("zebra", "dog", "q1", "d1"),) * 2
    with pytest.raises(MechirError, match=r"Not one pair of 'x' could be aligned: Pair q1/d1 gives no contrast: the"):
        Diagnostic("x", (same,)).align(tiny)
    with pytest.raises(MechirError, match=r"Not one pair of 'x' could be aligned: it was refused before"):
        Diagnostic("x", (), ((same[0], "it was refused before"),)).align(tiny)
    with pytest.raises(MechirError, match=r"Not one pair of 'x' could be aligned$"):
        Diagnostic("x", ()).align(tiny)


@pytest.mark.parametrize("filler", ["grows", "zebra", ["a", "zebra"]])
def test_a_filler_that_the_model_does_not_know_is_refused_at_once(tiny: HookedEncoder, filler: Any) -> None:
    with pytest.raises(MechirError, match=r"The filler '(grows' is 2|zebra' is 1) word pieces of this tokenizer"):
        made(2, 3).align(tiny, filler)


def test_an_id_may_be_called_filler(tiny: HookedEncoder) -> None:
    good = Pair("zebra", "dog", "q0", "d0"), Pair("zebra", "dog cat", "q0", "d0")
    same = (Pair("zebra", "dog", "q1", "filler-1"),) * 2
    assert len(Diagnostic("x", (good, same)).align(tiny).skipped) == 2


# Sets over a collection


class EveryWord(dict[str, str]):
    """A synonym for every word."""

    def __missing__(self, word: str) -> str:
        return "moon"

    def __contains__(self, word: object) -> bool:
        return True


@pytest.fixture
def synonyms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synonyms without a real embedding."""
    monkeypatch.setattr("mechir.diagnostics.neighbours", lambda model, terms: dict.fromkeys(terms, "moon"))


def expected(name: str) -> Callable[[Pair], Pair]:
    """The perturbation of a set over the toy collection, as its name says."""
    toy = mi.collection(TOY)
    asked = {word for query in toy.queries.values() for word in words(query)}
    return {
        **{f"tfc1-{where}": Tfc1(where) for where in WHERE},
        "tfc1": Tfc1(),
        "tfc2": Tfc2(1),
        "tdc": Tfc1("append", Term(idf=Idf(list(toy.docs.values())))),
        "lnc1": Lnc1(list(toy.docs.values())),
        "lnc2": Lnc2(2),
        "stmc1": Stmc1(EveryWord()),
        "negation": Negate("not"),
        "query-swap": QuerySwap(sorted(asked - COMMON)),
        "shuffle": Shuffle(),
    }[name]


NO_MODEL = stub(Weights)
"""What is given where no model is needed."""


@pytest.mark.parametrize("name", AXIOMS)
@pytest.mark.usefixtures("synonyms")
def test_a_set_over_a_collection_is_its_pool_perturbed(name: str) -> None:
    found, pool = diagnostic(name, TOY, model=NO_MODEL), mi.collection(TOY).pairs()
    wanted = perturbed("x", pool, expected(name))
    assert found.cases == wanted.cases
    assert found.refused == wanted.refused
    assert found.cases
    assert len(found.cases) + len(found.refused) == len(pool) == 72
    assert found.id == f"{name} of toy"
    assert found.axiom == name
    assert (found.fillers, found.swap, found.moves) == (FILLERS, False, name == "shuffle")
    assert diagnostic(name, str(TOY), model=NO_MODEL).hash == found.hash
    assert diagnostic(name, mi.collection(TOY), model=NO_MODEL).hash == found.hash


@pytest.mark.parametrize("name", AXIOMS)
@pytest.mark.usefixtures("synonyms")
def test_every_set_can_be_run(tiny: HookedEncoder, name: str) -> None:
    toy = diagnostic(name, TOY, per_grade=1, model=NO_MODEL)
    found = toy.align(tiny)
    encoded = encode_contrasts(tiny, found.contrasts)
    differ = [base != donor for base, donor in zip(encoded.base.ids, encoded.donor.ids, strict=True)]
    assert all(row.any() for row in differ)
    named = {(pair.query_id, pair.doc_id) for pair, _ in [*toy.cases, *toy.refused]}
    left_out = set(zip(found.skipped["query_id"], found.skipped["doc_id"], strict=True))
    assert {(c.query_id, c.doc_id) for c in found.contrasts} | left_out == named


@pytest.mark.parametrize("name", sorted(AXIOMS.keys() - {"stmc1"}))
def test_every_set_is_there_over_the_embedded_collection(name: str) -> None:
    found = diagnostic(name, limit_queries=4)
    assert found.id == f"{name} of embedded"
    assert {base.query_id for base, _ in found.cases} == {"q01", "q02", "q03", "q04"}
    assert len(found.cases) + len(found.refused) == 48  # the judged ones: no easy negatives unless asked for
    assert all(base.grade != EASY for base, _ in found.cases)


def test_a_pool_is_what_the_collection_gives() -> None:
    options = {"limit_queries": 3, "per_grade": 1, "easy_negatives": 2, "seed": 4}
    wanted = mi.collection(TOY).pairs(**options)
    assert mi.pairs(base for base, _ in diagnostic("tfc1", TOY, **options).cases) == wanted
    whole = diagnostic("lnc2", TOY, limit_queries=None, per_grade=None)
    assert mi.pairs(base for base, _ in whole.cases) == mi.collection(TOY).pairs()
    assert sum(base.grade == EASY for base, _ in diagnostic("lnc2", limit_queries=2, easy_negatives=3).cases) == 6


def test_options_of_the_set_are_kept() -> None:
    found = diagnostic("shuffle", TOY, fillers=["of", "in"], swap=True)
    assert (found.fillers, found.swap, found.moves) == (("of", "in"), True, True)


def test_one_filler_may_be_given_as_a_word() -> None:
    assert diagnostic("tfc1", TOY, fillers="the").fillers == ("the",)


@pytest.mark.parametrize(
    ("name", "closest"), [("tfc", "'tfc2', 'tfc1', "), ("shufle", "'shuffle'"), ("mechir-tdc", "'tdc'")]
)
def test_an_unknown_set_is_refused_with_the_known_ones(name: str, closest: str) -> None:
    with pytest.raises(MechirError, match=rf"Unknown diagnostic '{name}': the closest are {closest}"):
        diagnostic(name, TOY)


def test_synonyms_need_a_model_and_idf_the_documents() -> None:
    with pytest.raises(MechirError, match=r"stmc1 takes synonyms from a model's embedding: give model="):
        diagnostic("stmc1", TOY)
    remote = replace(mi.collection(TOY), id="remote", docs=irds.Documents("remote", object()))
    with pytest.raises(
        MechirError, match=r"'remote' is read on demand, so its IDF is not known here: use tfc1 or query"
    ):
        AXIOMS["tdc"](remote, [], None)


@pytest.mark.shared
def test_synonyms_are_those_of_the_model(trained: HookedEncoder) -> None:
    found = diagnostic("stmc1", limit_queries=4, model=trained)
    assert len(found.cases) == 48
    near = neighbours(trained, sorted({Term()(base) for base, _ in found.cases}))
    for base, donor in found.cases:
        assert donor.document == f"{base.document} {near[Term()(base)]}"
