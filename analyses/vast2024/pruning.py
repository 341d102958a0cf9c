"""What the ranking loses without the most important units (Vast et al. 2024, arXiv:2406.19309).

Units are ranked by their conductance on one query in three and pruned on the others: the top of a scheme, the bottom
(most negative), and beside each of the two random sets with as many units of every layer as it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from mechir.collection_groups import Collections, collection_of
from mechir.errors import MechirError
from mechir.interventions import Prune
from mechir.material import Pool
from mechir.methods.checks import at_least, number_list, one_of, unit_target, word_list, written
from mechir.methods.importance import labelled, read_thresholds, thresholds, told
from mechir.methods.pruning import ENDS, ORIGINAL, RANDOM, pruned_sets, pruning_table, refuse, refuse_small
from mechir.methods.schemes import LABELS, schemes
from mechir.pairs import Pair, split_queries
from mechir.registry.runs import Run
from mechir.sweep import sweep
from mechir.views import charts

LEAST = 0.01
"""A change of nDCG or MRR below this is called nothing, whatever its p."""
FULL = "0.1,0.5,1,2,5,10"
DIFFERENCE = "difference"
BY = (*LABELS, DIFFERENCE)
BY_DEFAULT = ("F_in", "F_out", "out-in")


def cost(model: Any, *, grid: str, draws: int, scheme: str, **options: Any) -> float:
    """Full forwards per pair: the intact model, and every set of every share; conductance of a third beside it."""
    n = len(scheme.split(",")) if scheme else 1
    return 1 + n * len(_shares(grid)) * len(ENDS) * (1 + draws) + 15


def check(
    model: Any,
    pairs: Sequence[Pair],
    collections: Collections,
    pool: Pool,
    *,
    grid: str,
    scheme: str,
    draws: int,
    seed: int,
    label: str,
    joint: bool,
    relevant: str,
    every: int,
    take: int,
    target: str,
    **way: Any,
) -> dict[str, Any]:
    """Shares rising, schemes in their order, the target in its normal form; refuses what does not fit."""
    one_of(BY, label=label)
    at_least(0, seed=seed, take=take)
    at_least(2, every=every)
    groups, shares = collections.groups, _shares(grid)
    asked = _asked(scheme, groups)
    refuse(groups, asked, shares, draws)
    refuse_small(model, shares, joint=joint)
    normal = {"grid": _written(grid), "target": unit_target(model, target=target, **way)}
    lowest = thresholds(collections, relevant)
    chosen, rest = split_queries(pairs, every)
    labelled(chosen, lowest, take)
    judged = collections.judged(rest, full=pool.full) if rest else pd.DataFrame(columns=["query_id", "grade"])
    for name, least in lowest.items():
        own = judged[[collection_of(query) == name for query in judged["query_id"]]]
        if not (own["grade"] >= least).any():
            raise MechirError(
                f"Units are pruned on other queries than they are ranked on, and none of those of '{name}' has a "
                "relevant document: take more queries."
            )
    return normal | ({"scheme": ",".join(asked)} if scheme else {})


def _asked(scheme: str, groups: Mapping[str, str]) -> list[str]:
    """The schemes that are asked for, in their order; by default the collection's own, of several some."""
    known = schemes(groups)
    if not scheme:
        return [one for one in known if one in BY_DEFAULT] or known
    return word_list(scheme, "scheme", known).split(",")


def prepare(
    model: Any,
    pairs: list[Pair],
    collections: Collections,
    run: Callable[..., Run],
    *,
    grid: str,
    scheme: str,
    draws: int,
    seed: int,
    label: str,
    joint: bool,
    relevant: str = "",
    every: int = 3,
    **options: Any,
) -> tuple[list[Pair], dict[str, Any]]:
    """The other queries' pairs; the sets of units, from a run of `vast2024/importance` on one query in `every`."""
    asked, shares = _asked(scheme, collections.groups), _shares(grid)
    lowest = told(thresholds(collections, relevant))
    learned = run("vast2024/importance", every=every, relevant=lowest, **options)
    found = learned.summary.pivot(index="site", columns=["label", "collection"], values="conductance")
    found = found.reindex(learned.summary["site"].unique())
    wide = found[LABELS[0]] - found[LABELS[1]] if label == DIFFERENCE else found[label]
    sets = pruned_sets(model, wide, collections.groups, asked, shares, draws=draws, seed=seed, joint=joint)
    return split_queries(pairs, every)[1], {"relevant": lowest, "scheme": ",".join(asked), "sets": sets}


