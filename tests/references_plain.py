"""What each method gives beside a reference on plain Hugging Face: interventions, patching, attention, rankings.

A row is a function of a `Case` that yields pairs of numbers, a method's and the reference's, which must be the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import mechir as mi
from mechir.analyses import DirectionAblation, LayerSweep
from mechir.methods import matching, patching, pruning
from mechir.segments import Direction
from tests.plain import Edits, Place, Plain

Beside = Iterator[tuple[Any, Any]]
Edit = Callable[[Tensor], Tensor]
UNITS = mi.Head | mi.KvHead | mi.Neuron
"""Sites that are one of many in an activation."""
SITES = ("h1.2", "h2.0", "n1.5", "mlp1", "mlp1.post", "attn0", "resid1", "h1.1.q", "h0.1.k", "h1.0.v", "h1.3.pattern")
KINDS = {"hook_resid_pre": "stream", "hook_attn_out": "attn", "hook_mlp_out": "mlp", "mlp.hook_post": "post"}
KINDS |= {f"attn.hook_{part}": part for part in ("q", "k", "v", "z", "pattern")}


@dataclass(frozen=True)
class Case:
    """A model in float64 as mechir opens it, the same as plain Hugging Face, and the pairs that both read."""

    model: Any
    plain: Plain
    pairs: Sequence[mi.Pair]

    @cached_property
    def contrasts(self) -> list[mi.Contrast]:
        """Each pair with one more word of its query, and without."""
        return [mi.align(pair, mi.diagnostics.Tfc1(), self.model.writer) for pair in self.pairs]

    def named(self, sites: Sequence[str]) -> list[str]:
        """The sites, where `h1.3.k` is the keys that head 3 shares with others: `h1.kv1.k`."""
        return [re.sub(r"\.(\d)\.([kv])$", self._shared, name) for name in sites] if self.plain.shared > 1 else [*sites]

    def _shared(self, found: re.Match[str]) -> str:
        return f".kv{int(found[1]) // self.plain.shared}.{found[2]}"

    def at(self, pair: mi.Pair, segment: mi.Segment) -> Tensor:
        """True at the positions of a segment [pos]."""
        return self.model.batch([pair]).at(segment)[0]


def place_of(hook: str) -> Place:
    """What plain Hugging Face calls the activation of a hook."""
    _, layer, name = hook.split(".", 2)
    return KINDS[name], int(layer)


def of_unit(site: Any, change: Callable[[Tensor], Tensor]) -> Edits:
    """An edit of one site: of a head or neuron alone, or of the whole activation."""
    place = place_of(site.hook)

    def edit(x: Tensor) -> Tensor:
        if not isinstance(site, UNITS):
            return change(x)
        new, unit = x.clone(), [slice(None)] * x.ndim
        unit[1 if place[0] == "pattern" else 2] = site[1]
        new[tuple(unit)] = change(x)[tuple(unit)]
        return new

    return {place: edit}


def spliced(case: Case, contrast: mi.Contrast, site: Any) -> float:
    """The score of the base with the donor's activation at a site."""
    donor = case.plain.read(contrast.donor)[place_of(site.hook)]
    return case.plain.score(contrast.base, of_unit(site, lambda x: donor))


def cut(case: Case, pair: mi.Pair, mask: mi.Mask) -> Edits:
    """The edits of a mask."""
    reader, source = (case.at(pair, side) for side in (mask.direction.reader, mask.direction.source))
    both = reader[:, None] & source
    heads = mask.heads or [mi.Head(k, h) for k in range(case.plain.n_layers) for h in range(case.plain.n_heads)]
    kept = [head for head in heads if mask.layers is None or head.layer in mask.layers]

    def of(layer: int) -> Edit:
        here = torch.zeros(case.plain.n_heads, dtype=torch.bool)
        here[[head.head for head in kept if head.layer == layer]] = True
        return lambda x: x.masked_fill(here[:, None, None] & both, -torch.inf if mask.renormalise else 0.0)

    return {
        ("scores" if mask.renormalise else "pattern", layer): of(layer)
        for layer in dict.fromkeys(head.layer for head in kept)
    }


