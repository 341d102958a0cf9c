"""Hooks by name: which a model has, and refusals of names that it lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mechir.errors import MechirError, closest
from mechir.hooks import Edit, Hook, as_edit


def resolved(hooks: Sequence[Hook], known: Iterable[str], n_layers: int) -> list[tuple[str, Edit]]:
    """The hooks with filters on names replaced by the names they match, plain functions made edits.

    Args:
        hooks: names or filters on names, each with its edit.
        known: the names of the model's hook points.
        n_layers: its layers.

    Raises:
        MechirError: for a name that the model lacks (the closest are named), or a filter that matches none.
    """
    names = list(known)
    edits: list[tuple[str, Edit]] = []
    for name, function in hooks:
        edit = as_edit(function)
        if isinstance(name, str):
            refuse_unknown(name, names, n_layers)
            edits.append((name, edit))
            continue
        matches = [one for one in names if name(one)]
        if not matches:
            raise MechirError(f"The filter {name} matches no hook of this model, e.g. not 'blocks.0.attn.hook_z'.")
        edits += [(one, edit) for one in matches]
    return edits


def refuse_foreign(edit: Edit, fingerprint: str) -> None:
    """Raises for activations or directions of another model than the one with this fingerprint."""
    if edit.model not in ("", fingerprint):
        raise MechirError(
            f"These activations are of another model (fingerprint {edit.model[:12]}, this one is {fingerprint[:12]}): "
            "record them in this one."
        )


def refuse_unknown(name: str, known: Sequence[str], n_layers: int) -> None:
    """Raises for the name of a hook that a model of so many layers does not have."""
    if name in known:
        return
    layer = re.match(r"blocks\.(\d+)\.", name)
    if layer and int(layer[1]) >= n_layers:
        raise MechirError(f"Layer {layer[1]} is out of range in '{name}': the model has layers 0-{n_layers - 1}.")
    raise MechirError(f"Unknown hook '{name}'. The closest are {closest(name, known)}.")
