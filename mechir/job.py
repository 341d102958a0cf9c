"""A job: all that another process needs to compute units of a run, as one value that can be pickled.

job = mi.engine.job(AttentionContrast(), model, collection, registry="runs")
with ProcessPoolExecutor() as pool:
list(pool.map(job.compute, job.missing()))
run = job.finish()
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mechir import provenance
from mechir.catalog import load_experiment
from mechir.encoder.default import NAME
from mechir.encoder.hooked import HookedEncoder
from mechir.encoder.hooked_model import HookedModel
from mechir.encoder.opening import load
from mechir.encoder.reading import ASKED
from mechir.encoder.traced.model import TracedReranker
from mechir.errors import MechirError, located
from mechir.experiment import Experiment, Finished
from mechir.material import Source
from mechir.registry import entries
from mechir.registry.findings import checked, of_record, placed
from mechir.registry.runs import Run


@dataclass(frozen=True)
class ModelReference:
    """The place and the options that a model is read with, and the fingerprint that it must have.

    Attributes:
        name: a directory, a name on the hub, or "embedded".
        dtype: of the parameters.
        relevant_label: which label means relevance.
        max_length: word pieces of a pair that are read, where it was asked for.
        fingerprint: of the model.
        prompt_options: the options of a language model's prompt, by name.
    """

    name: str
    dtype: str
    relevant_label: int | None
    max_length: int | None
    fingerprint: str
    prompt_options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, model: HookedModel) -> ModelReference:
        """The reference of a loaded model; raises for one that was made in memory, which no other process can read."""
        name = model.cfg.model_name
        path = Path(name).expanduser()
        if type(model) not in (HookedEncoder, TracedReranker) or not (name == NAME or path.is_dir() or model.revision):
            raise MechirError(
                f"'{name}' was made in memory and no other process can read it: save it with "
                "`model.hf.save_pretrained` and load it from there, or use mechir.run."
            )
        length = model.max_length if model.reading.limited_by == ASKED else None
        where = str(path.resolve()) if path.is_dir() else name
        number = str(model.dtype).removeprefix("torch.")
        return cls(where, number, model.head.relevant_label, length, model.fingerprint, model.prompt_options)

    def load(self, device: str | None = None) -> HookedModel:
        """Reads the model; raises where it is another one now."""
        return _loaded(self, device)


@lru_cache(maxsize=1)
def _loaded(reference: ModelReference, device: str | None) -> HookedModel:
    label = reference.relevant_label
    options: dict[str, Any] = {"dtype": reference.dtype, "relevant_label": label, "max_length": reference.max_length}
    options |= dict(reference.prompt_options)
    model = load(reference.name, device=device, **options)
    if model.fingerprint != reference.fingerprint:
        raise MechirError(
            f"'{reference.name}' is another model now (fingerprint {model.fingerprint[:12]}, the run is of "
            f"{reference.fingerprint[:12]}): start the run again."
        )
    return model


@dataclass(frozen=True, eq=False)
class Job:
    """The units of one run, with the experiment and the model that compute them.

    Attributes:
        experiment: as its `prepare` returned it.
        model: where the model is read from.
        source: where the material comes from, for the summary.
        units: the pairs or contrasts of each unit.
        path: the folder of the run.
    """

    experiment: Experiment
    model: ModelReference
    source: Source
    units: tuple[tuple[Any, ...], ...]
    path: Path

    def __getstate__(self) -> dict[str, Any]:
        """The experiment as its file and fields, as its class is known here alone; raises for one that was typed in."""
        kind = type(self.experiment)
        if not (file := provenance.source_file(self.experiment)):
            raise MechirError(f"{kind.__name__} was typed in and no other process can read it: write it into a file.")
        return vars(self) | {"experiment": (file, dict(vars(self.experiment)))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        file, values = state["experiment"]
        vars(self).update(state | {"experiment": load_experiment(file)(**values)})

    @property
    def run(self) -> Run:
        """The stored run."""
        return Run(self.path)

    def missing(self) -> list[int]:
        """The units that are not computed yet."""
        done = self.run.done()
        return [unit for unit in range(len(self.units)) if unit not in done]

    def compute(self, unit: int, device: str | None = None) -> int:
        """Computes and stores one unit; its number. The model is read once in a process."""
        compute_unit(self.run, self.experiment, self.model.load(device), self.units[unit], unit)
        return unit

    def finish(self, device: str | None = None) -> Run:
        """Writes summary, chart and findings; raises while units are missing."""
        if missing := self.missing():
            count = f"{len(missing)} of {len(self.units)}"
            raise MechirError(f"Run {self.run.id} is not finished: {count} units are missing.")
        finish(self.run, self.experiment, self.model.load(device), self.source)
        return self.run


def compute_unit(run: Run, experiment: Experiment, model: HookedModel, material: Any, unit: int) -> None:
    """Measures and stores one unit of a run, with the device that it was computed on."""
    began = time.monotonic()
    rows = experiment.measure(model, list(material))
    run.write_part(unit, rows, time.monotonic() - began, str(model.device))


@contextmanager
def _in_a_sentence(stored: Run, experiment: Experiment, method: str) -> Iterator[None]:
    """Raises in one sentence where a method asks a frame for a column that is not there."""
    try:
        yield
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, MechirError):
            raise
        advice = "mend it and give the same command again, which measures nothing anew"
        if method not in provenance.SHOWS:
            advice = "the same command goes on from there, while a changed file is a new run"
        raise MechirError(
            f"'{experiment.name}' fails in {method}, {located(error, provenance.source_file(experiment))}; its rows "
            f"are stored in {stored.path}: {advice}."
        ) from error


def finish(stored: Run, experiment: Experiment, model: HookedModel, source: Source) -> None:
    """Summary, chart and findings, made once."""
    from mechir.views import charts

    subject = of_record(stored.record)
    finished = Finished(stored.rows, stored.judged, model, source, subject["axiom"])
    if not (stored.path / "summary.parquet").is_file():
        with _in_a_sentence(stored, experiment, "summarise"):
            summary = experiment.summarise(finished)
        with _in_a_sentence(stored, experiment, "chart"):
            charts.save(experiment.chart(summary), stored.path / "chart")
        seconds, quality = round(stored.seconds, 1), provenance.quality(stored)
        stored.write_record(stored.record | {"seconds": seconds, "devices": stored.devices, "quality": quality})
        stored.write_frame("table", type(experiment).table(summary))
        stored.write_frame("summary", summary)
    registry = stored.path.parents[1]
    if not entries.has_findings(registry, stored.id):
        with _in_a_sentence(stored, experiment, "findings"):
            findings = experiment.findings(replace(finished, summary=stored.summary))
        if findings is not None:
            entries.record(registry, stored.id, checked(placed(findings, stored.record), subject))
