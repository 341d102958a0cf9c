"""The base of all experiments: a frozen dataclass whose fields are its options.

    @dataclass(frozen=True)
    class ScoreSpread(Experiment):
        \"\"\"How far apart the scores of a query are.\"\"\"

        top: int = option(10, "documents of each query that count", least=2)

        def measure(self, model, pairs):
            return sweep(model, pairs, {"original": ()})

        def summarise(self, run):
            return run.rows.groupby("query_id")["score"].std().reset_index(name="estimate")

        def chart(self, summary):
            return charts.bars(summary, "estimate", "query_id", title="Spread of scores")

One class in one file, under `analyses/<paper>/` or anywhere. The methods stand in the order in which they are called.
A unit is one call of `measure` and batches never cross it, so rows do not depend on which process computed them, or
when.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from mechir.errors import MechirError, closest
from mechir.material import Pool, Source, pairs_of
from mechir.options import DERIVED, Option, options
from mechir.registry.runs import Run
from mechir.reranker import Reranker
from mechir.sweeps import forwards, sweep
from mechir.views.latex import interval_ends

OWN = "mechir_experiment_{}_{}"
"""The module of a user's file: its name and the beginning of its hash."""
RunsOn = Literal["pairs", "contrasts", "groups"]


def silent(line: str) -> None:
    """Prints nothing."""


@dataclass(frozen=True, eq=False)
class Step:
    """An experiment to be run on a source and a pool: one run of a graph of runs."""

    experiment: Experiment
    source: Source
    pool: Pool

    @property
    def key(self) -> tuple[Any, ...]:
        """What two equal steps have in common."""
        options = tuple(sorted((name, str(value)) for name, value in self.experiment.written.items()))
        about = getattr(self.source, "fillers", ()), getattr(self.source, "swap", False)
        return type(self.experiment), options, self.source.id, self.source.hash, about, self.pool


@dataclass(frozen=True, eq=False)
class Inputs:
    """The material of an experiment before it measures.

    Attributes:
        model: the model.
        material: the pairs of the pool, or the contrasts of a diagnostic set; whole queries one after the other.
        source: the collection, the collections in groups, or the diagnostic set that they come from.
        pool: which pairs of it were taken.
        registry: where runs are kept.
        say: prints one line of progress.
        done: the finished runs of the steps that it named in `needs`, in their order.
    """

    model: Any
    material: list[Any]
    source: Source
    pool: Pool
    registry: Path
    say: Callable[[str], None] = silent
    done: tuple[Run, ...] = ()

    def step(self, experiment: Experiment, source: Source = None, pool: Pool | None = None) -> Step:
        """The step that runs another experiment, by default on the same source and pool."""
        return Step(experiment, source or self.source, pool or self.pool)

    @property
    def judged(self) -> pd.DataFrame:
        """The judgments that the ideal ranking may use: `query_id`, `doc_id`, `grade`, `pooled`."""
        return self.source.judged(pairs_of(self.material), full=self.pool.full)


