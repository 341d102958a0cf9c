"""What two models share of the findings on their heads, in the same order of measures and of heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from mechir.methods.alignment import Alignment, align, distances
from mechir.registry.names import model_name

from .overlap import LEAST

KNOWN = ["model", "fingerprint", "measure", "causal", "site", "value", "low", "high", "unit", "holds", "n", "pairs"]
"""Columns of findings on heads; `pairs` is the hash of what they were measured on, empty where it is not known."""
LOOKS, ACTS, NUMBER = "looks", "acts", "number"
"""What heads are aligned by: what only observes them, what changes them, or their numbers."""
CONFIDENT = float(stats.norm.ppf(0.975))


class Sides(NamedTuple):
    """The values of heads of this model and of another, by measures that both have.

    `one` and `other`: a row per head, a column per measure. `here` and `there`: `KNOWN`, by measure and site.
    """

    name: str
    fingerprint: str
    one: pd.DataFrame
    other: pd.DataFrame
    causal: Mapping[str, bool]
    here: pd.DataFrame
    there: pd.DataFrame

    @property
    def names(self) -> dict[str, Any]:
        """The other model, as columns."""
        return {"other": self.name, "other_fingerprint": self.fingerprint}

    def called(self, names: Iterable[str]) -> bool:
        """Whether one of these is the other model's name, as it is shown, or the beginning of its fingerprint."""
        return any(name == self.name or (len(name) >= 6 and self.fingerprint.startswith(name)) for name in names)

    def of(self, by: str) -> list[str]:
        """The measures of how heads look, or of how they act."""
        return [name for name in self.one if self.causal[str(name)] == (by == ACTS)]

    def values(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """The values of a measure in both."""
        return self.one[measure].to_numpy(), self.other[measure].to_numpy()

    def holds(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """Of which heads of both a finding by this measure holds."""
        here, there = (known.loc[measure, "holds"] for known in (self.here, self.there))
        return here[self.one.index].to_numpy(dtype=bool), there[self.other.index].to_numpy(dtype=bool)

    def alignments(self, same: bool) -> Iterator[tuple[str, Alignment, list[str], np.ndarray | None]]:
        """By what heads are aligned, how, the measures that are tested, and the distances of all heads."""
        for by, tested in ((LOOKS, ACTS), (ACTS, LOOKS)):
            distance = distances(*(side[self.of(by)].to_numpy() for side in (self.one, self.other)))
            yield by, align(distance), self.of(tested), distance
        if same:
            places = np.arange(len(self.one))
            yield NUMBER, (places, places), list(self.one), None


def sides_of(heads: pd.DataFrame) -> Iterator[Sides]:
    """This model, whose rows come first, beside every other that has measures of both kinds of the heads of both."""
    names = heads.drop_duplicates("fingerprint").set_index("fingerprint")["model"].map(model_name)
    names = names.where(~names.duplicated(keep=False), names + " " + names.index.str[:6])
    wide = {key: _profiles(heads[heads["fingerprint"] == key]) for key in names.index}
    causal = heads.groupby("measure")["causal"].any()
    known = {key: part.set_index(["measure", "site"]) for key, part in heads.groupby("fingerprint")}
    own, *others = names.index
    for key in others:
        both = [name for name in wide[own] if name in wide[key]]
        if min(len(wide[own]), len(wide[key])) >= LEAST and causal[both].nunique() == 2:
            sides = (wide[own][both], wide[key][both])
            yield Sides(names[key], key, *sides, causal[both].to_dict(), known[own], known[key])


def _profiles(heads: pd.DataFrame) -> pd.DataFrame:
    """The values of heads by measure, of measures that know all heads and do not give all the same, by layer."""
    wide = heads.pivot(index="site", columns="measure", values="value")
    wide = wide.loc[:, wide.notna().all() & (wide.nunique() > 1)]
    return wide.loc[sorted(wide.index, key=lambda site: [int(part) for part in site[1:].split(".")])]


def layers_of(sites: Iterable[str]) -> np.ndarray:
    """The layers of heads."""
    return np.array([int(site[1:].split(".")[0]) for site in sites])


def head_lines(
    side: Sides, aligned: Alignment, measures: Sequence[str], distance: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Rows of kind "head"."""
    sites, others = side.one.index, side.other.index
    depth, depths = (layers_of(names) / (layers_of(names).max() + 1) for names in (sites, others))
    with_other, nearest = dict(zip(*aligned, strict=True)), distance.argmin(axis=1)
    for measure in measures:
        here, there = (known.loc[measure] for known in (side.here, side.there))
        for place, site in enumerate(sites):
            near, own = int(nearest[place]), here.loc[site]
            line = side.names | {"measure": measure, "site": site, "depth": depth[place], "holds": bool(own["holds"])}
            line |= {"estimate": own["value"], "low": own["low"], "high": own["high"]}
            line |= {"nearest": others[near], "nearest_distance": distance[place, near], "nearest_depth": depths[near]}
            line |= {"nearest_holds": bool(there.loc[others[near], "holds"])}
            if place in with_other:
                match = with_other[place]
                its = there.loc[others[match]]
                line |= {"aligned": others[match], "distance": distance[place, match], "aligned_depth": depths[match]}
                line |= {"aligned_value": its["value"], "aligned_value_low": its["low"]}
                line |= {"aligned_value_high": its["high"], "aligned_holds": bool(its["holds"])}
            yield line


def changes(side: Sides) -> Iterator[dict[str, Any]]:
    """Rows of kind "change"."""
    for measure in side.one:
        for site in side.one.index:
            here, there = (known.loc[(measure, site)] for known in (side.here, side.there))
            same = here["pairs"] == there["pairs"] != "" and here["n"] == there["n"]
            line = side.names | {"measure": measure, "site": site, "n": int(here["n"])}
            line |= {"value": here["value"], "other_value": there["value"], "unit": here["unit"]}
            line |= {"holds": bool(here["holds"]), "other_holds": bool(there["holds"])}
            if here["unit"] != there["unit"]:
                yield line | {"on": f"other units ({there['unit']})"}
            elif not same:
                yield line | {"on": "other queries"}
            else:
                yield line | {"on": "the same queries"} | _difference(here, there)


def _difference(here: pd.Series, there: pd.Series) -> dict[str, float]:
    """The value here less that there, as if both errors added up; p by the normal, of the side towards 0."""
    below = (here["value"] - here["low"]) + (there["high"] - there["value"])
    above = (here["high"] - here["value"]) + (there["value"] - there["low"])
    change = here["value"] - there["value"]
    line = {"estimate": change, "low": change - below, "high": change + above}
    side = below if change > 0 else above
    return line | {"p": float(2 * stats.norm.sf(CONFIDENT * abs(change) / side)) if side > 0 else float("nan")}
