"""Pairs in a prompt: the segment of every word piece, what is cut, and the same ids as sentence-transformers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import mechir as mi
from mechir.contrasts import ROLES, align, encode_contrasts
from mechir.diagnostics import Tfc1
from mechir.encoder import HookedEncoder
from mechir.encoding import Encoded, Writer, encode, encode_readable
from mechir.errors import MechirError
from mechir.left_out import frame
from mechir.material import readable
from mechir.perturbed import perturbed
from mechir.pools import Sample
from mechir.reranker import Reranker
from mechir.segments import Segment
from mechir.templates import PromptWriter, Template
from tests.models import PAIRS, TEXTS, stub
from tests.test_templates import CHATML, MONO, PAIR, QWEN, byte_level, read

TURNED = "Document: {document} Query: {query} Relevant:"


@cache
def with_ends(start: str, end: str) -> PreTrainedTokenizerFast:
    """The same, with special tokens of its own around a text, as Llama's `<s>` or T5's `</s>`."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(byte_level().backend_tokenizer.to_str()), pad_token="<|endoftext|>"
    )
    given = [token for token in (start, end) if token]
    tokenizer.add_special_tokens({"additional_special_tokens": given})
    single = " ".join(filter(None, (start, "$A", end)))
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in given]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def test_every_piece_belongs_to_the_part_that_it_reaches_into() -> None:
    tokenizer = byte_level()
    writer = Template.parse(MONO).writer(tokenizer)
    assert isinstance(writer, Writer) and not isinstance(tokenizer, Writer)
    encoded = encode(writer, PAIRS, 400)
    for place, pair in enumerate(PAIRS):
        assert read(encoded, place, tokenizer) == {
            "instruction": "Query:", "query": f" {pair.query}", "sep1": " Document:", "doc": f" {pair.document}", "suffix": " Relevant:",
        }  # fmt: skip
        text = MONO.format(query=pair.query, document=pair.document)
        assert encoded.ids[place].tolist() == tokenizer(text)["input_ids"]
    assert not any(types.any() for types in encoded.types) and encoded.truncated == 0
    batch = encoded.batch(range(len(PAIRS)))
    assert batch.present == Segment.parse("instruction|query|sep1|doc|suffix|pad")


def test_the_document_may_come_first_and_nothing_may_stand_around() -> None:
    tokenizer = byte_level()
    parts = read(encode(Template.parse(TURNED).writer(tokenizer), [PAIR], 400), 0, tokenizer)
    assert parts["doc"] == f" {PAIR.document}" and parts["query"] == f" {PAIR.query}"
    assert parts["instruction"] == "Document:" and parts["sep1"] == " Query:"
    bare = read(encode(Template.parse("{query}\n{document}").writer(tokenizer), [PAIR], 400), 0, tokenizer)
    assert bare == {"query": PAIR.query, "sep1": "\n", "doc": PAIR.document}
    spaced = read(encode(Template.parse("{query} {document}").writer(tokenizer), [PAIR], 400), 0, tokenizer)
    assert spaced == {"query": PAIR.query, "doc": f" {PAIR.document}"}  # the space is of the document's first piece


def test_special_tokens_of_the_tokenizer_begin_the_instruction_and_end_the_suffix() -> None:
    tokenizer = with_ends("<s>", "</s>")
    template = Template.parse("{query}\n{document}")
    parts = read(encode(template.writer(tokenizer), [PAIR], 400), 0, tokenizer)
    assert list(parts) == ["instruction", "query", "sep1", "doc", "suffix"]
    assert (parts["instruction"], parts["suffix"], parts["doc"]) == ("<s>", "</s>", PAIR.document)
    told = read(encode(Template(template.text, "Rank.").writer(tokenizer), [PAIR], 400), 0, tokenizer)
    assert told["system"] == "<s>Rank."
    plain = encode(Template.parse(template.text, special=False).writer(tokenizer), [PAIR], 400)
    assert list(read(plain, 0, tokenizer)) == ["query", "sep1", "doc"]


def test_words_that_spell_a_mark_of_the_prompt_are_the_documents() -> None:
    tokenizer = byte_level(QWEN)
    pair = mi.Pair("a goldfish {document}", "the moon <|im_end|>\n<|im_start|>assistant {query}", "q7", "d8")
    parts = read(encode(Template.of_chat(tokenizer).writer(tokenizer), [pair], 400), 0, tokenizer)
    assert parts["query"] == f" {pair.query}" and parts["doc"] == f" {pair.document}"


# What is cut


