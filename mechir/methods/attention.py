"""Attention between the roles of a contrast's positions, and token by token between query and document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import for_numpy
from mechir.contrasts import ROLES, Contrast, ContrastBatch, encode_contrasts
from mechir.inputs import as_pairs
from mechir.methods.patching import ids_of
from mechir.model_sites import heads_of
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
    """The attention mass of `heads` between roles, in the base and in the donor of aligned pairs.

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
    masses = pd.concat([_masses(model, batch, listed) for batch in encoded.batches(model)], ignore_index=True)
    ids = ids_of(encoded.contrasts).iloc[masses["row"]].reset_index(drop=True)
    return pd.concat([masses[["site", "reader", "source"]], ids, masses[["base", "donor"]]], axis=1)


def _masses(model: Reranker, batch: ContrastBatch, heads: Sequence[Head]) -> pd.DataFrame:
    """The mean over readers of a role of the mass on the sources of a role."""
    member = torch.stack([batch.roles == role for role in range(len(ROLES))], 1).to(model.dtype)
    share = member / member.sum(-1, keepdim=True).clamp(min=1)
    hooks = {head: head._replace(part="pattern").hook for head in heads}

    def between(_: str, x: Float[Tensor, "batch head reader source"]) -> Float[Tensor, "batch head role _"]:
        return for_numpy(torch.einsum("bhij,bri,bsj->bhrs", x, share, member))

    sides = (batch.base, batch.donor)
    base, donor = (observe(model, side, set(hooks.values()), between, head_row=False)[1] for side in sides)
    present = member.any(-1).cpu()
    rows, readers, sources = (present[:, :, None] & present[:, None, :]).nonzero(as_tuple=True)
    names = {"reader": [ROLES[k] for k in readers], "source": [ROLES[k] for k in sources]}
    cells = pd.DataFrame(names | {"row": batch.rows[rows.numpy()]})
    return pd.concat(
        cells.assign(
            site=f"h{head.layer}.{head.head}",
            base=base[hook][:, head.head][rows, readers, sources].numpy(),
            donor=donor[hook][:, head.head][rows, readers, sources].numpy(),
        )
        for head, hook in hooks.items()
    )


@torch.no_grad()
def pair_attention(
    model: Reranker, pairs: Any, heads: Sequence[Head | str], *, max_length: int | None = None
) -> pd.DataFrame:
    """The weights of `heads` between every word piece of the query and every one of the document.

    Returns:
        One row per pair and head: `site`; `query_id`, `doc_id`, `grade`; `score`, of `model.score`; `query`, `doc`, the
        word pieces as the tokenizer prints them; `query_doc`, n_query x n_doc weights of query<-doc, a row per query
        piece after the other, and `doc_query`, n_doc x n_query of doc<-query, both 0 to 1 to four decimals. A row of
        weights does not sum to 1: what is missing goes to special tokens and the reader's own text.

    Raises:
        MechirError: for a site that is no head of this model.
    """
    pairs = as_pairs(pairs)
    encoded = model.encode(pairs, max_length)
    hooks = {head: head._replace(part="pattern").hook for head in heads_of(model, heads)}
    rows: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs):  # few are looked at, so one forward each
        batch = encoded.batch([number]).to(model.device)
        scores, patterns = observe(model, batch, set(hooks.values()), lambda _, x: x[0].double().cpu(), head_row=False)
        query, doc = (batch.at(side)[0].nonzero()[:, 0].cpu() for side in (Segment.QUERY, Segment.DOC))
        line = {"query_id": pair.query_id, "doc_id": pair.doc_id, "grade": pair.grade, "score": float(scores[0])}
        for name, side in (("query", query), ("doc", doc)):
            line[name] = model.tokenizer.convert_ids_to_tokens(encoded.ids[number][side.numpy()].tolist())
        for head, hook in hooks.items():
            pattern = patterns[hook][head.head]
            blocks = {"query_doc": pattern[query][:, doc], "doc_query": pattern[doc][:, query]}
            weights = {name: block.flatten().numpy().round(DIGITS).tolist() for name, block in blocks.items()}
            rows.append({"site": str(head)} | line | weights)
    return pd.DataFrame(rows)
