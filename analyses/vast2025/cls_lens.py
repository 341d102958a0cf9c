"""Reads relevance after every sublayer: the head on CLS, by grade, and probes of each segment."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir.experiment import Experiment, Finished, Inputs
from mechir.methods.checks import grades_there
from mechir.methods.lens import GAP, both_sides, gathered, read_depths, readable
from mechir.options import option
from mechir.pair import Pair
from mechir.reranker import Reranker
from mechir.views import charts

READ_BY = {"auroc": "probe", "control": "probe of permuted labels", "lens": "the model's own head"}


@dataclass(frozen=True)
class ClsLens(Experiment):
    """Reads relevance after every sublayer: the head on CLS, by grade, and probes of each segment.

    The first part is "relevance integration" in the journal code of Vast et al. 2025; see `mechir.methods.lens`.
    """

    forwards = 1.2  # one, of all rows of the last layer too
    shown = ("site", "depth", "measure", "of", "estimate", "queries")

    relevant: int = option(1, "the grade from which a document counts as relevant")
    draws: int = option(100, "how often the control's labels are permuted within queries", least=1)
    penalty: float = option(1.0, "penalty of the probes' ridge, relative to the variance of a feature", positive=True)

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses pairs that no probe can be trained on."""
        grades_there(inputs.material)
        both_sides(pd.DataFrame(inputs.material), self.relevant, self.draws)
        return self

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """Rows per pair, site and segment: see `read_depths`; the options are those of the summary."""
        return read_depths(model, pairs)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """`gathered` and, under it, `readable`: one estimate a row.

        `site` and `depth` (layers done; a half after attention); `measure`: "score" (log-odds) and "p" of the lens by
        grade and as relevant - others; "auroc" within queries of the lens and, by segment, of the probes on held-out
        queries; "control" and "selectivity" of the probes. `queries`, `estimate`, and `low` and `high`, its 95 %
        interval over them; for "control", what 95 % of the draws reach.
        """
        probes = readable(run.rows, relevant=self.relevant, draws=self.draws, penalty=self.penalty)
        return pd.concat([gathered(run.rows, relevant=self.relevant), probes], ignore_index=True)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """By depth the score of relevant documents less that of others, as the model's head reads it on CLS."""
        return super().table(summary[(summary["measure"] == "score") & (summary["of"] == GAP)])

    def chart(self, summary: pd.DataFrame) -> Any:
        """The lens by grade and as a difference; below, how well each segment is read, beside the control."""
        shown = summary.rename(columns={"depth": "layers done"})
        score = shown[shown["measure"] == "score"].rename(columns={"of": "documents", "estimate": "mean"})
        panel = score["documents"].where(score["documents"] == GAP, "by grade")
        areas = shown[shown["measure"].isin(["auroc", "control"])].rename(columns={"estimate": "AUROC"})
        read_by = areas["of"].where(areas["of"] == "lens", areas["measure"]).map(READ_BY)
        areas = areas.assign(segment=areas["of"].replace("lens", "cls"), **{"read by": read_by})
        return charts.stacked(
            charts.lines(
                score.assign(panel=panel),
                "layers done",
                "mean",
                "documents",
                title="When relevance is gathered: the model's head on CLS after every sublayer, mean score",
                subtitle="means over queries with 95 % intervals; a half layer: after its attention",
                low="low",
                high="high",
                column="panel",
            ),
            charts.lines(
                areas,
                "layers done",
                "AUROC",
                "read by",
                title="Where relevance can be read: linear probes of each segment's mean, held-out queries",
                subtitle="AUROC within queries, 0.5: chance; bands: 95 % over queries, for permuted labels over draws",
                low="low",
                high="high",
                column="segment",
            ),
        )
