"""Directions of an activation space, and the interventions that remove, add or scale activations along them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechir.batches import Batch, positions, segment_or_positions
from mechir.errors import MechirError, refuse_index
from mechir.hooks import Edit, Hook, Hooked
from mechir.model_sites import refuse_shared
from mechir.segments import Segment
from mechir.sites import Attn, Head, KvHead, Mlp, Resid, as_site

EMBED = "embed.hook_embed"
"""The hook of the word embeddings, before positions and segments are added."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """A subspace of k directions in d dimensions; equality, hash and repr are the SHA-256 of its content.

    The coordinates of x are `(x - offset) @ read.T`; x without coordinates c is `x - c @ write`. For an orthonormal
    basis `read` and `write` are the same (`Subspace.span`); for directions of the residual stream seen through a head's
    W_Q they are not (`spectra.aligned`).

    `recipe` describes the origin of the directions; `model` is the fingerprint of the model that they are taken from,
    which no other model accepts.
    """

    recipe: str
    read: Float[Tensor, "k d"] = field(repr=False)
    write: Float[Tensor, "k d"] = field(repr=False)
    offset: Float[Tensor, "d"] = field(repr=False)
    model: str = ""
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", _sha256(f"{self.recipe}\0{self.model}", self.read, self.write, self.offset))

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
        """The coordinates of x along each direction."""
        return (x - self.offset.to(x)) @ self.read.to(x).T

    def add(self, x: Float[Tensor, "*axes d"], change: Float[Tensor, "*axes k"]) -> Float[Tensor, "*axes d"]:
        """Adds `change` to the coordinates of x."""
        return x + change @ self.write.to(x)


@dataclass(frozen=True)
class Project(Edit):
    """Takes directions out of a component: `Project("h8.1.q", spectra.aligned(model, "h8.1", k=4))`.

    The component's coordinates along the directions become 0 (or those of the subspace's offset), all else stays.
    A random subspace of equal rank is the control, and a single one proves nothing: take 20 or more.

    Args:
        site: a head's q, k, v or z, e.g. "h8.1.q"; resid3, mlp3, attn3; or "embed", the word embeddings.
        subspace: of as many dimensions as the activation has.
    """

    site: Head | KvHead | Resid | Mlp | Attn | str
    subspace: Subspace

    head_row = True

    def __init__(self, site: Any, subspace: Any) -> None:
        component = _component(site, "project")
        if not isinstance(subspace, Subspace):
            raise MechirError(f"{subspace!r} is no Subspace: write Subspace.span(vectors, 'what they are').")
        vars(self).update(site=component, subspace=subspace)

    def hooks(self, batch: Batch) -> list[Hook]:
        """One edit, the value itself, at the site's own hook."""
        return [(_hook(self.site), self)]

    @property
    def model(self) -> str:
        """The fingerprint of the directions' model."""
        return self.subspace.model

    def within(self, model: Hooked) -> Project:
        """The edit itself; raises for the keys or values of one head where several share them."""
        if not isinstance(self.site, str):
            refuse_shared(self.site, model)
        return self

    def __call__(self, x: Float[Tensor, "batch pos ..."], hook: Any) -> Float[Tensor, "..."]:
        """The activation without its coordinates along the directions."""
        part = _part(x, self.site, hook, self.subspace, self.subspace.read.shape[1])
        return _replaced(x, self.site, self.subspace.add(part, -self.subspace.coordinates(part)))


@dataclass(frozen=True, init=False, repr=False)
class Add:
    """Adds a vector to a component's activation: `Add("resid3", vector, at="query", factor=2.0)`.

    Equality and hash are of the content, the vector's as its SHA-256.

    Args:
        site: as in `Project`.
        vector: of as many dimensions as the activation has.
        at: a segment ("query", "cls|doc") or positions; None for all.
        factor: how many times the vector is added; negative to subtract it.
    """

    site: Head | KvHead | Resid | Mlp | Attn | str
    vector: Float[Tensor, "d"] = field(compare=False)
    at: Segment | tuple[int, ...] | None
    factor: float
    sha256: str

    def __init__(self, site: Any, vector: Any, at: Any = None, factor: Any = 1.0) -> None:
        added = torch.as_tensor(vector).detach().clone()
        if added.ndim != 1 or not bool((factor * added).isfinite().all()):
            wrong = "has values that are not finite" if added.ndim == 1 else f"has the shape {tuple(added.shape)}"
            raise MechirError(f"What is added {wrong}: give a vector of numbers and a factor, such as 1.0.")
        place = {"site": _component(site, "add to"), "at": segment_or_positions(at)}
        vars(self).update(place, vector=added, factor=float(factor), sha256=_sha256("", added))

    def __repr__(self) -> str:
        content = f"d={len(self.vector)}, sha256={self.sha256[:16]!r}"
        where = str(self.at) if isinstance(self.at, Segment) else self.at
        return f"Add({str(self.site)!r}, {content}, at={where!r}, factor={self.factor!r})"

    def hooks(self, batch: Batch) -> list[Hook]:
        """One edit, at the site's own hook."""
        return [(_hook(self.site), Added(self, None if self.at is None else batch))]


