"""Steps of a run: what is independent is handed out at one time, what is needed comes first, and each step once."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechir as mi
from mechir import work
from mechir.cli.ask import print_summary
from mechir.encoder import HookedEncoder
from mechir.experiment import Experiment, Inputs, Step
from mechir.graph import Graph
from mechir.material import Pool
from mechir.options import frame, option
from mechir.progress import Display, Lines, Quiet, Standing, duration, written
from mechir.registry.runs import Run
from mechir.shard import NOTHING, Shard
from mechir.views import charts
from mechir.workers import Workers
from tests.models import TOY, TOY_MODEL


@dataclass(frozen=True)
class Leaf(Experiment):
    """Scores; what it costs is not said."""

    number: int = option(0, "tells leaves apart")

    def measure(self, model: HookedEncoder, material: Any) -> pd.DataFrame:
        return mi.sweep(model, material, {"original": ()})

    def summarise(self, run: Any) -> pd.DataFrame:
        return run.rows.groupby("name", as_index=False)["score"].mean()

    def chart(self, summary: pd.DataFrame) -> Any:
        return charts.heatmap(summary.assign(x="x"), "x", "name", "score", title="leaf")


@dataclass(frozen=True)
class Tree(Leaf):
    """Needs two leaves, then a third that follows from them, and one that it has named already."""

    names: str = option("", "the runs that `prepare` was given")

    def needs(self, inputs: Inputs) -> list[Step]:
        first = [inputs.step(Leaf(number=1)), inputs.step(Leaf(number=2), pool=Pool(limit_queries=2))]
        if len(inputs.done) < 2:
            return first
        assert all(run.finished for run in inputs.done)
        return [*first, inputs.step(Leaf(number=3)), inputs.step(Leaf(number=1))]

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Any]]:
        return replace(self, names=",".join(run.id for run in inputs.done)), inputs.material


class Held(Executor):
    """Takes tasks and does them later, so that one sees which were handed out at one time."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []
        self.waiting: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, fn, arguments))
        return future

    def release(self) -> None:
        """Does what was handed out."""
        self.rounds.append([fn.__name__ for _, fn, _ in self.waiting])
        now, self.waiting = self.waiting, []
        for future, fn, arguments in now:
            future.set_result(fn(*arguments))


