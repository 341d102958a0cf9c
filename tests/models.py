"""Tiny random models of the real families: 3 layers, 4 heads, weights N(0, 0.3) so that effects are visible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mechir.pair import Pair

TOY, TOY_MODEL = (Path(__file__).parent / "data" / name for name in ("toy", "toy-model"))
"""A collection of 6 queries x 12 documents and a random model of 2 layers, made by data/make_toy.py."""

WORDS = [
    *("a", "the", "of", "in", "to", "and", "is", "how", "do", "does", "what", "why", "goldfish", "grow", "water"),
    *("tank", "wifi", "bluetooth", "signal", "radio", "ocean", "wave", "moon", "tide", "pull", "bread", "flour"),
    *("yeast", "rise", "oven", "heat", "cold", "river", "stone", "bridge", "build", "tall", "grass", "dog", "cat"),
    *("##s", "##ing", "##er"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

TEXTS = [
    ("how do goldfish grow", "a goldfish grows in the water of a tall tank and a cold river"),
    ("what is wifi", "wifi is a radio signal"),
    (
        "why does the ocean rise",
        "the moon pulls the ocean and the tide rises in the heat of the stone bridge and grass",
    ),
    ("bread", "bread rises"),
    ("how do goldfish grow", "flour and yeast rise in the oven"),
    (
        "what is wifi",
        "bluetooth is a radio wave and the signal is cold and the dog and the cat do build a bridge to water",
    ),
    ("why does the ocean rise", "a dog"),
    ("bread", "the oven is tall and the bread and the flour and the yeast heat"),
]
PAIRS = [Pair(query, document, f"q{i % 4}", f"d{i}", i % 3) for i, (query, document) in enumerate(TEXTS)]

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
FAMILIES = ("bert", "electra", "roberta", "xlm-roberta", "camembert", "distilbert")


def config(family: str, act: str, labels: int) -> transformers.PretrainedConfig:
    """The configuration of a tiny model."""
    n_words = len(WORDS) + 5
    common = SMALL | {"vocab_size": n_words, "hidden_act": act, "num_labels": labels, "max_position_embeddings": 64}
    if family == "bert":
        return transformers.BertConfig(**common)
    if family == "electra":
        return transformers.ElectraConfig(**common, embedding_size=16)
    if family == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=n_words, dim=32, n_layers=3, n_heads=4, hidden_dim=48, activation=act, num_labels=labels,
            max_position_embeddings=64,
        )  # fmt: skip
    kind = {
        "roberta": transformers.RobertaConfig,
        "xlm-roberta": transformers.XLMRobertaConfig,
        "camembert": transformers.CamembertConfig,
    }[family]
    return kind(**common, pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1)


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A word-piece tokenizer with the special tokens and the pair template of the family."""
    roberta = family in ("roberta", "xlm-roberta", "camembert")
    words = (ROBERTA_SPECIAL if roberta else SPECIAL) + WORDS
    cls, sep, pad, unk = ("<s>", "</s>", "<pad>", "<unk>") if roberta else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token=unk))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} {sep} $B {sep}" if roberta else f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, words.index(cls)), (sep, words.index(sep))],
    )
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if family in ("bert", "electra") else [])]
    special = {"cls_token": cls, "sep_token": sep, "pad_token": pad, "unk_token": unk}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=62 if roberta else 64, model_input_names=inputs, **special
    )


def build(family: str, act: str = "gelu", labels: int = 1, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model: matrices N(0, 0.3), biases N(0, 0.1), LayerNorms around 1."""
    shape = config(family, act, labels)
    model = transformers.AutoModelForSequenceClassification.from_config(shape).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if norm else (0.3 if parameter.ndim > 1 else 0.1) * noise)
    return model


def stub(tier: type, **attributes: Any) -> Any:
    """A model of this tier (`mechir.reranker`) that has these attributes and nothing else."""

    def missing(self: Any) -> Any:
        raise AttributeError("A stub has what it was given.")

    asked = (name for kind in tier.__mro__ for name, value in vars(kind).items() if isinstance(value, property))
    return type("Stub", (tier,), dict.fromkeys(asked, property(missing)) | attributes)()


class Checkpoints:
    """Directories as Hugging Face writes them, made once each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, family: str, act: str = "gelu", labels: int = 1) -> Path:
        """The directory of a tiny model."""
        folder = self.folder / f"{family}-{act}-{labels}"
        if not folder.is_dir():
            build(family, act, labels).save_pretrained(folder)
            tokenizer(family).save_pretrained(folder)
        return folder

    def monobert_layout(self) -> Path:
        """The layout of MonoBERT-large on the hub: one pickle, a config of 11 keys, vocab.txt only."""
        folder = self.folder / "monobert"
        if not folder.is_dir():
            folder.mkdir()
            model = build("bert", labels=2)
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
            keys = (
                "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range",
                "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
                "type_vocab_size", "vocab_size",
            )  # fmt: skip
            kept = {key: getattr(model.config, key) for key in keys}
            (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
            (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n", encoding="utf-8")
        return folder


def nine_queries(folder: Path, n: int = 9) -> Path:
    """The toy's texts as nine queries with documents of four grades: what the longest chain takes."""
    folder.mkdir()
    docs = (TOY / "docs.tsv").read_text().splitlines()
    queries = [line.split("\t")[1] for line in (TOY / "queries.tsv").read_text().splitlines()]
    (folder / "queries.tsv").write_text("".join(f"q{k}\t{queries[k % 6]}\n" for k in range(n)))
    (folder / "docs.tsv").write_text("\n".join(docs) + "\n")
    ids = [line.split("\t")[0] for line in docs]
    judged = [(k, ids[4 * k + grade], grade) for k in range(n) for grade in range(4)]
    (folder / "qrels.txt").write_text("".join(f"q{k} 0 {name} {grade}\n" for k, name, grade in judged))
    return folder
