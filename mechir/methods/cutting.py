"""Sets of heads cut together: what the ranking loses, and whether the model still counts, beside random sets.

Each set is cut by zero and by the mean of its segment, beside random sets with as many heads of the same layers and
none of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mechir.activations import BySegment, means
from mechir.contrasts import align
from mechir.diagnostics import Tfc1
from mechir.errors import MechirError
from mechir.inference import means as tested
from mechir.interventions import Ablate
from mechir.methods import ranking
from mechir.methods.pruning import sizes
from mechir.methods.schemes import random_like
from mechir.pairs import Pair
from mechir.reranker import Reranker, Restarts, needs
from mechir.sweeps import sweep

INTACT = "original"
WAYS = ("zero", "mean")
"""What stands in the place of a head's z."""
NDCG, TERM = "nDCG@10", "effect of a term, logits"
"""What is measured of each set: the ranking, and what one more occurrence of a query term does to the score."""
METRICS = {NDCG: "nDCG@10", TERM: "effect of a term"}
"""How findings call them."""
SETS = ["set", "draw", "sites", "note"]


def head_means(model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
    """The mean z of every head by segment, as a frame that a run stores: see `BySegment.frame`."""
    return means(model, pairs, hooks=("attn.hook_z",)).frame()


def cut_sets(model: Reranker, named: Mapping[str, Sequence[str]], draws: int, seed: int) -> pd.DataFrame:
    """Named sets of heads and their random sets: `set`, `draw` (-1 for the set itself), `sites`, `note`.

    Sets without a head, and a set that has all heads of another, are left out.
    """
    rows, known = [], set[frozenset[str]]()
    for name, heads in named.items():
        if not heads or frozenset(heads) in known:
            continue
        known.add(frozenset(heads))
        random, notes = random_like(heads, sizes(model), draws, seed=seed)
        told = "; ".join(notes)
        rows += [(name, draw, ",".join(one), told) for draw, one in enumerate([list(heads), *random], -1)]
    return pd.DataFrame(rows, columns=SETS).astype({"set": str, "sites": str, "note": str})


def cut_scores(
    model: Restarts, pairs: Sequence[Pair], sets: pd.DataFrame, stored: pd.DataFrame, filler: str
) -> pd.DataFrame:
    """Scores of every pair, and of one more occurrence of a query term, intact and under every cut.

    Args:
        model: a `HookedEncoder`.
        pairs: whole queries.
        sets: of `cut_sets`.
        stored: of `head_means`.
        filler: a word of one word piece, for the contrasts of term frequency.

    Returns:
        `set`, `draw`, `way`, `text` ("pair", "base", "donor"), `query_id`, `doc_id`, `score`; the intact model's rows
        have the set "original". Contrasts are of each query's best and worst judged document, those that cannot be
        aligned left out.
    """
    needs(model, "cut_scores", Restarts)
    filling = {"zero": None, "mean": BySegment.of_frame(stored)}
    do: dict[str, Any] = {f"{INTACT}|-1|": ()}
    for one in sets.itertuples(index=False):
        for way, with_ in filling.items():
            do[f"{one.set}|{one.draw}|{way}"] = Ablate(one.sites.split(","), with_)
    contrasts = list(_contrasts(model, pairs, filler))
    texts = {"pair": list(pairs), "base": [one.base for one in contrasts], "donor": [one.donor for one in contrasts]}
    parts = [
        sweep(model, some, do, progress=False).assign(text=text)[["name", "text", "query_id", "doc_id", "score"]]
        for text, some in texts.items()
        if some
    ]
    rows = pd.concat(parts, ignore_index=True)
    names = rows["name"].str.split("|", expand=True).set_axis(["set", "draw", "way"], axis=1).astype({"draw": int})
    return pd.concat([names, rows.drop(columns="name")], axis=1)


def _contrasts(model: Reranker, pairs: Sequence[Pair], filler: str) -> Iterator[Any]:
    by_query: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query_id, []).append(pair)
    for own in by_query.values():
        judged = sorted(own, key=lambda pair: pair.grade or 0)
        for pair in dict.fromkeys([judged[-1], judged[0]]):
            try:
                yield align(pair, Tfc1(), model.tokenizer, filler, max_length=model.max_length)
            except MechirError:
                continue  # a document as long as the model reads has no room for another word


