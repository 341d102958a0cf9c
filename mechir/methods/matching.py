"""Where matching happens: how the attention between query and document differs by grade, head by head.

Patterns are reduced as they appear, to sums per query and grade: memory does not grow with the collection.

Source: Vast et al. 2025 (arXiv:2507.14604, section 4; CORIA 2025, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from mechir.errors import MechirError, refuse_below
from mechir.hooks import EveryLayer
from mechir.methods.groups import Groups, crossed
from mechir.methods.statistics import bootstrap_mean, holm, sign_flips, simultaneous
from mechir.pairs import EASY, Batch, Pair, progress_bar, shares, split_queries
from mechir.segments import FIVE, Segment, directions
from mechir.sites import Attn, Head

MEASURES = ("mean_max", "max", "mass", "entropy", "identical")
SIDES = ("query<-doc", "doc<-query")
CONTRASTS = (("relevant", "weak"), ("hard", "weak"), ("relevant", "hard"))


@torch.no_grad()
def attention_by_grade(
    model: Any,
    pairs: Sequence[Pair],
    *,
    sep2: bool = False,
    max_length: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """How every head attends between query and document, as means over each query's pairs of one grade.

    Args:
        model: a `HookedEncoder`.
        pairs: with grades; -1 are easy negatives.
        sep2: count the last SEP as document, as the papers' code does.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Returns:
        One row per query, grade, direction and site: `query_id`, `grade`, `n` pairs, `direction`, `site`, and

        - for heads, `query<-doc` and `doc<-query`: `mean_max`, the mean over readers of the largest weight on a source
          (M of the paper); `max`, the largest weight of all; `mass`, the mean over readers of the weight on all
          sources, 0 to 1; `entropy` in nats of where a reader looks among the sources, and `identical`, the share of
          that on tokens equal to the reader, both averaged over readers weighted by their mass;
        - for whole layers (`attn3`) all 25 directions, `mass` alone: the mean over heads and readers.

    Raises:
        MechirError: for pairs without grades.
    """
    if any(pair.grade is None for pair in pairs):
        raise MechirError("Pairs without a grade cannot be contrasted: give judged pairs.")
    groups = Groups.of(pairs)
    sums = _Sums.empty(model, len(groups.ids))
    encoded = model.encode(pairs, max_length)
    with progress_bar(len(pairs), progress) as bar:
        for index, batch in encoded.buckets(64, model.max_tokens // 2):  # patterns in the open take twice the memory
            batch, group = batch.to(model.device), groups.of_pair[index]
            view = _View.of(batch, sep2)

            def keep(x: Tensor, hook: Any, group: Tensor = group, view: _View = view) -> None:
                sums.add(int(hook.name.split(".")[1]), group, view, x)

            with model.hooks([(EveryLayer("attn.hook_pattern"), keep)]):
                model(batch, last_rows="all")
            bar.update(len(batch))
    return sums.frame(groups.ids)


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
class _Sums:
    """Sums over the pairs of each group: of heads, and of whole layers."""

    heads: Float[Tensor, "group layer side head measure"]
    layers: Float[Tensor, "group layer segment segment"]

    @classmethod
    def empty(cls, model: Any, n: int) -> _Sums:
        c = model.cfg
        shape = (n, c.n_layers, len(SIDES), c.n_heads, len(MEASURES))
        return cls(
            torch.zeros(shape, dtype=torch.float64),
            torch.zeros(n, c.n_layers, len(FIVE), len(FIVE), dtype=torch.float64),
        )

    def add(self, layer: int, group: Tensor, view: _View, pattern: Float[Tensor, "batch head reader source"]) -> None:
        window = slice(view.first, view.end)
        sides = (
            reduced(pattern[:, :, window], view.query, view.document, view.equal),
            reduced(pattern[..., window], view.document, view.query, view.equal.transpose(1, 2)),
        )
        self.heads[:, layer].index_add_(0, group, torch.stack(sides, 1).double().cpu())
        masses = view.share.to(pattern) @ (pattern.mean(1) @ view.member.to(pattern).transpose(1, 2))
        self.layers[:, layer].index_add_(0, group, masses.double().cpu())

    def frame(self, ids: pd.DataFrame) -> pd.DataFrame:
        _, n_layers, _, n_heads, _ = self.heads.shape
        counts = ids["n"].to_numpy()
        by_head = crossed(
            ids,
            direction=[side for _ in range(n_layers) for side in SIDES for _ in range(n_heads)],
            site=[str(Head(layer, head)) for layer in range(n_layers) for _ in SIDES for head in range(n_heads)],
        )
        heads = self.heads.flatten(1, 3).numpy() / counts[:, None, None]
        by_head = by_head.assign(**dict(zip(MEASURES, heads.reshape(-1, len(MEASURES)).T, strict=True)))
        named = [str(direction) for direction in directions()]
        layers = [str(Attn(layer)) for layer in range(n_layers) for _ in named]
        by_layer = crossed(ids, direction=named * n_layers, site=layers)
        mass = (self.layers.flatten(1).numpy() / counts[:, None]).reshape(-1)
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
        rows: of `attention_by_grade`; rows of whole layers are left out.
        grades: what "relevant", "hard" and "weak" are, e.g. {"relevant": 3, "hard": 0, "weak": -1}.
        measure: one of `MEASURES`.
        delta: differences of hard - weak within +- delta count as none.

    Returns:
        One row per direction, site and contrast ("relevant - weak", "hard - weak", "relevant - hard"): `queries` (those
        with both grades), `estimate`, the mean difference over queries, with `low` and `high`, its own 95 % bootstrap
        interval; `low_all` and `high_all`, which hold for all heads of the direction at once; `p_max`, two-sided,
        corrected for all of them by sign flips of queries; `p_equal`, that the difference lies within +- delta (two
        one-sided t-tests, Holm over the heads); `label`: **lexical** where relevant and hard are both above weak,
        **semantic** where relevant is above both and hard - weak within +- delta, otherwise **undecided**.

    Raises:
        MechirError: for a grade that no pair has, an unknown measure, or fewer than 2 queries with two grades.
    """
    refuse_below(0, delta=delta)
    if measure not in MEASURES:
        raise MechirError(f"Unknown measure '{measure}': write one of {', '.join(MEASURES)}.")
    heads = rows[rows["direction"].isin(SIDES) & rows["site"].str.startswith("h")]
    known = sorted(heads["grade"].unique().tolist())
    for name, grade in grades.items():
        if grade not in known:
            hint = "add --easy-negatives 10" if grade == EASY else f"write --{name} with another"
            raise MechirError(f"No pair has the grade {grade} ({name}): the grades are {known}; {hint}.")
    parts = []
    for side, part in heads.groupby("direction", sort=False):
        values = part.pivot(index="query_id", columns=["grade", "site"], values=measure)
        for high, low in CONTRASTS:
            differences = (values[grades[high]] - values[grades[low]]).dropna()[part["site"].unique()]
            if (n := len(differences)) < 2:
                both = f"grade {grades[high]} and of grade {grades[low]}"
                raise MechirError(f"Queries with pairs of {both}: {n}; take 2 or more.")
            parts.append(_compared(differences, delta).assign(direction=side, contrast=f"{high} - {low}"))
    found = _labelled(pd.concat(parts, ignore_index=True))
    first = ["direction", "site", "contrast", "label"]
    return found[[*first, *(name for name in found.columns if name not in first)]]