def ablated(sites: Sequence[Any]) -> Edits:
    """The edits that put 0 in the place of several sites."""
    edits: dict[Place, Edit] = {}
    for site in sites:
        ((place, edit),) = of_unit(site, torch.zeros_like).items()
        before = edits.get(place)
        edits[place] = edit if before is None else lambda x, one=before, other=edit: other(one(x))
    return edits


def scores(case: Case, edits: Callable[[mi.Pair], Edits] = lambda pair: {}) -> list[float]:
    """The reference's score of every pair."""
    return [case.plain.score(pair, edits(pair)) for pair in case.pairs]


def score(case: Case) -> Beside:
    yield case.model.score(case.pairs), scores(case)


def run_with_cache(case: Case) -> Beside:
    score, cache = case.model.run_with_cache(case.pairs)
    yield score, scores(case)
    for row, pair in enumerate(case.pairs):
        for (kind, layer), x in case.plain.read(pair).items():
            last = kind == "stream" and layer == case.plain.n_layers
            part = next((name for name, other in KINDS.items() if other == kind), "")
            name = f"blocks.{layer}.{part}"
            name = "embed.hook_embed" if kind == "embed" else f"blocks.{layer - 1}.hook_resid_post" if last else name
            if kind != "scores":  # of DeBERTa known up to a constant
                n = x.shape[-2] if kind == "pattern" else x.shape[1]
                ours = cache[name][row]
                yield (ours[:, :n, :n] if kind == "pattern" else ours[:n]), x[0]


def run_with_hooks(case: Case) -> Beside:
    names = {"blocks.1.hook_resid_pre": 1.5, "blocks.1.attn.hook_v": 0.5, "blocks.2.hook_mlp_out": 2.0}
    for name, factor in names.items():
        hooks = [(name, lambda x, hook, factor=factor: factor * x)]
        edits = {place_of(name): lambda x, factor=factor: factor * x}
        yield case.model.run_with_hooks(case.pairs, fwd_hooks=hooks), scores(case, lambda pair, edits=edits: edits)


def mask(case: Case) -> Beside:
    for renormalise in (False, True):
        for options in ({}, {"layers": [1]}, {"heads": ["h0.1", "h2.3"]}):
            one = mi.Mask("doc<-query", renormalise=renormalise, **options)
            yield case.model.score(case.pairs, one), scores(case, lambda pair, one=one: cut(case, pair, one))


def ablate(case: Case) -> Beside:
    for sites in (["h1.2"], ["n1.5"], ["mlp2"], ["attn0"], ["h1.2", "h1.3", "n1.5", "n0.7", "mlp2"]):
        edits = ablated([mi.parse_site(site) for site in sites])
        yield case.model.score(case.pairs, mi.Ablate(sites)), scores(case, lambda pair, edits=edits: edits)


def patch_value(case: Case) -> Beside:
    bases, donors = ([getattr(contrast, side) for contrast in case.contrasts] for side in ("base", "donor"))
    for name in case.named(SITES):
        site = mi.parse_site(name)
        ours = case.model.score(bases, mi.Patch(mi.record(case.model, donors, site), site))
        yield ours, [spliced(case, contrast, site) for contrast in case.contrasts]


def project(case: Case) -> Beside:
    for name in ("h1.1.q", "h2.2", "resid1", "mlp0"):
        site = mi.parse_site(name)
        width = case.model.cfg.d_head if isinstance(site, mi.Head) else case.model.cfg.d_model
        basis = torch.linalg.qr(torch.randn(width, 2, generator=torch.Generator().manual_seed(0)).double())[0]
        edits = of_unit(site, lambda x, basis=basis: x - x @ basis @ basis.T)
        ours = case.model.score(case.pairs, mi.Project(site, mi.Subspace.span(basis.T, "two directions")))
        yield ours, scores(case, lambda pair, edits=edits: edits)


