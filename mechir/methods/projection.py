"""The causal check of W_QK's alignment: its directions taken out of a head's queries, beside random ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.methods.spectra import LOOK, Seen
from mechir.model_sites import heads_of
from mechir.pairs import Batch, Pair, for_numpy
from mechir.recorder import observe
from mechir.reranker import Weights, needs
from mechir.segments import Segment
from mechir.sites import Head
from mechir.subspaces import Project, Subspace
from mechir.sweeps import sweep

ALIGNED = "aligned"


def subspaces(model: Weights, head: Head, k: int, draws: int) -> dict[str, Subspace]:
    """The aligned directions of a head, and `draws` random subspaces of the same rank, by name."""
    needs(model, "subspaces", Weights, positions="absolute", instead=LOOK)
    seen = Seen.by(model, head)
    return {ALIGNED: seen.aligned(k)} | {f"random {seed}": seen.random(k, seed=seed) for seed in range(draws)}


def project_heads(
    model: Weights, pairs: Sequence[Pair], heads: Sequence[Head | str], *, k: int = 4, draws: int = 20
) -> pd.DataFrame:
    """What a head's matching attention and the score lose with its k most aligned directions, and with random ones.

    Returns:
        One row per head, set of directions and pair: `site`, `directions` ("aligned", "random 0", ...), `query_id`,
        `doc_id`, `grade`; `score_base` and `score_change` (projected - base, logits); `attention_base` and
        `attention_change`: the mean over query tokens of the head's largest weight on a document token, and its change.

    Raises:
        MechirError: for a site that is no head of this model, or more directions than it has.
    """
    needs(model, "project_heads", Weights, positions="absolute", causal=False, window=None, instead=LOOK)
    parsed = [Head(site.layer, site.head, "q") for site in heads_of(model, heads)]
    sets = {head: subspaces(model, head, k, draws) for head in parsed}
    do = {f"{head}|{name}": Project(head, subspace) for head, found in sets.items() for name, subspace in found.items()}
    scores = sweep(model, pairs, {"base": ()} | do, progress=False)
    base = scores.loc[scores["name"] == "base", "score"].to_numpy()
    rest = scores[scores["name"] != "base"].reset_index(drop=True)
    rest[["site", "directions"]] = rest["name"].str.split("|", expand=True)
    attention = _attention(model, pairs, sets)
    told = {
        "score_base": np.tile(base, len(do)),
        "score_change": rest["score"].to_numpy() - np.tile(base, len(do)),
        "attention_base": np.concatenate([attention[head, ""] for head, found in sets.items() for _ in found]),
    }
    changed = np.concatenate([attention[head, name] for head, found in sets.items() for name in found])
    frame = rest[["site", "directions", "query_id", "doc_id", "grade"]].assign(**told)
    frame["attention_change"] = changed - frame["attention_base"]
    return frame.assign(site=frame["site"].str.removesuffix(".q"))


@torch.no_grad()
def _attention(
    model: Weights, pairs: Sequence[Pair], sets: Mapping[Head, Mapping[str, Subspace]]
) -> dict[tuple[Head, str], np.ndarray]:
    """The largest weight on a document token, mean over query tokens: intact ("") and without each set of directions.

    Nothing before a head's own layer changes, so its q and k of one intact run say it all.
    """
    found = {(head, name): np.empty(len(pairs)) for head, of in sets.items() for name in ("", *of)}
    layers = {head.layer for head in sets}
    names = [f"blocks.{layer}.attn.hook_{part}" for layer in layers for part in "qk"]
    for index, batch in model.batches(pairs):
        _, kept = observe(model, batch, names, stop_at_layer=max(layers) + 1)
        for head, of in sets.items():
            q, k = (kept[f"blocks.{head.layer}.attn.hook_{part}"][:, :, head.head] for part in "qk")
            for name, subspace in {"": None, **of}.items():
                asked = q if subspace is None else subspace.add(q, -subspace.coordinates(q))
                found[head, name][index] = for_numpy(_mean_max(batch, asked, k)).numpy()
    return found


def _mean_max(
    batch: Batch, q: Float[Tensor, "batch reader d_head"], k: Float[Tensor, "batch source d_head"]
) -> Float[Tensor, "batch"]:
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    pattern = scores.masked_fill(~batch.attention_mask[:, None], -math.inf).softmax(-1)
    readers, sources = batch.at(Segment.QUERY), batch.at(Segment.DOC)
    largest = (pattern * sources[:, None]).amax(-1)
    return (largest * readers).sum(1) / readers.sum(1)
