"""Runs on disk: a record, and one immutable Parquet part for each finished unit.

`<registry>/runs/<run_id>/` holds `run.json`, `judged.parquet` (what the ideal ranking may use), `part-<unit>.parquet`
and, once every unit is there, `summary.parquet` and the chart. A part that exists is whole: resuming a run is computing
the parts that do not exist. There is no lock and no database; any number of processes may fill one run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mechir.atomic import whole
from mechir.errors import MechirError, closest
from mechir.methods.evaluation import evaluate
from mechir.registry.names import model_name
from mechir.registry.renamed import renamed

if TYPE_CHECKING:
    from mechir.views.pictures import Picture

DEFAULT = Path("mechir-registry")
NOTES = ("seconds", "device", "host", "dtype", "threads", "peak_gb")
"""What each part says of how it was computed."""
NAME = "part-{:05d}.parquet"
"""The file of the rows of a unit."""
PATIENCE = 120
"""Seconds that a file of another machine may take to be seen."""
ANSWERS = 3
"""Sentences of its answer that a run shows."""
ROWS = 20
"""Rows of a table that a notebook shows of a run."""


@dataclass(frozen=True)
class Run:
    """A stored run, by its directory."""

    path: Path

    def __repr__(self) -> str:
        """Names the experiment, the model and the collection; the path where nothing is stored yet."""
        try:
            record = self.record
        except OSError:
            return f"Run({str(self.path)!r})"
        subject = (
            f"{record['identity']['experiment']}, {model_name(record['model'])} on {record['identity']['collection']}"
        )
        return f"Run({self.id}: {subject}, {len(self.done())} of {record['units']} units)"

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of everything that decides the numbers."""
        return self.path.name

    @property
    def record(self) -> dict[str, Any]:
        """The content of `run.json`: the identity, and the provenance that is not part of it."""
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
        """The folder of the rows: this one, or that of the run whose rows this one summarises."""
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
        """`reason`, `query_id`, `doc_id`: what the collection and the pool left out."""
        file = self.path / "left_out.parquet"
        return pd.read_parquet(file) if file.is_file() else pd.DataFrame(columns=["reason", "query_id", "doc_id"])

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of every finished unit, in the order of the units."""
        parts = [pd.read_parquet(self.part(unit)) for unit in sorted(self.done())]
        if not parts:
            raise MechirError(f"Run {self.id} holds no finished unit yet: start it again with the same command.")
        return pd.concat(parts, ignore_index=True)

    @property
    def summary(self) -> pd.DataFrame:
        """The experiment's summary, once every unit is there."""
        if not self.finished:
            state = f"{len(self.done())} of {self.record['units']} units"
            raise MechirError(f"Run {self.id} is not finished ({state}): start it again with the same command.")
        frame = pd.read_parquet(self.path / "summary.parquet")
        return renamed(frame, self.record.get("identity", {}).get("experiment", ""))

    @property
    def table(self) -> pd.DataFrame:
        """The part of the summary that the experiment shows; all of it of runs of older versions."""
        file = self.path / "table.parquet"
        return pd.read_parquet(file) if file.is_file() else self.summary

    @property
    def answer(self) -> list[str]:
        """What the run found, in words: for each measure how many findings hold, and the largest; may be empty."""
        from mechir.registry.in_words import in_words  # it reads runs

        return in_words(self) if self.finished else []

    @property
    def chart(self) -> Picture:
        """The chart: a notebook draws it, `save("x.pdf")` writes it.

        Raises:
            MechirError: for a run that is not finished, or was drawn by an older version.
        """
        from mechir.views.pictures import Picture

        file = self.path / "chart.json"
        if not file.is_file():
            _ = self.summary  # refuses a run that is not finished
            raise MechirError(
                f"Run {self.id} has no chart.json, as an older mechir drew it: start it again with fresh=True."
            )
        return Picture.of_spec(json.loads(file.read_text(encoding="utf-8")), f"chart of {self!r}")

    def save(self, file: Path | str) -> Path:
        """Writes the chart as `.svg`, `.png` or `.pdf`; `mi.export` writes tables."""
        return self.chart.save(file)

    def _repr_html_(self) -> str:
        """Its name, what it found, the first rows of its table, and its chart."""
        text = "\n".join(f"<p>{escape(line)}</p>" for line in (repr(self), *self.answer[:ANSWERS]))
        if not self.finished:
            return text
        table = self.table.dropna(axis=1, how="all").to_html(index=False, max_rows=ROWS, float_format="{:.3g}".format)
        return f"{text}\n{table}\n{self.chart._repr_svg_()}"

    @property
    def finished(self) -> bool:
        """Whether its summary is stored."""
        return (self.path / "summary.parquet").is_file()

    def evaluate(self, *measures: Any, groups: Any = None) -> pd.DataFrame:
        """The ranking quality of every condition of a run that scores pairs: see `mi.evaluate`.

        Raises:
            MechirError: as `mi.evaluate`, and for a run whose rows are no scores of pairs.
        """
        rows = self.rows
        if lacking := [name for name in ("name", "query_id", "doc_id", "score") if name not in rows]:
            raise MechirError(
                f"Run {self.id} holds no scores of pairs under interventions (no column '{lacking[0]}'): evaluate the "
                "rows of mi.sweep."
            )
        return evaluate(rows, *measures, judged=self.judged, groups=groups)

    def part(self, unit: int) -> Path:
        """The file of the rows of a unit, which need not exist yet."""
        return self.parts / NAME.format(unit)

    def done(self) -> set[int]:
        """The finished units."""
        return {int(file.stem.removeprefix("part-")) for file in self.parts.glob("part-*.parquet")}

    @property
    def computed(self) -> dict[str, Any]:
        """How the finished units were computed, for the record.

        `seconds`, of all together; `devices`, `hosts`, `dtypes` and `thread_counts`, each once; `peak_gb`, the largest
        memory of a process or a GPU. Parts of older runs have seconds, and some the device.
        """
        notes = [pq.read_schema(self.part(unit)).metadata for unit in sorted(self.done())]
        known = {name: [note[name.encode()].decode() for note in notes if name.encode() in note] for name in NOTES}
        seconds, peaks = (list(map(float, known[name])) for name in ("seconds", "peak_gb"))
        several = {f"{name}s": list(dict.fromkeys(known[name])) for name in ("device", "host", "dtype")}
        threads = list(dict.fromkeys(map(int, known["threads"])))
        peak = {"peak_gb": max(peaks)} if peaks else {}
        return {"seconds": round(sum(seconds), 1), **several, "thread_counts": threads, **peak}

    @property
    def seconds(self) -> float:
        """Computing time of the finished units together."""
        return float(self.computed["seconds"])

    @property
    def devices(self) -> list[str]:
        """The devices that computed the finished units, each once."""
        return list(self.computed["devices"])

    def write_part(self, unit: int, rows: pd.DataFrame, seconds: float, device: str = "", **notes: str) -> None:
        """Stores the rows of a unit, whole or not at all, with what it took and where; one that is there stays."""
        table = pa.Table.from_pandas(rows, preserve_index=False)
        notes = {"seconds": f"{seconds:.3f}"} | ({"device": device} if device else {}) | notes
        table = table.replace_schema_metadata((table.schema.metadata or {}) | notes)
        with contextlib.suppress(FileExistsError), whole(self.part(unit), once=True) as file:
            pq.write_table(table, file)

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        """Stores a frame beside the parts."""
        with whole(self.path / f"{name}.parquet") as file:
            frame.to_parquet(file, index=False)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Stores `run.json`."""
        with whole(self.path / "run.json") as file:
            file.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def visible(file: Path) -> Path:
    """The file, once it can be seen: a file system that machines share shows new files after a while.

    Raises:
        MechirError: where it is not there after two minutes.
    """
    for pause in (0.05, *[1.0] * PATIENCE):
        if file.is_file():
            return file
        time.sleep(pause)
        if file.parent.is_dir():
            list(file.parent.iterdir())  # asks the file system anew
    raise MechirError(f"'{file}' is not there: this machine does not see the registry that the run is kept in.")


def seen(run: Run) -> Run:
    """The run, once all parts that its record counts can be seen."""
    parts = run.parts
    for unit in range(run.record["units"]):
        visible(parts / NAME.format(unit))
    return run


def run_id(identity: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of the identity, keys sorted."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]


def open_run(registry: Path, identity: Mapping[str, Any], write: Callable[[Run], None]) -> Run:
    """Opens the run with this identity; `write` stores the record and frames of a new one."""
    run = Run(registry / "runs" / run_id(identity))
    if not (run.path / "run.json").is_file():
        make_folder(registry, run.path)
        write(run)
    return run


def make_folder(registry: Path, folder: Path) -> None:
    """Makes a folder of a registry, if it is not there yet."""
    with unwritable_said(registry):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def unwritable_said(registry: Path) -> Iterator[None]:
    """Says in one sentence that a registry cannot be written to."""
    try:
        yield
    except OSError as error:
        raise MechirError(f"Cannot write the registry '{registry}' ({error.strerror}): give registry=DIR.") from error


def refuse_other(registry: Path) -> None:
    """Raises if the path exists but is not a registry: a file, or a directory that holds something else."""
    hidden = registry.is_dir() and all(file.name.startswith(".") for file in registry.iterdir())
    empty = not registry.exists() or hidden
    if not (empty or (registry / "runs").is_dir() or (registry / "findings").is_dir()):
        raise MechirError(
            f"'{registry}' is no registry: it holds no runs; give registry=DIR, by default mechir-registry."
        )


def runs(registry: Path) -> list[Run]:
    """All runs of a registry, the newest first; raises if the path is not a registry."""
    refuse_other(registry)
    records = sorted((registry / "runs").glob("*/run.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [Run(file.parent) for file in records]


def find_run(registry: Path, name: str) -> Run:
    """The run whose id begins with `name`; raises if none does, or several do."""
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
    matches = []
    for run in runs(registry):
        identity = run.record["identity"]
        about = identity.get("perturbed_sha256", identity["collection_sha256"])
        same = (identity["experiment"], identity["model_fingerprint"], about) == (experiment, model, collection)
        if same and run.finished and all(identity["options"].get(key) == value for key, value in chosen.items()):
            matches.append(run)
    return matches
