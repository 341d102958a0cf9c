"""Findings on disk: one immutable Parquet entry for each run, and later entries that supersede it.

`<registry>/findings/<run_id>.<n>.v<schema>.parquet`. Of each run the entry with the largest n counts: a correction is
the next entry, a deletion an empty one with its reason. An entry appears whole under a number that nobody else can take
(it is written under a temporary name, synced, and linked), so writers need no lock, and a killed one leaves nothing
that counts. An entry that cannot be read is named and moved to `findings/damaged/`; its number is not used again.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mechir.atomic import whole
from mechir.errors import MechirError
from mechir.registry.runs import Run, make_folder, refuse_other, runs

SCHEMA = 3
"""The schema that this version writes; it reads all up to it. To add a column, raise it: older entries lack it."""
_NAME = re.compile(r"([0-9a-f]+)\.(\d+)\.v(\d+)\.parquet")


class Entry(NamedTuple):
    """The parts of the name of a file of findings."""

    run_id: str
    number: int
    schema: int
    path: Path


def entries(registry: Path) -> list[Entry]:
    """All entries of a registry, by run and number; raises for an entry of a newer mechir."""
    refuse_other(registry)
    named = [(_NAME.fullmatch(file.name), file) for file in (registry / "findings").glob("*.parquet")]
    listed = sorted(Entry(name[1], int(name[2]), int(name[3]), file) for name, file in named if name)
    for entry in listed:
        if entry.schema > SCHEMA:
            by = _metadata(entry.path).get("mechir", "a newer version")
            raise MechirError(
                f"'{registry}' holds findings of schema {entry.schema}, and this mechir reads up to {SCHEMA}: "
                f"install mechir-encoders {by} or later."
            )
    return listed


def latest(registry: Path) -> list[Entry]:
    """The last entry of each run, which counts; deleted runs have an empty one."""
    return list({entry.run_id: entry for entry in entries(registry)}.values())


def has_findings(registry: Path, run_id: str) -> bool:
    """Whether the findings of a run are stored and not deleted."""
    return _counts(_of_run(registry, run_id))


def record(registry: Path, run_id: str, findings: pd.DataFrame) -> bool:
    """Writes the findings of a run, `checked`, unless some are stored already; whether it wrote."""
    before = _of_run(registry, run_id)
    return not _counts(before) and _append(registry, run_id, before, findings, {}) is not None


def correct(registry: Path, run_id: str, findings: pd.DataFrame, reason: str) -> Path:
    """Writes other findings of a run, which supersede the stored ones; raises without a reason or stored findings."""
    if not reason.strip():
        raise MechirError("A correction without a reason is none: say in reason= what was wrong.")
    if not _of_run(registry, run_id):
        raise MechirError(f"Run {run_id} has no findings in '{registry}' to correct.")
    return _supersede(registry, run_id, findings, {"reason": reason})


def delete_run(registry: Path, run: Run, reason: str) -> None:
    """Deletes the rows of a run and leaves an empty entry with the reason; raises while another run needs the rows."""
    if not reason.strip():
        raise MechirError("A run is not deleted without a reason: write reason=TEXT.")
    followers = [other.id for other in runs(registry) if other.record.get("rows_of") == run.id]
    if followers:
        raise MechirError(f"Run {followers[0]} summarises the rows of run {run.id}: delete that one first.")
    nothing = pd.DataFrame({"run_id": pd.Series(dtype="str")})
    _supersede(registry, run.id, nothing, {"reason": reason, "deleted": "1"})
    shutil.rmtree(run.path)


def reasons(registry: Path) -> pd.DataFrame:
    """Lists corrections and deletions: `run_id`, `number`, `what`, `reason`."""
    rows = []
    for entry in entries(registry):
        notes = _metadata(entry.path)
        if "reason" in notes:
            rows.append((entry.run_id, entry.number, "deleted" if "deleted" in notes else "corrected", notes["reason"]))
    return pd.DataFrame(rows, columns=["run_id", "number", "what", "reason"])


def set_damaged_aside(registry: Path) -> list[str]:
    """Moves every entry that cannot be read to `findings/damaged/`, with a warning; returns their names.

    The run's own command writes it anew.
    """
    moved = []
    aside = registry / "findings" / "damaged"
    for entry in entries(registry):
        try:
            pq.read_table(entry.path)
        except (OSError, pa.ArrowException):
            try:
                aside.mkdir(exist_ok=True)
                entry.path.replace(aside / entry.path.name)
            except FileNotFoundError:
                continue  # another reader was faster, and warned
            except OSError as error:
                raise MechirError(
                    f"'{entry.path}' is damaged and cannot be moved ({error.strerror}): take it away, then ask again."
                ) from error
            moved.append(entry.path.name)
            warnings.warn(
                f"'{entry.path}' is damaged and now lies in '{aside}': run {entry.run_id} has no findings until its "
                "command is given again.",
                stacklevel=3,
            )
    return moved


def _of_run(registry: Path, run_id: str) -> list[Entry]:
    return [entry for entry in entries(registry) if entry.run_id == run_id]


def _counts(before: Sequence[Entry]) -> bool:
    """Whether the last of a run's entries holds findings and no deletion."""
    return bool(before) and "deleted" not in _metadata(before[-1].path)


def _supersede(registry: Path, run_id: str, findings: pd.DataFrame, notes: Mapping[str, str]) -> Path:
    """Writes an entry after all others; where another process takes its number, the next one."""
    while (path := _append(registry, run_id, _of_run(registry, run_id), findings, notes)) is None:
        pass
    return path


def _append(
    registry: Path, run_id: str, before: Sequence[Entry], findings: pd.DataFrame, notes: Mapping[str, str]
) -> Path | None:
    """Writes the entry after those `before`; None where another process took its number first."""
    folder = registry / "findings"
    make_folder(registry, folder)
    # Numbers of damaged entries are never used again, so that a process that still sees one moves nothing else.
    damaged = [_NAME.fullmatch(file.name) for file in (folder / "damaged").glob(f"{run_id}.*.parquet")]
    number = (
        max([*(entry.number for entry in before[-1:]), *(int(name[2]) for name in damaged if name)], default=-1) + 1
    )
    table = pa.Table.from_pandas(findings, preserve_index=False)
    notes = {"mechir": metadata.version("mechir-encoders")} | dict(notes)
    table = table.replace_schema_metadata((table.schema.metadata or {}) | notes)
    path = folder / f"{run_id}.{number:03d}.v{SCHEMA}.parquet"
    try:
        with whole(path, once=True) as file:
            pq.write_table(table, file)
    except FileExistsError:
        return None
    return path


def _metadata(path: Path) -> dict[str, str]:
    """The notes stored with an entry; empty where it cannot be read."""
    try:
        notes = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return {name.decode(): text.decode() for name, text in notes.items() if name != b"pandas"}
