"""Activation patching: what changes in the score when one component sees the donor's world.

Runs are on the base, activations come from the donor, effects are patched - base on the scale of the score. With the
contrast swapped the same call measures the other direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from mechir.contrasts import ROLES, Contrast, ContrastBatch, EncodedContrasts, encode_contrasts
from mechir.errors import MechirError, refuse_below
from mechir.hooks import Hook
from mechir.interventions import Splice
from mechir.model_sites import all_heads, heads_of, sites_of
from mechir.pair import split_queries
from mechir.recorder import observe
from mechir.reranker import Reranker, needs
from mechir.segments import FIVE, Segment, parts_of
from mechir.sites import Head, Site
from mechir.sweeps import scores_under

WHERE = ("all", "role", "segment", "position")


@torch.no_grad()
def patch(
    model: Reranker,
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

    Only the activations of one batch are held, and only those that are patched; each run starts at the patched layer
    where the model starts at any.

    Args:
        model: any reranker.
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
    needs(model, "patch")
    listed = sites_of(model, sites)
    encoded = encode_contrasts(model, contrasts, max_length)
    limit = max_tokens or model.max_tokens
    batches = encoded.batches(model, max_rows=max_rows, max_tokens=limit, progress=progress)
    parts = [_patched(model, batch, listed, at, max_rows, limit) for batch in batches]
    parts = [rows for rows in parts if len(rows)]
    if not parts:
        raise no_position(at)
    return tidy(encoded, pd.concat(parts, ignore_index=True), ["site", "at"])


def choose_heads(
    model: Reranker, contrasts: list[Contrast], *, heads: tuple[Head, ...] = (), top: int = 4, every: int = 3
) -> tuple[tuple[Head, ...], list[Contrast]]:
    """The heads that are named, or the `top` heads found where none are, and the contrasts left to measure.

    Where none are named, those with the largest mean effect of patching z on one query in `every` are taken and the
    other queries are left: who is chosen and who is measured are different queries, so the choice does not flatter.

    Raises:
        MechirError: when there are too few queries for both.
    """
    needs(model, "choose_heads")
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
    model: Reranker,
    batch: ContrastBatch,
    listed: Sequence[Site],
    at: str | Sequence[str],
    max_rows: int,
    max_tokens: int,
) -> pd.DataFrame:
    # Of what the last layer writes there is the head's row alone.
    score, donor = observe(model, batch.donor, {site.hook for site in listed}, head_row=True)
    where = {name: mask for name, mask in places(at, batch).items() if mask is None or bool(mask.any())}
    edits = {
        f"{site} at {name}": (site, name, Splice(site, donor[site.hook], mask))
        for site in listed
        for name, mask in where.items()
    }
    if not edits:
        return pd.DataFrame(columns=["site", "at", "row", "base", "donor", "patched", "effect"])
    hooks: dict[str, list[Hook]] = {"base": []}
    hooks |= {key: [(site.hook, edit)] for key, (site, _, edit) in edits.items()}
    scores = dict(scores_under(model, batch.base, hooks, max_rows=max_rows, max_tokens=max_tokens))
    base = scores.pop("base")
    patched = torch.stack([scores[key] for key in edits])
    values = {"base": base, "donor": score, "patched": patched, "effect": patched - base}
    frame = pd.DataFrame({name: x.expand_as(patched).flatten().cpu() for name, x in values.items()})
    frame.insert(0, "site", np.repeat([str(site) for site, _, _ in edits.values()], len(batch.rows)))
    frame.insert(1, "at", np.repeat([name for _, name, _ in edits.values()], len(batch.rows)))
    frame.insert(2, "row", np.tile(batch.rows, len(edits)))
    present = [np.ones(len(batch.rows), bool) if mask is None else mask.any(1).cpu().numpy() for mask in where.values()]
    return frame[np.tile(np.concatenate(present), len(listed))]


def places(at: str | Sequence[str], batch: ContrastBatch) -> dict[str, Bool[Tensor, "batch pos"] | None]:
    """The positions of each contrast by the name of the place; None stands for all of them."""
    if isinstance(at, str) and at == "position":
        width = batch.base.input_ids.shape[1]
        each = torch.eye(width, dtype=torch.bool, device=batch.roles.device)
        return {str(k): each[k] & batch.base.attention_mask for k in range(width)}
    several = {"role": list(ROLES), "segment": list(map(str, parts_of(batch.base.present)))}
    names = map(place_name, several.get(at, [at]) if isinstance(at, str) else at)
    return {name: _place(name, batch) for name in names}


def no_position(at: str | Sequence[str]) -> MechirError:
    """What is said where no contrast has a position at the places asked for."""
    return MechirError(f"No contrast has a position at {at!r}: write one of {', '.join(WHERE + ROLES)}.")


def place_name(text: str) -> str:
    """A place in its normal form: `all`, a role, or a segment: `D|Q` is `query|doc`.

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
    return "all" if set(segment) == set(FIVE) else str(segment)


def _place(name: str, batch: ContrastBatch) -> Bool[Tensor, "batch pos"] | None:
    if name == "all":
        return None
    return batch.roles == ROLES.index(name) if name in ROLES else batch.base.at(Segment.parse(name))


def ids_of(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """The `query_id`, `doc_id`, `grade` and `filler` of each contrast."""
    rows = [(contrast.query_id, contrast.doc_id, contrast.grade, contrast.filler) for contrast in contrasts]
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "grade", "filler"]).astype({"grade": "Int64"})


def tidy(encoded: EncodedContrasts, effects: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Orders rows by the keys as they came and by contrast, and adds the ids of each contrast.

    Raises:
        MechirError: for scores that are not finite, by the pair.
    """
    rows = effects["row"].to_numpy()
    for name in ("base", "donor", "effect"):
        bad = ~np.isfinite(effects[name].to_numpy(dtype=float))
        if bad.any():
            raise MechirError(f"The {name} of {encoded.contrasts[rows[bad][0]]} is not finite: check the checkpoint.")
    order = np.lexsort((rows, effects.groupby(list(keys), sort=False).ngroup().to_numpy()))
    ordered = effects.iloc[order].reset_index(drop=True)
    ids = ids_of(encoded.contrasts).iloc[ordered.pop("row")].reset_index(drop=True)
    return pd.concat([ordered[list(keys)], ids, ordered.drop(columns=list(keys))], axis=1)
