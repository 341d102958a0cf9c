"""A job: all that another process needs to compute units of a run, as one value that can be pickled.

job = mechir.running.job(AttentionContrast(), model, collection, registry="runs")
with ProcessPoolExecutor() as pool:
list(pool.map(job.compute, job.missing()))
run = job.finish()
"""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mechir import provenance
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
from mechir.source_reference import referred, restored


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
                "`model.hf.save_pretrained` and load it from there, or leave engine out."
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
        model: the model, or where it is read from.
        source: where the material comes from, for the summary; None on a worker.
        units: the pairs or contrasts of each unit.
        path: the folder of the run.
        device: where it computes; None for a GPU where there is one.
    """

    experiment: Experiment
    model: HookedModel | ModelReference
    source: Source
    units: tuple[tuple[Any, ...], ...]
    path: Path
    device: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The experiment as its file, options and frames, as its class is known here alone."""
        return vars(self) | {"experiment": provenance.by_file(self.experiment), "source": referred(self.source)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        experiment, source = provenance.of_file(state["experiment"]), restored(state["source"])
        vars(self).update(state | {"experiment": experiment, "source": source})

    @property
    def run(self) -> Run:
        """The stored run."""
        return Run(self.path)

    def missing(self) -> list[int]:
        """The units that are not computed yet."""
        done = self.run.done()
        return [unit for unit in range(len(self.units)) if unit not in done]

    def compute(self, unit: int) -> int:
        """Computes and stores one unit, if it is not there yet; its number. The model is read once in a process."""
        if not self.run.part(unit).is_file():
            compute_unit(self.run, self.experiment, self._model(), self.units[unit], unit)
        return unit

    def finish(self) -> Run:
        """Writes summary, chart and findings; raises while units are missing."""
        if missing := self.missing():
            count = f"{len(missing)} of {len(self.units)}"
            raise MechirError(f"Run {self.run.id} is not finished: {count} units are missing.")
        finish(self.run, self.experiment, self._model(), self.source)
        return self.run

    def _model(self) -> HookedModel:
        return self.model.load(self.device) if isinstance(self.model, ModelReference) else self.model


def compute_unit(run: Run, experiment: Experiment, model: HookedModel, material: Any, unit: int) -> None:
    """Measures and stores one unit of a run, with where and with what it was computed."""
    began = time.monotonic()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    rows = experiment.measure(model, list(material))
    run.write_part(unit, rows, time.monotonic() - began, str(model.device), **computed_on(model))


def computed_on(model: HookedModel) -> dict[str, str]:
    """The notes of a part: dtype of compute, host, threads, and peak memory in GB (of a GPU, else of the process)."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    peak = torch.cuda.max_memory_allocated(model.device) / 2**30 if model.device.type == "cuda" else resident
    number = str(model.dtype).removeprefix("torch.")
    threads = str(torch.get_num_threads())
    return {"dtype": number, "host": platform.node(), "threads": threads, "peak_gb": f"{peak:.2f}"}


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
        stored.write_record(stored.record | stored.computed | {"quality": provenance.quality(stored)})
        stored.write_frame("table", type(experiment).table(summary))
        stored.write_frame("summary", summary)
    registry = stored.path.parents[1]
    if not entries.has_findings(registry, stored.id):
        with _in_a_sentence(stored, experiment, "findings"):
            findings = experiment.findings(replace(finished, summary=stored.summary))
        if findings is not None:
            entries.record(registry, stored.id, checked(placed(findings, stored.record), subject))
