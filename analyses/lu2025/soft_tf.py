"""Do matching heads count? Attention mass against term frequency and length (Lu et al. 2025, arXiv:2502.04645, 4.2).

A word of each query is appended 0 to 8 times to a document (TFC2), filler standing in for what is missing, and
documents are repeated (LNC2). To the mass that each head's query term pays, tf / (tf + k1) is fitted, with one k1 and
an intercept and a size of its own for each text. Matching heads are found on one query in three, and the others are
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechir.contrasts import single_piece
from mechir.errors import MechirError
from mechir.inference import mean_interval, means
from mechir.methods.checks import SELECTION, at_least, heads_or_search, terms_there
from mechir.methods.matching import choose_matching
from mechir.methods.soft_tf import (
    COUNTS,
    FREQUENCIES,
    TIMES,
    frequencies,
    saturation,
    similarity_correlation,
    term_mass,
    text_of,
)
from mechir.pairs import Pair, first_of_each, split_queries
from mechir.views import charts

LEAST = 0.02
"""A rise of attention below this is called nothing, whatever its p."""
STRONGEST = 6
"""Heads named in the chart for the rise of their mass, matching or not."""


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair that is taken."""
    return 1.5 * (len(COUNTS) + len(TIMES) + 1)


def check(
    model: Any,
    pairs: Sequence[Pair],
    *,
    heads: str,
    top: int,
    filler: str,
    words: int,
    per_query: int,
    seed: int,
) -> dict[str, Any]:
    """Heads by layer; refuses what does not fit."""
    at_least(1, words=words, per_query=per_query)
    at_least(0, seed=seed)
    single_piece(model.tokenizer, filler)
    terms_there(pairs, seed)
    matching = heads_or_search(model, pairs, heads, top=top, matching=True)
    kept = pairs if matching else split_queries(pairs, SELECTION)[1]
    if frequencies(model, first_of_each(kept, per_query), filler=filler, words=words, seed=seed) < FREQUENCIES:
        raise MechirError(f"--words {words} leaves no room for the words that are appended: write a smaller number.")
    return {"heads": matching}


