"""T5 as a reranker (monoT5): a prompt, one step of the decoder, and the attention of the decoder to the encoder."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as backends
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import mechir as mi
from mechir.encoder.traced.model import TracedReranker
from tests import rerankers
from tests.models import PAIRS, WORDS

SPECIAL = ("<pad>", "</s>", "<unk>")


@cache
def word_pieces(*answers: str) -> PreTrainedTokenizerFast:
    """Words of the tests with T5's space before each, and `</s>` behind a text."""
    words = ["Query:", "Document:", "Relevant:", *(word for word in WORDS if not word.startswith("##"))]
    listed = [*SPECIAL, *("\u2581" + word for word in words), *("\u2581" + word for word in answers)]
    backend = Tokenizer(backends.WordLevel({word: at for at, word in enumerate(listed)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)


def tokenizer() -> PreTrainedTokenizerFast:
    return word_pieces("false", "true")


def build(kind: str = "t5", dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """A tiny T5 with random weights."""
    torch.manual_seed(0)
    shape = rerankers.generator(kind, vocab_size=len(tokenizer()), **more)
    return rerankers.randomised(transformers.AutoModelForSeq2SeqLM.from_config(shape)).to(dtype)


def opened(kind: str = "t5", dtype: torch.dtype = torch.float32, **options: Any) -> TracedReranker:
    model = mi.load(build(kind, dtype), tokenizer(), **options)
    assert isinstance(model, TracedReranker)
    return model
