"""What methods give beside references on plain Hugging Face: gradients, depths, paths, edges and weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import mechir as mi
from mechir.methods import attribution, conductance, edges, lens, lexical, paths, spectra, tokens
from mechir.methods.walk import Way
from tests import references_plain as simple
from tests.plain import Edits, Place
from tests.references_plain import Beside, Case, place_of

FIXED = ("h1.1.q", "h0.1.k", "h2.1.k")
HIDDEN = -1e30
"""Scores below it are those of sources that a mask hides."""
DISTANCE = 3
"""Positions between reader and source in the spectra of models that turn queries and keys by them."""
SITES = ("h0.2", "h1.2", "mlp1", "n1.5", "h1.0.v", "attn1", *FIXED)
STEPS = 6


def asked(function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """What a function gives, or refuses by itself: types are checked in tests alone, and would come first."""
    with torch.no_grad():
        return inspect.unwrap(function)(*given, **options)


def gradients(case: Case, pair: mi.Pair, edit: Callable[[Tensor], Tensor] | None = None) -> dict[Place, list[Tensor]]:
    """Every activation of a pair and the score's gradient there; `edit`: of the word embeddings."""
    start: Edits = {("embed", 0): lambda x: (x if edit is None else edit(x)).detach().requires_grad_()}
    with torch.enable_grad():
        score, seen = case.plain.run(pair, start)
        slopes = torch.autograd.grad(score, list(seen.values()), allow_unused=True, materialize_grads=True)
    return {place: [x.detach(), slope] for (place, x), slope in zip(seen.items(), slopes, strict=True)}


def of_site(x: Tensor, site: mi.Site) -> Tensor:
    """The part of an activation that is a site's."""
    return x[:, :, site[1]] if isinstance(site, simple.UNITS) else x


def attribute(case: Case) -> Beside:
    sites = case.named(SITES)
    rows = attribution.attribute(case.model, case.contrasts, sites, qk_fix=False)
    found = {name: [] for name in sites}
    for contrast in case.contrasts:
        donor, here = case.plain.read(contrast.donor), gradients(case, contrast.base)
        for name, values in found.items():
            site = mi.parse_site(name)
            base, slope = here[place_of(site.hook)]
            values.append(float(of_site((donor[place_of(site.hook)] - base) * slope, site).sum()))
    for name, part in rows.groupby("site", sort=False):
        yield part["effect"], found[name]


def attribute_fixed(case: Case) -> Beside:
    rows = attribution.attribute(case.model, case.contrasts, case.named(FIXED), qk_fix=True)
    for name, part in rows.groupby("site", sort=False):
        site = mi.parse_site(name)
        shared = case.plain.shared if isinstance(site, mi.KvHead) else 1
        heads = range(site.head * shared, (site.head + 1) * shared)
        values = []
        for contrast in case.contrasts:
            donor, here = case.plain.read(contrast.donor), gradients(case, contrast.base)
            values.append(sum(through_softmax(case, here, donor, site, head) for head in heads))
        yield part["effect"], values


