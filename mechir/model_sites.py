"""The sites of a model: all of a kind, and those that a caller names, checked against it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mechir.errors import MechirError, refuse_index
from mechir.reranker import Reranker
from mechir.sites import Attn, Head, Mlp, Neuron, Resid, as_sites


def all_heads(model: Reranker, part: str = "z") -> list[Head]:
    """Every head of the model, by layer."""
    return [Head(layer, head, part) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


def mlps(model: Reranker) -> list[Mlp]:
    """Every MLP of the model."""
    return [Mlp(layer) for layer in range(model.cfg.n_layers)]


def blocks(model: Reranker) -> list[Resid | Attn | Mlp]:
    """The residual stream that each layer reads and what its attention and its MLP add: the rows of block maps."""
    return [kind(layer) for kind in (Resid, Attn, Mlp) for layer in range(model.cfg.n_layers)]


def sites_of(model: Reranker, sites: Any) -> list[Any]:
    """The sites as values; raises for anything but a site of this model."""
    parsed = as_sites(sites)
    if not parsed:
        raise MechirError("There is nothing to patch: name a site such as 'h8.1', or give all_heads(model).")
    sizes = {Head: model.cfg.n_heads, Neuron: model.cfg.d_mlp}
    for site in parsed:
        model.resolve([(site.hook, lambda x, hook: None)])
        if isinstance(site, Head | Neuron):
            refuse_index(type(site).__name__, site[1], sizes[type(site)], f"layer {site.layer}")
    return parsed


def heads_of(model: Reranker, heads: Any) -> list[Head]:
    """The heads as values; raises for anything but a head of this model."""
    listed = sites_of(model, heads)
    for site in listed:
        if not isinstance(site, Head):
            raise MechirError(f"'{site}' has no attention: write heads, such as h8.1.")
    return listed


def refuse_layers(model: Reranker, layers: Iterable[int] | None) -> None:
    """Raises for a layer that the model does not have."""
    for layer in layers or ():
        refuse_index("Layer", layer, model.cfg.n_layers, "the model")
