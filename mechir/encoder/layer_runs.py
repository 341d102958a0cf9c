"""The forward layer by layer, from any state of the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from mechir.batches import Batch
from mechir.encoder import forward as fw
from mechir.encoder.head import ClassificationHead
from mechir.reranker import Dimensions, Parts


class LayerRuns:
    """Embeddings, layers in two halves, and head, each by itself."""

    parts: Parts
    cfg: Dimensions
    embed: fw.EmbedHooks
    hook_full_embed: HookPoint
    blocks: torch.nn.ModuleList
    head: ClassificationHead
    _positions_after: int | None

    def embedded(self, batch: Batch) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that layer 0 reads."""
        return self.hook_full_embed(fw.embed(self.parts, self.embed, batch, self._positions_after))

    def allowed(self, batch: Batch) -> Tensor | None:
        """True at sources that are no padding; None where a batch has no padding."""
        return None if bool(batch.attention_mask.all()) else batch.attention_mask[:, None, None, :]

    def run_block(self, layer: int, resid: Tensor, allowed: Tensor | None, **plan: bool) -> Tensor:
        """The residual stream after one layer; `plan` as in `forward.read`."""
        return self.run_write(layer, *self.run_read(layer, resid, allowed, **plan))

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
        return self.head(self.parts, resid[:, 0])
