"""Edge scores: what is known of planted models, of other implementations here, and by the chain rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import mechir as mi
from mechir import planted
from mechir.contrasts import ROLES, encode_contrasts
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import attribution, paths
from mechir.methods.edge_graph import Graph
from mechir.methods.edges import edges
from mechir.pair import Pair
from tests.models import FAMILIES, Checkpoints
from tests.test_patching import CONTRASTS

BALLAST = (100.0, 3.0, 1.0)
WRONG = {
    "method": ({"method": "acdc"}, "Unknown method='acdc': write 'exact' or 'eap' or 'eap-ig' or 'screen'."),
    "ln": (
        {"ln": "thawed"},
        "Unknown ln='thawed': write 'frozen' or 'live' or 'jacobian' or 'none'.",
    ),
    "point": (
        {"point": "donor"},
        "point='donor' belongs to method='eap', and this is 'eap-ig'.",
    ),
    "points": ({"points": 0}, "points=0 is out of range: write a whole number, 1 or more."),
    "top": ({"top": 0.0}, "top=0.0 is no fraction: write e.g. top=0.05."),
    "at": ({"at": "segments"}, "Unknown at='segments': write 'all' or 'roles'."),
    "roles of exact": (
        {"at": "roles", "method": "exact"},
        "at='roles' splits what adds up, first-order effects at the base: write method='eap-ig' or 'eap', without "
        "qk_fix and point.",
    ),
    "metric": (
        {"metric": "ndcg"},
        "Unknown metric='ndcg': write 'score', or a function of a query's scores [..., contrast].",
    ),
    "sender": (
        {"senders": "h0.1.q"},
        "'h0.1.q' is no sender: write a head (h8.1), an MLP (mlp3) or resid0, the embedding.",
    ),
    "receiver": (
        {"receivers": "h1.1"},
        "'h1.1' receives nothing: write 'score', a head's input such as h10.1.k, or mlp3.",
    ),
    "backwards": (
        {"senders": "h3.1", "receivers": "h0.0.q"},
        "No edge leads from h3.1 to h0.0.q: each sender writes after its reader reads.",
    ),
    "no layer": ({"senders": "h9.0"}, "Layer 9 is out of range in 'blocks.9.attn.hook_z': the model has layers 0-3."),
}


def planted_mask(model: HookedEncoder, counterfactual: str, graph: Graph) -> np.ndarray:
    return np.array([edge in planted.truth(model, counterfactual).edges for edge in graph.edges])


def compare(scores: mi.EdgeScores, other: mi.EdgeScores) -> float:
    return float(np.corrcoef(scores.estimate, other.estimate)[0, 1])


@pytest.mark.parametrize("c", BALLAST)
@pytest.mark.parametrize("counterfactual", ["tf", "query"])
def test_the_planted_edges_are_the_largest(c: float, counterfactual: str) -> None:
    model = planted.bm25(c=c)
    pairs = planted.pairs(model, n=24, counterfactual=counterfactual)
    exact, estimated = edges(model, pairs, method="exact"), edges(model, pairs, method="eap-ig")
    truth = planted_mask(model, counterfactual, exact.graph)
    for scores, margin in ((exact, {100.0: 1e3, 3.0: 10, 1.0: 10}[c]), (estimated, 10)):
        size = np.abs(scores.estimate)
        assert roc_auc_score(truth, size) == 1
        assert size[truth].min() >= margin * size[~truth].max()
        traps = planted.truth(model, counterfactual).traps
        assert not {edge.source for edge in scores.circuit(int(truth.sum()))} & traps


def test_frozen_layer_norms_correlate_with_exact_effects_as_published() -> None:
    model = planted.bm25(c=1.0)
    pairs = planted.pairs(model, n=24)
    exact = edges(model, pairs, method="exact")
    r = {ln: compare(edges(model, pairs, method="eap-ig", ln=ln), exact) for ln in ("frozen", "jacobian", "none")}
    assert r["frozen"] >= 0.99
    assert all(value > 0.9 for value in r.values())


def test_gradients_at_the_donor_miss_a_saturated_key_and_the_qk_fix_finds_it() -> None:
    model = planted.bm25(a=20.0)
    pairs = planted.pairs(model, n=24)
    blind = edges(model, pairs, method="eap", point="donor")
    truth, size = planted_mask(model, "tf", blind.graph), np.abs(blind.estimate)
    assert size[truth].min() < size[~truth].max()
    fixed = np.abs(edges(model, pairs, method="eap", point="donor", qk_fix=True).estimate)
    assert fixed[truth].min() > 1e3 * fixed[~truth].max()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exact_edge_is_path_patching_of_that_edge(checkpoints: Checkpoints, family: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    scores = edges(model, CONTRASTS[:3], method="exact")
    for column in range(0, len(scores), max(1, len(scores) // 12)):
        edge = scores.graph.edges[column]
        rows = paths.path_patch(model, CONTRASTS[:3], [edge.source], edge.readers[0], freeze="heads+mlps")
        np.testing.assert_allclose(scores.values[:, column], rows["effect"], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_jacobian_edges_out_of_a_sender_add_up_to_its_attribution(
    checkpoints: Checkpoints, family: str
) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    scores = edges(model, CONTRASTS[:3], method="eap", ln="jacobian")
    senders = np.array([str(edge.source) for edge in scores.graph.edges])
    whole = attribution.attribute(model, CONTRASTS[:3], qk_fix=False)
    for site, rows in whole.groupby("site", sort=False):
        np.testing.assert_allclose(scores.values[:, senders == site].sum(1), rows["effect"], atol=1e-5)


def test_with_the_layer_norms_frozen_the_sum_departs_from_the_attribution() -> None:
    model = planted.bm25(c=1.0)
    pairs = planted.pairs(model, n=12)
    frozen, jacobian = (edges(model, pairs, method="eap", ln=ln) for ln in ("frozen", "jacobian"))
    assert np.abs(frozen.values.sum(1) - jacobian.values.sum(1)).max() > 1e-3


def test_roles_add_up_to_the_whole_and_say_where_matching_happens() -> None:
    model = planted.bm25(c=1.0)
    pairs = planted.pairs(model, n=24)
    for method in ("eap", "eap-ig"):
        split, whole = edges(model, pairs, method=method, at="roles"), edges(model, pairs, method=method)
        np.testing.assert_allclose(split.plain.values, whole.values, atol=1e-6)
    largest = split.values.mean(0)[split.graph.columns([mi.parse_edge("resid0->h1.2.k")])[0]]
    source, reader = np.unravel_index(np.abs(largest).argmax(), largest.shape)
    assert (ROLES[source], ROLES[reader]) == ("injected", "query match")


def test_the_frame_of_roles_names_both_ends() -> None:
    model = planted.bm25()
    frame = edges(model, planted.pairs(model, n=24), at="roles", receivers=["mlp1", "score"]).frame
    line = frame.loc[frame["estimate"].abs().idxmax()]
    assert list(frame.columns)[:3] == ["edge", "source", "reader"]
    assert (line["edge"], line["source"], line["reader"]) in {
        ("h1.2->mlp1", "query match", "query match"),
        ("h3.1->score", "cls", "cls"),
    }


def test_the_frame_has_one_line_for_each_edge() -> None:
    model = planted.bm25(c=3.0)
    scores = edges(model, planted.pairs(model, n=200))
    frame = scores.frame.set_index("edge")
    truth = [str(edge) for edge in planted.truth(model, "tf").edges]
    assert len(frame) == len(scores.graph) == 479
    assert list(frame.columns) == ["estimate", "low", "high", "p", "p_corrected", "queries"]
    assert (frame.loc[truth, "p_corrected"] < 0.05).all()
    assert (frame.loc[truth, "high"] < 0).all()
    assert (frame["queries"] == 10).all()


def test_a_screen_patches_the_largest_and_says_how_well_the_rest_agrees() -> None:
    model = planted.bm25(c=1.0)
    pairs = planted.pairs(model, n=24)
    screen, exact = (edges(model, pairs, method=method) for method in ("screen", "exact"))
    assert screen.patched is not None and screen.patched.sum() == 48
    np.testing.assert_allclose(screen.values[:, screen.patched], exact.values[:, screen.patched], atol=1e-6)
    assert screen.agreement is not None and screen.agreement.edges == 24
    assert (screen.frame["method"] == "exact").sum() == 48


def test_only_the_edges_that_are_asked_for() -> None:
    model = planted.bm25()
    pairs = planted.pairs(model, n=6)
    whole = edges(model, pairs)
    part = edges(model, pairs, senders=["h1.2", "resid0"], receivers=["mlp1", "h3.1.v", "score"])
    assert [str(edge) for edge in part.graph.edges][:2] == ["resid0->mlp1", "h1.2->mlp1"]
    np.testing.assert_allclose(part.values, whole.values[:, whole.graph.columns(part.graph.edges)], atol=1e-7)


def margin(scores: torch.Tensor) -> torch.Tensor:
    return scores[..., 0] - scores[..., 1:].mean(-1)


def test_a_metric_of_a_querys_scores() -> None:
    """First order at a point is the derivative of the margin; exactly, every document of the query is patched."""
    model = planted.bm25(c=3.0)
    pairs = planted.pairs(model, n=40)
    exact, plain = (edges(model, pairs, method="exact", metric=metric) for metric in (margin, "score"))
    by_hand = np.stack([v[0] - v[1:].mean(0) for v in np.split(plain.values, 2)])
    np.testing.assert_allclose(exact.queries, by_hand, atol=1e-6)
    estimated, whole = (edges(model, pairs, method="eap", metric=metric) for metric in (margin, "score"))
    by_hand = np.stack([v[0] - v[1:].mean(0) for v in np.split(whole.values, 2)])
    np.testing.assert_allclose(estimated.queries, by_hand, atol=1e-5)


def first_of_list(scores: torch.Tensor) -> torch.Tensor:
    return (5 * scores).softmax(-1)[..., 0]


@pytest.mark.parametrize(("method", "place"), [("eap", 0.0), ("eap-ig", 0.5)])
def test_a_listwise_metric_is_weighted_by_its_derivative_where_gradients_are_taken(method: str, place: float) -> None:
    model = planted.bm25(c=3.0)
    pairs = planted.pairs(model, n=40)
    scores, plain = (edges(model, pairs, method=method, points=1, metric=m) for m in (first_of_list, "score"))
    base, donor = (model.embedded(model.batch([pair[side] for pair in pairs])) for side in (0, 1))
    at = model.run_with_hooks(
        [pair for pair, _ in pairs], fwd_hooks=[("hook_full_embed", lambda x, hook: base + place * (donor - base))]
    )
    for row, rows in enumerate((slice(0, 20), slice(20, 40))):
        p = (5 * at[rows]).softmax(-1)
        derivative = 5 * p[0] * ((torch.arange(20) == 0).float() - p)
        np.testing.assert_allclose(scores.queries[row], derivative.numpy() @ plain.values[rows], atol=1e-6)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            lambda s: 0 * s.sum(-1),
            "The metric is constant in the scores of query q0 (6 contrasts), so its gradient is 0: leave the query out, or "
            "give a metric that its scores move.",
        ),
        (
            lambda s: s,
            "The metric gives no single number for query q0: write a function of scores [..., contrast] that takes the "
            "last axis away, such as lambda s: s[..., 0] - s[..., 1].",
        ),
        (lambda s: s[..., 99], "The metric fails on the 6 scores of query q0: index 99 is out of bounds"),
    ],
)
def test_metrics_that_say_nothing_are_refused(metric: object, message: str) -> None:
    model = planted.bm25()
    with pytest.raises(MechirError) as refused:
        edges(model, planted.pairs(model, n=6), metric=metric)  # type: ignore[arg-type]
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused(case: str) -> None:
    model = planted.bm25()
    options, message = WRONG[case]
    with pytest.raises(MechirError) as refused:
        edges(model, planted.pairs(model, n=2), **options)
    assert str(refused.value) == message


def test_contrasts_that_are_none_or_unequal_are_refused() -> None:
    model = planted.bm25()
    base, donor = planted.pairs(model, n=1)[0]
    longer = Pair(donor.query, f"{donor.document} spruce", donor.query_id, donor.doc_id)
    with pytest.raises(MechirError, match=r"Pair q0/q0d0 is not aligned: at position \d+ the base has"):
        edges(model, [(base, longer)])
    with pytest.raises(MechirError, match="'cat' is no contrast: give Contrasts"):
        edges(model, ["cat"])
    with pytest.raises(MechirError, match="There are no contrasts to run"):
        edges(model, [])


def test_batches_do_not_matter() -> None:
    model = planted.bm25(c=3.0)
    pairs = planted.pairs(model, n=10)
    encoded = encode_contrasts(model, [mi.Contrast(*pair) for pair in pairs])
    assert len(encoded.contrasts) == 10
    for method in ("eap-ig", "exact"):
        one, whole = (edges(model, pairs, method=method, max_rows=rows) for rows in (3, 64))
        np.testing.assert_allclose(one.values, whole.values, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "way",
    [{}, {"method": "exact"}, {"method": "eap", "qk_fix": True}, {"ln": "live"}, {"at": "roles"}],
    ids=["eap-ig", "exact", "qk fix", "live", "roles"],
)
def test_senders_and_receivers_come_in_any_order(way: dict[str, Any], seed: int) -> None:
    """All of them, or some, shuffled: every edge has the effect that it has among all edges."""
    model, shuffle = planted.bm25(c=1.0), np.random.default_rng(seed)
    pairs, whole = planted.pairs(model, n=6), Graph.of(model)
    senders, receivers = (shuffle.permutation(list(map(str, ends))) for ends in (whole.senders, whole.readers))
    some, every = (9, 25) if seed % 2 else (None, None)
    part = edges(model, pairs, senders=list(senders[:some]), receivers=list(receivers[:every]), **way)
    among = edges(model, pairs, **way)
    np.testing.assert_allclose(part.values, among.values[:, whole.columns(part.graph.edges)], atol=1e-5)


def test_some_edges_alone_have_the_effects_that_they_have_among_all() -> None:
    model = planted.bm25(c=1.0)
    pairs, whole = planted.pairs(model, n=6), Graph.of(model)
    drawn = np.random.default_rng(0).choice(len(whole), 60, replace=False)
    some = edges(model, pairs, method="exact", only=[whole.edges[column] for column in drawn])
    every = edges(model, pairs, method="exact")
    np.testing.assert_allclose(some.values[:, drawn], every.values[:, drawn], atol=1e-6)
    assert np.isnan(some.values).sum() == len(pairs) * (len(whole) - 60)
