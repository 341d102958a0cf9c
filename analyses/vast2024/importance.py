"""Which neurons and heads carry relevance: the conductance of every unit (Vast et al. 2024, arXiv:2406.19309).

The word embeddings go from a baseline of [PAD] to the text; a unit's conductance is its part of the change of the
score. Means over relevant and over other documents, each unit with interval and rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.methods.conductance import Way
from mechir.methods.importance import RELEVANT, importance, labelled, thresholds, told, unit_rows
from mechir.methods.schemes import top
from mechir.pairs import Pair
from mechir.views import charts

SHARE = 0.01
"""Of neurons, that the chart counts layer by layer."""


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair that is taken: a forward and a backward pass at each of about 32 places of the line."""
    return 100.0


def prepare(
    model: Any, pairs: list[Pair], collection: Any, *, relevant: str = "", take: int = 4, **options: Any
) -> tuple[list[Pair], dict[str, Any]]:
    """Of each query and label the first `take` pairs, and from which grade on a document is relevant."""
    lowest = thresholds(collection, relevant)
    return labelled(pairs, lowest, take), {"relevant": told(lowest)}


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    relevant: str = "",
    take: int = 4,
    baseline: str = "pad_query",
    target: str = "score",
    heads: str = "pattern",
    neurons: str = "post",
    tol: float = 0.01,
) -> pd.DataFrame:
    """The rows of `unit_rows`.

    `relevant` is a grade or NAME:GRADE with commas, by default half of the highest, rounded up; `take`, pairs of each
    query and label; `heads`, "pattern" or "z"; `neurons`, "post" or "pre" the activation; `baseline` and `tol`: see
    `Way`; `target`: see `conductance`.
    """
    lowest = {name: int(grade) for name, grade in (one.rsplit(":", 1) for one in relevant.split(","))}
    return unit_rows(model, pairs, lowest, units=(neurons, heads), way=Way(baseline, tol=tol), target=target)


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """`importance`, relevant first and by rank, with `unconverged`, how many pairs of the label did not converge."""
    found = importance(rows)
    pairs = rows[rows["kind"] == "pair"]
    failed = pairs.assign(failed=~pairs["converged"].astype(bool)).groupby(["collection", "label"])["failed"].sum()
    keys = pd.MultiIndex.from_frame(found[["collection", "label"]])
    order = found["label"].ne(RELEVANT)
    found = found.assign(unconverged=failed.reindex(keys).to_numpy(), order=order)
    return found.sort_values(["collection", "order", "kind", "rank"], ignore_index=True).drop(columns="order")


def chart(summary: pd.DataFrame) -> Any:
    """The conductance of every head, and how many of the top 1 % of neurons each layer has."""
    heads = summary[summary["kind"] == "head"].copy()
    heads[["layer", "head"]] = heads["site"].str.extract(r"h(\d+)\.(\d+)").astype(int).to_numpy()
    counts = []
    for (collection, label), part in summary[summary["kind"] == "neuron"].groupby(["collection", "label"], sort=False):
        kept = top(part.set_index("site")["conductance"], SHARE)
        layers = part.set_index("site").loc[kept, "layer"].value_counts()
        for layer in sorted(part["layer"].unique()):
            counts.append(
                {"panel": f"{collection}, {label}", "label": label, "layer": layer, "neurons": layers.get(layer, 0)}
            )
    maps = charts.effect_map(
        heads.assign(panel=heads["collection"] + ", " + heads["label"]),
        "head",
        "layer",
        "conductance",
        title="Conductance of heads",
        subtitle="mean over pairs, 95 % interval over queries",
        low="low",
        high="high",
        column="panel",
        order_x=sorted(heads["head"].unique().tolist()),
        order_y=sorted(heads["layer"].unique().tolist()),
    )
    return charts.stacked(
        maps,
        charts.lines(pd.DataFrame(counts), "layer", "neurons", "panel", title="Where the top 1 % of neurons sit"),
    )
