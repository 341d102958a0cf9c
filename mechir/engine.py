"""Runs an experiment: cut it into units, compute the missing ones, store, summarise, draw.

`run` goes straight through: the experiment with its options (`_asked`), what it runs on and its options in normal form
(`_checked`), what it finds first (`prepare`), the stored run (`_opened`), the units that are missing (`_compute`), and
once all are there summary, chart and findings (`_finish`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mechir import provenance
from mechir.catalog import load_experiment
from mechir.collection_groups import Collections
from mechir.encoder.hooked import HookedEncoder
from mechir.encoder.intact import refuse_altered
from mechir.encoding import REASONS
from mechir.errors import MechirError
from mechir.experiment import Experiment, Inputs, refuse_incomplete, silent
from mechir.inference import FEWEST
from mechir.job import Job, ModelReference, compute_unit, finish
from mechir.judged_collection import Collection
from mechir.material import Material, Pool, Source, Taken, material_of, pairs_of, source_of
from mechir.perturbed import Diagnostic
from mechir.registry.runs import DEFAULT, Run, open_run
from mechir.sweeps import forwards

SHOWN = 60
"""Longest value printed in the line on what `prepare` found."""
UNIT = 128
"""A unit is closed at the first whole query that brings it to this many pairs."""


@dataclass(frozen=True)
class Shard:
    """Which units this process computes: those whose number is `index` modulo `of`."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`I/N` with I from 0 to N: both `--array=0-9` and `--array=1-10` of Slurm cover everything."""
        index, _, of = text.partition("/")
        numbers = all(part.isascii() and part.isdigit() for part in (index, of))
        if not (numbers and int(of) > 0 and int(index) <= int(of)):
            raise MechirError(f"Cannot read --shard '{text}': write I/N with 0 <= I <= N, e.g. 3/10.")
        return cls(int(index) % int(of), int(of))


def units(pairs: Sequence[Any]) -> list[list[Any]]:
    """The pairs or contrasts in units of whole queries, each closed once it holds `UNIT` of them."""
    found: list[list[Any]] = [[]]
    for query in _queries(pairs):
        if len(found[-1]) >= UNIT:
            found.append([])
        found[-1] += query
    return found


def _queries(pairs: Sequence[Any]) -> Iterator[list[Any]]:
    by_query: dict[str, list[Any]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query_id, []).append(pair)
    yield from by_query.values()


def run(
    experiment: Experiment | type[Experiment] | str | Path,
    model: object,
    source: Source,
    *,
    pool: Any = None,
    registry: Path | str = DEFAULT,
    shard: Any = None,
    fresh: bool = False,
    say: Callable[[str], None] | None = None,
    **chosen: Any,
) -> Run:
    """Runs an experiment, or what is missing of it, and returns the stored run.

    Args:
        experiment: a value such as `AttentionContrast(delta=0.01)`, or its name or the path of its file, with options
            as further arguments.
        model: a `HookedEncoder`.
        source: a collection, several in groups, or for an experiment on contrasts a diagnostic set.
        pool: which pairs of the collection; by default all judged ones.
        registry: where runs are kept.
        shard: which units this process computes; the run is summarised by whichever process finds it complete.
        fresh: compute everything anew, as a run of its own.
        say: called with one line of progress at a time (by default nothing is said).
        chosen: options of the experiment.

    Raises:
        MechirError: for unknown options, an empty pool, what the model refuses, and a model that is not the one that
            its fingerprint names or does not score as Hugging Face's does.
    """
    _refuse_kinds(model, source, pool, shard)
    assert isinstance(model, HookedEncoder)
    asked = asked_for(experiment, chosen)
    pool, registry = pool or Pool(), Path(registry)
    refuse_altered(model)
    model = model.limited(pool.max_length)
    where = {"pool": pool, "registry": registry, "say": say or silent}
    again = partial(_run_another, model, source, **where)
    if asked.rows_of is not None:
        of = run(asked.as_rows_of(), model, source, shard=shard, fresh=fresh, **where)
        stored = open_run(registry, provenance.again(asked, of), lambda run: provenance.follow(run, asked, of))
    else:
        taken = material_of(asked, model, source_of(asked, source), pool)
        inputs = Inputs(model, taken.material, source_of(asked, source), pool, registry, where["say"], again)
        stored, asked, cut = _begun(asked, inputs, taken, fresh)
        _compute(stored, asked, model, cut, shard or Shard(), where["say"])
    if len(stored.done()) == stored.record["units"]:
        finish(stored, asked, model, source_of(asked, source))
    return stored


