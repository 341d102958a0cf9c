"""The parity certificate: Hugging Face's own model run beside ours on the same batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from mechir.encoder.hooked import HookedEncoder
from mechir.pairs import Batch, Pair


@torch.no_grad()
def certify(model: HookedEncoder, pairs: Sequence[Pair], *, max_rows: int = 16) -> dict[str, Any]:
    """The largest differences from Hugging Face over these pairs: scores, hidden states, patterns.

    `score` is relative to the largest absolute logit and compares like with like: explicit attention with their eager
    one, fused attention with their default one. `score_cls_only` compares the plan that scoring runs, which computes
    the CLS row alone in the last layer, with their default one: the same sums in another order. `hidden` (every layer)
    and `pattern` are absolute, over real tokens only. `segments_matter` is the largest change of a logit when all
    segment ids are 0: above 0 it shows that they reach the model.
    """
    worst = {"score": 0.0, "score_cls_only": 0.0, "hidden": 0.0, "pattern": 0.0, "segments_matter": 0.0}
    scale = 0.0
    for _, batch in model.encode(pairs).buckets(max_rows):
        batch = batch.to(model.device)
        theirs, their_logits = _theirs(model, batch)
        logits, cache = model.run_with_cache(batch, return_type="logits", names_filter=_compared, last_rows="all")
        real = batch.attention_mask
        scale = max(scale, float(theirs.logits.abs().max()))
        fused = model(batch, return_type="logits", last_rows="all")
        for key, difference in (
            ("score", logits - theirs.logits),
            ("score", fused - their_logits),
            ("score_cls_only", model(batch, return_type="logits") - their_logits),
        ):
            worst[key] = max(worst[key], _largest(difference))
        for layer in range(model.cfg.n_layers):
            hidden = cache[f"blocks.{layer}.hook_resid_post"] - theirs.hidden_states[layer + 1]
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"] - theirs.attentions[layer]
            worst["hidden"] = max(worst["hidden"], _largest(hidden[real]))
            worst["pattern"] = max(worst["pattern"], _largest(pattern.transpose(1, 2)[real]))
        flat = Batch(batch.input_ids, 0 * batch.token_type_ids, real, batch.segment, batch.pairs)
        worst["segments_matter"] = max(
            worst["segments_matter"], _largest(logits - model(flat, return_type="logits", last_rows="all"))
        )
    return {
        **worst,
        "score": worst["score"] / (scale or 1.0),
        "score_cls_only": worst["score_cls_only"] / (scale or 1.0),
        "n_pairs": len(pairs),
        "dtype": str(model.dtype).removeprefix("torch."),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def _theirs(model: HookedEncoder, batch: Batch) -> tuple[Any, Tensor]:
    """The same batch through `model.hf`: everything with eager attention, which alone gives the patterns; the logits
    with its default attention.
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    if model.parts.embeddings.token_type is not None:
        inputs["token_type_ids"] = batch.token_type_ids
    default = model.hf.config._attn_implementation
    logits = model.hf(**inputs).logits
    model.hf.set_attn_implementation("eager")
    try:
        return model.hf(**inputs, output_hidden_states=True, output_attentions=True), logits
    finally:
        model.hf.set_attn_implementation(default)


def _compared(name: str) -> bool:
    return name.endswith(("hook_resid_post", "hook_pattern"))


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())
