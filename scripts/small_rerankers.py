"""Small random rerankers of every structure, as directories that `mi.load` opens: for documentation and tests.

Run: python scripts/small_rerankers.py FOLDER

Each has 3 layers, 4 heads and a stream of 32, its weights are drawn at random, and it knows nothing of relevance. BERT,
ModernBERT and DeBERTa have the tokenizer of the embedded model; the decoders have byte-level word pieces that are
learned from the embedded collection, Qwen3 with the prompt of Qwen3-Reranker as its chat template; T5 has pieces of
words, learned from the same texts.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import mechir as mi

STRUCTURES = ("bert", "modernbert", "deberta", "qwen3", "llama", "t5")
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
SHAPE |= {"max_position_embeddings": 512, "num_labels": 1}
PIECES, LENGTH = 2000, 400
"""Word pieces of the decoders, and the most of them in a text."""
CHAT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: '
    "{{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first"
    " | default('Given a web search query, retrieve relevant passages that answer the query') }}\n"
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n\n"  # Jinja takes one line break off the end
)
"""The prompt of Qwen3-Reranker as a chat template with the roles query and document."""


def write(folder: str | Path, *kinds: str) -> dict[str, Path]:
    """Writes the rerankers of these structures, by default all, and returns their directories by structure."""
    folders = {kind: Path(folder) / kind for kind in kinds or STRUCTURES}
    for kind, target in folders.items():
        tokenizer = pieces(kind)
        build(kind, tokenizer).save_pretrained(target)
        tokenizer.save_pretrained(target)
    return folders


def build(kind: str, tokenizer: Any) -> Any:
    """A reranker in memory: weights N(0, 0.2), those of norms around 1."""
    shape = config(kind, len(tokenizer), tokenizer.pad_token_id)
    tasks = {"qwen3": transformers.AutoModelForCausalLM, "t5": transformers.AutoModelForSeq2SeqLM}
    task = tasks.get(kind, transformers.AutoModelForSequenceClassification)
    hf, draw = task.from_config(shape).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if norm else 0.2 * noise)
            if name.endswith(".q.weight"):  # T5 does not divide its scores: its queries are small
                parameter.mul_(8**-0.5)
    return hf


def config(kind: str, n_pieces: int, pad: int) -> Any:
    """The configuration of a structure."""
    shape = SHAPE | {"vocab_size": n_pieces, "pad_token_id": pad}
    nothing = dict.fromkeys(("bos_token_id", "eos_token_id"))
    if kind == "bert":
        return transformers.BertConfig(**shape)
    if kind == "modernbert":
        special = nothing | dict.fromkeys(("cls_token_id", "sep_token_id"))
        return transformers.ModernBertConfig(**shape, **special, local_attention=16, global_attn_every_n_layers=3)
    if kind == "deberta":
        relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
        relative |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "max_relative_positions": -1}
        return transformers.DebertaV2Config(**shape, **relative, type_vocab_size=0, position_biased_input=False)
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
        sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
        ids = {"vocab_size": n_pieces, "pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 1}
        return transformers.T5Config(**sizes, **ids)
    decoder = {"qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}[kind]
    return decoder(**shape, **nothing, num_key_value_heads=2, head_dim=8)


def pieces(kind: str) -> Any:
    """The tokenizer of a structure."""
    if kind in ("bert", "modernbert", "deberta"):
        return mi.load().tokenizer
    if kind == "t5":
        return of_words()
    tokenizer = byte_level()
    if kind == "qwen3":
        tokenizer.chat_template = CHAT
    else:
        names = ("<|cls|>", "<|sep|>")
        special = list(zip(names, tokenizer.convert_tokens_to_ids(list(names)), strict=True))
        pair = "<|cls|> $A <|sep|> $B <|sep|>"
        written = processors.TemplateProcessing(single="<|cls|> $A <|sep|>", pair=pair, special_tokens=special)
        tokenizer.backend_tokenizer.post_processor = written
    return tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level word pieces as of Qwen and Llama, learned from the embedded collection."""
    special = {"pad_token": "<|endoftext|>", "cls_token": "<|cls|>", "sep_token": "<|sep|>"}
    inputs = ["input_ids", "attention_mask"]
    backend = Tokenizer.from_str(_learned())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=LENGTH, model_input_names=inputs, **special
    )
    turns = [AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_tokens([*turns, "<think>", "</think>"])
    return tokenizer


def of_words() -> PreTrainedTokenizerFast:
    """Pieces of words as of T5, a space before each word and `</s>` behind a text, learned from the same collection."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=[*special.values()], show_progress=False)
    backend.train_from_iterator([*_texts(), *["Query: Document: Relevant: false true"] * 99], trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LENGTH, **special)


@cache
def _learned() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*_texts(), CHAT, *["yes no"] * 9], trainer)
    return backend.to_str()


def _texts() -> list[str]:
    pairs = mi.collection("embedded").pairs(per_grade=2, easy_negatives=0)
    return [*dict.fromkeys(text for pair in pairs for text in (pair.query, pair.document))]


def main() -> None:
    """Writes all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for folder in write(parser.parse_args().folder).values():
        print(folder)


if __name__ == "__main__":
    main()
