"""A run as a graph: the steps that it needs, each begun when what it needs is finished, on however many workers.

A step is a node. Its tasks are `begin`, one for each missing unit, and `finish`; what is ready is handed out in the
order of the steps, as many tasks at a time as there are workers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from mechir.encoder.hooked_model import HookedModel
from mechir.errors import LostWorkers
from mechir.experiment import Experiment
from mechir.progress import Standing, Watch
from mechir.registry.runs import Run
from mechir.shard import NOTHING, Shard
from mechir.work import Begun, Work, begin, compute, finish, forget_marks, forwards_of, kind_of, ready
from mechir.workers import Workers

SECOND = 1.0
"""How often it is asked whether there are more workers."""
AGAIN, AT_MOST = 3, 20
"""Tries of a task whose worker was lost, before the run ends; of a unit, which counts the processes that it killed."""


class Task(NamedTuple):
    """Something that a worker does, `work(*arguments)`, and what becomes of its answer."""

    node: Node
    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    received: Callable[[Any], None]
    tries: int = 1


@dataclass(eq=False)
class Node:
    """A step and how far it is.

    Attributes:
        work: the step.
        cost: full forwards of all its pairs or contrasts, roughly.
        needed: the nodes that must be finished first, as far as they are named.
        named: whether all of them are.
        begun: the stored run.
        missing: units that are handed out to nobody yet.
        mine: units that this process hands out; of a run in shards not all.
        done: units that are there; `earlier` those that were there before.
        lost: units that killed their workers.
        in_work: tasks of it that are handed out.
        stands: whether this process has nothing more to do for it.
        finished: whether its summary is there.
    """

    work: Work
    cost: float = 0.0
    needed: list[Node] = field(default_factory=list)
    named: bool = False
    begun: Begun | None = None
    missing: deque[int] = field(default_factory=deque)
    mine: frozenset[int] = frozenset()
    done: set[int] = field(default_factory=set)
    earlier: frozenset[int] = frozenset()
    lost: list[int] = field(default_factory=list)
    in_work: int = 0
    stands: bool = False
    finished: bool = False

    @property
    def run(self) -> Run:
        """The stored run."""
        assert self.begun is not None
        return self.begun.run

    @property
    def waits(self) -> bool:
        """Whether it needs runs that are still computed."""
        return not all(node.stands for node in self.needed)

    def pairs(self, units: set[int] | frozenset[int] | None = None) -> int:
        """The pairs or contrasts of some units, or of all."""
        sizes = self.begun.sizes if self.begun else ()
        return sum(size for unit, size in enumerate(sizes) if units is None or unit in units)


class Graph:
    """The nodes of one run; `root` is the one that was asked for."""

    workers: Workers

    def __init__(self, work: Work, model: HookedModel, shard: Shard, watch: Watch) -> None:
        """`model` checks options and names steps, which takes no forward; raises for options that do not fit."""
        self.model, self.shard, self.watch = model, shard, watch
        self.nodes: dict[tuple[Any, ...], Node] = {}
        self.again: deque[Task] = deque()
        self.started = time.monotonic()
        self.root = self._node(work)

    def compute(self, workers: Workers) -> Run:
        """Does all that is to be done on these workers, and returns the run.

        Raises:
            LostWorkers: at the end, where units killed their workers again and again; all others are computed.
        """
        self.workers = workers
        running: dict[Future[Any], Task] = {}
        try:
            while True:
                room = max(0, workers.capacity() - len(running))
                for task in islice(self._ready(), room):
                    task.node.in_work += 1
                    running[workers.submit(task.work, *task.arguments)] = task
                if not running and room:
                    break
                if not running:  # no worker has come yet
                    workers.refuse_gone()
                    time.sleep(SECOND)
                for future in wait(running, SECOND, return_when=FIRST_COMPLETED).done:  # others may come meanwhile
                    self._receive(running.pop(future), future)
        finally:
            for future in running:
                future.cancel()
            for node in self.nodes.values():
                if node.begun is not None and self.workers.session:
                    forget_marks(node.begun.path, self.workers.session)
        self._refuse_lost()
        return self.root.run

    def _node(self, work: Work) -> Node:
        """The node of a step, and before it those that it needs; raises for options that do not fit."""
        key = work.step.key
        if key not in self.nodes:
            work = ready(work, self.model, self.watch.say)
            material = work.taken.material if work.taken else None
            node = Node(work, forwards_of(work.experiment, self.model, material) if material else 0.0)
            self._name(node)
            self.nodes[key] = node
        return self.nodes[key]

    def _name(self, node: Node) -> None:
        """Asks the experiment what it needs beyond what it has named."""
        node.work = work = replace(node.work, done=tuple(needed.run.path for needed in node.needed))
        names = type(work.experiment).needs is not Experiment.needs or work.experiment.rows_of is not None
        steps = work.experiment.needs(work.inputs(self.model, self.watch.say)) if names else ()
        fresh = work.fresh if work.experiment.rows_of is not None else ""
        new = [replace(work, step=step, done=(), fresh=fresh, taken=None) for step in steps[len(node.needed) :]]
        node.named = not new
        node.needed += map(self._node, new)

    def _ready(self) -> Iterator[Task]:
        """The tasks that can be handed out now, in the order of the steps."""
        while self.again:
            yield self.again.popleft()
        n_nodes = 0
        while n_nodes < len(self.nodes):  # asked what it needs, a node may name new ones
            n_nodes = len(self.nodes)
            for node in list(self.nodes.values()):
                while (task := self._next(node)) is not None:
                    yield task

    def _next(self, node: Node) -> Task | None:
        """The next task of a node; None where there is none now."""
        if node.stands or node.waits or (node.begun is None and node.in_work):
            return None
        if node.begun is None:
            return self._begin(node)
        if node.missing:
            unit = node.missing.popleft()
            task = (node.begun, unit, self.workers.session)
            return Task(node, compute, task, partial(self._computed, node))
        if node.in_work:
            return None
        begun_alone = node is self.root and self.shard == NOTHING
        if begun_alone or len(node.run.done()) < node.run.record["units"]:
            node.stands = True
            return None
        return Task(node, finish, (node.work, node.begun), partial(self._finished, node))

    def _begin(self, node: Node) -> Task | None:
        """The task that begins a run, once all that it needs is named and finished."""
        if not all(needed.finished for needed in node.needed) and node.work.experiment.rows_of is None:
            node.stands = True
            return None
        if not node.named:
            self._name(node)
            if node.needed and node.waits:
                return None
        self.watch.show(self._standing(node))
        return Task(node, begin, (node.work,), partial(self._begun, node))

    def _begun(self, node: Node, begun: Begun) -> None:
        if all(other.begun is None for other in self.nodes.values()):
            self.started = time.monotonic()  # what workers take to come and to read the model is over
        node.begun, node.done = begun, begun.run.done()
        node.earlier = frozenset(node.done)
        missing = [unit for unit in range(len(begun.sizes)) if unit not in node.done]
        mine = [unit for unit in missing if self.shard.holds(unit)]
        of_shard_alone = node is self.root or self.root.work.experiment.rows_of is not None
        node.missing.extend(mine if of_shard_alone else [*mine, *(unit for unit in missing if unit not in mine)])
        node.mine = frozenset(node.missing)
        for note in begun.notes:
            self.watch.say(note)

    def _computed(self, node: Node, unit: int) -> None:
        node.done.add(unit)
        self.watch.show(self._standing(node))

    def _finished(self, node: Node, path: Any) -> None:
        """Forgets the material, which nothing needs any more."""
        assert node.begun is not None
        node.finished = node.stands = True
        node.begun, node.work = replace(node.begun, job=None), replace(node.work, taken=None)

    def _receive(self, task: Task, future: Future[Any]) -> None:
        """Takes the answer of a task; one whose worker was lost is handed out again."""
        task.node.in_work -= 1
        try:
            answer = future.result()
        except self.workers.lost as error:
            self.workers.refuse_gone()
            if task.tries >= (AT_MOST if task.work is compute else AGAIN):
                raise LostWorkers(
                    f"{task.tries} workers were lost while they had to {task.work.__name__} "
                    f"'{task.node.work.experiment.name}' ({error}): {self.workers.advice}"
                ) from error
            self.again.append(task._replace(tries=task.tries + 1))
        except LostWorkers:
            if task.work is not compute:
                raise
            task.node.lost.append(task.arguments[1])
        else:
            task.received(answer)

    def _standing(self, node: Node) -> Standing:
        """How far the run is; the time left is that of all steps, by their forwards."""
        experiment, nodes = node.work.experiment, list(self.nodes.values())
        left, measured = 0.0, 0.0
        for each in nodes:
            if each.begun is None:
                left += 0.0 if each.stands else each.cost
            elif all_pairs := each.pairs():
                measured += each.cost * each.pairs(each.done - each.earlier) / all_pairs
                left += each.cost * each.pairs(each.mine - each.done) / all_pairs
        seconds = (time.monotonic() - self.started) * left / measured if measured else None
        units = len(node.begun.sizes) if node.begun else 0
        step = 1 + sum(each.finished for each in nodes)
        return Standing(
            experiment.name, min(step, len(nodes)), len(nodes), len(node.done), units,
            node.pairs(node.done), node.pairs(), kind_of(experiment), seconds,
        )  # fmt: skip

    def _refuse_lost(self) -> None:
        """Raises where units killed their workers, with each of them."""
        lost = [(node, unit) for node in self.nodes.values() for unit in sorted(node.lost)]
        if lost:
            named = ", ".join(f"unit {unit} of run {node.run.id} ({node.work.experiment.name})" for node, unit in lost)
            raise LostWorkers(
                f"{named} killed three workers each and {'is' if len(lost) == 1 else 'are'} not computed; all else "
                "is: look at the workers' memory, then give the same command again, which tries them again."
            )
