"""mechir: how a neural reranker decides that a document is relevant, proved by intervention.

`import mechir as mi`; then `mi.load`, `mi.collection`, `mi.Mask`, `mi.Ablate`, `mi.sweep`, `mi.run`. What needs
transformers and TransformerLens is imported at first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from mechir.activations import Activations, means, record, samples
from mechir.batches import Batch
from mechir.circuits import Circuit, Edge, parse_edge
from mechir.contrasts import Contrast, align
from mechir.errors import MechirError
from mechir.hooks import Intervention
from mechir.inputs import as_pairs as pairs
from mechir.interventions import Ablate, Mask, Patch
from mechir.opening import collection
from mechir.pair import Pair, Pairs
from mechir.segments import Direction, Segment, directions
from mechir.sites import Attn, Head, KvHead, Mlp, Neuron, Resid, Score, Singular, parse_site
from mechir.subspaces import Add, EditEmbedding, Project, Subspace
from mechir.sweeps import sweep
from mechir.templates import Template

__all__ = ["Batch", "Contrast", "Direction", "MechirError", "Pair", "Pairs"]
__all__ += ["Segment", "Template", "align", "collection", "directions", "pairs"]
__all__ += ["Ablate", "Add", "EditEmbedding", "Intervention", "Mask", "Patch", "Project", "Subspace", "sweep"]
__all__ += ["Attn", "Head", "KvHead", "Mlp", "Neuron", "Resid", "Score", "Singular", "parse_site"]
__all__ += ["Activations", "Circuit", "Edge", "means", "parse_edge", "record", "samples"]

_LATER = {
    "HookedEncoder": "mechir.encoder",
    "load": "mechir.encoder.opening",
    "diagnostic": "mechir.diagnostic_sets",
    "run": "mechir.running",
    "Local": "mechir.engine",
    "Dask": "mechir.engine",
    "Slurm": "mechir.engine",
    "Allocation": "mechir.engine",
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
    "edges": "mechir.methods.edges",
    "EdgeScores": "mechir.methods.edge_scores",
    "EdgeRoles": "mechir.methods.edge_scores",
    "Only": "mechir.methods.circuit_runs",
    "Without": "mechir.methods.circuit_runs",
    "nested": "mechir.methods.selection",
    "stability": "mechir.methods.selection",
    "faithfulness": "mechir.methods.faithfulness",
    "curve": "mechir.methods.faithfulness_curve",
    "save_circuit": "mechir.methods.circuit_files",
    "load_circuit": "mechir.methods.circuit_files",
    "attend": "mechir.methods.attend",
    "AttentionSplit": "mechir.methods.attend_split",
    "both_ways": "mechir.methods.edge_scores",
    "backups": "mechir.methods.backups",
    "edge_backups": "mechir.methods.edge_backups",
    "completeness": "mechir.methods.completeness",
    "specificity": "mechir.methods.specificity",
    "evaluate": "mechir.methods.evaluation",
    "pyterrier": "mechir.terrier",
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
