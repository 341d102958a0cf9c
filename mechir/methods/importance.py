"""The importance of every unit: conductance averaged over pairs, per label and collection, with intervals over queries.

Source: Vast et al. 2024 (arXiv:2406.19309).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mechir.collections import Collections
from mechir.errors import MechirError
from mechir.methods.conductance import conductance
from mechir.methods.schemes import LABELS
from mechir.pairs import Pair

RELEVANT, OTHER = LABELS
KIND = {"post": "neuron", "pre": "neuron", "pattern": "head", "z": "head"}


def thresholds(collection: Any, text: str = "") -> dict[str, int]:
    """The lowest grade that counts as relevant, by collection.

    Args:
        collection: one, or several.
        text: one grade for all ("2") or one each ("dl19:2,vaswani:1"); where it is empty, half of the highest grade of
            the collection's judgments, rounded up.

    Raises:
        MechirError: for what cannot be read, an unknown collection, a collection without a relevant document.
    """
    members = collection.members if isinstance(collection, Collections) else (("", collection),)
    told = {one.rpartition(":")[0]: one.rpartition(":")[2] for one in text.split(",") if one}
    unknown = sorted(set(told) - {one.id for _, one in members} - {""})
    if unknown or not all(grade.isdigit() and int(grade) > 0 for grade in told.values()):
        raise MechirError(f"Cannot read --relevant '{text}': write a grade above 0, or NAME:GRADE with commas.")
    found = {}
    for _, one in members:
        highest = max((grade for grades in one.qrels.values() for grade in grades.values()), default=0)
        lowest = int(told.get(one.id, told.get("", math.ceil(highest / 2))))
        if not 0 < lowest <= highest:
            raise MechirError(f"'{one.id}' has no relevant document: its highest grade is {highest}, not {lowest}.")
        found[one.id] = lowest
    return found


def told(lowest: Mapping[str, int]) -> str:
    """The thresholds as an option: "dl19:2,vaswani:1"."""
    return ",".join(f"{name}:{grade}" for name, grade in lowest.items())


def labelled(pairs: Sequence[Pair], lowest: Mapping[str, int], take: int = 0) -> list[Pair]:
    """The pairs with grade 1 for relevant and 0 for the others; of each query and label the first `take`, or all."""
    seen = Counter[tuple[str, int]]()
    kept = []
    for pair in pairs:
        label = int((pair.grade or 0) >= lowest[collection_of(pair.query_id, lowest)])
        seen[pair.query_id, label] += 1
        if not take or seen[pair.query_id, label] <= take:
            kept.append(replace(pair, grade=label))
    return kept


def collection_of(query_id: str, known: Collection[str]) -> str:
    """Which of these collections a query is from; ids begin with its name where there are several."""
    return next(iter(known)) if len(known) == 1 else next(one for one in known if query_id.startswith(f"{one}/"))


def unit_rows(model: Any, pairs: Sequence[Pair], lowest: Mapping[str, int], **options: Any) -> pd.DataFrame:
    """What an experiment on units stores of some whole queries, their pairs `labelled`.

    Returns:
        Rows of two kinds. "unit": `collection`, `query_id`, `label`, `n` pairs, `layer`, `unit`, `conductance`, the
        list over the layer's units of the mean over these pairs (with `split` flat: all parts of the first unit, ...).
        "pair": `collection`, `query_id`, `label`, `doc_id`, `score`, `delta`, `error`, `steps`, `converged`.
    """
    found = conductance(model, pairs, **options)
    units = found.rows.assign(kind="unit", conductance=[x.ravel() for x in found.rows["conductance"]])
    both = pd.concat([units, found.checks.assign(kind="pair")], ignore_index=True)
    both["label"] = np.where(both["grade"].astype(int) == 1, RELEVANT, OTHER)
    both["collection"] = [collection_of(query_id, lowest) for query_id in both["query_id"]]
    first = ["kind", "collection", "query_id", "label"]
    return both[[*first, *(name for name in both.columns if name not in (*first, "grade"))]]


def importance(rows: pd.DataFrame, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The mean conductance of every unit over the pairs of each collection and label.

    Returns:
        One row per collection, label and unit: `site`, `kind` ("neuron", "head"), `layer`; `rank` among its kind, 1 the
        largest; `conductance` (units of F, signed) with `low` and `high`, its 95 % interval (percentiles, whole queries
        resampled); `pairs` and `queries`.
    """
    units = rows[rows["kind"] == "unit"]
    found = []
    for (collection, label), part in units.groupby(["collection", "label"], sort=False):
        queries = part["query_id"].unique()
        drawn = np.random.default_rng(seed).multinomial(len(queries), np.full(len(queries), 1 / len(queries)), draws)
        for (layer, unit), here in part.groupby(["layer", "unit"], sort=False):
            values = np.stack(here["conductance"].to_list()).astype(float)
            counts = here["n"].to_numpy(dtype=float)
            mean = counts @ values / counts.sum()
            resampled = drawn * counts
            spread = resampled @ values / resampled.sum(1, keepdims=True)
            low, high = np.quantile(spread, [0.025, 0.975], axis=0) if len(queries) > 1 else (mean * np.nan,) * 2
            letter = KIND[str(unit)][0]
            found.append(
                pd.DataFrame({"conductance": mean, "low": low, "high": high}).assign(
                    collection=collection,
                    label=label,
                    site=[f"{letter}{int(layer)}.{k}" for k in range(len(mean))],
                    kind=KIND[str(unit)],
                    layer=int(layer),
                    pairs=int(counts.sum()),
                    queries=len(queries),
                )
            )
    frame = pd.concat(found, ignore_index=True)
    groups = frame.groupby(["collection", "label", "kind"], sort=False)["conductance"]
    frame["rank"] = groups.rank(ascending=False, method="first").astype(int)
    first = ["collection", "label", "site", "kind", "layer", "rank"]
    return frame[[*first, *(name for name in frame.columns if name not in first)]]


def unconverged(rows: pd.DataFrame) -> pd.DataFrame:
    """The pairs whose conductances do not add up to F(text) - F(baseline) within the tolerance."""
    pairs = rows[rows["kind"] == "pair"]
    return pairs[~pairs["converged"].astype(bool)]
