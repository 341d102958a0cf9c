"""Pruned models: sets of units to take out, what the ranking loses without them, and checkpoints without them.

Source: Vast et al. 2024 (arXiv:2406.19309), who prune the top of a scheme; the bottom, and random sets like either, are
the controls.
"""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechir.collection_groups import collection_of
from mechir.errors import MechirError
from mechir.inference import holm, mean_interval
from mechir.interventions import Ablate
from mechir.methods import ranking
from mechir.methods.schemes import Ranked, random_like, refuse_share, refuse_unknown
from mechir.methods.statistics import compare
from mechir.model_sites import sites_of
from mechir.reranker import Reranker, Weights, needs
from mechir.sites import Head, Neuron

ORIGINAL = "original"
ENDS = ("top", "bottom")
RANDOM = "random"
MEASURES = ("nDCG@10", "MRR")


def sizes(model: Reranker) -> dict[tuple[int, str], int]:
    """(layer, "neuron" or "head") -> how many units there are."""
    c = model.cfg
    return {(layer, kind): n for layer in range(c.n_layers) for kind, n in (("neuron", c.d_mlp), ("head", c.n_heads))}


def pruned_sets(
    model: Reranker,
    importance: pd.DataFrame,
    groups: Mapping[str, str],
    schemes: Sequence[str],
    grid: Sequence[float],
    *,
    draws: int = 20,
    seed: int = 0,
    joint: bool = False,
) -> pd.DataFrame:
    """The sets of units that a pruning study takes out.

    Args:
        model: a `HookedEncoder`.
        importance: [site, collection] conductances, of one label.
        groups: collection -> group.
        schemes: see `schemes`.
        grid: shares of units.
        draws: random sets for each scheme, share and end, top or bottom: with as many units of every layer and kind as
            it has, and none of its own.
        seed: of the draws.
        joint: rank neurons and heads together.

    Returns:
        `name`, `scheme`, `share`, `set` ("top", "bottom", "random"), `like` (which of the two a random set belongs to,
        else empty), `draw` (-1 but for random), `units`, `sites` (with commas) and `note`: where a layer has too few
        other units for random sets apart from the end that they belong to.

    Raises:
        MechirError: for an unknown scheme, a share out of range, a scheme that keeps no unit at one end (write
            another), less than 20 draws.
    """
    refuse(groups, schemes, grid, draws)
    ranked = {end: Ranked.of(importance, groups, joint=joint, bottom=end == "bottom") for end in ENDS}
    counts = sizes(model)
    found = []
    for scheme, p, end in itertools.product(schemes, grid, ENDS):
        own = ranked[end].kept(scheme, p)
        if not own:
            raise MechirError(f"'{scheme}' keeps no unit at the {end}, p={p}: take a larger share, or another scheme.")
        random, notes = random_like(own, counts, draws, seed=seed)
        shared = {"scheme": scheme, "share": p, "note": "; ".join(notes) or None, "units": len(own)}
        name = f"{scheme} {100 * p:g} %"
        found.append(shared | {"name": f"{name} {end}", "set": end, "like": "", "draw": -1, "sites": ",".join(own)})
        for draw, one in enumerate(random):
            line = {"name": f"{name} random {draw} like {end}", "set": RANDOM, "like": end, "draw": draw}
            found.append(shared | line | {"sites": ",".join(one)})
    return pd.DataFrame(found)[["name", "scheme", "share", "set", "like", "draw", "units", "sites", "note"]]


def refuse(groups: Mapping[str, str], schemes: Sequence[str], grid: Sequence[float], draws: int) -> None:
    """Refuses unknown schemes, shares out of range and less than 20 draws, before anything is measured."""
    refuse_unknown(schemes, groups)
    for p in grid:
        refuse_share(p)
    if draws < 20:
        raise MechirError(f"draws={draws} random sets are too few to compare with: write 20 or more.")


def refuse_small(model: Reranker, grid: Sequence[float], *, joint: bool = False) -> None:
    """Refuses shares that are less than half of one unit of any kind, before anything is measured."""
    counts = [model.cfg.n_layers * n for n in (model.cfg.d_mlp, model.cfg.n_heads)]
    counts = [sum(counts)] if joint else counts
    for p in grid:
        if not any(int(p * n + 0.5) for n in counts):
            raise MechirError(f"{100 * p:g} % of {sum(counts)} units is less than half of one: take a larger share.")


