"""Cuts the directions of attention that the ranking may depend on: Table 1 of Vast et al. 2025 (arXiv:2507.14604)."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import LEVEL
from mechir.interventions import Mask
from mechir.methods.checks import relevant_there
from mechir.methods.directions import condition_table, stated
from mechir.options import option
from mechir.reranker import Weights
from mechir.segments import FIVE, Direction, Segment, directions
from mechir.views import charts

ORIGINAL = "original"


@dataclass(frozen=True)
class DirectionAblation(Experiment):
    """Cuts the directions of attention that the ranking may depend on: Table 1 of Vast et al. 2025 (arXiv:2507.14604).

    Each of the 25 directions X<-Y between CLS, query, SEP1, document and SEP2 is cut in all layers and heads, then all
    five sources of a reader together. The cut is 0 after the softmax without renormalisation, as in the paper;
    `--renormalise` cuts before it.
    """

    examples = ("--limit-queries 10", "--renormalise --limit-queries 10")
    figure = 2

    renormalise: bool = option(False, "cut before the softmax, so that the other weights take over")

    def interventions(self, model: Weights) -> dict[str, Any]:
        """The intact model, the 25 directions, and each reader cut from all five sources."""
        cut = [*directions(), *(Direction(reader, Segment.ALL) for reader in FIVE)]
        return {ORIGINAL: ()} | {str(direction): Mask(direction, renormalise=self.renormalise) for direction in cut}

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses a pool without a relevant document."""
        relevant_there(inputs.judged)
        return self

    def summarise(self, run: Finished) -> pd.DataFrame:
        """nDCG@10 of every cut beside the original and the random ranking: see `condition_table`."""
        return condition_table(run.rows, run.judged, original=ORIGINAL)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The effect of cutting each direction on nDCG@10; Holm over all of them."""
        return stated(run.summary, self.renormalise)

    def chart(self, summary: pd.DataFrame) -> Any:
        """The paper's table: readers in rows, sources in columns, a star where the paired test holds after Holm."""
        cells = summary[summary["name"].str.contains("<-", regex=False)].copy()
        cells[["reader", "source"]] = cells["name"].str.split("<-", expand=True)
        cells["significant"] = cells["change_p_corrected"] <= LEVEL
        order, ndcg = [str(segment) for segment in FIVE], summary.set_index("name")["ndcg"]
        return charts.heatmap(
            cells,
            "source",
            "reader",
            "ndcg",
            title="nDCG@10 with reader<-source cut in all layers",
            subtitle=f"original {ndcg[ORIGINAL]:.2f}, random {ndcg['random']:.2f}; * p <= 0.05 (paired, Holm)",
            star="significant",
            order_x=[*order, "all"],
            order_y=order,
        )
