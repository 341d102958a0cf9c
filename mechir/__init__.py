"""mechir: how a neural reranker decides that a document is relevant, proved by intervention.

`import mechir as mi`; then `mi.load`, `mi.collection`, `mi.Mask`, `mi.Ablate`, `mi.sweep`, `mi.run`. What needs
transformers and TransformerLens is imported at first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from mechir.activations import Activations as Activations
from mechir.activations import means as means
from mechir.activations import record as record
from mechir.activations import samples as samples
from mechir.batches import Batch as Batch
from mechir.circuits import Circuit as Circuit
from mechir.circuits import Edge as Edge
from mechir.circuits import parse_edge as parse_edge
from mechir.contrasts import Contrast as Contrast
from mechir.contrasts import align as align
from mechir.errors import MechirError as MechirError
from mechir.hooks import Intervention as Intervention
from mechir.interventions import Ablate as Ablate
from mechir.interventions import Mask as Mask
from mechir.interventions import Patch as Patch
from mechir.judged_collection import collection as collection
from mechir.pairs import Pair as Pair
from mechir.segments import Direction as Direction
from mechir.segments import Segment as Segment
from mechir.segments import directions as directions
from mechir.sites import Attn as Attn
from mechir.sites import Head as Head
from mechir.sites import Mlp as Mlp
from mechir.sites import Neuron as Neuron
from mechir.sites import Resid as Resid
from mechir.sites import Score as Score
from mechir.sites import Singular as Singular
from mechir.sites import parse_site as parse_site
from mechir.subspaces import Add as Add
from mechir.subspaces import EditEmbedding as EditEmbedding
from mechir.subspaces import Project as Project
from mechir.subspaces import Subspace as Subspace
from mechir.sweeps import sweep as sweep

_LATER = {
    "HookedEncoder": "mechir.encoder",
    "load": "mechir.encoder.default",
    "diagnostic": "mechir.diagnostic_sets",
    "run": "mechir.engine",
    "load_experiment": "mechir.catalog",
    "Experiment": "mechir.experiment",
    "Finished": "mechir.experiment",
    "option": "mechir.options",
    "report": "mechir.reporting.report",
    "Finding": "mechir.registry.findings",
    "findings": "mechir.registry.queries",
    "sql": "mechir.registry.queries",
    "links": "mechir.registry.links",
    "dossier": "mechir.registry.dossier",
    "Pool": "mechir.material",
    "patch": "mechir.methods.patching",
    "path_patch": "mechir.methods.paths",
    "attribute": "mechir.methods.attribution",
    "screen_then_verify": "mechir.methods.attribution",
    "conductance": "mechir.methods.conductance",
    "token_attribution": "mechir.methods.tokens",
    "attention_by_grade": "mechir.methods.matching",
    "all_heads": "mechir.model_sites",
    "export": "mechir.exporting",
}
_LATER_MODULES = ("planted", "diagnostics", "show")


def __getattr__(name: str) -> Any:
    if name in _LATER_MODULES:
        return importlib.import_module(f"mechir.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'mechir' has no attribute '{name}'")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    """The public names; docs/api.md has one line for each."""
    eager = [name for name, value in globals().items() if getattr(value, "__module__", "").startswith("mechir.")]
    return sorted([*eager, *_LATER, *_LATER_MODULES])
