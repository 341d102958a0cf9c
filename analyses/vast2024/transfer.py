"""Measures the agreement of top units of collections, groups and labels (Vast et al. 2024, Figures 2 and 3)."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mechir.experiment import Finished
from mechir.inference import holm
from mechir.methods.importance import Table, tables
from mechir.methods.schemes import KINDS, LABELS, Ranked, agreement, by_place, kind, members, schemes
from mechir.methods.statistics import overlap_of_all, percentiles
from mechir.views import charts

from .importance import Importance

GRID = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
PLACES = 0.01
"""The share whose agreement is given layer by layer, and drawn."""
DRAWS = 100
BOTH, AGAIN = "both labels", "other queries"
FIRST = ["label", "first", "second", "kind", "p", "layer", "n_first", "n_second", "shared", "share", "low", "high"]


class Compared(NamedTuple):
    """The top p of two schemes, sites of one kind."""

    label: str
    first: str
    second: str
    p: float
    kind: str
    sites: list[str]
    others: list[str]


@dataclass(frozen=True)
class Transfer(Importance):
    """Measures the agreement of top units of collections, groups and labels (Vast et al. 2024, Figures 2 and 3).

    The share of the top units that two schemes have in common; beside it chance, and the same collection measured on
    other queries, as no two samples of queries agree wholly.
    """

    examples = ("--limit-queries 10", "--tol 0.05 --limit-queries 10")
    rows_of = Importance
    figure = None

    def summarise(self, run: Finished) -> pd.DataFrame:
        """Agreement of the top units of `first` and `second`, for each share `p` and `kind` ("neuron", "head").

        `label` is whose units they are; "both labels" compares relevant with non-relevant of one scheme. Where `second`
        is an intersection (`I_all`), it is that of all its collections; where it is "other queries", both are of one
        collection, each from one half of its queries. `layer` is a number in rows of one layer (p = 1 % alone), else
        missing. `n_first`, `n_second` units; `shared`; `share` of the first, the papers' number, with `low` and `high`
        (95 %: whole queries resampled 100 times, halves drawn anew; resampling blurs a ranking, so the interval lies
        low); `jaccard`, over the union; `expected`, the share by chance; `p_chance`, that so many or more are shared
        (hypergeometric), `p_corrected` over the rows of all layers together; `queries` of the first.
        """
        samples, groups = tables(run.rows), run.source.groups
        queries = {table.collection: len(table.counts) for table in samples}
        pairs = list(_compared(samples, groups))
        counts = Counter(map(kind, samples[0].sites))
        lines = pd.DataFrame([_line(pair, counts[pair.kind], groups) for pair in pairs])
        resampled = (_compared(samples, groups, seed) for seed in range(DRAWS))
        drawn = np.array([[len({*x.sites} & {*x.others}) / len(x.sites) for x in again] for again in resampled])
        lines[["low", "high"]] = [percentiles(column[np.isfinite(column)]) for column in drawn.T]
        lines["p_corrected"] = holm(lines["p_chance"].to_numpy())
        summary = pd.concat([lines, pd.DataFrame(_places(pairs, samples))], ignore_index=True)
        summary["queries"] = [queries.get(first, sum(queries.values())) for first in summary["first"]]
        return summary[[*FIRST, *summary.columns.difference(FIRST, sort=False)]]

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The top 1 % of neurons and the top 10 % of heads, all layers together."""
        whole = summary[summary["layer"].isna()]
        return whole[whole["p"] == whole["kind"].map({"neuron": PLACES, "head": 0.1})].drop(columns="layer")

    def findings(self, run: Finished) -> None:
        """None: the findings are those of `Importance`."""

    def chart(self, summary: pd.DataFrame) -> Any:
        """Agreement of neurons against the share that is taken: of collections, of labels, and with other queries."""
        of_several = summary[["first", "second"]].apply(lambda names: names.str.match("[IF]_")).any(axis=1)
        shown = summary[summary["layer"].isna() & (summary["kind"] == "neuron") & ~of_several].copy()
        shown["compared"] = shown["first"] + " / " + shown["second"].where(shown["label"] != BOTH, "other label")
        shown["top units, %"] = 100 * shown["p"]
        return charts.lines(
            shown,
            "top units, %",
            "share",
            "compared",
            title="Which share of the top neurons is the same",
            subtitle="95 % interval over queries; by chance it is the share that is taken",
            low="low",
            high="high",
            column="label",
        )


