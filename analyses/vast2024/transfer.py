"""Which units transfer: agreement of collections, groups and labels (Vast et al. 2024, Figures 2 and 3)."""

from __future__ import annotations

import itertools
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
"""The share whose agreement is told layer by layer, and drawn."""
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
    one: list[str]
    other: list[str]


@dataclass(frozen=True)
class Transfer(Importance):
    """Which units transfer: agreement of collections, groups and labels (Vast et al. 2024, Figures 2 and 3).

    Of the top units of two schemes, which share is the same? Beside it stand chance and the same collection measured on
    other queries, as no two samples of queries agree wholly.
    """

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
        every = list(_compared(samples, groups))
        counts = {one: sum(kind(site) == one for site in samples[0].sites) for one in KINDS}
        lines = [_line(one, counts[one.kind], groups) for one in every]
        drawn = np.array([[_share(one) for one in _compared(samples, groups, seed)] for seed in range(DRAWS)])
        bounds = [percentiles(column[np.isfinite(column)]) for column in drawn.T]
        summary = pd.DataFrame(lines).assign(low=[low for low, _ in bounds], high=[high for _, high in bounds])
        summary["p_corrected"] = holm(summary["p_chance"].to_numpy())
        summary = pd.concat([summary, pd.DataFrame(_places(every, samples))], ignore_index=True)
        summary["queries"] = [queries.get(first, sum(queries.values())) for first in summary["first"]]
        return summary[[*FIRST, *(name for name in summary.columns if name not in FIRST)]]

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The top 1 % of neurons and the top 10 % of heads, all layers together."""
        whole = summary[summary["layer"].isna()]
        return whole[whole["p"] == whole["kind"].map({"neuron": PLACES, "head": 0.1})].drop(columns="layer")

    def findings(self, run: Finished) -> None:
        """Nothing: the findings are those of `Importance`."""

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
    """Everything that is compared, on all queries or, with a seed, on queries drawn anew."""
    ranked = _ranked(samples, groups, lambda table: None if seed is None else table.drawn(1, seed)[0])
    half, rest = (_ranked(samples, groups, partial(_half, which=which, seed=seed)) for which in (0, 1))
    alone = [f"F_{group}" for group in groups.values() if len(members(f"F_{group}", groups)) == 1]
    names = [name for name in ranked[LABELS[0]].orders if name not in alone]  # a fusion of one is that one
    of_all = [scheme for scheme in schemes(groups) if scheme.startswith("I_") and len(members(scheme, groups)) > 1]
    halves = min(len(table.counts) for table in samples) > 1
    most = max(sum(kind(site) == one for site in samples[0].sites) for one in KINDS)
    for p in (p for p in GRID if p * most >= 0.5):
        for label in LABELS:
            kept: dict[str, Any] = {name: ranked[label].kept(name, p) for name in (*names, *of_all)}
            for first, second in itertools.combinations(names, 2):
                yield from _kinds(label, first, second, p, kept[first], kept[second])
            for scheme in of_all:
                yield from _kinds(
                    label, members(scheme, groups)[0], scheme, p, kept[members(scheme, groups)[0]], kept[scheme]
                )
            for name in groups if halves else ():
                yield from _kinds(label, name, AGAIN, p, half[label].kept(name, p), rest[label].kept(name, p))
        for name in names:
            one, other = (ranked[label].kept(name, p) for label in LABELS)
            yield from _kinds(BOTH, name, name, p, one, other)


def _ranked(samples: Sequence[Table], groups: Mapping[str, str], weights: Callable[[Table], Any]) -> dict[str, Ranked]:
    """Units ranked for each label, queries weighted."""
    wide = {
        label: pd.DataFrame(
            {
                table.collection: pd.Series(table.mean(weights(table)), table.sites)
                for table in samples
                if table.label == label
            }
        )
        for label in LABELS
    }
    return {label: Ranked.of(values, groups) for label, values in wide.items()}


def _half(table: Table, which: int, seed: int | None) -> np.ndarray:
    """Which queries are in a half: every second one, or with a seed half of them at random."""
    n = len(table.counts)
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    return (order % 2 == which).astype(float) if n > 1 else np.ones(n)


def _kinds(
    label: str, first: str, second: str, p: float, one: Sequence[str], other: Sequence[str]
) -> Iterator[Compared]:
    for which in KINDS:
        own, theirs = ([site for site in sites if kind(site) == which] for sites in (one, other))
        if own:
            yield Compared(label, first, second, p, which, own, theirs)


def _share(one: Compared) -> float:
    return len(set(one.one) & set(one.other)) / len(one.one)


def _line(one: Compared, n: int, groups: Mapping[str, str]) -> dict[str, Any]:
    line = one._asdict() | {"layer": np.nan, "n_first": len(one.one), "n_second": len(one.other)}
    line |= agreement(one.one, one.other, n)
    if one.second.startswith("I_") and one.second not in groups:
        chance = overlap_of_all([len(one.one)] * len(members(one.second, groups)), len(one.other), n)
        line |= {"expected": chance.expected / len(one.one), "p": chance.p}
    line["p_chance"], line["p"] = line["p"], one.p
    return {name: value for name, value in line.items() if name not in ("one", "other")}


def _places(every: Sequence[Compared], samples: Sequence[Table]) -> Iterator[dict[str, Any]]:
    """Agreement layer by layer."""
    places = pd.Series([(int(site[1:].partition(".")[0]), kind(site)) for site in samples[0].sites]).value_counts()
    sizes = {place: int(n) for place, n in sorted(places.items())}
    for one in every:
        if one.p != PLACES or one.second.startswith("I_"):
            continue
        layers = by_place(one.one, one.other, {place: n for place, n in sizes.items() if place[1] == one.kind})
        layers = layers.rename(columns={"first": "n_first", "second": "n_second", "p": "p_chance"})
        for line in layers.to_dict("records"):
            yield line | {"label": one.label, "first": one.first, "second": one.second, "p": one.p}
