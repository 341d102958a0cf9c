"""Perturbations do what their axiom says, and depend on seed and ids alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mechir as mi
from mechir.diagnostic_sets import diagnostic
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
    tdc,
    words,
)
from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.perturbed import perturbed
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


def test_lnc1_adds_no_query_word_where_all_others_are_of_the_query() -> None:
    with pytest.raises(
        MechirError, match=r"Pair q7/d7 gives no contrast: other documents hold no word beside the query's"
    ):
        Lnc1(["bread", "bread bread"])(pair_of("bread", "a bread"))


@pytest.mark.parametrize("documents", [[], ["dog cat"], ["dog cat", "dog cat"]])
def test_lnc1_needs_another_document(documents: list[str]) -> None:
    with pytest.raises(MechirError, match=r"LNC1 appends words of other documents: give documents= of more than one"):
        Lnc1(documents)(pair_of("dog cat"))


@given(document=TEXT, times=st.integers(2, 4))
@many
def test_lnc2_says_the_same_again(document: list[str], times: int) -> None:
    assert Lnc2(times)(pair_of(" ".join(document))).document.split() == document * times
    assert Lnc2() == Lnc2(2)
    with pytest.raises(MechirError, match=r"times=1 repeats nothing: write 2 or more"):
        Lnc2(1)


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
