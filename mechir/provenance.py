"""What decides the numbers of a run, and what else is recorded with it."""

from __future__ import annotations

import datetime
import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import torch

from mechir.contrasts import contrasts_hash
from mechir.diagnostic_sets import Diagnostic
from mechir.encoder.certify import refuse_unlike
from mechir.pairs import Pair, pairs_hash
from mechir.registry.runs import Run

CERTIFIED = 8
"""Pairs on which each run compares the model with Hugging Face before anything is measured."""


def file_hash(module: ModuleType) -> str:
    """The SHA-256 of an experiment's file."""
    return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()


def again(module: ModuleType, of: Run) -> dict[str, Any]:
    """The identity of a run that summarises the rows of another."""
    return of.record["identity"] | {"experiment": module.name, "experiment_sha256": file_hash(module), "rows_of": of.id}


def follow(stored: Run, module: ModuleType, of: Run) -> None:
    """Writes the record of a run that summarises the rows of another, and the frames that belong to it."""
    stored.write_frame("judged", of.judged)
    record = of.record | {"id": stored.id, "identity": again(module, of), "rows_of": of.id}
    stored.write_record(record | {"commit": _commit(Path(str(module.__file__)).parent)})


def identity_of(
    module: ModuleType,
    model: Any,
    source: Any,
    material: Sequence[Any],
    pool: Any,
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides the numbers, and so the id of the run."""
    contrasts: dict[str, Any] = {}
    if isinstance(source, Diagnostic):
        contrasts = {"fillers": list(source.fillers), "swap": source.swap}
        contrasts |= {"axiom": source.axiom, "perturbed": source.collection or source.id}
    return contrasts | {
        "experiment": module.name,
        "experiment_sha256": file_hash(module),
        "mechir": metadata.version("mechir-encoders"),
        "options": {name: frame_hash(one) if isinstance(one, pd.DataFrame) else one for name, one in chosen.items()},
        "pool": vars(pool),
        "model_fingerprint": model.fingerprint,
        "relevant_label": model.head.relevant_label,
        "collection": source.id,
        "collection_sha256": source.hash,
        "pairs_sha256": contrasts_hash(material) if contrasts else pairs_hash(material),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def frame_hash(frame: pd.DataFrame) -> str:
    """The SHA-256 of a frame that an experiment found and measures with."""
    return hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()


def begin(
    stored: Run,
    identity: Mapping[str, Any],
    module: ModuleType,
    model: Any,
    pairs: Sequence[Pair],
    frames: Mapping[str, pd.DataFrame],
    n_units: int,
    asked: Mapping[str, Any],
) -> None:
    """Writes the record of a run and the frames that belong to it, before anything is measured.

    `asked`: the options as they were given, without those that the run found.
    """
    encoded = model.encode(pairs)
    for name, frame in frames.items():
        stored.write_frame(name, frame)
    stored.write_record(
        {
            "id": stored.id,
            "identity": dict(identity),
            "asked": dict(asked),
            "model": model.cfg.model_name,
            "model_revision": model.revision,
            "units": n_units,
            "pairs": len(pairs),
            "queries": len({pair.query_id for pair in pairs}),
            "skipped": len(frames.get("skipped", ())),
            "truncated_documents": encoded.truncated,
            "reading": asdict(model.reading),
            "certificate": certificate(model, pairs),
            "versions": {
                name: metadata.version(name) for name in ("torch", "transformers", "transformer-lens", "pandas")
            },
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "host": platform.node(),
            "commit": _commit(Path(str(module.__file__)).parent),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )


_CERTIFICATES: WeakKeyDictionary[Any, dict[tuple[str, ...], dict[str, Any]]] = WeakKeyDictionary()


def certificate(model: Any, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The parity certificate over some of these pairs, made once in the life of a model, where and as exact as it is.

    Raises:
        MechirError: for a model that reads or scores otherwise than Hugging Face's does.
    """
    some = list(pairs[:: max(1, len(pairs) // CERTIFIED)])[:CERTIFIED]
    known = _CERTIFICATES.setdefault(model, {})
    key = (pairs_hash(some), str(model.dtype), str(model.device))  # `to` changes a model in place
    if key not in known:
        found = model.certify(some)
        refuse_unlike(found, model.cfg.model_name)
        known[key] = found
    return known[key]


def _commit(folder: Path) -> str | None:
    """The git commit of the experiment's folder, where it is in a checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
