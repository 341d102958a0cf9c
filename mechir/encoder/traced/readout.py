"""The ways in which models make logits of relevance: a classifier, a chain of modules, the next word, a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch
from mechir.errors import MechirError

Reads = Literal["cls", "mean", "last", "decoder"]


@dataclass(frozen=True)
class Classifier:
    """A `*ForSequenceClassification`; `typed` says whether it is given token types."""

    labels: tuple[str, ...]
    reads: Reads
    typed: bool = False

    def arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Ids and mask by keyword, and token types where they count."""
        return (), _features(batch, self.typed)

    def logits(self, output: Any, batch: Batch) -> Float[Tensor, "batch label"]:
        """The logits, as they are; raises for those of another model."""
        logits: Tensor = output.logits
        if logits.shape != (len(batch), len(self.labels)):
            raise MechirError(
                f"Logits of shape {tuple(logits.shape)} came out of the trace, where {(len(batch), len(self.labels))} "
                "are expected: nnsight opened another model than it was given, so report it with its config.json."
            )
        return logits

    def original(self, root: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch label"]:
        """The logits on these arguments."""
        logits: Tensor = root(**features).logits
        return logits


@dataclass(frozen=True)
class Chain:
    """A module chain of sentence-transformers, whose last module writes scores."""

    labels: tuple[str, ...]
    reads: Reads
    typed: bool = False

    def arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The features, one mapping."""
        return (_features(batch, self.typed),), {}

    def logits(self, output: Any, batch: Batch) -> Float[Tensor, "batch label"]:
        """The scores."""
        scores: Tensor = output["scores"]
        return scores

    def original(self, root: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch label"]:
        """The scores of these features."""
        scores: Tensor = root(dict(features))["scores"]
        return scores


@dataclass(frozen=True)
class NextWord:
    """A causal language model: the logits of some words after the last token of the text, such as (no, yes)."""

    labels: tuple[str, ...]
    words: tuple[int, ...]
    reads: Reads = "last"
    typed: bool = False

    def arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Ids and mask; logits are computed at the last tokens of the texts alone."""
        return (), _features(batch, False) | {"use_cache": False, "logits_to_keep": _ends(batch).unique()}

    def logits(self, output: Any, batch: Batch) -> Float[Tensor, "batch word"]:
        """The logits of the words, each text's at its own end."""
        ends = _ends(batch)
        place = torch.searchsorted(ends.unique(), ends)
        rows: Tensor = output.logits[torch.arange(len(batch), device=ends.device), place]
        return rows[:, list(self.words)]

    def original(self, root: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch word"]:
        """The logits at the last position of texts that are padded on the left."""
        logits: Tensor = root(**features, logits_to_keep=1).logits
        return logits[:, -1, list(self.words)]


@dataclass(frozen=True)
class FirstWord:
    """An encoder-decoder: the logits of some words at the first step of the decoder, such as (false, true).

    `start` is the id with which the decoder begins.
    """

    labels: tuple[str, ...]
    words: tuple[int, ...]
    start: int
    reads: Reads = "decoder"
    typed: bool = False

    def arguments(self, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Ids and mask of the encoder, and one position of the decoder."""
        return (), self._step(_features(batch, False))

    def logits(self, output: Any, batch: Batch) -> Float[Tensor, "batch word"]:
        """The logits of the words at the one step."""
        logits: Tensor = output.logits
        return logits[:, 0, list(self.words)]

    def original(self, root: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch word"]:
        """The logits of the words on these arguments of the encoder."""
        logits: Tensor = root(**self._step(features)).logits
        return logits[:, 0, list(self.words)]

    def _step(self, features: Mapping[str, Tensor]) -> dict[str, Any]:
        start = torch.full_like(features["input_ids"][:, :1], self.start)
        return {**features, "decoder_input_ids": start, "use_cache": False}


Readout = Classifier | Chain | NextWord | FirstWord
"""The way from a batch to a model's arguments, and from its output to logits.

`labels` are the names of the logits, `reads` the rows of the last layer that they are made of; `typed` says whether the
model is given token types.
"""


def _features(batch: Batch, typed: bool) -> dict[str, Any]:
    features = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    return features | ({"token_type_ids": batch.token_type_ids} if typed else {})


def _ends(batch: Batch) -> Tensor:
    """The place of the last token of each text."""
    return batch.attention_mask.sum(1) - 1
