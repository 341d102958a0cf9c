"""What the weights of each head match: Figure 2 of Vast et al. 2025 (arXiv:2507.14604, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir.experiment import Experiment, Finished, Inputs
from mechir.measures import QK_ALIGNMENT, stated
from mechir.methods.checks import contrasted, grades_of, grades_there, relevant_against_weak
from mechir.methods.matching import attention_by_pair, compare_grades
from mechir.methods.spectra import VECTORS, head_inputs, preferences, qk_spectra
from mechir.methods.statistics import overlap
from mechir.options import option
from mechir.pairs import Pair
from mechir.reranker import Weights
from mechir.views import charts

STRONGEST = 10
LABELLED = 6
"""Heads named in the chart: so many with the largest |z|, and so many with the largest contrast."""


@dataclass(frozen=True)
class QkSvd(Experiment):
    """What the weights of each head match: Figure 2 of Vast et al. 2025 (arXiv:2507.14604, section 5).

    W_QK of every head is taken apart by SVD. Alignment of its singular vectors (does it look for its own likeness?) is
    set against whom the mean query prefers, and both against the contrast of its attention between grades.
    """

    figure = 5
    forwards = 2.5

    relevant: int = option(3, "the grade of relevant documents")
    hard: int = option(0, "the grade of hard negatives")
    weak: int = option(-1, "the grade of easy negatives, -1 for unjudged documents")
    sep2: bool = option(False, "count the second [SEP] to the document")

    @property
    def grades(self) -> dict[str, int]:
        """The grades that are contrasted."""
        return {"relevant": self.relevant, "hard": self.hard, "weak": self.weak}

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses grades that cannot be contrasted on these pairs."""
        relevant_against_weak(self.relevant, self.weak)
        grades_there(inputs.material, **self.grades)
        queries = list(grades_of(inputs.material).values())
        contrasted(queries, self.grades, f"of {len(queries)}")
        return self

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
        """Of every head `mean_max` pair by pair (`attention_by_pair`), and per query and grade `head_inputs`."""
        attention = attention_by_pair(model, pairs, sep2=self.sep2)
        attention = attention[attention["doc_id"].notna()]
        kept = attention[["query_id", "doc_id", "grade", "direction", "site", "mean_max"]]
        return pd.concat([kept, head_inputs(model, pairs)], ignore_index=True)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One row per head, the most aligned first: `qk_spectra` without sigma, `preferences`, `contrast` and `label`.

        `contrast` is relevant - weak of the largest attention from a query token to a document token, with its
        interval and p.
        """
        rows, model = run.rows, run.model
        assert model is not None  # every stored run has one
        compared = compare_grades(rows[rows["doc_id"].notna()], self.grades)
        chosen = compared[(compared["direction"] == "query<-doc") & (compared["contrast"] == "relevant - weak")]
        names = {"estimate": "contrast"} | {name: f"contrast_{name}" for name in ("low", "high", "p_corrected")}
        contrast = chosen.drop(columns="contrast").rename(columns=names)
        inputs = rows.dropna(subset=[VECTORS[0]])
        return (
            qk_spectra(model)
            .drop(columns="sigma")
            .merge(preferences(model, inputs), on="site")
            .merge(contrast[["site", *names.values(), "label"]], on="site")
            .sort_values("z", ascending=False, ignore_index=True)
        )

    def findings(self, run: Finished) -> pd.DataFrame:
        """The z of the trace of every head's W_QK, a matter of weights alone."""
        family = f"{len(run.summary)} heads"
        return stated(run.summary, QK_ALIGNMENT, "z", label="", n_queries=0, n_pairs=0, family=family)

    def chart(self, summary: pd.DataFrame) -> Any:
        """The paper's figure, and the same with the contrast of sources that the softmax sees."""
        n = min(STRONGEST, len(summary))
        aligned, contrasted = (summary.nlargest(n, name)["site"].tolist() for name in ("z", "contrast"))
        both = overlap(aligned, contrasted, len(summary))
        shared = f"share {both.shared}, by chance {both.expected:.1f}"
        said = f"the {n} most aligned and the {n} of the largest contrast {shared}"
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
