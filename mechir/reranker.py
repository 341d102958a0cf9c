"""The contract of a model: three tiers of protocols, and the structure that the arithmetic of a method relies on.

A method states its needs in one line, `needs(model, "path_patch", Weights, norm="post")`. Any other model is refused
before anything is computed: on another structure the numbers would be wrong, not missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechir.batches import Batch, progress_bar
from mechir.encoding import Encoded
from mechir.errors import MechirError
from mechir.hooks import Edit, Hook
from mechir.parts import Dimensions, Layer, Parts, Structure


@runtime_checkable
class Reranker(Protocol):
    """A model that batches and scores pairs, and whose activations are read and edited by hook name.

    `fingerprint` names the model; `max_length` counts the word pieces of a pair that it reads. A class that
    derives from a tier inherits what follows from the rest, such as `batches`.
    """

    cfg: Dimensions
    structure: Structure
    fingerprint: str
    tokenizer: Any
    max_length: int

    @property
    def writer(self) -> Any:
        """What writes pairs for it as token ids: its tokenizer, or a `Writer` such as that of a prompt."""
        return self.tokenizer

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""

    @property
    def dtype(self) -> torch.dtype:
        """The number type it computes in."""

    @property
    def max_tokens(self) -> int:
        """The number of word pieces that are computed together by default."""

    def __call__(
        self, inputs: Any, *, return_type: str = "score", stop_at_layer: int | None = None, head_row: bool | None = None
    ) -> Float[Tensor, "..."]:
        """The scores [batch] of the inputs, or the residual stream that layer `stop_at_layer` reads.

        `head_row`: True computes in the last layer only what the head reads, where that is the first row alone; False
        computes all rows; None all rows where something in that layer is hooked.
        """

    def encode(self, pairs: Any, max_length: int | None = None) -> Encoded:
        """The pairs as token ids."""

    def batch(self, inputs: Any) -> Batch:
        """One padded batch of the inputs, in their order, on the model's device."""
        if not isinstance(inputs, Batch):
            encoded = self.encode(inputs)
            inputs = encoded.batch(range(len(encoded)))
        return inputs.to(self.device)

    def batches(
        self,
        pairs: Any,
        *,
        max_rows: int = 64,
        max_tokens: int | None = None,
        max_length: int | None = None,
        progress: bool | None = False,
    ) -> Iterator[tuple[np.ndarray, Batch]]:
        """Batches of pairs of like length, longest first, on the model's device, each with the index of its rows.

        Args:
            pairs: as in `encode`, or its result.
            max_rows: the most pairs computed together.
            max_tokens: the most word pieces computed together; by default `max_tokens` of the model.
            max_length: word pieces kept of a pair.
            progress: a bar with the time left; None: on a terminal, for work over two seconds.
        """
        encoded = pairs if isinstance(pairs, Encoded) else self.encode(pairs, max_length)
        with progress_bar(len(encoded), progress) as bar:
            for index, batch in encoded.buckets(max_rows, self.max_tokens if max_tokens is None else max_tokens):
                yield index, batch.to(self.device)
                bar.update(len(batch))

    def allowed(self, batch: Batch) -> Bool[Tensor, "batch 1 1 pos"] | None:
        """True at sources that are no padding; None where a batch has no padding."""
        return None if bool(batch.attention_mask.all()) else batch.attention_mask[:, None, None, :]

    def score(
        self,
        pairs: Any,
        do: Any = (),
        *,
        readout: str = "score",
        max_rows: int = 256,
        max_tokens: int | None = None,
        max_length: int | None = None,
        progress: bool | None = None,
    ) -> Float[Tensor, "pair"]:
        """The relevance score of each pair under the intervention(s) `do`, in input order, on the CPU."""

    def resolve(self, hooks: Sequence[Hook]) -> list[tuple[str, Edit]]:
        """The hooks by name, one for each name that a filter matches; refuses names that the model lacks."""

    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = ()) -> AbstractContextManager[Any]:
        """The context in which these hooks read and edit activations."""

    def run_with_cache(self, *inputs: Any, names_filter: Any = None, **options: Any) -> tuple[Tensor, Any]:
        """The output and the activations of every hook point, or of those that `names_filter` selects."""

    def certify(self, pairs: Any) -> dict[str, Any]:
        """The largest differences from the original implementation on these pairs."""

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_embed"]:
        """The word embeddings, as they enter the model: before positions, segments and LayerNorm are applied."""


