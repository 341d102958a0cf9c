"""Perturbations do what their axiom says, depend on seed and ids alone, and the published sets are what they were."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mechir as mi
from mechir import irds
from mechir.contrasts import Contrast, encode_contrasts
from mechir.diagnostic_sets import AXIOMS, FILLERS, PUBLISHED, Diagnostic, diagnostic, perturbed
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
    tdc,
    words,
)
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.pairs import EASY, Pair
from tests.models import PAIRS, TOY, WORDS

PLAIN = [word for word in WORDS if not word.startswith("##")]
CONTENT = [word for word in PLAIN if word not in COMMON]
TEXT = st.lists(st.sampled_from(PLAIN), min_size=1, max_size=12)
QUERY = st.lists(st.sampled_from(PLAIN), min_size=1, max_size=5)
IDS = st.text("0123456789abcdef", min_size=1, max_size=6)
SEED = st.integers(0, 5)
many = settings(deadline=None, max_examples=100)

OTHERS = ["the dog and the cat build a bridge of stone", "radio signal, radio wave", "moon tide grass"]
SYNONYMS = {word: f"{word}er" for word in CONTENT}
PERTURBATIONS: dict[str, Callable[[int], Callable[[Pair], Pair]]] = {
    **{f"tfc1-{where}": lambda seed, where=where: Tfc1(where, Term(seed=seed)) for where in WHERE},  # type: ignore[misc]
    "tfc2": lambda seed: Tfc2(2, Term(seed=seed)),
    "tdc": lambda seed: tdc(Idf(OTHERS)),
    "lnc1": lambda seed: Lnc1(OTHERS, seed=seed),
    "lnc2": lambda seed: Lnc2(),
    "stmc1": lambda seed: Stmc1(SYNONYMS, Term(seed=seed)),
    "negate": lambda seed: Negate(term=Term(seed=seed)),
    "query-swap": lambda seed: QuerySwap(["zebra", "comet", "lemon", "violin"], Term(seed=seed)),
    "shuffle": lambda seed: Shuffle(seed),
}


def pair_of(document: str, query: str = "how do goldfish grow", query_id: str = "q7", doc_id: str = "d7") -> Pair:
    return Pair(query, document, query_id, doc_id, 2)


def donors(perturbation: Callable[[Pair], Pair], pairs: Sequence[Pair]) -> dict[str, Pair]:
    """The donor of every pair that the perturbation applies to."""
    return {pair.doc_id: donor for pair, donor in perturbed("x", pairs, perturbation).cases}


MANY = [
    replace(pair, query=f"{pair.query} goldfish river wifi", document=f"{pair.document} {pair.query} goldfish river wifi", doc_id=f"d{k}")
    for k, pair in enumerate(PAIRS * 3)
]  # fmt: skip


# What all perturbations have in common


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_depends_on_its_seed_and_the_pair_alone(name: str) -> None:
    found = donors(PERTURBATIONS[name](3), MANY)
    assert len(found) == len(MANY)
    again = PERTURBATIONS[name](3)
    for pair in reversed(MANY):
        assert again(pair) == found[pair.doc_id]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_keeps_ids_and_grade_and_edits_one_side(name: str) -> None:
    for pair, donor in perturbed("x", MANY, PERTURBATIONS[name](0)).cases:
        assert (donor.query_id, donor.doc_id, donor.grade) == (pair.query_id, pair.doc_id, pair.grade)
        assert (donor.query == pair.query) == (name != "query-swap")
        assert (donor.document == pair.document) == (name == "query-swap")


@pytest.mark.parametrize(
    "name", ["tfc1-append", "tfc1-inject", "tfc2", "lnc1", "stmc1", "negate", "query-swap", "shuffle"]
)
def test_what_is_drawn_differs_between_seeds_queries_and_documents(name: str) -> None:
    one, other = (donors(PERTURBATIONS[name](seed), MANY) for seed in (0, 1))
    assert one != other
    for key in ("query_id", "doc_id"):
        pairs = [replace(MANY[0], **{key: f"x{k}"}) for k in range(20)]
        drawn = {(pair.query, pair.document) for pair in map(PERTURBATIONS[name](0), pairs)}
        assert len(drawn) > 1, key


@pytest.mark.parametrize("name", ["tfc1-append", "tfc1-prepend", "tfc2", "lnc2", "stmc1", "shuffle"])
@given(document=TEXT, query_id=IDS, doc_id=IDS, seed=SEED)
@many
def test_words_are_added_or_moved_but_never_lost(
    name: str, document: list[str], query_id: str, doc_id: str, seed: int
) -> None:
    pair = pair_of(" ".join(document), "tall goldfish", query_id, doc_id)
    assert not Counter(document) - Counter(PERTURBATIONS[name](seed)(pair).document.split())


# Which term


@given(query=QUERY, query_id=IDS, doc_id=IDS, seed=SEED)
@many
def test_a_random_term_is_a_content_word_of_the_query(query: list[str], query_id: str, doc_id: str, seed: int) -> None:
    term = Term(seed=seed)(pair_of("dog", " ".join(query), query_id, doc_id))
    assert term in query
    assert term not in COMMON or set(query) <= COMMON


def test_every_content_word_is_drawn_and_no_other() -> None:
    pairs = [pair_of("dog", "How do the tall GOLDFISH, goldfish grow?", doc_id=f"d{k}") for k in range(200)]
    drawn = Counter(Term()(pair) for pair in pairs)
    assert set(drawn) == {"tall", "goldfish", "grow"}
    assert min(drawn.values()) > 40  # each word once, however often it stands there
    assert {Term()(pair_of("dog", "what is the", doc_id=f"d{k}")) for k in range(50)} == {"what", "is", "the"}


@given(query=QUERY, values=st.lists(st.floats(0, 9), min_size=5, max_size=5))
@many
def test_the_rarest_content_word_goes_before_chance(query: list[str], values: list[float]) -> None:
    idf = dict(zip(query, values, strict=False))
    idf |= {word: 99.0 for word in query if word in COMMON and not set(query) <= COMMON}
    pair = pair_of("dog", " ".join(query))
    listed = [word for word in query if word not in COMMON] or query
    term = Term(idf=idf)(pair)
    assert term in listed
    assert idf[term] == max(idf[word] for word in listed)
    assert tdc(idf)(pair).document == f"dog {term}"


def test_a_chosen_term_goes_before_the_rarest_one() -> None:
    term = Term({"q7": "river"}, idf={"goldfish": 3.0, "grow": 1.0})
    assert term(pair_of("dog")) == "river"
    assert term(pair_of("dog", query_id="q8")) == "goldfish"


def test_tdc_takes_the_rarest_word_of_the_collection() -> None:
    toy = mi.collection(TOY)
    idf = Idf(list(toy.docs.values()))
    for base, donor in diagnostic("tdc", TOY).cases:
        term = donor.document.removeprefix(f"{base.document} ")
        content = [word for word in words(base.query) if word not in COMMON]
        assert idf[term] == max(map(idf.__getitem__, content))
        frequencies = {word: sum(word in words(text) for text in toy.docs.values()) for word in content}
        assert frequencies[term] == min(frequencies.values())


@pytest.mark.parametrize("perturbation", [Tfc1(), Tfc2(), Stmc1({}), Negate(), QuerySwap(["moon"])])
def test_a_query_without_words_is_refused(perturbation: Callable[[Pair], Pair]) -> None:
    with pytest.raises(MechirError, match=r"Query 'q7' has no word to edit: leave it out"):
        perturbation(pair_of("dog", "?!"))


# IDF


def test_idf_by_hand() -> None:
    idf = Idf(["The dog, the cat", "a dog. DOG!", "river"])
    wanted = {"the": 3, "dog": 3 / 2, "cat": 3, "a": 3, "river": 3}
    assert dict(idf) == pytest.approx({word: math.log(ratio) for word, ratio in wanted.items()})
    assert idf["zebra"] == math.log(3)
    assert "zebra" not in idf
    assert idf.n == 3
    assert Idf([])["dog"] == 0


@given(st.lists(TEXT, min_size=1, max_size=8))
@many
def test_idf_is_between_none_and_a_word_that_no_document_holds(documents: list[list[str]]) -> None:
    idf = Idf([" ".join(document) for document in documents])
    for word in PLAIN:
        df = sum(word in document for document in documents)
        assert idf[word] == pytest.approx(math.log(len(documents) / max(df, 1)))
        assert 0 <= idf[word] <= idf["zebra"]


# TFC1 and TFC2


@pytest.mark.parametrize("where", ["append", "prepend", "inject"])
@given(document=TEXT, doc_id=IDS, seed=SEED)
@many
def test_tfc1_adds_one_occurrence_and_nothing_else(where: str, document: list[str], doc_id: str, seed: int) -> None:
    term = Term({"q7": "Zebra"}, seed=seed)
    read = Tfc1(where, term)(pair_of("  ".join(document), doc_id=doc_id)).document.split()
    at = read.index("Zebra")
    assert read[:at] + read[at + 1 :] == document
    assert at == {"append": len(document), "prepend": 0}.get(where, at)


def test_tfc1_injects_between_any_two_words() -> None:
    pairs = [pair_of("dog cat river", "zebra", doc_id=f"d{k}") for k in range(200)]
    drawn = Counter(Tfc1("inject")(pair).document.split().index("zebra") for pair in pairs)
    assert set(drawn) == {0, 1, 2, 3}
    assert min(drawn.values()) > 25


@given(
    document=TEXT, spelling=st.sampled_from(["zebra", "Zebra", "ZEBRA,", "(zebra)", "zebra."]), at=st.integers(0, 12)
)
@many
def test_tfc1_r_takes_out_every_occurrence_and_nothing_else(document: list[str], spelling: str, at: int) -> None:
    replaced = Tfc1("replace", Term({"q7": "zebra"}))
    pair = pair_of(" ".join([*document[:at], spelling, *document[at:], "zebra"]))
    assert replaced(pair).document.split() == document
    with pytest.raises(MechirError, match=r"Pair q7/d7 gives no contrast: its document does not hold 'zebra'"):
        replaced(pair_of(" ".join([*document, "zebras"])))


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(MechirError, match=r"Unknown place 'middle': write one of append, prepend, inject, replace"):
        Tfc1("middle")
    with pytest.raises(MechirError, match=r"Unknown place 'end'"):
        tdc({}, "end")


@given(document=TEXT, query=QUERY, k=st.integers(0, 6), seed=SEED)
@many
def test_tfc2_s_sides_differ_in_one_occurrence(document: list[str], query: list[str], k: int, seed: int) -> None:
    axiom, pair = Tfc2(k, Term(seed=seed)), pair_of(" ".join(document), " ".join(query))
    term = axiom.term(pair)
    assert axiom.base(pair).document.split() == [*document, *[term] * k]
    assert axiom(pair).document == f"{axiom.base(pair).document} {term}"
    assert axiom(pair) == Tfc2(k + 1, Term(seed=seed)).base(pair)


def test_a_negative_number_of_occurrences_is_refused() -> None:
    with pytest.raises(MechirError, match=r"k=-1 is no number of occurrences: write 0 or more"):
        Tfc2(-1)


# LNC1 and LNC2


@given(document=TEXT, doc_id=IDS, limit=st.integers(1, 15), seed=SEED)
@many
def test_lnc1_adds_as_many_words_as_there_are_and_none_of_the_query(
    document: list[str], doc_id: str, limit: int, seed: int
) -> None:
    text, query = " ".join(document), "the Goldfish? river stone"
    documents = [text, *OTHERS, "Goldfish, goldfish! wave"]
    read = Lnc1(documents, limit, seed)(pair_of(text, query, doc_id=doc_id)).document.split()
    added = read[len(document) :]
    assert read[: len(document)] == document
    assert len(added) == min(len(document), limit)
    assert not set(words(" ".join(added))) & set(words(query))
    assert set(added) <= {word for other in documents[1:] for word in other.split()}


def test_lnc1_takes_whole_documents_in_their_order() -> None:
    added = Lnc1(["dog", "moon tide grass stone"])(pair_of("a b c d e f", "tide")).document.split()[6:]
    assert set(added) <= {"dog", "moon", "grass", "stone"}
    assert re.search(r"moon grass stone", " ".join(added))


def test_lnc1_never_says_the_document_again() -> None:
    for k in range(20):
        pair = pair_of("one two three four", doc_id=f"d{k}")
        assert Lnc1([pair.document, "dog"])(pair).document == "one two three four dog dog dog dog"


@pytest.mark.xfail(strict=True, reason="'a' stands in for a document of query words, even where the query holds it")
def test_lnc1_adds_no_query_word_where_all_others_are_of_the_query() -> None:
    added = Lnc1(["bread", "bread bread"])(pair_of("bread", "a bread")).document.split()[1:]
    assert "a" not in added


@pytest.mark.parametrize("documents", [[], ["dog cat"], ["dog cat", "dog cat"]])
def test_lnc1_needs_another_document(documents: list[str]) -> None:
    with pytest.raises(MechirError, match=r"LNC1 appends words of other documents: give documents= of more than one"):
        Lnc1(documents)(pair_of("dog cat"))


@given(document=TEXT, times=st.integers(2, 4))
@many
def test_lnc2_says_the_same_again(document: list[str], times: int) -> None:
    assert Lnc2(times)(pair_of(" ".join(document))).document.split() == document * times
    assert Lnc2() == Lnc2(2)


# STMC1


@given(document=TEXT, query=QUERY, seed=SEED)
@many
def test_stmc1_appends_what_the_table_says(document: list[str], query: list[str], seed: int) -> None:
    assume(not set(query) <= COMMON)
    term, pair = Term(seed=seed), pair_of(" ".join(document), " ".join(query))
    assert Stmc1(SYNONYMS, term)(pair).document == f"{pair.document} {SYNONYMS[term(pair)]}"


def test_a_term_without_a_synonym_is_refused() -> None:
    with pytest.raises(MechirError, match=r"Pair q7/d7 gives no contrast: there is no synonym of 'goldfish'"):
        Stmc1({"grow": "rise"}, Term({"q7": "goldfish"}))(pair_of("dog"))


def with_vocabulary(nearest: Mapping[str, Sequence[str]], n: int = 300) -> Any:
    """A model whose embedding has, for each word, these words nearest, in this order; the rest stand at right angles.

    Word number k of a list is turned away from its term by k steps, in a plane of the term's own.
    """
    rest = ["".join(letters) for letters in product("vwxyz", repeat=4)][:n]
    vocabulary = ["[UNK]", *dict.fromkeys(word for term, near in nearest.items() for word in (term, *near)), *rest]
    weight = torch.zeros(len(vocabulary), 2 * len(nearest) + 2)
    weight[:, -1] = 1.0
    for plane, (term, near) in enumerate(nearest.items()):
        for step, word in enumerate((term, *near)):
            angle = step * math.pi / 2 / (len(near) + 2)
            row = weight[vocabulary.index(word)]
            row[-1], row[2 * plane], row[2 * plane + 1] = 0, math.cos(angle), math.sin(angle)
            row *= 5.0 if step % 2 else 0.2  # nearness is of directions, not of lengths

    class Reader:
        def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
            return [vocabulary[k] if k < len(vocabulary) else None for k in ids]

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [vocabulary.index(piece) for piece in text.split("|")]}

    embeddings = SimpleNamespace(word=SimpleNamespace(weight=torch.nn.Parameter(weight)))
    return SimpleNamespace(tokenizer=Reader(), parts=SimpleNamespace(embeddings=embeddings))


def test_a_neighbour_is_the_nearest_whole_word_of_another_stem() -> None:
    near = {
        "ocean": ["##sea", "oceans", "oceanic", "[MASK]", "<s>", "is", "c3po", "can't", "sea", "lake"],
        "bread": ["breadth", "loaf", "sea"],
    }
    assert neighbours(with_vocabulary(near), ["ocean", "bread"]) == {"ocean": "sea", "bread": "loaf"}


def test_a_neighbour_of_several_pieces_is_that_of_their_mean() -> None:
    model = with_vocabulary({"wifi": ["radio"], "##s": ["cable"]})
    assert neighbours(model, ["wifi|##s"])["wifi|##s"] in ("radio", "cable")
    assert neighbours(model, ["wifi|wifi|##s"])["wifi|wifi|##s"] == "radio"
    assert neighbours(model, ["wifi|##s|##s"])["wifi|##s|##s"] == "cable"


def test_no_terms_have_no_neighbours() -> None:
    assert neighbours(with_vocabulary({"ocean": ["sea"]}), []) == {}


@pytest.mark.xfail(strict=True, reason="the 200 nearest are taken of however few there are")
def test_neighbours_are_found_in_a_small_vocabulary(tiny: HookedEncoder) -> None:
    found = neighbours(tiny, CONTENT)
    assert found.keys() == set(CONTENT)
    for term, word in found.items():
        assert word in PLAIN and len(word) > 2 and word[:4] != term[:4]


@pytest.mark.xfail(strict=True, reason="what is no whole word comes last instead of never")
def test_a_term_without_any_other_whole_word_has_no_neighbour() -> None:
    pieces = ["##" + "".join(letters) for letters in product("vwxyz", repeat=4)]
    assert neighbours(with_vocabulary({"ocean": ["oceans", *pieces]}, n=0), ["ocean"]) == {}


@pytest.mark.xfail(strict=True, reason="four letters of a longer word are never the three of the term")
def test_the_plural_of_three_letters_is_no_neighbour() -> None:
    assert neighbours(with_vocabulary({"dog": ["dogs", "puppy"]}), ["dog"]) == {"dog": "puppy"}


@pytest.mark.shared
def test_neighbours_in_the_real_embedding_are_other_whole_words(trained: HookedEncoder) -> None:
    queries = mi.collection("embedded").queries.values()
    terms = sorted({word for query in queries for word in words(query) if word not in COMMON})
    found = neighbours(trained, [*terms, "goldfish", "ocean", "bread"])
    assert found.keys() >= set(terms)
    for term, word in found.items():
        assert trained.tokenizer.tokenize(word) == [word]
        assert word.isalpha() and len(word) > 2 and word[:4] != term[:4]
    assert (found["ocean"], found["bread"]) == ("sea", "loaf")


# Negation, query swaps, shuffles


@given(document=TEXT, at=st.integers(0, 12), word=st.sampled_from(["not", "no", "never"]))
@many
def test_a_negation_stands_before_the_first_occurrence(document: list[str], at: int, word: str) -> None:
    at = min(at, len(document))
    text = " ".join([*document[:at], "Zebra,", *document[at:], "zebra"])
    read = Negate(word, Term({"q7": "zebra"}))(pair_of(text)).document.split()
    assert read == [*document[:at], word, "Zebra,", *document[at:], "zebra"]


def test_there_is_nothing_to_negate_without_the_term() -> None:
    with pytest.raises(MechirError, match=r"Pair q7/d7 gives no contrast: its document does not hold 'zebra'"):
        Negate(term=Term({"q7": "zebra"}))(pair_of("zebras and dogs"))


@given(query=QUERY, document=TEXT, doc_id=IDS, seed=SEED)
@many
def test_a_swapped_query_word_is_in_neither_text(query: list[str], document: list[str], doc_id: str, seed: int) -> None:
    assume(len({*query, *document}) < len(CONTENT) - 5)
    pair = pair_of(" ".join(document), " ".join(query), doc_id=doc_id)
    term, donor = Term(seed=seed)(pair), QuerySwap(CONTENT, Term(seed=seed))(pair)
    changed = {one: other for one, other in zip(query, donor.query.split(), strict=True) if one != other}
    assert changed.keys() == {term}
    assert changed[term] in CONTENT
    assert changed[term] not in {*query, *document}


def test_a_query_cannot_be_swapped_for_words_of_its_texts() -> None:
    with pytest.raises(MechirError, match=r"Pair q7/d7 gives no contrast: every other word is in its texts"):
        QuerySwap(["grow", "Dog", "dog!"])(pair_of("the dog,"))


@given(document=TEXT, doc_id=IDS, seed=SEED)
@many
def test_a_shuffle_is_a_permutation(document: list[str], doc_id: str, seed: int) -> None:
    assert Counter(Shuffle(seed)(pair_of(" ".join(document), doc_id=doc_id)).document.split()) == Counter(document)


def test_a_shuffle_reaches_every_order() -> None:
    drawn = Counter(Shuffle()(pair_of("dog cat river", doc_id=f"d{k}")).document for k in range(300))
    assert len(drawn) == 6
    assert min(drawn.values()) > 25
    assert Shuffle().moves


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


@pytest.mark.xfail(strict=True, reason="queries are counted among the cases, so one without any loses its refused")
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
    assert set(rows["empty"]) == {"Document 'empty' (query 'q3') is empty: leave it out."}
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


@pytest.mark.xfail(strict=True, reason="every error with the word filler in it counts as one about the filler")
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
        "lnc1": Lnc1([pair.document for pair in toy.pairs()]),
        "lnc2": Lnc2(2),
        "stmc1": Stmc1(EveryWord()),
        "negation": Negate("not"),
        "query-swap": QuerySwap(sorted(asked - COMMON)),
        "shuffle": Shuffle(),
    }[name]


@pytest.mark.parametrize("name", AXIOMS)
@pytest.mark.usefixtures("synonyms")
def test_a_set_over_a_collection_is_its_pool_perturbed(name: str) -> None:
    found, pool = diagnostic(name, TOY, model=object()), mi.collection(TOY).pairs()
    wanted = perturbed("x", pool, expected(name))
    assert found.cases == wanted.cases
    assert found.refused == wanted.refused
    assert found.cases
    assert len(found.cases) + len(found.refused) == len(pool) == 72
    assert found.id == f"{name} of toy"
    assert (found.fillers, found.swap, found.moves) == (FILLERS, False, name == "shuffle")
    assert diagnostic(name, str(TOY), model=object()).hash == found.hash
    assert diagnostic(name, mi.collection(TOY), model=object()).hash == found.hash


@pytest.mark.parametrize("name", AXIOMS)
@pytest.mark.usefixtures("synonyms")
def test_every_set_can_be_run(tiny: HookedEncoder, name: str) -> None:
    toy = diagnostic(name, TOY, per_grade=1, model=object())
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
    assert [base for base, _ in diagnostic("tfc1", TOY, **options).cases] == wanted
    assert [base for base, _ in diagnostic("lnc2", TOY, limit_queries=None, per_grade=None).cases] == mi.collection(
        TOY
    ).pairs()
    assert sum(base.grade == EASY for base, _ in diagnostic("lnc2", limit_queries=2, easy_negatives=3).cases) == 6


def test_options_of_the_set_are_kept() -> None:
    found = diagnostic("shuffle", TOY, fillers=["of", "in"], swap=True)
    assert (found.fillers, found.swap, found.moves) == (("of", "in"), True, True)


@pytest.mark.xfail(strict=True, reason="a string is a sequence of letters")
def test_one_filler_may_be_given_as_a_word() -> None:
    assert diagnostic("tfc1", TOY, fillers="the").fillers == ("the",)


@pytest.mark.parametrize(
    ("name", "closest"), [("tfc", "'tfc2', 'tfc1', "), ("shufle", "'shuffle'"), ("mechir-tdc", "'tdc'")]
)
def test_an_unknown_set_is_refused_with_the_known_ones(name: str, closest: str) -> None:
    with pytest.raises(MechirError, match=rf"Unknown diagnostic '{name}'\. The closest are {closest}"):
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
        ("mechir-tfc1", "mechir__*TFC1_topk_4000.tsv"),
        ("mechir-tdc", "mechir__*TDC_topk_4000.tsv"),
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
        MechirError, match=r"A set read from files has no top_k: only limit_queries, per_grade and seed"
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
@pytest.mark.xfail(strict=True, reason="the refused of queries without any case are lost")
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
