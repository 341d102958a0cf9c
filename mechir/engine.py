"""Runs an experiment: cut it into units, compute the missing ones, store, summarise, draw.

`run` goes straight through: the experiment with its options (`asked_for`), in normal form (`checked`), with what it
finds first (`prepare`), the stored run (`_begun`), the missing units (`_compute`), and once all are there summary,
chart and findings (`finish`).
"""

from __future__ import annotations

import difflib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from mechir import provenance
from mechir.catalog import load_experiment
from mechir.encoder.certify import refuse_altered
from mechir.encoder.hooked_model import HookedModel
from mechir.encoding import REASONS
from mechir.errors import MechirError
from mechir.experiment import Experiment, Inputs, refuse_incomplete, silent
from mechir.inference import FEWEST
from mechir.job import Job, ModelReference, compute_unit, finish
from mechir.material import Pool, Source, Taken, material_of, opened, pairs_of, source_of
from mechir.registry.runs import DEFAULT, Run, open_run
from mechir.reranker import needs
from mechir.sweeps import forwards

SHOWN = 60
"""Longest value printed in the line on the results of `prepare`."""
UNIT = 128
"""A unit is closed at the first whole query that brings it to this many pairs."""


@dataclass(frozen=True)
class Shard:
    """The units of this process: those whose number is `index` modulo `of`."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`I/N` with I from 0 to N: both `--array=0-9` and `--array=1-10` of Slurm cover everything."""
        index, _, of = text.partition("/")
        numbers = all(part.isascii() and part.isdigit() for part in (index, of))
        if not (numbers and int(of) > 0 and int(index) <= int(of)):
            raise MechirError(f"Cannot read shard='{text}': write I/N with 0 <= I <= N, e.g. 3/10.")
        return cls(int(index) % int(of), int(of))


def units(pairs: Sequence[Any]) -> list[list[Any]]:
    """The pairs or contrasts in units of whole queries, each closed once it holds `UNIT` of them."""
    by_query: dict[str, list[Any]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query_id, []).append(pair)
    cut: list[list[Any]] = [[]]
    for query in by_query.values():
        if len(cut[-1]) >= UNIT:
            cut.append([])
        cut[-1] += query
    return cut


