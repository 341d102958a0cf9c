"""Where findings are kept: one immutable Parquet entry for each run, and later entries that supersede it.

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
from mechir.registry.runs import Run, refuse_other, runs

SCHEMA = 3
"""Of the entries that this version writes; it reads all up to it. To add a column, raise it: older entries lack it."""
_NAME = re.compile(r"([0-9a-f]+)\.(\d+)\.v(\d+)\.parquet")


class Entry(NamedTuple):
    """One file of findings, by its name."""

    run_id: str
    number: int
    schema: int
    path: Path


def entries(registry: Path) -> list[Entry]:
    """Every entry of a registry, by run and number.

    Raises:
        MechirError: for a path that is no registry, or an entry of a newer mechir.
    """
    refuse_other(registry)
    named = [(_NAME.fullmatch(file.name), file) for file in (registry / "findings").glob("*.parquet")]
    found = sorted(Entry(one[1], int(one[2]), int(one[3]), file) for one, file in named if one)
    for entry in found:
        if entry.schema > SCHEMA:
            by = _metadata(entry.path).get("mechir", "a newer version")
            raise MechirError(
                f"'{registry}' holds findings of schema {entry.schema}, and this mechir reads up to {SCHEMA}: "
                f"install mechir-encoders {by} or later."
            )
    return found


def latest(registry: Path) -> list[Entry]:
    """The entry that counts of each run; deleted runs have an empty one."""
    return list({entry.run_id: entry for entry in entries(registry)}.values())


def has_findings(registry: Path, run_id: str) -> bool:
    """Whether the findings of a run are there, and not deleted."""
    return _there(_of_run(registry, run_id))


def record(registry: Path, run_id: str, findings: pd.DataFrame) -> bool:
    """Writes the findings of a run, `checked`; whether they were new. What is there already stays as it is."""
    own = _of_run(registry, run_id)
    return not _there(own) and _append(registry, run_id, own, findings, {}) is not None


def correct(registry: Path, run_id: str, findings: pd.DataFrame, reason: str) -> Path:
    """Writes other findings of a run, which supersede those that are there; these stay on the disk.

    Raises:
        MechirError: without a reason, or for a run without findings.
    """
    if not reason.strip():
        raise MechirError("A correction without a reason is none: say in reason= what was wrong.")
    if not _of_run(registry, run_id):
        raise MechirError(f"Run {run_id} has no findings in '{registry}' to correct.")
    return _supersede(registry, run_id, findings, {"reason": reason})


def delete_run(registry: Path, run: Run, reason: str) -> None:
    """Deletes the rows of a run. What stays is an empty entry that says when it was deleted, and why.

    Raises:
        MechirError: without a reason, or while another run summarises the rows of this one.
    """
    if not reason.strip():
        raise MechirError("A run is not deleted without a reason: write --reason TEXT.")
    followers = [one.id for one in runs(registry) if one.record.get("rows_of") == run.id]
    if followers:
        raise MechirError(f"Run {followers[0]} summarises the rows of run {run.id}: delete that one first.")
    nothing = pd.DataFrame({"run_id": pd.Series(dtype="str")})
    _supersede(registry, run.id, nothing, {"reason": reason, "deleted": "1"})
    shutil.rmtree(run.path)


def reasons(registry: Path) -> pd.DataFrame:
    """Corrections and deletions: `run_id`, `number`, `what`, `reason`."""
    rows = []
    for entry in entries(registry):
        told = _metadata(entry.path)
        if "reason" in told:
            what = "deleted" if "deleted" in told else "corrected"
            rows.append({"run_id": entry.run_id, "number": entry.number, "what": what, "reason": told["reason"]})
    return pd.DataFrame(rows, columns=["run_id", "number", "what", "reason"])


def set_damaged_aside(registry: Path) -> list[str]:
    """Moves every entry that cannot be read to `findings/damaged/`, with a warning that names it; their names.

    The run's own command writes it anew.
    """
    found = []
    aside = _aside(registry)
    for entry in entries(registry):
        try:
            pq.read_table(entry.path)
        except (OSError, pa.ArrowException):
            try:
                aside.mkdir(exist_ok=True)
                entry.path.replace(aside / entry.path.name)
            except FileNotFoundError:
                continue  # another reader was faster, and said so
            except OSError as error:
                raise MechirError(
                    f"'{entry.path}' is damaged and cannot be moved ({error.strerror}): take it away, then ask again."
                ) from error
            found.append(entry.path.name)
            warnings.warn(
                f"'{entry.path}' is damaged and now lies in '{aside}': run {entry.run_id} has no findings until its "
                "command is given again.",
                stacklevel=3,
            )
    return found


def _aside(registry: Path) -> Path:
    """Where damaged entries go."""
    return registry / "findings" / "damaged"


def _spoilt(registry: Path, run_id: str) -> list[int]:
    """The numbers of a run's damaged entries: never used again, so that who still sees one moves nothing else."""
    named = [_NAME.fullmatch(file.name) for file in _aside(registry).glob(f"{run_id}.*.parquet")]
    return [int(one[2]) for one in named if one]


def _of_run(registry: Path, run_id: str) -> list[Entry]:
    """The entries of one run, the one that counts last."""
    return [entry for entry in entries(registry) if entry.run_id == run_id]


def _there(own: Sequence[Entry]) -> bool:
    """Whether the last of a run's entries holds findings, rather than that it was deleted."""
    return bool(own) and "deleted" not in _metadata(own[-1].path)


def _supersede(registry: Path, run_id: str, findings: pd.DataFrame, told: Mapping[str, str]) -> Path:
    """An entry after all that are there; where somebody else takes its number, the next one."""
    while (path := _append(registry, run_id, _of_run(registry, run_id), findings, told)) is None:
        pass
    return path


def _append(
    registry: Path, run_id: str, own: Sequence[Entry], findings: pd.DataFrame, told: Mapping[str, str]
) -> Path | None:
    """The entry after a run's `own`; None where another process took its number first."""
    folder = registry / "findings"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MechirError(f"Cannot write the registry '{registry}' ({error.strerror}): give --registry DIR.") from error
    number = max([entry.number for entry in own[-1:]] + _spoilt(registry, run_id), default=-1) + 1
    table = pa.Table.from_pandas(findings, preserve_index=False)
    written = {"mechir": metadata.version("mechir-encoders")} | dict(told)
    table = table.replace_schema_metadata((table.schema.metadata or {}) | _bytes(written))
    path = folder / f"{run_id}.{number:03d}.v{SCHEMA}.parquet"
    try:
        with whole(path, once=True) as file:
            pq.write_table(table, file)
    except FileExistsError:
        return None
    return path


def _bytes(told: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): text.encode() for name, text in told.items()}


def _metadata(path: Path) -> dict[str, str]:
    """What an entry says of itself; nothing where it cannot be read."""
    try:
        told = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return {name.decode(): text.decode() for name, text in told.items() if name != b"pandas"}
