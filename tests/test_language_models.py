"""Language models as rerankers: a prompt, the logits of two words, and the causal mask."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import Tensor

import mechir as mi
from mechir.encoder.certify import refuse_unlike
from mechir.encoder.traced.model import TracedReranker
from mechir.errors import MechirError
from tests import rerankers
from tests.models import PAIRS
from tests.test_templates import MONO, QWEN, byte_level

KINDS = ("qwen2", "qwen3", "llama")


def build(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny language model with random weights."""
    shape = rerankers.config(kind, vocab_size=len(byte_level(QWEN)), max_position_embeddings=512)
    torch.manual_seed(0)
    return rerankers.randomised(transformers.AutoModelForCausalLM.from_config(shape)).to(dtype)


def opened(kind: str = "qwen3", dtype: torch.dtype = torch.float32, **options: Any) -> TracedReranker:
    model = mi.load(build(kind, dtype), byte_level(QWEN), **options)
    assert isinstance(model, TracedReranker)
    return model


@torch.no_grad()
def alone(model: TracedReranker, pairs: Any) -> Tensor:
    """The scores of Hugging Face's own forward on each prompt alone, the difference of the logits of yes and no."""
    rows = [model.hf(**model.features([pair])).logits[0, -1] for pair in pairs]
    no, yes = model.tokenizer.convert_tokens_to_ids(["no", "yes"])
    return torch.stack([row[yes] - row[no] for row in rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.float64, 1e-10)])