@dataclass(frozen=True)
class Later(Workers):
    """Workers that do nothing before they are asked how many there are again."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        assert isinstance(self.executor, Held)
        return self.executor.submit(work, *arguments)


def graph_of(experiment: Experiment, registry: Path, shard: Shard = Shard(), watch: Any = None) -> Graph:  # noqa: B008
    model = mi.load(TOY_MODEL)
    step = Step(experiment, mi.collection(TOY), Pool())
    return Graph(work.Work(step, model, registry, unit=30), model, shard, watch or Quiet())


def test_independent_steps_are_handed_out_together_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechir.graph.SECOND", 0.01)
    held, said = Held(), list[str]()

    def room() -> int:
        if held.waiting:
            held.release()
        return 10

    run = graph_of(Tree(), tmp_path, watch=Lines(said.append)).compute(Later(held, room))
    assert held.rounds[0] == ["begin", "begin"], "both leaves at one time"
    assert held.rounds[1] == ["compute"] * 3, "the units of both"
    runs = {entry.name for entry in (tmp_path / "runs").iterdir()}
    assert len(runs) == 4, "the leaf that was named twice is one run"
    names = run.record["identity"]["options"]["names"].split(",")
    assert len(names) == 4 and names[0] == names[3] and {*names, run.id} == runs
    assert any(line.startswith("Leaf, step 1 of 3, ") for line in said)


def test_one_after_the_other_gives_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechir.graph.SECOND", 0.01)
    held = Held()

    def room() -> int:
        if held.waiting:
            held.release()
        return 10

    graph_of(Tree(), tmp_path / "together").compute(Later(held, room))
    graph_of(Tree(), tmp_path / "alone").compute(Workers(None, lambda: 1))
    one, other = ({run.name for run in (tmp_path / name / "runs").iterdir()} for name in ("together", "alone"))
    assert one == other


def test_a_shard_computes_its_units_and_whole_runs_that_it_needs(tmp_path: Path) -> None:
    run = graph_of(Tree(), tmp_path, Shard(1, 2)).compute(Workers(None, lambda: 1))
    assert run.done() == {1} and not run.finished
    others = [Run(entry) for entry in (tmp_path / "runs").iterdir() if entry.name != run.id]
    assert all(other.finished for other in others)
    assert graph_of(Tree(), tmp_path, NOTHING).compute(Workers(None, lambda: 1)).done() == {1}
    assert graph_of(Tree(), tmp_path, Shard(0, 2)).compute(Workers(None, lambda: 1)).finished


NOISE = {"score": 0.0}
"""What a machine adds to the last digits of whatever it computes."""


@dataclass(frozen=True)
class Derives(Tree):
    """Takes the mean score of a run that it needs, as this machine computes it."""

    mean: pd.DataFrame = frame("score", derived=True)

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Any]]:
        return replace(self, mean=inputs.done[0].summary[["score"]] + NOISE["score"]), inputs.material

    def measure(self, model: HookedEncoder, material: Any) -> pd.DataFrame:
        return super().measure(model, material).assign(score=float(self.mean["score"].iloc[0]))


def test_a_run_is_one_run_on_machines_with_other_last_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = graph_of(Derives(), tmp_path, Shard(0, 2)).compute(Workers(None, lambda: 1))
    others = sorted(path.name for path in (tmp_path / "runs").iterdir() if path.name != begun.id)
    assert sorted(set(begun.record["identity"]["needs"])) == others and not begun.finished
    monkeypatch.setitem(NOISE, "score", 1e-6)
    finished = graph_of(Derives(), tmp_path).compute(Workers(None, lambda: 1))
    assert finished.id == begun.id and finished.finished and finished.rows["score"].nunique() == 1
    assert graph_of(Derives(number=1), tmp_path).compute(Workers(None, lambda: 1)).id != begun.id


@dataclass(frozen=True)
class Watching(Quiet):
    """Keeps how far the run was."""

    seen: list[Standing]

    def show(self, standing: Standing) -> None:
        self.seen.append(standing)


@dataclass(frozen=True)
class FewOfThem(Leaf):
    """Measures the pairs of the first query alone, so that its first unit is its last."""

    forwards = 1000.0

    def measured(self, material: Any) -> Any:
        return [pair for pair in material if pair.query_id == material[0].query_id]

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Any]]:
        return self, self.measured(inputs.material)


@pytest.mark.parametrize("shard", [Shard(), Shard(0, 2), Shard(1, 2)])
def test_no_time_is_left_when_all_that_is_asked_for_is_there(shard: Shard, tmp_path: Path) -> None:
    watch = Watching([])
    graph_of(Leaf(), tmp_path, shard, watch).compute(Workers(None, lambda: 1))
    assert [standing.left == 0 for standing in watch.seen[1:]] == [False] * (len(watch.seen) - 2) + [True]


def test_the_time_left_counts_what_is_measured(tmp_path: Path) -> None:
    graph = graph_of(FewOfThem(), tmp_path)
    n = len([pair for pair in mi.collection(TOY).pairs() if pair.query_id == mi.collection(TOY).pairs()[0].query_id])
    assert graph.root.cost == 1000 * n
    run = graph.compute(Workers(None, lambda: 1))
    assert run.record["forwards"] == 1000 * n and run.record["pairs"] == n


def test_a_run_goes_on_with_the_units_that_it_was_begun_with(tmp_path: Path) -> None:
    run = graph_of(Leaf(), tmp_path, Shard(1, 2)).compute(Workers(None, lambda: 1))
    before = run.record["units"]
    model = mi.load(TOY_MODEL)
    again = work.Work(Step(Leaf(), mi.collection(TOY), Pool()), model, tmp_path, unit=5)
    finished = Graph(again, model, Shard(), Quiet()).compute(Workers(None, lambda: 1))
    assert finished.record["units"] == before and finished.finished
    assert len(finished.rows) == len(mi.collection(TOY).pairs())


def test_a_run_of_several_devices_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = mi.run("vast2025/direction_ablation", mi.load(TOY_MODEL), TOY, registry=tmp_path)
    print_summary(run)
    assert "units were computed on" not in capsys.readouterr().out
    run.write_record(run.record | {"devices": ["cpu", "cuda:0"], "hosts": ["one", "two"]})
    print_summary(run)
    said = "units were computed on 2 devices (cpu, cuda:0) and 2 hosts (one, two); an effect never mixes two"
    assert said in capsys.readouterr().out


def test_the_display_is_one_line_that_fits() -> None:
    standing = Standing("vast2025/attention_contrast", 3, 11, 6, 8, left=760.0)
    line = written(standing, 120)
    assert line == "vast2025/attention_contrast  step 3 of 11  [============    ]  6/8 units  12 min 40 s left"
    assert written(standing, 79).startswith("vast2025/attention_contrast  step 3 of 11  6/8 units")
    assert all(len(written(standing, width)) <= width for width in range(1, 121))
    assert written(Standing("a", 1, 2), 80).endswith("preparing")
    screen = io.StringIO()
    display = Display(screen)
    for done in range(9):
        display.show(replace(standing, done=done))
    display.say("nothing")
    display.close()
    lines = screen.getvalue().split("\r\033[K")
    assert "\n" not in screen.getvalue() and lines[-1] == "" and "8/8 units" in lines[-2] and len(lines) < 6
    assert [duration(seconds) for seconds in (5.0, 65.0, 7325.0)] == ["5 s", "1 min 5 s", "2 h 2 min"]