@runtime_checkable
class Turns(Reranker, Protocol):
    """A model that may turn queries and keys by their positions."""

    def QK_at(self, distance: int) -> Any:
        """W_QK [layer, head, d_model, d_model] between a position and the one `distance` before it, as its factors."""


@runtime_checkable
class Resumes(Reranker, Protocol):
    """A model that goes on from any layer of a run that was made before, as patches and ablations do."""

    def begun(self, batch: Batch) -> Any:
        """One run of a batch, to go on from."""

    def resumed(self, batch: Batch, begun: Any, layer: int) -> Float[Tensor, "batch"]:
        """The scores of the batch; what lies below `layer` is taken from the run that was begun."""


@runtime_checkable
class Restarts(Reranker, Protocol):
    """A model that starts at any layer, as sweeps and patches do. A layer reads, then writes; the head comes last."""

    def embedded(self, batch: Batch) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that layer 0 reads."""

    def run_read(
        self, layer: int, resid: Tensor, allowed: Tensor | None, *, head_row: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The first half of a layer: the stream's rows that are computed, and what the heads read for them (z)."""

    def run_write(self, layer: int, rows: Tensor, z: Tensor) -> Tensor:
        """The second half of a layer: the residual stream after it."""

    def run_block(self, layer: int, resid: Tensor, allowed: Tensor | None, **plan: bool) -> Tensor:
        """The residual stream after one layer; `plan` as in `run_read`."""
        return self.run_write(layer, *self.run_read(layer, resid, allowed, **plan))

    def run_head(self, resid: Float[Tensor, "batch row d_model"]) -> Float[Tensor, "batch"]:
        """The score that the head reads from a residual stream."""


@runtime_checkable
class Weights(Restarts, Protocol):
    """A model whose weights may be read, under TransformerLens's names; `hf` is the model that saves them."""

    parts: Parts
    hf: Any

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_embed"]:
        """The word embeddings, as they enter the model: before positions, segments and LayerNorm are applied."""
        return self.parts.embeddings.word.weight

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """The weights of the queries: q = x W_Q + b_Q."""
        return _per_head(self.parts.layers, self.cfg.n_heads, "q", "weight").transpose(-1, -2)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """The weights of the keys: k = x W_K + b_K."""
        return _per_head(self.parts.layers, self.cfg.n_heads, "k", "weight").transpose(-1, -2)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the queries."""
        return _per_head(self.parts.layers, self.cfg.n_heads, "q", "bias")

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the keys."""
        return _per_head(self.parts.layers, self.cfg.n_heads, "k", "bias")

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """The weights of the values: v = x W_V + b_V."""
        return _per_head(self.parts.layers, self.cfg.n_heads, "v", "weight").transpose(-1, -2)

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the values."""
        return _per_head(self.parts.layers, self.cfg.n_heads, "v", "bias")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """The weights of the output: what a head adds is z W_O."""
        weights = torch.stack([layer.o.weight.T for layer in self.parts.layers])
        return weights.unflatten(1, (self.cfg.n_heads, -1))

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """The biases of the output, one for all heads of a layer."""
        return torch.stack([layer.o.bias for layer in self.parts.layers])

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """The weights into the neurons."""
        return torch.stack([layer.mlp_in.weight.T for layer in self.parts.layers])

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """The biases of the neurons."""
        return torch.stack([layer.mlp_in.bias for layer in self.parts.layers])

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """The weights out of the neurons."""
        return torch.stack([layer.mlp_out.weight.T for layer in self.parts.layers])

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """The biases of the MLPs' output."""
        return torch.stack([layer.mlp_out.bias for layer in self.parts.layers])

    @property
    def W_pos(self) -> Float[Tensor, "position d_embed"]:
        """The embeddings of positions as stored: of RoBERTa the rows below `pad_token_id + 1` are no positions."""
        return self.parts.embeddings.position.weight

    @property
    def W_QK(self) -> Any:
        """W_Q W_K^T [layer, head, d_model, d_model] as its factors."""