def _compared(samples: Sequence[Table], groups: Mapping[str, str], seed: int | None = None) -> Iterator[Compared]:
    """The comparisons, on all queries or, with a seed, on queries drawn anew."""
    ranked = _ranked(samples, groups, lambda table: None if seed is None else table.drawn(1, seed)[0])
    half, rest = (_ranked(samples, groups, partial(_half, which=which, seed=seed)) for which in (0, 1))
    alone = [f"F_{group}" for group in groups.values() if len(members(f"F_{group}", groups)) == 1]
    names = [name for name in ranked[LABELS[0]].orders if name not in alone]  # a fusion of one is that one
    of_all = [scheme for scheme in schemes(groups) if scheme.startswith("I_") and len(members(scheme, groups)) > 1]
    halves = min(len(table.counts) for table in samples) > 1
    most = max(Counter(map(kind, samples[0].sites)).values())
    for p in (p for p in GRID if p * most >= 0.5):
        for label in LABELS:
            best = {name: ranked[label].units(name, p) for name in (*names, *of_all)}
            firsts = [(members(scheme, groups)[0], scheme) for scheme in of_all]
            for first, second in [*itertools.combinations(names, 2), *firsts]:
                yield from _kinds(label, first, second, p, best[first], best[second])
            for name in groups if halves else ():
                yield from _kinds(label, name, AGAIN, p, half[label].units(name, p), rest[label].units(name, p))
        for name in names:
            yield from _kinds(BOTH, name, name, p, *(ranked[label].units(name, p) for label in LABELS))


def _ranked(samples: Sequence[Table], groups: Mapping[str, str], weights: Callable[[Table], Any]) -> dict[str, Ranked]:
    """Units ranked for each label, queries weighted."""
    ranked = {}
    for label in LABELS:
        here = [table for table in samples if table.label == label]
        means = {table.collection: pd.Series(table.mean(weights(table)), table.sites) for table in here}
        ranked[label] = Ranked.of(pd.DataFrame(means), groups)
    return ranked


def _half(table: Table, which: int, seed: int | None) -> np.ndarray:
    """A mask of the queries of a half: every second one, or with a seed half of them at random."""
    n = len(table.counts)
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    return (order % 2 == which).astype(float) if n > 1 else np.ones(n)


def _kinds(
    label: str, first: str, second: str, p: float, sites: Sequence[str], others: Sequence[str]
) -> Iterator[Compared]:
    for which in KINDS:
        alike, theirs = ([site for site in listed if kind(site) == which] for listed in (sites, others))
        if alike:
            yield Compared(label, first, second, p, which, alike, theirs)


def _line(pair: Compared, n: int, groups: Mapping[str, str]) -> dict[str, Any]:
    line = {"label": pair.label, "first": pair.first, "second": pair.second, "kind": pair.kind, "layer": np.nan}
    line |= {"n_first": len(pair.sites), "n_second": len(pair.others)} | agreement(pair.sites, pair.others, n)
    if pair.second.startswith("I_") and pair.second not in groups:
        chance = overlap_of_all([len(pair.sites)] * len(members(pair.second, groups)), len(pair.others), n)
        line |= {"expected": chance.expected / len(pair.sites), "p": chance.p}
    return line | {"p_chance": line["p"], "p": pair.p}


def _places(pairs: Sequence[Compared], samples: Sequence[Table]) -> Iterator[dict[str, Any]]:
    """Agreement layer by layer."""
    sizes = Counter((int(site[1:].partition(".")[0]), kind(site)) for site in samples[0].sites)
    for pair in pairs:
        if pair.p != PLACES or pair.second.startswith("I_"):
            continue
        sites = {place: n for place, n in sorted(sizes.items()) if place[1] == pair.kind}
        layers = by_place(pair.sites, pair.others, sites)
        layers = layers.rename(columns={"first": "n_first", "second": "n_second", "p": "p_chance"})
        for line in layers.to_dict("records"):
            yield line | {"label": pair.label, "first": pair.first, "second": pair.second, "p": pair.p}