def prepare(
    model: Any, pairs: list[Pair], *, heads: str, top: int, **options: Any
) -> tuple[list[Pair], dict[str, str]]:
    """The pairs left to measure, and the matching heads found on the others."""
    return choose_matching(model, pairs, heads=heads, top=top)


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    heads: str = "",
    top: int = 10,
    filler: str = "a",
    words: int = 40,
    per_query: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """`heads` ("matching" or "other"), and the rows of `term_mass`; `similarity_correlation` as kind "similarity".

    The option `heads` names the matching heads, found by the run where none are given; of each query `per_query` pairs
    are taken.
    """
    some = first_of_each(pairs, per_query)
    mass = term_mass(model, some, filler=filler, words=words, seed=seed)
    likeness = similarity_correlation(model, some).assign(kind="similarity")
    rows = pd.concat([mass, likeness], ignore_index=True)
    rows.insert(0, "heads", np.where(rows["site"].isin(heads.split(",")), "matching", "other"))
    return rows


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One row per head, matching ones with the largest rise first, and the means of the matching and the other heads.

    Heads: `heads` ("matching", "other"), `site`, `queries`; `base`, `size`, `k1`, `k1_low`, `k1_high`, `r2` of
    `saturation` of the mass on the document by term frequency, base and size each text's own; `rise` = mean mass at the
    highest count less that at the lowest of the same text, with `rise_low`, `rise_high` over queries; `by_length` =
    mean mass of the document three times over less once; `similarity` = mean r of attention and likeness, with its
    interval. Rows with the site "mean" are means over heads, rows "mass" the mean mass on the document by number of
    words appended (`count`).
    """
    heads = [_head(str(site), part) for site, part in rows.groupby("site", sort=False)]
    found = pd.DataFrame(heads).sort_values(["heads", "rise"], ascending=[True, False])
    means = found.groupby("heads", sort=False).mean(numeric_only=True).reset_index().assign(site="mean")
    means = means.drop(columns=[name for name in found.columns if name.endswith(("_low", "_high"))])
    return pd.concat([found, means, _curve(rows)], ignore_index=True)


def _head(site: str, part: pd.DataFrame) -> dict[str, Any]:
    tf, length, likeness = (part[part["kind"] == kind] for kind in ("tf", "length", "similarity"))
    counts, mass = (tf[name].to_numpy(dtype=float) for name in ("tf", "mass"))
    fitted = saturation(counts, mass, tf["query_id"].to_numpy(), text_of(tf))
    rise, longer = _change(tf, COUNTS), _change(length, TIMES)
    similar = likeness.groupby("query_id")["r"].mean().dropna().to_numpy()
    line: dict[str, Any] = {"heads": part["heads"].iloc[0], "site": site, "queries": len(rise)}
    line |= fitted
    for name, values in (("rise", rise), ("by_length", longer), ("similarity", similar)):
        low, high = mean_interval(values) if len(values) else (np.nan, np.nan)
        line |= {name: values.mean() if len(values) else np.nan, f"{name}_low": low, f"{name}_high": high}
    return line


def _change(part: pd.DataFrame, doses: Sequence[int]) -> np.ndarray:
    """Query by query the mean mass at the last dose less that at the first."""
    first, last = (part[part["dose"] == dose].groupby("query_id")["mass"].mean() for dose in (doses[0], doses[-1]))
    return (last - first).to_numpy()


def _curve(rows: pd.DataFrame) -> pd.DataFrame:
    counted = rows[rows["kind"] == "tf"].assign(count=lambda tf: tf["dose"].astype(int))
    per_query = counted.groupby(["heads", "count", "query_id"], sort=False)["mass"].mean()
    lines = []
    for (heads, count), values in per_query.groupby(["heads", "count"], sort=False):
        low, high = mean_interval(values.to_numpy())
        lines.append({"site": "mass", "heads": heads, "count": count, "queries": len(values)})
        lines[-1] |= {"mass": values.mean(), "mass_low": low, "mass_high": high}
    return pd.DataFrame(lines)


def findings(summary: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """How every head's mass rises with tf (a test over all heads) and with length, where it saturates, what it follows.

    The document is changed here, not the head: none of these is causal.
    """
    heads = summary[summary["site"].str.startswith("h")].set_index("site")
    tf = rows[rows["kind"] == "tf"]
    rises = np.column_stack([_change(tf[tf["site"] == site], COUNTS) for site in heads.index])
    tested = {"p_corrected": means(rises).p_corrected, "family": f"{len(heads)} heads", "least": LEAST}
    found = [
        _stated(heads, "rise", "tf", "rise of attention, tf 0 to 8", "attention").assign(**tested),
        _stated(heads, "k1", "saturation", "k1 of attention", "occurrences"),
        _stated(heads, "by_length", "length", "rise of attention, document three times over", "attention"),
        _stated(heads, "similarity", "tf", "attention and likeness of embeddings", "r"),
    ]
    return pd.concat(found, ignore_index=True).dropna(subset="value")


def _stated(heads: pd.DataFrame, name: str, term: str, measure: str, unit: str) -> pd.DataFrame:
    names = {name: "value", f"{name}_low": "low", f"{name}_high": "high", "queries": "n_queries"}
    kept = heads.reset_index().rename(columns=names)[["site", "value", "low", "high", "n_queries"]]
    return kept.assign(measure=measure, unit=unit, role="soft-tf", term=term)


def chart(summary: pd.DataFrame) -> Any:
    """Mass by number of occurrences appended, and k1 against the rise, a point per head."""
    curve = summary[summary["site"] == "mass"]
    points = summary[summary["site"].str.match(r"h\d")]
    return charts.stacked(
        charts.lines(
            curve,
            "count",
            "mass",
            "heads",
            title="Attention of a query term to the document, by occurrences appended",
            low="mass_low",
            high="mass_high",
        ),
        charts.scatter(
            points.assign(named=(points["heads"] == "matching") | (points["rise"].rank(ascending=False) <= STRONGEST)),
            "similarity",
            "rise",
            "heads",
            title="What a head's attention follows",
            subtitle="likeness of embeddings (mean r) and rise of the mass with term frequency; "
            f"named: matching, and the {STRONGEST} largest rises",
            label="site",
            named="named",
        ),
    )
