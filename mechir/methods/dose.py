"""Dose and response: a query term's embedding scaled step by step, and what the score and the scoring heads do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechir.diagnostics import Term
from mechir.hooks import Hook, edits
from mechir.methods.lexical import pieces_of, random_direction
from mechir.model_sites import heads_of
from mechir.pairs import Batch, Pair, for_numpy
from mechir.recorder import observe
from mechir.reranker import Reranker, Weights, needs
from mechir.segments import Segment
from mechir.sites import Head
from mechir.subspaces import EditEmbedding, Subspace


def doses(
    model: Weights, direction: Subspace, factors: Sequence[float], draws: int
) -> dict[tuple[str, float], EditEmbedding]:
    """Along a direction up and down, the whole row, and `draws` random directions: (along, signed factor) -> edit.

    Up the direction a coordinate a becomes c |a|, down it becomes -c |a|; the row is multiplied by c and by -c: the
    edits of Lu et al. 2025. Random directions are edited up alone.
    """
    needs(model, "doses", Weights)
    found: dict[tuple[str, float], EditEmbedding] = {}
    for c in factors:
        for signed in (c, -c):
            found["direction", signed] = EditEmbedding(signed, direction, absolute=True)
            found["row", signed] = EditEmbedding(signed)
        for seed in range(draws):
            found[f"random {seed}", c] = EditEmbedding(c, random_direction(model, seed), absolute=True)
    return found


def shifts(model: Weights, direction: Subspace, draws: int) -> dict[tuple[str, float], EditEmbedding]:
    """One step up the direction and one down, and along `draws` random ones: (along, 1 or -1) -> edit.

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
        (along, sign): EditEmbedding(1, one, shift=sign * float((rows @ one.read[0]).std()))
        for along, one in named.items()
        for sign in (1.0, -1.0)
    }


@torch.no_grad()
def dose_response(
    model: Reranker,
    pairs: Sequence[Pair],
    do: Mapping[tuple[str, float], EditEmbedding],
    heads: Sequence[Head | str],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Score and attention of every pair under every edit of one content word of its query, drawn at random.

    Args:
        model: a `HookedEncoder`.
        pairs: whole queries.
        do: of `doses`, `shifts`; the pieces that are edited are those of the word, in the query and in the document.
        heads: whose attention from CLS to the word's positions in the query is averaged.
        seed: of the word.

    Returns:
        One row per edit and pair: `along`, `factor`, `query_id`, `doc_id`, `grade`, `term`, `matched` (the document
        holds a piece of it); `score_base` and `score_change` (edited - base, logits); `attention_base` and
        `attention_change`: the mean weight from CLS to one of the word's positions, over heads.

    Raises:
        MechirError: for what is no head of this model.
    """
    needs(model, "dose_response", reads="cls")
    sites, firsts = heads_of(model, heads), {pair.query_id: pair for pair in reversed(pairs)}
    terms = {query_id: Term(seed=seed)(pair) for query_id, pair in firsts.items()}
    pieces = dict(zip(terms, pieces_of(model, list(terms.values())), strict=True))
    rows = []
    for _, batch in model.batches(pairs):
        ids, asked = batch.input_ids, [pair.query_id for pair in batch.pairs]
        edited = torch.stack(
            [torch.isin(row, torch.tensor(pieces[key]).to(row)) for row, key in zip(ids, asked, strict=True)]
        )
        score, attention = _response(model, batch, None, edited, sites)
        told = pd.DataFrame(
            [(pair.query_id, pair.doc_id, pair.grade, terms[pair.query_id]) for pair in batch.pairs],
            columns=["query_id", "doc_id", "grade", "term"],
        ).assign(matched=(edited & batch.at(Segment.DOC)).any(1).cpu().numpy())
        told = told.assign(score_base=score, attention_base=attention)
        for (along, factor), edit in do.items():
            scores, looked = _response(model, batch, edit, edited, sites)
            change = {"score_change": scores - score, "attention_change": looked - attention}
            rows.append(told.assign(along=along, factor=factor, **change))
    first = ["along", "factor", "query_id", "doc_id", "grade", "term", "matched"]
    found = pd.concat(rows, ignore_index=True)
    return found[[*first, *(name for name in found.columns if name not in first)]]


def _response(
    model: Reranker, batch: Batch, edit: EditEmbedding | None, edited: Bool[Tensor, "batch pos"], heads: Sequence[Head]
) -> tuple[np.ndarray, np.ndarray]:
    """The score with the edit at the positions marked, and the mean weight of the heads from CLS to the query's."""
    there = batch.at(Segment.QUERY) & edited
    names = {f"blocks.{head.layer}.attn.hook_pattern" for head in heads}
    with model.hooks(edits(() if edit is None else _At(edit, edited), batch)):
        score, kept = observe(model, batch, names, lambda _, x: x[:, :, 0], head_row=True)
    looked = [
        _mean_at(rows[:, head.head], there)
        for name, rows in kept.items()
        for head in heads
        if f"blocks.{head.layer}." in name
    ]
    return score.cpu().numpy(), for_numpy(torch.stack(looked).mean(0)).numpy()


@dataclass(frozen=True)
class _At:
    """An edit of the embeddings at some positions of a batch alone: each row edits the word of its own query."""

    edit: EditEmbedding
    where: Bool[Tensor, "batch pos"]

    def hooks(self, batch: Batch) -> list[Hook]:
        ((name, scaled),) = self.edit.hooks(batch)

        def act(x: Tensor, hook: Any) -> Tensor:
            return torch.where(self.where[:, :, None], scaled(x, hook), x)

        return [(name, act)]


def _mean_at(x: Float[Tensor, "batch pos"], there: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch"]:
    return (x * there).sum(1) / there.sum(1).clamp(min=1)
