"""Which heads match, and what kind of match it is: Vast et al. 2025 (arXiv:2507.14604, section 4; CORIA 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import mean_interval
from mechir.measures import CONTRAST, stated
from mechir.methods.checks import contrasted, grades_of, grades_there, relevant_against_weak
from mechir.methods.matching import MEASURES, SIDES, attention_by_pair, compare_grades
from mechir.options import option
from mechir.pairs import Pair
from mechir.reranker import Weights
from mechir.sites import is_head
from mechir.views import charts

STRONGEST = 10


@dataclass(frozen=True)
class AttentionContrast(Experiment):
    """Which heads match, and what kind of match it is: Vast et al. 2025 (arXiv:2507.14604, section 4; CORIA 2025).

    Attention between query and document is compared between relevant documents, hard negatives and easy ones (-1),
    head by head, on all queries: the tests are corrected over the heads, and `low_all` to `high_all` hold for all of
    them at once, so the strongest are not flattered by being picked. Needs easy negatives: --easy-negatives 10. Without
    hard negatives (--hard and --weak one grade) heads are contrasted, and no kind of match is told.
    """

    figure = 4
    answers: ClassVar = {"matching": ("--easy-negatives", "10")}
    forwards = 1.5  # one, with every pattern in the open

    relevant: int = option(3, "the grade of relevant documents")
    hard: int = option(0, "the grade of hard negatives")
    weak: int = option(-1, "the grade of easy negatives, -1 for unjudged documents")
    of: str = option("mean_max", "what is compared of a head's attention", among=tuple(MEASURES))
    delta: float = option(CONTRAST.least, "differences of attention within this count as none", least=0)
    sep2: bool = option(False, "count the second [SEP] to the document")

    @property
    def grades(self) -> dict[str, int]:
        """The grades that are contrasted."""
        return {"relevant": self.relevant, "hard": self.hard, "weak": self.weak}

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses what does not fit: two queries need pairs of each two grades."""
        relevant_against_weak(self.relevant, self.weak)
        grades_there(inputs.material, **self.grades)
        queries = list(grades_of(inputs.material).values())
        contrasted(queries, self.grades, f"of {len(queries)}")
        return self

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
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
        sides = table["direction"].map(SIDES.index)
        table = table.iloc[np.lexsort([table["rank"], sides])]
        return pd.concat([table, _layers(run.rows)], ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The difference relevant - weak of every head, either way; corrected over the heads of a direction."""
        kept = run.summary[run.summary["contrast"] == "relevant - weak"]
        family = f"{kept['site'].nunique()} heads, " + kept["direction"]
        measures = [CONTRAST(direction, self.of) for direction in kept["direction"]]
        return stated(kept, measures, least=self.delta, family=family)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Relevant and hard documents against easy ones, a point per head; below, where each layer looks."""
        heads = summary[summary["direction"].isin(SIDES) & is_head(summary["site"])]
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


def _layers(rows: pd.DataFrame) -> pd.DataFrame:
    layers = rows[rows["site"].str.startswith("attn")]
    per_query = layers.groupby(["direction", "site", "query_id"], sort=False)["mass"].mean()
    lines = []
    for (direction, site), values in per_query.groupby(["direction", "site"], sort=False):
        low, high = mean_interval(values.to_numpy())
        line = {"direction": direction, "site": site, "contrast": "mass", "queries": len(values)}
        lines.append(line | {"estimate": values.mean(), "low": low, "high": high})
    return pd.DataFrame(lines)
