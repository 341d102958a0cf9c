"""How far a run scales: a simulation of 1 to 1,000 workers that compute its units; prints tables in Markdown.

Run: python scripts/simulate_cluster.py [--seeds 5]

What a unit costs beside its forwards was measured (`scripts/measure_workers.py`); what could not be is assumed, and
both are in the first table. Workers get units one at a time from the client of their run, and are preempted.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, count
from typing import NamedTuple

import numpy as np

from mechir.work import UNIT

SIZES = (16, 32, 64, 128, 256, 512)
WORKERS = (1, 4, 16, 64, 256, 1000)
NOW = UNIT
"""The size of units now."""
GPU = 10e12
"""Floating-point operations per second of a GPU: about half of what an A100 gives in float32 at best (19.5e12)."""
FINE = 16
"""Pairs of a unit where queries are cut, which they are not now."""
STAGES = 2
"""What comes after a run is begun: its units, and the task that finishes it."""


def forward_seconds(layers: int, width: int, tokens: int) -> float:
    """Seconds of one forward of one pair on a GPU: products with the weights (12 width^2 a layer) and attention."""
    return layers * (24 * width**2 * tokens + 4 * width * tokens**2) / GPU


@dataclass(frozen=True)
class World:
    """What costs time beside the forwards, each as `ABOUT` says; times in seconds."""

    queue: float = 60.0
    start: float = 10.0
    asked: float = 17_000
    begin: float = 0.00013
    chance: float = 0.0004
    summary: float = 0.0013
    client: float = 0.005
    trip: float = 0.011
    operations: float = 24
    listed: float = 100
    latency: float = 0.005
    rate: float = 10_000
    preempted: float = 24 * 3600.0
    walltime: float = 4 * 3600.0
    spread: float = 0.2


ABOUT = {
    "queue": ("mean wait of a job in Slurm's queue, s, exponential", "assumed: a minute, a cluster with free nodes"),
    "start": ("a worker's process until it could compute: import, model of 1.2 GB, digests, s", "measured"),
    "asked": ("files that it asks the shared file system for meanwhile", "measured, each path once"),
    "begin": ("`begin`, s per pair: which pairs can be read", "measured: docs/benchmarks.md"),
    "chance": ("`finish`, by one worker, s per pair: the measures of a random ranking", "measured"),
    "summary": ("`finish`, s per query and intervention: measures and tests", "measured"),
    "client": ("client and scheduler, s per task, one task after the other", "measured"),
    "trip": ("a task and its answer, Dask over TLS, s", "measured over loopback"),
    "operations": ("operations on files of a unit", "measured with strace"),
    "listed": ("parts per operation, where a unit lists the run's folder", "assumed: NFS answers in such pages"),
    "latency": ("one operation of a unit, s", "assumed: NFS that writes to disk"),
    "rate": ("operations per second of the whole file system", "assumed: a busy filer"),
    "preempted": ("mean time until a worker is preempted, s, exponential", "assumed: once a day"),
    "walltime": ("walltime of a job, s, after which another is queued", "assumed"),
    "spread": ("spread of the cost of queries of as many pairs (sigma of a lognormal)", "assumed: lengths of texts"),
}
IDEAL = World(*(0.0,) * 9, math.inf, 0.0, math.inf, math.inf, math.inf, 0.0)
"""A world where nothing costs time but forwards."""


@dataclass(frozen=True)
class Case:
    """Runs of one experiment on the same queries."""

    name: str
    pairs: tuple[int, ...]  # of each query
    seconds: float  # of all forwards of a pair
    names: int = 0  # interventions, whose measures are summarised per query
    runs: int = 1  # with a client each
    writing: float = 0.0  # seconds, of the rows of a query
    size: int = NOW  # pairs that close a unit

    def units(self, spread: float, seed: int) -> list[float]:
        """Seconds of the forwards of each unit; queries of as many pairs differ by `spread`."""
        drawn = np.random.default_rng(seed).lognormal(-(spread**2) / 2, spread, len(self.pairs))
        return [self.seconds * float(unit.sum()) for unit in np.split(drawn * self.pairs, ends(self.pairs, self.size))]


def ends(pairs: Sequence[int], size: int) -> list[int]:
    """Where units end: after the first whole query that brings one to `size` pairs, as in `mechir.work.units`."""
    cut, held = [], 0
    for query, n in enumerate(pairs):
        if held >= size:
            cut.append(query)
            held = 0
        held += n
    return cut


def cases() -> dict[Case, str]:
    """The runs that are simulated, and what they are in words."""
    drawn = tuple(np.random.default_rng(0).integers(100, 201, 43 + 54 + 53 + 76).tolist())
    large, base = forward_seconds(24, 1024, 200), forward_seconds(12, 768, 80)
    dev = "MS MARCO dev, 6,980 queries"
    return {
        Case("layer sweep", drawn, 601 * large, 1176, writing=0.012): "TREC DL 2019 to 2022, 226 queries x 100 to 200 "
        f"judged pairs (drawn evenly) x MonoBERT-large, 200 word pieces ({1e3 * large:.1f} ms a forward): "
        "`layer_sweep`, 25 directions x 24 layers, 601 forwards a pair",
        Case("ten models", (100,) * 6980, 31 * base, 31, 10, 0.002): f"{dev} x the top 100 x ten models of BERT-base's "
        f"shape, 80 word pieces ({1e3 * base:.1f} ms): `direction_ablation`, 31 forwards a pair, a run for each model",
        Case("small pools", (20,) * 6980, 31 * base, 31, writing=0.002): f"{dev} x 20 pairs, one of these models",
    }


class Outcome(NamedTuple):
    """Seconds until all is finished; forwards as a share of the workers' time; what was lost as a share of them."""

    makespan: float
    efficiency: float
    lost: float


