"""Prompts of language models as values: written out, or read off a chat template."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as backends
from transformers import PreTrainedTokenizerFast

import mechir as mi
from mechir.encoding import Encoded, encode
from mechir.errors import MechirError
from mechir.segments import FIVE, PARTS, Segment
from mechir.templates import Template
from tests.models import TEXTS

MONO = "Query: {query} Document: {document} Relevant:"
QWEN = (
    "{%- set told = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first"
    " | default('Given a query, retrieve passages') -%}"
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided."
    ' Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {{ told }}\n"
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n\n"  # Jinja takes one line break off the end
)
"""The prompt of Qwen3-Reranker as a chat template."""
PAIR = mi.Pair("how do goldfish grow", "a goldfish grows in the water of a tall tank", "q7", "d8", 2)


@cache
def byte_level(chat: str | None = None) -> PreTrainedTokenizerFast:
    """The word pieces of Qwen: byte-level, a word after a space is another piece, nothing is added to a text."""
    backend = Tokenizer(backends.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [*(MONO.format(query=query, document=document) for query, document in TEXTS), QWEN, "yes no"]
    backend.train_from_iterator(texts * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>", model_max_length=400)
    special = [AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_tokens([*special, "<think>", "</think>"])
    tokenizer.chat_template = chat
    return tokenizer


def read(encoded: Encoded, place: int, tokenizer: Any) -> dict[str, str]:
    """The text of every segment of a pair, in the order of the parts."""
    ids, segments = encoded.ids[place], encoded.segments[place]
    return {str(part): tokenizer.decode(ids[segments == part.value]) for part in PARTS if part.value in segments}


# The value


def test_a_template_is_a_value_that_prints_as_it_is_written() -> None:
    template = mi.Template.parse(MONO)
    assert str(template) == MONO and template == Template(MONO) and hash(template) == hash(Template(MONO))
    assert repr(template) == f"Template(text='{MONO}', system='', special=True, strips=False)"
    assert eval(repr(template)) == template != Template.parse(MONO, special=False)
    assert [(str(part.segment), part.text) for part in template.parts] == [
        ("instruction", "Query: "), ("query", "{query}"), ("sep1", " Document: "), ("doc", "{document}"), ("suffix", " Relevant:"),
    ]  # fmt: skip
    assert [str(part.segment) for part in Template.parse("{document}\n{query}", system="Rank.").parts] == [
        "system", "doc", "sep1", "query",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Query: {query}", r"^'Query: \{query\}' holds \{document\} 0 times, not once: write e\.g\. 'Query: \{query\} Document: .*'\.$"),
        ("{query} {query} {document}", r"holds \{query\} 2 times, not once: write e\.g\."),
        ("{query}{document} Relevant:", r"^Nothing stands between query and document in '\{query\}\{document\} Relevant:': write e\.g\."),
    ],
)  # fmt: skip
def test_a_prompt_without_its_two_texts_is_refused(text: str, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        Template.parse(text)


def test_a_chat_template_is_read_by_its_turns() -> None:
    tokenizer = byte_level(QWEN)
    template = Template.of_chat(tokenizer)
    assert template.system.startswith("<|im_start|>system\nJudge") and template.system.endswith("<|im_end|>\n")
    assert template.text == (
        "<|im_start|>user\n<Instruct>: Given a query, retrieve passages\n<Query>: {query}\n<Document>: {document}"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert (template.special, template.strips) == (False, False)
    assert "<Instruct>: Find a fish\n" in Template.of_chat(tokenizer, "Find a fish").text
    encoded = encode(template.writer(tokenizer), [PAIR], 400)
    parts = read(encoded, 0, tokenizer)
    assert list(parts) == ["system", "instruction", "query", "sep1", "doc", "suffix"]
    assert (encoded.segments[0] == Segment.QUERY.value).sum() == 4 and "".join(parts.values()).count("goldfish") == 2


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content CHANGE }}<|im_end|>\n{% endfor %}"
LIST = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n{% endfor %}"
HEADERS = "{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>\n{{ m.content }}{% endfor %}"


def test_chat_templates_of_other_kinds_are_read_too() -> None:
    def of(chat: str, *arguments: Any, **options: Any) -> Template:
        return Template.of_chat(byte_level(chat), *arguments, **options)

    plain = of(CHATML.replace("CHANGE", ""), "Judge.")
    assert plain == of(LIST, "Judge.")
    assert plain.system == "<|im_start|>system\nJudge.<|im_end|>\n"
    assert plain.text == "<|im_start|>query\n{query}<|im_end|>\n<|im_start|>document\n{document}<|im_end|>\n"
    stripped = of(CHATML.replace("CHANGE", "| trim"), "Judge.")
    assert stripped == Template(plain.text, plain.system, special=False, strips=True)
    assert [part.text for part in stripped.filled(" a ", "b\n")][2::2] == ["a", "b"]
    assert of(HEADERS, "Judge.").text.startswith("<|im_start|>query<|im_end|>\n{query}")
    assert of(HEADERS + "{{ more }}", more="!").text.endswith("{document}!")


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (None, r"^This tokenizer has no chat template: write e\.g\. Template\.parse\('Query: .*'\)\.$"),
        ("{{ messages[0].content }}", r"^The chat template writes the document 0 times, not once: give one that writes the messages of the roles 'query' and 'document', or write e\.g\. Template\.parse\(.*\)\.$"),
        ("{{ messages[0].content }} {{ messages[1].content }} {{ messages[0].content }}", r"^The chat template writes the query 2 times"),
        ("{{ messages[0].content.lower() | upper }} {{ messages[1].content }}", r"^The chat template writes the query 0 times"),
        ("{{ raise_exception('no role query') }}", r"^The chat template cannot write a query and a document \(no role query\): give another\.$"),
        ("{{ messages[0].content | trim }} {{ messages[1].content }}", r"^The chat template strips white space on one side, or of one text alone: let it strip both, or neither\.$"),
    ],
)  # fmt: skip
def test_a_chat_template_that_does_not_write_a_pair_is_refused(chat: str | None, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        Template.of_chat(byte_level(chat))


def test_segments_of_a_prompt_print_in_reading_order_and_are_read_again() -> None:
    assert str(mi.Direction.parse("SUFFIX <- D|system")) == "suffix<-system|doc"
    assert str(mi.Direction.parse("decoder<-all")) == "decoder<-all"
    assert [Segment.parse(str(part)) for part in PARTS] == list(PARTS)
    assert Segment.ALL == ~Segment.PAD and set(FIVE) < set(PARTS) and len(set(PARTS)) == len(PARTS) == 9
    assert [part.value for part in (*FIVE, Segment.PAD)] == [1, 2, 4, 8, 16, 32]  # as they are stored
