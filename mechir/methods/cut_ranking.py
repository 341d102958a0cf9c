"""Components cut together: what the ranking loses by any measure, beside random sets of the same layers, by group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechir import inference
from mechir.activations import Activations, BySegment
from mechir.interventions import Ablate, Mask
from mechir.methods.evaluation import ALL, INTACT, between, by_condition, grouped
from mechir.methods.pruning import sizes
from mechir.methods.schemes import random_like
from mechir.reranker import Reranker
from mechir.sites import Head, Neuron, as_sites

WAYS = ("zero", "mean", "resample")
"""The values that take the place of an activation."""
MASKED = "mask"
"""The way of masks alone, which put no value in the place of anything."""
CHOSEN = "chosen"
CHANGE = ("change", "change_low", "change_high", "change_p")
EXCESS = ("excess", "excess_low", "excess_high", "excess_p")
COLUMNS = ["measure", "group", "way", "queries", "intact", "value", *CHANGE, "change_p_corrected"]
COLUMNS += ["random", "random_least", "random_most", *EXCESS, "excess_p_corrected", "p_draws"]


def sets_of(
    model: Reranker, sites: Sequence[str], masks: Sequence[str], draws: int, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """The chosen set and its random sets: `set`, `sites`, `masks` (as text), and a sentence on what is not random.

    Heads and neurons, and the heads of masks, are drawn from the same layers, none of the set itself; whole MLPs,
    attention layers and masks of whole layers have no like and stay as they are.
    """
    units = [str(site) for site in as_sites(list(sites)) if isinstance(site, Head | Neuron)]
    rest = [site for site in sites if site not in units]
    cuts = [Mask.parse(mask) for mask in masks]
    notes = [f"{', '.join(rest)}: whole layers, the same in the random sets"] if rest else []
    notes += [f"{mask}: whole layers, the same in the random sets" for mask in cuts if mask.heads is None]
    drawn, more = random_like(units, sizes(model), draws, seed=seed)
    others = [_masks_like(model, mask, draws, seed + number) for number, mask in enumerate(cuts, 1)]
    notes += dict.fromkeys([*more, *(note for _, few in others for note in few)])
    rows = [(CHOSEN, ",".join(sites), ";".join(map(str, cuts)))]
    if units or any(mask.heads for mask in cuts):
        for number, some in enumerate(drawn):
            moved = ";".join(str(made[number]) for made, _ in others)
            rows.append((f"random {number}", ",".join([*some, *rest]), moved))
    return pd.DataFrame(rows, columns=["set", "sites", "masks"]), notes


def _masks_like(model: Reranker, mask: Mask, draws: int, seed: int) -> tuple[list[Mask], list[str]]:
    """The mask in as many other heads of the same layers, so often; the mask itself where it is of whole layers."""
    if mask.heads is None:
        return [mask] * draws, []
    drawn, notes = random_like(list(map(str, mask.heads)), sizes(model), draws, seed=seed)
    return [Mask(mask.direction, heads=heads, renormalise=mask.renormalise) for heads in drawn], notes


def ways_of(sites: Sequence[str], ways: Sequence[str]) -> tuple[str, ...]:
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
        values = by_condition(rows, judged, measure, ["name"])
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
        line["p_draws"] = float((1 + np.sum(means <= line["change"] + 1e-12)) / (1 + len(means)))
    return line