@dataclass(frozen=True, eq=False)
class Finished:
    """A run with all its units, as `summarise` and `findings` see it.

    Attributes:
        rows: the rows of `measure`, unit after unit.
        judged: see `Inputs.judged`.
        model: the model.
        source: see `Inputs`.
        diagnostic: the diagnostic of a run on contrasts: "tfc1", ...
        summary: the frame that `summarise` returned; empty while it is made.
    """

    rows: pd.DataFrame
    judged: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    model: Any = None
    source: Source = None
    diagnostic: str = ""
    summary: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Experiment:
    """An experiment and its options.

    Attributes:
        name: "paper/experiment" of those that come with mechir, else the name of the file.
        tier: of the models that it runs on: `Reranker`, `Restarts` or `Weights` (`mechir.reranker`).
        assumes: fields of `Structure`, each with the value that it assumes, e.g. `{"norm": "post"}`.
        runs_on: "pairs" of a collection, "contrasts" of a diagnostic set, or "groups": pairs of several collections.
        forwards: full forwards per pair or contrast that is measured, roughly; None where `cost` counts them.
        rows_of: another experiment that this one extends: its rows are summarised anew.
        embedded: options of the pool by default on the embedded collection, e.g. `{"limit_queries": 61}`.
        is_default: whether `mechir run` without a name runs it.
        reports: whether a report of the registry is written at its end.
        figure: its place among the figures of a report; None behind all that have one.
        shown: the columns that a table shows of those that the summary has, intervals beside; empty for all.
        answers: the questions of a report that it answers, each with the words of its command.
        examples: what may stand behind `mechir run NAME`, for its help.
        across: makes one table of several collections' summaries, one below the other with a column `collection`; where
            it is given, `--collection` may be repeated.
    """

    name: ClassVar[str] = ""
    tier: ClassVar[type] = Reranker
    assumes: ClassVar[Mapping[str, Any]] = {}
    runs_on: ClassVar[RunsOn] = "pairs"
    forwards: ClassVar[float | None] = None
    rows_of: ClassVar[type[Experiment] | None] = None
    embedded: ClassVar[Mapping[str, int]] = {}
    is_default: ClassVar[bool] = False
    reports: ClassVar[bool] = False
    figure: ClassVar[int | None] = None
    shown: ClassVar[tuple[str, ...]] = ()
    answers: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    examples: ClassVar[tuple[str, ...]] = ()
    across: ClassVar[Callable[..., pd.DataFrame] | None] = None

    def __init_subclass__(cls, **more: Any) -> None:
        """Names it PAPER/EXPERIMENT in the folder of the experiments; elsewhere after its file, or as the class."""
        super().__init_subclass__(**more)
        shipped = re.fullmatch(r"(?:mechir\.)?analyses\.(\w+)\.(\w+)", cls.__module__)
        file = re.fullmatch(OWN.format(r"(\w+)", "[0-9a-f]{12}"), cls.__module__)
        cls.name = f"{shipped[1]}/{shipped[2]}" if shipped else file[1] if file else cls.__name__

    def __new__(cls, *values: Any, **named: Any) -> Experiment:
        """Raises for options that the class does not have."""
        fields = [field.name for field in dataclasses.fields(cls)]
        cls._refuse_unknown(named, fields)
        if len(values) > len(fields):
            raise MechirError(f"'{cls.name}' takes {', '.join(fields) or 'no option'}: given {len(values)} values.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, declared in self.options().items():
            object.__setattr__(self, name, declared.value(getattr(self, name), self.name))

    @classmethod
    def options(cls) -> dict[str, Option]:
        """The options, by name."""
        return options(cls)

    @classmethod
    def chosen(cls, **values: Any) -> Experiment:
        """The experiment with these options; raises for an unknown one, or a value of another kind."""
        declared = cls.options()
        cls._refuse_unknown(values, declared)
        return cls(**{name: declared[name].value(value, cls.name) for name, value in values.items()})

    @classmethod
    def _refuse_unknown(cls, names: Iterable[str], known: Collection[str]) -> None:
        if unknown := next((name for name in names if name not in known), None):
            takes = f"{', '.join(known)}; the closest is {closest(unknown, known, n=1)}" if known else "none"
            raise MechirError(f"'{cls.name}' has no option '{unknown}': it takes {takes}.")

    @property
    def written(self) -> dict[str, Any]:
        """The options as text and numbers, as a record holds them and the command line takes them."""
        return {name: declared.written(getattr(self, name)) for name, declared in self.options().items()}

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """The frames that `prepare` found, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, pd.DataFrame)}

    @property
    def derived(self) -> list[str]:
        """The names of frames that are no part of the identity of a run: see `mechir.options.frame`."""
        return [field.name for field in dataclasses.fields(self) if field.metadata.get(DERIVED)]

    def check(self, inputs: Inputs) -> Experiment:
        """The experiment with its options in normal form; refuses what the model, the pool or a file does not allow.

        It makes no forward and is called once, before anything is measured or written, and for `--dry-run`.
        """
        return self

    def needs(self, inputs: Inputs) -> Sequence[Step]:
        """The runs that must be finished before `prepare`, which finds them in `inputs.done`.

        It is asked again whenever all that it named are finished, until it names nothing behind them: what follows from
        their findings comes then. It makes no forward; what it names at one time may be computed at the same time.
        """
        if self.rows_of is None:
            return ()
        return (inputs.step(self.rows_of(**{name: getattr(self, name) for name in self.rows_of.options()})),)

    def follows(self, inputs: Inputs) -> Sequence[Step]:
        """The steps that may follow from the findings of those that `needs` names at first, as large as they can be.

        Only the plan of a run's cost asks for them.
        """
        return ()

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Any]]:
        """The experiment with the options that were left open, and the material left to measure.

        Heads that are found on some queries are measured on others, so that the choice does not flatter.
        """
        return self, inputs.material

    def interventions(self, model: Any) -> Mapping[str, Any]:
        """The interventions by name, of an experiment whose work is a sweep."""
        return {}

    def cost(self, model: Any) -> float:
        """Full forwards per pair or contrast that is measured, roughly: `forwards`, or a sweep of `interventions`.

        One where neither is given: the plan is a guess then, and the time left still follows what was measured.
        """
        return (forwards(model, self.interventions(model)) or 1.0) if self.forwards is None else self.forwards

    def measured(self, material: Sequence[Any]) -> list[Any]:
        """The pairs or contrasts that are measured, as far as it is known before `prepare`: by default all."""
        return list(material)

    def power(self, inputs: Inputs) -> pd.DataFrame | None:
        """The size of the effects that so many queries can find, for `--dry-run`; None where it is unknown."""
        return None

    def measure(self, model: Any, material: Sequence[Any]) -> pd.DataFrame:
        """The rows of one unit, whole queries; by default scores under each of the `interventions`, as in `sweep`."""
        return sweep(model, material, self.interventions(model))

    def summarise(self, run: Finished) -> pd.DataFrame:
        """The table of the run; each experiment has its own."""
        raise MechirError(f"'{type(self).__name__}' is no experiment: it defines no summarise.")

    def findings(self, run: Finished) -> pd.DataFrame | None:
        """The findings about components for the registry (see `mechir.registry.findings`); None for nothing."""
        return None

    def chart(self, summary: pd.DataFrame) -> Any:
        """The chart of the run (see `mechir.views.charts`); each experiment has its own."""
        raise MechirError(f"'{type(self).__name__}' is no experiment: it defines no chart.")

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The part of the summary that a terminal prints: its columns `shown`, the answer in the first rows."""
        ends = interval_ends(list(summary.columns))
        names = [part for name in cls.shown if name in summary for part in (name, *ends.get(name, ()))]
        return summary[names] if names else summary


def refuse_incomplete(experiment: type[Experiment]) -> None:
    """Raises for a class that lacks a method, is not frozen, or has a method misspelt or with other parameters."""
    title, measures = experiment.__name__, experiment.interventions is Experiment.interventions
    required = ("measure", "summarise", "chart") if measures else ("summarise", "chart")
    missing = [name for name in required if getattr(experiment, name) is getattr(Experiment, name)]
    if missing:
        raise MechirError(f"'{title}' is no experiment: it defines no {' and no '.join(missing)}.")
    params = vars(experiment).get("__dataclass_params__")
    if params is None or not params.frozen:
        raise MechirError(f"'{title}' is not frozen: write @dataclass(frozen=True) above the class.")
    options(experiment)
    hooks = [name for name in dir(Experiment) if not name.startswith("_")]
    fields = {field.name for field in dataclasses.fields(experiment)}
    for name in sorted(set(dir(experiment)) - set(dir(Experiment)) - fields):
        if meant := not name.startswith("_") and difflib.get_close_matches(name, hooks, n=1, cutoff=0.8):
            raise MechirError(f"Nothing uses '{title}.{name}': write '{meant[0]}', or begin its name with '_'.")
    for name in (name for name in hooks if inspect.isfunction(getattr(Experiment, name))):
        wanted = list(inspect.signature(getattr(Experiment, name)).parameters)
        try:
            inspect.signature(getattr(experiment, name)).bind(*wanted)
        except TypeError as error:
            call = f"{name}({', '.join(wanted)})"
            raise MechirError(f"'{title}.{name}' cannot be called as {call}: {error}.") from error
