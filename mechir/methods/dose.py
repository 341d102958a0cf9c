"""Dose and response: a query term's embedding scaled step by step, and the score and scoring heads that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from mechir.batches import Batch, for_numpy, shares
from mechir.diagnostics import Term
from mechir.hooks import Hook
from mechir.inputs import as_pairs
from mechir.methods.groups import columns_first, pair_ids
from mechir.methods.lexical import pieces_of, random_direction
from mechir.model_sites import heads_of
from mechir.recorder import observe
from mechir.reranker import Reranker, Weights, needs
from mechir.segments import Segment
from mechir.sites import Head
from mechir.subspaces import EditEmbedding, Subspace


def doses(
    model: Weights, direction: Subspace, factors: Sequence[float], draws: int
) -> dict[tuple[str, float], EditEmbedding]:
    """Edits along a direction up and down, of the whole row, and along `draws` random directions.

    Keys are (along, signed factor).

    Up the direction a coordinate a becomes c |a|, down it becomes -c |a|; the row is multiplied by c and by -c: the
    edits of Lu et al. 2025. Random directions are edited up alone.
    """
    needs(model, "doses", Weights)
    named: dict[tuple[str, float], EditEmbedding] = {}
    for c in factors:
        for signed in (c, -c):
            named["direction", signed] = EditEmbedding(signed, direction, absolute=True)
            named["row", signed] = EditEmbedding(signed)
        for seed in range(draws):
            named[f"random {seed}", c] = EditEmbedding(c, random_direction(model, seed), absolute=True)
    return named


def shifts(model: Weights, direction: Subspace, draws: int) -> dict[tuple[str, float], EditEmbedding]:
    """Edits one step up the direction and one down, and along `draws` random ones; keys are (along, 1 or -1).

    A step is as far as words differ along a direction: the standard deviation of its coordinate over the rows of W_E,
    special tokens left out. Random directions are sums of those rows with random weights, less their mean and what lies
    along the direction itself, so that a step along them is a difference that words do have. Half of up less down is
    what a step does to first order: what any displacement does, as to the LayerNorms, is the same both ways and drops
    out.
    """
    needs(model, "shifts", Weights)
    words = sorted(set(range(len(model.W_E))) - set(model.tokenizer.all_special_ids))
    rows = model.W_E.detach().double().cpu()[words]
    rows = rows - rows.mean(0)
    free = direction.add(rows, -direction.coordinates(rows))
    named = {"shift": direction}
    for seed in range(draws):
        weights = torch.randn(len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        recipe = f"random sum of words, seed {seed}"
        named[f"shift random {seed}"] = Subspace.span(weights @ free, recipe, model=model.fingerprint)
    return {
        (along, sign): EditEmbedding(1, line, shift=sign * float((rows @ line.read[0]).std()))
        for along, line in named.items()
        for sign in (1.0, -1.0)
    }


@torch.no_grad()
def dose_response(
    model: Reranker,
    pairs: Any,
    do: Mapping[tuple[str, float], EditEmbedding],
    heads: Sequence[Head | str],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The score and attention of every pair under every edit of one content word of its query, drawn at random.

    The edits `do`, of `doses` and `shifts`, act on the word's pieces in the query and in the document of the `pairs`,
    which are whole queries. The attention of `heads` from CLS to the word's positions in the query is averaged.

    Returns:
        One row per edit and pair: `along`, `factor`, `query_id`, `doc_id`, `grade`, `term`, `matched` (the document
        holds a piece of it); `score_base` and `score_change` (edited - base, logits); `attention_base` and
        `attention_change`: the mean weight from CLS to one of the word's positions, over heads.

    Raises:
        MechirError: for what is no head of this model.
    """
    needs(model, "dose_response", reads="cls")
    pairs = as_pairs(pairs)
    sites, firsts = heads_of(model, heads), {pair.query_id: pair for pair in reversed(pairs)}
    terms = {query_id: Term(seed=seed)(pair) for query_id, pair in firsts.items()}
    pieces = dict(zip(terms, pieces_of(model, list(terms.values())), strict=True))
    rows = []
    for _, batch in model.batches(pairs):
        wanted = [torch.tensor(pieces[pair.query_id]).to(batch.input_ids) for pair in batch.pairs]
        edited = torch.stack([torch.isin(row, ids) for row, ids in zip(batch.input_ids, wanted, strict=True)])
        score, attention = _response(model, batch, None, edited, sites)
        ids = pair_ids(batch.pairs).assign(term=[terms[pair.query_id] for pair in batch.pairs])
        ids["matched"] = (edited & batch.at(Segment.DOC)).any(1).cpu().numpy()
        base = ids.assign(score_base=score, attention_base=attention)
        for (along, factor), edit in do.items():
            scores, looked = _response(model, batch, edit, edited, sites)
            change = {"score_change": scores - score, "attention_change": looked - attention}
            rows.append(base.assign(along=along, factor=factor, **change))
    return columns_first(pd.concat(rows, ignore_index=True), ["along", "factor"])


def _response(
    model: Reranker, batch: Batch, edit: EditEmbedding | None, edited: Bool[Tensor, "batch pos"], heads: Sequence[Head]
) -> tuple[np.ndarray, np.ndarray]:
    """The score with the edit at the positions marked, and the mean weight of the heads from CLS to the query's."""
    readers = shares(batch.at(Segment.QUERY) & edited)
    hooks = {head: head._replace(part="pattern").hook for head in heads}
    hooked: list[Hook] = []
    if edit is not None:
        ((name, scaled),) = edit.hooks(batch)
        hooked.append((name, lambda x, hook: torch.where(edited[:, :, None], scaled(x, hook), x)))
    with model.hooks(hooked):
        score, rows = observe(model, batch, set(hooks.values()), lambda _, x: x[:, :, 0], head_row=True)
    looked = [(rows[hook][:, head.head] * readers.to(rows[hook])).sum(1) for head, hook in hooks.items()]
    return score.cpu().numpy(), for_numpy(torch.stack(looked).mean(0)).numpy()
