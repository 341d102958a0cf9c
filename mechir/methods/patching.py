"""Activation patching: what changes in the score when one component sees the donor's world.

Runs are on the base, activations come from the donor, effects are patched - base on the scale of the score. With the
contrast swapped the same call measures the other direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechir.contrasts import ROLES, Contrast, ContrastBatch, EncodedContrasts, encode_contrasts
from mechir.errors import MechirError, refuse_below
from mechir.interventions import Splice
from mechir.model_sites import all_heads, heads_of, sites_of
from mechir.pairs import split_queries
from mechir.recorder import observe
from mechir.reranker import Reranker, Restarts, needs
from mechir.segments import FIVE, Segment
from mechir.sites import Head, Site
from mechir.sweeps import stages, walk

WHERE = ("all", "role", "segment", "position")


@torch.no_grad()
def patch(
    model: Restarts,
    contrasts: Sequence[Contrast],
    sites: Site | str | Iterable[Site | str],
    *,
    at: str | Sequence[str] = "all",
    max_rows: int = 256,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """The effect of patching each site from the donor into the base, for every contrast.

    Only the activations of one batch are held, and only those that are patched; each run starts at the patched layer.

    Args:
        model: one that starts at any layer, such as a `HookedEncoder`.
        contrasts: aligned pairs (`align`, `diagnostic(...).align(model).contrasts`).
        sites: e.g. "h8.1", "h8.1.q", `all_heads(model)`, `blocks(model)`.
        at: "all" positions together; "role", "segment" or "position": once for each of them; or the names of some,
            e.g. ["injected", "cls"], "doc" or "query|doc". Of a pattern the positions are the readers.
        max_rows: the most contrasts x patches computed together.
        max_tokens: the most word pieces computed together; by default `model.max_tokens`.
        max_length: word pieces kept of a pair.
        progress: a bar with the time left; by default on a terminal, for work over two seconds.

    Returns:
        One row per site, place and contrast: `site`, `at` (a role, a segment, or a position counted from 0),
        `query_id`, `doc_id`, `grade`, `filler`; the scores `base`, `donor` and `patched`; `effect` = patched - base.
        A contrast that has no position with a role has no row for it.

    Raises:
        MechirError: for a site that the model lacks, an unknown place, or contrasts that are not aligned.
    """
    needs(model, "patch", Restarts)
    listed = sites_of(model, sites)
    encoded = encode_contrasts(model, contrasts, max_length)
    limit = max_tokens or model.max_tokens
    batches = encoded.batches(model, max_rows=max_rows, max_tokens=limit, progress=progress)
    parts = [_patched(model, batch, listed, at, max_rows, limit) for batch in batches]
    parts = [rows for rows in parts if len(rows)]
    if not parts:
        raise MechirError(f"No contrast has a position at {at!r}: write one of {', '.join(WHERE + ROLES)}.")
    return tidy(encoded, pd.concat(parts, ignore_index=True), ["site", "at"])


def choose_heads(
    model: Restarts, contrasts: list[Contrast], *, heads: tuple[Head, ...] = (), top: int = 4, every: int = 3
) -> tuple[tuple[Head, ...], list[Contrast]]:
    """The heads that are named, or the `top` heads found where none are, and the contrasts left to measure.

    Where none are named, those with the largest mean effect of patching z on one query in `every` are taken and the
    other queries are left: who is chosen and who is measured are different queries, so the choice does not flatter.

    Raises:
        MechirError: when there are too few queries for both.
    """
    needs(model, "choose_heads", Restarts)
    if heads:
        return heads, contrasts
    chosen, rest = split_queries(contrasts, every)
    rows = patch(model, chosen, all_heads(model))
    return tuple(heads_of(model, largest(rows, "site", top))), rest


def largest(rows: pd.DataFrame, by: str, top: int) -> list[str]:
    """The `top` names in column `by` with the largest mean effect over queries, whatever its sign."""
    refuse_below(1, top=top)
    means = rows.groupby([by, "query_id"])["effect"].mean().groupby(by).mean()
    return means.abs().sort_values(ascending=False, kind="stable").index[:top].tolist()


def _patched(
    model: Restarts,
    batch: ContrastBatch,
    listed: Sequence[Site],
    at: str | Sequence[str],
    max_rows: int,
    max_tokens: int,
) -> pd.DataFrame:
    score, donor = donor_run(model, batch, {site.hook for site in listed})
    where = {name: mask for name, mask in places(at, batch).items() if mask is None or bool(mask.any())}
    edits = {
        f"{site} at {name}": (site, name, Splice(site, donor[site.hook], mask))
        for site in listed
        for name, mask in where.items()
    }
    if not edits:
        return pd.DataFrame(columns=["site", "at", "row", "base", "donor", "patched", "effect"])
    plans = {"base": stages(model, [])}
    plans |= {key: stages(model, [(site.hook, edit)]) for key, (site, _, edit) in edits.items()}
    scores = dict(walk(model, batch.base, plans, max_rows=max_rows, max_tokens=max_tokens))
    base = scores.pop("base")
    patched = torch.stack([scores[key] for key in edits])
    told = {"base": base, "donor": score, "patched": patched, "effect": patched - base}
    frame = pd.DataFrame(
        {
            "site": np.repeat([str(site) for site, _, _ in edits.values()], len(batch.rows)),
            "at": np.repeat([name for _, name, _ in edits.values()], len(batch.rows)),
            "row": np.tile(batch.rows, len(edits)),
        }
        | {name: x.expand_as(patched).flatten().cpu() for name, x in told.items()}
    )
    there = [np.ones(len(batch.rows), bool) if mask is None else mask.any(1).cpu().numpy() for mask in where.values()]
    return frame[np.tile(np.concatenate(there), len(listed))]


def donor_run(
    model: Reranker, batch: ContrastBatch, names: Iterable[str]
) -> tuple[Float[Tensor, "batch"], dict[str, Float[Tensor, "batch ..."]]]:
    """The donor's scores, and its activations at these hooks; of the last layer's writings the head's row alone."""
    return observe(model, batch.donor, names, head_row=True)


