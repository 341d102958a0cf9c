"""Sets of heads cut together: what the ranking loses, and whether the model still counts, beside random sets.

Each set is cut by zero and by the mean of its segment, beside random sets with as many heads of the same layers and
none of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mechir.activations import BySegment, means
from mechir.contrasts import Contrast, align
from mechir.diagnostics import Tfc1
from mechir.errors import MechirError
from mechir.inference import means as tested
from mechir.interventions import Ablate
from mechir.methods.evaluation import NDCG, per_query, ranking_measures
from mechir.methods.pruning import sizes
from mechir.methods.schemes import random_like
from mechir.pair import Pair
from mechir.reranker import Reranker, needs
from mechir.sweeps import sweep

INTACT = "original"
WAYS = ("zero", "mean")
"""The value that takes the place of a head's z."""
TERM = "effect of a term, logits"
"""The measure of each set beside those of the ranking: the effect of a query term more on the score."""


def called(measure: str) -> str:
    """The name of a measure in findings."""
    return "effect of a term" if measure == TERM else measure


def head_means(model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
    """The mean z of every head by segment, as a frame that a run stores: see `BySegment.frame`."""
    return means(model, pairs, hooks=("attn.hook_z",)).frame()


def cut_sets(model: Reranker, named: Mapping[str, Sequence[str]], draws: int, seed: int) -> pd.DataFrame:
    """The named sets of heads and their random sets: `set`, `draw` (-1 for the set itself), `sites`, `note`.

    Sets without a head, and a set that has all heads of another, are left out.
    """
    rows, known = [], set[frozenset[str]]()
    for name, heads in named.items():
        if not heads or frozenset(heads) in known:
            continue
        known.add(frozenset(heads))
        random, notes = random_like(heads, sizes(model), draws, seed=seed)
        note = "; ".join(notes)
        rows += [(name, draw, ",".join(sites), note) for draw, sites in enumerate([list(heads), *random], -1)]
    return pd.DataFrame(rows, columns=["set", "draw", "sites", "note"]).astype({"set": str, "sites": str, "note": str})


def cut_scores(
    model: Reranker, pairs: Sequence[Pair], sets: pd.DataFrame, stored: pd.DataFrame, filler: str
) -> pd.DataFrame:
    """Scores of every pair, and of one more occurrence of a query term, intact and under every cut.

    `pairs` are of whole queries, `sets` of `cut_sets`, `stored` of `head_means`; `filler` is a word of one word piece,
    for the contrasts of term frequency.

    Returns:
        `set`, `draw`, `way`, `text` ("pair", "base", "donor"), `query_id`, `doc_id`, `score`; the intact model's rows
        have the set "original". Contrasts are of each query's best and worst judged document, those that cannot be
        aligned left out.
    """
    needs(model, "cut_scores")
    filling = {"zero": None, "mean": BySegment.of_frame(stored)}
    do: dict[str, Any] = {f"{INTACT}|-1|": ()}
    for heads in sets.itertuples(index=False):
        for way, value in filling.items():
            do[f"{heads.set}|{heads.draw}|{way}"] = Ablate(heads.sites.split(","), value)
    contrasts = term_contrasts(model, pairs, filler)
    texts = {"pair": list(pairs), "base": [c.base for c in contrasts], "donor": [c.donor for c in contrasts]}
    columns = ["name", "text", "query_id", "doc_id", "score"]
    parts = [sweep(model, some, do, progress=False).assign(text=text)[columns] for text, some in texts.items() if some]
    rows = pd.concat(parts, ignore_index=True)
    names = rows["name"].str.split("|", expand=True).set_axis(["set", "draw", "way"], axis=1).astype({"draw": int})
    return pd.concat([names, rows.drop(columns="name")], axis=1)


def term_contrasts(model: Reranker, pairs: Sequence[Pair], filler: str) -> list[Contrast]:
    """One more occurrence of a query term in each query's best and worst judged document, those that can be aligned."""
    by_query: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query_id, []).append(pair)
    contrasts = []
    for group in by_query.values():
        judged = sorted(group, key=lambda pair: pair.grade or 0)
        for pair in dict.fromkeys([judged[-1], judged[0]]):
            try:
                contrasts.append(align(pair, Tfc1(), model.writer, filler, max_length=model.max_length))
            except MechirError:
                continue  # a document as long as the model reads has no room for another word
    return contrasts