def pruning_table(
    rows: pd.DataFrame, judged: pd.DataFrame, sets: pd.DataFrame, lowest: Mapping[str, int], groups: Mapping[str, str]
) -> pd.DataFrame:
    """What every ranking loses without the units of a set, beside random sets of its own size and layer profile.

    Args:
        rows: `name` (of `sets`, or "original"), `query_id`, `doc_id`, `score`.
        judged: `query_id`, `doc_id`, `grade`.
        sets: of `pruned_sets`.
        lowest: the grade from which on a document is relevant to MRR, by collection.
        groups: collection -> group.

    Returns:
        One row per collection, measure ("nDCG@10", linear gain; "MRR") and set; of the random sets like the top, and of
        those like the bottom (`like`), a row for each draw and one (`draw` -1) for their mean query by query. `value`
        over `queries`; `change` = value - original with `change_low` and `change_high`, its 95 % bootstrap interval
        over queries (negative: the ranking got worse), `change_p` and `change_p_corrected` (over the table's rows but
        single draws). For top and bottom: `excess` = change - mean change of its own random sets, with `excess_low`,
        `excess_high`, `excess_p`, `excess_p_corrected`; `p_draws` = (1 + own random sets without which the value is as
        low or lower) / (1 + sets), so 1/21 at best with 20.

    It misleads where a set's intact neighbours make up for it: what is pruned matters, what is not may too.
    """
    found = []
    for name, group in groups.items():
        here = rows[[collection_of(query_id) == name for query_id in rows["query_id"]]]
        for measure in MEASURES:
            values = _by_query(here, judged, measure, lowest[name])
            lines = pd.DataFrame(_lines(values, sets))
            found.append(lines.assign(collection=name, group=group, measure=measure))
    table = pd.concat(found, ignore_index=True)
    whole = table["draw"] < 0
    for p, corrected in (("change_p", "change_p_corrected"), ("excess_p", "excess_p_corrected")):
        table[corrected] = np.nan
        table.loc[whole, corrected] = holm(table.loc[whole, p].to_numpy(dtype=float))
    first = ["collection", "group", "measure", "scheme", "share", "set", "like", "draw", "units", "queries", "value"]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _by_query(rows: pd.DataFrame, judged: pd.DataFrame, measure: str, relevant: int) -> pd.DataFrame:
    """The measure's value, [query, name]."""
    grades, found = judged[["query_id", "doc_id", "grade"]], {}
    for name, scores in rows.groupby("name", sort=False):
        values = ranking.mrr(scores, grades, relevant) if measure == "MRR" else ranking.ndcg(scores, grades, 10)
        found[name] = values.set_index("query_id")["value"]
    return pd.DataFrame(found)


def _lines(values: pd.DataFrame, sets: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of one collection and measure."""
    original = values[ORIGINAL]
    low, high = mean_interval(original.to_numpy())
    line = {"queries": len(values), "value": original.mean(), "draw": -1, "like": ""}
    yield line | {"set": ORIGINAL, "value_low": low, "value_high": high}
    for _, part in sets.groupby(["scheme", "share"], sort=False):
        for end in ENDS:
            yield from _beside(values, part[part["set"] == end].iloc[0], part[part["like"] == end])


def _beside(values: pd.DataFrame, own: pd.Series, likes: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of a top or bottom, of its random sets one by one, and of their mean."""
    original, drawn = values[ORIGINAL], values[likes["name"]]
    random = drawn.mean(axis=1)
    shared = {key: own[key] for key in ("scheme", "share", "units", "note")} | {"queries": len(values)}
    line = shared | {"set": own["set"], "like": "", "draw": -1, "value": values[own["name"]].mean()}
    yield line | _change(values[own["name"]], original) | _excess(values[own["name"]], random, drawn)
    shared |= {"set": RANDOM, "like": own["set"]}
    for name, draw in zip(likes["name"], likes["draw"], strict=True):
        yield shared | {"draw": draw, "value": values[name].mean(), "change": (values[name] - original).mean()}
    yield shared | {"draw": -1, "value": random.mean()} | _change(random, original)


def _change(values: pd.Series, original: pd.Series) -> dict[str, float]:
    found = compare(values.to_numpy(), original.to_numpy())
    return {"change": found.change, "change_low": found.low, "change_high": found.high, "change_p": found.p_paired}


def _excess(values: pd.Series, random: pd.Series, drawn: pd.DataFrame) -> dict[str, float]:
    """What a set changes beyond its random sets."""
    found = compare(values.to_numpy(), random.to_numpy())
    as_far = (drawn.mean() <= values.mean() + 1e-12).sum()
    line = {"excess": found.change, "excess_low": found.low, "excess_high": found.high, "excess_p": found.p_paired}
    return line | {"p_draws": (1 + as_far) / (1 + drawn.shape[1])}


@torch.no_grad()
def export(model: Weights, sites: Iterable[Neuron | Head | str], folder: Path | str) -> Path:
    """Writes the model without these units as a checkpoint that Hugging Face loads, tokenizer included.

    The columns of the output matrices that read the units are 0, so scores are those under `Ablate` to rounding. The
    shapes stay: nothing gets smaller or faster.

    Raises:
        MechirError: as `Ablate`; for what is no unit, or none of the model's; for a folder that is there already.
    """
    needs(model, "export", Weights)
    target = Path(folder)
    if target.exists():
        raise MechirError(f"'{target}' is there already: give a directory that does not exist yet.")
    chosen = sites_of(model, Ablate(sites).sites)
    for site in chosen:
        if not isinstance(site, Head | Neuron):
            raise MechirError(f"Cannot prune '{site}': write neurons (n5.1203) and heads (h8.1).")
    pruned = copy.deepcopy(model)
    for site in chosen:
        layer = pruned.parts.layers[site.layer]
        if isinstance(site, Head):
            width = model.cfg.d_head
            layer.o.weight[:, site.head * width : (site.head + 1) * width] = 0
        else:
            layer.mlp_out.weight[:, site.neuron] = 0
    temporary = target.with_name(f".{target.name}.part")
    try:
        pruned.hf.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        temporary.rename(target)
    except OSError as error:
        raise MechirError(f"Cannot write '{target}' ({error.strerror}): give another directory.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
