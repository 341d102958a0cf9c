"""What is given as a pair: what reads as one, and a sentence for what does not."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.encoding import encode, encode_readable, write
from mechir.errors import MechirError
from tests.models import PAIRS, Checkpoints, build
from tests.references import hugging_face


def test_one_pair_and_tuples_are_scored_like_a_list_of_pairs(tiny: HookedEncoder) -> None:
    expected = tiny.score(PAIRS)
    texts = [(pair.query, pair.document) for pair in PAIRS]
    torch.testing.assert_close(tiny.score(texts), expected, atol=0, rtol=0)
    for one in (PAIRS[0], texts[0], (*texts[0], "q7", "d8")):
        torch.testing.assert_close(tiny.score(one), expected[:1], atol=1e-6, rtol=0)
        torch.testing.assert_close(tiny(one), expected[:1], atol=1e-6, rtol=0)
    assert mi.pairs([(*texts[0], "q7", "d8")]) == (mi.Pair(*texts[0], "q7", "d8"),)


def spoilt(**fields: Any) -> mi.Pair:
    """A pair with what the checks of types in these tests would not let in."""
    pair = mi.Pair("dog", "cat", "q7", "d8")
    for name, value in fields.items():
        object.__setattr__(pair, name, value)
    return pair


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (spoilt(document=None), r"The document of pair 'q7'/'d8' is None and no text: give a string, or leave"),
        (spoilt(query=float("nan")), r"The query of pair 'q7'/'d8' is nan and no text"),
        (spoilt(document=b"cat"), r"The document of pair 'q7'/'d8' is b'cat' and no text"),
        (spoilt(query_id=7), r"The query id of pair 7/'d8' is 7 and no text"),
        (mi.Pair("dog", "a \ud800 cat", "q7", "d8"), r"The document of pair 'q7'/'d8' holds half of a surrogate pair at position 2"),
        (mi.Pair("\udfff", "a cat", "q7", "d8"), r"The query of pair 'q7'/'d8' holds half of a surrogate pair at position 0"),
        (mi.Pair("dog", "a cat", "q7", "\udc00"), r"The document id of pair 'q7'/'.udc00' holds half"),
    ],
)  # fmt: skip
def test_a_pair_that_is_no_text_is_named(tiny: HookedEncoder, pair: mi.Pair, message: str) -> None:
    for call in (tiny.score, tiny.certify, lambda pairs: mi.sweep(tiny, pairs, {"intact": ()})):
        with pytest.raises(MechirError, match=message):
            call([*PAIRS[:2], pair])


def test_what_can_be_read_is_read_and_the_rest_is_said(tiny: HookedEncoder) -> None:
    bad = [mi.Pair("", "cat", "q1"), mi.Pair("dog " * 70, "cat", "q2")]
    encoded, unreadable = encode_readable(tiny.tokenizer, [bad[0], *PAIRS, *bad[1:]], 64)
    assert encoded.pairs == tuple(PAIRS)
    assert {place: one.reason for place, one in unreadable.items()} == {
        0: "empty text", 9: "query too long for the model",
    }  # fmt: skip
    with pytest.raises(MechirError, match="Query 'q1' is empty"):
        encode(tiny.tokenizer, [bad[0], *PAIRS], 64)


def test_an_unknown_return_type_is_refused(tiny: HookedEncoder) -> None:
    with pytest.raises(MechirError, match="Unknown return_type 'loss': write one of score, logits, resid"):
        tiny(PAIRS[0], return_type="loss")


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("accumulated_resid", (1,)), ("decompose_resid", (1,)), ("stack_head_results", (1,)), ("stack_neuron_results", (1,)),
        ("get_full_resid_decomposition", (1,)), ("logit_attrs", (None, 0)), ("apply_ln_to_stack", (None,)),
        ("compute_head_results", ()), ("get_neuron_results", (1,)), ("logit_lens", ()),
    ],
)  # fmt: skip
def test_sums_that_a_post_norm_stream_is_not_are_refused(
    tiny: HookedEncoder, method: str, arguments: tuple[Any, ...]
) -> None:
    _, cache = tiny.run_with_cache(PAIRS[0])
    assert cache["blocks.1.hook_resid_post"].shape[-1] == 32
    with pytest.raises(MechirError, match=rf"cache.{method} adds up what components wrote.*paths"):
        getattr(cache, method)(*arguments)


def slow_checkpoint(folder: Path, kind: str, **config: Any) -> Path:
    """A tiny RoBERTa with a tokenizer that is written in Python."""
    words = ["xin", "cho", "ban", "a", "b"]
    model = build("roberta")
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word} {9 - place}\n" for place, word in enumerate(words)))
    (folder / "bpe.codes").write_text("#version: 0.2\nx i 10\nxi n</w> 9\nb a 8\nba n</w> 7\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": kind, "model_max_length": 20} | config)
    )
    return folder


def test_a_tokenizer_written_in_python_is_read_as_hugging_face_reads_it(tmp_path: Path) -> None:
    texts = [("xin a", "ban xin xin a b"), ("a", "b " * 40), ("xin zz", "a ban"), ("b b b", "ban " * 30)]
    for side in ("right", "left"):
        folder = slow_checkpoint(tmp_path / side, "PhobertTokenizer", truncation_side=side)
        model = mi.load(folder)
        assert not model.tokenizer.is_fast
        assert model.score(texts).tolist() == pytest.approx(hugging_face(folder, texts).tolist(), abs=2e-5)
        pairs = [mi.Pair(*two, "q", str(place)) for place, two in enumerate(texts)]
        assert model.certify(pairs)["input"] == 0
        assert (model.encode(pairs).truncated, mi.load(folder).fingerprint) == (2, model.fingerprint)
        segments = [mi.Segment(int(value)) for value in model.encode(pairs).segments[0]]
        assert segments[0] == mi.Segment.CLS and segments.count(mi.Segment.SEP1) == 2
        assert segments.count(mi.Segment.QUERY) == len(model.tokenizer("xin a", add_special_tokens=False)["input_ids"])
        with pytest.raises(MechirError, match=r"more than half of the 20 that are read, and .* would be cut"):
            model.score([("a b a b a b a b a b a", "b " * 40)])


def test_a_package_that_a_tokenizer_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(MechirError, match=r"needs the package 'emoji': run `pip install emoji`"):
        mi.load(slow_checkpoint(tmp_path / "tweets", "BertweetTokenizer"))
    monkeypatch.setitem(sys.modules, "fugashi", None)
    folder = slow_checkpoint(tmp_path / "japanese", "BertJapaneseTokenizer", word_tokenizer_type="mecab")
    with pytest.raises(
        MechirError, match=r"needs a package that is not installed \(.*fugashi.*\): install it with pip"
    ):
        mi.load(folder)


def test_a_tokenizer_that_cannot_be_built_is_one_sentence(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints.path("bert"), tmp_path / "model"))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(MechirError, match=r"Hugging Face cannot build the tokenizer of '.*download its files again"):
        mi.load(folder)


def test_vocab_json_and_merges_are_read(tmp_path: Path) -> None:
    build("roberta").save_pretrained(tmp_path)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "\u0120", "\u0120a", "\u0120ab", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: place for place, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n\u0120 a\n\u0120a b\n")
    texts = [("ab a", "a ab b"), ("b", "ab")]
    model = mi.load(tmp_path)
    assert model.score(texts).tolist() == pytest.approx(hugging_face(tmp_path, texts).tolist(), abs=2e-5)


def test_nothing_is_written_for_no_pairs(tiny: HookedEncoder) -> None:
    assert write(tiny.tokenizer, [], 64) == []


@pytest.mark.parametrize("family", ["electra", "roberta", "xlm-roberta", "camembert", "distilbert"])
def test_padding_on_the_left_is_refused_in_every_family(checkpoints: Checkpoints, tmp_path: Path, family: str) -> None:
    """The head reads position 0, which is padding then, also where positions are counted from the padding."""
    folder = Path(shutil.copytree(checkpoints.path(family), tmp_path / "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
    with pytest.raises(
        MechirError, match="pads on the left, where the model reads its score: set padding_side to right"
    ):
        mi.load(folder)


def test_a_tokenizer_written_in_python_is_what_its_files_hold(tmp_path: Path) -> None:
    folder = slow_checkpoint(tmp_path / "one", "PhobertTokenizer")
    first = mi.load(folder).fingerprint
    assert mi.load(shutil.copytree(folder, tmp_path / "two")).fingerprint == first
    (folder / "bpe.codes").write_text("#version: 0.2\nb a 10\nba n</w> 9\n")
    assert mi.load(folder).fingerprint != first
