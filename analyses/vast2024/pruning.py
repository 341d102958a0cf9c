"""Measures the loss of the ranking without the most important units (Vast et al. 2024, arXiv:2406.19309)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mechir.collection_groups import collection_of
from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs, Step
from mechir.interventions import Ablate
from mechir.measures import WITHOUT_UNITS, stated
from mechir.methods.checks import measures_there, one_of
from mechir.methods.evaluation import NDCG
from mechir.methods.importance import format_thresholds, labelled, read_thresholds, thresholds
from mechir.methods.pruning import ENDS, ORIGINAL, RANDOM, pruned_sets, pruning_table, refuse, refuse_small
from mechir.methods.schemes import LABELS, schemes
from mechir.options import BY_MEASURES, frame, option
from mechir.pair import Pair, split_queries
from mechir.reranker import Reranker
from mechir.sweeps import sweep
from mechir.views import charts

from .importance import Importance

FULL = {"full": "0.1,0.5,1,2,5,10"}
DIFFERENCE = "difference"
BY_DEFAULT = ("F_in", "F_out", "out-in")


@dataclass(frozen=True)
class Pruning(Importance):
    """Measures the loss of the ranking without the most important units (Vast et al. 2024, arXiv:2406.19309).

    Units are ranked by their conductance on one query in three and pruned on the others: the top of a scheme, the
    bottom (most negative), and beside each of the two random sets with as many units of every layer as it has.
    """

    examples = ("--limit-queries 15", "--grid 1,5,10 --draws 40 --dry-run")
    figure = 15

    every: int = option(3, "units are ranked on one query in so many", least=2)
    grid: tuple[float, ...] = option(
        (1.0, 5.0),
        "shares of units in per cent, with commas, or full for 0.1 to 10",
        aliases=FULL,
        not_empty="per cent with commas, e.g. 1,5, or full",
    )
    scheme: tuple[str, ...] = option(
        (),
        "schemes with commas; by default the collection's own, of several F_in, F_out and out-in",
        in_order=True,
    )
    draws: int = option(20, "random sets like each top, and like each bottom")
    seed: int = option(0, "of the random sets", least=0)
    label: str = option(LABELS[0], "whose conductance ranks the units", among=(*LABELS, DIFFERENCE))
    joint: bool = option(False, "rank neurons and heads together")
    evaluate: tuple[str, ...] = option((NDCG,), **BY_MEASURES | {"says": f"{BY_MEASURES['says']}; beside MRR"})
    sets: pd.DataFrame = frame("name", "sites", derived=True)

    @property
    def shares(self) -> list[float]:
        """The grid as shares from 0 to 1."""
        return [percent / 100 for percent in self.grid]

    def cost(self, model: Reranker) -> float:
        """Full forwards per pair: the intact model, and every set of every share."""
        return 1.0 + max(1, len(self.scheme)) * len(self.grid) * len(ENDS) * (1 + self.draws)

    def measured(self, material: Sequence[Pair]) -> list[Pair]:
        """The pairs of the queries that units are not ranked on."""
        return split_queries(material, self.every)[1]

    def check(self, inputs: Inputs) -> Experiment:
        """Schemes in their order, the target in its normal form; refuses what does not fit."""
        if wrong := [percent for percent in self.grid if not 0 < percent <= 100]:
            raise MechirError(
                f"grid={wrong[0]:g} is no share: write per cent above 0 and up to 100, e.g. 1,5, or full."
            )
        wanted = _wanted(self.scheme, inputs.source.groups)
        refuse(inputs.source.groups, wanted, self.shares, self.draws)
        refuse_small(inputs.model, self.shares, joint=self.joint)
        _refuse_pool(inputs, thresholds(inputs.source, self.relevant), self.every, self.take, self.evaluate)
        measures = measures_there(inputs.judged, self.evaluate)
        return replace(self, target=self.goal(inputs.model), scheme=wanted if self.scheme else (), evaluate=measures)

    def needs(self, inputs: Inputs) -> Sequence[Step]:
        """`Importance` on one query in `every`, which ranks the units."""
        shared = {name: getattr(self, name) for name in Importance.options()}
        return (inputs.step(Importance(**shared | {"relevant": self._lowest(inputs)})),)

    def _lowest(self, inputs: Inputs) -> str:
        """The lowest grade of each collection that is relevant, as text."""
        return format_thresholds(thresholds(inputs.source, self.relevant))

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """The other queries' pairs; the sets of units, from the run of `Importance`."""
        wanted, groups = _wanted(self.scheme, inputs.source.groups), inputs.source.groups
        lowest, learned = self._lowest(inputs), inputs.done[0].summary
        values = learned.pivot(index="site", columns=["label", "collection"], values="estimate")
        values = values.reindex(learned["site"].unique())
        wide = values[LABELS[0]] - values[LABELS[1]] if self.label == DIFFERENCE else values[self.label]
        how: dict[str, Any] = {"draws": self.draws, "seed": self.seed, "joint": self.joint}
        sets = pruned_sets(inputs.model, wide, groups, wanted, self.shares, **how)
        rest = split_queries(inputs.material, self.every)[1]
        return replace(self, relevant=lowest, scheme=wanted, sets=sets), rest

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """Scores of every pair without each set: `name`, `query_id`, `doc_id`, `grade`, `score`."""
        cut = {name: Ablate(sites.split(",")) for name, sites in self.sets[["name", "sites"]].to_numpy()}
        return sweep(model, pairs, {ORIGINAL: ()} | cut)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """`pruning_table`."""
        lowest = read_thresholds(self.relevant)
        return pruning_table(run.rows, run.judged, self.sets, lowest, run.source.groups, self.evaluate)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """All but single random draws; the share in per cent."""
        left_out = ["draw", "group", "share", "value_low", "value_high", "change_p", "change_p_corrected", "excess_p"]
        whole = summary[summary["draw"] < 0]
        shown = whole.drop(columns=left_out).astype({"units": "Int64"})
        shown.insert(3, "percent", [f"{100 * share:g}" if share > 0 else "" for share in whole["share"]])
        return shown

    def findings(self, run: Finished) -> pd.DataFrame:
        """The loss of the ranking without a top or bottom beyond its random sets; a set has no site."""
        sets = run.summary[run.summary["excess"].notna()]
        label = [f"{row.set} {100 * row.share:g} % of {row.scheme}" for row in sets.itertuples()]
        measures = [WITHOUT_UNITS(metric) for metric in sets["measure"]]
        return stated(sets, measures, "excess", site="", label=label, family=f"{len(sets)} sets")

    def chart(self, summary: pd.DataFrame) -> Any:
        """The first measure against the share pruned: top, bottom, and every random draw like either."""
        measure = str(summary["measure"].iloc[0])
        shown = summary[summary["measure"] == measure].rename(columns={"value": measure})
        original = shown[shown["set"] == ORIGINAL].set_index("collection")[measure]
        cut = shown[shown["set"] != ORIGINAL]
        columns = {
            "pruned, %": 100 * cut["share"],
            "panel": cut["scheme"] + " pruned, on " + cut["collection"],
            "intact": cut["collection"].map(original),
            "pruned": cut["set"].where(cut["set"] != RANDOM, "random, like " + cut["like"]),
        }
        return charts.strips(
            cut.assign(**columns),
            "pruned, %",
            measure,
            "pruned",
            title=f"{measure} without the most important units",
            subtitle="ticks: random sets with as many units of each layer as top or bottom; dashed: the intact model",
            column="panel",
            rule="intact",
            faint="draw",
        )


def _wanted(scheme: Sequence[str], groups: Mapping[str, str]) -> tuple[str, ...]:
    """The schemes that are asked for, in their order; by default the collection's own, of several collections some."""
    known = schemes(groups)
    for name in scheme:
        one_of(known, scheme=name)
    if scheme:
        return tuple(name for name in known if name in scheme)
    return tuple(name for name in known if name in BY_DEFAULT) or tuple(known)


def _refuse_pool(inputs: Inputs, lowest: Mapping[str, int], every: int, take: int, evaluate: Sequence[str]) -> None:
    """Refuses queries that do not suffice to rank units on some and to prune on the others.

    `lowest`: the grade from which a document is relevant, by collection.
    """
    chosen, rest = split_queries(inputs.material, every)
    labelled(chosen, lowest, take)
    judged = inputs.source.judged(rest, full=inputs.pool.full) if rest else pd.DataFrame(columns=["query_id", "grade"])
    for name, least in lowest.items():
        here = judged[[collection_of(query) == name for query in judged["query_id"]]]
        if not (here["grade"] >= least).any():
            raise MechirError(
                f"Units are pruned on other queries than they are ranked on, and none of those of '{name}' has a "
                "relevant document: take more queries."
            )
        measures_there(here, evaluate)
