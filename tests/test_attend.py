"""Attention scores split by writers: the parts add up to the score, each is what its writer put there, by three ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import mechir as mi
from mechir import planted
from mechir.contrasts import ROLES, encode_contrasts
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import attend as attending
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_streams import changes
from mechir.methods.paths import Run
from mechir.segments import Segment
from tests.models import FAMILIES, PAIRS, Checkpoints
from tests.test_patching import CONTRASTS

PORTS = ("q", "k")


def scores_of(model: HookedEncoder, pair: mi.Pair, head: mi.Head) -> torch.Tensor:
    """The attention scores [reader, source] of one pair alone, as the model's own forward has them."""
    name = f"blocks.{head.layer}.attn.hook_attn_scores"
    with torch.no_grad():
        _, cache = model.run_with_cache(pair, names_filter=name, head_row=False)
    return cache[name][0, head.head].double()


def mean_score(
    model: HookedEncoder, pair: mi.Pair, head: str, reader: torch.Tensor, source: torch.Tensor, relative: bool
) -> float:
    """The mean over readers and sources, less that over all sources."""
    rows = scores_of(model, pair, mi.parse_site(head))[reader]  # type: ignore[arg-type]
    return float(rows[:, source].mean() - (rows.mean() if relative else 0.0))


def segments(model: HookedEncoder, pair: mi.Pair, name: str) -> torch.Tensor:
    return model.batch([pair]).at(Segment.parse(name))[0]


def padded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets batches be mostly padding."""
    monkeypatch.setattr("mechir.encoding.REAL", 0.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("relative", [True, False])
def test_the_parts_add_up_to_the_attention_score(
    checkpoints: Checkpoints, family: str, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded_batches(monkeypatch)
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    assert any(not batch.attention_mask.all() for _, batch in model.batches(PAIRS))
    for head, reader, source in (("h0.1", "query", "doc"), ("h1.2", "cls|doc", "query"), ("h2.3", "all", "sep1|cls")):
        split = mi.attend(model, PAIRS, head, reader, source, relative=relative)
        there = [[segments(model, pair, name) for name in (reader, source)] for pair in PAIRS]
        actual = [mean_score(model, pair, head, *at, relative) for pair, at in zip(PAIRS, there, strict=True)]
        np.testing.assert_allclose(split.score, actual, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(split.values.sum((1, 2)), actual, rtol=1e-5, atol=1e-5)
        assert np.abs(actual).max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_is_what_its_writer_put_there(checkpoints: Checkpoints, family: str) -> None:
    """Against the change of the stream when the writer's output is taken away, LayerNorms frozen, position by position."""
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    split = mi.attend(model, PAIRS, "h2.1", relative=False)
    graph = Graph.of(model)
    n = graph.before(4)
    for row, pair in enumerate(PAIRS):
        batch = model.batch([pair])
        with torch.no_grad():
            run = Run.of(model, batch, None)
            nothing = run.each(torch.zeros_like)
            (stream,) = (
                -change.clone() for moment, change in changes(model, run, nothing, graph, "frozen") if moment == 4
            )
            of = model.parts.layers[2]
            q, k = (stream @ linear.weight.unflatten(0, (4, -1))[1].T for linear in (of.q, of.k))
        q, k = q[0][:, batch.at(Segment.QUERY)[0]], k[0][:, batch.at(Segment.DOC)[0]]
        expected = torch.einsum("urd,wsd->uwrs", q, k).mean((2, 3)) / 8**0.5
        np.testing.assert_allclose(split.values[row, :n, :n], expected, atol=1e-5)
    assert split.q_from[:n] == tuple(map(str, graph.senders[:n]))
    assert split.q_from[n:] == ("b_O", "b_LN", "b_Q") and split.k_from[n:] == ("b_O", "b_LN", "b_K")