@dataclass(frozen=True)
class Added(Edit):
    """The edit of an `Add`."""

    edit: Add
    batch: Batch | None = field(repr=False)

    head_row = True

    def within(self, model: Hooked) -> Added:
        """The edit itself; raises for shared keys or values of one head, and for a segment that the pairs lack."""
        if self.batch is not None:
            positions(self.edit.at, self.batch)
        if not isinstance(self.edit.site, str):
            refuse_shared(self.edit.site, model)
        return self

    def __call__(self, x: Float[Tensor, "batch pos ..."], hook: Any) -> Float[Tensor, "..."]:
        """The activation with the vector added, at the positions that are named."""
        edit = self.edit
        part = _part(x, edit.site, hook, edit, len(edit.vector))
        new = part + edit.factor * edit.vector.to(part)
        where = None if self.batch is None else positions(edit.at, self.batch)
        if where is not None:
            new = torch.where(where[:, : part.shape[1]].view(*part.shape[:2], *[1] * (part.ndim - 2)), new, part)
        return _replaced(x, edit.site, new)


@dataclass(frozen=True)
class EditEmbedding:
    """Scales or shifts the word embeddings of some word pieces along a direction: the edit of Lu et al. 2025.

    A coordinate a along the direction becomes `factor * a`; with `absolute` it becomes `factor * |a|`, as in the
    paper's code, so that a positive factor always points up the direction and a negative one down (a factor of 1 then
    is no identity). Without a direction the whole embedding is scaled, which is the paper's control. It equals an edit
    of W_E: every occurrence changes, in the query and in the document.

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
        ids = None if pieces is None else tuple(sorted(set(map(int, pieces))))
        vars(self).update(factor=float(factor), direction=direction, pieces=ids, absolute=absolute, shift=float(shift))

    def hooks(self, batch: Batch) -> list[Hook]:
        """One edit, of the word embeddings."""
        return [(EMBED, Scaled(self, batch))]


@dataclass(frozen=True)
class Scaled(Edit):
    """The edit of an `EditEmbedding`."""

    edit: EditEmbedding
    batch: Batch = field(repr=False)

    @property
    def model(self) -> str:
        """The fingerprint of the direction's model; empty without a direction."""
        return "" if self.edit.direction is None else self.edit.direction.model

    def __call__(self, x: Float[Tensor, "batch pos d"], hook: Any) -> Float[Tensor, "batch pos d"]:
        """The embeddings, those of the pieces edited."""
        edit, ids = self.edit, self.batch.input_ids
        if edit.direction is None:
            new = edit.factor * x
        else:
            along = edit.direction.coordinates(x)
            scaled = edit.factor * (along.abs() if edit.absolute else along)
            new = edit.direction.add(x, scaled + edit.shift - along)
        if edit.pieces is None:
            return new
        return torch.where(torch.isin(ids, torch.tensor(edit.pieces, device=ids.device))[:, :, None], new, x)


def _sha256(text: str, *tensors: Tensor) -> str:
    """The hash of text and tensors: number type, shape and values."""
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _component(site: Any, verb: str) -> Head | KvHead | Resid | Mlp | Attn | str:
    """The site whose vectors are edited; raises for a site without vectors."""
    parsed = site if site == "embed" else as_site(site)
    has_vectors = isinstance(parsed, Head | KvHead | Resid | Mlp | Attn) and parsed.part not in ("pattern", "result")
    if parsed == "embed" or has_vectors:
        return parsed
    raise MechirError(f"Cannot {verb} '{parsed}': write a head's part (h8.1.q), resid3, mlp3, attn3 or embed.")


def _hook(site: Head | KvHead | Resid | Mlp | Attn | str) -> str:
    return EMBED if isinstance(site, str) else site.hook


def _part(
    x: Float[Tensor, "batch pos ..."], site: Any, hook: Any, content: Subspace | Add, d: int
) -> Float[Tensor, "batch pos ..."]:
    """The activation, or that of one head; raises for a head that the model lacks, or one not of `d` dimensions."""
    if isinstance(site, Head | KvHead):
        refuse_index("Head", site.head, x.shape[2], f"layer {hook.name.split('.')[1]}")
        x = x[:, :, site.head]
    if x.shape[-1] != d:
        advice = f"take {'directions' if isinstance(content, Subspace) else 'a vector'} of that activation"
        raise MechirError(f"{content!r} has {d} dimensions and '{hook.name}' has {x.shape[-1]}: {advice}.")
    return x


def _replaced(x: Float[Tensor, "batch pos ..."], site: Any, new: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The activation with `new` in the place of its `_part`."""
    if not isinstance(site, Head | KvHead):
        return new
    out = x.clone()
    out[:, :, site.head] = new
    return out
