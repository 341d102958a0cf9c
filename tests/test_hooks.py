"""Every hook fires, every edit acts, and a plan changes nothing but speed."""

from __future__ import annotations

import pytest
import torch

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from tests.models import FAMILIES, PAIRS, Checkpoints


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> HookedEncoder:
    return HookedEncoder.from_pretrained(checkpoints.path(request.param))


def absent(model: HookedEncoder) -> set[str]:
    """Hooks without a tensor: DistilBERT has no token types."""
    return {"embed.hook_token_type_embed"} if model.cfg.family == "distilbert" else set()


def test_every_hook_fires_with_the_documented_shape(model: HookedEncoder) -> None:
    batch = model.batch(PAIRS)
    rows, width = batch.input_ids.shape
    c = model.cfg
    scores, cache = model.run_with_cache(batch)
    assert set(cache.keys()) == set(model.hook_dict) - absent(model)
    sizes = {
        "resid_pre": (rows, width, c.d_model), "q_input": (rows, width, c.d_model),
        "q": (rows, width, c.n_heads, c.d_head), "k": (rows, width, c.n_heads, c.d_head),
        "attn_scores": (rows, c.n_heads, width, width), "pattern": (rows, c.n_heads, width, width),
        "z": (rows, width, c.n_heads, c.d_head), "result": (rows, width, c.n_heads, c.d_model),
        "pre": (rows, width, c.d_mlp), "post": (rows, width, c.d_mlp), "scale": (rows, width, 1),
        "pooled": (rows, c.d_model), "logits": (rows, c.n_labels), "score": (rows,),
    }  # fmt: skip
    for name, value in cache.items():
        size = sizes.get(name.split(".")[-1].removeprefix("hook_"))
        assert size is None or value.shape == size, name
    torch.testing.assert_close(scores, model(batch), atol=1e-5, rtol=1e-5)


def test_every_edit_acts(model: HookedEncoder) -> None:
    batch = model.batch(PAIRS)
    intact = model(batch)
    for name in set(model.hook_dict) - absent(model):
        # Doubling a pattern or a LayerNorm's input would be undone by what follows only where softmax or LayerNorm
        # follow alone, so the edit is one that no later normalisation can undo.
        ramp = model.run_with_hooks(
            batch, fwd_hooks=[(name, lambda x, hook: x + 0.5 * torch.arange(x.shape[-1]).to(x) % 3 + 0.25 * x)]
        )
        assert (ramp - intact).abs().max() > 1e-4, name


def test_hooks_do_not_stay(model: HookedEncoder) -> None:
    intact = model(PAIRS)
    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(PAIRS, fwd_hooks=[("blocks.0.attn.hook_z", lambda x, hook: 1 / 0)])
    assert not any(point.has_hooks() for point in model.hook_points())
    torch.testing.assert_close(model(PAIRS), intact, atol=0, rtol=0)


@pytest.mark.parametrize("port", ["hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in"])
def test_a_branch_input_leaves_the_skip_path_alone(model: HookedEncoder, port: str) -> None:
    """The branch reads zeros; the LayerNorm still reads the intact stream, plus what the branch made of them."""
    ln, out = ("ln2", "hook_mlp_out") if port == "hook_mlp_in" else ("ln1", "hook_attn_out")
    skip = "hook_resid_mid" if port == "hook_mlp_in" else "hook_resid_pre"
    batch = model.batch(PAIRS)
    _, intact = model.run_with_cache(batch)
    with model.hooks([(f"blocks.1.{port}", lambda x, hook: torch.zeros_like(x))]):
        _, edited = model.run_with_cache(batch)
    assert (edited[f"blocks.1.{out}"] - intact[f"blocks.1.{out}"]).abs().max() > 1e-3
    torch.testing.assert_close(edited[f"blocks.1.{skip}"], intact[f"blocks.1.{skip}"], atol=0, rtol=0)
    torch.testing.assert_close(
        edited[f"blocks.1.{ln}.hook_in"], intact[f"blocks.1.{skip}"] + edited[f"blocks.1.{out}"], atol=1e-5, rtol=0
    )


def test_results_of_heads_and_the_bias_sum_to_attn_out(model: HookedEncoder) -> None:
    _, cache = model.run_with_cache(PAIRS)
    for layer in range(model.cfg.n_layers):
        summed = cache[f"blocks.{layer}.attn.hook_result"].sum(2) + model.parts.layers[layer].o.bias
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_attn_out"], summed, atol=1e-5, rtol=0)


