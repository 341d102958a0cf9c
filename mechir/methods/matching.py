"""Where matching happens: how the attention between query and document differs by grade, head by head.

Patterns are reduced as they appear, of heads to a row per pair and of layers to sums per query and grade.

Source: Vast et al. 2025 (arXiv:2507.14604, section 4; CORIA 2025, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from mechir.errors import MechirError, refuse_below
from mechir.hooks import EveryLayer
from mechir.inference import LEVEL, grade_contrasts, holm
from mechir.methods.groups import Groups, crossed
from mechir.model_sites import heads_of
from mechir.pairs import EASY, Batch, Pair, shares, split_queries
from mechir.recorder import observe
from mechir.reranker import Reranker
from mechir.segments import FIVE, Segment, directions
from mechir.sites import Attn, Head, is_head

MEASURES = ("mean_max", "max", "mass", "entropy", "identical")
SIDES = ("query<-doc", "doc<-query")
CONTRASTS = (("relevant", "weak"), ("hard", "weak"), ("relevant", "hard"))


def attention_by_grade(model: Reranker, pairs: Sequence[Pair], **options: Any) -> pd.DataFrame:
    """How every head attends between query and document, as means over each query's pairs of one grade.

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
    pairs: Sequence[Pair],
    *,
    sep2: bool = False,
    max_length: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """How every head attends between query and document, pair by pair.

    Args:
        model: a `HookedEncoder`.
        pairs: with grades; -1 are easy negatives.
        sep2: count the last SEP as document, as the papers' code does.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Returns:
        `query_id`, `grade`, `direction`, `site`, and

        - for heads a row per pair (`doc_id`) and direction, `query<-doc` and `doc<-query`: `mean_max`, the mean over
          readers of the largest weight on a source (M of the paper); `max`, the largest weight of all; `mass`, the mean
          over readers of the weight on all sources, 0 to 1; `entropy` in nats of where a reader looks among the
          sources, and `identical`, the share of that on tokens equal to the reader, both averaged over readers
          weighted by their mass;
        - for whole layers (`attn3`) a row per query and grade (`n` pairs) of all 25 directions, `mass` alone: the mean
          over heads, readers and pairs.

    Raises:
        MechirError: for pairs without grades.
    """
    if any(pair.grade is None for pair in pairs):
        raise MechirError("Pairs without a grade cannot be contrasted: give judged pairs.")
    groups = Groups.of(pairs)
    kept = _Kept.empty(model, len(pairs), len(groups.ids))
    encoded = model.encode(pairs, max_length)
    limit = model.max_tokens // 2  # patterns in the open take twice the memory
    for index, batch in model.batches(encoded, max_tokens=limit, progress=progress):
        add = partial(kept.add, torch.as_tensor(index), groups.of_pair[index], _View.of(batch, sep2))
        observe(model, batch, EveryLayer("attn.hook_pattern"), add, head_row=False)
    return kept.frame(encoded.pairs, groups.ids)


@dataclass(frozen=True)
class _View:
    """What of a batch is query and what is document, and which of their tokens are equal."""

    first: int
    end: int
    query: Bool[Tensor, "batch q"]
    document: Bool[Tensor, "batch pos"]
    equal: Bool[Tensor, "batch q pos"]
    share: Float[Tensor, "batch segment pos"]
    member: Float[Tensor, "batch segment pos"]

    @classmethod
    def of(cls, batch: Batch, sep2: bool) -> _View:
        query = batch.at(Segment.QUERY)
        places = query.any(0).nonzero().flatten()
        first, end = int(places[0]), int(places[-1]) + 1
        member = batch.members()
        return cls(
            first,
            end,
            query[:, first:end],
            batch.at(Segment.DOC | Segment.SEP2 if sep2 else Segment.DOC),
            batch.input_ids[:, first:end, None] == batch.input_ids[:, None, :],
            shares(member),
            member.float(),
        )


