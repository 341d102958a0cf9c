"""One run over a batch that records its activations as they appear."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from torch import Tensor

from mechir.batches import Batch
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
