"""The tokenizer of a checkpoint, as Hugging Face loads it, and the properties that a cross-encoder needs of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tokenizers.normalizers import Lowercase, Sequence

from mechir.encoder.checkpoint import VOCABULARIES, quiet, refuse_unreadable_settings
from mechir.encoding import segments_of, write
from mechir.errors import MechirError, brief
from mechir.pair import Pair
from mechir.parts import Embeddings
from mechir.segments import Segment


def load_tokenizer(folder: Path, *, lower_case: bool = False, max_length: int | None = None) -> Any:
    """Loads the tokenizer of a checkpoint by `AutoTokenizer`, or as an uncased BERT's where there is only a vocab.txt.

    `lower_case` lowers texts first, whatever the tokenizer itself does; `max_length` replaces its limit of word pieces.
    Raises when there is none, when it needs a package that is not installed, or when it cannot be built.
    """
    refuse_unreadable_settings(folder)
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        raise MechirError(f"'{folder}' holds no tokenizer: add tokenizer.json, or vocab.txt of a BERT model.")
    more = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "bpe.codes")
    only_words = (folder / "vocab.txt").is_file() and not any((folder / name).is_file() for name in more)
    tokenizer = _word_piece(folder) if only_words else _automatic(folder)
    if getattr(tokenizer, "demojizer", tokenizer) is None:
        raise MechirError(f"The tokenizer of '{folder}' needs the package 'emoji': run `pip install emoji`.")
    if lower_case:
        _lower(tokenizer, folder)
    if max_length is not None:
        tokenizer.model_max_length = max_length
    if tokenizer.is_fast and json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("dropout"):
        raise MechirError(
            f"The tokenizer of '{folder}' drops merges at random (dropout in tokenizer.json), so that no score comes "
            "twice: set it to null."
        )
    return tokenizer


def _automatic(folder: Path) -> Any:
    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except ImportError as error:
        raise MechirError(
            f"The tokenizer of '{folder}' needs a package that is not installed ({brief(error)}): install it with pip."
        ) from error
    except Exception as error:
        raise MechirError(
            f"Hugging Face cannot build the tokenizer of '{folder}' ({type(error).__name__}: {brief(error)}): "
            "download its files again, or add its tokenizer.json."
        ) from error


def _word_piece(folder: Path) -> Any:
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    if any(word != word.lower() for word in words if not word.startswith("[")):
        raise MechirError(
            f"'{folder}' has only a vocab.txt, and it is cased: add tokenizer_config.json that says do_lower_case."
        )
    with quiet():
        return transformers.BertTokenizer.from_pretrained(folder)


def _lower(tokenizer: Any, folder: Path) -> None:
    """Makes the tokenizer lower texts before anything else, as sentence-transformers does for `do_lower_case`."""
    if not tokenizer.is_fast:
        raise MechirError(
            f"'{folder}' asks for do_lower_case of a tokenizer that is not a fast one: add tokenizer.json."
        )
    backend = tokenizer.backend_tokenizer
    normalizer = backend.normalizer
    if normalizer is None:
        backend.normalizer = Lowercase()
    elif normalizer.normalize_str("A") != "a":
        backend.normalizer = Sequence([Lowercase(), normalizer])


def refuse_unfit(tokenizer: Any, embeddings: Embeddings, name: str) -> None:
    """Raises for a tokenizer with which Hugging Face cannot score, or scores depend on the batch that a pair is in."""
    n = embeddings.word.num_embeddings
    if len(tokenizer) > n:
        raise MechirError(
            f"The tokenizer of '{name}' has {len(tokenizer)} word pieces, but the model embeds {n}: they do not belong "
            "together."
        )
    if tokenizer.pad_token_id is None:
        raise MechirError(f"The tokenizer of '{name}' has no padding token: name it as pad_token in its settings.")
    if "attention_mask" not in tokenizer.model_input_names:
        raise MechirError(
            f"The tokenizer of '{name}' writes no attention_mask (model_input_names), so a score would depend on the "
            "padding beside it: add it there."
        )
    if tokenizer.padding_side == "left":  # padding would move a text's positions, and the head would read it
        raise MechirError(
            f"The tokenizer of '{name}' pads on the left, where the model reads its score: set padding_side to right."
        )
    (probe,) = write(tokenizer, [Pair("a", "a")], 1_000_000)  # its special tokens and types
    if not np.isin([Segment.QUERY.value, Segment.DOC.value], probe.segments).all():
        return  # 'a' is no word piece here: the segments of every pair are checked when it is encoded
    segments_of(probe.segments, name)
    types = embeddings.token_type
    if types is not None and max(probe.types.max(), tokenizer.pad_token_type_id) >= types.num_embeddings:
        raise MechirError(
            f"The tokenizer of '{name}' writes token type {probe.types.max()}, but the model embeds "
            f"{types.num_embeddings} (type_vocab_size): take token_type_ids out of the tokenizer's model_input_names."
        )