@dataclass(frozen=True)
class _Kept:
    """What is kept of the patterns: of heads pair by pair, of whole layers sums over the pairs of each group."""

    heads: Float[Tensor, "pair layer side head measure"]
    layers: Float[Tensor, "group layer segment segment"]

    @classmethod
    def empty(cls, model: Reranker, n_pairs: int, n_groups: int) -> _Kept:
        c = model.cfg
        return cls(
            torch.zeros(n_pairs, c.n_layers, len(SIDES), c.n_heads, len(MEASURES), dtype=torch.float64),
            torch.zeros(n_groups, c.n_layers, len(FIVE), len(FIVE), dtype=torch.float64),
        )

    def add(
        self,
        places: Tensor,
        group: Tensor,
        view: _View,
        name: str,
        pattern: Float[Tensor, "batch head reader source"],
    ) -> None:
        layer, window = int(name.split(".")[1]), slice(view.first, view.end)
        sides = (
            reduced(pattern[:, :, window], view.query, view.document, view.equal),
            reduced(pattern[..., window], view.document, view.query, view.equal.transpose(1, 2)),
        )
        self.heads[places, layer] = torch.stack(sides, 1).double().cpu()
        masses = view.share.to(pattern) @ (pattern.mean(1) @ view.member.to(pattern).transpose(1, 2))
        self.layers[:, layer].index_add_(0, group, masses.double().cpu())

    def frame(self, pairs: Sequence[Pair], groups: pd.DataFrame) -> pd.DataFrame:
        _, n_layers, _, n_heads, _ = self.heads.shape
        ids = pd.DataFrame(
            [(pair.query_id, pair.doc_id, pair.grade) for pair in pairs], columns=["query_id", "doc_id", "grade"]
        )
        by_head = crossed(
            ids,
            direction=[side for _ in range(n_layers) for side in SIDES for _ in range(n_heads)],
            site=[str(Head(layer, head)) for layer in range(n_layers) for _ in SIDES for head in range(n_heads)],
        )
        values = self.heads.reshape(-1, len(MEASURES)).numpy().T
        by_head = by_head.assign(**dict(zip(MEASURES, values, strict=True)))
        named = [str(direction) for direction in directions()]
        layers = [str(Attn(layer)) for layer in range(n_layers) for _ in named]
        by_layer = crossed(groups, direction=named * n_layers, site=layers)
        mass = (self.layers.flatten(1).numpy() / groups["n"].to_numpy()[:, None]).reshape(-1)
        return pd.concat([by_head, by_layer.assign(mass=mass)], ignore_index=True)


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
    found = (largest.sum(-1) / n, largest.amax(-1), total / n, (spread / safe).clamp(min=0), same / safe)
    return torch.stack(found, -1)


