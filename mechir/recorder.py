"""One run over a batch that records its activations as they appear, and the search for those that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from mechir.batches import Batch
from mechir.encoding import Encoded
from mechir.errors import MechirError
from mechir.hooks import edits
from mechir.reranker import Reranker

Record = TypeVar("Record")
Names = Iterable[str] | Callable[[str], bool]


@overload
def observe(
    model: Reranker, batch: Batch, names: Names, keep: None = None, **run: Any
) -> tuple[Tensor, dict[str, Tensor]]: ...
@overload
def observe(
    model: Reranker, batch: Batch, names: Names, keep: Callable[[str, Tensor], Record], **run: Any
) -> tuple[Tensor, dict[str, Record]]: ...
def observe(
    model: Reranker, batch: Batch, names: Names, keep: Callable[[str, Tensor], Any] | None = None, **run: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Runs the model once; returns its output and a record of each activation, by hook name in the order of the layers.

    Args:
        model: whose activations.
        batch: its input.
        names: hook names, or a filter on them.
        keep: the record of an activation, from its name and value; by default the activation.
        run: how the model runs: `head_row`, `stop_at_layer`, `return_type`.
    """
    records: dict[str, Any] = {}

    def look(x: Tensor, hook: Any) -> None:
        records[hook.name] = x if keep is None else keep(hook.name, x)

    with model.hooks([(name, look) for name in ([names] if callable(names) else names)]):
        return model(batch, **run), records


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
