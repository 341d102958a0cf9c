"""Does the IDF direction act? A query term is scaled along it, dose by dose (Lu et al. 2025, arXiv:2502.04645, 5.2).

The word pieces of one word of each query are scaled along the singular vector of W_E that goes with IDF, up and down;
beside it the whole embedding is scaled, and random directions. What the registry is told comes from a smaller edit of
ours: a step up the direction less a step down, beside steps along random differences between words. Scoring heads are
found by path patching on one query in three, and the others are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mechir.collection import Collection
from mechir.contrasts import Contrast, align, single_piece
from mechir.diagnostics import Tfc1
from mechir.inference import mean_interval, means
from mechir.methods.checks import (
    SELECTION,
    at_least,
    embedding_vector,
    heads_or_search,
    number_list,
    terms_there,
    written,
)
from mechir.methods.dose import dose_response, doses, shifts
from mechir.methods.lexical import find_idf, refuse_idf, singular_direction
from mechir.methods.patching import all_heads, largest
from mechir.methods.paths import path_patch
from mechir.pairs import Pair, first_of_each, split_queries
from mechir.views import charts

SOME = 8
"""Pairs of each of them that the heads are found on."""
FACTORS = "1,3,5,8,10,15,25"
"""The paper's middle grid; its others: 1,5,10,15,20,30; 80,...,200; 180,...,500."""


def cost(model: Any, *, factors: str = FACTORS, draws: int = 20, **options: Any) -> float:
    """Full forwards per pair that is taken."""
    return 1 + len(_factors(factors)) * (4 + draws) + 2 * (1 + draws)


def _factors(text: str) -> list[float]:
    return number_list(text, "factors") if text else []


def check(
    model: Any,
    pairs: Sequence[Pair],
    collection: Collection,
    *,
    heads: str,
    top: int,
    vector: int,
    sign: int,
    idf: str,
    factors: str,
    draws: int,
    per_query: int,
    filler: str,
    seed: int,
    same_queries: bool,
) -> dict[str, Any]:
    """Heads by layer and factors rising; refuses what does not fit."""
    at_least(1, draws=draws, per_query=per_query)
    at_least(0, seed=seed)
    embedding_vector(model, vector, sign)
    refuse_idf(model, collection, idf)
    single_piece(model.tokenizer, filler)
    terms_there(pairs, seed)
    scoring = heads_or_search(model, pairs, heads, top=top)
    if not scoring:
        _contrasts(model, split_queries(pairs, SELECTION)[0], filler)
    return {"heads": scoring, "factors": written(_factors(factors))}


def _contrasts(model: Any, pairs: Sequence[Pair], filler: str) -> list[Contrast]:
    """What scoring heads are found on."""
    some, limit = first_of_each(pairs, SOME), model.max_length
    return [align(pair, Tfc1(), model.tokenizer, filler, max_length=limit) for pair in some]


