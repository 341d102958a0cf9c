"""The sites of a model: all of a kind, and those that a caller names, checked against it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mechir.errors import MechirError, refuse_index
from mechir.hooks import Hooked
from mechir.reranker import Reranker
from mechir.sites import Attn, Head, KvHead, Mlp, Neuron, Resid, Site, as_sites


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
    sizes = {Head: model.cfg.n_heads, Neuron: model.cfg.d_mlp, KvHead: model.cfg.n_key_value_heads or 0}
    for site in parsed:
        model.resolve([(site.hook, lambda x, hook: None)])
        refuse_shared(site, model)
        if isinstance(site, Head | Neuron | KvHead):
            refuse_index(type(site).__name__, site[1], sizes[type(site)], f"layer {site.layer}")
    return parsed


def refuse_shared(site: Site, model: Hooked) -> None:
    """Raises for the k or v of one head where several share them, and for shared ones where each has its own."""
    name, shared = model.cfg.model_name, model.cfg.n_key_value_heads
    if shared and isinstance(site, Head) and site.part in ("k", "v"):
        group = site.head * shared // model.cfg.n_heads
        raise MechirError(
            f"'{site}' is no site of '{name}', whose {model.cfg.n_heads} heads share {shared} of keys and values: "
            f"write {KvHead(site.layer, group, site.part)}, which changes {model.cfg.n_heads // shared} heads."
        )
    if not shared and isinstance(site, KvHead):
        raise MechirError(
            f"'{site}' is no site of '{name}', whose heads have keys and values of their own: write "
            f"{Head(site.layer, site.head, site.part)}."
        )


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
