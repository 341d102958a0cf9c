"""What the weights of each head match: Figure 2 of Vast et al. 2025 (arXiv:2507.14604, section 5).

W_QK of every head is taken apart by SVD. Alignment of its singular vectors (does it look for its own likeness?) is set
against whom the mean query prefers, and both against the contrast of its attention between grades.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.methods.checks import contrasted, grades_of, grades_there, relevant_against_weak
from mechir.methods.matching import attention_by_pair, compare_grades
from mechir.methods.spectra import VECTORS, head_inputs, preferences, qk_spectra
from mechir.methods.statistics import overlap
from mechir.pairs import Pair
from mechir.views import charts

STRONGEST = 10
LABELLED = 6
"""Heads named in the chart: so many with the largest |z|, and so many with the largest contrast."""


def cost(model: Any, **options: Any) -> float:
    """Full forwards per pair."""
    return 2.5


def check(model: Any, pairs: Sequence[Pair], *, relevant: int, hard: int, weak: int, **options: Any) -> dict[str, Any]:
    """Refuses grades that cannot be contrasted on these pairs."""
    grades = {"relevant": relevant, "hard": hard, "weak": weak}
    relevant_against_weak(relevant, weak)
    grades_there(pairs, **grades)
    queries = list(grades_of(pairs).values())
    contrasted(queries, grades, f"of {len(queries)}")
    return {}


def measure(
    model: Any, pairs: Sequence[Pair], *, relevant: int = 3, hard: int = 0, weak: int = -1, sep2: bool = False
) -> pd.DataFrame:
    """Of every head `mean_max` pair by pair (`attention_by_pair`), and per query and grade `head_inputs`."""
    attention = attention_by_pair(model, pairs, sep2=sep2)
    attention = attention[attention["doc_id"].notna()]
    kept = attention[["query_id", "doc_id", "grade", "direction", "site", "mean_max"]]
    return pd.concat([kept, head_inputs(model, pairs)], ignore_index=True)


def summarise(
    rows: pd.DataFrame, judged: pd.DataFrame, model: Any, *, relevant: int = 3, hard: int = 0, weak: int = -1
) -> pd.DataFrame:
    """One row per head, the most aligned first: `qk_spectra` without sigma, `preferences`, `contrast` and `label`.

    `contrast` is relevant - weak of the largest attention from a query token to a document token, with its interval.
    """
    grades = {"relevant": relevant, "hard": hard, "weak": weak}
    compared = compare_grades(rows[rows["doc_id"].notna()], grades)
    chosen = compared[(compared["direction"] == "query<-doc") & (compared["contrast"] == "relevant - weak")]
    names = {"estimate": "contrast", "low": "contrast_low", "high": "contrast_high"}
    contrast = chosen.drop(columns="contrast").rename(columns=names)
    inputs = rows.dropna(subset=[VECTORS[0]])
    return (
        qk_spectra(model)
        .drop(columns="sigma")
        .merge(preferences(model, inputs), on="site")
        .merge(contrast[["site", "contrast", "contrast_low", "contrast_high", "p_max", "label"]], on="site")
        .sort_values("z", ascending=False, ignore_index=True)
    )


def findings(summary: pd.DataFrame) -> pd.DataFrame:
    """The z of the trace of every head's W_QK, a matter of weights alone."""
    kept = summary.rename(columns={"z": "value", "p_holm": "p_corrected"})[["site", "value", "p", "p_corrected"]]
    told = {"measure": "QK alignment", "unit": "sd of random directions", "role": "matching"}
    return kept.assign(**told, n_queries=0, n_pairs=0, family=f"{len(kept)} heads")


def chart(summary: pd.DataFrame) -> Any:
    """The paper's figure, and the same with the contrast of sources that the softmax sees."""
    n = min(STRONGEST, len(summary))
    aligned, contrasted = (summary.nlargest(n, name)["site"].tolist() for name in ("z", "contrast"))
    both = overlap(aligned, contrasted, len(summary))
    said = (
        f"the {n} most aligned and the {n} of the largest contrast share {both.shared}, by chance {both.expected:.1f}"
    )
    strong = [summary[name].abs().rank(ascending=False) <= LABELLED for name in ("z", "contrast")]
    named = strong[0] | strong[1]
    shown = summary.rename(columns={"axis": "q A d - d A d", "query_prefers_doc": "q A d - q A q, scaled"})
    axes = {"q A d - d A d": "the paper's axis", "q A d - q A q, scaled": "what the softmax compares"}
    return charts.stacked(
        *(
            charts.scatter(
                shown.assign(named=named),
                "trace",
                axis,
                "contrast",
                title=f"Alignment of W_QK and whom the mean query prefers: {title}",
                subtitle=f"colour: attention to the document, relevant - weak; {said} (p = {both.p:.2g})",
                label="site",
                named="named",
            )
            for axis, title in axes.items()
        )
    )
