"""Does the IDF direction act? A query term is scaled along it, dose by dose (Lu et al. 2025, arXiv:2502.04645, 5.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy import stats

from mechir.contrasts import Contrast, align, single_piece
from mechir.diagnostics import Tfc1
from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import mean_row, means
from mechir.measures import ATTENTION_UP_IDF, SCORE_UP_IDF, stated
from mechir.methods.checks import SELECTION, embedding_vector, heads_or_search, terms_there
from mechir.methods.dose import dose_response, doses, shifts
from mechir.methods.lexical import find_idf, refuse_idf, singular_direction
from mechir.methods.paths import scoring_heads
from mechir.options import OR_FOUND, option
from mechir.pair import Pair, first_of_each, split_queries
from mechir.reranker import Weights
from mechir.sites import Head
from mechir.views import charts

SOME = 8
"""Pairs of each query that the heads are found on."""
FACTORS = (1.0, 3.0, 5.0, 8.0, 10.0, 15.0, 25.0)
"""The paper's middle grid; its others: 1,5,10,15,20,30; 80,...,200; 180,...,500."""
MEASURED = ("score", "attention")


@dataclass(frozen=True)
class IdfEdit(Experiment):
    """Does the IDF direction act? A query term is scaled along it, by dose (Lu et al. 2025, arXiv:2502.04645, 5.2).

    The word pieces of one word of each query are scaled along the singular vector of W_E that goes with IDF, up and
    down; beside it the whole embedding is scaled, and random directions. Findings come from a smaller edit of ours: a
    step up the direction less a step down, beside steps along random differences between words. Scoring heads are found
    by path patching on one query in three, and the others are measured.
    """

    tier = Weights
    examples = ("--heads h4.5 --limit-queries 5", "--factors 1,5 --draws 5 --dry-run")
    figure = 9
    answers: ClassVar = {"idf-acts": ()}

    heads: tuple[Head, ...] = option((), f"scoring heads {OR_FOUND}", in_order=True)
    top: int = option(4, "scoring heads found by the run where none are named", least=1)
    vector: int = option(-1, "singular vector of W_E, 0 the first; -1 for the one that goes with IDF")
    sign: int = option(0, "1 or -1, which way the vector is taken; 0 for up with IDF")
    idf: str = option("", "a table of lines word<TAB>idf; by default IDF is counted in the collection")
    factors: tuple[float, ...] = option(
        FACTORS, "doses with commas, times the coordinate along IDF; none for steps alone"
    )
    draws: int = option(20, "random directions", least=1)
    per_query: int = option(4, "pairs of each query that are measured", least=1)
    filler: str = option("a", "a word of one word piece, for the contrasts that find the heads")
    seed: int = option(0, "the seed of the word of each query that is edited", least=0)
    same_queries: bool = option(False, "say in the findings that the heads were chosen on queries that are measured")

    def cost(self, model: Weights) -> float:
        """Full forwards per pair, two for each edit, as attention is read; the search for scoring heads left out."""
        return 2.0 * (1 + len(self.factors) * (4 + self.draws) + 2 * (1 + self.draws))

    def measured(self, material: Sequence[Pair]) -> list[Pair]:
        """`per_query` pairs of each query that scoring heads are not searched on."""
        return first_of_each(material if self.heads else split_queries(material, SELECTION)[1], self.per_query)

    def check(self, inputs: Inputs) -> Experiment:
        """Heads by layer; refuses what does not fit."""
        model, pairs = inputs.model, inputs.material
        embedding_vector(model, self.vector, self.sign)
        refuse_idf(model, inputs.source, self.idf)
        single_piece(model.tokenizer, self.filler)
        terms_there(pairs, self.seed)
        scoring = heads_or_search(model, pairs, self.heads)
        if not scoring:
            _contrasts(model, split_queries(pairs, SELECTION)[0], self.filler)
        return replace(self, heads=scoring)

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """The queries left to measure; scoring heads found on the others, and the singular vector on the collection."""
        model = inputs.model
        along = find_idf(model, inputs.source, idf=self.idf, vector=self.vector, sign=self.sign)
        ready = replace(self, vector=along["vector"], sign=along["sign"])
        if self.heads:
            return ready, inputs.material
        chosen, rest = split_queries(inputs.material, SELECTION)
        contrasts = _contrasts(model, chosen, self.filler)
        return replace(ready, heads=scoring_heads(model, contrasts, self.top)), rest

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The rows of `dose_response` for `doses` and `shifts`, on the first `per_query` pairs of each query."""
        direction = singular_direction(model, self.vector, self.sign)
        some = self.measured(pairs)
        edits = doses(model, direction, self.factors, self.draws) | shifts(model, direction, self.draws)
        return dose_response(model, some, edits, self.heads, seed=self.seed)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One row per kind of edit, factor and `measure`: "score" (logits), "attention" (of scoring heads to the term).

        `along` "direction", "row", "random": `estimate` is the mean change over queries with `low` and `high`; of
        random directions the mean over them, with the smallest and the largest. "shift" and "shift random", at factor
        1: half of what one step up does less one step down (`shifts`), on documents that hold the word, by queries; the
        sign speaks for IDF where it is positive. `queries` is how many each has.
        """
        scaled = run.rows[~run.rows["along"].str.startswith("shift")]
        keys, lines = ["along", "factor", "measure", "queries"], []
        for measure in MEASURED:
            means = scaled.groupby(["along", "factor", "query_id"], sort=False)[f"{measure}_change"].mean()
            changes = dict(iter(means.groupby(["along", "factor"], sort=False)))
            changes |= {(along, 1.0): values for along, values in _shifted(run.rows, measure).items()}
            for (along, factor), values in changes.items():
                line = dict(zip(keys, (along, factor, measure, len(values)), strict=True))
                lines.append(line | mean_row(values.to_numpy()))
        table = pd.DataFrame(lines)
        drawn = table["along"].str.contains("random")
        kind = table["along"].str.replace(r" \d+$", "", regex=True)
        over = table.assign(along=kind)[drawn].groupby(keys, sort=False)["estimate"]
        random = over.agg(estimate="mean", low="min", high="max").reset_index()
        return pd.concat([table[~drawn], random], ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """Half of what a step up the direction does less one down, corrected for both measures.

        Of documents that hold the word: there a rarer word scores higher in BM25, so positive speaks for it. `least`
        is the effect that a random direction reaches in one of twenty: the 97.5 % point of t times their root mean
        square, over queries' means.
        """
        shifted = [_shifted(run.rows, measure) for measure in MEASURED]
        if not len(shifted[0]):
            return stated(pd.DataFrame(columns=["site", "estimate"]), SCORE_UP_IDF)
        random = [wide.drop(columns="shift").mean() for wide in shifted]
        least = [stats.t.ppf(0.975, len(drawn)) * float((drawn**2).mean()) ** 0.5 for drawn in random]
        pairs = run.rows.loc[run.rows["matched"], ["query_id", "doc_id"]].drop_duplicates()
        corrected = means(np.column_stack([wide["shift"] for wide in shifted])).p_corrected
        table = pd.DataFrame([mean_row(wide["shift"].to_numpy()) for wide in shifted])
        table = table.assign(queries=len(shifted[0]), pairs=len(pairs), p_corrected=corrected)
        more: dict[str, Any] = {"least": least, "site": f"embed.u{self.vector}", "family": "score and attention"}
        label = "one sd, heads chosen on these queries" if self.same_queries else "one sd"
        return stated(table, (SCORE_UP_IDF, ATTENTION_UP_IDF), label=label, **more)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Change of score and attention by dose; without doses, that of a step."""
        summary = summary.sort_values(["along", "factor"])
        scaled = summary[~summary["along"].str.startswith("shift")]
        shown = scaled if len(scaled) else summary
        score, attention = (shown[shown["measure"] == measure] for measure in MEASURED)
        return charts.stacked(
            _panel(score, "logits", "A query term moved along the IDF direction: change of the score"),
            _panel(attention, "weight", "Change of the scoring heads' attention to the term"),
        )


def _contrasts(model: Weights, pairs: Sequence[Pair], filler: str) -> list[Contrast]:
    """The contrasts that scoring heads are found on."""
    some, limit = first_of_each(pairs, SOME), model.max_length
    return [align(pair, Tfc1(), model.writer, filler, max_length=limit) for pair in some]


def _shifted(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Half of one step up less one down, a row per query whose documents hold the word, a column per direction."""
    moved = rows[rows["along"].str.startswith("shift") & rows["matched"]]
    half = moved[f"{measure}_change"] * moved["factor"] / 2
    by_pair = half.groupby([moved[name] for name in ("query_id", "doc_id", "along")]).sum()
    return by_pair.groupby(["query_id", "along"]).mean().unstack("along")


def _panel(rows: pd.DataFrame, unit: str, title: str) -> Any:
    """A line for each direction over the doses; without doses, a bar for each."""
    shown = rows.rename(columns={"estimate": unit})
    how: dict[str, Any] = {"title": title, "low": "low", "high": "high"}
    if shown["along"].str.startswith("shift").any():
        how |= {"subtitle": "one step up less one down, halved; shift random: the range of the draws"}
        return charts.bars(shown, unit, "along", **how)
    how |= {"subtitle": "negative factors point down the direction; bands: 95 % over queries, random: range of draws"}
    return charts.lines(shown, "factor", unit, "along", **how)
