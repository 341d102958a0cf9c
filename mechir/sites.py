"""Addresses inside the model: `h8.1 n5.1203 mlp3 attn3 resid0`, and their parts (`h8.1.q`)."""

from __future__ import annotations

import numbers
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import pandas as pd

from mechir.errors import MechirError

Kind = TypeVar("Kind", bound=type)
ATTENTION = {part: f"attn.hook_{part}" for part in ("z", "q", "k", "v", "pattern", "result")}
"""Parts of attention, of one head or of all heads of a layer, and the hooks that carry them."""
RESID = {"pre": "hook_resid_pre", "mid": "hook_resid_mid", "post": "hook_resid_post"}
MLP = {"out": "hook_mlp_out", "post": "mlp.hook_post", "in": "hook_mlp_in"}


@runtime_checkable
class Site(Protocol):
    """Anything that names one activation: a layer, and the hook under which it is read and edited."""

    @property
    def layer(self) -> int:
        """The layer, counted from 0."""

    @property
    def hook(self) -> str:
        """The full name of the hook point that carries this site."""


def _kind(prefix: str, whole: str = "", unit: str = "") -> Callable[[Kind], Kind]:
    """A decorator of sites that print as `prefix` and their numbers, and then as their part unless it is the `whole`.

    `unit` stands before the second number.

    Values are equal only to their own kind: as bare tuples, Mlp(3) and Attn(3) would be one key of a dict.
    """

    def decorate(kind: Kind) -> Kind:
        def equal(self: tuple[Any, ...], other: object) -> bool:
            return type(self) is type(other) and tuple.__eq__(self, other)

        def text(self: tuple[Any, ...]) -> str:
            named = (self[0], f"{unit}{self[1]}", *self[2:]) if unit else self
            return prefix + ".".join(str(value) for value in named if value != whole)

        methods = {
            "__eq__": equal,
            "__ne__": lambda self, other: not equal(self, other),
            "__hash__": lambda self: hash((kind.__name__, *self)),
            "__str__": text,
        }
        for name, method in methods.items():
            setattr(kind, name, method)
        return kind

    return decorate


@_kind("h", "z")
class Head(NamedTuple):
    """An attention head. `part` is z (its output before W_O), q, k, v, pattern, or result (z after W_O)."""

    layer: int
    head: int
    part: str = "z"

    @property
    def hook(self) -> str:  # noqa: D102
        return _hook(self, ATTENTION)

    def __repr__(self) -> str:
        return f"Head({self.layer}, {self.head}" + (")" if self.part == "z" else f", {self.part!r})")


@_kind("h", unit="kv")
class KvHead(NamedTuple):
    """The keys (k) or values (v) that several heads share, in models with fewer of them than heads: `h8.kv1.k`."""

    layer: int
    head: int
    part: str

    @property
    def hook(self) -> str:  # noqa: D102
        return _hook(self, {part: ATTENTION[part] for part in "kv"})


@_kind("n")
class Neuron(NamedTuple):
    """One hidden unit of an MLP, after the activation function."""

    layer: int
    neuron: int

    @property
    def hook(self) -> str:  # noqa: D102
        return f"blocks.{self.layer}.mlp.hook_post"


@_kind("mlp", "out")
class Mlp(NamedTuple):
    """A whole MLP. `part` is out (its output to the residual stream, bias included), post (all neurons) or in."""

    layer: int
    part: str = "out"

    @property
    def hook(self) -> str:  # noqa: D102
        return _hook(self, MLP)


@_kind("attn", "out")
class Attn(NamedTuple):
    """A whole attention layer. `part` is out (its output to the residual stream, with the bias) or a head's part."""

    layer: int
    part: str = "out"

    @property
    def hook(self) -> str:  # noqa: D102
        return _hook(self, ATTENTION | {"out": "hook_attn_out"})


@_kind("resid", "pre")
class Resid(NamedTuple):
    """The residual stream before a layer (`pre`), before its MLP (`mid`) and after the layer (`post`)."""

    layer: int
    part: str = "pre"

    @property
    def hook(self) -> str:  # noqa: D102
        return _hook(self, RESID)


@_kind("embed.u")
class Singular(NamedTuple):
    """The left singular vector `vector` of W_E, 0 the strongest: `lexical.singular_direction(model, vector)`."""

    vector: int

    @property
    def layer(self) -> int:
        """Below all layers: 0."""
        return 0

    @property
    def hook(self) -> str:  # noqa: D102
        return "embed.hook_embed"


@dataclass(frozen=True)
class Score:
    """The score as the reader of an edge: above all layers, however many there are."""

    @property
    def hook(self) -> str:  # noqa: D102
        return "head.hook_logits"

    def __str__(self) -> str:
        return "score"


def _hook(site: Head | KvHead | Mlp | Attn | Resid, parts: Mapping[str, str]) -> str:
    if site.part not in parts:
        raise MechirError(f"{type(site).__name__} has no part '{site.part}': it has {', '.join(parts)}.")
    return f"blocks.{site.layer}.{parts[site.part]}"


_HEAD = re.compile(r"(?:h|L?)(\d+)(?:\.|H)(\d+)(?:\.([a-z]+))?")
"""A head as it prints, `h8.1`, and as others write it: `L8H1`, `8.1`."""
_KINDS: dict[str, Any] = {"h": Head, "n": Neuron, "mlp": Mlp, "attn": Attn, "resid": Resid}


