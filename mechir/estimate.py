"""The cost of a run, before it is started."""

from __future__ import annotations

import math
import resource
import timeit
from collections.abc import Sequence
from typing import Any

import torch

from mechir.encoder.hooked_model import HookedModel
from mechir.experiment import Experiment
from mechir.material import pairs_of
from mechir.running import asked_for


def estimate(
    experiment: Experiment | type[Experiment] | str, model: HookedModel, material: Sequence[Any], **chosen: Any
) -> dict[str, Any]:
    """The cost of a run, from `Experiment.cost` and a timing of the intact model on 32 of the pairs.

    Returns:
        `pairs`, `forwards` (full forward passes of one pair, work shared between interventions counted once),
        `minutes` on this machine and thread count, `memory_gb` (peak, weights included).
    """
    per_pair = asked_for(experiment, chosen).cost(model)
    pairs = pairs_of(material)
    lengths = model.encode(pairs).lengths
    sample = list(pairs[:: max(1, len(pairs) // 32)])[:32]
    times = timeit.repeat(lambda: model.score(sample), number=1, repeat=3)  # the first warms up
    seconds = min(times) * lengths.sum() / model.encode(sample).lengths.sum()
    return {
        "pairs": len(pairs),
        "forwards": math.ceil(per_pair * len(pairs)),
        "minutes": float(seconds * per_pair / 60),
        "memory_gb": _memory_gb(model, int(lengths.max())),
    }


def _memory_gb(model: HookedModel, longest: int) -> float:
    """The memory of the process now, and the states, MLP and attention of the widest chunk of a sweep."""
    c, number = model.cfg, 8 if model.dtype == torch.float64 else 4
    rows = max(1, model.max_tokens // longest)
    tokens = rows * longest
    states = (c.n_layers + 4) * tokens * c.d_model
    widest = max(2 * tokens * c.d_mlp, 3 * rows * c.n_heads * longest**2)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 + (states + widest) * number / 2**30)
