"""Path patching: the literal three runs, the transported difference, and the planted paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

import mechir as mi
from mechir import model_sites
from mechir.circuits import PORTS
from mechir.contrasts import Contrast, encode_contrasts
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import patching, paths
from tests.models import FAMILIES, Checkpoints
from tests.test_patching import CONTRASTS

Z = [".attn.hook_z"]


@torch.no_grad()
def three_runs(
    model: HookedEncoder, contrast: Contrast, sender: mi.Head | mi.Mlp | mi.Resid, receiver: str, freeze: str
) -> float:
    """Wang et al.'s algorithm as it is written, one pair and one sender at a time.

    A: the donor's run. B: the base's. C: the base with the sender from A and every other head (and MLP) from B; the
    receiver's input is kept. D: the base with that input, and nothing else.
    """
    names = [name for name in model.hook_dict if name.endswith(("hook_z", "hook_mlp_out", "hook_resid_pre"))]
    _, a = model.run_with_cache(contrast.donor, names_filter=names)
    _, b = model.run_with_cache(contrast.base, names_filter=names)
    kept: dict[str, torch.Tensor] = {}

    def frozen() -> Iterator[tuple[str, object]]:
        for name in names:
            if name.endswith("hook_z") or (name.endswith("hook_mlp_out") and freeze == "heads+mlps"):
                value = b[name].clone()
                if name == sender.hook and isinstance(sender, mi.Head):
                    value[:, :, sender.head] = a[name][:, :, sender.head]
                yield name, lambda x, hook, value=value: value
        if not isinstance(sender, mi.Head):
            yield sender.hook, lambda x, hook: a[sender.hook]

    score = model(contrast.base, head_row=False) if receiver == "score" else None
    site = None if receiver == "score" else mi.parse_site(receiver)
    hook = "" if site is None else f"blocks.{site.layer}.hook_mlp_in" if isinstance(site, mi.Mlp) else site.hook

    def keep(x: torch.Tensor, hook: object) -> None:
        kept["x"] = x

    with model.hooks([*frozen(), *([(hook, keep)] if site else [])]):
        score = model(contrast.base, head_row=False)
    if site is None:
        return float(score)

    def write(x: torch.Tensor, hook: object) -> torch.Tensor:
        out = x.clone()
        if isinstance(site, mi.Head):
            out[:, :, site.head] = kept["x"][:, :, site.head]
            return out
        return kept["x"]

    return float(model.run_with_hooks(contrast.base, fwd_hooks=[(hook, write)]))


def check(
    model: HookedEncoder, contrasts: Sequence[Contrast], receiver: str, freeze: str, senders: object = None
) -> None:
    rows = paths.path_patch(model, contrasts, senders, receiver, freeze=freeze)
    by_pair = {(c.query_id, c.doc_id): c for c in contrasts}
    for row in rows.itertuples():
        wanted = three_runs(model, by_pair[row.query_id, row.doc_id], mi.parse_site(row.sender), receiver, freeze)
        assert row.patched == pytest.approx(wanted, abs=1e-5, rel=1e-5), row.edge


@pytest.mark.parametrize("family", FAMILIES)
def test_to_the_score_it_is_the_three_runs_for_every_sender(checkpoints: Checkpoints, family: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    check(model, CONTRASTS[:3], "score", "heads")
    check(model, CONTRASTS[:2], "score", "heads+mlps")


@pytest.mark.parametrize("receiver", ["h2.1.q", "h2.1.k", "h2.1.v", "h1.3.k", "mlp1", "mlp2"])
@pytest.mark.parametrize("freeze", paths.FREEZE)
def test_into_the_model_it_is_the_three_runs(tiny: HookedEncoder, receiver: str, freeze: str) -> None:
    check(tiny, CONTRASTS[:3], receiver, freeze)


@pytest.mark.shared
def test_on_a_trained_model_it_is_the_three_runs(trained: HookedEncoder) -> None:
    pairs = mi.collection("embedded").pairs(limit_queries=1, easy_negatives=0)[:2]
    contrasts = [mi.align(pair, mi.diagnostics.Tfc1(), trained.tokenizer) for pair in pairs]
    check(trained, contrasts[:1], "score", "heads")
    check(trained, contrasts[1:], "h5.3.k", "heads", ["h1.2", "mlp3", "resid0", "h4.11"])


def test_with_everything_frozen_the_change_is_the_transported_one(checkpoints: Checkpoints) -> None:
    tiny = HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")
    frozen = paths.path_patch(tiny, CONTRASTS, freeze="heads+mlps", ln="frozen")
    sent = frozen[frozen["sender"] != "resid0"]["departure"]
    assert sent.notna().mean() > 0.7 and sent.max() < 1e-5
    for freeze, ln in (("heads+mlps", "live"), ("heads", "frozen"), ("heads", "live")):
        rows = paths.path_patch(tiny, CONTRASTS, freeze=freeze, ln=ln)
        assert rows["departure"].max() > 0.01
    embedding = frozen[frozen["sender"] == "resid0"]
    assert embedding["departure"].isna().all() and np.allclose(embedding["effect"], 0, atol=3e-6)


def test_the_transported_difference_is_the_product_of_the_frozen_layernorms(tiny: HookedEncoder) -> None:
    batch = tiny.batch(CONTRASTS[0].base)
    base = paths.Run.of(tiny, batch, 1)
    donor = paths.Run.of(tiny, tiny.batch(CONTRASTS[0].donor), 1)
    arrived = paths.carry(tiny, base, donor, [mi.Head(1, 2)], [mi.Score()], "heads+mlps", "frozen")[mi.Score()]
    _, cache = tiny.run_with_cache(batch, names_filter=lambda name: "ln" in name)
    weight = tiny.parts.layers[1].o.weight.unflatten(1, (4, -1))[:, 2]
    delta = (donor.z[1] - base.z[1])[0, 0, 2] @ weight.T
    centre = torch.eye(32) - torch.full((32, 32), 1 / 32)
    for layer, which in ((1, "ln1"), (1, "ln2"), (2, "ln1"), (2, "ln2")):
        sigma = cache[f"blocks.{layer}.{which}.hook_scale"][0, 0]
        gamma = getattr(tiny.parts.layers[layer], which).weight
        delta = gamma * (centre @ delta) / sigma
    assert torch.allclose(arrived.stream[0, 0, 0] - arrived.base[0, 0], delta, atol=1e-5)
    assert torch.allclose(arrived.linear[0, 0, 0], delta, atol=1e-5)


def test_a_path_from_the_embedding_with_no_other_path_open_is_the_whole_change(tiny: HookedEncoder) -> None:
    rows = paths.path_patch(tiny, CONTRASTS, "resid0", ["h0.0.k", "h0.0.q", "h0.0.v"])
    node = patching.patch(tiny, CONTRASTS, "h0.0")
    assert np.allclose(rows["patched"], node["patched"], atol=3e-6)


def test_receivers_together_are_not_receivers_alone(tiny: HookedEncoder) -> None:
    together = paths.path_patch(tiny, CONTRASTS, "mlp0", ["h1.0.q", "h2.1.k"])
    assert together["edge"].unique().tolist() == ["mlp0->h1.0.q+h2.1.k"]
    alone = [paths.path_patch(tiny, CONTRASTS, "mlp0", one)["effect"] for one in ("h1.0.q", "h2.1.k")]
    assert not np.allclose(together["effect"], alone[0]) and not np.allclose(together["effect"], alone[1])


@pytest.mark.parametrize("receiver", ["score", "h1.2.q", "h2.0.k", "h1.3.v", "mlp1", ["h2.1.k", "h1.0.q"], mi.Score()])
def test_the_edges_of_the_frame_are_read_back(tiny: HookedEncoder, receiver: object) -> None:
    rows = paths.path_patch(tiny, CONTRASTS[:1], receiver=receiver)
    for sender, text in zip(rows["sender"], rows["edge"], strict=True):
        edge = mi.parse_edge(text)
        assert (str(edge), str(edge.source)) == (text, sender)
        again = paths.path_patch(tiny, CONTRASTS[:1], edge.source, edge.readers)
        assert again["edge"].tolist() == [text]
    assert rows["edge"].is_unique and len(rows) > 4


@pytest.mark.parametrize(
    "c", [pytest.param(100.0, marks=pytest.mark.slow), 3.0, pytest.param(1.0, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("counterfactual", ["tf", "query"])
def test_exactly_the_planted_paths_are_found(c: float, counterfactual: str) -> None:
    model = mi.planted.bm25(c=c)
    contrasts = [Contrast(*pair) for pair in mi.planted.pairs(model, n=6, counterfactual=counterfactual)]
    heads = [f"{head}.{port}" for head in model_sites.all_heads(model) for port in PORTS]
    sizes = {}
    for receiver in ("score", *heads, *map(str, model_sites.mlps(model))):
        rows = paths.path_patch(model, contrasts, receiver=receiver, freeze="heads+mlps")
        sizes |= rows["effect"].abs().groupby(rows["edge"]).mean().to_dict()
    truth = mi.planted.truth(model, counterfactual).edges
    planted = {edge: size for edge, size in sizes.items() if edge in truth}
    assert len(sizes) == 479 and len(planted) == len(truth)
    others = max(size for edge, size in sizes.items() if edge not in planted)
    assert min(planted.values()) > {100.0: 1000, 3.0: 5, 1.0: 3}[c] * others


def test_a_pattern_without_writing_sends_nothing_and_writing_unread_is_not_received() -> None:
    model = mi.planted.bm25()
    contrasts = [Contrast(*pair) for pair in mi.planted.pairs(model, n=6)]
    rows = paths.path_patch(model, contrasts)
    size = rows["effect"].abs().groupby(rows["sender"]).mean()
    assert size["h0.0"] < 1e-6 and size["h2.3"] < 1e-4 < 0.05 < size["h3.1"]


@pytest.mark.parametrize(
    ("senders", "receiver", "options", "message"),
    [
        ("h2.1", "h2.0.k", {}, r"'h2.1' writes after 'h2.0.k' reads: give a sender of an earlier layer"),
        ("mlp1", "mlp1", {}, r"'mlp1' writes after 'mlp1.in' reads"),
        ("resid2", "score", {}, r"'resid2' is no sender: write a head \(h8.1\), an MLP \(mlp3\) or resid0"),
        ("h1.2.q", "score", {}, r"'h1.2.q' is no sender"),
        ("mlp1.post", "score", {}, r"'mlp1.post' is no sender"),
        ("attn1", "score", {}, r"'attn1' is no sender"),
        (None, "h1.2", {}, r"'h1.2' receives nothing: write 'score', a head's input such as h10.1.k, or mlp3"),
        (None, "resid1", {}, r"'resid1' receives nothing"),
        (None, "h1.9.k", {}, r"Head 9 is out of range: layer 1 has heads 0-3"),
        ("h1.9", "score", {}, r"Head 9 is out of range: layer 1 has heads 0-3"),
        (None, "h9.1.k", {}, r"Layer 9 is out of range"),
        (None, ["h2.1.k", "mlp2"], {}, r"Several receivers are heads' inputs, such as h10.1.k and h10.4.k"),
        (None, [], {}, r"There is no receiver: write 'score', a head's input such as h10.1.k, or mlp3"),
        (None, "mlp1.post", {}, r"'mlp1.post' receives nothing: write 'score'"),
        (None, "score", {"freeze": "mlps"}, r"Unknown freeze='mlps': write 'heads' or 'heads\+mlps'"),
        (None, "score", {"ln": "none"}, r"Unknown ln='none': write 'live' or 'frozen'"),
    ],
)
def test_impossible_paths_are_refused(
    tiny: HookedEncoder, senders: object, receiver: object, options: dict[str, str], message: str
) -> None:
    with pytest.raises(MechirError, match=message):
        paths.path_patch(tiny, CONTRASTS, senders, receiver, **options)


def test_padding_has_no_part_in_the_departure(tiny: HookedEncoder) -> None:
    longest = max(CONTRASTS, key=lambda one: len(one.base.document))

    def shorter(pair: mi.Pair) -> mi.Pair:
        return replace(pair, document=pair.document.rsplit(" ", 1)[0], doc_id="shorter")

    both = [longest, Contrast(shorter(longest.base), shorter(longest.donor))]
    together = paths.path_patch(tiny, both, receiver="mlp1").query("doc_id == 'shorter'")
    alone = paths.path_patch(tiny, both[1:], receiver="mlp1")
    batches = list(encode_contrasts(tiny, both).batches(tiny))
    assert len(batches) == 1 and not batches[0].base.attention_mask.all()
    assert np.allclose(together["departure"], alone["departure"], rtol=1e-3, equal_nan=True)