def cut_table(
    rows: pd.DataFrame, judged: pd.DataFrame, sets: pd.DataFrame, evaluate: Sequence[str] = (NDCG,)
) -> pd.DataFrame:
    """The effect of cutting every set of heads, beside that of its random sets, over queries.

    `evaluate`: measures of ir_measures.

    Returns:
        A row for each set, `way` and `measure` (those of `evaluate`, and `TERM`): `site`, the heads; `heads`, how many;
        `intact`, the value of the intact model; `value`, that without them; `change` with its 95 % interval `low`,
        `high` and `p`; `random`, the mean change of the random sets, `random_low` and `random_high`, the extremes;
        `excess` = change - random with `excess_low`, `excess_high`, `p_excess`, and `p_corrected`: over all rows of the
        measure, times the number of measures; `p_draws` = (1 + random sets that change it as far down) / (1 + sets);
        `queries`; `note`, where a layer has too few other heads for random sets apart from the set.

    It misleads where other heads make up for those cut: what is cut and missed matters, what is not missed may too.
    """
    parts = []
    for measure in (*evaluate, TERM):
        values = _values(rows, judged, measure)
        if len(values) and len(sets):
            parts.append(_of_measure(values, sets[sets["draw"] < 0]).assign(measure=measure))
    if not parts:
        return pd.DataFrame()
    table = pd.concat(parts, ignore_index=True)
    table["p_corrected"] = (len(parts) * table["p_corrected"]).clip(upper=1)
    order = {name: k for k, name in enumerate([*table["set"].unique(), *WAYS])}
    return table.sort_values(["set", "way"], key=lambda names: names.map(order), kind="stable", ignore_index=True)


def _of_measure(values: pd.DataFrame, sets: pd.DataFrame) -> pd.DataFrame:
    """The rows of one measure, tested together: a row per set and way."""
    intact, lines, changes, beyond = values[INTACT, -1, ""], [], [], []
    for heads, way in itertools.product(sets.itertuples(index=False), WAYS):
        drawn = values[heads.set].xs(way, axis=1, level="way").sub(intact, axis=0)
        change = drawn.pop(-1)
        random = drawn.mean()
        line = {"set": heads.set, "way": way, "site": heads.sites, "heads": heads.sites.count(",") + 1}
        line |= {"note": heads.note, "intact": intact.mean(), "value": (intact + change).mean(), "queries": len(intact)}
        line |= {"random": random.mean(), "random_low": random.min(), "random_high": random.max()}
        lines.append(line | {"p_draws": (1 + (random <= change.mean() + 1e-12).sum()) / (1 + len(random))})
        changes.append(change)
        beyond.append(change - drawn.mean(axis=1))
    test, excess = (tested(pd.concat(columns, axis=1).to_numpy()) for columns in (changes, beyond))
    numbers = {"change": test.estimate, "low": test.low, "high": test.high, "p": test.p}
    numbers |= {"excess": excess.estimate, "excess_low": excess.low, "excess_high": excess.high}
    return pd.DataFrame(lines).assign(**numbers, p_excess=excess.p, p_corrected=excess.p_corrected)


def _values(rows: pd.DataFrame, judged: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The measure of every query, [query, (set, draw, way)]."""
    keys = ["set", "draw", "way"]
    if measure != TERM:
        groups, (asked,) = rows[rows["text"] == "pair"].groupby(keys, sort=False), ranking_measures([measure])
        values = {key: per_query(scores, judged, asked) for key, scores in groups}
        return pd.DataFrame(values).rename_axis(keys, axis=1)
    contrasts = rows[rows["text"] != "pair"]
    wide = contrasts.pivot(index=[*keys, "query_id", "doc_id"], columns="text", values="score")
    if wide.empty:
        return wide
    return (wide["donor"] - wide["base"]).groupby(level=[*keys, "query_id"]).mean().unstack(keys)
