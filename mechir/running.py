"""Runs an experiment, or what is missing of it: here, or on the workers of an engine.

`run` reads what was asked for (`asked_for`) and gives it to the graph, which begins each step, computes its units and
finishes it (`mechir.graph`, `mechir.work`).
"""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mechir import provenance
from mechir.catalog import load_experiment
from mechir.encoder.certify import refuse_altered
from mechir.encoder.hooked_model import HookedModel
from mechir.engine import Allocation
from mechir.errors import MechirError
from mechir.experiment import Experiment, Step, refuse_incomplete, silent
from mechir.graph import Graph
from mechir.job import Job, ModelReference
from mechir.material import Pool, opened
from mechir.progress import Lines, Quiet, Watch, shown_by_default
from mechir.registry.runs import DEFAULT, Run
from mechir.shard import NOTHING, Shard
from mechir.work import Work
from mechir.workers import Engine, Here


def run(
    experiment: Experiment | type[Experiment] | str | Path,
    model: object,
    source: Any,
    *,
    pool: Any = None,
    registry: Path | str = DEFAULT,
    shard: Any = None,
    fresh: bool = False,
    engine: Any = None,
    say: Callable[[str], None] | None = None,
    watch: Watch | None = None,
    **chosen: Any,
) -> Run:
    """Runs an experiment, or what is missing of it, and returns the stored run.

    Args:
        experiment: a value such as `AttentionContrast(delta=0.01)`, or its name or the path of its file, with options
            as further arguments.
        model: a model, as `mi.load` gives it.
        source: a collection or its name, several in groups, or judged pairs as `mi.pairs` reads them (a frame with
            `query`, `text` and `label`); for an experiment on contrasts a diagnostic set, its name, or a collection or
            pairs, whose contrasts of term frequency are taken.
        pool: which pairs of the collection; by default all judged ones.
        registry: where runs are kept.
        shard: which units this process computes; the run is summarised by whichever process finds it complete.
        fresh: compute everything anew, as a run of its own.
        engine: what computes: `mi.Local(4)`, `mi.Slurm(...)`, `mi.Dask(...)`; by default this process. Workers read the
            model themselves, so that it must come from a directory or a hub.
        say: called with one line of progress at a time.
        watch: shows progress in another way than in lines (`mechir.progress`).
        chosen: options of the experiment.

    Raises:
        MechirError: for unknown options, an empty pool, options that the model does not allow, and a model that is not
            the one that its fingerprint names or does not score as Hugging Face's does.
        LostWorkers: where workers were lost again and again; what they finished is stored.
    """
    if isinstance(engine, Allocation):
        engine.join(Path(registry))
    model, experiment = _readied(model, pool, shard, engine), asked_for(experiment, chosen)
    source, pool = opened(source, experiment, model, pool)
    where, watch = Path(registry), watch or (Lines(say) if say else shown_by_default())
    step, word = Step(experiment, source, pool or Pool()), secrets.token_hex(8) if fresh else ""
    work = Work(step, model, where, fresh=word)
    if engine is not None:
        work = replace(work, model=ModelReference.of(model), registry=where.resolve(), device=engine.device)
        provenance.by_file(experiment)  # refuses one that workers cannot read
    try:
        graph, engine = Graph(work, model, shard or Shard(), watch), engine or Here()
        with engine.open(where, watch.announce) as workers:
            run = graph.compute(workers)
        return Run(where / "runs" / run.id)  # the path as it was asked for
    finally:
        watch.close()


def job(
    experiment: Experiment | type[Experiment] | str | Path,
    model: object,
    source: Any,
    *,
    pool: Any = None,
    registry: Path | str = DEFAULT,
    **chosen: Any,
) -> Job:
    """Begins a run and returns what other processes need to compute its units; arguments as in `run`.

    Raises:
        MechirError: as `run`; for a model that was made in memory, and an experiment on the rows of another.
    """
    model, experiment = _readied(model, pool), asked_for(experiment, chosen)
    source, pool = opened(source, experiment, model, pool)
    if (other := experiment.rows_of) is not None:
        raise MechirError(f"'{experiment.name}' computes no rows of its own: make a job of '{other.name}' first.")
    reference = ModelReference.of(model)
    work = Work(Step(experiment, source, pool or Pool()), model, Path(registry))
    graph = Graph(work, model, NOTHING, Quiet())
    with Here().open(work.registry, silent) as workers:
        graph.compute(workers)
    assert graph.root.begun is not None and graph.root.begun.job is not None
    return replace(graph.root.begun.job, model=reference)


def asked_for(experiment: Experiment | type[Experiment] | str | Path, chosen: Mapping[str, Any]) -> Experiment:
    """The experiment with its options; raises for anything else, and for options that it does not take."""
    if isinstance(experiment, Experiment):
        if chosen:
            raise MechirError(
                f"Options are given twice: write run({type(experiment).__name__}(...), ...) with all of them, or the "
                f"name '{experiment.name}'."
            )
        refuse_incomplete(type(experiment))
        return experiment
    kind = load_experiment(experiment) if isinstance(experiment, str | Path) else experiment
    if not (isinstance(kind, type) and issubclass(kind, Experiment)):
        raise MechirError(f"{experiment!r:.60} is no experiment: give its name, a .py file, or a value of its class.")
    pool = [field.name for field in fields(Pool) if field.name != "seed"]  # which an experiment may have too
    for name in chosen.keys() - kind.options().keys():
        if meant := difflib.get_close_matches(name, pool, n=1, cutoff=0.8):
            raise MechirError(
                f"'{kind.name}' has no option '{name}': choose the pairs by pool=mechir.Pool({meant[0]}=...)."
            )
    return kind.chosen(**chosen)


def _readied(model: object, pool: Any, shard: Any = None, engine: Any = None) -> HookedModel:
    """The model as the pool reads it; raises for a model that was altered, and for arguments of another kind."""
    for name, value, kinds, write in (
        ("model", model, HookedModel, "mechir.load(...)"),
        ("pool", pool, Pool | None, "mechir.Pool(per_grade=5, ...)"),
        ("shard", shard, Shard | None, "mechir.shard.Shard.parse('0/4')"),
        ("engine", engine, Engine | None, "mechir.Local(4), mechir.Slurm(...) or mechir.Dask(...)"),
    ):
        if not isinstance(value, kinds):
            raise MechirError(f"Cannot run with {name}={value!r:.60}: write {name}={write}.")
    assert isinstance(model, HookedModel)
    refuse_altered(model)
    return model.limited(pool.max_length if pool else None)