@torch.no_grad()
def test_scores_are_those_of_hugging_face(kind: str, dtype: torch.dtype, bound: float) -> None:
    model = opened(kind, dtype)
    theirs = alone(model, PAIRS)
    runs = {"as it is": model(PAIRS), "alone": torch.cat([model([pair]) for pair in PAIRS])}
    with model.hooks([(lambda name: True, lambda x, hook: x.clone())]):
        runs["open"] = model(PAIRS)
    for name, scores in runs.items():
        assert float((scores - theirs).abs().max() / theirs.abs().max()) < bound, name
    refuse_unlike(model.certify(PAIRS), kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("instruction", [None, "Find a fish"])
def test_a_cross_encoder_is_opened_from_its_directory_and_from_memory(tmp_path: Path, instruction: str | None) -> None:
    encoder = yes_or_no(tmp_path)
    if instruction is not None:
        encoder.prompts, encoder.default_prompt_name = {"web": instruction}, "web"
    encoder.save_pretrained(str(tmp_path / "saved"))
    texts = [(pair.query, pair.document) for pair in PAIRS]
    theirs = torch.as_tensor(encoder.predict(texts, activation_fn=torch.nn.Identity(), convert_to_tensor=True))
    for model in (mi.load(tmp_path / "saved"), mi.load(encoder)):
        assert torch.allclose(model.score(PAIRS), theirs, rtol=0, atol=3e-5)
        refuse_unlike(model.certify(PAIRS), "saved")
        assert "log-odds of label 1 ('yes')" in "\n".join(model.reading.lines())
    encoder[0].processing_kwargs = {"chat_template": {"enable_thinking": False}}
    encoder.save_pretrained(str(tmp_path / "other"))
    for given in (encoder, tmp_path / "other"):
        with pytest.raises(
            MechirError,
            match=r"reads texts with .*enable_thinking.* \(processing_kwargs\), and mechir does not: write the prompt as",
        ):
            mi.load(given)
    assert mi.load(encoder, template=MONO).prompt.template == mi.Template.parse(MONO)
    encoder[0].processing_kwargs["text"] = {"max_length": 24}
    with pytest.raises(MechirError, match=r"reads texts with {'text': {'max_length': 24}} .*: take them out if"):
        mi.load(encoder, template=MONO)
    assert mi.load(tmp_path / "saved").fingerprint == mi.load(tmp_path / "saved").fingerprint
    assert mi.load(tmp_path / "saved", instruction="Another").fingerprint != mi.load(tmp_path / "saved").fingerprint


@pytest.mark.filterwarnings("ignore")
def test_a_template_takes_the_place_of_the_whole_chat_and_of_its_saved_prompt(tmp_path: Path) -> None:
    encoder = yes_or_no(tmp_path)
    encoder.prompts, encoder.default_prompt_name = {"web": "Find a fish"}, "web"
    encoder.save_pretrained(str(tmp_path / "saved"))
    plain = mi.load(tmp_path / "hf", template=MONO).score(PAIRS)
    for given in (encoder, tmp_path / "saved"):
        assert torch.equal(mi.load(given, template=MONO).score(PAIRS), plain)
        with pytest.raises(MechirError, match=r"^instruction='Eat' has no place in a prompt without roles: write it"):
            mi.load(given, template=MONO, instruction="Eat")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"max_seq_length": 90}, 90),
        ({"processor_kwargs": {"model_max_length": 91}}, 91),
        ({"tokenizer_args": {"model_max_length": 92}}, 92),
        ({"do_lower_case": True}, None),
    ],
)
def test_the_settings_of_a_saved_language_model_count(
    tmp_path: Path, settings: dict[str, Any], length: int | None
) -> None:
    file = saved_with(tmp_path, settings)
    long = mi.Pair("What is WiFi", "WiFi is a Radio SIGNAL " * 20)
    theirs = CrossEncoder(str(file.parent), device="cpu").predict(
        [(long.query, long.document)], activation_fn=torch.nn.Identity(), convert_to_tensor=True
    )
    model = mi.load(file.parent)
    assert model.reading.settings == ("modules.json", file.name)
    assert model.reading.lower_case == ("do_lower_case" in settings)
    assert length is None or model.max_length == length
    torch.testing.assert_close(model.score([long]), torch.as_tensor(theirs), rtol=0, atol=3e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_setting_of_a_saved_language_model_that_is_not_followed_is_refused(tmp_path: Path) -> None:
    file = saved_with(tmp_path, {"query_expansion": "[MASK]"})
    message = f"^'{re.escape(str(file))}' has query_expansion='\\[MASK\\]', which mechir does not follow: "
    with pytest.raises(MechirError, match=message):
        mi.load(file.parent)


def yes_or_no(folder: Path) -> CrossEncoder:
    """A `CrossEncoder` that is a language model with a LogitScore."""
    hf, tokenizer = build("qwen3"), byte_level(QWEN)
    hf.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    no, yes = tokenizer.convert_tokens_to_ids(["no", "yes"])
    transformer = Transformer(str(folder / "hf"), transformer_task="text-generation")
    return CrossEncoder(modules=[transformer, LogitScore(true_token_id=yes, false_token_id=no)], device="cpu")


def saved_with(folder: Path, settings: dict[str, Any]) -> Path:
    """The file of a saved yes/no reranker's settings, in which these are written too."""
    encoder = yes_or_no(folder)
    encoder.save_pretrained(str(folder / "saved"))
    file = folder / "saved" / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return file


def test_every_piece_of_the_prompt_is_in_a_segment() -> None:
    batch = opened().batch(PAIRS)
    parts = ("system", "instruction", "query", "sep1", "doc", "suffix")
    counts = [batch.at(mi.Segment.parse(part)).sum(1) for part in parts]
    assert all(bool((count > 0).all()) for count in counts)
    assert torch.equal(sum(counts), batch.attention_mask.sum(1))


def equal_length(model: TracedReranker) -> tuple[mi.Pair, mi.Pair]:
    """One query with two documents of as many word pieces."""
    pairs = (mi.Pair("what is wifi", "wifi is a radio signal"), mi.Pair("what is wifi", "grass is a radio bridge"))
    one, other = model.encode(pairs).ids
    short = min(len(one), len(other))
    fill = " a" * (max(len(one), len(other)) - short)
    pairs = tuple(
        replace(pair, document=pair.document + fill) if len(ids) == short else pair
        for pair, ids in zip(pairs, (one, other), strict=True)
    )
    assert len({len(ids) for ids in model.encode(pairs).ids}) == 1
    return pairs


def test_a_suffix_that_sees_neither_text_leaves_the_score_without_the_document() -> None:
    model = opened()
    pairs = equal_length(model)
    blind = [mi.Mask("suffix<-doc", renormalise=True), mi.Mask("suffix<-query", renormalise=True)]
    intact, cut = model.score(pairs), model.score(pairs, blind)
    assert abs(float(intact[0] - intact[1])) > 1e-2
    assert abs(float(cut[0] - cut[1])) < 1e-5
    half = model.score(pairs, blind[:1])
    assert abs(float(half[0] - half[1])) < 1e-5, "nothing but the suffix stands behind the document"


def test_directions_against_the_causal_mask_are_refused_by_name() -> None:
    model = opened()
    with pytest.raises(MechirError, match=r"'query<-doc'"):
        model.score(PAIRS, mi.Mask("query<-doc"))
    turned = opened(template="Document: {document} Query: {query} Relevant:")
    with pytest.raises(MechirError, match=r"'doc<-query'"):
        turned.score(PAIRS, mi.Mask("doc<-query"))
    assert not torch.allclose(turned.score(PAIRS, mi.Mask("query<-doc")), turned.score(PAIRS))
    with pytest.raises(MechirError, match="cls"):
        model.score(PAIRS, mi.Mask("cls<-doc"))


def test_documents_are_cut_and_queries_never() -> None:
    model = opened(max_length=260)
    long = mi.Pair("what is wifi", "the moon pulls the ocean and the tide " * 60)
    encoded = model.encode([long])
    assert encoded.truncated == 1 and len(encoded.ids[0]) == 260
    assert model.score([long]).isfinite().all()
    refuse_unlike(model.certify([long, *PAIRS]), "cut")


def test_a_prompt_of_ones_own_and_other_words() -> None:
    model = opened("llama", template=MONO, words=("a", "the"))
    no, yes = model.tokenizer.convert_tokens_to_ids(["a", "the"])
    row = model.hf(**model.features(PAIRS[:1])).logits[0, -1]
    assert float(model.score(PAIRS[:1])[0]) == pytest.approx(float(row[yes] - row[no]), abs=1e-5)
    one = opened("llama", template=MONO, words=("the",))
    assert float(one.score(PAIRS[:1])[0]) == pytest.approx(float(row[yes]), abs=1e-5)


def test_what_cannot_be_a_reranker_is_refused() -> None:
    with pytest.raises(MechirError, match=r"'nein' is no word piece of this tokenizer, whose logit would be the score"):
        opened(words=("nein", "ja"))
    with pytest.raises(MechirError, match="no chat template"):
        mi.load(build("qwen3"), byte_level())
    with pytest.raises(MechirError, match="A Qwen3ForCausalLM in memory needs its tokenizer"):
        mi.load(build("qwen3"))
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=40))
    with pytest.raises(MechirError, match="This is a GPT2LMHeadModel, which mechir cannot"):
        mi.load(gpt, byte_level(QWEN))


@torch.no_grad()
def test_a_decoder_that_classifies_reads_a_prompt_too() -> None:
    """As RankLLaMA does: the score is a linear layer at the end of the prompt."""
    tokenizer = byte_level()
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "pad_token_id": tokenizer.pad_token_id}
    hf = rerankers.build("llama", **size)
    model = mi.load(hf, tokenizer, template="query: {query} document: {document} end")
    texts = [f"query: {pair.query} document: {pair.document} end" for pair in PAIRS]
    theirs = torch.cat([hf(**tokenizer(text, return_tensors="pt")).logits[:, 0] for text in texts])
    assert torch.allclose(model.score(PAIRS), theirs, rtol=0, atol=2e-5)
    refuse_unlike(model.certify(PAIRS), "llama")
    assert model.prompt_options == (("template", "query: {query} document: {document} end"),)
