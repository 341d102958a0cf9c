"""One run over a batch, and what is kept of its activations as they appear."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from torch import Tensor

from mechir.batches import Batch
from mechir.reranker import Reranker

Kept = TypeVar("Kept")
Names = Iterable[str] | Callable[[str], bool]


@overload
def observe(
    model: Reranker, batch: Batch, names: Names, keep: None = None, **run: Any
) -> tuple[Tensor, dict[str, Tensor]]: ...
@overload
def observe(
    model: Reranker, batch: Batch, names: Names, keep: Callable[[str, Tensor], Kept], **run: Any
) -> tuple[Tensor, dict[str, Kept]]: ...
def observe(
    model: Reranker, batch: Batch, names: Names, keep: Callable[[str, Tensor], Any] | None = None, **run: Any
) -> tuple[Tensor, dict[str, Any]]:
    """Runs the model once, and keeps something of each activation, by hook name and in the order of the layers.

    Args:
        model: whose activations.
        batch: what it reads.
        names: hook names, or a filter on them.
        keep: what is kept of the activation under a name; by default the activation.
        run: how the model runs: `head_row`, `stop_at_layer`, `return_type`.

    Returns:
        The output, and what was kept.
    """
    kept: dict[str, Any] = {}

    def look(x: Tensor, hook: Any) -> None:
        kept[hook.name] = x if keep is None else keep(hook.name, x)

    wanted = [names] if callable(names) else list(names)
    with model.hooks([(name, look) for name in wanted]):
        return model(batch, **run), kept
