"""What a run would cost, before it is started."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from mechir.experiment import load_experiment
from mechir.material import pairs_of
from mechir.options import with_defaults
from mechir.sweep import forwards


def estimate(experiment: str | ModuleType, model: Any, material: Sequence[Any], **chosen: Any) -> dict[str, Any]:
    """What a run would cost, from its interventions and a timing of the intact model on 32 of the pairs.

    An experiment on contrasts says its cost itself: `cost(model, **options)`, full forwards per contrast.

    Returns:
        `pairs`, `forwards` (full forward passes of one pair, work shared between interventions counted once),
        `minutes` on this machine and thread count, `memory_gb` (peak, weights included).
    """
    module = load_experiment(experiment) if isinstance(experiment, str) else experiment
    chosen = with_defaults(module, chosen)
    if hasattr(module, "cost"):
        per_pair = module.cost(model, **chosen)
    else:
        per_pair = forwards(model, module.interventions(model, **chosen))
    pairs = pairs_of(material)
    lengths = model.encode(pairs).lengths
    sample = list(pairs[:: max(1, len(pairs) // 32)])[:32]
    times = []
    for _ in range(3):  # the first warms up
        start = time.monotonic()
        model.score(sample)
        times.append(time.monotonic() - start)
    seconds = min(times) * lengths.sum() / model.encode(sample).lengths.sum()
    return {
        "pairs": len(pairs),
        "forwards": math.ceil(per_pair * len(pairs)),
        "minutes": float(seconds * per_pair / 60),
        "memory_gb": _memory_gb(model, int(lengths.max())),
    }


def _memory_gb(model: Any, longest: int) -> float:
    """What the process holds now, and the states, MLP and attention of the widest chunk of a sweep."""
    c, number = model.cfg, 8 if model.dtype == torch.float64 else 4
    rows = max(1, model.max_tokens // longest)
    tokens = rows * longest
    states = (c.n_layers + 4) * tokens * c.d_model
    widest = max(2 * tokens * c.d_mlp, 3 * rows * c.n_heads * longest**2)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 + (states + widest) * number / 2**30)
