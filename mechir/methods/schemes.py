"""Schemes: which units are kept as the most important, of one collection or of several together.

Source: Vast et al. 2024 (arXiv:2406.19309): top units per collection (N_x), intersections (I) and fusions (F) of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Whether a unit is a neuron or a head."""
    return "head" if site.startswith("h") else "neuron"


def top(values: pd.Series, p: float, *, joint: bool = False, bottom: bool = False) -> list[str]:
    """The share p of units with the largest values, or with `bottom` the smallest (most negative).

    Args:
        values: by site, signed.
        p: of the neurons and of the heads, each ranked among themselves: round(p n) of n, so none of few units.
        joint: rank neurons and heads together, as the authors' later code does.
        bottom: the other end.

    Returns:
        Sites, the most extreme first; equal values in the order given.

    Raises:
        MechirError: for a p outside 0 to 1, or one that keeps no unit at all.
    """
    if not 0 < p <= 1:
        raise MechirError(f"p={p} is no share of units: write a number above 0 and up to 1, e.g. 0.01.")
    ranked = values.sort_values(ascending=bottom, kind="stable")
    if joint:
        found = ranked.index[: _count(p, len(ranked))].tolist()
    else:
        kinds = np.array([kind(site) for site in ranked.index])
        found = [site for one in KINDS for site in ranked.index[kinds == one][: _count(p, int((kinds == one).sum()))]]
    if not found:
        raise MechirError(f"p={p} of {len(values)} units is less than half of one: take a larger share.")
    return [str(site) for site in found]


def _count(p: float, n: int) -> int:
    return int(p * n + 0.5)


def schemes(groups: Mapping[str, str]) -> list[str]:
    """The schemes that these collections allow, by name.

    A collection's own name; `I_<group>` and `F_<group>`, intersection and fusion, of each group and of `all`; and
    `out-in`: what only the fusion of `out` keeps, where there are both groups.
    """
    names = [*dict.fromkeys(groups.values()), *([ALL] if len(set(groups.values())) > 1 else [])]
    return [
        *groups,
        *(f"{how}_{name}" for how in "IF" for name in names),
        *(["out-in"] if {"in", "out"} <= set(groups.values()) else []),
    ]


def kept(importance: pd.DataFrame, scheme: str, p: float, groups: Mapping[str, str], **options: Any) -> list[str]:
    """The units that a scheme keeps.

    Args:
        importance: `collection`, `site`, `conductance`, of one label.
        scheme: one of `schemes`.
        p: the share of each ranking.
        groups: collection -> group.
        options: of `top`.

    Raises:
        MechirError: for an unknown scheme, and as `top`.
    """
    known = schemes(groups)
    if scheme not in known:
        raise MechirError(f"Unknown scheme '{scheme}'. The closest are {closest(scheme, known)}.")
    wide = importance.pivot(index="site", columns="collection", values="conductance").reindex(
        importance["site"].unique()
    )
    if scheme in groups:
        return top(wide[scheme], p, **options)
    if scheme == "out-in":
        taken = set(kept(importance, "F_in", p, groups, **options))
        return [site for site in kept(importance, "F_out", p, groups, **options) if site not in taken]
    how, _, name = scheme.partition("_")
    members = [one for one, group in groups.items() if name in (group, ALL)]
    if how == "F":
        return top(wide[members].mean(axis=1), p, **options)
    first, *rest = (top(wide[one], p, **options) for one in members)
    return [site for site in first if all(site in other for other in rest)]


def agreement(first: Sequence[str], second: Sequence[str], n: int) -> dict[str, float]:
    """How two choices out of n units agree.

    Returns:
        `shared`, units in both; `share`, of the first (the papers' intersection); `jaccard`, over the union;
        `expected`, the share two random choices would have; `p`, the chance of as many shared or more (hypergeometric).
    """
    both = overlap(first, second, n)
    union = len(set(first) | set(second))
    size = len(set(first))
    return {
        "shared": float(both.shared),
        "share": both.shared / size if size else float("nan"),
        "jaccard": both.shared / union if union else float("nan"),
        "expected": both.expected / size if size else float("nan"),
        "p": both.p,
    }


def by_place(first: Sequence[str], second: Sequence[str], sizes: Mapping[tuple[int, str], int]) -> pd.DataFrame:
    """`agreement` layer by layer: `layer`, `kind`, `first`, `second` (how many of each), and its columns.

    `sizes`: (layer, kind) -> how many units there are.
    """
    rows = []
    for (layer, one), n in sizes.items():
        here = [[site for site in chosen if _place(site) == (layer, one)] for chosen in (first, second)]
        rows.append({"layer": layer, "kind": one, "first": len(here[0]), "second": len(here[1])})
        rows[-1] |= agreement(here[0], here[1], n)
    return pd.DataFrame(rows)


def _place(site: str) -> tuple[int, str]:
    parsed = parse_site(site)
    assert isinstance(parsed, Head | Neuron)
    return parsed.layer, kind(site)


def random_like(
    chosen: Sequence[str], sizes: Mapping[tuple[int, str], int], draws: int, *, seed: int = 0
) -> tuple[list[list[str]], list[str]]:
    """Random sets with as many units of every layer and kind as the chosen ones, and none of them.

    Returns:
        The sets, and a sentence for every layer that has too few other units: there the draw is from all of them.
    """
    generator, places = np.random.default_rng(seed), [_place(site) for site in chosen]
    taken: dict[tuple[int, str], set[int]] = {}
    for site, place in zip(chosen, places, strict=True):
        taken.setdefault(place, set()).add(int(parse_site(site)[1]))
    pools, notes = {}, []
    for (layer, one), own in taken.items():
        n = sizes[layer, one]
        rest = [unit for unit in range(n) if unit not in own]
        if len(rest) < len(own):
            notes.append(f"layer {layer} has {n} {one}s, too few to draw {len(own)} beside the chosen ones")
            rest = list(range(n))
        pools[layer, one] = rest
    sets = []
    for _ in range(draws):
        drawn = []
        for (layer, one), rest in pools.items():
            picked = np.sort(generator.choice(rest, len(taken[layer, one]), replace=False))
            drawn += [str((Head if one == "head" else Neuron)(layer, int(unit))) for unit in picked]
        sets.append(drawn)
    return sets, notes
