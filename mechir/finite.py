"""The check that scores are finite, which names the first bad pair and where in the model it begins."""

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
    """Raises for scores of pairs under `do` that are NaN or inf, with the first such pair and the layer at fault."""
    bad = (~scores.isfinite()).nonzero().flatten()
    if not len(bad):
        return
    batch = encoded.batch([int(bad[0])]).to(model.device)
    stream = ("hook_full_embed", "hook_resid_post")
    with torch.no_grad(), model.hooks(edits(do, batch)):
        _, finite = observe(model, batch, lambda name: name.endswith(stream), lambda _, x: bool(x.isfinite().all()))
    broken = [name for name, is_finite in finite.items() if not is_finite]
    where = f"after '{broken[0]}'" if broken else "in the classification head"
    raise MechirError(
        f"The score of {batch.pairs[0]} is {float(scores[bad[0]])} ({len(bad)} of {len(scores)} scores are not "
        f"finite), beginning {where}: check the checkpoint, or load it with dtype='float32'."
    )
