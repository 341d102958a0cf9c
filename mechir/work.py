"""A step of a run as work: what begins it, computes its units and finishes it, in this process or on a worker.

`checked` refuses what does not fit before anything is measured, `begin` certifies the model, prepares the experiment
and stores the record, `compute` measures one unit, `finish` writes summary, chart and findings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mechir import provenance
from mechir.atomic import full_disk_said
from mechir.encoder.hooked_model import HookedModel
from mechir.encoding import REASONS
from mechir.errors import LostWorkers, MechirError
from mechir.experiment import Experiment, Inputs, Step
from mechir.inference import FEWEST
from mechir.job import Job, ModelReference
from mechir.job import finish as summarise
from mechir.job_files import forget_job, read_job, write_job
from mechir.material import Pool, Source, Taken, material_of, pairs_of, source_of
from mechir.registry.runs import Run, open_run, seen
from mechir.reranker import needs
from mechir.source_reference import referred, restored
from mechir.sweeps import forwards

SHOWN = 60
"""Longest value printed in the line on the results of `prepare`."""
UNIT, EARLIER = 64, 128
"""A unit is closed at the first whole query that brings it to this many pairs (`scripts/simulate_cluster.py`).

`EARLIER` is the size in runs whose record does not name one.
"""


def units(pairs: Sequence[Any], size: int | None = None) -> list[list[Any]]:
    """The pairs or contrasts in units of whole queries, each closed once it holds `size` of them, by default `UNIT`."""
    size = size or UNIT
    by_query: dict[str, list[Any]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query_id, []).append(pair)
    cut: list[list[Any]] = [[]]
    for query in by_query.values():
        if len(cut[-1]) >= size:
            cut.append([])
        cut[-1] += query
    return cut


KILLS = 3
"""A unit that so many processes were killed by is not tried again in one run."""


@dataclass(frozen=True, eq=False)
class Work:
    """One step, with what it takes to begin and to finish it anywhere.

    Attributes:
        step: its experiment, with the options in normal form once it is checked, its source and its pool.
        model: the model, or where a worker reads it from.
        registry: where runs are kept.
        device: where workers compute; None for a GPU where there is one.
        unit: how many pairs close a unit of a new run.
        fresh: a word that makes the run one of its own; empty for the run of this identity.
        done: the folders of the finished runs that it needs.
        taken: the material, where it was drawn in this process already.
    """

    step: Step
    model: HookedModel | ModelReference
    registry: Path
    device: str | None = None
    unit: int = field(default_factory=lambda: UNIT)
    fresh: str = ""
    done: tuple[Path, ...] = ()
    taken: Taken | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the material, which workers draw themselves, with collections by their address."""
        source, pool = referred(self.step.source), self.step.pool
        pool = pool if pool.run is None else replace(pool, run=provenance.whole_path(pool.run))
        return vars(self) | {"taken": None, "step": (provenance.by_file(self.step.experiment), source, pool)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        experiment, source, pool = state["step"]
        vars(self).update(state | {"step": Step(provenance.of_file(experiment), restored(source), pool)})

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self.step.experiment

    def opened_model(self) -> HookedModel:
        """The model; a worker reads it once in its life."""
        return self.model.load(self.device) if isinstance(self.model, ModelReference) else self.model

    @property
    def source(self) -> Source:
        """The source as the experiment takes it."""
        return source_of(self.experiment, self.step.source)

    def inputs(self, model: HookedModel, say: Callable[[str], None]) -> Inputs:
        """The material of the experiment, and the runs that it needs."""
        material = self.taken.material if self.taken else []
        return Inputs(model, material, self.source, self.step.pool, self.registry, say, tuple(map(Run, self.done)))

    def drawn(self, model: HookedModel) -> Work:
        """The work with the pairs or contrasts that it runs on."""
        if self.taken is not None or self.experiment.rows_of is not None:
            return self
        return replace(self, taken=material_of(self.experiment, model, self.source, self.step.pool))


@dataclass(frozen=True)
class Begun:
    """A run that is stored and whose units can be computed.

    Attributes:
        path: its folder.
        sizes: how many pairs or contrasts each unit has; empty for a run that summarises the rows of another.
        notes: what there is to say of it, in lines.
        job: what computes it in this process; workers read it from the folder.
    """

    path: Path
    sizes: tuple[int, ...]
    notes: tuple[str, ...]
    job: Job | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"job": None}

    @property
    def run(self) -> Run:
        """The stored run."""
        return Run(self.path)


def checked(experiment: Experiment, inputs: Inputs) -> Experiment:
    """The experiment with its options in normal form; raises for those that this model or this pool does not allow."""
    needs(inputs.model, f"'{experiment.name}'", experiment.tier, **experiment.assumes)
    normal = experiment.check(inputs)
    forwards(inputs.model, normal.interventions(inputs.model))  # refuses what does not fit the model
    return normal


def ready(work: Work, model: HookedModel, say: Callable[[str], None]) -> Work:
    """The work with its material and with its options in normal form; `model` makes no forward."""
    if work.experiment.rows_of is not None:
        return work
    work = work.drawn(model)
    normal = checked(work.experiment, work.inputs(model, say))
    return replace(work, step=replace(work.step, experiment=normal))


