"""The names of a model's hooks, found by filters and checked."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from mechir.errors import MechirError, closest
from mechir.hooks import Edit, Hook, as_edit


def resolved(hooks: Sequence[Hook], known: Collection[str], n_layers: int, fingerprint: str) -> list[tuple[str, Edit]]:
    """The hooks with filters on names replaced by the `known` names they match, plain functions made edits.

    Raises:
        MechirError: for a name that the model lacks (the closest are named), a filter that matches none, or activations
            or directions of another model than the one with this fingerprint.
    """
    edits: list[tuple[str, Edit]] = []
    for name, function in hooks:
        edit = as_edit(function)
        if isinstance(name, str):
            refuse_unknown(name, known, n_layers)
        matches = [name] if isinstance(name, str) else [hook for hook in known if name(hook)]
        if not matches:
            raise MechirError(f"The filter {name} matches no hook of this model, e.g. not 'blocks.0.attn.hook_z'.")
        if edit.model not in ("", fingerprint):
            raise MechirError(
                f"These activations are of another model (fingerprint {edit.model[:12]}, this one is "
                f"{fingerprint[:12]}): record them in this one."
            )
        edits += [(match, edit) for match in matches]
    return edits


def refuse_unknown(name: str, known: Collection[str], n_layers: int) -> None:
    """Raises for the name of a hook that a model of so many layers does not have."""
    if name in known:
        return
    layer = re.match(r"blocks\.(\d+)\.", name)
    if layer and int(layer[1]) >= n_layers:
        raise MechirError(f"Layer {layer[1]} is out of range in '{name}': the model has layers 0-{n_layers - 1}.")
    raise MechirError(f"Unknown hook '{name}'. The closest are {closest(name, known)}.")