def job(
    experiment: Experiment | type[Experiment] | str | Path,
    model: object,
    source: Source,
    *,
    pool: Any = None,
    registry: Path | str = DEFAULT,
    say: Callable[[str], None] | None = None,
    **chosen: Any,
) -> Job:
    """Begins a run and returns what other processes need to compute its units; arguments as in `run`.

    Raises:
        MechirError: as `run`; for a model that was made in memory, and an experiment on the rows of another.
    """
    _refuse_kinds(model, source, pool, None)
    assert isinstance(model, HookedEncoder)
    asked, pool, registry = asked_for(experiment, chosen), pool or Pool(), Path(registry)
    if asked.rows_of is not None:
        raise MechirError(f"'{asked.name}' computes no rows of its own: make a job of '{asked.rows_of.name}' first.")
    refuse_altered(model)
    model = model.limited(pool.max_length)
    reference, own = ModelReference.of(model), source_of(asked, source)
    say = say or silent
    again = partial(_run_another, model, source, pool=pool, registry=registry, say=say)
    taken = material_of(asked, model, own, pool)
    stored, ready, cut = _begun(asked, Inputs(model, taken.material, own, pool, registry, say, again), taken, False)
    return Job(ready, reference, own, tuple(map(tuple, cut)), stored.path)


def _run_another(model: HookedEncoder, own: Source, experiment: Any, *, source: Source = None, **where: Any) -> Run:
    """Another experiment in the same registry, on the same model and, unless another is given, the same source."""
    return run(experiment, model, own if source is None else source, **where)


def asked_for(experiment: Experiment | type[Experiment] | str | Path, chosen: Mapping[str, Any]) -> Experiment:
    """The experiment with its options.

    Raises:
        MechirError: for what is no experiment, and for options that it does not take.
    """
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
    return kind.chosen(**chosen)


def _refuse_kinds(model: object, source: Any, pool: Any, shard: Any) -> None:
    """Raises for arguments of another kind, with what makes the right one."""
    for name, value, kinds, write in (
        ("model", model, HookedEncoder, "mechir.load(...)"),
        ("source", source, Collection | Collections | Diagnostic, "mechir.collection(...) or mechir.diagnostic(...)"),
        ("pool", pool, Pool | None, "mechir.Pool(per_grade=5, ...)"),
        ("shard", shard, Shard | None, "mechir.engine.Shard.parse('0/4')"),
    ):
        if not isinstance(value, kinds):
            raise MechirError(f"Cannot run with {name}={value!r:.60}: write {name}={write}.")


def checked(experiment: Experiment, inputs: Inputs) -> Experiment:
    """The experiment with its options in normal form, so that what is one thing is one run.

    Raises:
        MechirError: for what the experiment cannot do with this model and this pool.
    """
    normal = experiment.check(inputs)
    forwards(inputs.model, normal.interventions(inputs.model))  # refuses what does not fit the model
    return normal