def _shares(grid: str) -> list[float]:
    """Shares from per cent, rising."""
    percents = number_list(FULL if grid == "full" else grid, "grid")
    if wrong := [one for one in percents if not 0 < one <= 100]:
        raise MechirError(f"--grid holds {wrong[0]:g}: write per cent above 0 and up to 100, e.g. 1,5, or full.")
    return [one / 100 for one in percents]


def _written(grid: str) -> str:
    """The grid in its normal form."""
    shares = written(number_list(FULL if grid == "full" else grid, "grid"))
    return "full" if shares == FULL else shares


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    sets: pd.DataFrame,
    grid: str = "1,5",
    scheme: str = "",
    draws: int = 20,
    seed: int = 0,
    label: str = LABELS[0],
    joint: bool = False,
    relevant: str = "",
    every: int = 3,
    take: int = 4,
    baseline: str = "pad_query",
    target: str = "score",
    heads: str = "pattern",
    neurons: str = "post",
    tol: float = 0.01,
) -> pd.DataFrame:
    """Scores of every pair without each set: `name`, `query_id`, `doc_id`, `grade`, `score`.

    `sets` is what `prepare` found. `grid`: shares in per cent with commas, or "full" (0.1 to 10); `scheme`: with
    commas, by default the collection's own, of several F_in, F_out and out-in; `draws`: random sets like each top, and
    like each bottom; `label`: whose conductance ranks the units, "relevant", "non-relevant", or the "difference" of
    both; `joint`: neurons and heads in one ranking; `every`: units are ranked on one query in so many. The rest: see
    `importance`.
    """
    cut = {one.name: Prune(one.sites.split(",")) for one in sets[["name", "sites"]].itertuples(index=False)}
    return sweep(model, pairs, {ORIGINAL: ()} | cut)


def summarise(
    rows: pd.DataFrame, judged: pd.DataFrame, collections: Collections, sets: pd.DataFrame, relevant: str
) -> pd.DataFrame:
    """`pruning_table`."""
    return pruning_table(rows, judged, sets, read_thresholds(relevant), collections.groups)


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """All but single random draws; the share in per cent."""
    left_out = ["draw", "group", "p", "value_low", "value_high", "p_paired", "p_holm", "p_excess"]
    shown = summary[summary["draw"] < 0].drop(columns=left_out).astype({"units": "Int64"})
    shown.insert(3, "percent", [f"{100 * p:g}" if p > 0 else "" for p in summary.loc[shown.index, "p"]])
    return shown


def findings(summary: pd.DataFrame) -> pd.DataFrame:
    """What the ranking loses without a top or bottom beyond its random sets; a set is no component and has no site."""
    kept = summary[summary["excess"].notna()]
    names = {"collection": "collection", "queries": "n_queries", "p_excess": "p", "p_excess_holm": "p_corrected"}
    names |= {"excess": "value", "excess_low": "low", "excess_high": "high"}
    told = kept[list(names)].rename(columns=names)
    share = pd.Series([f"{100 * p:g} %" for p in kept["p"]], index=kept.index)
    how = {"site": "", "sign": -1, "causal": True, "least": LEAST, "role": "relevance-neuron"}
    named = kept["set"] + " " + share + " of " + kept["scheme"]
    return told.assign(
        **how, measure=kept["measure"] + " without", unit=kept["measure"], label=named, family=f"{len(kept)} sets"
    )


def chart(summary: pd.DataFrame) -> Any:
    """nDCG@10 against the share pruned: top, bottom, and every random draw like either."""
    shown = summary[summary["measure"] == "nDCG@10"].rename(columns={"value": "nDCG@10"})
    original = shown[shown["set"] == ORIGINAL].set_index("collection")["nDCG@10"]
    cut = shown[shown["set"] != ORIGINAL]
    return charts.strips(
        cut.assign(
            **{"pruned, %": 100 * cut["p"]},
            panel=cut["scheme"] + " pruned, on " + cut["collection"],
            intact=cut["collection"].map(original),
            pruned=cut["set"].where(cut["set"] != RANDOM, "random, like " + cut["like"]),
        ),
        "pruned, %",
        "nDCG@10",
        "pruned",
        title="nDCG@10 without the most important units",
        subtitle="ticks: random sets with as many units of each layer as top or bottom; dashed: the intact model",
        column="panel",
        rule="intact",
        faint="draw",
    )
