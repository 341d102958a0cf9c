"""What an intervention is: anything that gives a TransformerLens hook list for a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mechir.errors import MechirError
from mechir.pairs import Batch

Edit = Callable[..., Any]
"""`edit(activation, hook=HookPoint)` returns the new activation and never writes into the old one.

Edits that do the same on the same batch should compare equal: a sweep then computes what they share only once.
"""
Hook = tuple[str | Callable[[str], bool], Edit]


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
