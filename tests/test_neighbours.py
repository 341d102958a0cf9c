"""STMC1: synonyms from a table, or the nearest words of a model, never a form of the term."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import assume, given

import mechir as mi
from mechir.diagnostics import (
    COMMON,
    Stmc1,
    Term,
    neighbours,
    words,
)
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.reranker import Weights
from tests.models import stub
from tests.test_diagnostics import CONTENT, PLAIN, QUERY, SEED, SYNONYMS, TEXT, many, pair_of

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
            return {"input_ids": [vocabulary.index(piece) for piece in text.strip().split("|")]}

    return stub(Weights, tokenizer=Reader(), W_E=torch.nn.Parameter(weight))


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


def test_neighbours_are_found_in_a_small_vocabulary(tiny: HookedEncoder) -> None:
    found = neighbours(tiny, CONTENT)
    assert found.keys() == set(CONTENT)
    for term, word in found.items():
        assert word in PLAIN and len(word) > 2 and word[:4] != term[:4]


def test_a_term_without_any_other_whole_word_has_no_neighbour() -> None:
    pieces = ["##" + "".join(letters) for letters in product("vwxyz", repeat=4)]
    assert neighbours(with_vocabulary({"ocean": ["oceans", *pieces]}, n=0), ["ocean"]) == {}


def test_the_plural_of_three_letters_is_no_neighbour() -> None:
    assert neighbours(with_vocabulary({"dog": ["dogs", "puppy"]}), ["dog"]) == {"dog": "puppy"}


@pytest.mark.slow
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