def begin(work: Work) -> Begun:
    """Certifies the model, prepares the experiment, and stores the record of its run."""
    if work.experiment.rows_of is not None:
        return _followed(work)
    notes: list[str] = []
    model, normal, pool = work.opened_model(), work.experiment, work.step.pool
    work = work.drawn(model)
    inputs, taken = work.inputs(model, notes.append), work.taken
    assert taken is not None
    provenance.certificate(model, pairs_of(taken.material))
    prepared, material = normal.prepare(inputs)
    notes += _prepared(normal, prepared)
    if not material:
        raise MechirError(f"Nothing of this pool is left to measure for '{normal.name}': take more queries.")
    n_units, queries = len(units(material, work.unit)), {item.query_id for item in material}
    identity = provenance.identity_of(prepared, model, inputs.source, material, pool, inputs.done)
    identity |= {"fresh": work.fresh} if work.fresh else {}

    def store(new: Run) -> None:
        held_back = {item.query_id for item in taken.material} - queries
        command = provenance.asked_of(normal, model, inputs.source, pool) | {"held_back": len(held_back)}
        n_forwards = math.ceil(forwards_of(normal, model, taken.material))
        command |= {"units": n_units, "unit": work.unit, "forwards": n_forwards}
        frames = _frames(inputs.source, material, pool, taken) | prepared.frames
        provenance.begin(new, identity, prepared, model, pairs_of(material), frames, command)

    stored, n = open_run(work.registry, identity, store), len(queries)
    cut = units(material, stored.record.get("unit", EARLIER))  # it was begun with units of this size
    notes.append(f"Run {stored.id}: {len(material)} {kind_of(prepared)} of {n} queries in {len(cut)} units")
    if n < FEWEST:
        notes.append(f"{n} queries are too few to test: intervals are Student's; tests need {FEWEST} or more.")
    begun_with = {name: pd.read_parquet(stored.path / f"{name}.parquet") for name in prepared.derived}
    experiment = replace(prepared, **begun_with)  # another machine may have begun it, with other last digits
    job = Job(experiment, work.model, inputs.source, tuple(map(tuple, cut)), stored.path, work.device)
    if isinstance(work.model, ModelReference) and job.missing():
        write_job(job)
    return Begun(stored.path, tuple(map(len, cut)), tuple(notes), job)


def _followed(work: Work) -> Begun:
    """The run that summarises the rows of the one that it needs."""
    (rows,) = map(Run, work.done)

    def follow(new: Run) -> None:
        provenance.follow(new, work.experiment, rows)

    stored = open_run(work.registry, provenance.again(work.experiment, rows), follow)
    return Begun(stored.path, (), ())


def compute(begun: Begun, unit: int, session: str = "") -> int:
    """Measures and stores one unit, if it is not there; its number.

    `session`: of the client whose workers compute, where the processes that this unit killed are counted.

    Raises:
        LostWorkers: where `KILLS` processes of the session were killed while they computed this unit.
    """
    job = begun.job or read_job(begun.path)
    if not session:
        return job.compute(unit)
    marks = [begun.path / f".work-{unit:05d}-{session}-{number}" for number in range(KILLS)]
    mark = next(
        (mark for mark in marks if not mark.exists()), None
    )  # one that is there is of a process that was killed
    if mark is None:
        raise LostWorkers(f"unit {unit} of run {begun.run.id} killed {KILLS} workers")
    with full_disk_said(mark):
        mark.touch()
    try:
        return job.compute(unit)
    finally:
        mark.unlink(missing_ok=True)


def forget_marks(path: Path, session: str = "*") -> None:
    """Removes the marks of processes that were killed, of one client or of all, from the folder of a run."""
    for mark in path.glob(f".work-*-{session}-*"):
        mark.unlink(missing_ok=True)


def finish(work: Work, begun: Begun) -> Path:
    """Writes summary, chart and findings of a run whose units are all there; its folder."""
    stored = seen(begun.run)
    experiment = work.experiment
    if experiment.rows_of is None and not stored.finished:
        experiment = (begun.job or read_job(begun.path)).experiment
    summarise(stored, experiment, work.opened_model(), work.source)
    forget_job(stored.path)
    forget_marks(stored.path)
    return stored.path


def forwards_of(experiment: Experiment, model: HookedModel, material: Sequence[Any]) -> float:
    """Full forwards, of one pair or contrast each, that an experiment takes in all, roughly."""
    return experiment.cost(model) * len(experiment.measured(material))


def kind_of(experiment: Experiment) -> str:
    """What an experiment runs on, in a line of progress."""
    return "contrasts" if experiment.runs_on == "contrasts" else "pairs"


def _frames(source: Source, material: list[Any], pool: Pool, taken: Taken) -> dict[str, pd.DataFrame]:
    """The frames stored beside the rows: judgments, and the pairs that were left out."""
    frames = {"judged": source.judged(pairs_of(material), full=pool.full)}
    if (left_out := taken.left_out) is not None and len(left_out):
        frames["left_out"] = left_out
        unread, judged = left_out[left_out["reason"].isin(REASONS)], frames["judged"]  # they are in no ideal ranking
        gone, pairs = (pd.MultiIndex.from_frame(rows[["query_id", "doc_id"]]) for rows in (unread, judged))
        frames["judged"] = judged[~pairs.isin(gone)].reset_index(drop=True)
    return frames if taken.skipped is None else frames | {"skipped": taken.skipped}


def _prepared(normal: Experiment, prepared: Experiment) -> Iterable[str]:
    """The line on the results of `prepare`: options that changed, long ones cut short, and frames by their length."""
    before = normal.written
    changed = {name: str(value) for name, value in prepared.written.items() if value != before[name]}
    changed |= {name: f"{len(frame)} rows" for name, frame in prepared.frames.items() if len(frame)}
    short = [f"{name} {text if len(text) <= SHOWN else text[:SHOWN] + '...'}" for name, text in changed.items()]
    return [f"found: {', '.join(short)}"] if short else []
