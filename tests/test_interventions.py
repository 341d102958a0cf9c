"""Masks and ablations do what they say, as values and as edits."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import mechir as mi
from mechir.activations import BySegment
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.hooks import edits
from mechir.segments import FIVE
from tests.models import FAMILIES, PAIRS, Checkpoints

FROM_QUERY = ("cls<-query", "doc<-query", "sep1<-query", "sep2<-query")
BLIND = [mi.Pair("dog cat", "the moon pulls the tide", "q0"), mi.Pair("bread oven", "the moon pulls the tide", "q1")]


@pytest.fixture(scope="module")
def model(checkpoints: Checkpoints) -> HookedEncoder:
    return HookedEncoder.from_pretrained(checkpoints.path("bert"))


@pytest.mark.parametrize(
    "direction", [str(direction) for direction in mi.directions()] + ["doc<-all", "cls|doc<-query"]
)
@pytest.mark.parametrize("renormalise", [False, True])
def test_a_masked_direction_is_0_and_nothing_else_is(model: HookedEncoder, direction: str, renormalise: bool) -> None:
    batch = model.batch(PAIRS)
    mask = mi.Mask(direction, layers=1, renormalise=renormalise)
    _, intact = model.run_with_cache(batch)
    with model.hooks(mask.hooks(batch)):
        _, cut = model.run_with_cache(batch)
    name = "blocks.1.attn.hook_pattern"
    reader, source = batch.at(mask.direction.reader), batch.at(mask.direction.source)
    where = (reader[:, None, :, None] & source[:, None, None, :]).expand_as(cut[name])
    assert where.any()
    assert (cut[name][where] == 0).all()
    rows = cut[name].sum(-1)
    if renormalise:
        left = (batch.at(mi.Segment.ALL) & ~source).any(1)
        expected = torch.where(reader & ~left[:, None], 0.0, 1.0)[:, None].expand_as(rows)
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(cut[name][~where], intact[name][~where], atol=0, rtol=0)
    assert not cut[name].isnan().any()


@pytest.mark.parametrize("renormalise", [False, True])
def test_a_reader_without_sources_reads_0(model: HookedEncoder, renormalise: bool) -> None:
    batch = model.batch(PAIRS)
    with model.hooks(mi.Mask("doc<-all", layers=1, renormalise=renormalise).hooks(batch)):
        _, cache = model.run_with_cache(batch)
    doc = batch.at(mi.Segment.DOC)
    assert (cache["blocks.1.attn.hook_z"][doc] == 0).all()
    assert cache["blocks.2.hook_resid_post"].isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_every_route_from_the_query_makes_the_score_independent_of_it(
    checkpoints: Checkpoints, family: str
) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    assert (model.score(BLIND).diff().abs() > 1e-3).all()
    blind = model.score(BLIND, [mi.Mask(direction, renormalise=True) for direction in FROM_QUERY])
    assert float(blind.diff().abs()) <= 1e-6 * max(1.0, float(blind.abs().max()))


@pytest.mark.shared
def test_the_papers_zero_leaves_the_query_in_the_denominator(trained: HookedEncoder, shared: Path) -> None:
    """Each relevant passage asked by its own query and by others of equal length, with every route from them cut."""
    collection = mi.collection(shared / "data" / "dl19")
    relevant = {pair.query_id: pair for pair in reversed(collection.pairs()) if pair.grade == 3}
    length = {query_id: len(trained.tokenizer(pair.query)["input_ids"]) for query_id, pair in relevant.items()}
    swaps = [(one, other) for one, other in itertools.permutations(relevant, 2) if length[one] == length[other]][:100]
    own = [relevant[one] for one, _ in swaps]
    foreign = [
        mi.Pair(relevant[other].query, relevant[one].document, other, relevant[one].doc_id) for one, other in swaps
    ]

    def change(do: list[mi.Mask]) -> torch.Tensor:
        return (trained.score(own, do) - trained.score(foreign, do)).abs()

    assert change([]).mean() > 3
    assert change([mi.Mask(direction, renormalise=True) for direction in FROM_QUERY]).max() <= 1e-6
    assert 0.05 < change([mi.Mask(direction) for direction in FROM_QUERY]).mean() < 0.3


@pytest.mark.shared
def test_a_no_op_is_the_intact_trained_model(trained: HookedEncoder, real_pairs: list[mi.Pair]) -> None:
    class Same:
        def hooks(self, batch: mi.Batch) -> list:
            return [(lambda name: True, lambda x, hook: x.clone())]

    few = real_pairs[:16]
    assert (trained.score(few, Same()) - trained.score(few)).abs().max() <= 5e-6


def test_in_the_last_layer_only_cls_readers_matter(model: HookedEncoder) -> None:
    last = model.cfg.n_layers - 1
    intact = model.score(PAIRS)
    for direction in mi.directions():
        changed = (model.score(PAIRS, mi.Mask(direction, layers=last)) - intact).abs().max()
        assert (changed > 1e-4) == (direction.reader == mi.Segment.CLS), direction


@pytest.mark.parametrize("site", [mi.Head(1, 2), mi.Neuron(1, 7), mi.Mlp(1), mi.Attn(1)])
def test_no_op_ablation_is_the_intact_model(model: HookedEncoder, site: mi.Head) -> None:
    """Writing the very activations of the pair back changes nothing."""

    class Own:
        def hooks(self, batch: mi.Batch) -> list:
            return [(site.hook, lambda x, hook: x.clone())]

    torch.testing.assert_close(model.score(PAIRS, Own()), model.score(PAIRS), atol=0, rtol=0)


def test_zero_ablation_of_a_head_is_zeroing_its_rows_of_w_o(checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"))
    ablated = model.score(PAIRS, mi.Ablate(mi.Head(1, 2)))
    d_head = model.cfg.d_head
    model.parts.layers[1].o.weight[:, 2 * d_head : 3 * d_head] = 0
    torch.testing.assert_close(model.score(PAIRS), ablated, atol=1e-6, rtol=0)


def test_zero_ablation_of_a_neuron_is_zeroing_its_output_column(checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"))
    ablated = model.score(PAIRS, mi.Ablate("n1.7"))
    model.parts.layers[1].mlp_out.weight[:, 7] = 0
    torch.testing.assert_close(model.score(PAIRS), ablated, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("site", "module"), [("mlp1", "mlp_out"), ("attn1", "o")])
def test_zero_ablation_of_a_layer_takes_its_bias_too(checkpoints: Checkpoints, site: str, module: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"))
    ablated = model.score(PAIRS, mi.Ablate(site))
    getattr(model.parts.layers[1], module).weight.zero_()
    getattr(model.parts.layers[1], module).bias.zero_()
    torch.testing.assert_close(model.score(PAIRS), ablated, atol=1e-6, rtol=0)


def test_means_are_the_means_by_segment(model: HookedEncoder) -> None:
    means = mi.means(model, PAIRS)
    z, segments = [], []
    for pair in PAIRS:  # one by one, without padding: the plain way
        batch = model.batch(pair)
        _, cache = model.run_with_cache(batch, names_filter="blocks.1.attn.hook_z")
        z.append(cache["blocks.1.attn.hook_z"][0])
        segments.append(batch.segment[0])
    values, at = torch.cat(z), torch.cat(segments)
    for which, segment in enumerate(FIVE):
        expected = values[at == segment.value].mean(0)
        torch.testing.assert_close(means.values["blocks.1.attn.hook_z"][which, 0], expected, atol=1e-5, rtol=0)
    overall = mi.means(model, PAIRS, by="all").values["blocks.1.attn.hook_z"]
    torch.testing.assert_close(overall[3, 0], values.mean(0), atol=1e-5, rtol=0)


def test_mean_ablation_writes_the_mean_of_the_segment(model: HookedEncoder) -> None:
    means = mi.means(model, PAIRS)
    batch = model.batch(PAIRS)
    with model.hooks(edits(mi.Ablate("h1.2", means), batch)):
        _, cache = model.run_with_cache(batch)
    z = cache["blocks.1.attn.hook_z"]
    for which, segment in enumerate(FIVE):
        wanted = means.values["blocks.1.attn.hook_z"][which, 0, 2]
        assert (z[:, :, 2][batch.at(segment)] == wanted).all()
    assert not torch.equal(model.score(PAIRS, mi.Ablate("h1.2", means)), model.score(PAIRS, mi.Ablate("h1.2")))


def test_resample_ablation_writes_drawn_activations_and_does_not_depend_on_the_batch(model: HookedEncoder) -> None:
    drawn = mi.samples(model, PAIRS, draws=5, seed=3)
    batch = model.batch(PAIRS)
    with model.hooks(edits(mi.Ablate("mlp1", drawn), batch)):
        _, cache = model.run_with_cache(batch)
    wanted = drawn.values["blocks.1.hook_mlp_out"]
    doc = cache["blocks.1.hook_mlp_out"][batch.at(mi.Segment.DOC)]
    assert all(any(torch.equal(row, draw) for draw in wanted[3]) for row in doc)
    together = model.score(PAIRS, mi.Ablate("mlp1", drawn))
    torch.testing.assert_close(model.score(PAIRS, mi.Ablate("mlp1", drawn), max_rows=1), together, atol=1e-5, rtol=0)
    assert mi.samples(model, PAIRS, draws=5, seed=3) == drawn != mi.samples(model, PAIRS, draws=5, seed=4)


def test_interventions_are_values() -> None:
    mask = mi.Mask("D<-Q", layers=range(0, 3))
    assert mask == mi.Mask("doc<-query", layers=[2, 1, 0]) == mi.Mask.parse("doc<-query@0-2")
    assert repr(mask) == "Mask('doc<-query', layers=(0, 1, 2))"
    assert eval(repr(mask), {"Mask": mi.Mask}) == mask  # the text is this test's own
    assert len({mask, mi.Mask("doc<-query"), mi.Mask("doc<-query", renormalise=True)}) == 3
    assert mi.Mask.parse("doc<-query@h1.3,h0.2").heads == (mi.Head(0, 2), mi.Head(1, 3))
    assert mi.Ablate("h1.3") == mi.Ablate(mi.Head(1, 3)) == mi.Ablate(["h1.3"]) != mi.Ablate("h1.2")
    several = mi.Ablate(["n5.12", "mlp3", "h3.10", "h3.2", "attn0", "attn3.z"])
    assert repr(mi.Ablate("h1.3")) == "Ablate('h1.3')"
    assert repr(several) == "Ablate(['attn0', 'attn3.z', 'h3.2', 'h3.10', 'mlp3', 'n5.12'])"
    for ablate in (mi.Ablate("h1.3"), several):
        assert eval(repr(ablate), {"Ablate": mi.Ablate}) == ablate  # the text is this test's own


def test_an_edit_never_writes_in_place(model: HookedEncoder) -> None:
    batch = model.batch(PAIRS)
    drawn = mi.samples(model, PAIRS, draws=2)
    for do in (
        mi.Mask("doc<-query"),
        mi.Ablate("h1.2"),
        mi.Ablate("n1.7", drawn),
        mi.Mask("cls<-all", renormalise=True),
    ):
        for name, edit in model.resolve(do.hooks(batch)):
            _, cache = model.run_with_cache(batch, names_filter=name)
            before = cache[name].clone()
            edit(cache[name], hook=model.hook_dict[name])
            assert torch.equal(before, cache[name])


def test_masking_chosen_heads_leaves_the_others_alone(model: HookedEncoder) -> None:
    batch = model.batch(PAIRS)
    name = "blocks.1.attn.hook_pattern"
    _, intact = model.run_with_cache(batch)
    with model.hooks(mi.Mask("doc<-doc", heads=mi.Head(1, 3)).hooks(batch)):
        _, cut = model.run_with_cache(batch)
    assert torch.equal(intact[name][:, :3], cut[name][:, :3])
    assert not torch.equal(intact[name][:, 3], cut[name][:, 3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mi.Mask("doc->query"), r"Cannot read 'doc->query'.*for what query takes from doc, write 'query<-doc'"),
        (lambda: mi.Mask("doc query"), r"Cannot read 'doc query' as a direction: write reader<-source"),
        (lambda: mi.Mask("doc<-title"), r"Unknown segment 'title': the closest is '.*', of cls, query, sep1, doc"),
        (lambda: mi.Mask("doc<-pad"), r"The source of a direction must hold tokens, not 'pad'"),
        (lambda: mi.Mask("doc<-query", layers=[]), r"names no layer: count from 0"),
        (lambda: mi.Mask("doc<-query", layers=-1), r"layers=-1 names no layer"),
        (lambda: mi.Mask("doc<-query", layers=1, heads=mi.Head(1, 1)), r"takes layers= or heads=, not both"),
        (lambda: mi.Mask("doc<-query", heads=[3]), r"3 is no Head: write e.g. heads=\[Head\(8, 1\)"),
        (lambda: mi.Mask.parse("doc<-query@5-2"), r"Cannot read '@5-2'.*write @0-5, @0,3"),
        (lambda: mi.Mask.parse("doc<-query@hmlp3"), r"Cannot read 'hmlp3' as a site"),
        (lambda: mi.Ablate("resid0"), r"Cannot ablate 'resid0': write a head"),
        (lambda: mi.Ablate("x8"), r"Cannot read 'x8' as a site: write h8.1"),
        (lambda: mi.Ablate("h1.1", 0.5), r"Cannot ablate with 0.5: write with_=means"),
    ],
)
def test_bad_interventions_are_refused(make: object, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (mi.Mask("doc<-query", layers=range(0, 5)), r"Layer 3 is out of range.*the model has layers 0-2"),
        (mi.Mask("doc<-query", heads=mi.Head(1, 9)), r"Head 9 is out of range: layer 1 has heads 0-3"),
        (mi.Ablate("h1.4"), r"Head 4 is out of range: layer 1 has heads 0-3"),
        (mi.Ablate("n1.48"), r"Neuron 48 is out of range: layer 1 has neurons 0-47"),
        (mi.Ablate("mlp3"), r"Layer 3 is out of range"),
        ("h1.1", r"'h1.1' is no intervention: write e.g. Ablate\('h1.1'\)"),
        (5, r"5 is no intervention: write e.g. Mask"),
        (mi.Ablate, r"Ablate'> is no intervention: write e.g. Ablate\(\.\.\.\) or "),
        (["h1.1"], r"'h1.1' is no intervention"),
    ],
)
def test_interventions_that_do_not_fit_the_model_are_refused(model: HookedEncoder, do: object, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        model.score(PAIRS, do)  # type: ignore[arg-type]
    with pytest.raises(MechirError, match=message):
        mi.sweep(model, PAIRS, {"cut": do})  # type: ignore[dict-item]


def test_a_model_refuses_a_direction_of_segments_that_its_pairs_lack(model: HookedEncoder) -> None:
    for run in (model.score, lambda pairs, do: mi.sweep(model, pairs, {"cut": do})):
        with pytest.raises(MechirError, match=r"'suffix<-doc' cannot happen in '.*': its pairs have no suffix; "):
            run(PAIRS, mi.Mask("suffix<-doc"))


def test_means_refuse_another_grouping_and_unknown_sites(model: HookedEncoder) -> None:
    with pytest.raises(MechirError, match=r"Cannot average by 'position': write by='segment' or by='all'"):
        mi.means(model, PAIRS, by="position")  # type: ignore[arg-type]
    empty = BySegment("nothing", {"blocks.0.attn.hook_z": torch.zeros(5, 1, 4, 8)})
    with pytest.raises(MechirError, match=r"hold no 'blocks.1.attn.hook_z' \(they hold blocks.0.attn.hook_z"):
        model.score(PAIRS, mi.Ablate("h1.2", empty))
