"""Attention between the roles of a contrast's positions, and token by token between query and document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.contrasts import ROLES, Contrast, ContrastBatch, encode_contrasts
from mechir.methods.patching import ids_of
from mechir.model_sites import heads_of
from mechir.pairs import Pair, for_numpy
from mechir.recorder import observe
from mechir.reranker import Reranker
from mechir.segments import Segment
from mechir.sites import Head

DIGITS = 4
"""Decimals that are kept of a weight: what a colour can show."""


@torch.no_grad()
def role_attention(
    model: Reranker, contrasts: Sequence[Contrast], heads: Sequence[Head | str], *, max_length: int | None = None
) -> pd.DataFrame:
    """Attention mass between roles, in the base and in the donor.

    Args:
        model: a `HookedEncoder`.
        contrasts: aligned pairs.
        heads: whose attention.
        max_length: word pieces kept of a pair.

    Returns:
        One row per head, reader, source and contrast: `site`, `reader`, `source` (roles), `query_id`, `doc_id`,
        `grade`, `filler`, `base`, `donor`: the mean over the reader's positions of the attention that goes to all
        positions of the source together (0 to 1; over the sources it sums to 1). A contrast without a position of
        either role has no row.

    Raises:
        MechirError: for a site that is no head of this model.
    """
    listed = heads_of(model, heads)
    encoded = encode_contrasts(model, contrasts, max_length)
    parts = []
    for batch in encoded.batches(model):
        parts += _masses(model, batch, listed)
    found = pd.concat(parts, ignore_index=True)
    ids = ids_of(encoded.contrasts).iloc[found["row"]].reset_index(drop=True)
    return pd.concat([found[["site", "reader", "source"]], ids, found[["base", "donor"]]], axis=1)


def _masses(model: Reranker, batch: ContrastBatch, listed: Sequence[Head]) -> list[pd.DataFrame]:
    member = torch.stack([batch.roles == role for role in range(len(ROLES))], 1).to(model.dtype)
    share = member / member.sum(-1, keepdim=True).clamp(min=1)
    names = {f"blocks.{head.layer}.attn.hook_pattern" for head in listed}
    masses = {
        name: observe(model, side, names, lambda _, x: for_numpy(between(x, share, member)), head_row=False)[1]
        for name, side in (("base", batch.base), ("donor", batch.donor))
    }
    there = member.any(-1).cpu()
    rows, readers, sources = (there[:, :, None] & there[:, None, :]).nonzero(as_tuple=True)
    return [
        pd.DataFrame(
            {
                "site": f"h{head.layer}.{head.head}",
                "reader": [ROLES[k] for k in readers],
                "source": [ROLES[k] for k in sources],
                "row": batch.rows[rows.numpy()],
            }
            | {
                name: kept[f"blocks.{head.layer}.attn.hook_pattern"][:, head.head][rows, readers, sources].numpy()
                for name, kept in masses.items()
            }
        )
        for head in listed
    ]


def between(
    pattern: Float[Tensor, "batch head reader source"],
    share: Float[Tensor, "batch role reader"],
    member: Float[Tensor, "batch _ source"],
) -> Float[Tensor, "batch head role _"]:
    """The mean over readers of a role of the mass on the sources of a role."""
    return torch.einsum("bhij,bri,bsj->bhrs", pattern, share, member)


@torch.no_grad()
def pair_attention(
    model: Reranker, pairs: Sequence[Pair], heads: Sequence[Head | str], *, max_length: int | None = None
) -> pd.DataFrame:
    """What heads look at: the weights between every word piece of the query and every one of the document.

    Args:
        model: a `HookedEncoder`.
        pairs: what is read.
        heads: whose attention.
        max_length: word pieces kept of a pair.

    Returns:
        One row per pair and head: `site`; `query_id`, `doc_id`, `grade`; `score`, of `model.score`; `query`, `doc`, the
        word pieces as the tokenizer prints them; `query_doc`, n_query x n_doc weights of query<-doc, a row per query
        piece after the other, and `doc_query`, n_doc x n_query of doc<-query, both 0 to 1 to four decimals. A row of
        weights does not sum to 1: what is missing goes to special tokens and the reader's own text.

    Raises:
        MechirError: for a site that is no head of this model.
    """
    listed, encoded = heads_of(model, heads), model.encode(pairs, max_length)
    hooks = {f"blocks.{head.layer}.attn.hook_pattern" for head in listed}
    rows: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs):  # few are looked at, so one forward each
        batch = encoded.batch([number]).to(model.device)
        scores, kept = observe(model, batch, hooks, lambda _, x: x[0].double().cpu(), head_row=False)
        query, doc = (batch.at(side)[0].nonzero()[:, 0].cpu() for side in (Segment.QUERY, Segment.DOC))
        told = {"query_id": pair.query_id, "doc_id": pair.doc_id, "grade": pair.grade, "score": float(scores[0])}
        for name, side in (("query", query), ("doc", doc)):
            told[name] = model.tokenizer.convert_ids_to_tokens(encoded.ids[number][side.numpy()].tolist())
        for head in listed:
            pattern = kept[f"blocks.{head.layer}.attn.hook_pattern"][head.head]
            blocks = {"query_doc": pattern[query][:, doc], "doc_query": pattern[doc][:, query]}
            weights = {name: block.flatten().numpy().round(DIGITS).tolist() for name, block in blocks.items()}
            rows.append({"site": str(head)} | told | weights)
    return pd.DataFrame(rows)
