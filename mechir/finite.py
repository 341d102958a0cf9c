"""Scores that are no numbers: which pair, and where in the model it begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mechir.encoding import Encoded
from mechir.errors import MechirError
from mechir.hooks import edits
from mechir.recorder import observe
from mechir.reranker import Reranker


def refuse_non_finite(model: Reranker, scores: Tensor, encoded: Encoded, do: Any = ()) -> None:
    """Names the first pair whose score is NaN or inf, and the layer where that begins.

    Args:
        model: a `HookedEncoder`.
        scores: of the pairs.
        encoded: the pairs.
        do: the interventions that they were scored under.

    Raises:
        MechirError: where there is one.
    """
    bad = (~scores.isfinite()).nonzero().flatten()
    if not len(bad):
        return
    batch = encoded.batch([int(bad[0])]).to(model.device)
    with torch.no_grad(), model.hooks(edits(do, batch)):
        _, finite = observe(model, batch, _stream, lambda _, x: bool(x.isfinite().all()))
    seen = [name for name, fine in finite.items() if not fine]
    where = f"after '{seen[0]}'" if seen else "in the classification head"
    raise MechirError(
        f"The score of {batch.pairs[0]} is {float(scores[bad[0]])} ({len(bad)} of {len(scores)} scores are not "
        f"finite), beginning {where}: check the checkpoint, or load it with dtype='float32'."
    )


def _stream(name: str) -> bool:
    return name.endswith(("hook_full_embed", "hook_resid_post"))
