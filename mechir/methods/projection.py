"""The causal check of W_QK's alignment: its directions taken out of a head's queries, beside random ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch, for_numpy
from mechir.inputs import as_pairs
from mechir.methods.spectra import LOOK, Seen
from mechir.model_sites import heads_of
from mechir.pair import Pair
from mechir.recorder import observe
from mechir.reranker import Weights, needs
from mechir.segments import Segment
from mechir.sites import Head
from mechir.subspaces import Project, Subspace
from mechir.sweeps import sweep

ALIGNED = "aligned"


def project_heads(
    model: Weights, pairs: Any, heads: Sequence[Head | str], *, k: int = 4, draws: int = 20
) -> pd.DataFrame:
    """The change of a head's matching attention and of the score without its k most aligned directions, or random ones.

    Returns:
        One row per head, set of directions and pair: `site`, `directions` ("aligned", "random 0", ...), `query_id`,
        `doc_id`, `grade`; `score_base` and `score_change` (projected - base, logits); `attention_base` and
        `attention_change`: the mean over query tokens of the head's largest weight on a document token, and its change.

    Raises:
        MechirError: for a site that is no head of this model, or more directions than it has.
    """
    needs(model, "project_heads", Weights, positions="absolute", causal=False, window=None, instead=LOOK)
    pairs = as_pairs(pairs)
    sets = {}
    for site in heads_of(model, heads):
        seen = Seen.by(model, site)
        random = {f"random {seed}": seen.random(k, seed=seed) for seed in range(draws)}
        sets[Head(site.layer, site.head, "q")] = {ALIGNED: seen.aligned(k)} | random
    do = {f"{head}|{name}": Project(head, sets[head][name]) for head in sets for name in sets[head]}
    scores = sweep(model, pairs, {"base": ()} | do, progress=False)
    base = np.tile(scores.loc[scores["name"] == "base", "score"].to_numpy(), len(do))
    rows = scores[scores["name"] != "base"].reset_index(drop=True)
    rows[["site", "directions"]] = rows["name"].str.split("|", expand=True)
    rows["site"] = rows["site"].str.removesuffix(".q")
    attention = _attention(model, pairs, sets)
    intact = np.concatenate([attention[head, ""] for head in sets for _ in sets[head]])
    projected = np.concatenate([attention[head, name] for head in sets for name in sets[head]])
    return rows[["site", "directions", "query_id", "doc_id", "grade"]].assign(
        score_base=base,
        score_change=rows["score"] - base,
        attention_base=intact,
        attention_change=projected - intact,
    )


@torch.no_grad()
def _attention(
    model: Weights, pairs: Sequence[Pair], sets: Mapping[Head, Mapping[str, Subspace]]
) -> dict[tuple[Head, str], np.ndarray]:
    """The largest weight on a document token, mean over query tokens: intact ("") and without each set of directions.

    Nothing before a head's own layer changes, so its q and k of one intact run say it all.
    """
    values = {(head, name): np.empty(len(pairs)) for head in sets for name in ("", *sets[head])}
    layers = {head.layer for head in sets}
    names = [f"blocks.{layer}.attn.hook_{part}" for layer in layers for part in "qk"]
    for index, batch in model.batches(pairs):
        _, inputs = observe(model, batch, names, stop_at_layer=max(layers) + 1)
        for head, subspaces in sets.items():
            q, k = (inputs[f"blocks.{head.layer}.attn.hook_{part}"][:, :, head.head] for part in "qk")
            values[head, ""][index] = _mean_max(batch, q, k)
            for name, subspace in subspaces.items():
                values[head, name][index] = _mean_max(batch, subspace.add(q, -subspace.coordinates(q)), k)
    return values


def _mean_max(
    batch: Batch, q: Float[Tensor, "batch reader d_head"], k: Float[Tensor, "batch source d_head"]
) -> Float[np.ndarray, "batch"]:
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    pattern = scores.masked_fill(~batch.attention_mask[:, None], -math.inf).softmax(-1)
    readers, sources = batch.at(Segment.QUERY), batch.at(Segment.DOC)
    largest = (pattern * sources[:, None]).amax(-1)
    return for_numpy((largest * readers).sum(1) / readers.sum(1)).numpy()
