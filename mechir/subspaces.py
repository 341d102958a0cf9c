"""Directions of an activation space, and the interventions that remove or scale what lies along them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechir.errors import MechirError
from mechir.hooks import Hook
from mechir.pairs import Batch
from mechir.sites import Attn, Head, Mlp, Resid, parse_site

EMBED = "embed.hook_embed"
"""The hook of the word embeddings, before positions and segments are added."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """k directions of a d-dimensional space; equality, hash and repr are the SHA-256 of their content.

    The coordinates of x are `(x - offset) @ read.T`; taking coordinates c away from x leaves `x - c @ write`. For an
    orthonormal basis `read` and `write` are the same (`Subspace.span`); for directions of the residual stream seen
    through a head's W_Q they are not (`spectra.aligned`).

    `recipe` says where the directions come from; `model` is the fingerprint of the model that they are taken from,
    which no other model accepts.
    """

    recipe: str
    read: Float[Tensor, "k d"] = field(repr=False)
    write: Float[Tensor, "k d"] = field(repr=False)
    offset: Float[Tensor, "d"] = field(repr=False)
    model: str = ""
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"{self.recipe}\0{self.model}".encode())
        for tensor in (self.read, self.write, self.offset):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        object.__setattr__(self, "sha256", digest.hexdigest())

    @classmethod
    def span(cls, vectors: Any, recipe: str, *, offset: Float[Tensor, "d"] | None = None, model: str = "") -> Subspace:
        """The space that the vectors [k, d] (or one [d]) span; the first basis vector keeps the first one's direction.

        Raises:
            MechirError: for vectors that are linearly dependent, so that there are not k directions, or not finite.
        """
        rows = torch.atleast_2d(torch.as_tensor(vectors)).double()
        if not bool(rows.isfinite().all()):
            raise MechirError(f"The vectors of '{recipe}' are not finite: check where they come from.")
        basis, upper = torch.linalg.qr(rows.T)
        size = upper.diagonal().abs()
        if len(rows) > rows.shape[1] or bool((size <= 1e-9 * rows.norm(dim=1)).any()):
            raise MechirError(
                f"The {len(rows)} vectors of '{recipe}' span fewer directions: leave the dependent ones out."
            )
        basis = (basis * upper.diagonal().sign()).T.contiguous()
        centre = torch.zeros(rows.shape[1], dtype=torch.float64) if offset is None else offset.double()
        return cls(recipe, basis, basis, centre, model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subspace) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Subspace({self.recipe!r}, k={len(self.read)}, sha256={self.sha256[:16]!r})"

    def coordinates(self, x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes k"]:
        """Where x lies along each direction."""
        return (x - self.offset.to(x)) @ self.read.to(x).T

    def add(self, x: Float[Tensor, "*axes d"], change: Float[Tensor, "*axes k"]) -> Float[Tensor, "*axes d"]:
        """X with its coordinates changed by `change`."""
        return x + change @ self.write.to(x)


@dataclass(frozen=True)
class Project:
    """Takes directions out of a component: `Project("h8.1.q", spectra.aligned(model, "h8.1", k=4))`.

    What the component carries along the directions is set to 0 (or to the subspace's offset), all else stays.
    A random subspace of equal rank is the control, and a single one proves nothing: take 20 or more.

    Args:
        site: a head's q, k, v or z, e.g. "h8.1.q"; resid3, mlp3, attn3; or "embed", the word embeddings.
        subspace: of as many dimensions as the activation has.
    """

    site: Head | Resid | Mlp | Attn | str
    subspace: Subspace

    def __init__(self, site: Any, subspace: Any) -> None:
        parsed = parse_site(site) if isinstance(site, str) and site != "embed" else site
        if parsed != "embed" and (
            not isinstance(parsed, Head | Resid | Mlp | Attn) or getattr(parsed, "part", "") in ("pattern", "result")
        ):
            raise MechirError(f"Cannot project '{parsed}': write a head's part (h8.1.q), resid3, mlp3, attn3 or embed.")
        if not isinstance(subspace, Subspace):
            raise MechirError(f"{subspace!r} is no Subspace: write Subspace.span(vectors, 'what they are').")
        object.__setattr__(self, "site", parsed)
        object.__setattr__(self, "subspace", subspace)

    def hooks(self, batch: Batch) -> list[Hook]:
        """One edit, at the site's own hook."""
        name = EMBED if isinstance(self.site, str) else self.site.hook
        head = self.site.head if isinstance(self.site, Head) else None
        return [(name, Projected(self.subspace, head))]


@dataclass(frozen=True)
class Projected:
    """The edit of a `Project`: the activation, of one head where there is one, without the subspace."""

    subspace: Subspace
    head: int | None = None

    cls_first = True

    @property
    def model(self) -> str:
        """The fingerprint of the model that the directions are of."""
        return self.subspace.model

    def __call__(self, x: Float[Tensor, "batch pos ..."], hook: Any) -> Float[Tensor, "..."]:
        """The activation without its coordinates along the directions."""
        if self.head is not None and self.head >= x.shape[2]:
            raise MechirError(
                f"Head {self.head} is out of range: the model has heads 0-{x.shape[2] - 1} ({hook.name})."
            )
        seen = x if self.head is None else x[:, :, self.head]
        if seen.shape[-1] != self.subspace.read.shape[1]:
            raise MechirError(
                f"{self.subspace!r} has {self.subspace.read.shape[1]} dimensions and '{hook.name}' has "
                f"{seen.shape[-1]}: take directions of that activation."
            )
        new = self.subspace.add(seen, -self.subspace.coordinates(seen))
        if self.head is None:
            return new
        out = x.clone()
        out[:, :, self.head] = new
        return out


@dataclass(frozen=True)
class EditEmbedding:
    """Scales or shifts the word embeddings of some word pieces along a direction: the edit of Lu et al. 2025.

    A coordinate a along the direction becomes `factor * a`; with `absolute` it becomes `factor * |a|`, as in the
    paper's code, so that a positive factor always points up the direction and a negative one down (a factor of 1 then
    is no identity). Without a direction the whole embedding is scaled, which is the paper's control. It is the same as
    an edit of W_E: every occurrence counts, in the query and in the document.

    Args:
        factor: 0 removes, 1 leaves (unless `absolute`).
        direction: a `Subspace` of the embedding space, or None for the whole row.
        pieces: ids of word pieces, e.g. `model.tokenizer("solar", add_special_tokens=False).input_ids`; None for all.
        absolute: see above.
        shift: added to the scaled coordinate: `EditEmbedding(1, direction, shift=0.5)` moves alone, so that small steps
            up and down differ by the direction and by nothing else.
    """

    factor: float
    direction: Subspace | None = None
    pieces: tuple[int, ...] | None = None
    absolute: bool = False
    shift: float = 0.0

    def __init__(
        self,
        factor: Any,
        direction: Any = None,
        pieces: Iterable[int] | None = None,
        absolute: bool = False,
        shift: float = 0.0,
    ) -> None:
        if direction is not None and not isinstance(direction, Subspace):
            raise MechirError(f"{direction!r} is no Subspace: write Subspace.span(vector, 'what it is').")
        if (absolute or shift) and direction is None:
            name = "absolute" if absolute else "shift"
            raise MechirError(f"A whole embedding has no sign: leave {name} out, or give a direction.")
        object.__setattr__(self, "factor", float(factor))
        object.__setattr__(self, "direction", direction)
        object.__setattr__(self, "pieces", None if pieces is None else tuple(sorted({int(one) for one in pieces})))
        object.__setattr__(self, "absolute", absolute)
        object.__setattr__(self, "shift", float(shift))

    def hooks(self, batch: Batch) -> list[Hook]:
        """One edit, of the word embeddings."""
        return [(EMBED, Scaled(self, batch))]


@dataclass(frozen=True)
class Scaled:
    """The edit of an `EditEmbedding`."""

    edit: EditEmbedding
    batch: Batch = field(repr=False)

    @property
    def model(self) -> str:
        """The fingerprint of the model that the direction is of; empty where there is none."""
        return "" if self.edit.direction is None else self.edit.direction.model

    def __call__(self, x: Float[Tensor, "batch pos d"], hook: Any) -> Float[Tensor, "batch pos d"]:
        """The embeddings, those of the pieces edited."""
        edit = self.edit
        if edit.direction is None:
            new = edit.factor * x
        else:
            along = edit.direction.coordinates(x)
            scaled = edit.factor * (along.abs() if edit.absolute else along)
            new = edit.direction.add(x, scaled + edit.shift - along)
        return new if edit.pieces is None else torch.where(self._chosen(edit.pieces)[:, :, None], new, x)

    def _chosen(self, pieces: tuple[int, ...]) -> Bool[Tensor, "batch pos"]:
        ids = self.batch.input_ids
        return torch.isin(ids, torch.tensor(pieces, device=ids.device))