def compare_grades(
    rows: pd.DataFrame, grades: dict[str, int], *, measure: str = "mean_max", delta: float = 0.02
) -> pd.DataFrame:
    """Grades compared head by head, and what kind of match each head shows.

    Args:
        rows: of `attention_by_pair`; rows of whole layers are left out.
        grades: what "relevant", "hard" and "weak" are, e.g. {"relevant": 3, "hard": 0, "weak": -1}. Where hard is one
            of the other two there are no hard negatives, and no kind of match can be told.
        measure: one of `MEASURES`.
        delta: differences of hard - weak within +- delta count as none.

    Returns:
        One row per direction, site and contrast ("relevant - weak", "hard - weak", "relevant - hard"): `queries` (those
        with both grades), `estimate`, the mean difference over queries, with `low` and `high`, its own 95 % interval;
        `low_all` and `high_all`, which hold for all heads of the direction at once; `p_corrected`, two-sided, grades
        permuted within queries, corrected for all of these heads (see `mechir.inference`); `p_equal`, that the
        difference lies within +- delta (two one-sided t-tests, Holm over the heads); `label`: **lexical** where
        relevant and hard are both above weak, **semantic** where relevant is above both and hard - weak within +-
        delta, otherwise **undecided**.

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
            hint = "add --easy-negatives 10" if grade == EASY else f"write --{name} with another"
            raise MechirError(f"No pair has the grade {grade} ({name}): the grades are {known}; {hint}.")
    parts = []
    for side, part in heads.groupby("direction", sort=False):
        for high, low in contrasts_of(grades):
            found = _compared(part, (grades[high], grades[low]), measure, delta)
            parts.append(found.assign(direction=side, contrast=f"{high} - {low}"))
    found = _labelled(pd.concat(parts, ignore_index=True))
    first = ["direction", "site", "contrast", "label"]
    return found[[*first, *(name for name in found.columns if name not in first)]]


def contrasts_of(grades: Mapping[str, int]) -> list[tuple[str, str]]:
    """The contrasts of two different grades."""
    return [(high, low) for high, low in CONTRASTS if grades[high] != grades[low]]


def _compared(part: pd.DataFrame, grades: tuple[int, int], measure: str, delta: float) -> pd.DataFrame:
    """One contrast of the heads of one direction."""
    own = part[part["grade"].isin(grades)]
    keys = ["query_id", "grade", *(["doc_id"] if "doc_id" in own else [])]
    values = own.pivot(index=keys, columns="site", values=measure)[part["site"].unique()]
    query, grade = (values.index.get_level_values(name).to_numpy() for name in ("query_id", "grade"))
    found, differences, _ = grade_contrasts(values.to_numpy(), query, grade == grades[0])
    if (n := len(differences)) < 2:
        both = f"grade {grades[0]} and of grade {grades[1]}"
        raise MechirError(f"Queries with pairs of {both}: {n}; take 2 or more.")
    return pd.DataFrame(
        {
            "site": values.columns,
            "queries": n,
            "estimate": found.estimate,
            "low": found.low,
            "high": found.high,
            "low_all": found.low_all,
            "high_all": found.high_all,
            "p_corrected": found.p_corrected,
            "p_equal": holm(_p_equal(differences, delta)),
        }
    )


def _p_equal(values: np.ndarray, delta: float) -> np.ndarray:
    """The larger p of two one-sided t-tests, against -delta and delta; 0 or 1 for a column without spread."""
    inside = delta - np.abs(values.mean(0))
    error = values.std(0, ddof=1) / len(values) ** 0.5
    t = np.divide(inside, error, out=np.copysign(np.inf, inside), where=error > 0)
    return stats.t.sf(t, len(values) - 1)


def _labelled(found: pd.DataFrame) -> pd.DataFrame:
    if found["contrast"].nunique() < len(CONTRASTS):
        return found.assign(label="undecided")
    above = (found["estimate"] > 0) & (found["p_corrected"] < LEVEL)
    wide = found.assign(above=above).pivot(index=["direction", "site"], columns="contrast", values=["above", "p_equal"])
    higher, equal = wide["above"].astype(bool), wide["p_equal"]["hard - weak"] < LEVEL
    lexical = higher["relevant - weak"] & higher["hard - weak"]
    semantic = higher["relevant - weak"] & higher["relevant - hard"] & equal & ~lexical
    label = pd.Series(np.select([lexical, semantic], ["lexical", "semantic"], "undecided"), index=wide.index)
    keys = pd.MultiIndex.from_frame(found[["direction", "site"]])
    return found.assign(label=label.reindex(keys).to_numpy())


def choose_matching(
    model: Reranker, pairs: list[Pair], *, heads: tuple[Head, ...] = (), top: int = 10, every: int = 3
) -> tuple[tuple[Head, ...], list[Pair]]:
    """The heads that are named, or the `top` matching heads found where none are, and the pairs left to measure.

    Where none are named, those whose largest attention from query to document differs most between the best and the
    worst grade of a query are found on one query in `every`, and the other queries are left.

    Raises:
        MechirError: when there are too few queries for both, or no query has two grades.
    """
    if heads:
        return heads, pairs
    chosen, rest = split_queries(pairs, every)
    return matching_heads(model, chosen, top), rest


def matching_heads(model: Reranker, pairs: Sequence[Pair], top: int) -> tuple[Head, ...]:
    """The heads with the largest difference of `mean_max` (query<-doc) between best and worst grade, over queries."""
    refuse_below(1, top=top)
    rows = attention_by_grade(model, pairs)
    rows = rows[(rows["direction"] == SIDES[0]) & is_head(rows["site"])]
    values = rows.pivot(index=["query_id", "grade"], columns="site", values="mean_max").sort_index()
    groups = values.groupby("query_id")
    difference = (groups.last() - groups.first())[groups.size() > 1]
    if difference.empty:
        raise MechirError("No query has documents of two grades to tell matching heads by: name them with --heads.")
    order = difference.mean().reindex(rows["site"].unique()).sort_values(ascending=False, kind="stable")
    return tuple(heads_of(model, order.index[:top]))
