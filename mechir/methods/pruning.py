"""Pruned models as checkpoints: units taken out for good."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mechir.errors import MechirError
from mechir.interventions import Prune
from mechir.methods.patching import sites_of
from mechir.sites import Head, Neuron


@torch.no_grad()
def export(model: Any, sites: Iterable[Neuron | Head | str], folder: Path | str) -> Path:
    """Writes the model without these units as a checkpoint that Hugging Face loads, tokenizer included.

    The columns of the output matrices that read the units are 0, so scores are those under `Prune` to rounding. The
    shapes stay: nothing gets smaller or faster.

    Raises:
        MechirError: as `Prune`; for units that the model does not have, a folder that is there already.
    """
    target = Path(folder)
    if target.exists():
        raise MechirError(f"'{target}' is there already: give a directory that does not exist yet.")
    chosen = sites_of(model, Prune(sites).sites)
    pruned = copy.deepcopy(model)
    for site in chosen:
        layer = pruned.parts.layers[site.layer]
        if isinstance(site, Head):
            width = model.cfg.d_head
            layer.o.weight[:, site.head * width : (site.head + 1) * width] = 0
        else:
            layer.mlp_out.weight[:, site.neuron] = 0
    temporary = target.with_name(f".{target.name}.part")
    try:
        pruned.hf.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        temporary.rename(target)
    except OSError as error:
        raise MechirError(f"Cannot write '{target}' ({error.strerror}): give another directory.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