def cut_table(rows: pd.DataFrame, judged: pd.DataFrame, sets: pd.DataFrame) -> pd.DataFrame:
    """What every set of heads does, beside its random sets, over queries.

    Returns:
        A row for each set, `way` and `measure` (`NDCG`, `TERM`): `site`, the heads; `heads`, how many; `intact`, the
        value of the intact model; `value`, that without them; `change` with its 95 % interval `low`, `high` and `p`;
        `random`, the mean change of the random sets, `random_low` and `random_high`, the extremes; `excess` = change -
        random with `excess_low`, `excess_high`, `p_excess`, and `p_corrected`: over all rows of the measure, times the
        two measures; `p_draws` = (1 + random sets that change it as far down) / (1 + sets); `queries`; `note`, where a
        layer has too few other heads for random sets apart from the set.

    It misleads where other heads make up for those cut: what is cut and missed matters, what is not missed may too.
    """
    grades = judged[["query_id", "doc_id", "grade"]]
    parts = []
    for measure in (NDCG, TERM):
        values = _values(rows, grades, measure)
        if len(values) and len(sets):
            parts.append(_of_measure(values, sets[sets["draw"] < 0]).assign(measure=measure))
    if not parts:
        return pd.DataFrame()
    found = pd.concat(parts, ignore_index=True)
    found["p_corrected"] = (len(parts) * found["p_corrected"]).clip(upper=1)
    place = {name: k for k, name in enumerate(found["set"].unique())}
    order = found.assign(set=found["set"].map(place), way=found["way"].map(WAYS.index)).sort_values(["set", "way"])
    return found.loc[order.index].reset_index(drop=True)


def _of_measure(values: pd.DataFrame, sets: pd.DataFrame) -> pd.DataFrame:
    """The rows of one measure, tested together: a row per set and way."""
    intact, lines, changes, beyond = values[INTACT, -1, ""], [], [], []
    for one, way in itertools.product(sets.itertuples(index=False), WAYS):
        every = values[one.set].xs(way, axis=1, level="way").sub(intact, axis=0)
        random = every.drop(columns=-1)
        line = {"set": one.set, "way": way, "site": one.sites, "heads": len(one.sites.split(",")), "note": one.note}
        line |= {"intact": intact.mean(), "value": (intact + every[-1]).mean(), "queries": len(intact)}
        lines.append(line | _of_random(every[-1].mean(), random.mean()))
        changes.append(every[-1])
        beyond.append(every[-1] - random.mean(axis=1))
    own, excess = (tested(pd.concat(columns, axis=1).to_numpy()) for columns in (changes, beyond))
    numbers = {"change": own.estimate, "low": own.low, "high": own.high, "p": own.p}
    numbers |= {"excess": excess.estimate, "excess_low": excess.low, "excess_high": excess.high}
    return pd.DataFrame(lines).assign(**numbers, p_excess=excess.p, p_corrected=excess.p_corrected)


def _values(rows: pd.DataFrame, grades: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The measure of every query, [query, (set, draw, way)]."""
    keys, found = ["set", "draw", "way"], {}
    if measure == NDCG:
        for key, scores in rows[rows["text"] == "pair"].groupby(keys, sort=False):
            found[key] = ranking.ndcg(scores, grades).set_index("query_id")["value"]
        return pd.DataFrame(found).rename_axis(keys, axis=1)
    own = rows[rows["text"] != "pair"]
    wide = own.pivot(index=[*keys, "query_id", "doc_id"], columns="text", values="score")
    if wide.empty:
        return wide
    effect = (wide["donor"] - wide["base"]).groupby(level=[*keys, "query_id"]).mean()
    return effect.unstack(keys)


def _of_random(own: float, random: pd.Series) -> dict[str, float]:
    """The mean changes of the random sets, and how many of them change it as far down."""
    line = {"random": random.mean(), "random_low": random.min(), "random_high": random.max()}
    return line | {"p_draws": (1 + (random <= own + 1e-12).sum()) / (1 + len(random))}
