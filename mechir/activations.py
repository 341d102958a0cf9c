"""Activations of other runs, kept as values: means and samples by segment, for ablation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.errors import MechirError
from mechir.pairs import Batch, Pair, pairs_hash
from mechir.segments import FIVE

HOOKS = ("attn.hook_z", "mlp.hook_post", "hook_mlp_out", "hook_attn_out")
"""What can be ablated: heads, neurons, MLPs, attention outputs."""


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations by hook name, [segment, draw, ...]; equality, hash and repr are the SHA-256 of the content.

    `recipe` says where they come from. Means have one draw. The segments are CLS, QUERY, SEP1, DOC, SEP2.
    """

    recipe: str
    values: Mapping[str, Float[Tensor, "segment draw ..."]] = field(repr=False)
    seed: int = 0
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"{self.recipe}\0{self.seed}".encode())
        for name in sorted(self.values):
            digest.update(name.encode())
            digest.update(self.values[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        object.__setattr__(self, "sha256", digest.hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Activations) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Activations({self.recipe!r}, sha256={self.sha256[:16]!r})"

    def at(self, name: str, batch: Batch, rows: int) -> Float[Tensor, "batch row ..."]:
        """What stands at the first `rows` positions of each pair of the batch (0 at padding).

        With several draws, each position takes one of its segment; which one depends on the seed, the ids of the pair
        and the position alone, so the same pair is ablated alike in every batch and at every site.
        """
        if name not in self.values:
            raise MechirError(
                f"These activations hold no '{name}' (they hold {', '.join(list(self.values)[:3])}, ...)."
            )
        value = self.values[name].to(batch.segment.device)
        filled = torch.zeros(len(batch), rows, *value.shape[2:], dtype=value.dtype, device=value.device)
        draws = _draws(batch.pairs, rows, value.shape[1], self.seed).to(value.device)
        for which, segment in enumerate(FIVE):
            here = batch.at(segment)[:, :rows]
            filled[here] = value[which][draws[here]]
        return filled


def _draws(pairs: Sequence[Pair], rows: int, n: int, seed: int) -> Tensor:
    if n == 1:
        return torch.zeros(len(pairs), rows, dtype=torch.int64)

    def drawn(pair: Pair) -> np.ndarray:
        key = hashlib.sha256(f"{seed}\0{pair.query_id}\0{pair.doc_id}".encode()).digest()
        return np.random.default_rng(int.from_bytes(key[:8])).integers(n, size=rows)

    return torch.from_numpy(np.stack([drawn(pair) for pair in pairs]))


@torch.no_grad()
def means(model: Any, pairs: Sequence[Pair], *, by: str = "segment") -> Activations:
    """The mean activation of every head, neuron, MLP and attention output over the positions of all pairs.

    Args:
        model: a `HookedEncoder`.
        pairs: what to average over; every position counts once, padding never.
        by: "segment" keeps one mean per segment (a head's mean at CLS differs from that at document tokens), "all"
            takes one over all positions. Sums run in float64.
    """
    if by not in ("segment", "all"):
        raise MechirError(f"Cannot average by '{by}': write by='segment' or by='all'.")
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(len(FIVE), dtype=torch.float64)
    for _, batch in model.encode(pairs).buckets():
        batch = batch.to(model.device)
        weight = torch.stack([batch.at(segment) for segment in FIVE]).double()
        counts += weight.sum((1, 2)).cpu()

        def add(x: Tensor, hook: Any, weight: Tensor = weight) -> None:
            total = torch.einsum("sbp,bp...->s...", weight, x.double()).cpu()
            sums[hook.name] = sums.get(hook.name, torch.zeros_like(total)) + total

        with model.hooks([(_ablatable, add)]):
            model(batch, last_rows="all")
    if by == "all":
        counts = counts.sum().expand(len(FIVE))
        sums = {name: total.sum(0, keepdim=True).expand_as(total) for name, total in sums.items()}
    values = {
        name: (total / counts.view(-1, *[1] * (total.ndim - 1)))[:, None].to(model.dtype)
        for name, total in sums.items()
    }
    return Activations(_recipe(f"means by {by}", model, pairs), values)


@torch.no_grad()
def samples(model: Any, pairs: Sequence[Pair], *, draws: int = 64, seed: int = 0) -> Activations:
    """Activations of `draws` positions of each segment, from pairs drawn at random: what resample ablation writes.

    One position per segment is taken from each drawn pair (with replacement), the same for every site.
    """
    rng = np.random.default_rng(seed)
    drawn = [pairs[i] for i in rng.integers(len(pairs), size=draws)]
    kept: dict[str, list[Tensor]] = {}
    for pair in drawn:
        batch = model.batch(pair)
        where = [int(rng.choice(batch.at(segment)[0].nonzero().flatten().cpu().numpy())) for segment in FIVE]

        def keep(x: Tensor, hook: Any, where: list[int] = where) -> None:
            kept.setdefault(hook.name, []).append(x[0, where].clone())

        with model.hooks([(_ablatable, keep)]):
            model(batch, last_rows="all")
    values = {name: torch.stack(rows, 1) for name, rows in kept.items()}
    return Activations(_recipe(f"{draws} samples by segment", model, pairs), values, seed)


def _ablatable(name: str) -> bool:
    return name.endswith(HOOKS)


def _recipe(what: str, model: Any, pairs: Sequence[Pair]) -> str:
    return f"{what} of {len(pairs)} pairs {pairs_hash(pairs)[:12]} in model {model.fingerprint[:12]}"
