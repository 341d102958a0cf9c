"""The checks of a model: parity with Hugging Face on the same texts, and that it is still as it was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from mechir.batches import Batch
from mechir.encoder.hooked import HookedEncoder
from mechir.encoder.hooked_model import HookedModel
from mechir.errors import MechirError
from mechir.inputs import as_pairs
from mechir.reranker import score_parity

BOUNDS = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 3e-2}
"""The largest relative difference of scores that a run accepts. A bfloat16 has 8 bits: on two trained rerankers
of 6 layers the same sums in another order differ by up to 5e-3 of the largest logit."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes in which torch keeps the hooks of a module; those of TransformerLens are among them."""
EVERYWHERE = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
"""The attributes for hooks of all modules."""


@torch.no_grad()
def certify(model: HookedEncoder, pairs: Any, *, max_rows: int = 16) -> dict[str, Any]:
    """The largest differences from Hugging Face over these pairs: inputs, scores, hidden states, patterns.

    Hugging Face reads the texts by itself: its ids, token types and mask, `tokenizer(query, document, padding=True,
    truncation=True)`, go into its model. `input` is how many pairs it reads otherwise than we do. `score` is relative
    to the largest absolute logit and compares like with like: explicit attention with their eager one, fused attention
    with their default one. `score_head_row` compares the plan that scoring runs, which computes the CLS row alone in
    the last layer, with their default one: the same sums in another order. `hidden` (every layer) and `pattern` are
    absolute, over real tokens only. `segments_matter` is the largest change of a logit when all segment ids are 0:
    above 0 it shows that they reach the model.
    """
    pairs = as_pairs(pairs)
    worst = {"score": 0.0, "score_head_row": 0.0, "hidden": 0.0, "pattern": 0.0, "segments_matter": 0.0}
    scale, other_inputs = 0.0, 0
    encoded = model.encode(pairs)
    for _, batch in model.batches(encoded, max_rows=max_rows, max_tokens=4096):
        texts = [[pair.query for pair in batch.pairs], [pair.document for pair in batch.pairs]]
        options = {"padding": True, "truncation": True, "max_length": model.max_length, "return_tensors": "pt"}
        inputs = dict(model.tokenizer(*texts, **options).to(model.device))  # as its users call it
        other = _differing(batch, inputs)
        other_inputs += int(other.sum())
        if bool(other.any()):
            continue
        theirs, their_logits = _theirs(model, inputs)
        logits, cache = model.run_with_cache(
            batch,
            return_type="logits",
            names_filter=lambda name: name.endswith(("hook_resid_post", "hook_pattern")),
            head_row=False,
        )
        real = batch.attention_mask
        scale = max(scale, float(theirs.logits.abs().max()))
        flat = replace(batch, token_type_ids=0 * batch.token_type_ids)
        differences = [
            ("score", logits - theirs.logits),
            ("score", model(batch, return_type="logits", head_row=False) - their_logits),
            ("score_head_row", model(batch, return_type="logits") - their_logits),
            ("segments_matter", logits - model(flat, return_type="logits", head_row=False)),
        ]
        for layer in range(model.cfg.n_layers):
            hidden = cache[f"blocks.{layer}.hook_resid_post"] - theirs.hidden_states[layer + 1]
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"] - theirs.attentions[layer]
            differences += [("hidden", hidden[real]), ("pattern", pattern.transpose(1, 2)[real])]
        for name, difference in differences:
            worst[name] = max(worst[name], float(difference.abs().max()))
    return {
        "input": other_inputs,
        **worst,
        "score": worst["score"] / (scale or 1.0),
        "score_head_row": worst["score_head_row"] / (scale or 1.0),
        "n_pairs": len(encoded),
        "dtype": str(model.dtype).removeprefix("torch."),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def refuse_unlike(certificate: Mapping[str, Any], name: str) -> None:
    """Raises where `certify` found that the model called `name` reads or scores otherwise than Hugging Face does."""
    if certificate["input"]:
        raise MechirError(
            f"Hugging Face's tokenizer reads {certificate['input']} of {certificate['n_pairs']} pairs otherwise than "
            f"'{name}' does here (ids, token types or mask): do not use this model, and report it."
        )
    worst, bound = max(certificate["score"], score_parity(certificate)), BOUNDS[certificate["dtype"]]
    if not worst <= bound:  # NaN is no parity either
        raise MechirError(
            f"The scores of '{name}' differ from Hugging Face's by {worst:.1e} of the largest logit, more than "
            f"{bound:.0e}, the bound of {certificate['dtype']}: load it anew, and look at its family's row."
        )


def _differing(batch: Batch, inputs: Mapping[str, Tensor]) -> Tensor:
    """True at the pairs where Hugging Face reads other ids, types or positions than we do."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if ids.shape != batch.input_ids.shape:
        return torch.ones(len(batch), dtype=torch.bool)
    types = inputs.get("token_type_ids", torch.zeros_like(ids))
    real = batch.attention_mask
    other = (mask != real.long()) | (real & ((ids != batch.input_ids) | (types != batch.token_type_ids)))
    return other.any(1).cpu()


def _theirs(model: HookedEncoder, inputs: Mapping[str, Tensor]) -> tuple[Any, Tensor]:
    """The outputs of Hugging Face's model on its own inputs with eager attention, which alone gives the patterns, and
    its logits with its default attention.
    """
    arguments = {name: value for name, value in inputs.items() if name != "token_type_ids"}
    if model.parts.embeddings.token_type is not None and "token_type_ids" in inputs:
        arguments["token_type_ids"] = inputs["token_type_ids"]
    default = model.hf.config._attn_implementation
    logits = model.hf(**arguments).logits
    model.hf.set_attn_implementation("eager")
    try:
        return model.hf(**arguments, output_hidden_states=True, output_attentions=True), logits
    finally:
        model.hf.set_attn_implementation(default)


def refuse_altered(model: HookedModel) -> None:
    """Raises for a model whose scores would be stored under the fingerprint of another one.

    That is one with hooks left in place, parameters that changed after loading, in training mode, in another number
    type, or without a label that means relevance.
    """
    model.head.stated_label()
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype not in BOUNDS:
        raise MechirError(f"'{model.cfg.model_name}' is in {dtype}: load it with dtype= one of {', '.join(BOUNDS)}.")
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        raise MechirError("torch.autocast is on, which rounds on the way: leave it, or load with dtype='bfloat16'.")
    hooked = [name or "the model" for name, module in model.named_modules() if _has_hooks(module)]
    hooked += ["every module of torch"] * any(getattr(torch.nn.modules.module, kind) for kind in EVERYWHERE)
    if hooked:
        more = f" and {len(hooked) - 1} more" if len(hooked) > 1 else ""
        raise MechirError(
            f"Hooks were left in place at '{hooked[0]}'{more}, and a run is of the model that its fingerprint names: "
            "call model.reset_hooks() (or remove() of what register_forward_hook gave), or give interventions to do=."
        )
    training = [name or "the model" for name, module in model.hf.named_modules() if module.training]
    if training:
        raise MechirError(f"'{training[0]}' is in training mode, where dropout changes scores: call model.eval().")
    changed = model.changed()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise MechirError(
            f"'{changed[0]}'{more} changed since '{model.cfg.model_name}' was loaded, and a run is of the model that "
            "its fingerprint names: load it anew, or save the changed one (model.hf.save_pretrained and "
            "model.tokenizer.save_pretrained) and load that."
        )


def _has_hooks(module: nn.Module) -> bool:
    hooks = (hook for kind in HOOKS for hook in getattr(module, kind).values())
    # transformers keeps hooks of its own, which record hidden states and change nothing.
    return any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)
