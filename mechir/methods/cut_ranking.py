"""Components cut together: what the ranking loses by any measure, beside random sets of the same layers, by group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mechir import inference
from mechir.activations import Activations, BySegment
from mechir.interventions import Ablate, Mask
from mechir.methods.evaluation import ALL, INTACT, between, by_condition, grouped
from mechir.methods.pruning import sizes
from mechir.reranker import Reranker
from mechir.sites import Head, Neuron, as_sites

WAYS = ("zero", "mean", "resample")
"""The values that take the place of an activation."""
MASKED = "mask"
"""The way of masks alone, which put no value in the place of anything."""
CHOSEN = "chosen"
TRIES = 50
"""Draws for each random set that is wanted, before it is said that there are no more."""
CHANGE = ("change", "change_low", "change_high", "change_p")
EXCESS = ("excess", "excess_low", "excess_high", "excess_p")
COLUMNS = ["measure", "group", "way", "queries", "intact", "value", *CHANGE, "change_p_corrected"]
COLUMNS += ["random", "random_least", "random_most", *EXCESS, "excess_p_corrected", "p_draws"]


def sets_of(
    model: Reranker, sites: Sequence[Any], masks: Sequence[str], draws: int, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """The chosen set and its random sets: `set`, `sites`, `masks` (as text), and sentences on what is not random.

    Each random set puts other units of the same layers in the place of the chosen ones, one for one, in sites and masks
    alike: none of the chosen, where a layer has enough others, else any of the layer. Sets differ from each other and
    from the chosen one; there are fewer than `draws` where no more exist. Whole MLPs, attention layers and masks of
    whole layers have no like and stay as they are, and so does a layer of which all units are chosen.
    """
    parsed, cuts = as_sites(list(sites)), [Mask.parse(mask) for mask in masks]
    units: list[Any] = [site for site in parsed if isinstance(site, Head | Neuron)]
    whole = [str(site) for site in parsed if site not in units] + [str(mask) for mask in cuts if mask.heads is None]
    pools, more = _pools([*units, *(head for mask in cuts for head in mask.heads or ())], sizes(model))
    notes = [*(f"{name}: whole layers, the same in the random sets" for name in whole), *more]
    named, generator = _texts(parsed, cuts, {}), np.random.default_rng(seed)
    rows = [(CHOSEN, *named)]
    for _ in range(TRIES * draws if pools else 0):
        moved: dict[Any, Any] = {}
        for places, pool in pools:
            drawn = generator.choice(len(pool), len(places), replace=False)
            moved |= dict(zip(places, (pool[int(place)] for place in drawn), strict=True))
        text = _texts(parsed, cuts, moved)
        if all(text != row[1:] for row in rows):
            rows.append((f"random {len(rows) - 1}", *text))
        if len(rows) > draws:
            break
    if pools and len(rows) <= draws:
        notes.append(f"there are {len(rows) - 1} other sets of these layers, not {draws}")
    return pd.DataFrame(rows, columns=["set", "sites", "masks"]), notes


def _pools(
    units: Sequence[Any], counts: Mapping[tuple[int, str], int]
) -> tuple[list[tuple[list[Any], list[Any]]], list[str]]:
    """The chosen units of each layer and kind with those that may take their place, and sentences on the exceptions."""
    by_place: dict[tuple[int, str], list[Any]] = {}
    for unit in dict.fromkeys(units):
        by_place.setdefault((unit.layer, "head" if isinstance(unit, Head) else "neuron"), []).append(unit)
    pools, notes = [], []
    for (layer, kind), here in by_place.items():
        every: list[Any] = [(Head if kind == "head" else Neuron)(layer, n) for n in range(counts[layer, kind])]
        others = [unit for unit in every if unit not in here]
        if not others:
            notes.append(f"all {len(here)} {kind}s of layer {layer} are chosen, the same in the random sets")
            continue
        if len(others) < len(here):
            notes.append(f"layer {layer} has {len(every)} {kind}s, too few to draw {len(here)} beside the chosen ones")
        pools.append((here, others if len(others) >= len(here) else every))
    return pools, notes


def _texts(sites: Sequence[Any], masks: Sequence[Mask], moved: Mapping[Any, Any]) -> tuple[str, str]:
    """Sites and masks as text, with units in the place of others."""
    cuts = [
        mask if mask.heads is None else replace(mask, heads=tuple(moved.get(head, head) for head in mask.heads))
        for mask in masks
    ]
    units = sorted(str(moved.get(site, site)) for site in sites)
    return ",".join(units), ";".join(sorted(map(str, cuts)))


def ways_of(sites: Sequence[Any], ways: Sequence[str]) -> tuple[str, ...]:
    """The ways of a cut: those given, or `MASKED` where no activation is replaced."""
    return tuple(ways) if sites else (MASKED,)


def interventions(sets: pd.DataFrame, ways: Sequence[str], filling: Mapping[str, Activations]) -> dict[str, Any]:
    """Every set under every way, by the name "set|way"; the intact model is "original"."""
    do: dict[str, Any] = {INTACT: ()}
    for row, way in itertools.product(sets.itertuples(index=False), ways):
        cuts: list[Any] = [Ablate(row.sites.split(","), filling.get(way))] if row.sites else []
        do[f"{row.set}|{way}"] = cuts + [Mask.parse(mask) for mask in row.masks.split(";") if mask]
    return do


def filled(stored: pd.DataFrame) -> dict[str, Activations]:
    """The activations of each way, from a frame with a column `way` beside those of `BySegment.frame`."""
    return {str(way): BySegment.of_frame(part) for way, part in stored.groupby("way", sort=False)}


def cut_table(
    rows: pd.DataFrame, judged: pd.DataFrame, measures: Sequence[Any], groups: Mapping[str, str], ways: Sequence[str]
) -> pd.DataFrame:
    """What cutting the chosen set does to the ranking, beside its random sets, over queries.

    `rows` are scores under `interventions`.

    Returns:
        A row per measure, group of queries ("all", each group, "a - b") and way: `queries`; `intact`, the value of the
        intact model, `value`, that without the set; `change` = value - intact with `change_low`, `change_high` and
        `change_p`; `random`, the mean change of the random sets, `random_least` and `random_most`, their extremes;
        `excess` = change - random with `excess_low`, `excess_high`, `excess_p`; `p_draws` = (1 + random sets that
        change it as far down) / (1 + sets). Rows "a - b" hold the differences of two groups, tested as of different
        queries. `change_p_corrected` and `excess_p_corrected`: Holm over all rows.

    It misleads where other components make up for those cut: what is cut and missed matters, what is not missed may.
    """
    lines: list[dict[str, Any]] = []
    for measure in measures:
        values = by_condition(rows, judged, measure)
        lines += [{"measure": str(measure)} | line for line in _lines(values, groups, ways)]
    table = pd.DataFrame(lines)
    for name in ("change_p", "excess_p"):
        if name in table:
            table[f"{name}_corrected"] = inference.holm(table[name].to_numpy(dtype=float))
    return table.reindex(columns=[name for name in COLUMNS if name in table])


def _lines(values: pd.DataFrame, groups: Mapping[str, str], ways: Sequence[str]) -> Iterator[dict[str, Any]]:
    parts = grouped(values, groups)
    for name, part in [(ALL, values), *parts]:
        for way in ways:
            yield {"group": name, "way": way} | _line(part, way)
    for (one, first), (other, second) in itertools.combinations(parts, 2):
        for way in ways:
            both = [_changes(part, way) for part in (first, second)]
            line: dict[str, Any] = {"group": f"{one} - {other}", "way": way, "queries": len(first) + len(second)}
            line |= between(both[0]["change"], both[1]["change"], CHANGE)
            if "excess" in both[0]:
                line |= between(both[0]["excess"], both[1]["excess"], EXCESS)
            yield line


def _changes(values: pd.DataFrame, way: str) -> pd.DataFrame:
    """The change of each query without the set, and beyond the mean of its random sets."""
    change = (values[f"{CHOSEN}|{way}"] - values[INTACT]).to_frame("change")
    random = [name for name in values if name.startswith("random ") and name.endswith(f"|{way}")]
    if random:
        change["excess"] = change["change"] - values[random].sub(values[INTACT], axis=0).mean(axis=1)
    return change


def _line(values: pd.DataFrame, way: str) -> dict[str, Any]:
    """The row of one way over these queries."""
    changes = _changes(values, way)
    tested = inference.means(changes.to_numpy())
    intact = float(values[INTACT].mean())
    line: dict[str, Any] = {"queries": len(values), "intact": intact, "value": intact + float(tested.estimate[0])}
    for place, names in enumerate((CHANGE, EXCESS)):
        if place < changes.shape[1]:
            numbers = (tested.estimate, tested.low, tested.high, tested.p)
            line |= {name: float(number[place]) for name, number in zip(names, numbers, strict=True)}
    random = [name for name in values if name.startswith("random ") and name.endswith(f"|{way}")]
    if random:
        means = values[random].sub(values[INTACT], axis=0).mean().to_numpy()
        line |= {"random": means.mean(), "random_least": means.min(), "random_most": means.max()}
        as_far = float((1 + np.sum(means <= line["change"] + 1e-12)) / (1 + len(means)))
        line["p_draws"] = as_far if np.isfinite(line["change"]) else np.nan
    return line
