"""Do matching heads count? Attention mass against term frequency and length (Lu et al. 2025, arXiv:2502.04645, 4.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from mechir.contrasts import single_piece
from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import mean_row, means
from mechir.measures import BY_LENGTH, K1, LIKENESS, RISE, stated
from mechir.methods.checks import SELECTION, heads_or_search, terms_there
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
from mechir.methods.statistics import query_means
from mechir.options import OR_FOUND, option
from mechir.pair import Pair, first_of_each, split_queries
from mechir.reranker import Weights
from mechir.sites import Head, is_head
from mechir.views import charts
from mechir.views.scatter import scatter

STRONGEST = 6
"""Heads named in the chart for the rise of their mass, matching or not."""


@dataclass(frozen=True)
class SoftTf(Experiment):
    """Do matching heads count? Attention mass against term frequency and length (Lu et al. 2025, arXiv:2502.04645).

    A word of each query is appended 0 to 8 times to a document (TFC2), filler standing in for what is missing, and
    documents are repeated (LNC2). To the mass that each head's query term pays, tf / (tf + k1) is fitted, with one k1
    and an intercept and a size of its own for each text. Matching heads are found on one query in three, and the others
    are measured (section 4.2).
    """

    tier = Weights
    examples = ("--heads h1.1,h2.9 --limit-queries 10", "--words 30 --dry-run")
    figure = 7
    answers: ClassVar = {"rise": ()}
    forwards = 1.5 * (len(COUNTS) + len(TIMES) + 1)
    shown = ("site", "heads", "rise", "k1", "similarity", "queries")

    heads: tuple[Head, ...] = option((), f"matching heads {OR_FOUND}", in_order=True)
    top: int = option(10, "matching heads found by the run where none are named", least=1)
    filler: str = option("a", "a word of one word piece that stands in for what is not appended")
    words: int = option(40, "words of a document that are kept", least=1)
    per_query: int = option(4, "pairs of each query that are measured", least=1)
    seed: int = option(0, "the seed of the word of each query that is appended", least=0)

    def measured(self, material: Sequence[Pair]) -> list[Pair]:
        """`per_query` pairs of each query that matching heads are not searched on."""
        return first_of_each(material if self.heads else split_queries(material, SELECTION)[1], self.per_query)

    def check(self, inputs: Inputs) -> Experiment:
        """Heads by layer; refuses what does not fit."""
        model, pairs = inputs.model, inputs.material
        single_piece(model.tokenizer, self.filler)
        terms_there(pairs, self.seed)
        matching = heads_or_search(model, pairs, self.heads, matching=True)
        some = self.measured(pairs)
        if frequencies(model, some, filler=self.filler, words=self.words, seed=self.seed) < FREQUENCIES:
            raise MechirError(
                f"words={self.words} leaves no room for the words that are appended: write a smaller number."
            )
        return replace(self, heads=matching)

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """The matching heads, and the pairs left to measure: see `choose_matching`."""
        heads, rest = choose_matching(inputs.model, inputs.material, heads=self.heads, top=self.top)
        return replace(self, heads=heads), rest

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
        """`heads` ("matching" or "other"), and rows of `term_mass`; `similarity_correlation` as kind "similarity".

        Of each query `per_query` pairs are taken.
        """
        some = self.measured(pairs)
        mass = term_mass(model, some, filler=self.filler, words=self.words, seed=self.seed)
        likeness = similarity_correlation(model, some).assign(kind="similarity")
        rows = pd.concat([mass, likeness], ignore_index=True)
        matching = rows["site"].isin([str(head) for head in self.heads])
        rows.insert(0, "heads", np.where(matching, "matching", "other"))
        return rows

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One row per head, matching ones with the largest rise first, and the means of matching and of other heads.

        Heads: `heads` ("matching", "other"), `site`, `queries`; `base`, `size`, `k1`, `k1_low`, `k1_high`, `r2` of
        `saturation` of the mass on the document by term frequency, base and size each text's own; `rise` = mean mass at
        the highest count less that at the lowest of the same text, with `rise_low`, `rise_high` over queries;
        `by_length` = mean mass of the document three times over less once; `similarity` = mean r of attention and
        likeness, with its interval. Rows with the site "mean" are means over heads, rows "mass" the mean mass on the
        document by number of words appended (`count`).
        """
        lines = [_head(str(site), part) for site, part in run.rows.groupby("site", sort=False)]
        heads = pd.DataFrame(lines).sort_values(["heads", "rise"], ascending=[True, False])
        bounds = [name for name in heads.columns if name.endswith(("_low", "_high"))]
        means = heads.drop(columns=bounds).groupby("heads", sort=False).mean(numeric_only=True).reset_index()
        counted = run.rows[run.rows["kind"] == "tf"].assign(count=lambda tf: tf["dose"].astype(int))
        curve = query_means(counted, ["heads", "count"], "mass", "mass").assign(site="mass")
        return pd.concat([heads, means.assign(site="mean"), curve], ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The rise of every head's mass with tf (tested over all heads) and length, its k1, and its r with likeness.

        The document is changed here, not the head: none of these is causal.
        """
        heads = run.summary[is_head(run.summary["site"])]
        tf = run.rows[run.rows["kind"] == "tf"]
        rises = np.column_stack([_change(tf[tf["site"] == site], COUNTS) for site in heads["site"]])
        rise = stated(heads, RISE, "rise", p_corrected=means(rises).p_corrected, family=f"{len(heads)} heads")
        others = {"k1": K1, "by_length": BY_LENGTH, "similarity": LIKENESS}
        parts = [rise, *(stated(heads, measure, column) for column, measure in others.items())]
        return pd.concat(parts, ignore_index=True).dropna(subset="value")

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The heads, the largest rise first."""
        heads = summary[summary["site"].str.match(r"h\d")]
        return super().table(heads.sort_values("rise", ascending=False))

    def chart(self, summary: pd.DataFrame) -> Any:
        """Mass by number of occurrences appended, and k1 against the rise, a point per head."""
        curve = summary[summary["site"] == "mass"]
        points = summary[summary["site"].str.match(r"h\d")]
        named = (points["heads"] == "matching") | (points["rise"].rank(ascending=False) <= STRONGEST)
        title = "Attention of a query term to the document, by occurrences appended"
        lines = charts.lines(curve, "count", "mass", "heads", title=title, low="mass_low", high="mass_high")
        dots = scatter(
            points.assign(named=named),
            "similarity",
            "rise",
            "heads",
            title="What a head's attention follows",
            subtitle="likeness of embeddings (mean r) and rise of the mass with term frequency; "
            f"named: matching, and the {STRONGEST} largest rises",
            label="site",
            named="named",
        )
        return charts.stacked(lines, dots)


def _head(site: str, part: pd.DataFrame) -> dict[str, Any]:
    tf, length, likeness = (part[part["kind"] == kind] for kind in ("tf", "length", "similarity"))
    counts, mass = (tf[name].to_numpy(dtype=float) for name in ("tf", "mass"))
    fitted = saturation(counts, mass, tf["query_id"].to_numpy(), text_of(tf))
    rise, longer = _change(tf, COUNTS), _change(length, TIMES)
    similar = likeness.groupby("query_id")["r"].mean().dropna().to_numpy()
    line = {"heads": part["heads"].iloc[0], "site": site, "queries": len(rise)} | fitted
    return line | mean_row(rise, "rise") | mean_row(longer, "by_length") | mean_row(similar, "similarity")


def _change(part: pd.DataFrame, doses: Sequence[int]) -> np.ndarray:
    """Query by query the mean mass at the last dose less that at the first."""
    first, last = (part[part["dose"] == dose].groupby("query_id")["mass"].mean() for dose in (doses[0], doses[-1]))
    return (last - first).to_numpy()