def _compared(differences: pd.DataFrame, delta: float) -> pd.DataFrame:
    values = differences.to_numpy()
    own = [bootstrap_mean(column) for column in values.T]
    low_all, high_all = simultaneous(values)
    return pd.DataFrame(
        {
            "site": differences.columns,
            "queries": len(values),
            "estimate": values.mean(0),
            "low": [low for low, _ in own],
            "high": [high for _, high in own],
            "low_all": low_all,
            "high_all": high_all,
            "p_max": sign_flips(values),
            "p_equal": holm(_p_equal(values, delta)),
        }
    )


def _p_equal(values: np.ndarray, delta: float) -> np.ndarray:
    """The larger p of two one-sided t-tests, against -delta and delta; 0 or 1 for a column without spread."""
    inside = delta - np.abs(values.mean(0))
    error = values.std(0, ddof=1) / len(values) ** 0.5
    t = np.divide(inside, error, out=np.copysign(np.inf, inside), where=error > 0)
    return stats.t.sf(t, len(values) - 1)


def _labelled(found: pd.DataFrame) -> pd.DataFrame:
    above = (found["estimate"] > 0) & (found["p_max"] < 0.05)
    wide = found.assign(above=above).pivot(index=["direction", "site"], columns="contrast", values=["above", "p_equal"])
    higher, equal = wide["above"].astype(bool), wide["p_equal"]["hard - weak"] < 0.05
    lexical = higher["relevant - weak"] & higher["hard - weak"]
    semantic = higher["relevant - weak"] & higher["relevant - hard"] & equal & ~lexical
    label = pd.Series(np.select([lexical, semantic], ["lexical", "semantic"], "undecided"), index=wide.index)
    keys = pd.MultiIndex.from_frame(found[["direction", "site"]])
    return found.assign(label=label.reindex(keys).to_numpy())


def choose_matching(
    model: Any, pairs: Sequence[Pair], *, heads: str = "", top: int = 10, every: int = 3
) -> tuple[list[Pair], dict[str, str]]:
    """The `prepare` of experiments on matching heads: what is left to measure, and the option `heads` with commas.

    Where none are named, those whose largest attention from query to document differs most between the best and the
    worst grade of a query are found on one query in `every`, and the other queries are left.

    Raises:
        MechirError: when there are too few queries for both, or no query has two grades.
    """
    if heads:
        return list(pairs), {}
    chosen, rest = split_queries(pairs, every)
    return rest, {"heads": ",".join(matching_heads(model, chosen, top))}


def matching_heads(model: Any, pairs: Sequence[Pair], top: int) -> list[str]:
    """The heads with the largest difference of `mean_max` (query<-doc) between best and worst grade, over queries."""
    refuse_below(1, top=top)
    rows = attention_by_grade(model, pairs)
    rows = rows[(rows["direction"] == SIDES[0]) & rows["site"].str.startswith("h")]
    values = rows.pivot(index=["query_id", "grade"], columns="site", values="mean_max").sort_index()
    groups = values.groupby("query_id")
    difference = (groups.last() - groups.first())[groups.size() > 1]
    if difference.empty:
        raise MechirError("No query has documents of two grades to tell matching heads by: name them with --heads.")
    order = difference.mean().reindex(rows["site"].unique()).sort_values(ascending=False, kind="stable")
    return [str(site) for site in order.index[:top]]
