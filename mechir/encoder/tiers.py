"""The upper tiers of a model: the forward layer by layer from any state of the residual stream, and W_QK.

Weights stand under the names of TransformerLens, as views, not copies, of Hugging Face's parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.hook_points import HookPoint

from mechir.batches import Batch
from mechir.encoder import forward as fw
from mechir.encoder.head import ScoreHead
from mechir.reranker import Weights


class Tiers(Weights):
    """Embeddings, layers in two halves, and head, each by itself; the device and number type of the parameters."""

    embed: fw.EmbedHooks
    hook_full_embed: HookPoint
    blocks: torch.nn.ModuleList
    head: ScoreHead
    _positions_after: int | None

    def embedded(self, batch: Batch) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that layer 0 reads."""
        return self.hook_full_embed(fw.embed(self.parts, self.embed, batch, self._positions_after))

    def run_read(self, layer: int, resid: Tensor, allowed: Tensor | None, **plan: bool) -> tuple[Tensor, Tensor]:
        """The first half of a layer: the stream's rows and what the heads read (see `forward.read`)."""
        hooks: Any = self.blocks[layer]
        return fw.read(self.parts.layers[layer], hooks, resid, allowed, n_heads=self.cfg.n_heads, **plan)

    def run_write(self, layer: int, rows: Tensor, z: Tensor) -> Tensor:
        """The second half of a layer: the residual stream after it (see `forward.write`)."""
        hooks: Any = self.blocks[layer]
        return fw.write(self.parts.layers[layer], hooks, rows, z)

    def run_head(self, resid: Float[Tensor, "batch row d_model"]) -> Float[Tensor, "batch"]:
        """The score that the head reads from the CLS row, the first, of a residual stream."""
        return self.head.score(self.logits(resid))

    def logits(self, resid: Float[Tensor, "batch row d_model"]) -> Float[Tensor, "batch label"]:
        """The logits that the head reads there."""
        pooled = self.head.hook_pooled(self.parts.pooler_activation(self.parts.pooler(resid[:, 0])))
        return self.head.hook_logits(self.parts.classifier(pooled))

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.parts.classifier.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the parameters and of the computation."""
        return self.parts.classifier.weight.dtype

    @property
    def W_QK(self) -> FactoredMatrix:
        """W_Q W_K^T [layer, head, d_model, d_model] as its factors, in float64.

        Position i looks at j with the score (x_i W_QK x_j + x_i W_Q b_K + b_Q W_K^T x_j + b_Q b_K) / sqrt(d_head).
        """
        return FactoredMatrix(self.W_Q.double(), self.W_K.double().transpose(-1, -2))

    @property
    def QK(self) -> FactoredMatrix:
        """TransformerLens's name of `W_QK`."""
        return self.W_QK

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O [layer, head, d_model, d_model] as its factors, in float64: what a head writes of what it reads."""
        return FactoredMatrix(self.W_V.double(), self.W_O.double())
