"""The weights of a model under the names of TransformerLens: views, not copies, of Hugging Face's parameters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix

from mechir.reranker import Dimensions, Parts


class WeightViews:
    """Embeddings and the weights of queries and keys by head; the device and number type of the parameters."""

    parts: Parts
    cfg: Dimensions

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.parts.classifier.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the parameters and of the computation."""
        return self.parts.classifier.weight.dtype

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_embed"]:
        """The word embeddings, before positions, segments and LayerNorm are applied."""
        return self.parts.embeddings.word.weight

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """The weights of the queries: q = x W_Q + b_Q."""
        return self._per_head("q", "weight").transpose(-1, -2)

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """The weights of the keys: k = x W_K + b_K."""
        return self._per_head("k", "weight").transpose(-1, -2)

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the queries."""
        return self._per_head("q", "bias")

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """The biases of the keys."""
        return self._per_head("k", "bias")

    @property
    def W_QK(self) -> FactoredMatrix:
        """W_Q W_K^T [layer, head, d_model, d_model] as its factors, in float64.

        Position i looks at j with the score (x_i W_QK x_j + x_i W_Q b_K + b_Q W_K^T x_j + b_Q b_K) / sqrt(d_head).
        """
        return FactoredMatrix(self.W_Q.double(), self.W_K.double().transpose(-1, -2))

    def _per_head(self, part: str, kind: str) -> Tensor:
        layers = [getattr(getattr(layer, part), kind) for layer in self.parts.layers]
        return torch.stack(layers).unflatten(1, (self.cfg.n_heads, -1))
