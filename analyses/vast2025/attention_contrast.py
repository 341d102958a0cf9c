"""Finds the heads that match, and the kind of their match (Vast et al. 2025, arXiv:2507.14604, section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechir.experiment import Finished
from mechir.measures import CONTRAST, stated
from mechir.methods.matching import MEASURES, SIDES, attention_by_pair, compare_grades
from mechir.methods.statistics import query_means
from mechir.options import option
from mechir.pair import Pair
from mechir.reranker import Reranker
from mechir.sites import is_head
from mechir.views import charts
from mechir.views.scatter import scatter

from ._grades import OfGrades

STRONGEST = 10


@dataclass(frozen=True)
class AttentionContrast(OfGrades):
    """Finds the heads that match, and the kind of their match (Vast et al. 2025, arXiv:2507.14604, section 4).

    Attention between query and document is compared between relevant documents, hard negatives and easy ones (-1),
    head by head, on all queries: the tests are corrected over the heads, and `low_all` to `high_all` hold for all of
    them at once, so the strongest are not flattered by being picked. Needs easy negatives: --easy-negatives 10. Without
    hard negatives (--hard and --weak one grade) heads are contrasted, and no kind of match is given.
    """

    examples = ("--limit-queries 10", "--of mass --delta 0.05 --limit-queries 10")
    figure = 4
    answers: ClassVar = {"matching": ("--easy-negatives", "10")}
    forwards = 1.5  # one, with every pattern in the open
    shown = ("direction", "site", "estimate", "p_corrected", "label", "queries")

    of: str = option("mean_max", "what is compared of a head's attention", among=tuple(MEASURES))
    delta: float = option(CONTRAST.least, "differences of attention, from 0 to 1, within this count as none", least=0)
    sep2: bool = option(False, "count the second [SEP] to the document")

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """A row per pair and head: see `attention_by_pair`."""
        return attention_by_pair(model, pairs, sep2=self.sep2)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """`compare_grades`, the largest relevant - weak first, with `rank`, and the attention mass of whole layers.

        `rank` is a head's place by relevant - weak, 1 the largest. Rows of layers (`attn3`) hold one of the 25
        directions each; `estimate` is the mean mass over queries and grades, with its interval.
        """
        table = compare_grades(run.rows, self.grades, measure=self.of, delta=self.delta)
        strength = table[table["contrast"] == "relevant - weak"].set_index(["direction", "site"])["estimate"]
        rank = strength.groupby("direction").rank(ascending=False, method="first").astype(int)
        table["rank"] = rank.reindex(pd.MultiIndex.from_frame(table[["direction", "site"]])).astype("Int64").array
        table = table.iloc[np.lexsort([table["rank"], table["direction"].map(SIDES.index)])]
        layers = run.rows[run.rows["site"].str.startswith("attn")]
        masses = query_means(layers, ["direction", "site"], "mass").assign(contrast="mass")
        return pd.concat([table, masses], ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The difference relevant - weak of every head, either way; corrected over the heads of a direction."""
        heads = run.summary[run.summary["contrast"] == "relevant - weak"]
        family = f"{heads['site'].nunique()} heads, " + heads["direction"]
        measures = [CONTRAST(direction, self.of) for direction in heads["direction"]]
        return stated(heads, measures, least=self.delta, family=family)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """Relevant - weak of the heads, the largest first, whichever way they look."""
        heads = summary[summary["contrast"] == "relevant - weak"].sort_values("estimate", ascending=False)
        return super().table(heads)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Relevant and hard documents against easy ones, a point per head; below, where each layer looks."""
        heads = summary[summary["direction"].isin(SIDES) & is_head(summary["site"])]
        wide = heads.pivot(index=["direction", "site", "label", "rank"], columns="contrast", values="estimate")
        wide = wide.reset_index().sort_values("direction", key=lambda column: column.map(SIDES.index))
        points = scatter(
            wide.assign(named=wide["rank"] <= STRONGEST),
            "hard - weak" if "hard - weak" in wide else "rank",
            "relevant - weak",
            "label",
            title="Largest attention to a token of the other text, difference between grades",
            subtitle=f"named: the {STRONGEST} largest differences relevant - weak",
            label="site",
            named="named",
            column="direction",
        )
        masses = summary[summary["site"].str.startswith("attn")].rename(columns={"estimate": "mass"})
        masses["layer"] = masses["site"].str.removeprefix("attn").astype(int)
        masses[["reader", "source"]] = masses["direction"].str.split("<-", expand=True)
        title = "Where each segment looks: mean attention mass by layer"
        lines = charts.lines(masses, "layer", "mass", "source", title=title, low="low", high="high", column="reader")
        return charts.stacked(points, lines)