def test_fused_and_explicit_attention_agree(model: HookedEncoder) -> None:
    """From the same input to z, layer by layer: what follows is the same code."""
    batch = model.batch(PAIRS)
    real = batch.attention_mask
    for layer in range(model.cfg.n_layers):
        resid, z = model(batch, stop_at_layer=layer), f"blocks.{layer}.attn.hook_z"
        plan = {"resid": resid, "start_at_layer": layer, "names_filter": z, "head_row": False}
        _, fused = model.run_with_cache(batch, **plan)
        _, explicit = model.run_with_cache(batch, **plan, explicit=[layer])
        assert (fused[z] - explicit[z])[real].abs().max() <= 1e-6 * max(1.0, float(explicit[z].abs().max()))


def test_restart_at_every_layer_is_the_full_forward(model: HookedEncoder) -> None:
    full = model(PAIRS)
    for layer in range(1, model.cfg.n_layers):
        resid = model(PAIRS, stop_at_layer=layer)
        again = model(PAIRS, resid=resid, start_at_layer=layer)
        torch.testing.assert_close(again, full, atol=1e-6, rtol=1e-6)


def test_a_no_op_changes_nothing_bit_for_bit_in_the_same_plan(model: HookedEncoder) -> None:
    every = range(model.cfg.n_layers)
    plan = {"explicit": every, "head_row": False}
    same = [(lambda name: True, lambda x, hook: x.clone())]
    # hook_result and hook_scale take a sum and a LayerNorm apart when they are looked at: they are a plan of their own.
    same_plan = [(lambda name: not name.endswith(("hook_result", "hook_scale")), lambda x, hook: x.clone())]
    with model.hooks(same_plan):
        hooked = model(PAIRS, **plan)
    torch.testing.assert_close(hooked, model(PAIRS, **plan), atol=0, rtol=0)
    with model.hooks(same):
        everything = model(PAIRS)
    scale = float(model(PAIRS).abs().max())
    assert (everything - model(PAIRS)).abs().max() <= 5e-6 * max(1.0, scale)


def test_gradients_flow_and_are_seen(tiny: HookedEncoder) -> None:
    resid = tiny(PAIRS, stop_at_layer=1).requires_grad_()
    seen: list[torch.Tensor] = []
    hook = ("blocks.2.attn.hook_pattern", lambda grad, hook: seen.append(grad) or None)
    with tiny.hooks(bwd_hooks=[hook]):
        tiny(PAIRS, resid=resid, start_at_layer=1).sum().backward()
    assert resid.grad is not None
    assert resid.grad.abs().max() > 0
    assert seen[0].shape[1] == tiny.cfg.n_heads


def test_inputs_may_be_pairs_strings_or_a_batch(tiny: HookedEncoder) -> None:
    strings = [(pair.query, pair.document) for pair in PAIRS]
    for inputs in (strings, tiny.batch(PAIRS)):
        torch.testing.assert_close(tiny(inputs), tiny(PAIRS), atol=0, rtol=0)
    torch.testing.assert_close(tiny(strings[0]), tiny(PAIRS[0]), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "blocks.1.attn.hook_patern",
            r"Unknown hook 'blocks.1.attn.hook_patern': the closest are 'blocks.1.attn.hook_pattern'",
        ),
        ("blocks.7.attn.hook_z", r"Layer 7 is out of range in 'blocks.7.attn.hook_z': the model has layers 0-2"),
        ((lambda name: False), r"matches no hook of this model"),
    ],
)
def test_an_unknown_hook_is_refused(tiny: HookedEncoder, name: object, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        tiny.run_with_hooks(PAIRS, fwd_hooks=[(name, lambda x, hook: x)])
    if isinstance(name, str):
        with pytest.raises(MechirError, match=message):
            tiny.run_with_cache(PAIRS, names_filter=[name])


def test_restart_needs_the_residual(tiny: HookedEncoder) -> None:
    with pytest.raises(MechirError, match="start_at_layer=1 needs resid="):
        tiny(PAIRS, start_at_layer=1)


def test_the_repr_says_what_it_is(tiny: HookedEncoder) -> None:
    assert "3 layers x 4 heads, d_model 32, 1 label, float32 on cpu" in repr(tiny)


def test_a_non_finite_score_names_the_pair_and_the_layer(tiny: HookedEncoder) -> None:
    class Poison:
        def hooks(self, batch: mi.Batch) -> list:
            def edit(x: torch.Tensor, hook: object) -> torch.Tensor:
                bad = torch.tensor([pair.doc_id == "d3" for pair in batch.pairs])
                return x.masked_fill(bad[:, None, None], float("nan"))

            return [("blocks.1.hook_mlp_out", edit)]

    with pytest.raises(
        MechirError, match=r"score of pair q3/d3 is nan \(1 of 8 scores.*after 'blocks.1.hook_resid_post'"
    ):
        tiny.score(PAIRS, Poison())
