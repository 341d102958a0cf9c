"""Masks of attention directions, ablations and patches of components, as frozen values.

An intervention prints as its own constructor call, hashes and compares. Its edits are values too: two interventions
with equal edits in a layer share that layer in a sweep. To add one, write a frozen dataclass with `hooks(batch)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechir.activations import Activations
from mechir.batches import Batch, positions, segment_or_positions
from mechir.errors import MechirError, refuse_index
from mechir.hooks import AnyOf, Edit, EveryLayer, Hook, Hooked
from mechir.model_sites import refuse_shared
from mechir.possible import refuse_impossible
from mechir.segments import Direction, Segment
from mechir.sites import (
    Attn,
    Head,
    KvHead,
    Mlp,
    Neuron,
    Resid,
    Site,
    as_site,
    as_sites,
    heads_in_order,
    layers_in_order,
    layers_or_heads,
)

RENORMALISED = " renormalised"
"""Ends the name of a direction that is cut before the softmax."""


@dataclass(frozen=True)
class Mask:
    """Cuts the attention of `reader` to `source`: `Mask("doc<-query", layers=range(0, 6))`.

    The default sets the pattern to 0 after the softmax and does not renormalise: the operation of Vast et al. (arXiv
    2507.14604, section 3) and Zhan et al. (SIGIR 2020). The other weights still have the cut sources in the softmax's
    denominator, so the reader is not blind to them: on a trained model, cutting every route from the query this way
    leaves scores that still depend on the query. `renormalise=True` sets the scores to -inf before the softmax instead:
    the reader is then blind to the source, and its attention goes elsewhere. In both modes a reader with no source left
    reads 0 (only the output bias is added).

    Args:
        direction: `reader<-source`, e.g. "doc<-query", "D<-Q", "cls<-query|doc", "doc<-all"; or a whole mask as it
            prints, "doc<-query@0-5". `decoder<-doc` cuts the decoder's attention to the encoder.
        layers: which layers, e.g. `range(0, 6)`, an int, or None for all; order and repetition mean nothing. Where a
            decoder reads, its own count: of `decoder<-doc` the decoder's, of `decoder|doc<-query` those of both.
        heads: these heads only (layers are then theirs), e.g. "h8.1" or `[Head(8, 1)]`, or None for all; likewise.
        renormalise: before the softmax rather than after it.
    """

    direction: Direction
    layers: tuple[int, ...] | None = None
    heads: tuple[Head, ...] | None = None
    renormalise: bool = False

    def __init__(
        self, direction: str | Direction, layers: Any = None, heads: Any = None, renormalise: bool = False
    ) -> None:
        if isinstance(direction, str) and ("@" in direction or direction.endswith(RENORMALISED)):
            if layers is not None or heads is not None:
                raise MechirError(
                    f"'{direction}' names layers or heads, and so do layers= or heads=: give one of them."
                )
            whole = Mask.parse(direction, renormalise=renormalise)
            direction, layers, heads, renormalise = whole.direction, whole.layers, whole.heads, whole.renormalise
        if layers is not None and heads is not None:
            raise MechirError("A Mask takes layers= or heads=, not both: a head names its layer, e.g. Head(8, 1).")
        in_order = {"layers": layers_in_order(layers), "heads": None if heads is None else heads_in_order(heads)}
        vars(self).update(in_order, direction=Direction.parse(direction), renormalise=renormalise)

    def __repr__(self) -> str:
        options = {"layers": self.layers, "heads": self.heads, "renormalise": self.renormalise or None}
        written = [f", {name}={value!r}" for name, value in options.items() if value is not None]
        return f"Mask('{self.direction}'{''.join(written)})"

    def __str__(self) -> str:
        """The text that `parse` reads, and after it `renormalise`: `doc<-query@0-5 renormalised`."""
        parts = list(map(str, self.heads if self.heads is not None else self.layers or ()))
        if self.heads is None and self.layers and self.layers == tuple(range(self.layers[0], self.layers[-1] + 1)):
            parts = [f"{self.layers[0]}-{self.layers[-1]}"]
        return f"{self.direction}{'@' * bool(parts)}{','.join(parts)}{RENORMALISED if self.renormalise else ''}"

    @classmethod
    def parse(cls, text: str, *, renormalise: bool = False) -> Mask:
        """The mask written `doc<-query`, `doc<-query@0-5` (layer 5 included), `@0,3`, or `@h8.1,h8.3` for heads.

        ` renormalised` at the end is read too. Raises for anything else.
        """
        renormalise |= text.endswith(RENORMALISED)
        direction, at, where = text.removesuffix(RENORMALISED).partition("@")
        if not at:
            return cls(direction, renormalise=renormalise)
        chosen = layers_or_heads(where)
        if chosen is None:
            raise MechirError(f"Cannot read '@{where}' in '{text}': write @0-5, @0,3 (layers) or @h8.1,h8.3 (heads).")
        return cls(direction, **chosen, renormalise=renormalise)

    def hooks(self, batch: Batch) -> list[Hook]:
        """The edits, on the scores where `renormalise`, else on the pattern."""
        part, fill = ("hook_attn_scores", -math.inf) if self.renormalise else ("hook_pattern", 0.0)
        by_layer: dict[int, tuple[int, ...] | None] = dict.fromkeys(self.layers or ())
        for layer, heads in groupby(self.heads or (), key=lambda head: head.layer):
            by_layer[layer] = tuple(head.head for head in heads)
        cuts: list[Hook] = [
            (_read_at(self.direction, part, layer), CutPattern(self.direction, heads, fill, batch))
            for layer, heads in by_layer.items()
        ]
        return cuts or [(_read_at(self.direction, part), CutPattern(self.direction, None, fill, batch))]


def _read_at(direction: Direction, part: str, layer: int | None = None) -> str | EveryLayer | AnyOf:
    """The hooks of the attention by which readers see sources: the encoder's, the decoder's to it, the decoder's own.

    The layer counts in encoder and decoder alike; None for all.
    """
    generated, others = Segment.DECODER, ~Segment.DECODER
    decodes, encodes = generated in direction.reader, bool(direction.reader & others)
    attends = {
        ("blocks", "attn"): encodes and (not decodes or bool(direction.source & others)),
        ("decoder", "cross_attn"): decodes and bool(direction.source & others),
        ("decoder", "attn"): decodes and generated in direction.source,
    }
    names = tuple(
        EveryLayer(f"{kind}.{part}", of) if layer is None else f"{of}.{layer}.{kind}.{part}"
        for (of, kind), wanted in attends.items()
        if wanted
    )
    return names[0] if len(names) == 1 else AnyOf(names)


@dataclass(frozen=True)
class CutPattern(Edit):
    """The edit of a `Mask` in one layer: `fill` wherever a reader looks at a source."""

    direction: Direction
    heads: tuple[int, ...] | None
    fill: float
    batch: Batch = field(repr=False)

    head_row = True

    def within(self, model: Hooked) -> CutPattern:
        """The edit itself; raises for a direction that does not happen in the model, where it would change nothing."""
        refuse_impossible(self.direction, self.batch, model)
        return self

    def __call__(self, x: Float[Tensor, "batch head reader source"], hook: Any) -> Float[Tensor, "..."]:
        """The scores or the pattern, cut."""
        cut = self._cut(hook.name, x.shape[2])
        if self.heads is not None:
            _check_index(self.heads, x.shape[1], "Head", hook)
            chosen = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
            chosen[list(self.heads)] = True
            cut = cut & chosen[None, :, None, None]
        return x.masked_fill(cut, self.fill)

    def _cut(self, name: str, readers: int) -> Bool[Tensor, "batch 1 #reader source"]:
        """Where a reader looks at a source: the decoder from one position, at the encoder or at itself."""
        source = self.batch.at(self.direction.source)[:, None, None, :]
        if not name.startswith("decoder."):
            return source & self.batch.at(self.direction.reader)[:, None, :readers, None]
        return source if ".cross_attn." in name else torch.ones_like(source[..., :1])


@dataclass(frozen=True, repr=False)
class Ablate:
    """Takes components out: `Ablate("h8.1")`, "n5.1203", "mlp3" or "attn3", or several: `Ablate(["h3.1", "n5.12"])`.

    Without `with_` their activations become 0 at every position. `with_=means(model, pairs)` writes the mean of the
    position's segment, `with_=samples(model, pairs)` an activation drawn from other pairs (resample ablation). A head
    is ablated at z, so the output bias of its layer stays; `attn3` takes the bias out as well. Zero is far from
    anything the model has seen: compare it with the mean before calling a component necessary.

    Args:
        sites: one component, or several, each once; their order means nothing.
        with_: the activations in their place; None for 0.
    """

    sites: tuple[Head | Neuron | Mlp | Attn, ...]
    with_: Activations | None = None

    def __init__(self, sites: Any, with_: Any = None) -> None:
        parsed = as_sites(sites)
        for site in parsed:
            if not isinstance(site, Head | Neuron | Mlp | Attn) or getattr(site, "part", "z") not in ("z", "out"):
                raise MechirError(
                    f"Cannot ablate '{site}': write a head (h8.1), neuron (n5.1203), MLP (mlp3) or attn3."
                )
        if not parsed:
            raise MechirError("There is nothing to ablate: name a site such as 'h8.1', or several.")
        if len(set(parsed)) < len(parsed):
            twice = next(site for site in parsed if parsed.count(site) > 1)
            raise MechirError(f"'{twice}' is to be ablated more than once: give each site once.")
        if with_ is not None and not isinstance(with_, Activations):
            raise MechirError(
                f"Cannot ablate with {with_!r}: write with_=means(model, pairs) or samples(model, pairs)."
            )
        in_order = sorted(parsed, key=lambda site: (site.layer, type(site).__name__, site))
        vars(self).update(sites=tuple(in_order), with_=with_)

    def __repr__(self) -> str:
        names = list(map(str, self.sites))
        filling = "" if self.with_ is None else f", with_={self.with_!r}"
        return f"Ablate({names if len(names) > 1 else names[0]!r}{filling})"

    def hooks(self, batch: Batch) -> list[Hook]:
        """One edit for each hook: for the heads of a layer, for its neurons, for its MLP and for its attention."""
        units: dict[tuple[str, str], list[int]] = {}
        for site in self.sites:
            at = units.setdefault((site.hook, type(site).__name__), [])
            at += [site[1]] if isinstance(site, Head | Neuron) else []
        filled = None if self.with_ is None else batch  # zeros are the same in every batch
        return [(hook, Replace(kind, tuple(at), self.with_, filled)) for (hook, kind), at in units.items()]


@dataclass(frozen=True)
class Replace(Edit):
    """The edit of an `Ablate`: units of an activation, or all of it, become 0 or the values of other runs."""

    kind: str
    units: tuple[int, ...]
    with_: Activations | None
    batch: Batch | None = field(repr=False)

    head_row = True

    @property
    def model(self) -> str:
        """The fingerprint of the model whose activations are written; empty for zeros."""
        return "" if self.with_ is None else self.with_.model

    def __call__(self, x: Float[Tensor, "batch pos ..."], hook: Any) -> Float[Tensor, "..."]:
        """The activation with the units replaced."""
        if self.units:
            _check_index(self.units, x.shape[2], self.kind, hook)
        units = torch.tensor(self.units, dtype=torch.long, device=x.device)
        if self.with_ is None or self.batch is None:
            return x.index_fill(2, units, 0.0) if self.units else torch.zeros_like(x)
        new = self.with_.at(hook.name, self.batch, x.shape[1]).to(x)
        return x.index_copy(2, units, new.index_select(2, units)) if self.units else new


@dataclass(frozen=True)
class Patch:
    """Puts the activations of another run in the place of a component's: `Patch(donor, "h8.1", at="query")`.

    `score(do=patch) - score()` is then the effect of the component's input in the other run. The donor is recorded on
    pairs with the same ids, lengths and segments (`contrasts.align` makes them); `patching.patch` does it for many
    sites and pairs at once.

    Args:
        donor: `record(model, donors, sites)`.
        site: e.g. "h8.1" (z), "h8.1.q", "mlp3", "mlp3.post", "n5.1203", "attn3", "resid3.mid".
        at: a segment ("query", "cls|doc") or positions; None for all. Of a pattern these are the readers.
    """

    donor: Activations
    site: Site
    at: Segment | tuple[int, ...] | None = None

    def __init__(self, donor: Any, site: Any, at: str | Segment | int | Iterable[int] | None = None) -> None:
        parsed = as_site(site)
        if not isinstance(parsed, Head | KvHead | Neuron | Mlp | Attn | Resid):
            raise MechirError(f"Cannot patch '{parsed}': write a site such as h8.1, h8.1.q, mlp3, attn3 or resid3.")
        if not isinstance(donor, Activations):
            raise MechirError(f"Cannot patch from {donor!r}: write donor=record(model, donors, '{parsed}').")
        vars(self).update(donor=donor, site=parsed, at=segment_or_positions(at))

    def hooks(self, batch: Batch) -> list[Hook]:
        """One edit, at the site's own hook."""
        donor = self.donor.at(self.site.hook, batch, batch.input_ids.shape[1])
        return [(self.site.hook, Splice(self.site, donor, positions(self.at, batch), self.donor.model))]


