"""The papers' own numbers, on their own checkpoints: where those are not in the hub's cache, these tests are skipped."""

from __future__ import annotations

import pytest
from huggingface_hub import try_to_load_from_cache

import mechir as mi
from mechir import model_sites
from mechir.diagnostics import Term, Tfc1
from mechir.encoder import HookedEncoder
from mechir.methods import patching, paths

MINILM = "cross-encoder/ms-marco-MiniLM-L-12-v2"
DEMO = mi.Pair(
    "what is the acceptance rate at wellesley",
    "College acceptance rates in the USA are becoming more competitive.",
)


@pytest.fixture(scope="module")
def minilm() -> HookedEncoder:
    if not isinstance(try_to_load_from_cache(MINILM, "model.safetensors"), str):
        pytest.skip(f"'{MINILM}' is not in the hub's cache: `mechir fetch {MINILM}` where there is a network")
    return mi.load(MINILM)


@pytest.fixture(scope="module")
def wellesley(minilm: HookedEncoder) -> mi.Contrast:
    return mi.align(DEMO, Tfc1("append", Term({"q": "wellesley"})), minilm.tokenizer, "a")


@pytest.mark.checkpoint
def test_lu_et_al_s_demo_has_their_scores(minilm: HookedEncoder, wellesley: mi.Contrast) -> None:
    assert minilm.encode([wellesley.base]).lengths.tolist() == [22]
    assert minilm.score([wellesley.base, wellesley.donor]).tolist() == pytest.approx([-5.6513, 4.3892], abs=1e-3)


@pytest.mark.checkpoint
def test_lu_et_al_s_demo_has_their_scoring_heads(minilm: HookedEncoder, wellesley: mi.Contrast) -> None:
    """Decoded from the colours of their map: +-0.005."""
    rows = paths.path_patch(minilm, [wellesley], model_sites.all_heads(minilm)).set_index("sender")
    share = rows["effect"] / (rows["donor"] - rows["base"])
    for head, wanted in {"h10.10": 0.170, "h10.1": 0.159, "h10.7": 0.118, "h10.4": 0.068}.items():
        assert share[head] == pytest.approx(wanted, abs=0.01)
    assert share.sort_values(ascending=False).index[:4].tolist() == ["h10.10", "h10.1", "h10.7", "h10.4"]


@pytest.mark.checkpoint
def test_lu_et_al_s_demo_has_their_paths_into_the_keys_of_a_scoring_head(
    minilm: HookedEncoder, wellesley: mi.Contrast
) -> None:
    rows = paths.path_patch(minilm, [wellesley], None, "h10.1.k").set_index("sender")
    share = rows["effect"] / (rows["donor"] - rows["base"])
    for head, wanted in {"h7.9": -0.0116, "h9.11": -0.0110, "h1.7": -0.0097, "h8.5": -0.0060}.items():
        assert share[head] == pytest.approx(wanted, abs=0.005)


@pytest.mark.checkpoint
def test_lu_et_al_s_demo_has_their_patched_values(minilm: HookedEncoder, wellesley: mi.Contrast) -> None:
    """Their map of "attention heads" patches v."""
    rows = patching.patch(minilm, [wellesley], model_sites.all_heads(minilm, "v")).set_index("site")
    share = rows["effect"] / (rows["donor"] - rows["base"])
    for head, wanted in {"h10.10.v": 0.157, "h10.1.v": 0.150, "h10.7.v": 0.110, "h8.10.v": 0.077}.items():
        assert share[head] == pytest.approx(wanted, abs=0.01)