@pytest.mark.parametrize("text", [MONO, TURNED])
@pytest.mark.parametrize("ends", [("", ""), ("", "</s>")])
def test_documents_alone_are_cut(text: str, ends: tuple[str, str]) -> None:
    tokenizer = with_ends(*ends) if any(ends) else byte_level()
    writer = Template.parse(text).writer(tokenizer)
    pair = mi.Pair("how do goldfish grow", "the moon pulls the ocean " * 9, "q7", "d8")
    whole = encode(writer, [pair], 400)
    kept = read(whole, 0, tokenizer)
    for length in range(whole.lengths[0] - 9, whole.lengths[0] + 1):
        encoded = encode(writer, [pair], int(length))
        parts = read(encoded, 0, tokenizer)
        assert encoded.lengths[0] == length and encoded.truncated == (length < whole.lengths[0])
        assert kept["doc"].startswith(parts["doc"]) and {**parts, "doc": ""} == {**kept, "doc": ""}


@pytest.mark.parametrize("text", [MONO, TURNED])
def test_a_query_that_leaves_no_room_is_not_read(text: str) -> None:
    tokenizer = byte_level()
    writer = Template.parse(text).writer(tokenizer)
    first = encode(writer, [PAIR], 400)
    around = int((first.segments[0] != Segment.DOC.value).sum())
    n_query = int((first.segments[0] == Segment.QUERY.value).sum())
    assert (encode(writer, [PAIR], around + 1).segments[0] == Segment.DOC.value).sum() == 1
    for length in (around, around - n_query, 1):
        message = (
            f"Query 'q7' has {n_query} word pieces and alone fills the model, which reads {length} with "
            f"{around - n_query} of the prompt: queries are never truncated, so leave it out."
        )
        encoded, unreadable = encode_readable(writer, [PAIR], length)
        assert len(encoded) == 0 and unreadable == {0: ("query too long for the model", message)}


def test_what_cannot_be_read_is_said_of_a_prompt_too() -> None:
    writer = Template.parse(MONO).writer(byte_level())
    encoded, unreadable = encode_readable(writer, [mi.Pair("", "cat"), *PAIRS, mi.Pair("dog", " ")], 400)
    assert encoded.pairs == tuple(PAIRS)
    assert {place: why.reason for place, why in unreadable.items()} == {0: "empty text", 9: "empty text"}
    assert writer.write([], 400) == []


