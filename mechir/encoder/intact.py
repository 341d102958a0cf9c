"""The check that a model is still the one that its fingerprint names: without hooks, unchanged since it was loaded."""

from __future__ import annotations

import torch
from torch import nn

from mechir.encoder.certify import BOUNDS
from mechir.encoder.hooked import HookedEncoder
from mechir.errors import MechirError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes in which torch keeps the hooks of a module; those of TransformerLens are among them."""
EVERYWHERE = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
"""The attributes for hooks of all modules."""


def refuse_altered(model: HookedEncoder) -> None:
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
