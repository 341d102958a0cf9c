"""What gives no contrast is refused, by the ids and the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as backends
from transformers import PreTrainedTokenizerFast

import mechir as mi
from mechir.contrasts import align
from mechir.diagnostics import Lnc2, QuerySwap, Shuffle, Tfc1
from mechir.errors import MechirError
from mechir.pair import Pair
from tests.models import TEXTS, tokenizer
from tests.test_contrasts import BERT, PLAIN, differing, document_start, encoded, insertion, pair_of, pieces

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