def parse_site(text: str) -> Head | KvHead | Neuron | Mlp | Attn | Resid:
    """The site that prints as `text`: `parse_site("h8.1") == Head(8, 1)`, `parse_site("h8.1.q") == Head(8, 1, "q")`.

    `L8H1` and `8.1` are read as heads too. Raises for any other text.
    """
    if shared := re.fullmatch(r"h(\d+)\.kv(\d+)\.([kv])", text.strip()):
        return KvHead(int(shared[1]), int(shared[2]), shared[3])
    if head := _HEAD.fullmatch(text.strip()):
        text = f"h{head[1]}.{head[2]}{f'.{head[3]}' if head[3] else ''}"
    match = re.fullmatch(r"(h|n|mlp|attn|resid)(\d+)(?:\.(\d+))?(?:\.([a-z]+))?", text.strip())
    if match and bool(match[3]) == (match[1] in ("h", "n")) and not (match[1] == "n" and match[4]):
        numbers = [int(number) for number in match.group(2, 3) if number]
        site = _KINDS[match[1]](*numbers, *([match[4]] if match[4] else []))
        assert site.hook  # refuses a part that it does not have
        return site
    raise MechirError(
        f"Cannot read '{text}' as a site: write h8.1 (head), n5.1203 (neuron), mlp3, attn3 or resid0, counting from 0."
    )


def is_head(sites: pd.Series, *, parts: bool = False) -> pd.Series:
    """Whether each entry of a column of text is a head: h8.1, and with `parts` h8.1.q as well.

    An edge (h8.1->score) is no head, and neither is a missing entry.
    """
    pattern = r"h\d+\.\d+" + rf"(?:\.(?:{'|'.join(ATTENTION)}))?" * parts
    return sites.astype(str).str.fullmatch(pattern, na=False)


def as_site(site: Any) -> Any:
    """A site given as text, or a head as `(layer, head)`, as a value; anything else as it is."""
    if _is_place(site):
        layer, head = map(operator.index, site)
        return Head(layer, head)
    return parse_site(site) if isinstance(site, str) else site


def _is_place(site: Any) -> bool:
    """Whether this is `(layer, head)`, a plain tuple of two whole numbers."""
    whole = type(site) is tuple and all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in site)
    return whole and len(site) == 2


def as_sites(sites: Any) -> list[Any]:
    """One site or several, given as values or as text, as a list of values."""
    if not isinstance(sites, str | Site | Iterable):
        raise MechirError(f"{sites!r:.60} names no site: write 'h8.1', or a list of sites.")
    return [as_site(site) for site in ([sites] if isinstance(sites, str | Site) or _is_place(sites) else sites)]


def layers_in_order(layers: Any) -> tuple[int, ...] | None:
    """The layers in their order, each once; None for all. Raises for an empty list, and for anything but layers."""
    if layers is None:
        return None
    listed = [layers] if isinstance(layers, numbers.Integral) else layers
    try:
        ordered = tuple(sorted({operator.index(layer) for layer in listed}))
    except TypeError:
        ordered = ()
    if not ordered or ordered[0] < 0 or any(isinstance(layer, bool) for layer in listed):
        raise MechirError(f"layers={layers!r} names no layer: count from 0, e.g. layers=range(0, 6), or leave it out.")
    return ordered


def heads_in_order(heads: Any) -> tuple[Head, ...]:
    """The heads by layer, each once, given as values or as text; raises for anything but whole heads."""
    parsed = as_sites(heads) if heads != "" else []
    for head in parsed:
        if not isinstance(head, Head):
            raise MechirError(f"{head!r} is no Head: write e.g. heads=[Head(8, 1), Head(8, 3)].")
        if head.part != "z":
            whole = Head(head.layer, head.head)
            raise MechirError(f"'{head}' is a part of a head, and a mask cuts its whole pattern: write {whole}.")
    if not parsed:
        raise MechirError(f"heads={heads!r} names no head: write e.g. heads=[Head(8, 1), Head(8, 3)], or leave it out.")
    return tuple(sorted(set(parsed)))


def layers_or_heads(text: str) -> dict[str, Any] | None:
    """Parses `0-5` and `0,3` as {"layers": ...}, `h8.1,h8.3` as {"heads": ...}, anything else as None.

    Raises for text that begins like a head but names none.
    """
    parts = [part for part in re.split(r"[\s,]+", re.sub(r"\s*-\s*", "-", text)) if part]
    if parts and all(part[0] in "hL" or _HEAD.fullmatch(part) for part in parts):  # "h8" too, which is refused there
        return {"heads": heads_in_order(parts)}
    ends = [re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part) for part in parts]
    spans = [(int(end[1]), int(end[2] or end[1])) for end in ends if end]
    if not spans or len(spans) < len(parts) or any(last < first for first, last in spans):
        return None
    layers = [layer for first, last in spans for layer in range(first, last + 1)]
    twice = [layer for layer in layers if layers.count(layer) > 1]
    if twice:
        raise MechirError(
            f"'@{text}' names layer {twice[0]} twice: name it once, or a head as @h{layers[0]}.{layers[-1]}."
        )
    return {"layers": layers}