class Idle(NamedTuple):
    """What a worker yields that waits for a task of a run."""

    run: int


@dataclass(frozen=True, eq=False)
class Cluster:
    """What workers share; lists hold what changes, most of them with an entry per run."""

    world: World
    left: list[deque[float]]  # tasks that are handed out to nobody, by their seconds
    later: list[deque[list[float]]]  # the stages that are not reached: units, then the task that finishes
    undone: list[int]  # tasks of this stage
    stored: list[int]  # parts
    clients: list[list[float]]  # until when each is busy (`served`), as are disk and starts
    disk: list[float]
    starts: list[float]
    lost: list[float]  # seconds of work, of each loss

    def done(self, run: int) -> None:
        """Counts a task; after the last of a stage the next one begins."""
        self.undone[run] -= 1
        if not self.undone[run] and self.later[run]:
            self.left[run].extend(self.later[run].popleft())
            self.undone[run] = len(self.left[run])


def served(queue: list[float], now: float, seconds: float) -> float:
    """When something that serves one after the other has served who comes now."""
    queue[0] = max(queue[0], now) + seconds
    return queue[0]


Life = Generator[float | Idle, float, float]
"""Yields until when a worker is busy, and is sent the time."""


def worker(cluster: Cluster, run: int, random: np.random.Generator) -> Life:
    """One worker, job after job; it goes to another run, as a new process, where its own has no tasks."""
    world, left = cluster.world, cluster.left
    now = yield 0.0
    while True:
        now = yield now + random.exponential(world.queue)
        end = now + min(world.walltime, random.exponential(world.preempted) if world.preempted < math.inf else math.inf)
        while now < end:
            now = (yield served(cluster.starts, now, world.asked / world.rate)) + world.start
            now = yield from computes(cluster, run, now, end)
            run = run if left[run] or not any(left) else max(range(len(left)), key=lambda other: len(left[other]))


