"""Backup heads by conditional co-ablation: what a component does once another one is gone.

    single      = score without the candidate - score
    conditional = score without the primary and the candidate - score without the primary
    estimate    = conditional - single

A backup stands in for a primary head, so its effect appears only without it: `single` is about 0 and `conditional` is
not. Neither of the two shows in ablations of one head at a time.

Source: Gong et al. 2026 (conditional co-ablation, arXiv:2607.01940), who score the growth of a head's effect; backup
heads: Wang et al. 2022 (arXiv:2211.00593).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from mechir import inference
from mechir.activations import Activations
from mechir.batches import for_numpy
from mechir.contrasts import Contrast, ContrastBatch, encode_contrasts
from mechir.errors import MechirError
from mechir.hooks import Hook
from mechir.interventions import Ablate, Splice
from mechir.methods.circuit_runs import as_contrasts
from mechir.methods.edge_graph import written_order
from mechir.methods.edge_scores import summary
from mechir.methods.metrics import Metric, as_metric, by_query, evaluated, refuse_non_finite_runs
from mechir.methods.metrics import score as mean_score
from mechir.model_sites import all_heads, sites_of
from mechir.recorder import observe
from mechir.reranker import Reranker, Restarts, needs
from mechir.sites import Head, Mlp, Site
from mechir.sweeps import StageEdits, stages, walk

BY = ("donor", "zero")
Component = Head | Mlp
Removed = frozenset[Component]
"""Components that are gone together."""


@dataclass(frozen=True, eq=False)
class Backups:
    """The effect of every candidate alone and without each primary, on every query.

    Attributes:
        primary: what was removed first, by column; components joined by "+" were removed together.
        candidate: what was then removed, by column.
        query_ids: the queries, in the order of the rows.
        single: the effect of removing the candidate alone: score without - score.
        conditional: the same where the primary is gone already.
        removal: the effect of removing the primary alone.
    """

    primary: tuple[str, ...]
    candidate: tuple[str, ...]
    query_ids: tuple[str, ...]
    single: Float[np.ndarray, "query column"]
    conditional: Float[np.ndarray, "query column"]
    removal: Float[np.ndarray, "query column"]

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Backups:
        """The value whose `rows` these are, of one run or of several on other queries."""
        pairs = list(dict.fromkeys(zip(rows["primary"], rows["candidate"], strict=True)))
        wide = rows.pivot(index="query_id", columns=["primary", "candidate"])
        wide = wide.loc[rows["query_id"].unique()]
        values = {name: wide[name][pairs].to_numpy() for name in ("single", "conditional", "removal")}
        primary, candidate = zip(*pairs, strict=True)
        return cls(primary, candidate, tuple(wide.index), **values)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line for each primary and candidate.

        `primary`, `candidate`; `removal`, the mean effect of the primary; `single` and `conditional`, those of the
        candidate, each with its 95 % interval over queries (`single_low`, ...); `estimate` = conditional - single with
        `low` and `high`, its `p` alone and `p_corrected` for all lines together (sign flips of queries, max-T);
        `growth` = |conditional| - |single|, large for a backup, negative for what worked through the primary;
        `queries`.
        """
        parts = {"single": inference.means(self.single), "conditional": inference.means(self.conditional)}
        columns = {"primary": self.primary, "candidate": self.candidate, "removal": self.removal.mean(0)}
        for name, of in parts.items():
            columns |= {name: of.estimate, f"{name}_low": of.low, f"{name}_high": of.high}
        tested = summary(self.conditional - self.single)
        growth = np.abs(parts["conditional"].estimate) - np.abs(parts["single"].estimate)
        return pd.concat([pd.DataFrame(columns), tested.drop(columns="queries")], axis=1).assign(
            growth=growth, queries=tested["queries"]
        )

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One line for each primary, candidate and query: `single`, `conditional`, `estimate`, `removal`."""
        n, m = self.single.shape
        names = {"primary": np.repeat(self.primary, n), "candidate": np.repeat(self.candidate, n)}
        values = {name: getattr(self, name).T.flatten() for name in ("removal", "single", "conditional")}
        frame = pd.DataFrame(names | {"query_id": np.tile(self.query_ids, m)} | values)
        return frame.assign(estimate=frame["conditional"] - frame["single"])


@torch.no_grad()
def backups(
    model: Restarts,
    contrasts: Any,
    primary: Any = None,
    candidates: Any = None,
    *,
    by: str | Activations = "donor",
    metric: str | Metric = "score",
    max_rows: int = 256,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> Backups:
    """What each candidate does alone, and once each primary is gone.

    Runs share their layers up to the first component that is removed: with heads of the middle layers as primaries
    about half a forward for each line of the frame.

    Args:
        model: one that starts at any layer, such as a `HookedEncoder`.
        contrasts: aligned pairs, or (base, donor) pairs of equal length; runs are on the bases.
        primary: heads or MLPs, each taken as a primary of its own ("h8.1", or ["h8.1", "mlp3"]); those joined by "+"
            are removed together ("h8.1+h8.3").
        candidates: heads or MLPs; by default all heads. A candidate that is part of the primary has no line.
        by: what takes a component's place: its activation on the "donor" (resample ablation), "zero", or activations
            of other texts (`means`, `samples`). With the two latter the donors are not run.
        metric: "score", or a function of the scores of a query's contrasts (see `metrics.Metric`).
        max_rows: the most contrasts x runs computed together.
        max_tokens: the most word pieces computed together; by default `model.max_tokens`.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Raises:
        MechirError: without a primary; for what is no head or MLP of this model, an unknown `by`, contrasts that are
            not aligned, or no candidate beside the primary.

    It misleads where candidate and primary are in series: what works through the primary has an effect alone and none
    without it, so `estimate` is large and `growth` negative. It misses a function that three components share, two of
    which are enough: remove two of them together ("h8.1+h8.3"). With "zero" the state without the primary is one that
    the model never saw, in which components may do what they do nowhere else; and an exchange of the two sides of a
    contrast turns an OR into an AND, whose parts show alone.
    """
    needs(model, "backups", Restarts)
    removed = _primaries(model, primary)
    alone = _components(model, candidates)
    columns = [(first, then) for first in removed for then in alone if then not in first]
    if not columns:
        raise MechirError(
            f"Every candidate is part of the primary {_name(removed[0])}: give others, or leave candidates out for all "
            "heads."
        )
    if not (isinstance(by, Activations) or by in BY):
        raise MechirError(f"Unknown by={by!r}: write {' or '.join(map(repr, BY))}, or means(model, pairs).")
    of, listed = as_metric(metric), as_contrasts(contrasts)
    encoded, limit = encode_contrasts(model, listed, max_length), max_tokens or model.max_tokens
    sets: list[Removed] = [frozenset(), *removed, *(frozenset([then]) for _, then in columns)]
    sets = list(dict.fromkeys([*sets, *(first | {then} for first, then in columns)]))
    scores = np.empty((len(sets), len(listed)), dtype=np.float32)
    for batch in encoded.batches(model, max_rows=max_rows, max_tokens=limit, progress=progress):
        plans = _plans(model, batch, sets, by)
        for place, score in walk(model, batch.base, plans, max_rows=max_rows, max_tokens=limit):
            scores[int(place), batch.rows] = for_numpy(score).numpy()
    refuse_non_finite_runs(scores, listed, [f"without {_name(some)}" if some else "of the base" for some in sets])
    by_set, queries = by_queries(of, scores, listed)
    values = dict(zip(sets, by_set, strict=True))
    intact = values[frozenset()]
    return Backups(
        primary=tuple(_name(first) for first, _ in columns),
        candidate=tuple(str(then) for _, then in columns),
        query_ids=queries,
        single=np.stack([values[frozenset([then])] - intact for _, then in columns], 1),
        conditional=np.stack([values[first | {then}] - values[first] for first, then in columns], 1),
        removal=np.stack([values[first] - intact for first, _ in columns], 1),
    )


def _plans(
    model: Restarts, batch: ContrastBatch, sets: Sequence[Removed], by: str | Activations
) -> dict[str, list[StageEdits]]:
    """The stages of the run without each set; a component's edit is one value in all of them, so runs share layers."""
    gone = frozenset().union(*sets)
    if by == "donor":
        # Of what the last layer writes there is the head's row alone.
        _, donor = observe(model, batch.donor, {site.hook for site in gone}, head_row=True)
        edits: dict[Component, Hook] = {site: (site.hook, Splice(site, donor[site.hook])) for site in gone}
    else:
        filling = by if isinstance(by, Activations) else None
        edits = {site: Ablate(site, filling).hooks(batch.base)[0] for site in gone}
    return {
        str(place): stages(model, [edits[site] for site in sorted(without, key=written_order)])
        for place, without in enumerate(sets)
    }