def test_a_writer_that_writes_nothing_has_no_part(checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"))
    first, heads = model.parts.layers[0], slice(8, 16)  # head 1 of 4 x 8
    with torch.no_grad():
        first.o.weight[:, heads] = 0
        first.mlp_out.weight.zero_()
        first.mlp_out.bias.zero_()
        for layer in model.parts.layers:
            layer.o.bias.zero_()
    split = mi.attend(model, PAIRS, "h2.1", relative=False)
    size = np.abs(split.values).max(0)
    dead = {"h0.1", "mlp0", "b_O"}
    for names, along in ((split.q_from, size.max(1)), (split.k_from, size.max(0))):
        assert {name for name, value in zip(names, along, strict=True) if value == 0} == dead


def test_in_the_first_layer_the_embedding_and_the_biases_write_alone(tiny: HookedEncoder) -> None:
    split = mi.attend(tiny, PAIRS, "h0.2", relative=False)
    assert (split.q_from, split.k_from) == (("resid0", "b_Q"), ("resid0", "b_K"))
    assert (np.abs(split.values).max(0) > 1e-3).all()


def test_what_all_sources_have_in_common_drops_out(checkpoints: Checkpoints) -> None:
    model, turned = (HookedEncoder.from_pretrained(checkpoints.path("bert")) for _ in range(2))
    with torch.no_grad():
        turned.parts.layers[1].k.bias += 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    before, after = (mi.attend(each, PAIRS, "h1.0") for each in (model, turned))
    np.testing.assert_allclose(before.values, after.values, atol=1e-6)
    np.testing.assert_allclose(before.score, after.score, atol=1e-5)
    assert "b_K" not in before.k_from
    whole = [mi.attend(each, PAIRS, "h1.0", relative=False).score for each in (model, turned)]
    assert np.abs(whole[0] - whole[1]).min() > 1e-2


def test_neither_the_batch_nor_its_padding_matters(tiny: HookedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = mi.attend(tiny, PAIRS, "h2.1", max_rows=1)
    padded_batches(monkeypatch)
    together = mi.attend(tiny, PAIRS, "h2.1")
    np.testing.assert_allclose(together.values, alone.values, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(attending, "HELD", 1)  # as many batches as pairs
    np.testing.assert_allclose(mi.attend(tiny, PAIRS, "h2.1").values, alone.values, rtol=1e-5, atol=1e-6)


def test_contrasts_are_split_by_side_and_their_difference_is_base_less_donor(tiny: HookedEncoder) -> None:
    sides = {"base": [c.base for c in CONTRASTS], "donor": [c.donor for c in CONTRASTS]}
    plain = {side: mi.attend(tiny, pairs, "h1.3") for side, pairs in sides.items()}
    for side, split in plain.items():
        np.testing.assert_allclose(mi.attend(tiny, CONTRASTS, "h1.3", of=side).values, split.values, atol=1e-6)
    difference = mi.attend(tiny, CONTRASTS, "h1.3")
    expected = plain["base"].values - plain["donor"].values
    np.testing.assert_allclose(difference.values, expected, atol=1e-6)
    np.testing.assert_allclose(difference.values.sum((1, 2)), difference.score, atol=1e-5)
    assert difference.of == "difference" and difference.items == tuple(CONTRASTS)
    tuples = mi.attend(tiny, [(c.base, c.donor) for c in CONTRASTS], "h1.3")
    np.testing.assert_array_equal(tuples.values, difference.values)


def test_roles_of_contrasts_name_positions_and_what_has_none_is_left_out(tiny: HookedEncoder) -> None:
    reader, source = "query match|query other", "injected|sep"
    split = mi.attend(tiny, CONTRASTS, "h1.3", reader, source, of="base", relative=False)
    roles = encode_contrasts(tiny, CONTRASTS).roles
    rows = iter(split.score)
    for own, contrast in zip(roles, CONTRASTS, strict=True):
        at = [np.isin(own, [ROLES.index(name) for name in names.split("|")]) for names in (reader, source)]
        if contrast in split.left_out:
            assert not at[0].any()  # its query is one word, and that is injected
            continue
        expected = mean_score(tiny, contrast.base, "h1.3", *map(torch.from_numpy, at), relative=False)
        assert next(rows) == pytest.approx(expected, abs=1e-5)
    assert next(rows, None) is None and len(split.left_out) == 1
    some = mi.attend(tiny, CONTRASTS, "h1.3", "query match", "doc")
    without = tuple(c for c, own in zip(CONTRASTS, roles, strict=True) if ROLES.index("query match") not in own)
    assert some.left_out == without and 0 < len(without) < len(CONTRASTS)
    assert some.items == tuple(c for c in CONTRASTS if c not in without) and len(some) == len(some.values)
    name = f"{without[0].query_id}/{without[0].doc_id}"
    assert f"{len(without)} left out: {name}" in repr(some)


@pytest.mark.parametrize("c", [100.0, 3.0, 1.0])
def test_the_planted_matching_head_attends_by_embeddings_on_both_sides(c: float) -> None:
    model = planted.bm25(c=c)
    pairs = planted.pairs(model, n=24)
    for places in ({}, {"reader": "query match", "source": "injected"}):
        split = mi.attend(model, pairs, "h1.2", **places)  # type: ignore[arg-type]
        first = split.frame.iloc[0]
        assert (first["q_from"], first["k_from"]) == ("resid0", "resid0")
        sizes = split.frame["estimate"].abs()
        assert sizes[0] > 1e4 * sizes[1]
    assert first["estimate"] > 7  # a = 8 is what a matching key has before another


def test_the_planted_aggregator_attends_by_a_bias_to_the_embeddings_idf() -> None:
    model = planted.bm25(c=100.0)
    pairs = [base for base, _ in planted.pairs(model, n=24)]
    split = mi.attend(model, pairs, "h3.1", "cls", "query")
    first = split.frame.iloc[0]
    assert (first["q_from"], first["k_from"]) == ("b_Q", "resid0")
    assert split.side("q").loc[0, "q_from"] == "b_Q" and split.side("k").loc[0, "k_from"] == "resid0"


def test_in_float64_a_large_ballast_leaves_no_rounding() -> None:
    model = planted.bm25(c=100.0)
    pairs = planted.pairs(model, n=8)
    rough = mi.attend(model, pairs, "h3.1", of="base")
    model.to(torch.float64)
    split = mi.attend(model, pairs, "h3.1", of="base")
    np.testing.assert_allclose(split.values.sum((1, 2), dtype=np.float64), split.score, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rough.score, split.score, rtol=1e-3, atol=1e-3)
    assert split.values.dtype == np.float32


def test_of_a_model_in_bfloat16_the_parts_are_in_float32(checkpoints: Checkpoints) -> None:
    rough, exact = (
        mi.attend(HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype=dtype), PAIRS, "h2.1")
        for dtype in ("bfloat16", "float32")
    )
    rounded = torch.from_numpy(rough.values).bfloat16().float().numpy()
    assert float((rough.values != rounded).mean()) > 0.9
    np.testing.assert_allclose(rough.values, exact.values, atol=0.05 * float(np.abs(exact.values).max()))


def test_the_frame_has_intervals_over_queries_and_no_forward() -> None:
    model = planted.bm25(c=3.0)
    pairs = planted.graded(model, 8, 1)[1:]  # one query with fewer pairs
    split = mi.attend(model, pairs, "h1.2")
    frame = split.frame
    columns = ["estimate", "low", "high", "p", "p_corrected", "queries"]
    assert list(frame.columns) == ["q_from", "k_from", *columns] and set(frame["queries"]) == {8}
    assert len(frame) == len(split.q_from) * len(split.k_from)
    assert not frame.duplicated(["q_from", "k_from"]).any()
    by_query = {}
    for pair, parts in zip(split.items, split.values, strict=True):
        by_query.setdefault(pair.query_id, []).append(parts)
    expected = np.mean([np.mean(own, 0) for own in by_query.values()], 0)
    table = frame.pivot(index="q_from", columns="k_from", values="estimate")
    table = table.loc[list(split.q_from), list(split.k_from)]
    np.testing.assert_allclose(table, expected, atol=1e-6)
    first = frame.iloc[0]
    assert first["low"] < first["estimate"] < first["high"] and first["p_corrected"] < 0.05
    assert frame["estimate"].abs().is_monotonic_decreasing
    for port, axis in (("q", 1), ("k", 0)):
        side = split.side(port).set_index(f"{port}_from")["estimate"]
        names = split.q_from if port == "q" else split.k_from
        np.testing.assert_allclose(side[list(names)], expected.sum(axis), atol=1e-6)


def test_the_largest_writers_and_the_rest_are_the_same_score(tiny: HookedEncoder) -> None:
    split = mi.attend(tiny, PAIRS, "h2.1")
    short = split.top(3)
    assert short.values.shape == (len(PAIRS), 4, 4) and short.q_from[-1] == short.k_from[-1] == "rest"
    np.testing.assert_allclose(short.values.sum((1, 2)), split.values.sum((1, 2)), atol=1e-5)
    size = np.abs(split.queries.mean(0))
    for names, kept, along in ((split.q_from, short.q_from, size.sum(1)), (split.k_from, short.k_from, size.sum(0))):
        assert set(kept[:-1]) == {names[place] for place in np.argsort(-along)[:3]}
        assert list(kept[:-1]) == [name for name in names if name in kept]
    q, k = (names.index(some[0]) for names, some in ((split.q_from, short.q_from), (split.k_from, short.k_from)))
    np.testing.assert_allclose(short.values[:, 0, 0], split.values[:, q, k], atol=1e-6)
    assert split.top(100).q_from == split.q_from


@pytest.mark.shared
def test_of_the_trained_model_the_parts_add_up_in_every_layer(
    trained: HookedEncoder, real_pairs: list[mi.Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    padded_batches(monkeypatch)
    for layer in range(trained.cfg.n_layers):
        split = mi.attend(trained, real_pairs[:12], mi.Head(layer, layer), "doc", "query")
        np.testing.assert_allclose(split.values.sum((1, 2)), split.score, rtol=1e-5, atol=1e-5)
    at = [segments(trained, real_pairs[0], name) for name in ("doc", "query")]
    expected = mean_score(trained, real_pairs[0], "h5.5", *at, relative=True)
    assert split.score[0] == pytest.approx(expected, abs=1e-5)


def test_it_prints_what_it_is_and_is_drawn() -> None:
    model = planted.bm25(c=3.0)
    split = mi.attend(model, planted.graded(model, 8, 1), mi.Head(1, 2))
    assert repr(split) == "AttentionSplit(h1.2, query<-doc, base of 24 pairs, 9 x 8 writers)"
    drawn = mi.show.attend(split, top=2)
    lines = repr(drawn).splitlines()
    assert lines[0] == "attention score of h1.2, query<-doc, base (q_from x k_from; *: it holds (p_corrected < 0.05))"
    assert lines[1].split()[:2] == ["k_from", "resid0"] and lines[3].startswith("resid0") and "*" in lines[3]
    assert drawn._repr_svg_().startswith("<svg")


GIVEN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "part": (
        PAIRS,
        {"head": "h1.2.q"},
        "'h1.2.q' is a part of a head, and an attention score belongs to queries and keys together: write 'h1.2'.",
    ),
    "two heads": (
        PAIRS,
        {"head": ["h1.2", "h1.3"]},
        "mi.attend splits the scores of one head, and you gave 2: write e.g. 'h8.1'.",
    ),
    "no head": (PAIRS, {"head": "mlp1"}, "'mlp1' has no attention: write heads, such as h8.1."),
    "head beyond": (PAIRS, {"head": "h1.9"}, "Head 9 is out of range: layer 1 has heads 0-3."),
    "layer beyond": (
        PAIRS,
        {"head": "h9.1"},
        "Layer 9 is out of range in 'blocks.9.attn.hook_z': the model has layers 0-2.",
    ),
    "segment": (
        PAIRS,
        {"source": "title"},
        "Unknown source='title': write a segment (cls, query, sep1, doc, sep2, all), of contrasts also a role (query match, query other, injected, doc match, doc other, sep), several with '|'.",
    ),
    "padding": (PAIRS, {"reader": "doc|pad"}, "Unknown reader='pad': write a segment (cls"),
    "empty word": (PAIRS, {"reader": ""}, "Unknown reader='': write a segment (cls"),
    "role of pairs": (
        PAIRS,
        {"reader": "query match"},
        "reader='query match' is a role, which positions of contrasts have, and these are pairs: give contrasts, or write a segment (cls, query, sep1, doc, sep2).",
    ),
    "everything": (
        PAIRS,
        {"source": "all"},
        "source='all' is everything that is read, and relative to its own mean every score is 0: name a part of it, or write relative=False.",
    ),
    "nowhere": (
        [replace(c, donor=replace(c.base, document=c.donor.document)) for c in CONTRASTS[:1]],
        {"reader": "query match", "source": "doc match"},
        "None of 1 pairs has positions of both reader='query match' and source='doc match': write other segments or roles.",
    ),
    "of": (CONTRASTS, {"of": "gap"}, "Unknown of='gap': write 'difference' or 'base' or 'donor'."),
    "of pairs": (PAIRS, {"of": "base"}, "of='base' belongs to contrasts, and these are pairs: leave it out."),
    "a bare tuple": (
        (PAIRS[0], PAIRS[1]),
        {},
        "A tuple of two pairs may be one contrast or two pairs: write [(base, donor)] or [pair, pair].",
    ),
    "a mixture": ([CONTRASTS[0], PAIRS[0]], {}, "is no contrast: give Contrasts (mi.align), or (base, donor) pairs."),
    "three pairs": ([(PAIRS[0], PAIRS[1], PAIRS[2])], {}, "is no contrast: give Contrasts (mi.align)"),
    "nothing": ([], {}, "There are no pairs to encode: the pool is empty."),
    "a text": ("wifi", {}, "'wifi' is no pair of query and document"),
    "unaligned": ([(PAIRS[0], PAIRS[1])], {}, "is not aligned: at position"),
}


@pytest.mark.parametrize("case", GIVEN)
def test_what_cannot_be_split_is_refused(tiny: HookedEncoder, case: str) -> None:
    given, options, message = GIVEN[case]
    with pytest.raises(MechirError) as error:
        mi.attend(tiny, given, **{"head": "h1.2"} | options)
    assert message in str(error.value)


def test_an_unknown_side_and_no_writers_are_refused(tiny: HookedEncoder) -> None:
    split = mi.attend(tiny, PAIRS[:2], "h1.2")
    with pytest.raises(MechirError, match=r"Unknown side 'v' of an attention score: write 'q' or 'k'\."):
        split.side("v")
    with pytest.raises(MechirError, match=r"n=0 is out of range: write 1 or more\."):
        split.top(0)
    one = mi.attend(tiny, CONTRASTS[0], "h1.2")
    assert len(one) == 1 and np.isnan(one.frame["p"]).all()
