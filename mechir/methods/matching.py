"""Matching attention: how the attention between query and document differs by grade, head by head.

Patterns are reduced as they appear, those of heads to a row per pair and those of layers to sums per query and grade.

Source: Vast et al. 2025 (arXiv:2507.14604, section 4; CORIA 2025, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from mechir.batches import Batch, shares
from mechir.errors import MechirError, refuse_below
from mechir.hooks import EveryLayer
from mechir.inference import FEWEST, LEVEL, grade_contrasts, holm
from mechir.inputs import as_pairs
from mechir.methods.groups import Groups, columns_first, crossed, pair_ids
from mechir.model_sites import heads_of
from mechir.pair import EASY, Pair, split_queries
from mechir.possible import possible
from mechir.recorder import observe
from mechir.reranker import Reranker
from mechir.segments import Segment, directions
from mechir.sites import Attn, Head, is_head

MEASURES = ("mean_max", "max", "mass", "entropy", "identical")
SIDES = ("query<-doc", "doc<-query")
CONTRASTS = (("relevant", "weak"), ("hard", "weak"), ("relevant", "hard"))


def attention_by_grade(model: Reranker, pairs: Any, **options: Any) -> pd.DataFrame:
    """The attention of every head between query and document, as means over each query's pairs of one grade.

    Arguments and errors are those of `attention_by_pair`.

    Returns:
        Its rows with heads averaged over the pairs of a query and grade: `query_id`, `grade`, `n` pairs, `direction`,
        `site` and the `MEASURES`.
    """
    rows = attention_by_pair(model, pairs, **options)
    heads = rows["doc_id"].notna()
    groups = rows[heads].groupby(["query_id", "grade", "direction", "site"], sort=False)
    means = groups[list(MEASURES)].mean()
    means.insert(0, "n", groups.size())
    whole = pd.concat([means.reset_index(), rows[~heads]], ignore_index=True)
    return whole[["query_id", "grade", "n", "direction", "site", *MEASURES]].astype({"n": int})


@torch.no_grad()
def attention_by_pair(
    model: Reranker,
    pairs: Any,
    *,
    sep2: bool = False,
    max_length: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """The attention of every head between query and document, pair by pair.

    `pairs` have grades, -1 for easy negatives; `sep2` counts the last SEP as document, as the papers' code does.

    Returns:
        `query_id`, `grade`, `direction`, `site`, and

        - for heads a row per pair (`doc_id`) and direction, `query<-doc` and `doc<-query`: `mean_max`, the mean over
          readers of the largest weight on a source (M of the paper); `max`, the largest weight of all; `mass`, the mean
          over readers of the weight on all sources, 0 to 1; `entropy` in nats of where a reader looks among the
          sources, and `identical`, the share of that on tokens equal to the reader, both averaged over readers
          weighted by their mass;
        - for whole layers (`attn3`) a row per query and grade (`n` pairs) of all 25 directions, `mass` alone: the mean
          over heads, readers and pairs.

        Of a language model these are the directions between the parts of its prompt. One that its causal mask forbids
        has no rows: it would be 0 everywhere, and no finding.

    Raises:
        MechirError: for pairs without grades.
    """
    pairs = as_pairs(pairs)
    if any(pair.grade is None for pair in pairs):
        raise MechirError("Pairs without a grade cannot be contrasted: give judged pairs.")
    groups, c, encoded = Groups.of(pairs), model.cfg, model.encode(pairs, max_length)
    parts, happens = encoded.parts, set(map(str, possible(model, encoded.batch([0]))))
    by_head = torch.zeros(len(pairs), c.n_layers, len(SIDES), c.n_heads, len(MEASURES), dtype=torch.float64)
    by_layer = torch.zeros(len(groups.ids), c.n_layers, len(parts), len(parts), dtype=torch.float64)
    limit = model.max_tokens // 2  # patterns in the open take twice the memory
    for index, batch in model.batches(encoded, max_tokens=limit, progress=progress):
        _, values = observe(
            model, batch, EveryLayer("attn.hook_pattern"), _reduction(batch, parts, sep2), head_row=False
        )
        for name, (sides, masses) in values.items():
            layer = int(name.split(".")[1])
            by_head[torch.as_tensor(index), layer] = sides
            by_layer[:, layer].index_add_(0, groups.of_pair[index], masses)
    heads = crossed(
        pair_ids(encoded.pairs),
        direction=[side for _ in range(c.n_layers) for side in SIDES for _ in range(c.n_heads)],
        site=[str(Head(layer, head)) for layer in range(c.n_layers) for _ in SIDES for head in range(c.n_heads)],
    )
    heads[list(MEASURES)] = by_head.reshape(-1, len(MEASURES)).numpy()
    named = [str(direction) for direction in directions(parts)]
    sites = [str(Attn(layer)) for layer in range(c.n_layers) for _ in named]
    layers = crossed(groups.ids, direction=named * c.n_layers, site=sites)
    mass = by_layer.flatten(1).numpy() / groups.ids["n"].to_numpy()[:, None]
    rows = pd.concat([heads, layers.assign(mass=mass.ravel())], ignore_index=True)
    return rows[rows["direction"].isin(happens)].reset_index(drop=True)


def _reduction(batch: Batch, parts: Sequence[Segment], sep2: bool) -> Callable[[str, Tensor], tuple[Tensor, Tensor]]:
    """A function from a pattern to the `MEASURES` [pair, side, head, measure] and masses [pair, segment, segment]."""
    query, document = batch.at(Segment.QUERY), batch.at(Segment.DOC | Segment.SEP2 if sep2 else Segment.DOC)
    places = query.any(0).nonzero().flatten()
    window = slice(int(places[0]), int(places[-1]) + 1)
    query, equal = query[:, window], batch.input_ids[:, window, None] == batch.input_ids[:, None, :]
    member = batch.members(parts)
    share = shares(member)

    def reduce(_: str, pattern: Float[Tensor, "batch head reader source"]) -> tuple[Tensor, Tensor]:
        sides = (
            reduced(pattern[:, :, window], query, document, equal),
            reduced(pattern[..., window], document, query, equal.transpose(1, 2)),
        )
        masses = share.to(pattern) @ (pattern.mean(1) @ member.to(pattern).transpose(1, 2))
        return torch.stack(sides, 1).double().cpu(), masses.double().cpu()

    return reduce


def reduced(
    pattern: Float[Tensor, "batch head reader source"],
    readers: Bool[Tensor, "batch reader"],
    sources: Bool[Tensor, "batch source"],
    equal: Bool[Tensor, "batch reader source"],
) -> Float[Tensor, "batch head measure"]:
    """The `MEASURES` of each head of each pair, over these readers and sources."""
    p = pattern * (readers[:, :, None] & sources[:, None, :])[:, None]
    n = readers.sum(1).to(p)[:, None]
    largest, mass = p.amax(-1), p.sum(-1)
    total = mass.sum(-1)
    spread = torch.xlogy(mass, mass).sum(-1) - torch.xlogy(p, p).sum((-1, -2))
    same = (p * equal[:, None]).sum((-1, -2))
    safe = total.clamp(min=torch.finfo(p.dtype).tiny)
    measures = (largest.sum(-1) / n, largest.amax(-1), total / n, (spread / safe).clamp(min=0), same / safe)
    return torch.stack(measures, -1)


def compare_grades(
    rows: pd.DataFrame, grades: dict[str, int], *, measure: str = "mean_max", delta: float = 0.02
) -> pd.DataFrame:
    """Compares grades head by head, and names the kind of match that each head shows.

    `rows` are of `attention_by_pair`; those of whole layers are left out. `grades` says what "relevant", "hard" and
    "weak" are, e.g. {"relevant": 3, "hard": 0, "weak": -1}; where hard is one of the other two there are no hard
    negatives, and no kind of match is given. `measure` is one of `MEASURES`.

    Returns:
        One row per direction, site and contrast ("relevant - weak", "hard - weak", "relevant - hard"): `queries` (those
        with both grades), `estimate`, the mean difference over queries, with `low` and `high`, its own 95 % interval;
        `low_all` and `high_all`, which hold for all heads of the direction at once; `p_corrected`, two-sided, grades
        permuted within queries, corrected for all of these heads, missing below 6 queries (see `mechir.inference`);
        `p_equal`, that the difference lies within +- delta (two one-sided t-tests, Holm over the heads); `label`:
        **lexical** where relevant and hard are both above weak, **semantic** where relevant is above both and hard -
        weak within +- delta, otherwise **undecided**.

    Raises:
        MechirError: for a grade that no pair has, an unknown measure, one grade for relevant and weak, rows that are
            means over several pairs, or fewer than 2 queries with two grades.
    """
    refuse_below(0, delta=delta)
    if measure not in MEASURES:
        raise MechirError(f"Unknown measure '{measure}': write one of {', '.join(MEASURES)}.")
    if grades["relevant"] == grades["weak"]:
        raise MechirError(f"relevant and weak are both {grades['weak']}: write two grades.")
    heads = rows[rows["direction"].isin(SIDES) & is_head(rows["site"])]
    if "n" in heads and (heads["n"] > 1).any():
        raise MechirError(
            "Grades are permuted over pairs, and these rows are means over some: write attention_by_pair(...)."
        )
    known = sorted(heads["grade"].unique().tolist())
    for name, grade in grades.items():
        if grade not in known:
            hint = "add easy_negatives=10" if grade == EASY else f"write {name}= with another"
            raise MechirError(f"No pair has the grade {grade} ({name}): the grades are {known}; {hint}.")
    parts = []
    for side, part in heads.groupby("direction", sort=False):
        for high, low in contrasts_of(grades):
            contrast = _compared(part, (grades[high], grades[low]), measure, delta)
            parts.append(contrast.assign(direction=side, contrast=f"{high} - {low}"))
    table = _labelled(pd.concat(parts, ignore_index=True))
    return columns_first(table, ["direction", "site", "contrast", "label"])


def contrasts_of(grades: Mapping[str, int]) -> list[tuple[str, str]]:
    """The contrasts of two different grades."""
    return [(high, low) for high, low in CONTRASTS if grades[high] != grades[low]]


def _compared(part: pd.DataFrame, grades: tuple[int, int], measure: str, delta: float) -> pd.DataFrame:
    """Compares two grades on the heads of one direction."""
    rows = part[part["grade"].isin(grades)]
    keys = ["query_id", "grade", *(["doc_id"] if "doc_id" in rows else [])]
    values = rows.pivot(index=keys, columns="site", values=measure)[part["site"].unique()]
    query, grade = (values.index.get_level_values(name).to_numpy() for name in ("query_id", "grade"))
    test, differences = grade_contrasts(values.to_numpy(), query, grade == grades[0])
    if (n := len(differences)) < 2:
        both = f"grade {grades[0]} and of grade {grades[1]}"
        raise MechirError(f"Queries with pairs of {both}: {n}; take 2 or more.")
    names = ("estimate", "low", "high", "low_all", "high_all", "p_corrected")
    frame = pd.DataFrame({"site": values.columns, "queries": n} | {name: getattr(test, name) for name in names})
    if n < FEWEST:  # orders of pairs could be tested, and would say more than the interval over queries
        frame = frame.assign(p_corrected=np.nan)
    return frame.assign(p_equal=holm(_p_equal(differences, delta)))


def _p_equal(values: np.ndarray, delta: float) -> np.ndarray:
    """The larger p of two one-sided t-tests, against -delta and delta; 0 or 1 for a column without spread."""
    inside = delta - np.abs(values.mean(0))
    error = values.std(0, ddof=1) / len(values) ** 0.5
    t = np.divide(inside, error, out=np.copysign(np.inf, inside), where=error > 0)
    return stats.t.sf(t, len(values) - 1)


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    if table["contrast"].nunique() < len(CONTRASTS):
        return table.assign(label="undecided")
    above = (table["estimate"] > 0) & (table["p_corrected"] < LEVEL)
    wide = table.assign(above=above).pivot(index=["direction", "site"], columns="contrast", values=["above", "p_equal"])
    higher, equal = wide["above"].astype(bool), wide["p_equal"]["hard - weak"] < LEVEL
    lexical = higher["relevant - weak"] & higher["hard - weak"]
    semantic = higher["relevant - weak"] & higher["relevant - hard"] & equal & ~lexical
    label = np.select([lexical, semantic], ["lexical", "semantic"], "undecided")
    return table.join(pd.Series(label, index=wide.index, name="label"), on=["direction", "site"])


def choose_matching(
    model: Reranker, pairs: list[Pair], *, heads: tuple[Head, ...] = (), top: int = 10, every: int = 3
) -> tuple[tuple[Head, ...], list[Pair]]:
    """Returns the named heads, or else the `top` matching heads, with the pairs left to measure.

    Matching heads are those whose largest attention from query to document differs most between the best and the worst
    grade of a query; they are chosen on one query in `every`, and the pairs of the other queries are left.

    Raises:
        MechirError: when there are too few queries for both, or no query has two grades.
    """
    if heads:
        return heads, pairs
    chosen, rest = split_queries(pairs, every)
    return matching_heads(model, chosen, top), rest


def matching_heads(model: Reranker, pairs: Sequence[Pair], top: int) -> tuple[Head, ...]:
    """The heads with the largest difference of `mean_max` (query<-doc) between best and worst grade, over queries.

    Where a causal mask hides the document from the query it is that of doc<-query.
    """
    refuse_below(1, top=top)
    rows = attention_by_grade(model, pairs)
    side = next(side for side in SIDES if (rows["direction"] == side).any())
    rows = rows[(rows["direction"] == side) & is_head(rows["site"])]
    values = rows.pivot(index=["query_id", "grade"], columns="site", values="mean_max").sort_index()
    groups = values.groupby("query_id")
    difference = (groups.last() - groups.first())[groups.size() > 1]
    if difference.empty:
        raise MechirError("No query has documents of two grades to tell matching heads by: name them with heads=.")
    order = difference.mean().reindex(rows["site"].unique()).sort_values(ascending=False, kind="stable")
    return tuple(heads_of(model, order.index[:top]))
