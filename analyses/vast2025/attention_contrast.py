"""Which heads match, and what kind of match it is: Vast et al. 2025 (arXiv:2507.14604, section 4; CORIA 2025).

Attention between query and document is compared between relevant documents, hard negatives and easy ones (-1), head by
head, on all queries: the tests are corrected over the heads, and `low_all` to `high_all` hold for all of them at once,
so the strongest are not flattered by being picked. Needs easy negatives: --easy-negatives 10. Without hard negatives
(--hard and --weak one grade) heads are contrasted, and no kind of match is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechir.inference import mean_interval
from mechir.methods.checks import at_least, contrasted, grades_of, grades_there, one_of, relevant_against_weak
from mechir.methods.matching import MEASURES, SIDES, attention_by_pair, compare_grades
from mechir.pairs import Pair
from mechir.views import charts

STRONGEST = 10


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair: one, with every pattern in the open."""
    return 1.5


def check(
    model: Any,
    pairs: Sequence[Pair],
    *,
    relevant: int,
    hard: int,
    weak: int,
    of: str,
    delta: float,
    **options: Any,
) -> dict[str, Any]:
    """Refuses what does not fit: two queries need pairs of each two grades."""
    one_of(MEASURES, of=of)
    at_least(0, delta=delta)
    grades = {"relevant": relevant, "hard": hard, "weak": weak}
    relevant_against_weak(relevant, weak)
    grades_there(pairs, **grades)
    queries = list(grades_of(pairs).values())
    contrasted(queries, grades, f"of {len(queries)}")
    return {}


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    relevant: int = 3,
    hard: int = 0,
    weak: int = -1,
    of: str = "mean_max",
    delta: float = 0.02,
    sep2: bool = False,
) -> pd.DataFrame:
    """A row per pair and head: see `attention_by_pair`; all options but `sep2` are those of the summary."""
    return attention_by_pair(model, pairs, sep2=sep2)


def summarise(
    rows: pd.DataFrame,
    judged: pd.DataFrame,
    *,
    relevant: int = 3,
    hard: int = 0,
    weak: int = -1,
    of: str = "mean_max",
    delta: float = 0.02,
) -> pd.DataFrame:
    """`compare_grades`, the largest relevant - weak first, with `rank`, and the attention mass of whole layers.

    `rank` is a head's place by relevant - weak, 1 the largest. Rows of layers (`attn3`) hold one of the 25 directions
    each; `estimate` is the mean mass over queries and grades, with its interval.
    """
    grades = {"relevant": relevant, "hard": hard, "weak": weak}
    found = compare_grades(rows, grades, measure=of, delta=delta)
    strength = found[found["contrast"] == "relevant - weak"].set_index(["direction", "site"])["estimate"]
    rank = strength.groupby("direction").rank(ascending=False, method="first").astype(int)
    found["rank"] = rank.reindex(pd.MultiIndex.from_frame(found[["direction", "site"]])).astype("Int64").array
    sides = found["direction"].map(SIDES.index)
    found = found.iloc[np.lexsort([found["rank"], sides])]
    return pd.concat([found, _layers(rows)], ignore_index=True)


def _layers(rows: pd.DataFrame) -> pd.DataFrame:
    layers = rows[rows["site"].str.startswith("attn")]
    per_query = layers.groupby(["direction", "site", "query_id"], sort=False)["mass"].mean()
    lines = []
    for (direction, site), values in per_query.groupby(["direction", "site"], sort=False):
        low, high = mean_interval(values.to_numpy())
        line = {"direction": direction, "site": site, "contrast": "mass", "queries": len(values)}
        lines.append(line | {"estimate": values.mean(), "low": low, "high": high})
    return pd.DataFrame(lines)


def findings(summary: pd.DataFrame, *, of: str = "mean_max", delta: float = 0.02) -> pd.DataFrame:
    """The difference relevant - weak of every head, either way; corrected over the heads of a direction."""
    kept = summary[summary["contrast"] == "relevant - weak"]
    names = {"estimate": "value", "p_max": "p_corrected", "queries": "n_queries"}
    kept = kept.rename(columns=names)[
        ["direction", "site", "label", "value", "low", "high", "p_corrected", "n_queries"]
    ]
    what = "contrast, " if of == "mean_max" else f"contrast of {of}, "
    told = {"measure": what + kept["direction"], "unit": "attention", "role": "matching", "least": delta}
    return kept.assign(**told, family=f"{kept['site'].nunique()} heads, " + kept["direction"])


def chart(summary: pd.DataFrame) -> Any:
    """Relevant and hard documents against easy ones, a point per head; below, where each layer looks."""
    heads = summary[summary["direction"].isin(SIDES) & summary["site"].str.startswith("h")]
    wide = heads.pivot(index=["direction", "site", "label", "rank"], columns="contrast", values="estimate")
    wide = wide.reset_index().assign(named=lambda found: found["rank"] <= STRONGEST)
    wide = wide.sort_values("direction", key=lambda column: column.map(SIDES.index))
    points = charts.scatter(
        wide,
        "hard - weak" if "hard - weak" in wide else "rank",
        "relevant - weak",
        "label",
        title="Largest attention to a token of the other text, difference between grades",
        subtitle=f"named: the {STRONGEST} largest differences relevant - weak",
        label="site",
        named="named",
        column="direction",
    )
    layers = summary[summary["site"].str.startswith("attn")]
    masses = layers.rename(columns={"estimate": "mass"})
    masses["layer"] = masses["site"].str.removeprefix("attn").astype(int)
    masses[["reader", "source"]] = masses["direction"].str.split("<-", expand=True)
    return charts.stacked(
        points,
        charts.lines(
            masses,
            "layer",
            "mass",
            "source",
            title="Where each segment looks: mean attention mass by layer",
            low="low",
            high="high",
            column="reader",
        ),
    )