def by_queries(
    metric: Metric, scores: Float[np.ndarray, "run contrast"], contrasts: Sequence[Contrast]
) -> tuple[Float[np.ndarray, "run query"], tuple[str, ...]]:
    """The metric of every query in every run.

    Raises:
        MechirError: for a metric, other than the score, that no run changes in any query.
    """
    rows = by_query([contrast.query_id for contrast in contrasts])
    values = [evaluated(metric, torch.from_numpy(scores[:, some]), query) for query, some in rows.items()]
    table = torch.stack(values, 1).double().numpy()
    if metric is not mean_score and (table == table[:1]).all():
        raise MechirError(
            f"The metric is the same in every run, as of query {next(iter(rows))}: give one that the scores of a query "
            "move, or write metric='score'."
        )
    return table, tuple(rows)


def _primaries(model: Reranker, given: Any) -> list[Removed]:
    """The sets that are removed first, each once."""
    listed = [] if given is None else _listed(given)
    if not listed:
        n = model.cfg.n_layers * model.cfg.n_heads
        raise MechirError(
            f"backups needs what is removed first, for this model has {n * (n - 1) // 2:,} pairs of heads: give "
            "primary='h8.1', or the heads of a circuit, primary=scores.circuit(20).heads."
        )
    sets = [item.split("+") if isinstance(item, str) else [item] for item in listed]
    return list(dict.fromkeys(frozenset(_components(model, items)) for items in sets))


def _components(model: Reranker, given: Any) -> list[Component]:
    """The heads and MLPs as values, each once; all heads for None."""
    if given is None:
        return list(all_heads(model))
    parsed = sites_of(model, [item.strip() if isinstance(item, str) else item for item in _listed(given)])
    for site in parsed:
        if not isinstance(site, Head | Mlp) or site.part not in ("z", "out"):
            raise MechirError(f"'{site}' is no component to remove: write heads (h8.1) and MLPs (mlp3).")
    return list(dict.fromkeys(parsed))


def _listed(given: Any) -> list[Any]:
    """One site or several as a list; raises for what is none."""
    listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str | Site) else [given]
    for item in listed:
        if not isinstance(item, str | Site):
            raise MechirError(f"{item!r:.60} is no component to remove: write heads (h8.1) and MLPs (mlp3).")
    return listed


def _name(sites: Removed) -> str:
    return "+".join(map(str, sorted(sites, key=written_order)))
