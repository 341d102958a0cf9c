"""What an intervention is: anything that gives a TransformerLens hook list for a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from mechir.batches import Batch
from mechir.errors import MechirError


@runtime_checkable
class Edit(Protocol):
    """What is done to one activation: `edit(activation, hook=HookPoint)` returns the new one, or None to leave it.

    It never writes into the old one. Three things are asked of it beside the call: `head_row`, `model`, and equality.
    Edits that do the same on the same batch compare equal and hash alike; a sweep computes what they share only once. A
    frozen dataclass that derives from this class has all three.
    """

    @property
    def head_row(self) -> bool:
        """Whether it is right on the first rows alone, so that the last layer may compute only what the head reads."""
        return False

    @property
    def model(self) -> str:
        """The fingerprint of the model whose activations or directions it holds; "" where it holds none."""
        return ""

    def __call__(self, x: Tensor, hook: Any) -> Tensor | None:
        """The new activation, of the shape of `x`; None where it only looks."""


@dataclass(frozen=True)
class Function(Edit):
    """A plain function as an edit, as TransformerLens takes it: all rows are computed for it."""

    function: Callable[..., Any]

    def __call__(self, x: Any, hook: Any) -> Any:
        """Whatever the function returns."""
        return self.function(x, hook=hook)


Hook = tuple[str | Callable[[str], bool], Callable[..., Any]]
"""A hook name, or a filter on names, with an `Edit` or a plain function."""


def as_edit(function: Callable[..., Any]) -> Edit:
    """The edit as it is; a plain function as a `Function`."""
    # Sweeps come here for every edit at every stage, and a look at the class alone is quick.
    edit: Any = function
    return edit if Edit in type(edit).__mro__ or isinstance(edit, Edit) else Function(edit)


@runtime_checkable
class Intervention(Protocol):
    """A value that says what to change inside the model."""

    def hooks(self, batch: Batch) -> list[Hook]:
        """The edits as `(hook name or filter on names, edit)`, for `model.run_with_hooks(batch, fwd_hooks=...)`."""


def as_list(do: Any) -> list[Intervention]:
    """One intervention, several or none, as a list.

    Raises:
        MechirError: for anything without `hooks(batch)`.
    """
    listed = [] if do is None else [do] if isinstance(do, Intervention) else list(do)
    for intervention in listed:
        if not isinstance(intervention, Intervention):
            raise MechirError(
                f"{intervention!r} is no intervention: write e.g. Mask('doc<-query') or Ablate(Head(8, 1))."
            )
    return listed


def edits(do: Any, batch: Batch) -> list[Hook]:
    """The hook list of one or several interventions, in their order."""
    return [hook for intervention in as_list(do) for hook in intervention.hooks(batch)]


@dataclass(frozen=True)
class EveryLayer:
    """A filter on hook names: this hook in every layer."""

    suffix: str

    def __call__(self, name: str) -> bool:
        """Whether `name` is this hook in some layer."""
        return name.startswith("blocks.") and name.endswith(f".{self.suffix}")