def computes(cluster: Cluster, run: int, now: float, end: float) -> Life:
    """Computes tasks of a run until the worker's end, or until this run has handed all out and another has not."""
    world, left = cluster.world, cluster.left
    now = yield now
    while now < end:
        if not left[run]:
            if len(cluster.later[run]) < STAGES and any(left):
                break
            now = yield Idle(run)
            continue
        cost = left[run].popleft()
        now = (yield served(cluster.clients[run], now, world.client)) + world.trip
        if now + cost > end:
            cluster.lost.append(max(0.0, end - now))
            now = yield max(now, end)
            left[run].appendleft(cost)
            break
        now = yield now + cost
        operations = world.operations + cluster.stored[run] / world.listed
        now = (yield served(cluster.disk, now, operations / world.rate)) + operations * world.latency
        now = yield now
        cluster.stored[run] += 1
        cluster.done(run)
    return now


def simulate(case: Case, workers: int, world: World, seed: int = 0) -> Outcome:
    """Computes all runs of a case once; raises for a unit that takes longer than any worker lives."""
    runs, units = range(case.runs), case.units(world.spread, seed)
    if max(units) >= world.walltime:
        raise ValueError("A unit takes longer than the walltime.")
    writing = case.writing * len(case.pairs) / len(units)
    begin, computed = [world.begin * sum(case.pairs)], [unit + writing for unit in units]
    finish = [world.chance * sum(case.pairs) + world.summary * len(case.pairs) * case.names]
    cluster = Cluster(
        world, [deque(begin) for _ in runs], [deque([computed, finish]) for _ in runs], [1] * case.runs,
        [0] * case.runs, [[0.0] for _ in runs], [0.0], [0.0], [],
    )  # fmt: skip
    random, order = np.random.default_rng([seed, 1]), count()
    idle: list[list[Life]] = [[] for _ in runs]
    waiting = [(0.0, next(order), worker(cluster, i % case.runs, random)) for i in range(workers)]
    for _, _, each in waiting:
        next(each)
    now = 0.0
    while any(cluster.undone):
        now, _, each = heapq.heappop(waiting)
        until = each.send(now)
        if isinstance(until, Idle):
            idle[until.run].append(each)
        else:
            heapq.heappush(waiting, (until, next(order), each))
        for run in runs if any(idle) else ():  # a stage has begun, or a unit was lost
            for _ in range(min(len(cluster.left[run]), len(idle[run]))):
                heapq.heappush(waiting, (now, next(order), idle[run].pop()))
    total = case.runs * sum(units)
    return Outcome(now, total / (workers * now), sum(cluster.lost) / total)


def sized(case: Case, size: int) -> Case:
    """The case in units of another size; sizes below the smallest query cut alike, and are one."""
    return replace(case, size=max(size, min(case.pairs)))


@cache
def mean(case: Case, workers: int, world: World, seeds: int) -> Outcome:
    """The mean of so many simulations."""
    return Outcome(*np.mean([simulate(case, workers, world, seed) for seed in range(seeds)], axis=0).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="simulations whose mean is printed")
    seeds = parser.parse_args().seeds
    world = World()
    tables = (results(case, about, world, seeds) for case, about in cases().items())
    for text in chain(assumed(world), *tables, recommended(world, seeds), limits(world, seeds)):
        print(text, flush=True)


def assumed(world: World) -> Iterator[str]:
    """The table of what was measured and what is assumed."""
    yield "| what | value | where it is from |\n|---|---|---|"
    yield f"| operations of a GPU per second, float32 | {GPU:.0e} | assumed: half of an A100 at best |"
    for name, (what, source) in ABOUT.items():
        yield f"| {what} | {vars(world)[name]:,g} | {source} |"


def results(case: Case, about: str, world: World, seeds: int) -> Iterator[str]:
    """The table of a case: time and efficiency by workers and size."""
    hours = case.runs * sum(case.pairs) * case.seconds / 3600
    yield f"\n**{case.name}**: {about}; {hours:,.1f} hours of a GPU.\n"
    yield "| workers | " + " | ".join(f"{size} pairs" for size in SIZES) + " |\n|---" + "|---" * len(SIZES) + "|"
    for workers in WORKERS:
        cells = (mean(sized(case, size), workers, world, seeds) for size in SIZES)
        yield f"| {workers:,} | " + " | ".join(f"{clock(x.makespan)}, {x.efficiency:.0%}" for x in cells) + " |"


