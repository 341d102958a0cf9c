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

import pandas as pd
import torch

from mechir.collection_groups import collection_of
from mechir.errors import MechirError
from mechir.inference import holm, mean_row
from mechir.interventions import Ablate
from mechir.methods import ranking
from mechir.methods.evaluation import NDCG, by_condition, ranking_measures
from mechir.methods.schemes import Ranked, random_like, refuse_share, refuse_unknown
from mechir.methods.statistics import compare
from mechir.model_sites import sites_of
from mechir.reranker import Reranker, Weights, needs
from mechir.sites import Head, Neuron

ORIGINAL = "original"
ENDS = ("top", "bottom")
RANDOM = "random"
MRR = "MRR"
"""The reciprocal rank of the first document from the relevant grade of its collection on."""


def sizes(model: Reranker) -> dict[tuple[int, str], int]:
    """The number of units by (layer, "neuron" or "head")."""
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
    """The sets of units to prune.

    `importance` are conductances of one label, [site, collection], ranked with neurons and heads apart unless `joint`;
    `groups` is collection -> group; `grid` holds shares of units. For each scheme, share and end, top or bottom, there
    are `draws` random sets with as many units of every layer and kind as it has, and none of its own.

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
    rows = []
    for scheme, p, end in itertools.product(schemes, grid, ENDS):
        pruned = ranked[end].units(scheme, p)
        if not pruned:
            raise MechirError(f"'{scheme}' keeps no unit at the {end}, p={p}: take a larger share, or another scheme.")
        random, notes = random_like(pruned, counts, draws, seed=seed)
        name, n, note = f"{scheme} {100 * p:g} %", len(pruned), "; ".join(notes) or None
        rows.append((f"{name} {end}", scheme, p, end, "", -1, n, ",".join(pruned), note))
        for draw, sites in enumerate(random):
            label = f"{name} random {draw} like {end}"
            rows.append((label, scheme, p, RANDOM, end, draw, n, ",".join(sites), note))
    columns = ["name", "scheme", "share", "set", "like", "draw", "units", "sites", "note"]
    return pd.DataFrame(rows, columns=columns)


def refuse(groups: Mapping[str, str], schemes: Sequence[str], grid: Sequence[float], draws: int) -> None:
    """Raises for unknown schemes, shares out of range and less than 20 draws."""
    refuse_unknown(schemes, groups)
    for p in grid:
        refuse_share(p)
    if draws < 20:
        raise MechirError(f"draws={draws} random sets are too few to compare with: write 20 or more.")


def refuse_small(model: Reranker, grid: Sequence[float], *, joint: bool = False) -> None:
    """Raises for shares that are less than half of one unit of any kind."""
    counts = [model.cfg.n_layers * n for n in (model.cfg.d_mlp, model.cfg.n_heads)]
    counts = [sum(counts)] if joint else counts
    for p in grid:
        if not any(int(p * n + 0.5) for n in counts):
            raise MechirError(f"{100 * p:g} % of {sum(counts)} units is less than half of one: take a larger share.")


def pruning_table(
    rows: pd.DataFrame,
    judged: pd.DataFrame,
    sets: pd.DataFrame,
    lowest: Mapping[str, int],
    groups: Mapping[str, str],
    evaluate: Sequence[str] = (NDCG,),
) -> pd.DataFrame:
    """The loss of every ranking without the units of a set, beside random sets of its own size and layer profile.

    `rows` are scores: `name` (of `sets`, or "original"), `query_id`, `doc_id`, `score`; `judged`: `query_id`, `doc_id`,
    `grade`; `sets` of `pruned_sets`; `lowest`: the grade from which on a document is relevant to MRR, by collection;
    `groups`: collection -> group; `evaluate`: measures of ir_measures, beside MRR.

    Returns:
        One row per collection, measure ("nDCG@10" by default, linear gain; "MRR") and set; of the random sets like the
        top, and of those like the bottom (`like`), a row for each draw and one (`draw` -1) for their mean query by
        query. `value` over `queries`; `change` = value - original with `change_low` and `change_high`, its 95 %
        bootstrap interval over queries (negative: the ranking got worse), `change_p` and `change_p_corrected` (over the
        table's rows but single draws). For top and bottom: `excess` = change - mean change of its own random sets, with
        `excess_low`, `excess_high`, `excess_p`, `excess_p_corrected`; `p_draws` = (1 + own random sets without which
        the value is as low or lower) / (1 + sets), so 1/21 at best with 20.

    It misleads where a set's intact neighbours make up for it: what is pruned matters, what is not may too.
    """
    parts, collections = [], rows["query_id"].map(collection_of)
    for name, group in groups.items():
        for measure in (*ranking_measures(evaluate), MRR):
            values = _by_query(rows[collections == name], judged, measure, lowest[name])
            lines = pd.DataFrame(_lines(values, sets))
            parts.append(lines.assign(collection=name, group=group, measure=str(measure)))
    table = pd.concat(parts, ignore_index=True)
    whole = table["draw"] < 0
    for p in ("change_p", "excess_p"):
        table.loc[whole, f"{p}_corrected"] = holm(table.loc[whole, p].to_numpy(dtype=float))
    first = ["collection", "group", "measure", "scheme", "share", "set", "like", "draw", "units", "queries", "value"]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _by_query(rows: pd.DataFrame, judged: pd.DataFrame, measure: Any, relevant: int) -> pd.DataFrame:
    """The measure's value, [query, name]."""
    if measure != MRR:
        return by_condition(rows, judged, measure)
    names = rows.groupby("name", sort=False)
    return pd.DataFrame({k: ranking.mrr(part, judged, relevant).set_index("query_id")["value"] for k, part in names})


def _lines(values: pd.DataFrame, sets: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of one collection and measure."""
    original = values[ORIGINAL]
    yield {"queries": len(values), "draw": -1, "like": "", "set": ORIGINAL} | mean_row(original.to_numpy(), "value")
    for _, part in sets.groupby(["scheme", "share"], sort=False):
        for end in ENDS:
            yield from _beside(values, part[part["set"] == end].iloc[0], part[part["like"] == end])


def _beside(values: pd.DataFrame, end: pd.Series, likes: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of a top or bottom, of its random sets one by one, and of their mean."""
    original, drawn = values[ORIGINAL], values[likes["name"]]
    random = drawn.mean(axis=1)
    shared = {key: end[key] for key in ("scheme", "share", "units", "note")} | {"queries": len(values)}
    pruned = values[end["name"]]
    as_far = (drawn.mean() <= pruned.mean() + 1e-12).sum()
    line = shared | {"set": end["set"], "like": "", "draw": -1, "value": pruned.mean()}
    line |= compare(pruned.to_numpy(), original.to_numpy()).row("change")
    line |= compare(pruned.to_numpy(), random.to_numpy()).row("excess")
    yield line | {"p_draws": (1 + as_far) / (1 + drawn.shape[1])}
    shared |= {"set": RANDOM, "like": end["set"]}
    for name, draw in zip(likes["name"], likes["draw"], strict=True):
        yield shared | {"draw": draw, "value": values[name].mean(), "change": (values[name] - original).mean()}
    change = compare(random.to_numpy(), original.to_numpy()).row("change")
    yield shared | {"draw": -1, "value": random.mean()} | change


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
            layer.o.weight.unflatten(1, (model.cfg.n_heads, -1))[:, site.head] = 0
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