def _per_head(layers: Sequence[Layer], n_heads: int, part: str, kind: str) -> Tensor:
    return torch.stack([getattr(getattr(layer, part), kind) for layer in layers]).unflatten(1, (n_heads, -1))


_SCORE = "under interventions with model.score(pairs, do=...)"
TIERS: dict[type, tuple[str, str]] = {
    Reranker: ("scores pairs and opens its activations", "load one with mechir.load(...)"),
    Restarts: ("starts at any layer", f"score it {_SCORE}"),
    Weights: ("starts at any layer and shows its weights", f"measure it by patching.patch, or {_SCORE}"),
}
"""Each tier in words, and the advice for a model below it."""
READS = {"cls": "the CLS row", "mean": "the mean of all rows", "last": "the last row", "decoder": "generated tokens"}


def offers(model: object, tier: type) -> bool:
    """Whether a model is of a tier."""
    # `isinstance` would compute each property of a model that derives from the protocol.
    return tier in type(model).__mro__ or isinstance(model, tier)


def needs(
    model: object,
    method: str,
    tier: type = Reranker,
    *,
    instead: str = "measure it by patching.patch, which relies on no structure",
    **structure: str | bool | int | None,
) -> None:
    """Raises for a model below the tier that a method calls, or of another structure than it assumes.

    Args:
        model: the method's argument.
        method: its name, as a user calls it.
        tier: the protocol that it calls.
        instead: advice for a model of another structure.
        structure: fields of `Structure`, each with the value that the method assumes.
    """
    if not offers(model, tier):
        name = f"'{model.cfg.model_name}'" if isinstance(model, Reranker) else f"a {type(model).__name__}"
        offer, advice = TIERS[tier]
        raise MechirError(f"{method} needs a model that {offer}, and {name} does not: {advice}.")
    known = cast(Reranker, model)
    actual = asdict(known.structure)
    other = [name for name, value in structure.items() if actual[name] != value]
    if other:
        assumed, given = (" and ".join(_words(name, values[name]) for name in other) for values in (structure, actual))
        raise MechirError(f"{method} assumes {assumed}, and '{known.cfg.model_name}' has {given}: {instead}.")


def needs_edges(model: object, method: str) -> None:
    """Raises for a model whose edges are others: it is not post-LN, turns queries and keys, or reads another row."""
    needs(model, method, Weights, norm="post", positions="absolute", reads="cls", causal=False, window=None)


def _words(field: str, value: Any) -> str:
    """A field of `Structure` in words."""
    if field == "reads":
        return f"a head that reads {READS[value]}"
    if field == "causal":
        return "attention to earlier positions alone" if value else "attention in both directions"
    if field == "window":
        return "attention over the whole text" if value is None else f"attention within {value} positions"
    if field == "scaled":
        return "attention scores of q k / sqrt(d_head)" + (" alone" if value else " and more")
    return f"{value}-norm layers" if field == "norm" else f"{value} positions"


def score_parity(certificate: Any) -> float:
    """The largest difference of scores that a certificate states; older records call it `score_cls_only`."""
    key = "score_head_row" if "score_head_row" in certificate else "score_cls_only"
    return float(certificate[key])


def in_words(certificate: Mapping[str, Any]) -> str:
    """A certificate in a few words: the scores, and the patterns or, of a traced model, that every edit acts."""
    patterns = f"patterns {certificate['pattern']:.1e}" if "pattern" in certificate else "every kind of edit acts"
    return f"scores {score_parity(certificate):.1e} (relative), {patterns}"
