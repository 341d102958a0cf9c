"""The importance of every unit: conductance averaged over pairs, per label and collection, with intervals over queries.

Source: Vast et al. 2024 (arXiv:2406.19309).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechir.collection_groups import Collections, collection_of
from mechir.errors import MechirError, refuse_below
from mechir.methods.conductance import KIND, conductance, parts
from mechir.methods.groups import columns_first, pair_ids
from mechir.methods.schemes import LABELS, kind
from mechir.pair import Pair, first_of_each
from mechir.reranker import Reranker, needs

RELEVANT, OTHER = LABELS
DRAWS = 1000
COLUMNS = 4096
"""Units whose resampled means are in memory together."""


def thresholds(collections: Collections, text: str = "") -> dict[str, int]:
    """The lowest grade that counts as relevant, by collection.

    `text` has one grade for all ("2") or one each ("dl19:2,vaswani:1"); where it is empty, it is half of the highest
    grade of the collection's judgments, rounded up.

    Raises:
        MechirError: for what cannot be read, an unknown collection, a collection without a relevant document.
    """
    members = [collection for _, collection in collections.members]
    listed = [part.strip().rpartition(":") for part in text.split(",") if part.strip()]
    grades = {name: grade for name, _, grade in listed}
    unknown = set(grades) - {collection.id for collection in members} - {""}
    readable = all(re.fullmatch("0*[1-9][0-9]*", grade) for grade in grades.values())
    if unknown or not readable or len(grades) < len(listed):
        names = ", ".join(collection.id for collection in members)
        raise MechirError(
            f"Cannot read relevant='{text}': write a grade above 0, or NAME:GRADE with commas, where NAME is {names}."
        )
    lowest = {}
    for collection in members:
        highest = max((grade for judged in collection.judgments.values() for grade in judged.values()), default=0)
        name, half = collection.id, math.ceil(highest / 2)
        lowest[name] = int(grades.get(name, grades.get("", half)))
        if not 0 < lowest[name] <= highest:
            raise MechirError(f"'{name}' has no relevant document: its highest grade is {highest}, not {lowest[name]}.")
    return lowest


def format_thresholds(lowest: Mapping[str, int]) -> str:
    """Formats thresholds as an option: "dl19:2,vaswani:1"."""
    return ",".join(f"{name}:{grade}" for name, grade in lowest.items())


def read_thresholds(text: str) -> dict[str, int]:
    """Parses the output of `format_thresholds`."""
    return {name: int(grade) for name, grade in (part.rsplit(":", 1) for part in text.split(","))}


def labelled(pairs: Sequence[Pair], lowest: Mapping[str, int], take: int = 0) -> list[Pair]:
    """The pairs with grade 1 for relevant and 0 for the others; of each query and label the first `take`, or all.

    Raises:
        MechirError: when a collection's pairs are all relevant, or none is.
    """
    refuse_below(0, take=take)
    labels = [replace(pair, grade=int((pair.grade or 0) >= lowest[collection_of(pair.query_id)])) for pair in pairs]
    both = {(collection_of(pair.query_id), pair.grade) for pair in labels}
    for name in dict.fromkeys(collection_of(pair.query_id) for pair in pairs):
        for label, which in ((1, f"of grade {lowest[name]} or more"), (0, "that is not relevant")):
            if (name, label) not in both:
                raise MechirError(f"No pair of '{name}' has a document {which}: take more queries, or set relevant=.")
    return first_of_each(labels, take or len(labels), by_grade=True)


def against_others(model: Reranker, pairs: Sequence[Pair]) -> list[float]:
    """The mean score of the pairs of the other label in each labelled pair's query, for the target "margin".

    Raises:
        MechirError: for a query with one label alone.
    """
    frame = pair_ids(pairs).assign(score=model.score(pairs, progress=False).numpy().astype(float))
    means = frame.groupby(["query_id", "grade"])["score"].mean()
    others = means.reindex(pd.MultiIndex.from_arrays([frame["query_id"], 1 - frame["grade"]]))
    for pair, score in zip(pairs, others, strict=True):
        if math.isnan(score):
            raise MechirError(f"Query '{pair.query_id}' has no pair of the other label, so it has no margin.")
    return others.tolist()


def with_both(pairs: Sequence[Pair]) -> list[Pair]:
    """The labelled pairs of queries that have both labels."""
    labels = {(pair.query_id, pair.grade) for pair in pairs}
    return [pair for pair in pairs if {(pair.query_id, label) for label in range(len(LABELS))} <= labels]


def unit_rows(model: Reranker, pairs: Sequence[Pair], **options: Any) -> pd.DataFrame:
    """The rows that an experiment on units stores of some whole queries, their pairs `labelled`.

    `options`: of `conductance`; segments and directions are kept apart.

    Returns:
        Rows of two kinds. "unit": `collection`, `query_id`, `label`, `n` pairs, `layer`, `unit`, `conductance`, the
        mean over these pairs as a flat list: all `parts` of the layer's first unit, of the second, ...
        "pair": `collection`, `query_id`, `label`, `doc_id`, `value`, `delta`, `error`, `steps`, `converged`.
    """
    needs(model, "unit_rows")
    rows, checks = conductance(model, pairs, split=True, **options)
    units = rows.assign(kind="unit", conductance=[x.ravel() for x in rows["conductance"]])
    both = pd.concat([units, checks.assign(kind="pair")], ignore_index=True)
    both["label"] = np.where(both["grade"].astype(int) == 1, RELEVANT, OTHER)
    both["collection"] = [collection_of(query_id) for query_id in both["query_id"]]
    return columns_first(both.drop(columns="grade"), ["kind", "collection", "query_id", "label"])


class Table(NamedTuple):
    """The conductances of one collection's pairs of one label: a row per query, `counts` pairs each."""

    collection: str
    label: str
    sites: list[str]
    values: Float[np.ndarray, "query site"]
    counts: Float[np.ndarray, "query"]

    def mean(self, weights: Float[np.ndarray, "*draw query"] | None = None) -> Float[np.ndarray, "*draw site"]:
        """The mean over pairs; `weights`: how often each query was drawn."""
        weights = self.counts if weights is None else weights * self.counts
        return weights @ self.values / weights.sum(-1, keepdims=True)

    def drawn(self, draws: int, seed: int = 0) -> Float[np.ndarray, "draw query"]:
        """The counts of each query in `draws` resamples of the queries."""
        n = len(self.counts)
        return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws).astype(float)


