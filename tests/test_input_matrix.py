"""One checkpoint's folder in many variants: Hugging Face's score, CrossEncoder's score, or a refusal in one sentence."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor

import mechir as mi
from mechir.errors import MechirError
from tests.models import FAMILIES, TEXTS, Checkpoints, build, tokenizer
from tests.references import cross_encoder, hugging_face

PAIRS = [*TEXTS, ("bread", "The Dog and the [SEP] Bread"), ("what is wifi", "WIFI")]


def settings(file: str, **changes: Any) -> Callable[[Path], None]:
    """Changes keys of a JSON file, which is made where there is none; `None` takes one away."""

    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        content |= changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def tokenizer_config(**changes: Any) -> Callable[[Path], None]:
    return settings("tokenizer_config.json", **changes)


def config(**changes: Any) -> Callable[[Path], None]:
    return settings("config.json", **changes)


def backend(**changes: Any) -> Callable[[Path], None]:
    return settings("tokenizer.json", **changes)


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [change(folder) for change in changes] and None  # type: ignore[func-returns-value]


def write(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def weights(change: Callable[[dict[str, Tensor]], object], file: str = "model.safetensors") -> Callable[[Path], None]:
    """Writes changed weights to `file`."""

    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return rewrite


def shards(stale: bool) -> Callable[[Path], None]:
    """Two shards with an index; where they are stale, other weights lie beside them in one file."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        names = sorted(tensors)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, kept in parts.items():
            save_file({name: tensors[name] for name in kept}, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, kept in parts.items() for name in kept}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        if stale:
            other = {name: value * 1.1 for name, value in tensors.items()}
            save_file(other, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            (folder / "model.safetensors").unlink()

    return change


def rebuilt(**changes: Any) -> Callable[[Path], None]:
    """A model of another make, saved over the first."""

    def change(folder: Path) -> None:
        labels = changes.get("labels", 1)
        model = build("bert", labels=labels)
        if "types" in changes:
            model.bert.embeddings.token_type_embeddings = torch.nn.Embedding(changes["types"], 32)
            model.config.type_vocab_size = changes["types"]
        model.save_pretrained(folder)
        names = changes.get("names")
        if names:
            config(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})(folder)

    return change


def processor(single: str, pair: str) -> Callable[[Path], None]:
    """Another template of special tokens; "" for none."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        template = tokenizer("bert")
        if pair:
            template.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=single, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
            )
        content["post_processor"] = json.loads(template.backend_tokenizer.to_str())["post_processor"] if pair else None
        path.write_text(json.dumps(content))

    return change


MODULE = "sentence_transformers.base.modules.transformer.Transformer"


def saved_cross_encoder(
    path: str = "", prompts: dict[str, Any] | None = None, more: tuple[str, ...] = (), **module: Any
) -> Callable[[Path], None]:
    """The files that sentence-transformers writes, and the model where they say."""

    def change(folder: Path) -> None:
        inner = folder / path
        if path:
            inner.mkdir()
            for file in [file for file in folder.iterdir() if file.is_file()]:
                shutil.move(file, inner / file.name)
        modules = [{"idx": i, "name": str(i), "path": path if not i else f"{i}_X", "type": kind}
                   for i, kind in enumerate((MODULE, *more))]  # fmt: skip
        (folder / "modules.json").write_text(json.dumps(modules))
        (inner / "sentence_bert_config.json").write_text(
            json.dumps({"transformer_task": "sequence-classification"} | module)
        )
        (folder / "config_sentence_transformers.json").write_text(
            json.dumps({"model_type": "CrossEncoder", "prompts": {}} | (prompts or {}))
        )

    return change


def words_alone(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
DROP = {"cls.predictions.bias": torch.zeros(48)}
LORA = {"bert.encoder.layer.0.attention.self.query.lora_A.default.weight": torch.zeros(2, 32)}
SURPLUS_LAYER = {"bert.encoder.layer.3.output.dense.bias": torch.zeros(32)}


class Variant(NamedTuple):
    """A folder's change, and the refusal that it must meet; "" where it must score as the others do."""

    change: Callable[[Path], object]
    refusal: str = ""
    label: int | None = None
    mended: Callable[[Path], object] | None = None
    """What must be undone before the others score it at all."""


