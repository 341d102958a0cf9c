"""Compares the weights of each head with what it matches (Vast et al. 2025, arXiv:2507.14604, Figure 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir.experiment import Finished
from mechir.measures import QK_ALIGNMENT, stated
from mechir.methods.matching import attention_by_pair, compare_grades
from mechir.methods.spectra import VECTORS, head_inputs, preferences, qk_spectra
from mechir.methods.statistics import overlap
from mechir.options import option
from mechir.pair import Pair
from mechir.reranker import Weights
from mechir.views import charts
from mechir.views.scatter import scatter

from ._grades import OfGrades

STRONGEST = 10
LABELLED = 6
"""Heads named in the chart: so many with the largest |z|, and so many with the largest contrast."""


@dataclass(frozen=True)
class QkSvd(OfGrades):
    """Compares the weights of each head with what it matches (Vast et al. 2025, arXiv:2507.14604, Figure 2).

    W_QK of every head is taken apart by SVD. Alignment of its singular vectors (does it look for its own likeness?) is
    set against whom the mean query prefers, and both against the contrast of its attention between grades.
    """

    tier = Weights
    examples = ("--limit-queries 10", "--sep2 --limit-queries 10")
    figure = 5
    forwards = 2.5
    shown = ("site", "z", "z_p_corrected", "relu", "axis", "contrast", "label")

    sep2: bool = option(False, "count the second [SEP] to the document")

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The `mean_max` of every head and pair (`attention_by_pair`), and `head_inputs` per query and grade."""
        attention = attention_by_pair(model, pairs, sep2=self.sep2)
        attention = attention[attention["doc_id"].notna()]
        attention = attention[["query_id", "doc_id", "grade", "direction", "site", "mean_max"]]
        return pd.concat([attention, head_inputs(model, pairs)], ignore_index=True)

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
        contrast = chosen.drop(columns="contrast").rename(columns=names)[["site", *names.values(), "label"]]
        preferred = preferences(model, rows.dropna(subset=[VECTORS[0]]))
        table = qk_spectra(model).drop(columns="sigma").merge(preferred, on="site").merge(contrast, on="site")
        return table.sort_values("z", ascending=False, ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The z of the trace of every head's W_QK, a matter of weights alone."""
        family = f"{len(run.summary)} heads"
        return stated(run.summary, QK_ALIGNMENT, "z", label="", n_queries=0, n_pairs=0, family=family)

    def chart(self, summary: pd.DataFrame) -> Any:
        """The paper's figure, and the same with the contrast of sources that the softmax sees."""
        n = min(STRONGEST, len(summary))
        aligned, contrasted = (summary.nlargest(n, name)["site"].tolist() for name in ("z", "contrast"))
        both = overlap(aligned, contrasted, len(summary))
        shared = f"share {both.shared}, by chance {both.expected:.1f} (p = {both.p:.2g})"
        subtitle = "colour: attention to the document, relevant - weak; "
        subtitle += f"the {n} most aligned and the {n} of the largest contrast {shared}"
        strong = summary[["z", "contrast"]].abs().rank(ascending=False) <= LABELLED
        shown = summary.rename(columns={"axis": "q A d - d A d", "query_prefers_doc": "q A d - q A q, scaled"})
        shown = shown.assign(named=strong.any(axis=1))
        how: dict[str, Any] = {"subtitle": subtitle, "label": "site", "named": "named"}
        title = "Alignment of W_QK and whom the mean query prefers"
        axes = {"q A d - d A d": "the paper's axis", "q A d - q A q, scaled": "what the softmax compares"}
        return charts.stacked(
            *(scatter(shown, "trace", axis, "contrast", title=f"{title}: {name}", **how) for axis, name in axes.items())
        )
