"""Loading of rerankers that nnsight opens: classifiers, module chains, models in memory; and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer

import mechir as mi
from mechir.encoder.certify import refuse_altered, refuse_unlike
from mechir.encoder.traced.model import TracedReranker
from mechir.errors import MechirError
from mechir.job import ModelReference
from mechir.registry.runs import runs
from tests import models, rerankers
from tests.models import PAIRS
from tests.test_cli import call

TEXTS = [(pair.query, pair.document) for pair in PAIRS]


def saved(folder: Path, kind: str = "modernbert", **more: Any) -> Path:
    """The directory of a tiny classifier as Hugging Face writes it."""
    rerankers.build(kind, **more).save_pretrained(folder)
    models.tokenizer("bert").save_pretrained(folder)
    return folder


def chain(folder: Path, pooling: str = "cls", *more: torch.nn.Module) -> CrossEncoder:
    """A cross-encoder made of modules, as the Ettin rerankers are."""
    rerankers.build("modernbert").model.save_pretrained(folder)
    models.tokenizer("bert").save_pretrained(folder)
    torch.manual_seed(1)
    transformer = Transformer(str(folder), max_seq_length=60)
    head = [Dense(32, 24, activation_function=torch.nn.GELU()), LayerNorm(24)]
    last = Dense(24, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    return CrossEncoder(modules=[transformer, Pooling(32, pooling_mode=pooling), *head, *more, last], device="cpu")


@torch.no_grad()
def predicted(encoder: CrossEncoder) -> torch.Tensor:
    return torch.as_tensor(encoder.predict(TEXTS, activation_fn=torch.nn.Identity(), convert_to_tensor=True))


@pytest.mark.parametrize("kind", ["modernbert", "deberta-v2"])
def test_a_saved_classifier_is_opened_and_scores_as_cross_encoder_does(kind: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, kind)
    model = mi.load(folder)
    assert type(model) is TracedReranker and f": {kind} by nnsight" in repr(model)
    ours = model.score(PAIRS)
    assert torch.allclose(ours, predicted(CrossEncoder(str(folder), device="cpu")), rtol=0, atol=2e-5)
    refuse_unlike(model.certify(PAIRS), kind)
    refuse_altered(model)
    again = mi.load(folder)
    assert again.fingerprint == model.fingerprint != mi.load(folder, max_length=40).fingerprint
    weights, reads, score = model.reading.lines()
    assert (
        weights.startswith("weights: model.safetensors; tokenizer: ") and score == "score: the logit of the only label"
    )
    assert reads.endswith("; token types: the model has none")
    assert torch.allclose(mi.load(folder, dtype="float64").score(PAIRS).float(), ours, rtol=0, atol=2e-5)
    assert model.limited(40).fingerprint == mi.load(folder, max_length=40).fingerprint


def test_several_labels_are_stated_as_of_any_classifier(tmp_path: Path) -> None:
    model = mi.load(saved(tmp_path, labels=3), relevant_label=2)
    logits = model(PAIRS, return_type="logits")
    assert torch.allclose(model.score(PAIRS), logits[:, 2] - logits[:, :2].logsumexp(1), atol=1e-5)
    with pytest.raises(MechirError, match="no score until you say which one is relevance"):
        mi.load(tmp_path).score(PAIRS)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_chain_of_modules_is_opened_whole(pooling: str, tmp_path: Path) -> None:
    made = chain(tmp_path / "transformer", pooling)
    made.save_pretrained(str(tmp_path / "chain"))
    model = mi.load(tmp_path / "chain")
    assert model.structure.reads == pooling and model.max_length == 60
    assert torch.allclose(model.score(PAIRS), predicted(made), rtol=0, atol=2e-5)
    refuse_unlike(model.certify(PAIRS), "chain")
    in_memory = mi.load(made)
    assert torch.equal(in_memory.score(PAIRS), model.score(PAIRS))
    cut = mi.Mask("doc<-query")
    assert torch.allclose(in_memory.score(PAIRS, cut), model.score(PAIRS, cut), atol=1e-6)
    assert not torch.allclose(model.score(PAIRS, cut), model.score(PAIRS), atol=1e-3)
    made.prompts, made.default_prompt_name = {"rank": "rank: "}, "rank"
    with pytest.raises(MechirError, match="writes the prompt 'rank: ' before every query"):
        mi.load(made)
    assert model.changed() == []
    with torch.no_grad():
        model.root[2].linear.weight.add_(1.0)
    assert model.changed() == ["2.linear.weight"]


@pytest.mark.parametrize("arguments", [{"text": {"max_length": 24}}, {"common": {"max_length": 24}}])
def test_texts_that_sentence_transformers_reads_otherwise_are_refused(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    plain, made = CrossEncoder(str(saved(tmp_path / "hf")), device="cpu"), chain(tmp_path / "transformer")
    for encoder in (plain, made):
        encoder[0].processing_kwargs = arguments
    made.save_pretrained(str(tmp_path / "chain"))
    for given in (plain, made, tmp_path / "chain"):
        message = (
            rf"^sentence-transformers reads texts with {re.escape(str(arguments))} \(processing_kwargs\), and mechir "
        )
        with pytest.raises(MechirError, match=f"{message}does not: take them out if the scores allow it.$"):
            mi.load(given)


def test_a_cross_encoder_around_a_classifier_is_that_classifier(tmp_path: Path) -> None:
    encoder = CrossEncoder(str(saved(tmp_path)), device="cpu")
    model = mi.load(encoder)
    assert torch.allclose(model.score(PAIRS), predicted(encoder), rtol=0, atol=2e-5)
    own = CrossEncoder(str(models.Checkpoints(tmp_path / "bert").path("bert")), device="cpu")
    assert type(mi.load(own)) is mi.HookedEncoder
    encoder.prompts, encoder.default_prompt_name = {"rank": "rank: "}, "rank"
    with pytest.raises(MechirError, match="writes the prompt 'rank: ' before every query, and mechir does not"):
        mi.load(encoder)


def test_what_cannot_be_opened_is_refused_in_one_sentence(tmp_path: Path) -> None:
    made = chain(tmp_path / "transformer", "cls", Normalize())
    with pytest.raises(
        MechirError,
        match=r"is made of Transformer, Pooling, Dense, LayerNorm, Normalize, Dense, and mechir cannot see through Normalize: it opens chains of",
    ):
        mi.load(made)
    made.save_pretrained(str(tmp_path / "chain"))
    with pytest.raises(MechirError, match="cannot see through Normalize"):
        mi.load(tmp_path / "chain")
    with pytest.raises(
        MechirError, match=r"The chain pools by 'max', which mechir cannot open: it opens cls, mean, lasttoken"
    ):
        mi.load(chain(tmp_path / "other", "max"))


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | values))


def test_code_pickles_and_adapters_are_refused(tmp_path: Path) -> None:
    chain(tmp_path / "transformer").save_pretrained(str(tmp_path / "chain"))
    modules = tmp_path / "chain" / "modules.json"
    content = json.loads(modules.read_text())
    modules.write_text(json.dumps([*content[:2], content[2] | {"type": "theirs.Dense"}, *content[3:]]))
    with pytest.raises(MechirError, match="cannot see through Dense"):
        mi.load(tmp_path / "chain")
    modules.write_text(json.dumps(content))
    dense = tmp_path / "chain" / content[2]["path"]
    (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    with pytest.raises(MechirError, match="is a pickle, and mechir reads safetensors alone"):
        mi.load(tmp_path / "chain")
    change(dense / "config.json", activation_function="theirs.Cube")
    with pytest.raises(
        MechirError, match=r"names the activation 'theirs\.Cube', which is code of its own and is not run"
    ):
        mi.load(tmp_path / "chain")
    modules.write_text(json.dumps([content[0], content[1] | {"path": "../other"}, *content[2:]]))
    with pytest.raises(MechirError, match=r"names '../other', which lies outside of it"):
        mi.load(tmp_path / "chain")
    folder = saved(tmp_path / "classifier")
    change(folder / "config.json", auto_map={"AutoModel": "theirs.Model"})
    with pytest.raises(MechirError, match="needs code from its own repository"):
        mi.load(folder)
    folder = saved(tmp_path / "quantised")
    change(folder / "config.json", quantization_config={"bits": 4})
    with pytest.raises(MechirError, match="has quantization_config="):
        mi.load(folder)
    folder = saved(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(MechirError, match=r"merge"):
        mi.load(folder)


def test_a_model_without_separators_and_template_is_refused(tmp_path: Path) -> None:
    tokenizer = models.tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = None
    model = mi.load(rerankers.build("qwen3"), tokenizer)
    with pytest.raises(MechirError, match="writes no special token before the query"):
        model.score(PAIRS)


def test_adapters_and_quantised_weights_in_memory_are_refused() -> None:
    hf = rerankers.build("modernbert")
    hf.model.layers[0].attn.Wo.lora_A = torch.nn.Linear(32, 2)
    with pytest.raises(
        MechirError, match=r"This ModernBertForSequenceClassification has an adapter .*merge_and_unload\(\)"
    ):
        mi.load(hf, models.tokenizer("bert"))
    hf = rerankers.build("qwen3")
    hf.config.quantization_config = {"bits": 4}
    with pytest.raises(MechirError, match=r"This Qwen3ForSequenceClassification has quantised weights, .*load it in"):
        mi.load(hf, models.tokenizer("bert"))


def test_options_of_a_prompt_are_refused_for_a_classifier(tmp_path: Path) -> None:
    saved(tmp_path)
    for given in (rerankers.build("modernbert"), models.build("bert")):
        with pytest.raises(MechirError, match="template= is of a language model's prompt, and"):
            mi.load(given, models.tokenizer("bert"), template="{query} {document}")
    for name in (tmp_path, "embedded"):
        with pytest.raises(MechirError, match="words= is of a language model's prompt, and"):
            mi.load(name, words=("no", "yes"))


def test_runs_take_a_model_of_another_structure_by_its_directory(tmp_path: Path, capsys: Any) -> None:
    folder, registry = saved(tmp_path / "model"), tmp_path / "registry"
    small = (
        "--limit-queries",
        "6",
        "--registry",
        str(registry),
        "--model",
        str(folder),
        "--collection",
        str(models.TOY),
    )
    code, _, err = call(capsys, "run", "vast2025/direction_ablation", *small)
    assert code == 0, err
    (stored,) = runs(registry)
    assert stored.record["certificate"]["edits"]["attn.hook_z"] > 1e-3
    assert ModelReference.of(mi.load(folder)).load().fingerprint == stored.record["identity"]["model_fingerprint"]
    code, _, err = call(capsys, "run", "vast2025/qk_svd", *small)
    assert code == 2 and "needs a model that starts at any layer and shows its weights" in err
    code, _, err = call(capsys, "score", "--out", str(tmp_path / "run.txt"), *small[:2], *small[4:])
    assert code == 0 and (tmp_path / "run.txt").is_file(), err


def test_a_chain_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    chain(tmp_path / "transformer").save_pretrained(str(tmp_path / "chain"))
    tensors = load_file(tmp_path / "chain" / "model.safetensors")
    del tensors["final_norm.weight"]
    save_file(tensors, tmp_path / "chain" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        MechirError, match=r"lacks weights \(final_norm.weight, 1 in all\): random weights in their place"
    ):
        mi.load(tmp_path / "chain")


def test_a_model_in_memory_takes_the_options_of_a_saved_one(tmp_path: Path) -> None:
    tokenizer = models.tokenizer("bert")
    model = mi.load(rerankers.build("modernbert", labels=2), tokenizer, dtype="float64", max_length=40, name="mine")
    assert (model.dtype, model.max_length, model.cfg.model_name) == (torch.float64, 40, "mine")
    assert mi.load(backend="nnsight", max_length=64).max_length == 64