def edit_embedding(case: Case) -> Beside:
    words = case.plain.hf.get_input_embeddings().weight
    direction = torch.nn.functional.normalize(words[200] - words[300], dim=0)
    pieces = [*range(0, len(words), 3)]

    def edits(pair: mi.Pair) -> Edits:
        ids = case.plain.inputs(pair)["input_ids"]
        chosen = (ids % 3 == 0)[..., None]
        return {("embed", 0): lambda x: torch.where(chosen, x + (2 - 1) * (x @ direction)[..., None] * direction, x)}

    value = mi.EditEmbedding(2, mi.Subspace.span(direction, "a direction"), pieces)
    yield case.model.score(case.pairs, value), scores(case, edits)


def swept(case: Case, rows: pd.DataFrame, edits: Callable[[str, mi.Pair], Edits]) -> Beside:
    """The rows of a sweep beside the scores under the edits of each name."""
    for name, part in rows.groupby("name", sort=False):
        yield part["score"], scores(case, lambda pair, name=name: edits(str(name), pair))


def sweep(case: Case) -> Beside:
    do = {"intact": (), "cut": mi.Mask("doc<-query", range(2)), "out": mi.Ablate(["h1.2", "mlp2"])}

    def edits(name: str, pair: mi.Pair) -> Edits:
        if name == "cut":
            return cut(case, pair, mi.Mask("doc<-query", range(2)))
        return ablated([mi.Head(1, 2), mi.Mlp(2)]) if name == "out" else {}

    yield from swept(case, mi.sweep(case.model, case.pairs, do), edits)


def patch(case: Case) -> Beside:
    rows = patching.patch(case.model, case.contrasts, case.named(SITES))
    base = [case.plain.score(contrast.base) for contrast in case.contrasts]
    for name, part in rows.groupby("site", sort=False):
        site = mi.parse_site(name)
        patched = [spliced(case, contrast, site) for contrast in case.contrasts]
        yield part["effect"], np.subtract(patched, base)