def clock(seconds: float) -> str:
    """Hours, minutes or seconds."""
    if seconds >= 5400:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def recommended(world: World, seeds: int) -> Iterator[str]:
    """How much longer each size takes than the best one, at worst over numbers of workers, and the size to take."""
    known, worst = list(cases()), dict[int, float]()
    spans = {(c, w, size): mean(sized(c, size), w, world, seeds) for c in known for w in WORKERS for size in SIZES}
    best = {(c, w): min(spans[c, w, size].makespan for size in SIZES) for c in known for w in WORKERS}
    names = " | ".join(case.name for case in known)
    yield "\nHow much longer than with the best size it takes, at most over the numbers of workers:"
    yield f"\n| pairs of a unit | {names} | at most | parts | lost of 64 workers |\n" + "|---" * (len(known) + 4) + "|"
    for size in SIZES:
        longer = [max(spans[c, w, size].makespan / best[c, w] - 1 for w in WORKERS) for c in known]
        worst[size] = max(longer)
        parts = ", ".join(f"{case.runs * (1 + len(ends(case.pairs, size))):,}" for case in known)
        lost = ", ".join(f"{spans[case, 64, size].lost:.1%}" for case in known)
        yield f"| {size} | {' | '.join(f'+{x:.0%}' for x in (*longer, worst[size]))} | {parts} | {lost} |"
    size = min(worst, key=lambda size: (round(worst[size], 2), -size))
    yield f"\nRecommended: {size} pairs, at most {worst[size]:.0%} longer than the best; {NOW}: {worst[NOW]:.0%}."


def lifted(case: Case, world: World) -> dict[str, tuple[Case, World]]:
    """The same with one limit less, by what is lifted."""
    pieces = -(-sum(case.pairs) // FINE)
    other = {
        "no wait in the queue": replace(world, queue=0.0),
        "code and models on the nodes' disks": replace(world, asked=0.0),
        "file system of no time for parts": replace(world, operations=0, listed=math.inf),
        "client of no time": replace(world, client=0.0, trip=0.0),
        "no preemption, no walltime": replace(world, preempted=math.inf, walltime=math.inf),
        "begin and finish of no time": replace(world, begin=0.0, chance=0.0, summary=0.0),
    }
    cut = replace(case, pairs=(FINE,) * pieces, size=FINE, names=round(case.names * len(case.pairs) / pieces))
    return {what: (case, each) for what, each in other.items()} | {f"units of {FINE} pairs, queries cut": (cut, world)}


def limits(world: World, seeds: int) -> Iterator[str]:
    """Where each case falls under half, and which limit, lifted alone, would raise its efficiency most."""
    yield f"\nUnits of {NOW} pairs; efficiency with one limit lifted:\n"
    names = list(lifted(next(iter(cases())), world))
    yield f"| case | workers | as it is | {' | '.join(names)} |\n" + "|---" * (len(names) + 3) + "|"
    for case in cases():
        stop = half(case, world, seeds)
        for workers in (stop, WORKERS[-1]):
            now = mean(case, workers, world, seeds).efficiency
            without = {what: mean(*(c, workers, w, seeds)).efficiency for what, (c, w) in lifted(case, world).items()}
            most = max(without.values())
            cells = " | ".join(f"**{x:.1%}**" if x == most else f"{x:.1%}" for x in without.values())
            yield f"| {case.name} | {workers:,} | {now:.1%} | {cells} |"


def half(case: Case, world: World, seeds: int) -> int:
    """The number of workers at which efficiency falls under one half, to a twentieth."""
    low, high = 1, WORKERS[-1]
    while high - low > max(1, low / 20):
        middle = (low + high) // 2
        low, high = (low, middle) if mean(case, middle, world, seeds).efficiency < 0.5 else (middle, high)
    return high


if __name__ == "__main__":
    main()
