"""The contract of interventions: anything that gives a TransformerLens hook list for a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from mechir.batches import Batch
from mechir.errors import MechirError
from mechir.parts import Dimensions, Structure
from mechir.segments import Direction
from mechir.sites import Site, as_site


@runtime_checkable
class Hooked(Protocol):
    """A model as its edits see it."""

    cfg: Dimensions
    structure: Structure
    fingerprint: str


@runtime_checkable
class Edit(Protocol):
    """A change of one activation: `edit(activation, hook=HookPoint)` returns the new one, or None to leave it.

    It never writes into the old one. Beside the call it has `head_row`, `model`, and equality: edits that do the same
    on the same batch compare equal and hash alike, and a sweep computes their shared part once. A frozen dataclass that
    derives from this class has all three.
    """

    @property
    def head_row(self) -> bool:
        """Whether the edit is right on the first rows alone, so that the last layer may compute only the head's."""
        return False

    @property
    def model(self) -> str:
        """The fingerprint of the model whose activations or directions it holds; "" where it holds none."""
        return ""

    def within(self, model: Hooked) -> Edit:
        """The edit in this model, asked for before anything runs; itself, unless it computes with the model."""
        return self

    def __call__(self, x: Tensor, hook: Any) -> Tensor | None:
        """The new activation, of the shape of `x`; None to leave it."""


@dataclass(frozen=True)
class Function(Edit):
    """A plain function as an edit, as TransformerLens takes it: all rows are computed for it."""

    function: Callable[..., Any]

    def __call__(self, x: Any, hook: Any) -> Any:
        """Calls the function."""
        return self.function(x, hook=hook)


Hook = tuple[str | Callable[[str], bool], Callable[..., Any]]
"""A hook name, or a filter on names, with an `Edit` or a plain function."""


def as_edit(function: Callable[..., Any]) -> Edit:
    """The edit as it is; a plain function as a `Function`."""
    # Sweeps call this for every edit at every stage, and a test of the class alone is quick.
    edit: Any = function
    return edit if Edit in type(edit).__mro__ or isinstance(edit, Edit) else Function(edit)


@runtime_checkable
class Intervention(Protocol):
    """A value that describes a change inside the model."""

    def hooks(self, batch: Batch) -> list[Hook]:
        """The edits as `(hook name or filter on names, edit)`, for `model.run_with_hooks(batch, fwd_hooks=...)`."""


@runtime_checkable
class Particular(Protocol):
    """An intervention that does not go with all others."""

    def refuse_beside(self, others: Sequence[Hook]) -> None:
        """Raises for hooks of other interventions that would be lost beside it."""


def _meant(given: Any) -> str:
    """What to write in the place of something that is no intervention: a site is ablated, a direction cut."""
    if isinstance(given, type):
        return f"{given.__name__}(...) or Ablate(Head(8, 1))"
    readers: dict[str, Callable[[Any], Any]] = {"Ablate": as_site, "Mask": Direction.parse}
    for written, read in readers.items() if isinstance(given, str | Site) else ():
        try:
            return f"{written}('{read(given)}')"
        except MechirError:
            continue
    return "Mask('doc<-query') or Ablate(Head(8, 1))"


def edits(do: Any, batch: Batch) -> list[Hook]:
    """The hook list of one intervention, several or none, in order; raises for anything without `hooks(batch)`."""
    if isinstance(do, Mapping):
        raise MechirError("do= is a mapping: give one intervention or a list here, and several by name to mi.sweep.")
    several = isinstance(do, Iterable) and not isinstance(do, Intervention | Site | str)
    listed = [] if do is None else list(do) if several else [do]
    for intervention in listed:
        if isinstance(intervention, type) or not isinstance(intervention, Intervention):
            raise MechirError(f"{intervention!r:.80} is no intervention: write e.g. {_meant(intervention)}.")
    hooks = [list(intervention.hooks(batch)) for intervention in listed]
    for place, intervention in enumerate(listed):
        if isinstance(intervention, Particular):
            intervention.refuse_beside([hook for other, some in enumerate(hooks) if other != place for hook in some])
    return [hook for some in hooks for hook in some]


@dataclass(frozen=True)
class EveryLayer:
    """A filter on hook names: this hook in every layer, of a decoder where `of` is "decoder"."""

    suffix: str
    of: str = "blocks"

    def __call__(self, name: str) -> bool:
        """Whether `name` is this hook in some layer."""
        return name.startswith(f"{self.of}.") and name.endswith(f".{self.suffix}")


@dataclass(frozen=True)
class AnyOf:
    """A filter on hook names: those of these names and filters that the model has."""

    names: tuple[str | EveryLayer, ...]

    def __call__(self, name: str) -> bool:
        """Whether `name` is one of these."""
        return any(name == one if isinstance(one, str) else one(name) for one in self.names)

    def __str__(self) -> str:
        return " or ".join(map(str, self.names))