def _begun(asked: Experiment, inputs: Inputs, taken: Taken, fresh: bool) -> tuple[Run, Experiment, list[list[Any]]]:
    """The run, the experiment with what it found, and the units."""
    normal = checked(asked, inputs)
    provenance.certificate(inputs.model, pairs_of(inputs.material))
    ready, material = normal.prepare(inputs)
    _say_found(normal, ready, inputs.say)
    if not material:
        raise MechirError(f"Nothing of this pool is left to measure for '{asked.name}': take more queries.")
    cut = units(material)
    stored = _opened(normal, ready, inputs, taken, material, fresh)
    queries = len({one.query_id for one in material})
    inputs.say(f"Run {stored.id}: {len(material)} {what(ready)} of {queries} queries in {len(cut)} units")
    if queries < FEWEST:
        inputs.say(f"{queries} queries are too few to test: intervals are Student's; tests need {FEWEST} or more.")
    return stored, ready, cut


def what(experiment: Experiment) -> str:
    """What is counted: pairs or contrasts."""
    return "contrasts" if experiment.runs_on == "contrasts" else "pairs"


def _opened(
    normal: Experiment, ready: Experiment, inputs: Inputs, taken: Taken, material: list[Any], fresh: bool
) -> Run:
    """The stored run, begun with its record and frames if it is not there yet.

    `normal`: the experiment as it was asked for; `ready`: with what it found; `taken`: what it runs on, before queries
    were kept back to find something on.
    """
    model, source, pool = inputs.model, inputs.source, inputs.pool
    identity = provenance.identity_of(ready, model, source, material, pool)
    identity |= {"fresh": secrets.token_hex(8)} if fresh else {}

    def begin(stored: Run) -> None:
        held_back = {one.query_id for one in taken.material} - {one.query_id for one in material}
        asked = provenance.asked_of(normal, model, source, pool) | {"held_back": len(held_back)}
        frames = _frames(source, material, pool, taken) | ready.frames
        provenance.begin(stored, identity, ready, model, pairs_of(material), frames, len(units(material)), asked)

    return open_run(inputs.registry, identity, begin)


def _frames(source: Source, material: Material, pool: Pool, taken: Taken) -> dict[str, pd.DataFrame]:
    """What is stored beside the rows: judgments, and what was left out."""
    judged = source.judged(pairs_of(material), full=pool.full)
    if taken.left_out is not None:  # what the model cannot read is in no ideal ranking either
        unread = taken.left_out[taken.left_out["reason"].isin(REASONS)]
        gone = pd.MultiIndex.from_frame(unread[["query_id", "doc_id"]])
        judged = judged[~pd.MultiIndex.from_frame(judged[["query_id", "doc_id"]]).isin(gone)].reset_index(drop=True)
    frames = {"judged": judged}
    if taken.left_out is not None and len(taken.left_out):
        frames["left_out"] = taken.left_out
    return frames if taken.skipped is None else frames | {"skipped": taken.skipped}


def _say_found(normal: Experiment, ready: Experiment, say: Callable[[str], None]) -> None:
    """Prints what `prepare` found: options that are others now, long ones cut short, and frames by their length."""
    before = normal.written
    changed = {name: str(value) for name, value in ready.written.items() if value != before[name]}
    changed |= {name: f"{len(frame)} rows" for name, frame in ready.frames.items() if len(frame)}
    short = [f"{name} {text if len(text) <= SHOWN else text[:SHOWN] + '...'}" for name, text in changed.items()]
    if short:
        say(f"found: {', '.join(short)}")


def _compute(
    stored: Run,
    experiment: Experiment,
    model: HookedEncoder,
    cut: Sequence[list[Any]],
    shard: Shard,
    say: Callable[[str], None],
) -> None:
    """Measures and stores the missing units of a shard; an interruption loses the unit in work and nothing else."""
    missing = [unit for unit in range(shard.index, len(cut), shard.of) if unit not in stored.done()]
    total, done, start = sum(len(cut[unit]) for unit in missing), 0, time.monotonic()
    for unit in missing:
        compute_unit(stored, experiment, model, cut[unit], unit)
        done += len(cut[unit])
        left = (time.monotonic() - start) / done * (total - done)
        say(f"unit {unit + 1}/{len(cut)}: {done}/{total} {what(experiment)}, {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
