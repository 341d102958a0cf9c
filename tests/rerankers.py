"""Tiny random rerankers of every structure: 3 layers, 4 heads, weights N(0, 0.3) so that effects are visible."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as backends
from transformers import PreTrainedTokenizerFast

from tests import models

COMMON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
DECODERS = {
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "llama": transformers.LlamaConfig,
    "gemma2": transformers.Gemma2Config,
}
STRUCTURES = ("modernbert", "deberta-v2", *DECODERS)


def config(kind: str, labels: int = 1, **more: Any) -> transformers.PretrainedConfig:
    """The configuration of a tiny classifier."""
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    common = COMMON | {"vocab_size": len(models.WORDS) + 5, "max_position_embeddings": 64, "pad_token_id": 0}
    common |= {"num_labels": labels, **more}
    if kind == "modernbert":
        return transformers.ModernBertConfig(**common | special, local_attention=8, global_attn_every_n_layers=3)
    if kind == "deberta-v2":
        relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
        relative |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "max_relative_positions": -1}
        return transformers.DebertaV2Config(**common, **relative, type_vocab_size=0, position_biased_input=False)
    heads = {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": None, "eos_token_id": None}
    if kind == "gemma2":
        heads |= {"query_pre_attn_scalar": 8, "sliding_window": 8}
    return DECODERS[kind](**heads | common)


GENERATORS = {"t5": transformers.T5Config, "mt5": transformers.MT5Config}
SPECIAL = ("<pad>", "</s>", "<unk>")


@cache
def t5_words(*answers: str) -> PreTrainedTokenizerFast:
    """The words of the tests as T5's pieces, a space before each, and `</s>` behind a text."""
    words = [
        "Query:",
        "Document:",
        "Relevant:",
        *(word for word in models.WORDS if not word.startswith("##")),
        *answers,
    ]
    pieces = [*SPECIAL, *("\u2581" + word for word in words)]
    backend = Tokenizer(backends.WordLevel({piece: at for at, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of its own for each model, with monoT5's two answers."""
    return copy.deepcopy(t5_words("false", "true"))


def generator(kind: str = "t5", **more: Any) -> transformers.PreTrainedModel:
    """A tiny T5 with random weights: 3 layers that read, 2 that write; mT5's MLPs are gated."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
    sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "pad_token_id": 0}
    sizes |= {"vocab_size": len(t5_tokenizer()), "decoder_start_token_id": 0, "eos_token_id": 1, **more}
    torch.manual_seed(0)
    return randomised(transformers.AutoModelForSeq2SeqLM.from_config(GENERATORS[kind](**sizes)))


def build(kind: str, labels: int = 1, seed: int = 0, **more: Any) -> transformers.PreTrainedModel:
    """A classifier of the real class with random weights."""
    torch.manual_seed(seed)
    hf = transformers.AutoModelForSequenceClassification.from_config(config(kind, labels, **more))
    return randomised(hf)


def randomised(hf: Any) -> Any:
    """The model in eval mode, every weight drawn from N(0, 0.3); norms stay near 1."""
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.1 if norm else 0.3)
            if name.endswith(".q.weight"):  # T5 does not scale its scores: its queries are small
                parameter.mul_(8**-0.5)
    return hf.eval()
