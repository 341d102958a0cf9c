"""Conductance: complete over every cut, equal to captum's layer by layer, and first for the planted units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import LayerConductance

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import conductance as found_by
from mechir.methods.conductance import Conductances, conductance
from mechir.methods.walk import Way
from mechir.segments import Segment
from tests.models import FAMILIES, PAIRS, Checkpoints

FEW = PAIRS[:2]


def matrix(found: Conductances, layer: int, unit: str) -> np.ndarray:
    """Pairs x units: each pair of these tests is a query of its own."""
    rows = found.rows[(found.rows["layer"] == layer) & (found.rows["unit"] == unit)]
    return np.stack(rows["conductance"].to_list())


def apart(pairs: list[mi.Pair]) -> list[mi.Pair]:
    return [mi.Pair(pair.query, pair.document, f"q{k}", f"d{k}", k % 2) for k, pair in enumerate(pairs)]


@pytest.mark.parametrize(
    ("family", "baseline"), [*((family, "pad_query") for family in FAMILIES), ("bert", "pad_both")]
)
def test_every_residual_cut_is_complete(checkpoints: Checkpoints, family: str, baseline: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family), dtype="float64")
    found = conductance(model, apart(FEW), way=Way(baseline, steps=256, tol=1e-3, max_steps=4096))
    assert found.checks["converged"].all() and (found.checks["delta"].abs() > 0).all()
    spread = 0.1 * found.checks["value"].std()
    assert (found.checks["error"] <= 1e-3 * found.checks["delta"].abs().clip(lower=spread)).all()
    batch = model.batch(apart(FEW))
    where = Segment.QUERY if baseline == "pad_query" else Segment.QUERY | Segment.DOC
    start = batch.input_ids.masked_fill(batch.at(where), model.tokenizer.pad_token_id)

    def padded(x: torch.Tensor, hook: object) -> torch.Tensor:
        return model.W_E[start]

    with torch.no_grad():
        delta = model(batch) - model.run_with_hooks(batch, fwd_hooks=[("embed.hook_embed", padded)])
    np.testing.assert_allclose(found.checks["delta"], delta, atol=1e-10)
    np.testing.assert_allclose(found.checks["value"], model.score(apart(FEW)), atol=1e-10)


def test_heads_mlp_and_skip_are_complete_together(tiny64: HookedEncoder) -> None:
    """What goes into a LayerNorm is what heads (or the MLP) write and what the skip carries."""
    pairs, steps = apart(FEW), 512
    found = conductance(tiny64, pairs, units=("z", "post"), way=Way(steps=steps, tol=1.0))
    sublayers = [
        (f"blocks.{layer}.{before}", f"blocks.{layer}.{norm}.hook_in", layer, unit)
        for layer in range(tiny64.cfg.n_layers)
        for norm, unit, before in (("ln1", "z", "hook_resid_pre"), ("ln2", "post", "hook_resid_mid"))
    ]
    skips = along(tiny64, pairs, [(moves, felt) for moves, felt, _, _ in sublayers], steps)
    for (_, _, layer, unit), skip in zip(sublayers, skips, strict=True):
        together = matrix(found, layer, unit).sum(1) + skip
        np.testing.assert_allclose(together, found.checks["delta"], rtol=1e-3)


def along(model: HookedEncoder, pairs: list[mi.Pair], sides: list[tuple[str, str]], steps: int) -> list[np.ndarray]:
    """The gradient at one hook times the change at another, by hand: all nodes of the line as one batch."""
    n, batch = steps + 1, model.batch(pairs)
    start = batch.input_ids.masked_fill(batch.at(Segment.QUERY), model.tokenizer.pad_token_id)
    whole = model.batch([pair for _ in range(n) for pair in pairs])
    place = torch.linspace(0, 1, n, dtype=torch.float64)[:, None, None, None]
    line = (model.W_E[start] + place * (model.W_E[batch.input_ids] - model.W_E[start])).flatten(0, 1).requires_grad_()
    seen: dict[str, torch.Tensor] = {}

    def keep(x: torch.Tensor, hook: Any) -> None:
        seen[hook.name] = x

    def put(x: torch.Tensor, hook: Any) -> torch.Tensor:
        return line

    names = {name for side in sides for name in side}
    with torch.enable_grad(), model.hooks([("embed.hook_embed", put), *((name, keep) for name in names)]):
        score = model(whole, head_row=False).sum()
        gradients = torch.autograd.grad(score, [seen[felt] for _, felt in sides])
    found = []
    for (moves, _), gradient in zip(sides, gradients, strict=True):
        x, g = (one.detach().unflatten(0, (n, -1)) for one in (seen[moves], gradient))
        found.append(((g[1:] + g[:-1]) / 2 * (x[1:] - x[:-1])).sum((0, 2, 3)).numpy())
    return found


@pytest.mark.parametrize(("rule", "method"), [("gauss-legendre", "gausslegendre"), ("left", "riemann_trapezoid")])
def test_it_is_captum_s_layer_by_layer(checkpoints: Checkpoints, rule: str, method: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")
    steps, pairs = 12, apart(FEW)
    found = conductance(model, pairs, way=Way(rule=rule, steps=steps, tol=np.inf), units=("post",))
    for layer in range(model.cfg.n_layers):
        np.testing.assert_allclose(
            matrix(found, layer, "post"), by_captum(model, pairs, layer, steps, method), atol=1e-5
        )
    other = by_captum(model, pairs, 0, steps, method)
    assert not np.allclose(matrix(found, 1, "post"), other, atol=1e-4)  # and not another layer's


def by_captum(model: HookedEncoder, pairs: list[mi.Pair], layer: int, steps: int, method: str) -> np.ndarray:
    batch = model.batch(pairs)
    start = batch.input_ids.masked_fill(batch.at(Segment.QUERY), model.tokenizer.pad_token_id)

    def forward(embedded: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        return model.hf(inputs_embeds=embedded, attention_mask=mask, token_type_ids=types).logits[:, 0]

    module = model.hf.bert.encoder.layer[layer].intermediate
    attribution = LayerConductance(forward, module).attribute(
        model.W_E[batch.input_ids].clone(),
        baselines=model.W_E[start].clone(),
        additional_forward_args=(batch.attention_mask.long(), batch.token_type_ids),
        n_steps=steps,
        method=method,
    )
    return np.asarray(attribution.detach().sum(1))


def test_chunks_of_nodes_and_pairs_change_nothing(tiny: HookedEncoder) -> None:
    pairs, way = apart(PAIRS[:4]), Way(steps=8, tol=np.inf)
    whole, parted = (conductance(tiny, pairs, way=way, max_tokens=n) for n in (100_000, 60))
    for one, other in zip(whole.rows["conductance"], parted.rows["conductance"], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    pd.testing.assert_frame_equal(whole.checks, parted.checks, atol=1e-5)


def test_a_group_is_the_mean_of_its_pairs(tiny: HookedEncoder) -> None:
    alone = conductance(tiny, apart(FEW), way=Way(tol=1.0))
    together = conductance(
        tiny, [mi.Pair(p.query, p.document, "q", f"d{k}", 1) for k, p in enumerate(FEW)], way=Way(tol=1.0)
    )
    assert (together.rows["n"] == len(FEW)).all() and len(together.rows) == 2 * tiny.cfg.n_layers
    for unit in ("post", "pattern"):
        np.testing.assert_allclose(matrix(together, 1, unit)[0], matrix(alone, 1, unit).mean(0), atol=1e-5)


def test_parts_add_up_to_the_whole(tiny: HookedEncoder) -> None:
    for units in (("post", "pattern"), ("pre", "z")):
        whole, parted = (conductance(tiny, apart(FEW), units=units, way=Way(tol=1.0), split=s) for s in (False, True))
        for unit in units:
            values = matrix(parted, 1, unit)
            assert values.shape[2] == len(found_by.parts(unit, parted.rows)) == (25 if unit == "pattern" else 5)
            np.testing.assert_allclose(values.sum(2), matrix(whole, 1, unit), atol=1e-5)
    last = matrix(conductance(tiny, apart(FEW), way=Way(tol=1.0), split=True), tiny.cfg.n_layers - 1, "post")
    assert (last[..., 1:] == 0).all() and (last[..., 0] != 0).any()  # only CLS is read after the last layer


def test_the_target_is_the_quantity_that_changes(tiny: HookedEncoder) -> None:
    pairs = apart(FEW)
    score, p = (conductance(tiny, pairs, target=target, way=Way(tol=1.0)) for target in ("score", "p"))
    ends = [found.checks["value"].to_numpy() for found in (score, p)]
    np.testing.assert_allclose(ends[1], sigmoid(ends[0]), rtol=1e-5)
    begin = score.checks["value"] - score.checks["delta"]
    np.testing.assert_allclose(p.checks["delta"], sigmoid(ends[0]) - sigmoid(begin), atol=1e-5)
    against = [0.5, -1.0]
    margin = conductance(tiny, pairs, target="margin", against=against, way=Way(tol=1.0))
    np.testing.assert_allclose(margin.checks["delta"], sigmoid(ends[0] - against) - sigmoid(begin - against), atol=1e-5)


def sigmoid(x: Any) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x))))


def test_pairs_that_do_not_converge_are_named(tiny: HookedEncoder) -> None:
    found = conductance(tiny, apart(FEW), way=Way(steps=1, max_steps=2, tol=1e-9))
    assert not found.checks["converged"].any() and (found.checks["steps"] == 2).all()
    assert np.isfinite(np.stack(matrix(found, 0, "post"))).all() and (found.checks["error"] > 0).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: Way("zero"), r"The baseline 'zero' is refused: a post-LN model normalises its embeddings"),
        (lambda model: Way("mask"), r"Unknown baseline 'mask': write one of pad_query, pad_document, pad_both\."),
        (lambda model: Way(rule="simpson"), r"Unknown rule 'simpson': write one of trapezoid, left, gauss-legendre\."),
        (lambda model: Way(steps=0), r"steps=0 is out of range: write 1 to 512 \(max_steps\)\."),
        (
            lambda model: conductance(model, FEW, units=("q",)),
            r"Unknown units 'q': write some of post, pre, pattern, z, resid\.",
        ),
        (
            lambda model: conductance(model, FEW, units=("post", "pre")),
            r"'post' and 'pre' are two readings of the same",
        ),
        (
            lambda model: conductance(model, FEW, target="loss"),
            r"Cannot read 'loss' as a site: write h8\.1",
        ),
        (
            lambda model: conductance(model, FEW, target="margin"),
            r"The target 'margin' takes against=, a score for each",
        ),
        (lambda model: conductance(model, FEW, against=[0.0] * 2), r"and no other target does\."),
        (
            lambda model: conductance(model, FEW, target="margin", against=[0.0]),
            r"against= has 1 scores for 2 pairs: give one for each\.",
        ),
        (
            lambda model: conductance(model, [mi.Pair("[PAD]", "bread", "q7", "d8")]),
            r"q7/d8.* equals its baseline 'pad_query', so nothing changes on the way: leave it out\.",
        ),
    ],
)
def test_lines_that_cannot_be_walked_are_refused(tiny: HookedEncoder, call: Any, said: str) -> None:
    with pytest.raises(MechirError, match=said):
        call(tiny)


@pytest.mark.parametrize("c", [100.0, 3.0])
def test_the_planted_units_come_first(c: float) -> None:
    model = mi.planted.bm25(c=c)
    both = mi.planted.pairs(model, n=6)
    for heads, planted in (("pattern", {"h1.2"}), ("z", {"h1.2", "h3.1"})):
        units = ("post", heads)
        found = conductance(model, [pair for _, pair in both], start=[base for base, _ in both], units=units)
        assert found.checks["converged"].all()
        sizes = pd.concat([by_site(part, heads) for _, part in found.rows.groupby(["query_id", "grade"], dropna=False)])
        sizes = sizes.abs().groupby(level=0).mean().sort_values(ascending=False)
        neurons, others = sizes[sizes.index.str.startswith("n")], sizes[sizes.index.str.startswith("h")]
        assert neurons.index[0] == "n1.0" and set(others.index[: len(planted)]) == planted
        if c == 100:
            assert neurons.iloc[1] <= 1e-3 * sizes.iloc[0] and others.iloc[len(planted)] <= 1e-3 * sizes.iloc[0]


def by_site(rows: pd.DataFrame, heads: str) -> pd.Series:
    parts = []
    for row in rows.itertuples():
        letter = "h" if row.unit == heads else "n"
        parts.append(
            pd.Series(row.conductance, index=[f"{letter}{row.layer}.{k}" for k in range(len(row.conductance))])
        )
    return pd.concat(parts)


def test_a_text_to_start_from_has_the_same_segments(tiny: HookedEncoder) -> None:
    pair = mi.Pair("what is wifi", "wifi is a radio signal", "q0", "d0", 1)
    other = mi.Pair("what is wifi", "bread is a radio signal", "q0", "d1", 0)
    found = conductance(tiny, [pair], start=[other], way=Way(tol=1.0))
    assert found.checks["delta"][0] == pytest.approx(float(tiny.score([pair]) - tiny.score([other])), abs=1e-5)
    longer = mi.Pair("what is wifi", "bread is a cold radio signal")
    for start, said in (
        ([longer], r"pair q0/d0 and the text it starts from differ in length: fill up with a neutral word\."),
        ([pair], r"pair q0/d0 equals the text it starts from, so nothing changes on the way: leave it out\."),
        ([], r"start= has 0 texts for 1 pairs: give one for each\."),
    ):
        with pytest.raises(MechirError, match=said):
            conductance(tiny, [pair], start=start)


def test_the_stream_is_a_unit_whose_segments_add_up(tiny: HookedEncoder) -> None:
    found = conductance(tiny, apart(FEW), units=("resid",), way=Way(tol=1.0), split=True)
    n = tiny.cfg.n_layers
    assert sorted(found.rows["layer"].unique()) == list(range(n + 1))
    for layer in range(n + 1):
        values = matrix(found, layer, "resid")
        assert values.shape == (2, 1, 5)
        distance = np.abs(values.sum((1, 2)) - found.checks["delta"])
        assert (distance <= found.checks["error"] + 1e-5).all()
    first, last = matrix(found, 0, "resid")[:, 0], matrix(found, n, "resid")[:, 0]
    assert (first[:, [0, 2, 3, 4]] == 0).all() and (
        last[:, 1:] == 0
    ).all()  # the query alone changes; CLS alone is read


@pytest.mark.parametrize("what", ["h2.1@query<-doc", "h1.3@cls|doc<-query", "n1.7", "n2.40@doc"])
def test_a_head_or_neuron_as_target_is_complete_below_itself(tiny64: HookedEncoder, what: str) -> None:
    pairs = apart(FEW)
    found = conductance(tiny64, pairs, units=("post", "z", "resid"), target=what, way=Way(tol=1e-2, max_steps=4096))
    assert found.checks["converged"].all() and (found.checks["delta"] != 0).all()
    site, _, where = what.partition("@")
    layer, unit = int(site[1]), int(site.partition(".")[2])
    here = set(zip(found.rows["layer"], found.rows["unit"], strict=True))
    below = {(k, name) for k in range(layer) for name in ("post", "z", "resid")} | {(layer, "resid")}
    assert here == (below | {(layer, "z")} if site[0] == "n" else below)
    padded = [mi.Pair(" ".join(["[PAD]"] * len(p.query.split())), p.document, p.query_id, p.doc_id) for p in pairs]
    values = []
    for one in (pairs, padded):
        batch = tiny64.batch(one)
        name = f"blocks.{layer}.{'mlp.hook_post' if site[0] == 'n' else 'attn.hook_pattern'}"
        x = tiny64.run_with_cache(batch, head_row=False)[1][name]
        if site[0] == "n":
            member = batch.at(Segment.parse(where or "all"))
            values.append((x[..., unit] * member).sum(1) / member.sum(1))
        else:
            reader, source = (batch.at(Segment.parse(part)) for part in where.split("<-"))
            mass = (x[:, unit] * source[:, None, :]).sum(2)
            values.append((mass * reader).sum(1) / reader.sum(1))
    np.testing.assert_allclose(found.checks["value"], values[0].detach(), atol=1e-9)
    np.testing.assert_allclose(found.checks["delta"], (values[0] - values[1]).detach(), atol=1e-9)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("h1.2", r"The weights of 'h1\.2' always add up to 1: write 'h1\.2@query<-doc'\."),
        ("h1.2@query<-all", r"'h1\.2@query<-all' is always 1: write a part of the sources, e\.g\. query<-doc\."),
        ("mlp1", r"Cannot attribute 'mlp1': write score, p, margin, a head or a neuron\."),
        ("h1.2.q@query<-doc", r"Cannot attribute 'h1\.2\.q@query<-doc': write score, p, margin, a head or a neuron\."),
        ("h7.0@query<-doc", r"Layer 7 is out of range"),
        ("n1.48", r"Neuron 48 is out of range: layer 1 has neurons 0-47\."),
        ("n1.2@here", r"Unknown segment 'here'"),
        (
            "h0.2@query<-doc",
            r"No unit of post, pattern feeds 'h0\.2@query<-doc': take a later target, or other units\.",
        ),
    ],
)
def test_unknown_targets_are_refused(tiny: HookedEncoder, target: str, said: str) -> None:
    with pytest.raises(MechirError, match=said):
        conductance(tiny, FEW, target=target)


def test_the_planted_gate_feeds_the_aggregator(at_100: Any) -> None:
    """Conditional conductance: of the matching head's attention to the document, only the embedding is upstream."""
    base, donor = zip(*mi.planted.pairs(at_100, n=4), strict=True)
    units = ("post", "z")
    found = conductance(at_100, list(donor), start=list(base), units=units, target="n1.0@query", way=Way(tol=0.05))
    sizes = pd.concat([by_site(part, "z") for _, part in found.rows.groupby("query_id")]).abs().groupby(level=0).mean()
    assert sizes.idxmax() == "h1.2" and sizes.drop("h1.2").max() <= 1e-3 * sizes["h1.2"]


@pytest.fixture(scope="module")
def at_100() -> Any:
    return mi.planted.bm25(c=100.0)


@pytest.fixture(scope="module")
def tiny64(checkpoints: Checkpoints) -> HookedEncoder:
    return HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")
