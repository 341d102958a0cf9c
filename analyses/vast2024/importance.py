"""Which neurons and heads carry relevance: the conductance of every unit (Vast et al. 2024, arXiv:2406.19309).

The word embeddings go from a baseline of [PAD] to the text; a unit's conductance is its part of the change of the
score. Means over relevant and over other documents, each unit with interval and rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mechir.collection_groups import Collections
from mechir.errors import MechirError
from mechir.methods.checks import at_least, unit_target
from mechir.methods.importance import (
    RELEVANT,
    against_others,
    importance,
    labelled,
    thresholds,
    told,
    unconverged,
    unit_rows,
    with_both,
)
from mechir.methods.schemes import top
from mechir.methods.walk import Way
from mechir.pairs import Pair, split_queries
from mechir.views import charts

ENDS = 0.01
"""Neurons that become findings: this share at either end."""
SHARE = 0.01
"""Of neurons, that the chart counts layer by layer."""
PRINTED, NAMED = 10, 3
MARGIN = "margin"


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair that is taken: a forward and a backward pass at each of about 32 places of the line."""
    return 100.0


def check(
    model: Any,
    pairs: Sequence[Pair],
    collections: Collections,
    *,
    relevant: str,
    take: int,
    every: int,
    target: str,
    **way: Any,
) -> dict[str, Any]:
    """The target in its normal form; refuses what does not fit."""
    at_least(0, take=take)
    at_least(1, every=every)
    goal = unit_target(model, target=target, **way)
    _kept(pairs, thresholds(collections, relevant), take, every, target)
    return {"target": goal}


def _kept(pairs: Sequence[Pair], lowest: Mapping[str, int], take: int, every: int, target: str) -> list[Pair]:
    """Of one query in `every` the first `take` pairs of each label; for a margin, of queries with both labels."""
    kept = labelled(split_queries(pairs, every)[0] if every > 1 else pairs, lowest, take)
    if target != MARGIN:
        return kept
    if not (both := with_both(kept)):
        raise MechirError("No query has a relevant document and another one, so there is no margin: take more queries.")
    return both


def prepare(
    model: Any,
    pairs: list[Pair],
    collections: Collections,
    *,
    relevant: str = "",
    take: int = 4,
    every: int = 1,
    target: str = "score",
    **way: Any,
) -> tuple[list[Pair], dict[str, Any]]:
    """One query in `every`; of each query and label the first `take` pairs; from which grade on one is relevant."""
    lowest = thresholds(collections, relevant)
    return _kept(pairs, lowest, take, every, target), {"relevant": told(lowest)}


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    relevant: str = "",
    take: int = 4,
    every: int = 1,
    baseline: str = "pad_query",
    target: str = "score",
    heads: str = "pattern",
    neurons: str = "post",
    tol: float = 0.01,
) -> pd.DataFrame:
    """The rows of `unit_rows`.

    `relevant` is a grade or NAME:GRADE with commas, by default half of the highest, rounded up; `take`, pairs of each
    query and label (0: all); `every`, one query in so many; `heads`, "pattern" or "z"; `neurons`, "post" or "pre" the
    activation; `baseline` and `tol`: see `Way`; `target`: see `conductance`, a margin is over the mean score of the
    query's pairs of the other label.
    """
    return unit_rows(
        model,
        pairs,
        units=(neurons, heads, "resid"),
        way=Way(baseline, tol=tol),
        target=target,
        against=against_others(model, pairs) if target == MARGIN else None,
    )


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """`importance`, relevant first and by rank; `unconverged` names the label's pairs that did not converge, if any."""
    found = importance(rows)
    failed = unconverged(rows)
    names = (failed["query_id"] + "/" + failed["doc_id"]).groupby([failed["collection"], failed["label"]]).agg(_some)
    keys = pd.MultiIndex.from_frame(found[["collection", "label"]])
    order = found["label"].ne(RELEVANT)
    found = found.assign(unconverged=names.reindex(keys).to_numpy(), order=order)
    return found.sort_values(["collection", "order", "kind", "rank"], ignore_index=True).drop(columns="order")


def _some(names: pd.Series) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """The first ten of each kind."""
    return summary[summary["rank"] <= PRINTED]


def findings(
    summary: pd.DataFrame,
    *,
    baseline: str = "pad_query",
    target: str = "score",
    heads: str = "pattern",
    neurons: str = "post",
) -> pd.DataFrame:
    """The conductance of every head, and of the neurons at either end: the first and the last per cent."""
    sizes = summary.groupby(["collection", "label", "kind"])["rank"].transform("max")
    ends = (summary["rank"] <= sizes * ENDS) | (summary["rank"] > sizes * (1 - ENDS))
    kept = summary[(summary["kind"] == "head") | ends]
    names = {"conductance": "value", "queries": "n_queries", "pairs": "n_pairs"}
    told = kept.rename(columns=names)[["collection", "site", "value", "low", "high", "n_queries", "n_pairs"]]
    chosen = zip((baseline, target, heads, neurons), ("pad_query", "score", "pattern", "post"), strict=True)
    other = "".join(f", {given}" for given, default in chosen if given != default)
    return told.assign(
        measure="conductance, " + kept["label"] + " documents" + other,
        unit="logits" if target == "score" else target,
        role=kept["kind"].map({"head": "scoring", "neuron": "relevance-neuron"}),
        label="rank " + kept["rank"].astype(str) + " of " + sizes[kept.index].astype(str),
    )


def chart(summary: pd.DataFrame) -> Any:
    """The conductance of every head, and how many of the top 1 % of neurons each layer has."""
    heads = summary[summary["kind"] == "head"].copy()
    heads[["layer", "head"]] = heads["site"].str.extract(r"h(\d+)\.(\d+)").astype(int).to_numpy()
    counts = []
    for (collection, label), part in summary[summary["kind"] == "neuron"].groupby(["collection", "label"], sort=False):
        layers = part.set_index("site").loc[top(part.set_index("site")["conductance"], SHARE), "layer"].value_counts()
        for layer in sorted(part["layer"].unique()):
            counts.append({"panel": collection, "label": label, "layer": layer, "neurons": layers.get(layer, 0)})
    maps = [
        charts.effect_map(
            part,
            "head",
            "layer",
            "conductance",
            title=f"Conductance of heads on {collection}",
            subtitle="mean over pairs, 95 % interval over queries",
            low="low",
            high="high",
            column="label",
            order_x=sorted(part["head"].unique().tolist()),
            order_y=sorted(part["layer"].unique().tolist()),
        )
        for collection, part in heads.groupby("collection", sort=False)
    ]
    lines = pd.DataFrame(counts)
    title = "Where the top 1 % of neurons sit"
    return charts.stacked(*maps, charts.lines(lines, "layer", "neurons", "label", title=title, column="panel"))
