"""Cuts the directions of attention that the ranking may depend on: Table 1 of Vast et al. 2025 (arXiv:2507.14604)."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import LEVEL
from mechir.interventions import Mask
from mechir.methods.checks import measures_there, relevant_there
from mechir.methods.directions import condition_table, first_of, stated
from mechir.methods.evaluation import NDCG
from mechir.options import BY_MEASURES, option
from mechir.possible import possible
from mechir.reranker import Reranker
from mechir.segments import PARTS, Direction, Segment, parts_of
from mechir.views import charts

ORIGINAL = "original"


@dataclass(frozen=True)
class DirectionAblation(Experiment):
    """Cuts the directions of attention that the ranking may depend on: Table 1 of Vast et al. 2025 (arXiv:2507.14604).

    Each of the 25 directions X<-Y between CLS, query, SEP1, document and SEP2 is cut in all layers and heads, then all
    five sources of a reader together; of a language model, those between the parts of its prompt that its causal mask
    allows. The cut is 0 after the softmax without renormalisation, as in the paper;
    `--renormalise` cuts before it.
    """

    examples = ("--limit-queries 10", "--renormalise --limit-queries 10")
    figure = 2
    shown = ("name", "ndcg", "change", "change_p_corrected", "queries")

    renormalise: bool = option(False, "cut before the softmax, so that the other weights take over")
    evaluate: tuple[str, ...] = option((NDCG,), **BY_MEASURES)

    def interventions(self, model: Reranker) -> dict[str, Any]:
        """The intact model, the directions that happen in it, and each reader cut from all sources."""
        batch = model.batch(("a", "b"))
        cut = [*possible(model, batch), *(Direction(reader, Segment.ALL) for reader in parts_of(batch.present))]
        return {ORIGINAL: ()} | {str(direction): Mask(direction, renormalise=self.renormalise) for direction in cut}

    def check(self, inputs: Inputs) -> Experiment:
        """The measures in normal form; refuses a pool without a relevant document."""
        relevant_there(inputs.judged)
        return replace(self, evaluate=measures_there(inputs.judged, self.evaluate))

    def summarise(self, run: Finished) -> pd.DataFrame:
        """The measures of every cut beside the original and the random ranking: see `condition_table`."""
        return condition_table(run.rows, run.judged, original=ORIGINAL, evaluate=self.evaluate)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The effect of cutting each direction on the ranking; Holm over all of them."""
        return stated(run.summary, self.renormalise)

    def chart(self, summary: pd.DataFrame) -> Any:
        """The paper's table: readers in rows, sources in columns, a star where the paired test holds after Holm."""
        shown, value, measure = first_of(summary)
        cells = shown[shown["name"].str.contains("<-", regex=False)].copy()
        cells[["reader", "source"]] = cells["name"].str.split("<-", expand=True)
        cells["significant"] = cells["change_p_corrected"] <= LEVEL
        order, mean = [str(part) for part in PARTS if str(part) in set(cells["reader"])], shown.set_index("name")[value]
        return charts.heatmap(
            cells,
            "source",
            "reader",
            value,
            title=f"{measure} with reader<-source cut in all layers",
            subtitle=f"original {mean[ORIGINAL]:.2f}, random {mean['random']:.2f}; * p <= 0.05 (paired, Holm)",
            star="significant",
            order_x=[*order, "all"],
            order_y=order,
        )
