"""Runs on disk: what was asked, and one immutable Parquet part for each finished unit.

`<registry>/runs/<run_id>/` holds `run.json`, `judged.parquet` (what the ideal ranking may use), `part-<unit>.parquet`
and, once every unit is there, `summary.parquet` and the chart. A part is written under a temporary name, synced to
disk and renamed, so a part that exists is whole: resuming a run is computing the parts that do not exist. There is no
lock and no database; any number of processes may fill one run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mechir.atomic import whole
from mechir.errors import MechirError, closest
from mechir.registry.renamed import renamed

DEFAULT = Path("mechir-registry")


@dataclass(frozen=True)
class Run:
    """A stored run: its directory, and what is in it."""

    path: Path

    def __repr__(self) -> str:
        """Which experiment, on what; where nothing is stored yet, where it will be."""
        try:
            told = self.record
        except OSError:
            return f"Run({str(self.path)!r})"
        of = f"{told['identity']['experiment']}, {told['model']} on {told['identity']['collection']}"
        return f"Run({self.id}: {of}, {len(self.done())} of {told['units']} units)"

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of everything that decides the numbers."""
        return self.path.name

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` says: identity, and the provenance that is recorded but not part of it."""
        file = self.path / "run.json"
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise MechirError(
                f"'{file}' is damaged ({error}): take the folder '{self.path.name}' out of the registry, and start its "
                "command again."
            ) from error

    @property
    def parts(self) -> Path:
        """Where the rows are: here, or in the run whose rows this one summarises."""
        return self.path.with_name(self.record.get("rows_of", self.id))

    @property
    def judged(self) -> pd.DataFrame:
        """`query_id`, `doc_id`, `grade`, `pooled`: every document that the ideal ranking may use."""
        return pd.read_parquet(self.path / "judged.parquet")

    @property
    def skipped(self) -> pd.DataFrame:
        """`query_id`, `doc_id`, `filler`, `reason`: the pairs that gave no contrast."""
        return pd.read_parquet(self.path / "skipped.parquet")

    @property
    def left_out(self) -> pd.DataFrame:
        """`reason`, `query_id`, `doc_id`: what the collection and the pool left out; empty where nothing was."""
        file = self.path / "left_out.parquet"
        return pd.read_parquet(file) if file.is_file() else pd.DataFrame(columns=["reason", "query_id", "doc_id"])

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of every finished unit, in the order of the units."""
        units = [self.part(unit) for unit in sorted(self.done())]
        if not units:
            raise MechirError(f"Run {self.id} holds no finished unit yet: start it again with the same command.")
        return pd.concat([pd.read_parquet(file) for file in units], ignore_index=True)

    @property
    def summary(self) -> pd.DataFrame:
        """The experiment's summary, once every unit is there."""
        file = self.path / "summary.parquet"
        if not file.is_file():
            n = self.record["units"]
            raise MechirError(
                f"Run {self.id} is not finished ({len(self.done())} of {n} units): "
                "start it again with the same command."
            )
        return renamed(pd.read_parquet(file), self.record.get("identity", {}).get("experiment", ""))

    @property
    def seconds(self) -> float:
        """Computing time of the finished units together."""
        return sum(float(pq.read_schema(self.part(unit)).metadata[b"seconds"]) for unit in self.done())

    def part(self, unit: int) -> Path:
        """Where the rows of a unit are, or will be."""
        return self.parts / f"part-{unit:05d}.parquet"

    def done(self) -> set[int]:
        """The units that are finished."""
        return {int(file.stem.removeprefix("part-")) for file in self.parts.glob("part-*.parquet")}

    @property
    def devices(self) -> list[str]:
        """Where the finished units were computed, each device once; parts of older runs do not say it."""
        metadata = [pq.read_schema(self.part(unit)).metadata for unit in sorted(self.done())]
        return list(dict.fromkeys(one[b"device"].decode() for one in metadata if b"device" in one))

    def write_part(self, unit: int, rows: pd.DataFrame, seconds: float, device: str = "") -> None:
        """Stores the rows of a unit, whole or not at all, with the time and the device that it took."""
        table = pa.Table.from_pandas(rows, preserve_index=False)
        how = {b"seconds": f"{seconds:.3f}".encode()} | ({b"device": device.encode()} if device else {})
        table = table.replace_schema_metadata((table.schema.metadata or {}) | how)
        with whole(self.part(unit)) as file:
            pq.write_table(table, file)

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """Stores a frame beside the parts."""
        with whole(self.path / f"{name}.parquet") as file:
            frame.to_parquet(file, index=False)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Stores `run.json`."""
        with whole(self.path / "run.json") as file:
            file.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def run_id(identity: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of the identity, keys sorted."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def open_run(registry: Path, identity: Mapping[str, Any], write: Callable[[Run], None]) -> Run:
    """The run with this identity, begun by `write` (its record and frames) if it is not there yet."""
    run = Run(registry / "runs" / run_id(identity))
    if not (run.path / "run.json").is_file():
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MechirError(
                f"Cannot write the registry '{registry}' ({error.strerror}): give --registry DIR."
            ) from error
        write(run)
    return run


def refuse_other(registry: Path) -> None:
    """Refuses a path that is there and is no registry.

    Raises:
        MechirError: for a file, or for a directory that holds something else.
    """
    if not registry.exists() or (registry.is_dir() and not any(registry.iterdir())):
        return
    if not registry.is_dir() or not ((registry / "runs").is_dir() or (registry / "findings").is_dir()):
        raise MechirError(
            f"'{registry}' is no registry: it holds no runs; give --registry DIR, by default mechir-registry."
        )


def runs(registry: Path) -> list[Run]:
    """Every run of a registry, the newest first.

    Raises:
        MechirError: for a path that is no registry.
    """
    refuse_other(registry)
    found = [Run(file.parent) for file in (registry / "runs").glob("*/run.json")]
    return sorted(found, key=lambda run: (run.path / "run.json").stat().st_mtime, reverse=True)


def find_run(registry: Path, name: str) -> Run:
    """The run whose id begins with `name`.

    Raises:
        MechirError: when none does, or several do.
    """
    ids = {run.id: run for run in runs(registry)}
    matches = [id_ for id_ in ids if id_.startswith(name)] if re.fullmatch(r"[0-9a-f]+", name) else []
    if len(matches) == 1:
        return ids[matches[0]]
    if matches:
        raise MechirError(f"'{name}' begins {len(matches)} run ids: write more of it, e.g. {', '.join(matches[:2])}.")
    known = f"the closest are {closest(name, ids)}" if ids else "it holds no run yet"
    raise MechirError(f"There is no run '{name}' in '{registry}': {known}.")


def finished_runs(registry: Path, experiment: str, chosen: Mapping[str, Any], model: str, collection: str) -> list[Run]:
    """The finished runs of an experiment with these options, the newest first.

    `model`: its fingerprint; `collection`: the hash of the one that was read, or perturbed.
    """
    found = []
    for run in runs(registry):
        own = run.record["identity"]
        about = own.get("perturbed_sha256", own["collection_sha256"])
        same = (own["experiment"], own["model_fingerprint"], about) == (experiment, model, collection)
        if same and all(own["options"].get(key) == value for key, value in chosen.items()):
            found += [run] if (run.path / "summary.parquet").is_file() else []
    return found
