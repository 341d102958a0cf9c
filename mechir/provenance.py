"""What decides the numbers of a run, and what else is recorded with it."""

from __future__ import annotations

import datetime
import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import torch

from mechir.collection_groups import Collections
from mechir.contrasts import contrasts_hash
from mechir.diagnostic_sets import Diagnostic
from mechir.pairs import Pair, pairs_hash
from mechir.registry.names import COLUMNS
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
    record |= {"file": str(Path(str(module.__file__)).resolve())}
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
        contrasts |= {"axiom": source.axiom, "perturbed": about(source).id, "perturbed_sha256": about(source).hash}
    return contrasts | {
        "experiment": module.name,
        "experiment_sha256": file_hash(module),
        "mechir": metadata.version("mechir-encoders"),
        "options": {name: frame_hash(one) if isinstance(one, pd.DataFrame) else one for name, one in chosen.items()},
        "pool": vars(pool) | {"run": _content(pool.run)},
        "model_fingerprint": model.fingerprint,
        "relevant_label": model.head.relevant_label,
        "collection": source.id,
        "collection_sha256": source.hash,
        "pairs_sha256": contrasts_hash(material) if contrasts else pairs_hash(material),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def about(source: Any) -> Any:
    """The collection that findings on a source are about: the one perturbed, or the only one of a group."""
    if isinstance(source, Diagnostic):
        return source.perturbed or source
    members = source.members if isinstance(source, Collections) else ()
    return members[0][1] if len(members) == 1 else source


def collections_of(source: Any) -> list[dict[str, str]]:
    """The collection that findings on a source are about, and where it is several, each of them."""
    whole = about(source)
    several = [one for _, one in whole.members] if isinstance(whole, Collections) else []
    return [dict(zip(COLUMNS, (one.id, one.full_name, one.hash), strict=True)) for one in (whole, *several)]


def asked_of(module: ModuleType, model: Any, source: Any, pool: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was asked for, to ask for it again from anywhere; recorded, but no part of its identity.

    `asked`: the options of the experiment as they were `chosen`, without those that it found; `given`: the other
    options of the command line, of a diagnostic set made otherwise without those of a pool; `file`: the experiment's;
    `collections`: what findings are about.
    """
    on, sample = source, dict(vars(pool))
    given: dict[str, Any] = {"model": _whole(model.cfg.model_name)}
    if isinstance(source, Diagnostic):
        on, sample = source.perturbed, dict(source.asked or {})
        given["diagnostic"] = sample.pop("name", source.axiom)
        given |= {"data": str(source.folder.resolve())} if source.folder is not None else {}
    if isinstance(on, Collections):
        given["collection"] = [f"{group}:{one.address}" for group, one in on.members]
    elif on is not None:
        given["collection"] = [on.address]
    if isinstance(source, Diagnostic):
        given |= {"filler": list(source.fillers), "swap": source.swap}
    given |= sample | ({"run": _whole(sample["run"])} if sample.get("run") else {})
    file = str(Path(str(module.__file__)).resolve())
    return {"asked": dict(chosen), "given": given, "file": file, "collections": collections_of(source)}


def _whole(name: str | Path) -> str:
    """The whole path of a file or a folder; a name as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else str(name)


def _content(name: str | Path | None) -> str | None:
    """The SHA-256 of a file, wherever it lies; a name as it is."""
    if name is None or not Path(name).is_file():
        return name if name is None else str(name)
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


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
    """Writes the record of a run and the frames that belong to it, before anything is measured; `asked`: `asked_of`."""
    certified = list(pairs[:: max(1, len(pairs) // CERTIFIED)])[:CERTIFIED]
    encoded = model.encode(pairs)
    for name, frame in frames.items():
        stored.write_frame(name, frame)
    stored.write_record(
        {
            "id": stored.id,
            "identity": dict(identity),
            **asked,
            "model": model.cfg.model_name,
            "model_revision": model.revision,
            "units": n_units,
            "pairs": len(pairs),
            "queries": len({pair.query_id for pair in pairs}),
            "skipped": len(frames.get("skipped", ())),
            "truncated_documents": encoded.truncated,
            "certificate": _certificate(model, certified),
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


def _certificate(model: Any, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The parity certificate over these pairs, made once in the life of a loaded model, where and as exact as it is."""
    known = _CERTIFICATES.setdefault(model, {})
    key = (pairs_hash(pairs), str(model.dtype), str(model.device))  # `to` changes a model in place
    if key not in known:
        known[key] = model.certify(pairs)
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