def run(
    experiment: Experiment | type[Experiment] | str | Path,
    model: object,
    source: Any,
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
        model: a model, as `mi.load` gives it.
        source: a collection or its name, several in groups, or judged pairs as `mi.pairs` reads them (a frame with
            `query`, `text` and `label`); for an experiment on contrasts a diagnostic set, its name, or a collection or
            pairs, whose contrasts of term frequency are taken.
        pool: which pairs of the collection; by default all judged ones.
        registry: where runs are kept.
        shard: which units this process computes; the run is summarised by whichever process finds it complete.
        fresh: compute everything anew, as a run of its own.
        say: called with one line of progress at a time.
        chosen: options of the experiment.

    Raises:
        MechirError: for unknown options, an empty pool, options that the model does not allow, and a model that is not
            the one that its fingerprint names or does not score as Hugging Face's does.
    """
    model, experiment = _readied(model, pool, shard), asked_for(experiment, chosen)
    source, pool = opened(source, experiment, model, pool)
    where: dict[str, Any] = {"pool": pool or Pool(), "registry": Path(registry), "say": say or silent}
    if (other := experiment.rows_of) is not None:
        same = other(**{name: getattr(experiment, name) for name in other.options()})
        rows = run(same, model, source, shard=shard, fresh=fresh, **where)
        follow = partial(provenance.follow, experiment=experiment, rows=rows)
        stored = open_run(where["registry"], provenance.again(experiment, rows), follow)
    else:
        stored, experiment, cut = _begun(experiment, model, source, fresh=fresh, **where)
        _compute(stored, experiment, model, cut, shard or Shard(), where["say"])
    if len(stored.done()) == stored.record["units"]:
        finish(stored, experiment, model, source_of(experiment, source))
    return stored


def job(
    experiment: Experiment | type[Experiment] | str | Path,
    model: object,
    source: Any,
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
    model, experiment = _readied(model, pool), asked_for(experiment, chosen)
    source, pool = opened(source, experiment, model, pool)
    if (other := experiment.rows_of) is not None:
        raise MechirError(f"'{experiment.name}' computes no rows of its own: make a job of '{other.name}' first.")
    reference, where = ModelReference.of(model), Path(registry)
    stored, ready, cut = _begun(experiment, model, source, pool=pool or Pool(), registry=where, say=say or silent)
    return Job(ready, reference, source_of(experiment, source), tuple(map(tuple, cut)), stored.path)


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


def _readied(model: object, pool: Any, shard: Any = None) -> HookedModel:
    """The model as the pool reads it; raises for a model that was altered, and for arguments of another kind."""
    for name, value, kinds, write in (
        ("model", model, HookedModel, "mechir.load(...)"),
        ("pool", pool, Pool | None, "mechir.Pool(per_grade=5, ...)"),
        ("shard", shard, Shard | None, "mechir.engine.Shard.parse('0/4')"),
    ):
        if not isinstance(value, kinds):
            raise MechirError(f"Cannot run with {name}={value!r:.60}: write {name}={write}.")
    assert isinstance(model, HookedModel)
    refuse_altered(model)
    return model.limited(pool.max_length if pool else None)


def checked(experiment: Experiment, inputs: Inputs) -> Experiment:
    """The experiment with its options in normal form; raises for those that this model or this pool does not allow."""
    needs(inputs.model, f"'{experiment.name}'", experiment.tier, **experiment.assumes)
    normal = experiment.check(inputs)
    forwards(inputs.model, normal.interventions(inputs.model))  # refuses what does not fit the model
    return normal


def _begun(
    experiment: Experiment,
    model: HookedModel,
    source: Source,
    *,
    pool: Pool,
    registry: Path,
    say: Callable[[str], None],
    fresh: bool = False,
) -> tuple[Run, Experiment, list[list[Any]]]:
    """The stored run, begun if it is not there yet, the experiment as `prepare` returns it, and the units."""

    def another(other: Any, *, source: Source = source, pool: Pool = pool) -> Run:
        return run(other, model, source, pool=pool, registry=registry, say=say)

    source = source_of(experiment, source)
    taken = material_of(experiment, model, source, pool)
    inputs = Inputs(model, taken.material, source, pool, registry, say, another)
    normal = checked(experiment, inputs)
    provenance.certificate(model, pairs_of(taken.material))
    ready, material = normal.prepare(inputs)
    _say_found(normal, ready, say)
    if not material:
        raise MechirError(f"Nothing of this pool is left to measure for '{experiment.name}': take more queries.")
    cut, queries = units(material), {item.query_id for item in material}
    identity = provenance.identity_of(ready, model, source, material, pool)
    identity |= {"fresh": secrets.token_hex(8)} if fresh else {}

    def begin(new: Run) -> None:
        held_back = {item.query_id for item in taken.material} - queries
        command = provenance.asked_of(normal, model, source, pool) | {"held_back": len(held_back)}
        frames = _frames(source, material, pool, taken) | ready.frames
        provenance.begin(new, identity, ready, model, pairs_of(material), frames, len(cut), command)

    stored, n = open_run(registry, identity, begin), len(queries)
    say(f"Run {stored.id}: {len(material)} {_kind(ready)} of {n} queries in {len(cut)} units")
    if n < FEWEST:
        say(f"{n} queries are too few to test: intervals are Student's; tests need {FEWEST} or more.")
    return stored, ready, cut


def _kind(experiment: Experiment) -> str:
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


def _say_found(normal: Experiment, ready: Experiment, say: Callable[[str], None]) -> None:
    """Prints the results of `prepare`: options that changed, long ones cut short, and frames by their length."""
    before = normal.written
    changed = {name: str(value) for name, value in ready.written.items() if value != before[name]}
    changed |= {name: f"{len(frame)} rows" for name, frame in ready.frames.items() if len(frame)}
    short = [f"{name} {text if len(text) <= SHOWN else text[:SHOWN] + '...'}" for name, text in changed.items()]
    if short:
        say(f"found: {', '.join(short)}")


def _compute(
    stored: Run,
    experiment: Experiment,
    model: HookedModel,
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
        say(f"unit {unit + 1}/{len(cut)}: {done}/{total} {_kind(experiment)}, {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
