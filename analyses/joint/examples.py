"""Shows the attention of heads between query and document on a few pairs, word piece by word piece."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechir.experiment import Experiment, Finished, Inputs
from mechir.methods.attention import pair_attention
from mechir.methods.checks import heads_there
from mechir.options import option
from mechir.pair import Pair, first_of_each
from mechir.reranker import Reranker
from mechir.sites import Head
from mechir.views import charts


@dataclass(frozen=True)
class Examples(Experiment):
    """Shows the attention of heads between query and document on a few pairs, word piece by word piece.

    Of queries spread over the pool, the first document of the highest grade and the first of the lowest. Nothing is
    averaged and nothing claimed: it shows what the numbers of other experiments are about.
    """

    examples = ("--heads h1.1,h2.9", "--heads h2.9 --queries 1")
    answers: ClassVar = {"examples": ("--heads", "HEAD")}
    forwards = 1.0

    heads: tuple[Head, ...] = option(
        (Head(0, 0),),
        "heads to look at, in the order in which they are shown",
        in_order=True,
        not_empty="the heads to look at with commas, e.g. h1.1,h2.9",
    )
    queries: int = option(3, "how many queries are shown", least=1)

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses heads that the model does not have."""
        heads_there(inputs.model, self.heads)
        return self

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """The pairs to look at."""
        return self, self.measured(inputs.material)

    def measured(self, material: Sequence[Pair]) -> list[Pair]:
        """The first pair of the highest grade and of the lowest, of queries spread over the material."""
        ids, shown = list(dict.fromkeys(pair.query_id for pair in material)), []
        firsts = first_of_each(material, 1, by_grade=True)
        for place in np.linspace(0, len(ids) - 1, min(self.queries, len(ids))).round().astype(int):
            of_query = [pair for pair in firsts if pair.query_id == ids[place]]
            graded = sorted(of_query, key=lambda pair: -(pair.grade or 0))
            shown += [graded[0], graded[-1]][: len(graded)]
        return shown

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The rows of `pair_attention`."""
        return pair_attention(model, pairs, self.heads)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One row per head and pair: `site`, ids, `grade`, `score` (logits).

        `query_doc`, the largest weight to the document of a query piece, averaged over them; `doc_query` the reverse.
        """
        summary = run.rows[["site", "query_id", "doc_id", "grade", "score"]].copy()
        for name, readers in (("query_doc", "query"), ("doc_query", "doc")):
            largest = [np.reshape(row[name], (len(row[readers]), -1)).max(axis=1) for _, row in run.rows.iterrows()]
            summary[name] = [float(values.mean()) for values in largest]
        return summary

    def chart(self, summary: pd.DataFrame) -> Any:
        """The largest weights of each head to the document, a row per pair."""
        named = summary.assign(pair=summary["query_id"] + "/" + summary["doc_id"])
        title = "Largest weight of a query piece to the document, mean over pieces"
        return charts.heatmap(named, "site", "pair", "query_doc", title=title)
