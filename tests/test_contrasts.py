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
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as backends
from transformers import PreTrainedTokenizerFast

import mechir as mi
from mechir.contrasts import Contrast, align, align_pair
from mechir.diagnostics import Lnc2, QuerySwap, Shuffle, Tfc1, Tfc2
from mechir.errors import MechirError
from mechir.pairs import Encoded, Pair, encode
from mechir.segments import Segment
from tests.models import FAMILIES, TEXTS, WORDS, tokenizer

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


# What gives no contrast


@pytest.mark.parametrize(
    ("perturbation", "reason"),
    [
        (lambda pair: pair, "the perturbation changes nothing"),
        (QuerySwap(["moon"], mi.diagnostics.Term({"q7": "wifi"})), "the perturbation changes nothing"),
        (lambda pair: replace(pair, document="cold    River"), "the perturbation changes no word piece"),
        (insertion(2, ["a"]), "the perturbation changes no word piece"),
    ],
)
def test_a_perturbation_that_changes_nothing_is_refused(perturbation: Callable[[Pair], Pair], reason: str) -> None:
    with pytest.raises(MechirError, match=rf"^Pair q7/d7 gives no contrast: {reason}\.$"):
        align(pair_of(["cold", "river"]), perturbation, BERT)


def test_a_single_word_cannot_be_shuffled() -> None:
    with pytest.raises(MechirError, match=r"Pair q7/d7 gives no contrast: the perturbation changes nothing"):
        align(pair_of(["river"]), Shuffle(), BERT)


@pytest.mark.parametrize("n", [1, 52, 53, 54, 55, 56, 90])
def test_an_edit_is_read_as_a_whole_or_refused(n: int) -> None:
    pair = pair_of(["river"] * n, query="builders")
    room = 62 - 3 - 3  # three special tokens, three word pieces of the query
    found = align(pair, Tfc1("prepend"), BERT, max_length=62)
    assert found.donor.document.startswith("builders river")
    if n + 3 <= room:
        assert len(differing(align(pair, Tfc1(), BERT, max_length=62))) == 3
    else:
        message = r"Pair q7/d7 gives no contrast: what is edited lies beyond the 62 word pieces that the model reads"
        with pytest.raises(MechirError, match=message):
            align(pair, Tfc1(), BERT, max_length=62)


def test_an_edit_that_pushes_nothing_but_the_end_off_is_aligned_where_the_model_reads() -> None:
    found = align(pair_of(PLAIN * 3), Tfc1("prepend"), BERT, max_length=40)
    base, donor = encoded(found, max_length=40)
    assert base.truncated == donor.truncated == 1
    assert np.flatnonzero(base.ids[0] != donor.ids[0]).tolist() == [document_start(found)]


def test_a_shuffle_beyond_what_is_read_is_refused() -> None:
    with pytest.raises(MechirError, match=r"Pair q7/d7 .* lies beyond the 20 word pieces that the model reads"):
        align(pair_of(PLAIN), Shuffle(), BERT, max_length=20)


@pytest.mark.parametrize(
    ("pair", "perturbation", "message"),
    [
        (Pair("wifi", "", "q7", "d7"), Lnc2(), r"Pair q7/d7 gives no contrast: its query or its document is empty"),
        (
            Pair("wifi", " ", "q7", "d7"),
            QuerySwap(["moon"]),
            r"Pair q7/d7 gives no contrast: its query or its document is empty",
        ),
        (Pair("wifi", "", "q7", "d7"), Shuffle(), r"Pair q7/d7 gives no contrast: its query or its document is empty"),
        (Pair("", "dog", "q7", "d7"), Lnc2(), r"Pair q7/d7 gives no contrast: its query or its document is empty"),
        (Pair("", "dog", "q7", "d7"), Tfc1(), r"Query 'q7' has no word to edit: leave it out"),
        (Pair("wifi " * 62, "dog", "q7", "d7"), Tfc1(), r"Query 'q7' has 62 word pieces and alone fills the model"),
    ],
)
def test_an_empty_text_gives_no_contrast(pair: Pair, perturbation: Callable[[Pair], Pair], message: str) -> None:
    with pytest.raises(MechirError, match=message):
        align(pair, perturbation, BERT, max_length=62)


@pytest.mark.parametrize("where", ["append", "prepend", "inject"])
def test_an_empty_document_is_not_filled(where: str) -> None:
    with pytest.raises(MechirError, match=r"d7"):
        align(Pair("wifi", "", "q7", "d7"), Tfc1(where), BERT)


def test_ids_are_named_as_they_are_written() -> None:
    with pytest.raises(MechirError, match=r"Pair Q7/FBIS3-44 gives no contrast"):
        align(Pair("wifi", "dog", "Q7", "FBIS3-44"), lambda pair: pair, BERT)


def reading(pattern: str, text: str) -> PreTrainedTokenizerFast:
    """A tokenizer that reads a stretch of two words as something else."""
    backend = tokenizer("bert").backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(pattern, text)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("moon dog", r"Pair q7/d7 gives no contrast: word pieces that were not edited differ or move with this"),
        ("moon", r"Pair q7/d7 is not aligned: at position 8 the base has 'cat' and the donor '\[SEP\]' \(lengths 10 and 9\)"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_reads_neighbours_together_is_refused(text: str, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        align(pair_of(["cold", "cat"]), insertion(1, ["moon"]), reading("moon cat", text))


def test_moved_words_that_do_not_fit_are_refused() -> None:
    def longer(pair: Pair) -> Pair:
        return replace(pair, document=f"{pair.document} dog")

    longer.moves = True  # type: ignore[attr-defined]
    with pytest.raises(MechirError, match=r"Pair q7/d7 is not aligned: at position 8 .* \(lengths 9 and 10\)"):
        align(pair_of(["cold", "river"]), longer, BERT)


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """The word pieces of RoBERTa: a word after a space is another piece than the same word at the start."""
    backend = Tokenizer(backends.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([f"{query} {document}" for query, document in TEXTS] * 3, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def test_a_word_after_a_space_is_another_piece_to_byte_level_bpe() -> None:
    assert len(pieces(["goldfish"], byte_level())) > len(pieces(["a", "goldfish"], byte_level())) - 1 == 1


@pytest.mark.parametrize("where", ["append", "inject"])
def test_byte_level_bpe_is_aligned(where: str) -> None:
    pair = Pair("goldfish", "the moon pulls the ocean", "q7", "d1")
    assert len(differing(align(pair, Tfc1(where), byte_level()), byte_level())) == 1


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