def measures(pattern: np.ndarray, readers: np.ndarray, sources: np.ndarray, ids: np.ndarray) -> list[float]:
    """`MEASURES` of one head, written out: mean_max, max, mass, entropy, identical."""
    p = pattern[readers][:, sources]
    mass = p.sum(1)
    share = np.divide(p, mass[:, None], out=np.zeros_like(p), where=mass[:, None] > 0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
    same = (share * (ids[readers][:, None] == ids[sources])).sum(1)
    weighed = [float((mass * x).sum() / mass.sum()) if mass.sum() > 0 else 0.0 for x in (entropy, same)]
    return [float(p.max(1).mean()), float(p.max()), float(mass.mean()), *weighed]


def by_pair(case: Case) -> pd.DataFrame:
    """The reference's `MEASURES` of every pair, head and direction that the mask does not hide."""
    rows = []
    for pair in case.pairs:
        seen, ids = case.plain.read(pair), case.plain.inputs(pair)["input_ids"][0].numpy()
        query, doc = (case.at(pair, side).numpy() for side in (mi.Segment.QUERY, mi.Segment.DOC))
        for layer in range(case.plain.n_layers):
            for head, pattern in enumerate(seen["pattern", layer][0].numpy()):
                for direction, sides in (("query<-doc", (query, doc)), ("doc<-query", (doc, query))):
                    if case.plain.layout.causal and direction == "query<-doc":
                        continue
                    values = dict(zip(matching.MEASURES, measures(pattern, *sides, ids), strict=True))
                    rows.append(
                        {"grade": pair.grade, "doc_id": pair.doc_id, "direction": direction, "site": f"h{layer}.{head}"}
                        | values
                    )
    return pd.DataFrame(rows)


def attention_contrast(case: Case) -> Beside:
    ours, theirs = matching.attention_by_grade(case.model, case.pairs), by_pair(case)
    keys, shown = ["grade", "direction", "site"], ["mean_max", "max", "mass", "identical"]
    means = theirs.groupby(keys)[shown].mean()
    heads = ours[ours["site"].str.startswith("h")].groupby(keys)[shown].first()
    yield heads.reindex(means.index), means


def whole_layers(case: Case) -> Beside:
    """The mean attention of whole layers in each direction; nothing where the pairs lack one of its two parts."""
    rows = matching.attention_by_grade(case.model, case.pairs)
    rows = rows[rows["site"].str.startswith("attn")]
    by_grade = {grade: [pair for pair in case.pairs if pair.grade == grade] for grade in rows["grade"].unique()}
    patterns = {pair.doc_id: case.plain.read(pair) for pair in case.pairs}
    means = []
    for row in rows.itertuples():
        direction, layer, some = Direction.parse(row.direction), int(row.site[4:]), []
        for pair in by_grade[row.grade]:
            reader, source = (case.at(pair, side) for side in (direction.reader, direction.source))
            mass = patterns[pair.doc_id]["pattern", layer][0].mean(0)[reader][:, source].sum(1).mean()
            some.append(float(mass) if bool(source.any()) else np.nan)
        means.append(np.mean(some))
    yield rows["mass"], means


def matching_heads(case: Case) -> Beside:
    """The heads whose `mean_max` differs most between the best and the worst grade, in a direction that there is."""
    theirs = by_pair(case)
    direction = "doc<-query" if case.plain.layout.causal else "query<-doc"
    values = theirs[theirs["direction"] == direction].pivot(index="grade", columns="site", values="mean_max")
    difference = (values.loc[values.index.max()] - values.loc[values.index.min()]).sort_values(ascending=False)
    found = difference[difference != 0].index[:4]
    yield (
        [10 * head.layer + head.head for head in matching.matching_heads(case.model, case.pairs, 4)],
        [10 * mi.parse_site(site).layer + mi.parse_site(site).head for site in found],
    )


def entropy(case: Case) -> Beside:
    ours, theirs = matching.attention_by_pair(case.model, case.pairs), by_pair(case)
    keys = ["doc_id", "direction", "site"]
    theirs = theirs.set_index(keys)["entropy"]
    yield ours.dropna(subset="doc_id").set_index(keys)["entropy"].reindex(theirs.index), theirs


def of_masks(case: Case, experiment: Any) -> Beside:
    rows, do = experiment.measure(case.model, case.pairs), experiment.interventions(case.model)
    yield from swept(case, rows, lambda name, pair: {} if name == "original" else cut(case, pair, do[name]))


def direction_ablation(case: Case) -> Beside:
    yield from of_masks(case, DirectionAblation())


def layer_sweep(case: Case) -> Beside:
    yield from of_masks(case, LayerSweep())


def layer_sweep_of_one(case: Case) -> Beside:
    yield from of_masks(case, LayerSweep(cut=(Direction.parse("doc<-query"),)))


def pruned(case: Case) -> Beside:
    sites = [f"n{k}.{u}" for k in range(3) for u in range(48)] + [f"h{k}.{u}" for k in range(3) for u in range(4)]
    values = np.random.default_rng(0).normal(size=len(sites))
    importance = pd.DataFrame({"embedded": values}, index=sites)
    sets = pruning.pruned_sets(case.model, importance, {"embedded": "embedded"}, ["embedded"], [0.1])[:5]
    units = {name: listed.split(",") for name, listed in sets[["name", "sites"]].to_numpy()}
    rows = mi.sweep(case.model, case.pairs, {name: mi.Ablate(listed) for name, listed in units.items()})
    parsed = {name: [mi.parse_site(site) for site in listed] for name, listed in units.items()}
    yield from swept(case, rows, lambda name, pair: ablated(parsed[name]))