def through_softmax(
    case: Case, here: dict[Place, list[Tensor]], donor: dict[Place, Tensor], site: mi.Head | mi.KvHead, head: int
) -> float:
    """What a head's z changes with the donor's queries or keys, times the score's gradient there."""
    layer, own = site.layer, {"q": head, "k": head // case.plain.shared, "v": head // case.plain.shared}
    q, k, v = (here[part, layer][0][0, :, own[part]] for part in "qkv")
    new = donor[site.part, layer][0, :, site.head]
    q, k = (new, k) if site.part == "q" else (q, new)
    hidden = (here["scores", layer][0] < HIDDEN).expand(1, case.plain.n_heads, len(q), len(q))[0, head]
    z = (q @ k.T / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    base, slope = (x[0, :, head] for x in here["z", layer])
    return float(((z - base) * slope).sum())


def flows(case: Case, pair: mi.Pair, segment: mi.Segment) -> dict[Place, Tensor]:
    """The trapezoid sums of gradient times change on the line of the word embeddings from [PAD] to the text."""
    words, ids = case.plain.hf.get_input_embeddings(), case.plain.inputs(pair)["input_ids"]
    padded = torch.where(case.at(pair, segment), torch.full_like(ids, case.plain.tokenizer.pad_token_id), ids)
    begin, total = words(padded), {}
    before = None
    for k in range(STEPS + 1):
        here = gradients(case, pair, lambda x, k=k: begin + k / STEPS * (x - begin))
        for place in here if before is not None else ():
            (x, slope), (old, old_slope) = here[place], before[place]
            total[place] = total.get(place, 0) + (x - old) * (slope + old_slope) / 2
        before = here
    return total


WAY = {"steps": STEPS, "tol": float("inf")}


def conducted(case: Case) -> Beside:
    rows = conductance.conductance(case.model, case.pairs, units=("post", "pattern"), way=Way("pad_query", **WAY)).rows
    whole = conductance.conductance(case.model, case.pairs, units=("z",), way=Way("pad_query", **WAY)).rows
    for pair in case.pairs:
        expected = flows(case, pair, mi.Segment.QUERY)
        for frame in (rows, whole):
            for row in frame[frame["grade"] == pair.grade].itertuples():
                flow = expected[row.unit, row.layer][0]
                over = {"post": 0, "pattern": (1, 2), "z": (0, 2)}[row.unit]
                yield row.conductance, flow.sum(over)


def conducted_by_segment(case: Case) -> Beside:
    """The parts of each unit add up to it."""
    way = Way("pad_query", **WAY)
    rows = conductance.conductance(case.model, case.pairs, units=("post", "pattern"), way=way, split=True).rows
    for pair in case.pairs:
        expected = flows(case, pair, mi.Segment.QUERY)
        for row in rows[rows["grade"] == pair.grade].itertuples():
            flow = expected[row.unit, row.layer][0]
            yield row.conductance.sum(-1), flow.sum({"post": 0, "pattern": (1, 2)}[row.unit])


def attributed_tokens(case: Case) -> Beside:
    rows = tokens.token_attribution(case.model, case.pairs, way=Way("pad_both", **WAY)).rows
    for pair in case.pairs:
        expected = flows(case, pair, mi.Segment.QUERY | mi.Segment.DOC)["embed", 0][0].sum(-1)
        yield rows.loc[rows["doc_id"] == pair.doc_id, "attribution"], expected


def depths(case: Case) -> Beside:
    """The score with the stream of a depth in the place of the last one, which the head and its norm read."""
    rows = asked(lens.read_depths, case.model, case.pairs)
    plain = case.plain
    for pair in case.pairs:
        seen, streams = plain.read(pair), {}
        streams["resid0"] = seen["stream", 0]
        for k, layer in enumerate(plain.layers):
            norm = layer.get_submodule(plain.layout.ln1) if plain.layout.norm == "post" else torch.nn.Identity()
            streams |= {f"resid{k}.mid": norm(seen["stream", k] + seen["attn", k])}
            streams |= {f"resid{k}.post": seen["stream", k + 1]}
        read = rows[(rows["doc_id"] == pair.doc_id) & rows["score"].notna()].set_index("site")["score"]
        there = [plain.score(pair, {("stream", plain.n_layers): lambda _, x=x: x}) for x in streams.values()]
        yield read.reindex(streams), there


def frozen_but(case: Case, contrast: mi.Contrast, head: mi.Head, kinds: tuple[str, ...]) -> float:
    """The effect of one head of the donor with all activations of these kinds as they are on the base."""
    base, donor = case.plain.read(contrast.base), case.plain.read(contrast.donor)
    values = {place: x for place, x in base.items() if place[0] in kinds}
    values["z", head.layer] = values["z", head.layer].clone()
    values["z", head.layer][:, :, head.head] = donor["z", head.layer][:, :, head.head]
    edits: Edits = {place: lambda x, value=value: value for place, value in values.items()}
    return case.plain.score(contrast.base, edits) - case.plain.score(contrast.base)


def path_patch(case: Case) -> Beside:
    heads = [mi.Head(0, 1), mi.Head(1, 2), mi.Head(2, 0)]
    for freeze, kinds in (("heads", ("z",)), ("heads+mlps", ("z", "mlp"))):
        rows = asked(paths.path_patch, case.model, case.contrasts, heads, freeze=freeze)
        for head in heads:
            ours = rows.loc[rows["sender"] == str(head), "effect"]
            yield ours, [frozen_but(case, contrast, head, kinds) for contrast in case.contrasts]


def edge_effects(case: Case) -> Beside:
    heads = [mi.Head(0, 1), mi.Head(1, 2), mi.Head(2, 0)]
    found = asked(edges.edges, case.model, case.contrasts, method="exact", senders=heads, receivers="score")
    frame = found.frame.set_index("edge")
    for head in heads:
        effects = [frozen_but(case, contrast, head, ("z", "mlp")) for contrast in case.contrasts]
        yield frame.loc[f"{head}->score", "estimate"], np.mean(effects)


def traces(case: Case) -> Beside:
    """The traces of W_Q W_K^T, at a distance where positions turn queries and keys."""
    turned = case.plain.layout.positions == "rotary"
    rows = asked(spectra.qk_spectra, case.model, draws=20, distance=DISTANCE if turned else None)
    expected = []
    for layer in case.plain.layers:
        plain = (weights(case, layer.attention.self, part) for part in ("query", "key") if not turned)
        q, k = at_a_distance(case, layer) if turned else plain
        expected += torch.einsum("hde,hde->h", q, k).tolist()
    yield rows["trace"], expected


def weights(case: Case, attention: Any, path: str, chunk: slice = slice(None)) -> Tensor:
    """The weights of a projection by head [head, d_model, d_head]; shared ones once for each head."""
    weight = attention.get_submodule(path).weight[chunk]
    rows = weight.unflatten(0, (-1, case.model.cfg.d_head)).transpose(1, 2)
    return rows.repeat_interleave(case.plain.n_heads // len(rows), 0)


def at_a_distance(case: Case, layer: Any) -> tuple[Tensor, Tensor]:
    """The weights of queries and keys, these turned as at position 0, those as at `DISTANCE`, by transformers' own."""
    layout, body = case.plain.layout, case.plain.hf.base_model
    attention = layer.get_submodule(layout.attention)
    if "qkv" in layout.turned:
        d, path = case.model.cfg.d_model, layout.turned["qkv"]
        q, k = (weights(case, attention, path, slice(part * d, (part + 1) * d)) for part in range(2))
    else:
        q, k = (weights(case, attention, layout.turned[part]) for part in "qk")
    kind = [layer.attention_type] if hasattr(layer, "attention_type") else []
    there, here = (body.rotary_emb(q, torch.tensor([[at]]), *kind) for at in (DISTANCE, 0))
    return apply_rotary_pos_emb(q[None], q[None], *there)[0][0], apply_rotary_pos_emb(k[None], k[None], *here)[0][0]


def embedding(case: Case) -> Beside:
    _, sigma, _ = asked(lexical.embedding_svd, case.model, 10)
    words = case.plain.hf.get_input_embeddings().weight.numpy()
    yield sigma, np.linalg.svd(words, compute_uv=False)[:10]


ROWS: dict[str, Callable[[Case], Beside]] = {
    "`score`": simple.score,
    "`run_with_cache`": simple.run_with_cache,
    "`run_with_hooks`": simple.run_with_hooks,
    "`Mask`": simple.mask,
    "`Ablate`": simple.ablate,
    "`Patch`": simple.patch_value,
    "`Project`": simple.project,
    "`EditEmbedding`": simple.edit_embedding,
    "`sweep`": simple.sweep,
    "`patch`": simple.patch,
    "`attribute(qk_fix=True)` of q, k": attribute_fixed,
    "`attribute(qk_fix=False)`": attribute,
    "attention contrast": simple.attention_contrast,
    "attention contrast, whole layers": simple.whole_layers,
    "`matching_heads`": simple.matching_heads,
    "entropy (`attention_by_pair`)": simple.entropy,
    "direction ablation": simple.direction_ablation,
    "layer sweep": simple.layer_sweep,
    "layer sweep of `doc<-query`": simple.layer_sweep_of_one,
    "`conductance`": conducted,
    "`conductance(split=True)`": conducted_by_segment,
    "`token_attribution`": attributed_tokens,
    "pruning": simple.pruned,
    "lens (`read_depths`)": depths,
    "`path_patch`": path_patch,
    "`qk_spectra`": traces,
    "lexical (`embedding_svd`)": embedding,
    "`edges`": edge_effects,
}
"""The rows of the table on docs/rerankers.md, in its order."""
