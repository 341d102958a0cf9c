"""A job on disk: the folder `job` of a run, from which workers read what they compute.

`job.json` names the experiment's file, its options, and the model; `material.parquet` has a row per pair or contrast
with its unit; each frame that the experiment prepared has a file. It lies there while units are missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from mechir import provenance
from mechir.atomic import whole
from mechir.contrasts import Contrast, contrasts_hash
from mechir.errors import MechirError
from mechir.job import Job, ModelReference
from mechir.pair import Pair, pairs_hash
from mechir.registry.runs import visible
from mechir.templates import Template

FOLDER, FILE, MATERIAL = "job", "job.json", "material"
SIDE = ("query", "document", "query_id", "doc_id", "grade")
"""The columns of a pair; those of a contrast's donor begin with `donor_`."""
KEPT = 4
"""Jobs that a worker keeps in memory: it changes between the experiments of a graph."""


def write_job(job: Job) -> None:
    """Stores a job beside its run, `job.json` last; whatever lies there already is of the same identity."""
    assert isinstance(job.model, ModelReference)
    folder = job.path / FOLDER
    if (folder / FILE).is_file():
        return
    folder.mkdir(exist_ok=True)
    file, options, frames = provenance.by_file(job.experiment)
    _write_frame(_rows(job.units), folder / f"{MATERIAL}.parquet")
    for name, frame in frames.items():
        _write_frame(frame, folder / f"frame_{name}.parquet")
    model = asdict(job.model) | {"prompt_options": _as_text(job.model.prompt_options)}
    record = {"file": file, "options": options, "frames": list(frames), "model": model, "device": job.device}
    record["material_sha256"] = _digest(job.units)
    with whole(folder / FILE) as target:
        target.write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")


@lru_cache(maxsize=KEPT)
def read_job(path: Path) -> Job:
    """Reads the job of a run; raises where its material is not that of the run."""
    folder = path / FOLDER
    record = json.loads(visible(folder / FILE).read_text(encoding="utf-8"))
    frames = {name: pd.read_parquet(folder / f"frame_{name}.parquet") for name in record["frames"]}
    experiment = provenance.of_file((record["file"], record["options"], frames))
    cut = tuple(_units(pd.read_parquet(folder / f"{MATERIAL}.parquet")))
    if _digest(cut) != record["material_sha256"]:
        raise MechirError(f"The material in '{folder}' is damaged: take the folder away and start again.")
    options = tuple((name, _as_value(value)) for name, value in record["model"].pop("prompt_options"))
    model = ModelReference(**record["model"], prompt_options=options)
    return Job(experiment, model, None, cut, path, record["device"])


def forget_job(path: Path) -> None:
    """Removes the job of a run that is finished."""
    shutil.rmtree(path / FOLDER, ignore_errors=True)


def _digest(units: Sequence[Sequence[Any]]) -> str:
    """The SHA-256 of the material, unit after unit."""
    material = [item for unit in units for item in unit]
    contrasts = bool(material) and isinstance(material[0], Contrast)
    return contrasts_hash(material) if contrasts else pairs_hash(material)


def _write_frame(frame: pd.DataFrame, file: Path) -> None:
    with whole(file) as target:
        frame.to_parquet(target)


def _as_text(options: tuple[tuple[str, Any], ...]) -> list[tuple[str, Any]]:
    return [(name, asdict(value) if isinstance(value, Template) else value) for name, value in options]


def _as_value(value: Any) -> Any:
    return Template(**value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value


def _rows(units: Sequence[Sequence[Any]]) -> pd.DataFrame:
    rows = []
    for number, unit in enumerate(units):
        for item in unit:
            row: dict[str, Any] = {"unit": number}
            if isinstance(item, Contrast):
                row |= _side(item.base) | {f"donor_{key}": value for key, value in _side(item.donor).items()}
                row["filler"] = item.filler
            else:
                row |= _side(item)
            rows.append(row)
    frame = pd.DataFrame(rows)
    grades = [name for name in frame if name.endswith("grade")]
    return frame.astype(dict.fromkeys(grades, "Int64"))


def _side(pair: Pair) -> dict[str, Any]:
    return {name: getattr(pair, name) for name in SIDE}


def _units(rows: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    contrasts = "filler" in rows
    sides = [_pairs(rows, "")] + ([_pairs(rows, "donor_")] if contrasts else [])
    items: list[Any] = sides[0]
    if contrasts:
        items = [Contrast(*three) for three in zip(*sides, rows["filler"], strict=True)]
    for _, unit in groupby(zip(rows["unit"], items, strict=True), key=lambda pair: pair[0]):
        yield tuple(item for _, item in unit)


def _pairs(rows: pd.DataFrame, prefix: str) -> list[Pair]:
    columns = [rows[prefix + name].tolist() for name in SIDE]
    pairs = (Pair(*values) for values in zip(*columns, strict=True))
    return [pair if pair.grade is not pd.NA else replace(pair, grade=None) for pair in pairs]