@dataclass(frozen=True, eq=False)
class Splice(Edit):
    """The edit of a `Patch`: the donor's values of one head, neuron or whole activation, at some positions."""

    site: Site
    donor: Float[Tensor, "batch ..."] = field(repr=False)
    where: Bool[Tensor, "batch pos"] | None = field(default=None, repr=False)
    model: str = ""

    head_row = True

    def within(self, model: Hooked) -> Splice:
        """The edit itself; raises for the keys or values of one head where several share them."""
        refuse_shared(self.site, model)
        return self

    def __call__(self, x: Float[Tensor, "batch ..."], hook: Any) -> Float[Tensor, "..."]:
        """The activation with the donor's values written in."""
        pattern = hook.name.endswith(("hook_pattern", "hook_attn_scores"))
        heads, rows = (1, 2) if pattern else (2, 1)
        donor = self.donor.narrow(rows, 0, x.shape[rows]).to(x)
        new = donor
        if isinstance(self.site, Head | KvHead | Neuron):
            _check_index([self.site[1]], x.shape[heads], type(self.site).__name__, hook)
            new = x.clone()
            new.select(heads, self.site[1]).copy_(donor.select(heads, self.site[1]))
        if self.where is None:
            return new
        shape = [1] * x.ndim
        shape[0], shape[rows] = len(x), x.shape[rows]
        return torch.where(self.where[:, : x.shape[rows]].view(shape), new, x)


def _check_index(indices: Iterable[int], size: int, unit: str, hook: Any) -> None:
    for index in indices:
        refuse_index(unit, index, size, f"layer {hook.name.split('.')[1]}")
