"""Attribution patching: the effects of all patches at once, to first order, from one backward pass.

effect(u) ~ <d score / d u, u_donor - u_base>, the gradient taken on the base. It is wrong where the score bends on the
way from base to donor, above all in a saturated softmax: queries and keys are therefore put through the softmax
exactly and linearised after it (the QK fix). Screen with it, then verify (`screen_then_verify`).

Source: attribution patching, Nanda 2023; QK fix, Kramar et al. 2024 (AtP*, arXiv:2403.00745, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechir.batches import for_numpy
from mechir.contrasts import Contrast, ContrastBatch, encode_contrasts
from mechir.errors import MechirError
from mechir.methods.patching import no_position, patch, places, tidy
from mechir.model_sites import all_heads, mlps, sites_of
from mechir.recorder import observe
from mechir.reranker import Reranker, needs
from mechir.sites import Head, KvHead, Neuron, Site

FIXED = ("attn.hook_q", "attn.hook_k")


def attribute(
    model: Reranker,
    contrasts: Sequence[Contrast],
    sites: Site | str | Iterable[Site | str] | None = None,
    *,
    at: str | Sequence[str] = "all",
    qk_fix: bool = True,
    max_rows: int = 64,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """An estimate of what `patch` measures, for all sites in about three forwards per pair.

    Arguments, columns and errors are those of `patch`, with these differences: the gradient is taken on the base;
    `sites` are by default all heads and MLPs, and patterns are refused (take q and k); `qk_fix` puts patched q and k
    through the softmax exactly and linearises after it; at most `max_rows` contrasts are computed together; there is no
    `patched`, and `effect` is the estimate.
    """
    listed = sites_of(model, [*all_heads(model), *mlps(model)] if sites is None else sites)
    if qk_fix and any(site.hook.endswith(FIXED) for site in listed):
        other = "give qk_fix=False, or measure it by patching.patch"
        needs(model, "attribute(qk_fix=True)", scaled=True, instead=other)
    for site in listed:
        if site.hook.endswith(("pattern", "result")):
            raise MechirError(f"'{site}' has no attribution of its own: write its q, k, v or z.")
    encoded = encode_contrasts(model, contrasts, max_length)
    batches = encoded.batches(model, max_rows=max_rows, max_tokens=max_tokens, progress=progress)
    rows = pd.concat([_attributed(model, batch, listed, at, qk_fix) for batch in batches], ignore_index=True)
    if rows.empty:
        raise no_position(at)
    return tidy(encoded, rows, ["site", "at"])


def _attributed(
    model: Reranker, batch: ContrastBatch, listed: Sequence[Any], at: str | Sequence[str], qk_fix: bool
) -> pd.DataFrame:
    names = {site.hook for site in listed}
    fixed = {name for name in names if name.endswith(FIXED)} if qk_fix else set()
    read = (names - fixed) | {_beside(name, part) for name in fixed for part in "qkvz"}
    hides = model.structure.causal or model.structure.window is not None  # sources that are no padding
    if hides:
        read |= {_beside(name, "attn_scores") for name in fixed}
    with torch.no_grad():
        donor_score, donor = observe(model, batch.donor, read, head_row=True)
    score, base, gradient = gradients(model, batch, read)
    scores = {"row": batch.rows, "base": score.cpu().numpy(), "donor": donor_score.cpu().numpy()}
    masks = places(at, batch)
    frames = []
    for name, kind in dict.fromkeys((site.hook, type(site)) for site in listed):
        here = [site for site in listed if (site.hook, type(site)) == (name, kind)]
        units = [site[1] for site in here] if isinstance(here[0], Head | KvHead | Neuron) else None
        if name in fixed:
            seen = base[_beside(name, "attn_scores")] != -math.inf if hides else model.allowed(batch.base)
            effects = qk_effects(name, base, donor, gradient, seen, masks)
            effects = {place: x if units is None else x[:, units] for place, x in effects.items()}
        else:
            effects = _first_order(gradient[name] * (donor[name] - base[name]), masks, units)
        for place, mask in masks.items():
            by_unit = effects[place].reshape(len(batch.rows), -1)
            values = for_numpy(by_unit.sum(1, keepdim=True) if units is None else by_unit).numpy()
            present = np.flatnonzero(np.ones(len(values)) if mask is None else mask.any(1).cpu().numpy())
            columns = {name: np.tile(column[present], len(here)) for name, column in scores.items()}
            columns["site"] = np.repeat(list(map(str, here)), len(present))
            frames.append(pd.DataFrame(columns | {"at": place, "effect": values[present].T.reshape(-1)}))
    return pd.concat(frames)


def gradients(
    model: Reranker, batch: ContrastBatch, names: Iterable[str]
) -> tuple[Float[Tensor, "batch"], dict[str, Tensor], dict[str, Tensor]]:
    """The base's scores, its activations at these hooks, and the gradient of each pair's score by them."""
    with torch.enable_grad(), model.hooks([("hook_full_embed", lambda x, hook: x.detach().requires_grad_())]):
        score, values = observe(model, batch.base, names, head_row=True)
        gradient = torch.autograd.grad(score.sum(), list(values.values()), allow_unused=True, materialize_grads=True)
    return score.detach(), {name: x.detach() for name, x in values.items()}, dict(zip(values, gradient, strict=True))


Masks = Mapping[str, Bool[Tensor, "batch pos"] | None]


def _first_order(
    product: Float[Tensor, "batch row ..."], masks: Masks, units: Sequence[int] | None
) -> dict[str, Tensor]:
    """The gradient times the change, summed over positions and whatever is inside a unit: [batch] or [batch, unit]."""
    if units is not None:
        product = product[:, :, units].flatten(3).sum(3) if product.ndim > 3 else product[:, :, units]
    else:
        product = product.flatten(2).sum(2, keepdim=True)
    rows = product.shape[1]
    return {
        name: product.sum(1) if mask is None else (product * mask[:, :rows, None]).sum(1)
        for name, mask in masks.items()
    }


def qk_effects(
    name: str,
    base: Mapping[str, Tensor],
    donor: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    allowed: Bool[Tensor, "batch #head #reader source"] | None,
    masks: Masks,
) -> dict[str, Float[Tensor, "batch unit"]]:
    """The product <d score / d z, z' - z> of every head, z' being its z when its q or k comes from the donor.

    A single key has AtP*'s closed form: its weight p becomes sigmoid(logit p + change of its attention score), the
    others shrink alike. Any other set of positions is put through the softmax anew. Keys that several heads share have
    the sum of their effects.
    """
    q, k, v = (base[_beside(name, part)].transpose(1, 2) for part in "qkv")
    grad = gradient[_beside(name, "z")].transpose(1, 2)
    new, shared = donor[name].transpose(1, 2), q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, 1) for x in (k, v))
    if name.endswith("hook_k"):
        new = new.repeat_interleave(shared, 1)

    def read(q: Tensor, k: Tensor) -> Float[Tensor, "batch head reader source"]:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores if allowed is None else scores.masked_fill(~allowed, -math.inf)

    def weights(scores: Tensor) -> Float[Tensor, "batch head reader source"]:
        return scores.softmax(-1).nan_to_num()  # padding before which nothing stands sees nothing

    scores = read(q, k)
    pattern = weights(scores)
    by_source = grad @ v.transpose(-1, -2)  # what a unit of attention to each source is worth to the score
    now = (pattern * by_source).sum(-1, keepdim=True)
    if name.endswith("hook_q"):
        change = ((weights(read(new, k)) - pattern) * by_source).sum(-1)
        rows = {place: 1.0 if mask is None else mask[:, None, : q.shape[2]] for place, mask in masks.items()}
        return {place: (change * mask).sum(-1) for place, mask in rows.items()}
    effects, single = {}, None
    for place, mask in masks.items():
        if mask is not None and place.isdigit():
            if single is None:
                raised = pattern * torch.expm1((read(q, new) - scores).nan_to_num().clamp(max=60))
                share = raised / (1 + raised)  # (p' - p) / (1 - p), without 1 - p, which may be 0 in float32
                single = (share * (by_source - now)).sum(2)
            effects[place] = (single * mask[:, None]).sum(-1)
        else:
            mixed = new if mask is None else torch.where(mask[:, None, :, None], new, k)
            effects[place] = ((weights(read(q, mixed)) - pattern) * by_source).sum((-1, -2))
    return {place: x.unflatten(1, (-1, shared)).sum(2) for place, x in effects.items()}


def _beside(name: str, part: str) -> str:
    return f"{name.rpartition('_')[0]}_{part}"


class Screened(NamedTuple):
    """The result of `screen_then_verify`.

    `sites`: `site`, `at`, `attributed` and `exact` (mean |effect| per contrast; missing where not verified), `chosen`
    ("top" or "random"). `rows`: the exact effects, as `patch` gives them. `pearson` and `spearman` between attributed
    and exact mean effects (signed) over the `n` verified sites.
    """

    sites: pd.DataFrame
    rows: pd.DataFrame
    pearson: float
    spearman: float
    n: int


def screen_then_verify(
    model: Reranker,
    contrasts: Sequence[Contrast],
    sites: Any = None,
    *,
    at: str | Sequence[str] = "all",
    top: float = 0.1,
    check: float = 0.05,
    seed: int = 0,
    **options: Any,
) -> Screened:
    """Attributes all sites, then patches the top fraction exactly, and a random sample of the rest.

    Arguments are those of `attribute` and `patch`. `top` is the fraction of sites patched, by mean |attributed| over
    the contrasts; `check` the fraction of the others patched as well, drawn at random: it shows what the screen
    overlooks.

    Raises:
        MechirError: for a fraction outside 0 to 1.
    """
    needs(model, "screen_then_verify")
    for name, value in (("top", top), ("check", check)):
        if not 0 <= value <= 1 or (name == "top" and value == 0):
            raise MechirError(f"{name}={value} is no fraction: write e.g. {name}=0.1.")
    table = _sizes(attribute(model, contrasts, sites, at=at, **options), "attributed", "signed")
    table = table.sort_values("attributed", ascending=False, kind="stable", ignore_index=True)
    n_top = math.ceil(top * len(table))
    rest = np.arange(n_top, len(table))
    drawn = np.random.default_rng(seed).choice(rest, math.ceil(check * len(rest)), replace=False)
    table["chosen"] = pd.Series(pd.NA, index=table.index, dtype="string")
    table.loc[: n_top - 1, "chosen"] = "top"
    table.loc[drawn, "chosen"] = "random"
    verified = table[table["chosen"].notna()]
    parts = [
        patch(model, contrasts, list(dict.fromkeys(group["site"])), at=[place] if place != "all" else "all", **options)
        for place, group in verified.groupby("at", sort=False)
    ]
    rows = pd.concat(parts, ignore_index=True)
    table = table.merge(_sizes(rows, "exact", "exact_signed"), "left")
    both = table.dropna(subset="exact")
    signed = both[["signed", "exact_signed"]]
    varied = len(both) > 2 and signed.nunique().min() > 1
    pearson, spearman = (signed.corr(way).iloc[0, 1] if varied else math.nan for way in ("pearson", "spearman"))
    columns = ["site", "at", "attributed", "exact", "chosen"]
    return Screened(table[columns], rows, float(pearson), float(spearman), len(both))


def _sizes(rows: pd.DataFrame, size: str, signed: str) -> pd.DataFrame:
    """The mean |effect| of each site and place, and the mean effect, under these names."""
    effects = rows.assign(**{size: rows["effect"].abs(), signed: rows["effect"]})
    return effects.groupby(["site", "at"], sort=False)[[size, signed]].mean().reset_index()