def tables(rows: pd.DataFrame) -> list[Table]:
    """The "unit" rows of heads and neurons as a matrix for each collection and label, their parts summed."""
    units = rows[(rows["kind"] == "unit") & (rows["unit"] != "resid")]
    matrices = []
    for (collection, label), part in units.groupby(["collection", "label"], sort=False):
        queries = list(dict.fromkeys(part["query_id"]))
        sites, values = list[str](), []
        for (layer, unit), here in part.groupby(["layer", "unit"], sort=False):
            stacked = np.stack(here.set_index("query_id").loc[queries, "conductance"].to_list()).astype(float)
            values.append(stacked.reshape(len(queries), -1, len(parts(str(unit), units))).sum(2))
            sites += [f"{KIND[str(unit)][0]}{int(layer)}.{k}" for k in range(values[-1].shape[1])]
        counts = part.drop_duplicates("query_id").set_index("query_id").loc[queries, "n"].to_numpy(dtype=float)
        matrices.append(Table(str(collection), str(label), sites, np.concatenate(values, axis=1), counts))
    return matrices


def importance(rows: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """The mean conductance of every unit over the pairs of each collection and label.

    Returns:
        One row per collection, label and unit: `site`, `kind` ("neuron", "head"), `layer`; `rank` among its kind, 1 the
        largest; `conductance` (units of F, signed) with `low` and `high`, its 95 % interval (percentiles, whole queries
        resampled); `pairs` and `queries`.
    """
    frames = []
    for table in tables(rows):
        queries, drawn = len(table.counts), table.drawn(draws, seed)
        bounds = [np.full((2, len(table.sites)), np.nan)]
        if queries > 1:
            cuts = range(0, len(table.sites), COLUMNS)
            some = (table._replace(values=table.values[:, cut : cut + COLUMNS]) for cut in cuts)
            bounds = [np.quantile(columns.mean(drawn), [0.025, 0.975], axis=0) for columns in some]
        low, high = np.concatenate(bounds, axis=1)
        frame = pd.DataFrame({"estimate": table.mean(), "low": low, "high": high}).assign(
            collection=table.collection,
            label=table.label,
            site=table.sites,
            kind=[kind(site) for site in table.sites],
            layer=[int(site[1:].partition(".")[0]) for site in table.sites],
            pairs=int(table.counts.sum()),
            queries=queries,
        )
        frame["rank"] = frame.groupby("kind")["estimate"].rank(ascending=False, method="first").astype(int)
        frames.append(frame)
    first = ["collection", "label", "site", "kind", "layer", "rank"]
    return columns_first(pd.concat(frames, ignore_index=True), first)


def unconverged(rows: pd.DataFrame) -> pd.DataFrame:
    """The pairs whose conductances do not add up to F(text) - F(baseline) within the tolerance."""
    pairs = rows[rows["kind"] == "pair"]
    return pairs[~pairs["converged"].astype(bool)]