def copy_index(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: shutil.move(folder / old, folder / new) and None


# fmt: off
VARIANTS: dict[str, Variant] = {
    "intact": Variant(lambda folder: None),
    # what the tokenizer is told
    "no token types": Variant(tokenizer_config(model_input_names=["input_ids", "attention_mask"])),
    "default input names": Variant(tokenizer_config(model_input_names=...)),
    "another tokenizer class": Variant(tokenizer_config(tokenizer_class="PreTrainedTokenizerFast", model_input_names=...)),
    "maximum length": Variant(tokenizer_config(model_max_length=16)),
    "odd maximum length": Variant(tokenizer_config(model_max_length=13)),
    "maximum length cuts a query": Variant(tokenizer_config(model_max_length=12), "more than half of the 12 that are read"),
    "maximum length below a query": Variant(tokenizer_config(model_max_length=7), "alone fills the model, which reads 7"),
    "no maximum length": Variant(tokenizer_config(model_max_length=...)),
    "maximum length beyond the model": Variant(tokenizer_config(model_max_length=100_000)),
    "a stale max_length": Variant(tokenizer_config(max_length=8, truncation_strategy="only_first", stride=2)),
    "cut on the left": Variant(tokenizer_config(model_max_length=16, truncation_side="left")),
    "padded on the left": Variant(tokenizer_config(padding_side="left"), "pads on the left, where the model reads its score"),
    "no padding token": Variant(tokenizer_config(pad_token=...), "has no padding token"),
    "no attention mask": Variant(tokenizer_config(model_input_names=["input_ids"]), "writes no attention_mask"),
    "padding of type 1": Variant(tokenizer_config(pad_token_type_id=1)),
    "special tokens are split": Variant(tokenizer_config(split_special_tokens=True)),
    "another separator": Variant(tokenizer_config(sep_token="[MASK]")),
    "added tokens": Variant(write("added_tokens.json", b'{"dog": 4}')),
    "special tokens map": Variant(write("special_tokens_map.json", b'{"pad_token": "[MASK]"}')),
    "no special tokens": Variant(processor("", ""), "writes no special token before the query"),
    "no CLS": Variant(processor("$A [SEP]", "$A [SEP] $B:1 [SEP]:1"), "writes no special token before the query"),
    "no separator": Variant(processor("[CLS] $A", "[CLS] $A $B:1"), "no special token between query and document"),
    "no last separator": Variant(processor("[CLS] $A", "[CLS] $A [SEP] $B:1"), "no special token after the document"),
    "another template": Variant(processor("[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B:1 [SEP]:1")),
    "cased": Variant(backend(normalizer=None)),
    "saved truncation and padding": Variant(
        backend(
            truncation={"direction": "Right", "max_length": 6, "strategy": "LongestFirst", "stride": 0},
            padding={"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "[PAD]"},
        )
    ),
    "vocab.txt alone": Variant(words_alone),
    # what the configuration says beside the weights
    "return_dict": Variant(config(return_dict=False)),
    "chunks": Variant(config(chunk_size_feed_forward=4)),
    "flash attention": Variant(
        config(attn_implementation="flash_attention_2"), mended=config(attn_implementation=...)
    ),
    "eager attention": Variant(config(_attn_implementation="eager")),
    "all outputs": Variant(config(output_hidden_states=True, output_attentions=True)),
    "half precision": Variant(config(dtype="float16", torch_dtype="float16")),
    "torchscript": Variant(config(torchscript=True)),
    "problem type": Variant(config(problem_type="regression")),
    "another activation": Variant(config(hidden_act="gelu_new")),
    "another epsilon": Variant(config(layer_norm_eps=1e-3)),
    "another padding id": Variant(config(pad_token_id=4)),
    "a name of the one label": Variant(config(id2label={"0": "relevance"}, label2id={"relevance": 0})),
    # labels
    "two labels": Variant(rebuilt(labels=2)),
    "two named labels": Variant(rebuilt(labels=2, names=["entailment", "not_entailment"]), "say which one is relevance"),
    "the first of two named labels": Variant(rebuilt(labels=2, names=["entailment", "not_entailment"]), "", 0),
    "names in another order": Variant(rebuilt(labels=2, names=["LABEL_1", "LABEL_0"]), "say which one is relevance"),
    "three labels": Variant(rebuilt(labels=3), "has 3 labels and no score until you say which one is relevance"),
    "the second of three labels": Variant(rebuilt(labels=3), "", 1),
    "types beyond the model's": Variant(rebuilt(types=1), r"writes token type 1, but the model embeds 1"),
    "one type and none written": Variant(both(rebuilt(types=1), tokenizer_config(model_input_names=["input_ids", "attention_mask"]))),
    # files beside the weights
    "shards": Variant(shards(stale=False)),
    "a newer single file beside shards": Variant(shards(stale=True)),
    "weights named in the config": Variant(
        both(weights(lambda t: t["classifier.bias"].add_(1), "other.safetensors"), config(transformers_weights="other.safetensors"))
    ),
    "another name": Variant(copy_index("model.safetensors", "weights.safetensors"), "has a name that Hugging Face does not read"),
    "a pickle beside": Variant(write("pytorch_model.bin", b"old")),
    "position ids": Variant(weights(lambda t: t.update({"bert.embeddings.position_ids": torch.arange(64)[None]}))),
    "head of a language model": Variant(weights(lambda t: t.update(DROP))),
    "an adapter's file": Variant(write("adapter_config.json", b"{}"), "holds an adapter .adapter_config.json."),
    "an adapter in the weights": Variant(weights(lambda t: t.update(LORA)), "hold an adapter .*lora_A"),
    "a surplus layer": Variant(weights(lambda t: t.update(SURPLUS_LAYER)), "hold 4 layers .* write 4 there"),
    "a surplus tensor": Variant(weights(lambda t: t.update({"loss.weight": torch.ones(2)})), "no place for .loss.weight, 1 in all"),
    "names of DataParallel": Variant(
        weights(lambda t: [t.update({f"module.{name}": t.pop(name)}) for name in list(t)]), "as DataParallel wraps a model"
    ),
    "a pointer for weights": Variant(write("model.safetensors", LFS), "is a pointer of Git LFS"),
    "a pointer for the tokenizer": Variant(write("tokenizer.json", LFS), "is a pointer of Git LFS"),
    "a pointer for the config": Variant(write("config.json", LFS), "is a pointer of Git LFS"),
    "an empty file of weights": Variant(write("model.safetensors", b""), "is empty: download it again"),
    "a web page for weights": Variant(write("model.safetensors", b"<!DOCTYPE html><html>"), "is a web page"),
    "a cut config": Variant(lambda f: write("config.json", (f / "config.json").read_bytes()[:90])(f), "is no whole JSON"),
    "a cut tokenizer": Variant(lambda f: write("tokenizer.json", (f / "tokenizer.json").read_bytes()[:900])(f), "is no whole JSON"),
    "a list for a config": Variant(write("config.json", b"[]"), "holds no JSON object but a list"),
    "a byte order mark": Variant(lambda f: write("config.json", b"\xef\xbb\xbf" + (f / "config.json").read_bytes())(f), "byte order mark .UTF-8."),
    "a byte order mark in the tokenizer": Variant(
        lambda f: write("tokenizer_config.json", b"\xef\xbb\xbf" + (f / "tokenizer_config.json").read_bytes())(f), "byte order mark"
    ),
    "a byte order mark in the vocabulary": Variant(
        both(words_alone, lambda f: write("vocab.txt", b"\xef\xbb\xbf" + (f / "vocab.txt").read_bytes())(f)), "byte order mark"
    ),
    "a cut index": Variant(both(shards(stale=False), write("model.safetensors.index.json", b'{"weight')), "is no whole JSON"),
    # what sentence-transformers saves
    "a saved cross-encoder": Variant(saved_cross_encoder()),
    "its maximum length": Variant(saved_cross_encoder(max_seq_length=16)),
    "its maximum length beyond the model": Variant(saved_cross_encoder(max_seq_length=600)),
    "its tokenizer's maximum length": Variant(saved_cross_encoder(tokenizer_args={"model_max_length": 16})),
    "its lower case": Variant(both(backend(normalizer=None), saved_cross_encoder(do_lower_case=True))),
    "in a folder of its own": Variant(saved_cross_encoder(path="0_Transformer", max_seq_length=16)),
    "prompts without a default": Variant(saved_cross_encoder(prompts={"prompts": {"q": "the "}})),
    "a default prompt": Variant(
        saved_cross_encoder(prompts={"prompts": {"q": "the "}, "default_prompt_name": "q"}), "has the default prompt 'the '"
    ),
    "an identity": Variant(saved_cross_encoder(prompts={"activation_fn": "torch.nn.modules.linear.Identity"})),
    "another module": Variant(
        saved_cross_encoder(more=("sentence_transformers.base.modules.dense.Dense",)), "is made of Transformer, Dense"
    ),
    "another setting": Variant(saved_cross_encoder(processing_kwargs={"text": {"max_length": 9}}), "has processing_kwargs="),
    "settings of another kind of model": Variant(
        saved_cross_encoder(prompts={"model_type": "SentenceTransformer"}, max_seq_length=9, do_lower_case=True)
    ),
    "settings of no kind of model": Variant(
        both(saved_cross_encoder(max_seq_length=9), lambda f: (f / "config_sentence_transformers.json").unlink())
    ),
    "settings without modules": Variant(write("sentence_bert_config.json", b'{"max_seq_length": 9, "do_lower_case": true}')),
}
# fmt: on


def outcome(score: Callable[..., Tensor], folder: Path, label: int | None) -> Tensor | None:
    """The scores, or None where the reference fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return score(folder, PAIRS, label)
        except Exception:
            return None


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_scores_as_the_others_do_or_is_refused(checkpoints: Checkpoints, tmp_path: Path, name: str) -> None:
    change, refusal, label, mended = VARIANTS[name]
    folder = Path(shutil.copytree(checkpoints.path("bert"), tmp_path / "model"))
    change(folder)
    if refusal:
        with pytest.raises(MechirError, match=refusal) as raised:
            mi.load(folder, relevant_label=label).score(PAIRS)
        assert "\n" not in str(raised.value)
        return
    model = mi.load(folder, relevant_label=label)
    scores = model.score(PAIRS)
    if mended is not None:
        mended(folder)
    theirs, ours = outcome(hugging_face, folder, label), outcome(cross_encoder, folder, label)
    references = [one for one in (ours, theirs) if one is not None]
    assert references, "neither reference scores this variant"
    torch.testing.assert_close(scores, references[0], atol=2e-5, rtol=1e-5)
    if not model.reading.settings and theirs is not None:
        torch.testing.assert_close(scores, theirs, atol=2e-5, rtol=1e-5)
    assert model.certify([mi.Pair(*texts) for texts in PAIRS])["input"] == 0


def test_most_variants_are_scored() -> None:
    assert len(VARIANTS) >= 40
    assert sum(not variant.refusal for variant in VARIANTS.values()) >= 35


OF_EACH_FAMILY = ("intact", "maximum length", "cut on the left", "padding of type 1", "return_dict", "position ids")


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_as_hugging_face_reads_it(
    checkpoints: Checkpoints, tmp_path: Path, family: str, name: str
) -> None:
    folder = Path(shutil.copytree(checkpoints.path(family), tmp_path / "model"))
    VARIANTS[name].change(folder)
    theirs = outcome(hugging_face, folder, None)
    assert theirs is not None
    torch.testing.assert_close(mi.load(folder).score(PAIRS), theirs, atol=2e-5, rtol=1e-5)
