"""W_QK taken apart: the algebra, chance, the basis that must not matter, and the planted matching head with its traps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from transformer_lens import FactoredMatrix

import mechir as mi
from mechir import encoding, planted
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.matching import attention_by_grade
from mechir.methods.spectra import Seen, aligned, head_inputs, preferences, qk_spectra
from mechir.reranker import Weights
from mechir.segments import Segment
from tests.models import FAMILIES, PAIRS, Checkpoints, stub

LOOK_ALIKE = {"h0.0", "h1.2", "h2.3"}
"""Planted: head 1.2, and the two traps that have its queries and keys."""


@pytest.fixture(scope="module", params=[100.0, 3.0, 1.0], ids=lambda c: f"c={c:g}")
def at_c(request: pytest.FixtureRequest) -> planted.PlantedEncoder:
    return planted.bm25(c=request.param, seed=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_factors_rebuild_w_qk_and_the_statistics_are_those_of_the_dense_matrix(
    checkpoints: Checkpoints, family: str
) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    dense = model.W_Q.double() @ model.W_K.double().transpose(-1, -2)
    u, sigma, v = model.W_QK.svd()
    assert torch.allclose((u * sigma[..., None, :]) @ v.transpose(-1, -2), dense, atol=1e-6, rtol=0)
    for frame in (u, v):
        assert torch.allclose(frame.transpose(-1, -2) @ frame, torch.eye(8, dtype=torch.float64), atol=1e-9)
    found = qk_spectra(model, draws=50)
    assert found["site"].tolist() == [f"h{layer}.{head}" for layer in range(3) for head in range(4)]
    trace, size = dense.diagonal(dim1=-2, dim2=-1).sum(-1).flatten(), dense.flatten(-2).norm(dim=-1).flatten()
    np.testing.assert_allclose(found["trace"], trace, atol=1e-6)
    np.testing.assert_allclose(found["trace"], (sigma * (u * v).sum(-2)).sum(-1).flatten(), atol=1e-6)
    np.testing.assert_allclose(found["frobenius"], size)
    np.testing.assert_allclose(found["z"], trace * math.sqrt(32) / size)
    np.testing.assert_allclose(found["z_p"], 2 * stats.norm.cdf(-found["z"].abs()))
    np.testing.assert_allclose(np.stack(found["sigma"]), torch.linalg.svdvals(dense)[..., :8].flatten(0, 1))
    assert (found["z_p_corrected"] >= found["z_p"]).all() and (found["relu_p_corrected"] >= found["relu_p"]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_scores_follow_from_a_and_the_biases(checkpoints: Checkpoints, family: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    batch = model.batch(PAIRS[:3])
    _, cache = model.run_with_cache(batch)
    seen = batch.attention_mask[:, None, :].expand(-1, batch.input_ids.shape[1], -1)
    for layer in range(3):
        x = cache[f"blocks.{layer}.hook_resid_pre"].double()
        for head in range(4):
            a = model.W_QK[layer, head].AB
            q, k = model.W_Q[layer, head].double(), model.W_K[layer, head].double()
            b_q, b_k = model.b_Q[layer, head].double(), model.b_K[layer, head].double()
            logit = x @ a @ x.transpose(1, 2) + (x @ q @ b_k)[:, :, None] + (x @ k @ b_q)[:, None] + b_q @ b_k
            scores = cache[f"blocks.{layer}.attn.hook_attn_scores"][:, head].double()
            assert torch.allclose((logit / math.sqrt(8))[seen], scores[seen], atol=1e-5)
    assert torch.equal(model.W_E, model.hf.get_input_embeddings().weight)


def test_on_random_weights_z_is_standard_normal_and_p_relu_uniform() -> None:
    draw, d, rank, n = torch.Generator().manual_seed(0), 96, 12, 20
    w_q, w_k = (torch.randn(n, n, d, rank, generator=draw, dtype=torch.float64) for _ in range(2))
    # Columns of falling size, as a trained head has them.
    fall = torch.linspace(2, 0.2, rank, dtype=torch.float64)
    weights = FactoredMatrix(w_q * fall, w_k.transpose(-1, -2))
    model = stub(Weights, W_QK=weights, cfg=SimpleNamespace(n_layers=n, n_heads=n), structure=HookedEncoder.structure)
    found = qk_spectra(model, draws=2000)
    assert stats.kstest(found["z"], "norm").pvalue > 0.05
    assert abs(found["z"].mean()) < 0.1 and found["z"].std() == pytest.approx(1, abs=0.08)
    assert stats.kstest(found["relu_p"], "uniform").pvalue > 0.05
    assert 0.025 < (found["relu_p"] < 0.05).mean() < 0.08 and 0.025 < (found["z_p"] < 0.05).mean() < 0.08
    assert (found["z_p_corrected"] > 0.05).all() and (found["relu_p_corrected"] > 0.05).all()


def test_the_draws_are_seeded(tiny: HookedEncoder) -> None:
    one, same, other = (qk_spectra(tiny, seed=seed)["relu_p"] for seed in (0, 0, 1))
    assert one.equals(same) and not one.equals(other) and (one > 0).all()
    assert (one * 241 % 1).round(6).isin([0, 1]).all()  # 20 draws for each of the 12 heads


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_mean_inputs_and_preferences_are_those_of_the_mean_residual_stream(
    checkpoints: Checkpoints, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    monkeypatch.setattr(encoding, "REAL", 0.0)  # all lengths in one batch, with padding
    chosen = [mi.Pair(p.query, p.document, p.query_id, p.doc_id, int(i in (4, 5, 6))) for i, p in enumerate(PAIRS)]
    found = head_inputs(model, chosen)
    means: dict[tuple[str, int, str], list[torch.Tensor]] = {}
    for pair in chosen:
        batch = model.batch(pair)
        _, cache = model.run_with_cache(batch, names_filter="blocks.1.hook_resid_pre")
        for side, segment in (("query", Segment.QUERY), ("doc", Segment.DOC)):
            x = cache["blocks.1.hook_resid_pre"][0][batch.at(segment)[0]].double().mean(0)
            means.setdefault((pair.query_id, pair.grade or 0, side), []).append(x)
    x = {key: torch.stack(rows).mean(0) for key, rows in means.items()}
    assert len(found) == 12 * len(x) / 2 and found["n"].sum() == 12 * len(chosen)
    q, k = (w[1, 2].double() for w in (model.W_Q, model.W_K))
    b_q, b_k = (b[1, 2].double() for b in (model.b_Q, model.b_K))
    for row in found[found["site"] == "h1.2"].itertuples():
        for side in ("query", "doc"):
            np.testing.assert_allclose(getattr(row, f"q_{side}"), x[row.query_id, row.grade, side] @ q + b_q, atol=1e-5)
            np.testing.assert_allclose(getattr(row, f"k_{side}"), x[row.query_id, row.grade, side] @ k + b_k, atol=1e-5)
    side = {}
    for name in ("query", "doc"):
        per_query = [
            torch.stack([x[key] for key in x if key[0] == query and key[2] == name]).mean(0)
            for query in dict.fromkeys(pair.query_id for pair in chosen)
        ]
        side[name] = torch.stack(per_query).mean(0)
    a, d, c = model.W_QK[1, 2].AB, side["doc"], side["query"]
    told = preferences(model, found).set_index("site").loc["h1.2"]
    assert told["axis"] == pytest.approx(float(c @ a @ d - d @ a @ d), abs=1e-5)
    wanted = {"query_prefers_doc": (c @ q + b_q) @ ((d - c) @ k), "doc_prefers_query": (d @ q + b_q) @ ((c - d) @ k)}
    for name, logit in wanted.items():
        assert told[name] == pytest.approx(float(logit) / math.sqrt(8), abs=1e-5)
        assert told[f"{name}_low"] < told[name] < told[f"{name}_high"]
    assert told["queries"] == 4
    pd.testing.assert_frame_equal(preferences(model, found), preferences(model, found))


def test_the_basis_does_not_matter() -> None:
    turned, plain = planted.bm25(c=3.0, seed=1), planted.bm25(c=3.0, seed=1, rotate=False)
    assert not torch.allclose(turned.W_Q, plain.W_Q, atol=0.1)
    chosen = planted.graded(plain, 3)
    both = [qk_spectra(model, draws=100) for model in (turned, plain)]
    sigma = [np.stack(found.pop("sigma")) for found in both]
    np.testing.assert_allclose(sigma[0], sigma[1], rtol=1e-4, atol=1e-3)
    pd.testing.assert_frame_equal(*both, rtol=1e-4, atol=1e-3)
    told = [preferences(model, head_inputs(model, chosen)) for model in (turned, plain)]
    pd.testing.assert_frame_equal(*told, rtol=1e-3, atol=1e-3)
    pd.testing.assert_frame_equal(*(attention_by_grade(model, chosen) for model in (turned, plain)), atol=1e-4)


def test_spectra_flag_the_matching_head_and_the_traps_alike(at_c: planted.PlantedEncoder) -> None:
    found = qk_spectra(at_c).set_index("site")
    assert set(found["z"].nlargest(3).index) == set(found["relu"].nlargest(3).index) == LOOK_ALIKE
    assert found.loc[list(LOOK_ALIKE), "z"].min() > 2 * found["z"].drop(list(LOOK_ALIKE)).abs().max()
    assert (found.loc[list(LOOK_ALIKE), "z_p_corrected"] < 1e-6).all()
    assert (found.loc[list(LOOK_ALIKE), "relu_p"] == 1 / 321).all()  # above all 20 x 16 draws
    # 0.0 and 2.3 are false positives of weights and patterns: they change no score.
    assert {str(head) for head in planted.truth(at_c, "tf").traps} == LOOK_ALIKE - {"h1.2"}
    nothing = found.loc["h3.1"]
    assert nothing[["trace", "frobenius", "relu"]].eq(0).all() and nothing[["z", "z_p", "z_p_corrected"]].isna().all()
    assert nothing["relu_p"] == 1


def test_the_query_prefers_the_document_in_the_matching_head(at_c: planted.PlantedEncoder) -> None:
    told = preferences(at_c, head_inputs(at_c, planted.graded(at_c, 4))).set_index("site")
    assert told.loc["h1.2", "query_prefers_doc_low"] > 10
    assert told.loc["h1.2", "doc_prefers_query_high"] < -10  # its keys are of documents alone
    others = told.drop(list(LOOK_ALIKE))
    assert others["query_prefers_doc"].max() < 5


@pytest.mark.parametrize(
    ("head", "k", "message"),
    [
        ("h1.2", 0, "k=0 is out of range: a head has 1-8 directions."),
        ("h1.2", 9, "k=9 is out of range: a head has 1-8 directions."),
        ("h1.4", 2, "Head 4 is out of range: layer 1 has heads 0-3."),
        ("mlp1", 2, "'mlp1' has no attention: write heads, such as h8.1."),
    ],
)
def test_unknown_heads_and_too_many_directions_are_refused(
    tiny: HookedEncoder, head: str, k: int, message: str
) -> None:
    for call in (lambda: aligned(tiny, head, k), lambda: Seen.by(tiny, head).random(k)):
        with pytest.raises(MechirError) as caught:
            call()
        assert str(caught.value) == message