def places(at: str | Sequence[str], batch: ContrastBatch) -> dict[str, Bool[Tensor, "batch pos"] | None]:
    """Name -> the positions of each contrast; None stands for all of them."""
    if isinstance(at, str) and at == "position":
        width = batch.base.input_ids.shape[1]
        each = torch.eye(width, dtype=torch.bool, device=batch.roles.device)
        return {str(k): each[k] & batch.base.attention_mask for k in range(width)}
    named = {"role": list(ROLES), "segment": [str(segment) for segment in FIVE]}
    wanted = named.get(at, [at]) if isinstance(at, str) else at
    return {name: _place(name, batch) for name in map(place_name, wanted)}


def place_name(text: str) -> str:
    """One place in its normal form: `all`, a role, or a segment: `D|Q` is `query|doc`.

    Raises:
        MechirError: for any other word, and for padding, which holds no token.
    """
    name = " ".join(text.lower().split())
    if name == "all" or name in ROLES:
        return name
    try:
        segment = Segment.parse(text)
    except MechirError as error:
        raise MechirError(
            f"Unknown place '{text}': write {', '.join(WHERE)}, a segment such as 'query|doc', or a role: "
            f"{', '.join(ROLES)}."
        ) from error
    if Segment.PAD in segment:
        raise MechirError(f"'{text}' holds padding, which the model does not read: write e.g. 'query|doc'.")
    return str(segment)


def _place(name: str, batch: ContrastBatch) -> Bool[Tensor, "batch pos"] | None:
    if name == "all":
        return None
    return batch.roles == ROLES.index(name) if name in ROLES else batch.base.at(Segment.parse(name))


def ids_of(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """`query_id`, `doc_id`, `grade`, `filler` of each contrast."""
    return pd.DataFrame(
        {
            "query_id": [contrast.query_id for contrast in contrasts],
            "doc_id": [contrast.doc_id for contrast in contrasts],
            "grade": pd.array([contrast.grade for contrast in contrasts], dtype="Int64"),
            "filler": [contrast.filler for contrast in contrasts],
        }
    )


def tidy(encoded: EncodedContrasts, found: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Rows in the order of the keys as they came and of the contrasts, with the ids of each contrast.

    Raises:
        MechirError: for scores that are not finite, by the pair.
    """
    contrasts, rows = encoded.contrasts, found["row"].to_numpy()
    for name in ("base", "donor", "effect"):
        bad = ~np.isfinite(found[name].to_numpy(dtype=float))
        if bad.any():
            raise MechirError(f"The {name} of {contrasts[rows[bad][0]]} is not finite: check the checkpoint.")
    ids = ids_of(contrasts)
    order = found.groupby(list(keys), sort=False).ngroup().to_numpy()
    place = np.lexsort((rows, order))
    told = [name for name in found.columns if name not in {*keys, "row"}]
    parts = [found[list(keys)].iloc[place], ids.iloc[rows[place]], found[told].iloc[place]]
    return pd.concat([part.reset_index(drop=True) for part in parts], axis=1)
