"""Sweeps: many interventions over the same pairs, at the least exact cost.

The forward is a walk down a tree of edited states, two stages to a layer: the heads read, then heads and MLP write.
Interventions whose edits are equal up to a stage share its state. States of one stage are computed together, stacked
along the batch axis, in chunks of bounded size, depth first, so memory does not grow with the number of interventions.
The last layer computes the CLS row alone unless an edit there needs more.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch
from mechir.errors import MechirError
from mechir.hooks import Edit, Hook, edits
from mechir.recorder import refuse_non_finite
from mechir.reranker import Reranker, Restarts, Resumes, needs, offers

READ = (
    "hook_resid_pre",
    *(f"hook_{part}_input" for part in "qkv"),
    *(f"attn.hook_{part}" for part in ("q", "k", "v", "attn_scores", "pattern")),
)
"""Hooks of the first stage of a layer."""
LATER = ("head.", "ln_final.", "decoder.")
"""The beginnings of hooks behind the last layer."""
SHARED, ONE_BY_ONE = "what interventions share, once", "one run for each intervention"
"""How a sweep was computed."""
StageEdits = tuple[tuple[str, Edit], ...]
"""The edits of one stage, in order. Equal values mean equal states, given equal states before."""


@dataclass(frozen=True, eq=False)
class State:
    """The residual stream of one batch under some edits, and the names of the interventions that share it.

    In the middle of a layer there is also `z`, the output of its heads before W_O.
    """

    resid: Float[Tensor, "batch pos d_model"]
    names: tuple[str, ...]
    z: Float[Tensor, "batch pos head d_head"] | None = None


@torch.no_grad()
def sweep(
    model: Reranker,
    pairs: Any,
    do: Any,
    *,
    max_rows: int = 256,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """The score of every pair under every named intervention: what `model.score` gives for each.

    Of a model that starts at any layer, what interventions share is computed once; of any other each is a run of its
    own (`attrs["computed"]` says which). In float32 they differ by some 1e-6 of the length of the stream: below 1e-5 on
    trained models, below 1e-4 on planted ones, whose stream has length 100; in float64 by 1e-12.

    Args:
        model: any reranker.
        pairs: what to score, as `mi.pairs` reads it.
        do: a mapping name -> intervention, several of them, or `()` for the intact model.
        max_rows: the most pairs x interventions computed together.
        max_tokens: the most word pieces computed together, which bounds the memory; by default `model.max_tokens`.
        max_length: word pieces kept of a pair; documents are cut, queries never.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Returns:
        Columns `name`, `query_id`, `doc_id`, `grade` (judgment; -1 easy negative; missing when unjudged), `score`
        (logit or log-odds of relevance). Names in the order given, pairs in theirs.

    Raises:
        MechirError: as `model.score`; for an empty `do`.
    """
    needs(model, "sweep")
    if not isinstance(do, Mapping):
        raise MechirError("sweep takes interventions by name: write do={'cut': Mask('doc<-query'), 'intact': ()}.")
    if not do:
        raise MechirError("A sweep needs at least one intervention: write {'original': (), 'cut': Mask('doc<-query')}.")
    encoded, max_tokens = model.encode(pairs, max_length), max_tokens or model.max_tokens
    number = np.float64 if model.dtype == torch.float64 else np.float32
    scores = {name: np.empty(len(encoded), dtype=number) for name in do}
    for index, batch in model.batches(encoded, max_rows=max_rows, max_tokens=max_tokens, progress=progress):
        hooks = {name: edits(intervention, batch) for name, intervention in do.items()}
        for name, score in scores_under(model, batch, hooks, max_rows=max_rows, max_tokens=max_tokens):
            scores[name][index] = score.cpu().numpy()
    for name in do:
        refuse_non_finite(model, torch.from_numpy(scores[name]), encoded, do[name])
    columns = {
        "query_id": [pair.query_id for pair in encoded.pairs],
        "doc_id": [pair.doc_id for pair in encoded.pairs],
        "grade": pd.array([pair.grade for pair in encoded.pairs], dtype="Int64"),
    }
    frames = (pd.DataFrame({"name": name} | columns | {"score": scores[name]}) for name in do)
    table = pd.concat(frames, ignore_index=True)
    table.attrs["computed"] = SHARED if offers(model, Restarts) else ONE_BY_ONE
    return table


def scores_under(
    model: Reranker, batch: Batch, hooks: Mapping[str, Sequence[Hook]], *, max_rows: int, max_tokens: int
) -> Iterator[tuple[str, Float[Tensor, "batch"]]]:
    """The scores of one batch under each list of hooks, by name: as `walk` where the model starts at any layer.

    Of any other model each is a run of its own; one that goes on from a run begins at the first layer that is touched.
    """
    if offers(model, Restarts):
        restarting = cast(Restarts, model)
        plans = {name: stages(restarting, some) for name, some in hooks.items()}
        yield from walk(restarting, batch, plans, max_rows=max_rows, max_tokens=max_tokens)
        return
    resumes = cast(Resumes, model) if offers(model, Resumes) and len(hooks) > 1 else None
    begun = None if resumes is None else resumes.begun(batch)
    for name, some in hooks.items():
        with model.hooks(some):
            yield name, model(batch) if resumes is None else resumes.resumed(batch, begun, _first(model, some))


def _first(model: Reranker, hooks: Sequence[Hook]) -> int:
    """The first layer that hooks touch: 0 for the embeddings, the number of layers for what comes after them."""
    found = [re.match(r"blocks\.(\d+)\.", name) or name.startswith(LATER) for name, _ in model.resolve(hooks)]
    return min(
        (int(at[1]) if isinstance(at, re.Match) else model.cfg.n_layers * at for at in found),
        default=model.cfg.n_layers,
    )


def stages(model: Restarts, hooks: Sequence[Hook]) -> list[StageEdits]:
    """The edits by stage: embeddings (0), what layer l reads (2 l + 1) and writes (2 l + 2), head (the last)."""
    by_stage: list[list[tuple[str, Edit]]] = [[] for _ in range(2 * model.cfg.n_layers + 2)]
    for name, edit in model.resolve(hooks):
        layer = re.match(r"blocks\.(\d+)\.(.+)", name)
        stage = len(by_stage) - 1 if name.startswith("head.") else 0
        if layer:
            stage = 2 * int(layer[1]) + (1 if layer[2] in READ else 2)
        by_stage[stage].append((name, edit))
    return [tuple(stage_edits) for stage_edits in by_stage]


def walk(
    model: Restarts, batch: Batch, plans: Mapping[str, list[StageEdits]], *, max_rows: int, max_tokens: int
) -> Iterator[tuple[str, Float[Tensor, "batch"]]]:
    """The scores of one batch under each plan, in the order in which the tree is walked."""
    allowed, last = model.allowed(batch), 2 * model.cfg.n_layers + 1
    at_once = max(1, min(max_rows // len(batch), max_tokens // batch.input_ids.numel()))

    def down(stage: int, states: list[State]) -> Iterator[tuple[str, Tensor]]:
        branches = _branches(states, plans, stage)
        if stage == last:
            for state, stage_edits in branches:
                with model.hooks(stage_edits):
                    score = model.run_head(state.resid)
                yield from ((name, score) for name in state.names)
            return
        for start in range(0, len(branches), at_once):
            yield from down(stage + 1, _run(model, stage, branches[start : start + at_once], allowed, plans))

    states = []
    for stage_edits, names in _grouped(plans, plans, 0).items():
        with model.hooks(stage_edits):
            states.append(State(model.embedded(batch), tuple(names)))
    yield from down(1, states)


Branch = tuple[State, StageEdits]


def _grouped(names: Iterable[str], plans: Mapping[str, list[StageEdits]], stage: int) -> dict[StageEdits, list[str]]:
    """The names by their edits at a stage."""
    groups: dict[StageEdits, list[str]] = {}
    for name in names:
        groups.setdefault(plans[name][stage], []).append(name)
    return groups


def _branches(states: Sequence[State], plans: Mapping[str, list[StageEdits]], stage: int) -> list[Branch]:
    """Each state once per distinct set of edits at this stage, those that open attention first."""
    branches = [
        (State(state.resid, tuple(names), state.z), stage_edits)
        for state in states
        for stage_edits, names in _grouped(state.names, plans, stage).items()
    ]
    opening = ("hook_pattern", "hook_attn_scores")
    return sorted(branches, key=lambda branch: not any(name.endswith(opening) for name, _ in branch[1]))


def _run(
    model: Restarts, stage: int, chunk: list[Branch], allowed: Tensor | None, plans: Mapping[str, list[StageEdits]]
) -> list[State]:
    """One stage over a chunk of branches, stacked along the batch axis; each edit sees its own rows alone."""
    layer, writes = (stage - 1) // 2, stage % 2 == 0
    size, names = len(chunk[0][0].resid), [state.names for state, _ in chunk]
    resid = _stacked([state.resid for state, _ in chunk])
    with _rowwise(model, [stage_edits for _, stage_edits in chunk], size):
        if writes:
            out = model.run_write(layer, resid, _stacked([state.z for state, _ in chunk]))
            return [State(rows, shared) for rows, shared in zip(out.split(size), names, strict=True)]
        last = layer == model.cfg.n_layers - 1
        edits_here = [edit for shared in names for name in shared for s in (0, 1) for _, edit in plans[name][stage + s]]
        head_row = last and all(edit.head_row for edit in edits_here)
        sources = None if allowed is None else allowed.repeat(len(chunk), 1, 1, 1)
        rows, z = model.run_read(layer, resid, sources, head_row=head_row)
    return [State(*each) for each in zip(rows.split(size), names, z.split(size), strict=True)]


def _stacked(parts: Sequence[Any]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


@contextlib.contextmanager
def _rowwise(model: Restarts, per_branch: list[StageEdits], size: int) -> Iterator[None]:
    """Hooks that apply the edits of branch i to rows i * size to (i + 1) * size."""
    names = dict.fromkeys(name for stage_edits in per_branch for name, _ in stage_edits)

    def edit_rows(x: Tensor, hook: Any) -> Tensor:
        rows = list(x.split(size))
        for i, stage_edits in enumerate(per_branch):
            for name, edit in stage_edits:
                edited = edit(rows[i], hook=hook) if name == hook.name else None
                rows[i] = rows[i] if edited is None else edited
        return torch.cat(rows)

    with model.hooks([(name, edit_rows) for name in names]):
        yield


def forwards(model: Reranker, do: Mapping[str, Any]) -> float:
    """The cost of the sweep of `do` in full forwards per pair: layers computed over layers of the model.

    The last layer counts in full, although mostly the CLS row alone is computed.
    """
    batch = model.batch(("a", "b"))
    hooks = [edits(intervention, batch) for intervention in do.values()]
    if not offers(model, Restarts):
        return float(len([model.resolve(some) for some in hooks]))
    plans = [stages(cast(Restarts, model), some) for some in hooks]
    n = 2 * model.cfg.n_layers
    halves = sum(len({tuple(plan[: stage + 1]) for plan in plans}) for stage in range(1, n + 1))
    return halves / n