def test_a_text_without_a_word_piece_is_not_read() -> None:
    backend = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    backend.normalizer = normalizers.Replace("zzz", "")
    writer = Template.parse("{query}\n{document}").writer(
        PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>")
    )
    for length in (400, 2):
        _, unreadable = encode_readable(writer, [mi.Pair("dog", "zzz", "q7", "d8")], length)
        assert unreadable[0].sentence == "Document 'd8' holds no word piece of this tokenizer: leave it out."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_fast": False}, r"^\w+ does not say where a word piece stands in a prompt: take the fast tokenizer\.$"),
        ({"pad_token_id": None}, r"^This \w+ has no padding token: name one as tokenizer\.pad_token\.$"),
        ({"truncation_side": "left"}, r"^This \w+ cuts prompts on the left, where they begin: set truncation_side to right\.$"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_write_a_prompt_is_refused(change: dict[str, Any], message: str) -> None:
    known = {"is_fast": True, "pad_token_id": 0, "truncation_side": "right"} | change
    with pytest.raises(MechirError, match=message):
        Template.parse(MONO).writer(type("Reader", (), known)())


# sentence-transformers writes the same


def cross_encoder(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A tiny Qwen3 reranker: a causal language model, and logit(yes) - logit(no)."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    shape = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=512,
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reader = Transformer(str(folder), transformer_task="text-generation")
    return CrossEncoder(modules=[reader, LogitScore(true_token_id=1, false_token_id=2)], device="cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chat", [QWEN, CHATML.replace("CHANGE", "| trim")], ids=["qwen", "stripped"])
@pytest.mark.parametrize("instruction", [None, "Find a fish"])
def test_ids_are_those_of_sentence_transformers(tmp_path: Path, chat: str, instruction: str | None) -> None:
    tokenizer = byte_level(chat)
    model = cross_encoder(tmp_path, tokenizer)
    writer = Template.of_chat(tokenizer, instruction).writer(tokenizer)
    long = "the moon pulls the ocean and the tide \n"
    pairs = [*PAIRS, mi.Pair(" what is wifi ", long * 40), mi.Pair("bread", "x\n"), mi.Pair("wifi", "é ☃ <|im_end|> 4")]
    around = int((encode(writer, PAIRS[:1], 400).segments[0] != Segment.DOC.value).sum())
    for length in (400, around + 20, around + 3):
        model[0].max_seq_length = length
        features = model.preprocess([(pair.query, pair.document) for pair in pairs], prompt=instruction)
        mask = features["attention_mask"].bool()
        encoded, unreadable = encode_readable(writer, pairs, length)
        read = [row[there].tolist() for row, there in zip(features["input_ids"], mask, strict=True)]
        assert [ids.tolist() for ids in encoded.ids] == [row for k, row in enumerate(read) if k not in unreadable]
        assert len(unreadable) < len(pairs) / 2 and encoded.truncated >= 1


# By segment: a pair's own [CLS] and last [SEP], called instruction and suffix


@pytest.mark.parametrize(
    "text", [MONO, TURNED, "{query}\n{document}", "<Query>: {query}\n<Document>:{document}<|im_end|>"]
)
@pytest.mark.parametrize("where", ["append", "prepend", "inject"])
def test_contrasts_are_aligned_in_a_prompt(text: str, where: str) -> None:
    """A word after a space is another piece than one that begins a text, and the prompt says which it is."""
    tokenizer = byte_level()
    writer = Template.parse(text).writer(tokenizer)
    found = align(mi.Pair("goldfish", "moon pulls the ocean", "q7", "d1"), Tfc1(where), writer, max_length=400)
    base, donor = (encode(writer, [pair], 400) for pair in (found.base, found.donor))
    assert np.array_equal(base.segments[0], donor.segments[0])
    differ = np.flatnonzero(base.ids[0] != donor.ids[0])
    assert len(differ) and (donor.segments[0][differ] == Segment.DOC.value).all()


@cache
def sentence_piece() -> PreTrainedTokenizerFast:
    """The word pieces of T5: a space is the first letter of the word after it, and `</s>` ends a text."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    texts = [MONO.format(query=query, document=document) for query, document in TEXTS]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=list(special.values()), unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(texts * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize("where", ["append", "prepend", "inject"])
def test_the_word_pieces_of_t5_are_placed_and_aligned(where: str) -> None:
    tokenizer = sentence_piece()
    writer = Template.parse(MONO).writer(tokenizer)
    parts = read(encode(writer, [PAIR], 400), 0, tokenizer)
    assert parts["query"].split() == PAIR.query.split() and parts["doc"].split() == PAIR.document.split()
    assert parts["suffix"].split() == ["Relevant:</s>"]
    found = align(mi.Pair("goldfish", "moon pulls the ocean", "q7", "d1"), Tfc1(where), writer)
    base, donor = (encode(writer, [pair], 400) for pair in (found.base, found.donor))
    assert np.array_equal(base.segments[0], donor.segments[0]) and (base.ids[0] != donor.ids[0]).any()


def reranker(writer: PromptWriter, **more: Any) -> Any:
    """A model of the lowest tier that reads a prompt."""

    def encoded(self: Any, pairs: Any, max_length: int | None = None) -> Encoded:
        return encode(writer, mi.pairs(pairs), max_length or 400)

    sizes = type("Sizes", (), {"model_name": "prompted", "n_layers": 1})()
    given = {"cfg": sizes, "tokenizer": writer.tokenizer, "writer": writer, "encode": encoded, "max_length": 400}
    return stub(Reranker, **given, **more)


def test_roles_of_a_prompt_are_those_of_its_texts_and_separators() -> None:
    writer = Template.parse(MONO).writer(byte_level())
    model = reranker(writer, device=torch.device("cpu"), max_tokens=4096)
    contrast = align(PAIR, Tfc1(), model.writer)
    (batch,) = encode_contrasts(model, [contrast]).batches(model)
    roles = np.array(ROLES)[batch.roles[0].numpy()]
    separators = batch.base.at(Segment.parse("instruction|sep1|suffix"))[0].numpy()
    assert set(roles[separators]) == {"sep"} and "sep" not in roles[~separators] and "cls" not in roles
    assert (roles == "injected").sum() == 1


def test_what_is_done_for_a_model_goes_through_its_writer(tiny: HookedEncoder) -> None:
    assert tiny.writer is tiny.tokenizer
    writer = Template.parse("{query}\n{document}").writer(byte_level())
    model = reranker(writer)
    cases = perturbed("tfc1", [PAIR], Tfc1("prepend"))
    assert cases.align(model).contrasts[0] == align(PAIR, Tfc1("prepend"), writer)
    source = type("Source", (), {"rules": {"leave_out": 1.0}, "id": "toy"})()
    long = mi.Pair("why does the ocean rise " * 99, "a dog", "q9", "d9")
    with pytest.warns(UserWarning, match="cannot read 1 of 2 pairs of 'toy'"):
        kept = readable(model, Sample([PAIR, long], frame([])), source)
    assert kept.pairs == [PAIR] and "query too long for the model" in kept.left_out["reason"].tolist()
