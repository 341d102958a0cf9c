"""Pruning: many neurons and heads taken out at once, at run time or for good in a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechir.errors import MechirError
from mechir.hooks import Hook
from mechir.pairs import Batch
from mechir.sites import Head, Neuron, parse_site


@dataclass(frozen=True)
class Prune:
    """Sets neurons (after the activation) and heads (z) to 0 at every position: `Prune(["n5.12", "h3.1"])`.

    The same as an `Ablate` of each, in one edit a layer. A head's z of 0 is its weights times 0; its layer's output
    bias stays.

    Args:
        sites: neurons and heads, each once.
    """

    sites: tuple[Neuron | Head, ...]

    def __init__(self, sites: Iterable[Neuron | Head | str]) -> None:
        parsed = tuple(parse_site(site) if isinstance(site, str) else site for site in sites)
        for site in parsed:
            if not (isinstance(site, Neuron) or (isinstance(site, Head) and site.part == "z")):
                raise MechirError(f"Cannot prune '{site}': write neurons (n5.1203) and heads (h8.1).")
        if len(set(parsed)) < len(parsed):
            twice = next(site for site in parsed if parsed.count(site) > 1)
            raise MechirError(f"'{twice}' is to be pruned more than once: give each unit once.")
        object.__setattr__(self, "sites", parsed)

    def hooks(self, batch: Batch) -> list[Hook]:
        """One edit for the neurons and one for the heads of each layer."""
        units: dict[str, list[int]] = {}
        for site in self.sites:
            units.setdefault(site.hook, []).append(site[1])
        return [(hook, Zeroed(tuple(sorted(units[hook])))) for hook in sorted(units)]


@dataclass(frozen=True)
class Zeroed:
    """The edit of a `Prune`: these units of an activation are 0."""

    units: tuple[int, ...]

    cls_first = True

    def __call__(self, x: Float[Tensor, "batch pos unit ..."], hook: Any) -> Float[Tensor, "..."]:
        """The activation without the units."""
        if self.units[-1] >= x.shape[2]:
            raise MechirError(f"Unit {self.units[-1]} is out of range: '{hook.name}' has units 0-{x.shape[2] - 1}.")
        return x.index_fill(2, torch.tensor(self.units, device=x.device), 0.0)


def _refuse_missing(model: Any, sites: Iterable[Neuron | Head]) -> None:
    c = model.cfg
    for site in sites:
        n = c.n_heads if isinstance(site, Head) else c.d_mlp
        if site.layer >= c.n_layers or site[1] >= n:
            what = "heads" if isinstance(site, Head) else "neurons"
            raise MechirError(f"'{site}' is out of range: the model has layers 0-{c.n_layers - 1}, {what} 0-{n - 1}.")


@torch.no_grad()
def export(model: Any, sites: Iterable[Neuron | Head | str], folder: Path | str) -> Path:
    """Writes the model without these units as a checkpoint that Hugging Face loads, tokenizer included.

    The columns of the output matrices that read the units are 0, so scores are those under `Prune` to rounding. The
    shapes stay: nothing gets smaller or faster.

    Raises:
        MechirError: as `Prune`; for a folder that is there already.
    """
    target = Path(folder)
    if target.exists():
        raise MechirError(f"'{target}' is there already: give a directory that does not exist yet.")
    chosen = Prune(sites).sites
    _refuse_missing(model, chosen)
    pruned = copy.deepcopy(model)
    for site in chosen:
        layer = pruned.parts.layers[site.layer]
        if isinstance(site, Head):
            width = model.cfg.d_head
            layer.o.weight[:, site.head * width : (site.head + 1) * width] = 0
        else:
            layer.mlp_out.weight[:, site.neuron] = 0
    temporary = target.with_name(f".{target.name}.part")
    pruned.hf.save_pretrained(temporary)
    model.tokenizer.save_pretrained(temporary)
    temporary.rename(target)
    return target
