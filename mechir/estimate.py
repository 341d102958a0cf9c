"""The cost of a run, before it is started: each of its steps, and the time that workers would take together."""

from __future__ import annotations

import math
import platform
import resource
import statistics
import timeit
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mechir.encoder.hooked_model import HookedModel
from mechir.errors import MechirError
from mechir.experiment import Experiment, Step, silent
from mechir.graph import Graph
from mechir.material import pairs_of
from mechir.progress import Quiet
from mechir.registry.runs import runs
from mechir.running import asked_for
from mechir.shard import Shard
from mechir.work import Work, forwards_of

SAMPLE, TIMES = 32, 3
"""Pairs that are scored to see how fast this machine is, and how often; the first warms up."""
LAST, SHORT = 5, 1.0
"""Runs that the error of an estimate is read from, and the seconds of one that says nothing of it."""
UNITS = 8
"""Units of a step from which on its work divides well among workers."""


def estimate(
    experiment: Experiment | type[Experiment] | str, model: HookedModel, material: Sequence[Any], **chosen: Any
) -> dict[str, Any]:
    """The cost of one experiment, from `Experiment.cost` and a timing of the intact model on 32 of the pairs.

    The runs that it needs (`Experiment.needs`) are not counted; `mechir run --dry-run` lists them all.

    Returns:
        `pairs` that are measured, `forwards` (full forward passes of one pair, work shared between interventions
        counted once), `minutes` on this machine and thread count, `memory_gb` (peak, weights included).
    """
    return _cost(asked_for(experiment, chosen), model, material, seconds_per_token(model, pairs_of(material)))


def seconds_per_token(model: HookedModel, pairs: Sequence[Any]) -> float:
    """The time of one full forward per word piece on this machine, with this number of threads."""
    sample = list(pairs[:: max(1, len(pairs) // SAMPLE)])[:SAMPLE]
    times = timeit.repeat(lambda: model.score(sample), number=1, repeat=TIMES)
    return min(times) / int(model.encode(sample).lengths.sum())


def _with_threads(threads: int, model: HookedModel, pairs: Sequence[Any]) -> float:
    """The time of one full forward per word piece with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return seconds_per_token(model, pairs)
    finally:
        torch.set_num_threads(before)


def _cost(experiment: Experiment, model: HookedModel, material: Sequence[Any], rate: float) -> dict[str, Any]:
    lengths = model.encode(pairs_of(material)).lengths
    forwards = forwards_of(experiment, model, material)
    return {
        "pairs": len(experiment.measured(material)),
        "forwards": math.ceil(forwards),
        "minutes": float(rate * forwards * lengths.mean() / 60),
        "memory_gb": _memory_gb(model, int(lengths.max())),
    }


@dataclass(frozen=True)
class Plan:
    """What a run would cost.

    Attributes:
        steps: a row per step: `step` (the experiment), `stage` (what stands in one stage can be computed at one time;
            the next waits for it), `pairs`, `forwards`, `minutes`, `memory_gb`, `units`.
        power: what so many queries can find (`Experiment.power`); None where it is unknown.
        ratios: how much longer the last runs of this model, on this machine, took than such an estimate says.
        slower: how much longer a forward of a worker takes than one of this process, which has more threads.
    """

    steps: pd.DataFrame
    ratios: tuple[float, ...] = ()
    power: pd.DataFrame | None = None
    slower: float = 1.0

    def minutes(self, workers: int = 1) -> float:
        """The time that so many workers take: stage after stage, none shorter than the longest unit in it."""
        longest = self.steps["minutes"] / self.steps["units"].clip(1)
        stages = self.steps.assign(longest=longest).groupby("stage")
        of_one = sum(max(part["minutes"].sum() / workers, part["longest"].max()) for _, part in stages)
        return float(self.slower * of_one)


def plan(
    experiment: Experiment, model: HookedModel, source: Any, pool: Any, registry: Path, *, threads: int | None = None
) -> Plan:
    """The cost of every step of a run; raises for options that do not fit, as the run would.

    Steps that follow from findings are as large as they can be (`Experiment.follows`). `threads`: of each worker, by
    default as many as this process has.
    """
    graph = Graph(Work(Step(experiment, source, pool), model, registry), model, Shard(), Quiet())
    root = graph.root.work
    inputs = root.inputs(model, silent)
    first = [node.work for node in graph.nodes.values() if node is not graph.root]
    later = [Work(step, model, registry).drawn(model) for step in root.experiment.follows(inputs)]
    rate, slower, rows = None, 1.0, []
    for stage, works in enumerate((first, later, [root])):
        for work in works:
            if work.experiment.rows_of is not None:
                continue
            assert work.taken is not None
            material = work.taken.material
            if rate is None:
                rate = seconds_per_token(model, pairs_of(material))
                slower = _with_threads(threads, model, pairs_of(material)) / rate if threads else 1.0
            cost = _cost(work.experiment, model, material, rate)
            units = math.ceil(cost["pairs"] / root.unit)
            rows.append({"step": work.experiment.name, "stage": stage, **cost, "units": units})
    ratios = tuple(_ratios(registry, model, rate or 0.0))
    return Plan(pd.DataFrame(rows), ratios, root.experiment.power(inputs), slower)


def _ratios(registry: Path, model: HookedModel, rate: float) -> Iterator[float]:
    """Time that was measured, over what is estimated now, of the last runs of this model on this machine."""
    if not (registry / "runs").is_dir():
        return
    n = 0
    for run in runs(registry):
        try:
            record = run.record
        except MechirError:  # a damaged record is said by what reads that run
            continue
        same = {"tokens", "forwards", "pairs"} <= record.keys() and run.finished and record.get("seconds", 0) > SHORT
        same = same and record.get("host") == platform.node() and record.get("devices") == [str(model.device)]
        same = same and record["identity"].get("model_fingerprint") == model.fingerprint and "rows_of" not in record
        if same and record["forwards"]:
            yield record["seconds"] / (rate * record["forwards"] * record["tokens"] / record["pairs"])
            n += 1
        if n == LAST:
            return


def sentence(plan: Plan) -> str:
    """How far such estimates were off; empty where no run is known."""
    if not plan.ratios:
        return ""
    n, low, high = len(plan.ratios), min(plan.ratios), max(plan.ratios)
    middle = statistics.median(plan.ratios)
    return (
        f"The last {n} runs of this model here took {low:.2f} to {high:.2f} times such an estimate "
        f"(the median {middle:.2f})."
        if n > 1
        else f"The last run of this model here took {middle:.2f} times such an estimate."
    )


def _memory_gb(model: HookedModel, longest: int) -> float:
    """The memory of the process now, and the states, MLP and attention of the widest chunk of a sweep."""
    c, number = model.cfg, 8 if model.dtype == torch.float64 else 4
    rows = max(1, model.max_tokens // longest)
    tokens = rows * longest
    states = (c.n_layers + 4) * tokens * c.d_model
    widest = max(2 * tokens * c.d_mlp, 3 * rows * c.n_heads * longest**2)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 + (states + widest) * number / 2**30)
