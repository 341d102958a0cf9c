"""Contrasts: what was not edited keeps its position, and every position knows what it is to the edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mechir as mi
from mechir.contrasts import Contrast, align, align_pair
from mechir.diagnostics import QuerySwap, Shuffle, Tfc1, Tfc2
from mechir.encoding import Encoded, encode
from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.segments import Segment
from tests.models import FAMILIES, WORDS, tokenizer

FILLERS = ("a", "the")
PLAIN = [word for word in WORDS if not word.startswith("##") and word not in FILLERS]
INFLECTED = ["builders", "growing", "goldfishs", "waters", "risers"]  # of two and three word pieces

FILLER = st.sampled_from(FILLERS)
WORD = st.sampled_from(PLAIN + INFLECTED)
ADDED = st.lists(WORD, min_size=1, max_size=3)
DOCUMENT = st.lists(WORD | FILLER, min_size=1, max_size=10)
DISTINCT = st.lists(WORD, min_size=2, max_size=10, unique=True)
few = settings(deadline=None, max_examples=25)
many = settings(deadline=None, max_examples=60)

read = cache(tokenizer)
BERT = read("bert")


def pieces(words: Sequence[str], reader: Any = BERT) -> list[int]:
    return list(reader(" ".join(words), add_special_tokens=False)["input_ids"]) if words else []


def encoded(contrast: Contrast, reader: Any = BERT, max_length: int = 512) -> tuple[Encoded, Encoded]:
    return encode(reader, [contrast.base], max_length), encode(reader, [contrast.donor], max_length)


def differing(contrast: Contrast, reader: Any = BERT) -> list[int]:
    """Where the ids of base and donor differ; both are of one length and have the same segments."""
    base, donor = encoded(contrast, reader)
    assert len(base.ids[0]) == len(donor.ids[0])
    assert np.array_equal(base.segments[0], donor.segments[0])
    return np.flatnonzero(base.ids[0] != donor.ids[0]).tolist()


def document_start(contrast: Contrast, reader: Any = BERT) -> int:
    segments = encoded(contrast, reader)[0].segments[0]
    return int(np.flatnonzero(segments == Segment.DOC.value)[0])


def spliced(words: Sequence[str], place: int, added: Sequence[str]) -> list[str]:
    return [*words[:place], *added, *words[place:]]


def insertion(place: int, added: Sequence[str]) -> Callable[[Pair], Pair]:
    return lambda pair: replace(pair, document=" ".join(spliced(pair.document.split(), place, added)))


def pair_of(document: Sequence[str], query: str = "how do goldfish grow") -> Pair:
    return Pair(query, " ".join(document), "q7", "d7", 2)


# Alignment


@pytest.mark.parametrize("family", FAMILIES)
@given(document=DOCUMENT, place=st.integers(0, 10), added=ADDED, filler=FILLER)
@few
def test_an_insertion_moves_no_other_token(
    family: str, document: list[str], place: int, added: list[str], filler: str
) -> None:
    reader, place = read(family), min(place, len(document))
    found = align(pair_of(document), insertion(place, added), reader, filler)
    longer, n = spliced(document, place, added), len(pieces(added, reader))
    assert found.donor == pair_of(longer)  # the donor is what the perturbation wrote
    places = [k for k in range(len(document) + 1) if longer[:k] + longer[k + len(added) :] == document]
    filled = [spliced(document, k, [filler] * n) for k in places]
    assert found.base.document.split() in filled
    at = places[filled.index(found.base.document.split())]
    first = document_start(found, reader) + len(pieces(document[:at], reader))
    assert set(differing(found, reader)) <= set(range(first, first + n))
    base, donor = (side.ids[0][first : first + n].tolist() for side in encoded(found, reader))
    assert base == pieces([filler], reader) * n
    assert donor == pieces(longer[at : at + len(added)], reader)
    assert found.filler == filler


@given(document=DISTINCT, filler=FILLER, data=st.data())
@many
def test_a_deletion_puts_the_filler_in_the_donor(document: list[str], filler: str, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(document) - 1))
    last = data.draw(st.integers(first + 1, len(document)))
    pair = pair_of(document)
    found = align(pair, lambda p: replace(p, document=" ".join(document[:first] + document[last:])), BERT, filler)
    n = len(pieces(document[first:last]))
    assert found.base == pair
    assert found.donor.document.split() == [*document[:first], *[filler] * n, *document[last:]]
    start = document_start(found) + len(pieces(document[:first]))
    assert differing(found) == list(range(start, start + n))


@given(document=DISTINCT, other=WORD, filler=FILLER, place=st.integers(0, 9))
@many
def test_a_word_for_another_differs_in_the_longer_one_s_pieces(
    document: list[str], other: str, filler: str, place: int
) -> None:
    place %= len(document)
    assume(other not in document)
    found = align(
        pair_of(document),
        lambda p: replace(p, document=" ".join([*document[:place], other, *document[place + 1 :]])),
        BERT,
        filler,
    )
    sizes = len(pieces([document[place]])), len(pieces([other]))
    start, at = document_start(found) + len(pieces(document[:place])), differing(found)
    assert set(at) <= set(range(start, start + max(sizes)))
    assert (start in at) == (pieces([document[place]])[0] != pieces([other])[0])
    assert found.filler == (filler if sizes[0] != sizes[1] else "")
    lacking = found.base if sizes[0] < sizes[1] else found.donor
    assert lacking.document.split().count(filler) == abs(sizes[0] - sizes[1])
    if sizes[0] >= sizes[1]:
        assert found.base == pair_of(document)


@given(base=DISTINCT, donor=st.lists(WORD, min_size=1, max_size=10), filler=FILLER)
@many
def test_any_two_texts_are_aligned_and_keep_their_own_words_in_order(
    base: list[str], donor: list[str], filler: str
) -> None:
    assume(base != donor)
    found = align_pair(pair_of(base), pair_of(donor), BERT, filler)
    assert differing(found)
    assert [word for word in found.base.document.split() if word != filler] == base
    assert [word for word in found.donor.document.split() if word != filler] == donor


@given(document=DISTINCT, others=st.lists(st.integers(0, 10), min_size=1, max_size=4), filler=FILLER)
@many
def test_taking_out_every_occurrence_touches_nothing_else(document: list[str], others: list[int], filler: str) -> None:
    term = "tide"
    assume(term not in document)
    for place in others:
        document = spliced(document, min(place, len(document)), [term])
    found = align(pair_of(document, query=term), Tfc1("replace"), BERT, filler)
    assert found.base == pair_of(document, query=term)
    assert found.donor.document.split() == [filler if word == term else word for word in document]
    assert len(differing(found)) == document.count(term)


def test_a_phrase_that_stands_twice_keeps_its_places() -> None:
    document = ["tide", "cat", "tide", "dog", "tide", "cat", "dog", "tide"]
    found = align(pair_of(document, query="tide"), Tfc1("replace"), BERT)
    assert found.donor.document == "a cat a dog a cat dog a"
    assert len(differing(found)) == 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("term", "n"), [("ocean", 1), ("waters", 2), ("builders", 3)])
def test_the_filler_stands_where_the_term_does(family: str, term: str, n: int) -> None:
    reader, document = read(family), ["dog", "and", "cat", "build", "the", "bridge"]
    pair = pair_of(document, query=f"how do the {term}")
    for where in ("append", "prepend", "inject"):
        perturbation = Tfc1(where)
        found = align(pair, perturbation, reader, "of")
        at, length = differing(found, reader), encoded(found, reader)[0].lengths[0]
        place = perturbation(pair).document.split().index(term)
        first = document_start(found, reader)
        wanted = {"append": length - 1 - n, "prepend": first}.get(where, first + place)
        assert at == list(range(wanted, wanted + n)), where
        assert found.base.document.split() == spliced(document, place, ["of"] * n)
        assert found.donor == perturbation(pair)


def test_a_term_beside_itself_is_still_one_edit() -> None:
    for where, document in (("prepend", "bread dog"), ("append", "dog bread"), ("append", "bread bread")):
        found = align(pair_of(document.split(), query="bread"), Tfc1(where), BERT)
        assert len(differing(found)) == 1
        assert Counter(found.base.document.split()) == Counter([*document.split(), "a"])


@pytest.mark.parametrize("family", FAMILIES)
@given(query=DISTINCT, place=st.integers(0, 9), other=WORD, filler=FILLER)
@few
def test_a_query_s_word_is_swapped_in_its_place(
    family: str, query: list[str], place: int, other: str, filler: str
) -> None:
    reader, place = read(family), place % len(query)
    assume(other not in query)
    pair = Pair(" ".join(query), "a the  a", "q7", "d7")
    swap = QuerySwap([other], mi.diagnostics.Term({"q7": query[place]}))
    found = align(pair, swap, reader, filler)
    both = [pieces([word], reader) for word in (query[place], other)]
    n = max(map(len, both))
    for side, word, own in zip((found.base, found.donor), (query[place], other), both, strict=True):
        assert side.query.split() == [*query[:place], word, *[filler] * (n - len(own)), *query[place + 1 :]]
    start = 1 + len(pieces(query[:place], reader))
    assert set(differing(found, reader)) <= set(range(start, start + n))
    assert (start in differing(found, reader)) == (both[0][0] != both[1][0])
    assert found.base.document == found.donor.document == "a the  a"  # the side without an edit is as it was


def test_query_and_document_may_both_be_edited() -> None:
    pair = pair_of(["cold", "river"], query="what is wifi")
    found = align(pair, lambda p: replace(p, query="what is builders", document="cold stone growing river"), BERT)
    assert (found.base.query, found.base.document) == ("what is wifi a a", "cold a a a river")
    assert len(differing(found)) == 6
    assert found.filler == "a"


@pytest.mark.parametrize("k", [0, 1, 4])
def test_a_perturbation_with_a_base_starts_from_it(k: int) -> None:
    pair = pair_of(["cold", "river"], query="waters")
    found = align(pair, Tfc2(k), BERT, "the")
    assert found.base.document.split() == ["cold", "river", *["waters"] * k, "the", "the"]
    assert found.donor.document.split() == ["cold", "river", *["waters"] * (k + 1)]
    assert len(differing(found)) == 2


@given(document=st.lists(WORD, min_size=1, max_size=8), place=st.integers(0, 8), added=ADDED)
@many
def test_two_fillers_give_contrasts_that_differ_in_the_filler_alone(
    document: list[str], place: int, added: list[str]
) -> None:
    pair = pair_of(document)
    one, other = (align(pair, insertion(min(place, len(document)), added), BERT, filler) for filler in FILLERS)
    assert one.donor == other.donor
    assert [{"a": "the"}.get(word, word) for word in one.base.document.split()] == other.base.document.split()
    assert differing(one) == differing(other)
    ids = [encoded(found)[0].ids[0] for found in (one, other)]
    assert np.flatnonzero(ids[0] != ids[1]).tolist() == [
        k for k, token in enumerate(ids[0].tolist()) if token == pieces(["a"])[0]
    ]
    assert (one.filler, other.filler) == FILLERS


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(("filler", "n"), [("grows", 2), ("builders", 3), ("zebra", 1), ("", 0), ("a the", 2)])
def test_a_filler_that_is_not_one_known_piece_is_refused(family: str, filler: str, n: int) -> None:
    message = (
        rf"The filler '{filler}' is {n} word pieces of this tokenizer, or unknown to it: give a word of one word "
        r"piece, such as 'a'"
    )
    pair = pair_of(["cold", "river"])
    for perturbation in (Tfc1(), Shuffle()):
        with pytest.raises(MechirError, match=message):
            align(pair, perturbation, read(family), filler)


def test_a_contrast_names_its_base() -> None:
    found = align(pair_of(["cold", "river"]), Tfc1(), BERT)
    assert (found.query_id, found.doc_id, found.grade, str(found)) == ("q7", "d7", 2, "pair q7/d7")


@given(document=DOCUMENT, place=st.integers(0, 10), added=ADDED)
@few
def test_swapping_twice_changes_nothing(document: list[str], place: int, added: list[str]) -> None:
    found = align(pair_of(document), insertion(min(place, len(document)), added), BERT)
    turned = found.swapped()
    assert (turned.base, turned.donor, turned.filler) == (found.donor, found.base, found.filler)
    assert turned != found
    assert turned.swapped() == found
    assert differing(turned) == differing(found)


# Shuffles


@pytest.mark.parametrize("family", FAMILIES)
@given(document=DOCUMENT, seed=st.integers(0, 3))
@few
def test_a_shuffle_moves_the_same_word_pieces(family: str, document: list[str], seed: int) -> None:
    shuffle, pair = Shuffle(seed), pair_of(document)
    assert shuffle.moves
    assume(shuffle(pair) != pair)
    found = align(pair, shuffle, read(family))
    assert (found.base, found.donor, found.filler) == (pair, shuffle(pair), "")
    base, donor = encoded(found, read(family))
    assert Counter(base.ids[0].tolist()) == Counter(donor.ids[0].tolist())
    assert min(differing(found, read(family))) >= document_start(found, read(family))
