"""Schemes: which units are kept as the most important, of one collection or of several together.

Source: Vast et al. 2024 (arXiv:2406.19309): top units per collection (N_x), intersections (I) and fusions (F) of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError, closest
from mechir.methods.statistics import overlap
from mechir.sites import Head, Neuron, parse_site

KINDS = ("neuron", "head")
LABELS = ("relevant", "non-relevant")
ALL = "all"


def kind(site: str) -> str:
    """The kind of a unit, "neuron" or "head"."""
    return "head" if site.startswith("h") else "neuron"  # parsing takes ten times as long, and transfer asks often


def top(values: pd.Series, p: float, *, joint: bool = False, bottom: bool = False) -> list[str]:
    """The share p of units with the largest values, or with `bottom` the smallest (most negative).

    `values` are by site, signed. p is the share of the neurons and of the heads, each ranked among themselves:
    round(p n) of n, so none of few units; `joint` ranks both together, as the authors' later code does.

    Returns:
        Sites, the most extreme first; equal values in the order given.

    Raises:
        MechirError: for a p outside 0 to 1, or one that keeps no unit at all.
    """
    return _first(_orders(values, joint, bottom), p)


def _orders(values: pd.Series, joint: bool, bottom: bool) -> list[np.ndarray]:
    """The sites of each ranking, the most extreme first."""
    ranked = values.sort_values(ascending=bottom, kind="stable").index.to_numpy()
    if joint:
        return [ranked]
    kinds = np.array([kind(site) for site in ranked])
    return [ranked[kinds == name] for name in KINDS]


def _first(orders: Sequence[np.ndarray], p: float) -> list[str]:
    refuse_share(p)
    sites = [str(site) for order in orders for site in order[: int(p * len(order) + 0.5)]]
    if not sites:
        n = sum(len(order) for order in orders)
        raise MechirError(f"p={p} of {n} units is less than half of one: take a larger share.")
    return sites


def schemes(groups: Mapping[str, str]) -> list[str]:
    """The schemes that these collections allow, by name.

    The name of each collection. For several also `I_<group>` and `F_<group>`, intersection and fusion, of each group
    and of `all`; and `out-in`: the units that only the fusion of `out` keeps, where there are both groups.
    """
    if len(groups) == 1:
        return list(groups)
    names = list(dict.fromkeys(groups.values()))
    names += [ALL] if len(names) > 1 else []
    combined = [f"{how}_{name}" for how in "IF" for name in names]
    return [*groups, *combined, *(["out-in"] if {"in", "out"} <= set(names) else [])]


def refuse_unknown(names: Sequence[str], groups: Mapping[str, str]) -> None:
    """Raises for names that are no schemes of these collections."""
    known = schemes(groups)
    for name in names:
        if name not in known:
            raise MechirError(f"Unknown scheme '{name}': the closest are {closest(name, known)}.")


def refuse_share(p: float) -> None:
    """Raises for a share of units outside 0 to 1."""
    if not 0 < p <= 1:
        raise MechirError(f"p={p} is no share of units: write a number above 0 and up to 1, e.g. 0.01.")


@dataclass(frozen=True)
class Ranked:
    """Units ranked in every collection and in the means of every group, to keep the share p of a scheme."""

    groups: Mapping[str, str]
    orders: Mapping[str, list[np.ndarray]]

    @classmethod
    def of(
        cls, values: pd.DataFrame, groups: Mapping[str, str], *, joint: bool = False, bottom: bool = False
    ) -> Ranked:
        """Ranks units by `values`, [site, collection], signed; `groups` is collection -> group; else as `top`."""
        ranked = {name: values[name] for name in groups}
        for scheme in schemes(groups):
            if scheme.startswith("F_") and scheme not in groups:
                ranked[scheme] = values[members(scheme, groups)].mean(axis=1)
        return cls(groups, {name: _orders(series, joint, bottom) for name, series in ranked.items()})

    def units(self, scheme: str, p: float) -> list[str]:
        """The units that a scheme keeps.

        Raises:
            MechirError: for an unknown scheme, and as `top`.
        """
        refuse_unknown([scheme], self.groups)
        if scheme in self.orders:
            return _first(self.orders[scheme], p)
        if scheme == "out-in":
            taken = set(self.units("F_in", p))
            return [site for site in self.units("F_out", p) if site not in taken]
        first, *rest = (_first(self.orders[name], p) for name in members(scheme, self.groups))
        common = set(first).intersection(*rest)
        return [site for site in first if site in common]


def members(scheme: str, groups: Mapping[str, str]) -> list[str]:
    """The collections of an intersection or fusion."""
    name = scheme[2:]
    return [collection for collection, group in groups.items() if name in (group, ALL)]


def agreement(first: Sequence[str], second: Sequence[str], n: int) -> dict[str, Any]:
    """Compares two choices out of n units.

    Returns:
        `shared`, units in both; `share`, of the first (the papers' intersection); `jaccard`, over the union;
        `expected`, the share two random choices would have; `p`, the chance of as many shared or more (hypergeometric).
    """
    both = overlap(first, second, n)
    size, union = len(set(first)) or math.nan, len({*first, *second}) or math.nan
    shares = {"share": both.shared / size, "jaccard": both.shared / union, "expected": both.expected / size}
    return {"shared": both.shared, **shares, "p": both.p}


def by_place(first: Sequence[str], second: Sequence[str], sizes: Mapping[tuple[int, str], int]) -> pd.DataFrame:
    """The `agreement` of two choices layer by layer: `layer`, `kind`, `first` and `second` (their sizes), its columns.

    `sizes` is the number of units by (layer, kind).
    """
    rows = []
    for place, n in sizes.items():
        here, there = ([site for site in chosen if _place(site) == place] for chosen in (first, second))
        line = {"layer": place[0], "kind": place[1], "first": len(here), "second": len(there)}
        rows.append(line | agreement(here, there, n))
    return pd.DataFrame(rows)


def _place(site: str) -> tuple[int, str]:
    parsed = parse_site(site)
    assert isinstance(parsed, Head | Neuron)
    return parsed.layer, kind(site)


def random_like(
    chosen: Sequence[str], sizes: Mapping[tuple[int, str], int], draws: int, *, seed: int = 0
) -> tuple[list[list[str]], list[str]]:
    """Draws random sets with as many units of every layer and kind as the chosen ones, and none of them.

    Returns:
        The sets, and a sentence for every layer that has too few other units: there the draw is from all of them.
    """
    taken: dict[tuple[int, str], set[int]] = {}
    for site in chosen:
        taken.setdefault(_place(site), set()).add(int(parse_site(site)[1]))
    pools, notes = {}, []
    for (layer, name), units in taken.items():
        n = sizes[layer, name]
        pools[layer, name] = rest = [unit for unit in range(n) if unit not in units]
        if len(rest) < len(units):
            notes.append(f"layer {layer} has {n} {name}s, too few to draw {len(units)} beside the chosen ones")
            pools[layer, name] = list(range(n))
    generator, sets = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn = []
        for (layer, name), pool in pools.items():
            picked = np.sort(generator.choice(pool, len(taken[layer, name]), replace=False))
            drawn += [str((Head if name == "head" else Neuron)(layer, int(unit))) for unit in picked]
        sets.append(drawn)
    return sets, notes