def prepare(
    model: Any,
    pairs: list[Pair],
    collection: Collection,
    *,
    heads: str,
    top: int,
    vector: int,
    sign: int,
    idf: str,
    filler: str,
    **options: Any,
) -> tuple[list[Pair], dict[str, Any]]:
    """The queries left to measure; scoring heads found on the others, and the singular vector on the collection."""
    found: dict[str, Any] = dict(find_idf(model, collection, idf=idf, vector=vector, sign=sign))
    if heads:
        return pairs, found
    chosen, rest = split_queries(pairs, SELECTION)
    contrasts = _contrasts(model, chosen, filler)
    scoring = largest(path_patch(model, contrasts, all_heads(model)), "sender", top)
    return rest, found | {"heads": ",".join(scoring)}


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    heads: str = "",
    top: int = 4,
    vector: int = -1,
    sign: int = 0,
    idf: str = "",
    factors: str = FACTORS,
    draws: int = 20,
    per_query: int = 4,
    filler: str = "a",
    seed: int = 0,
    same_queries: bool = False,
) -> pd.DataFrame:
    """The rows of `dose_response` for `doses` and `shifts`, on the first `per_query` pairs of each query.

    `heads`, `vector` (of W_E, 0 the first; -1) and `sign` (0) are found by the run where none are given; `idf` is a
    table of lines word<TAB>idf, `filler` a word of one word piece for the contrasts that find the heads. Without
    `factors` ("") only steps are taken. `same_queries` says in the findings that the heads were chosen on queries that
    are measured.
    """
    direction = singular_direction(model, vector, sign)
    some = first_of_each(pairs, per_query)
    edits = doses(model, direction, _factors(factors), draws) | shifts(model, direction, draws)
    return dose_response(model, some, edits, heads.split(","), seed=seed)


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One row per kind of edit, factor and `measure`: "score" (logits), "attention" (of scoring heads to the term).

    `along` "direction", "row", "random": `estimate` is the mean change over queries with `low` and `high`; of random
    directions the mean over them, with the smallest and the largest. "shift" and "shift random", at factor 1: half of
    what one step up does less one step down (`shifts`), on documents that hold the word, by queries; the sign speaks
    for IDF where it is positive. `queries` is how many each has.
    """
    scaled = rows[~rows["along"].str.startswith("shift")]
    lines = []
    for what in ("score", "attention"):
        means = scaled.groupby(["along", "factor", "query_id"], sort=False)[f"{what}_change"].mean()
        told = {key: values for key, values in means.groupby(["along", "factor"], sort=False)}
        told |= {(along, 1.0): values for along, values in _shifted(rows, what).items()}
        for (along, factor), values in told.items():
            low, high = mean_interval(values.to_numpy())
            line = {"along": along, "factor": factor, "measure": what, "queries": len(values)}
            lines.append(line | {"estimate": values.mean(), "low": low, "high": high})
    found = pd.DataFrame(lines)
    drawn = found["along"].str.contains("random")
    kind = found["along"].str.replace(r" \d+$", "", regex=True)
    keys = ["along", "factor", "measure", "queries"]
    over = found.assign(along=kind)[drawn].groupby(keys, sort=False)["estimate"]
    random = over.agg(estimate="mean", low="min", high="max").reset_index()
    return pd.concat([found[~drawn], random], ignore_index=True)


def _shifted(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    """Half of one step up less one down, a row per query whose documents hold the word, a column per direction."""
    moved = rows[rows["along"].str.startswith("shift") & rows["matched"]]
    half = moved[f"{what}_change"] * moved["factor"] / 2
    by_pair = half.groupby([moved[name] for name in ("query_id", "doc_id", "along")]).sum()
    return by_pair.groupby(["query_id", "along"]).mean().unstack("along")


def findings(rows: pd.DataFrame, *, vector: int = -1, same_queries: bool = False) -> pd.DataFrame:
    """Half of what a step up the direction does less one down, corrected for both measures.

    Of documents that hold the word: there a rarer word scores higher in BM25, so positive speaks for it. What counts is
    as much as a random direction reaches in one of twenty: `least` is the 97.5 % point of t times their root mean
    square, over queries' means.
    """
    found, effects = [], []
    for what, unit in (("score", "logits"), ("attention", "attention")):
        wide = _shifted(rows, what)
        if not len(wide):
            return pd.DataFrame(columns=["site", "measure", "value", "unit"])
        random, (low, high) = wide.drop(columns="shift").mean(), mean_interval(wide["shift"].to_numpy())
        told = {"measure": f"{what}, a matched term up IDF", "unit": unit, "value": wide["shift"].mean()}
        reached = stats.t.ppf(0.975, len(random)) * float((random**2).mean()) ** 0.5
        found.append(told | {"low": low, "high": high, "least": reached, "n_queries": len(wide)})
        effects.append(wide["shift"].to_numpy())
    pairs = rows.loc[rows["matched"], ["query_id", "doc_id"]].drop_duplicates()
    how = {"site": f"embed.u{vector}", "role": "idf", "term": "idf", "causal": True, "family": "score and attention"}
    tests = means(np.column_stack(effects)).p_corrected
    label = "one sd, heads chosen on these queries" if same_queries else "one sd"
    return pd.DataFrame(found).assign(**how, label=label, n_pairs=len(pairs), p_corrected=tests)


def chart(summary: pd.DataFrame) -> Any:
    """Change of score and attention by dose; without doses, that of a step."""
    summary = summary.sort_values(["along", "factor"])
    scaled = summary[~summary["along"].str.startswith("shift")]
    shown, panel = (scaled, _by_dose) if len(scaled) else (summary, _of_step)
    return charts.stacked(
        *(
            panel(shown[shown["measure"] == what].rename(columns={"estimate": unit}), unit, title)
            for what, unit, title in (
                ("score", "logits", "A query term moved along the IDF direction: change of the score"),
                ("attention", "weight", "Change of the scoring heads' attention to the term"),
            )
        )
    )


def _by_dose(own: pd.DataFrame, unit: str, title: str) -> Any:
    told = "negative factors point down the direction; bands: 95 % over queries, random: range of draws"
    return charts.lines(own, "factor", unit, "along", title=title, subtitle=told, low="low", high="high")


def _of_step(own: pd.DataFrame, unit: str, title: str) -> Any:
    told = "one step up less one down, halved; shift random: the range of the draws"
    return charts.bars(own, unit, "along", title=title, subtitle=told, low="low", high="high")
