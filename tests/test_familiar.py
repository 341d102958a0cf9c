"""What users of TransformerLens type: its weights, tokens, cache names and labels, and heads as others write them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.options import options
from mechir.sites import Head, as_sites, parse_site
from tests.models import PAIRS, Checkpoints


@pytest.mark.parametrize("family", ["bert", "electra", "roberta", "distilbert"])
def test_weights_compute_what_the_model_computes(checkpoints: Checkpoints, family: str) -> None:
    model = mi.load(checkpoints.path(family))
    _, cache = model.run_with_cache(PAIRS[:2])
    n, d, heads, width = model.cfg.n_layers, model.cfg.d_model, model.cfg.n_heads, model.cfg.d_head
    assert (model.W_V.shape, model.b_V.shape) == ((n, heads, d, width), (n, heads, width))
    assert (model.W_O.shape, model.b_O.shape) == ((n, heads, width, d), (n, d))
    assert (model.W_in.shape, model.W_out.shape) == ((n, d, model.cfg.d_mlp), (n, model.cfg.d_mlp, d))
    for layer in range(n):
        read = cache["resid_pre", layer]
        v = torch.einsum("bpm,hmd->bphd", read, model.W_V[layer]) + model.b_V[layer]
        close(v, cache["v", layer])
        results = torch.einsum("bphd,hdm->bphm", cache["z", layer], model.W_O[layer])
        close(results, cache["result", layer])
        close(results.sum(2) + model.b_O[layer], cache["attn_out", layer])
        close(cache["mlp_in", layer] @ model.W_in[layer] + model.b_in[layer], cache["pre", layer])
        close(cache["post", layer] @ model.W_out[layer] + model.b_out[layer], cache["mlp_out", layer])
        close(model.OV.AB[layer, 1].float(), model.W_V[layer, 1] @ model.W_O[layer, 1])
    close(model.QK.AB, model.W_QK.AB)
    first = model.W_pos.shape[0] - model.cfg.n_ctx  # rows of RoBERTa that are no positions
    close(cache["pos_embed"][0, 0], model.W_pos[first])


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_tokens_and_labels(tiny: HookedEncoder) -> None:
    pair = PAIRS[1]
    tokens = tiny.to_str_tokens(pair)
    assert tokens == ["[CLS]", "what", "is", "wifi", "[SEP]", "wifi", "is", "a", "radio", "signal", "[SEP]"]
    assert tiny.to_str_tokens((pair.query, pair.document)) == tokens and tiny.to_str_tokens([pair]) == [tokens]
    ids = tiny.to_tokens(PAIRS[:2])
    assert torch.equal(ids, tiny.batch(PAIRS[:2]).input_ids) and ids.shape[0] == 2
    assert tiny.all_head_labels()[:5] == ["h0.0", "h0.1", "h0.2", "h0.3", "h1.0"] and len(tiny.all_head_labels()) == 12
    with pytest.raises(MechirError, match="'how' is no pair"):
        tiny.to_str_tokens("how")


def test_cfg_says_where_and_in_what(tiny: HookedEncoder) -> None:
    cfg = tiny.cfg
    assert (cfg.device, cfg.dtype) == ("cpu", torch.float32)
    assert cfg.n_params == sum(parameter.numel() for parameter in tiny.hf.parameters())
    assert cfg.to_dict()["n_layers"] == 3 and json.dumps({**cfg.to_dict(), "dtype": str(cfg.dtype)})
    double = copy.deepcopy(tiny).to(torch.float64)
    assert (double.cfg.dtype, tiny.cfg.dtype) == (torch.float64, torch.float32)


def test_a_model_is_in_eval_mode_and_stays_there(tiny: HookedEncoder) -> None:
    assert not tiny.training and not tiny.hf.training and tiny.eval() is tiny and tiny.train(False) is tiny
    with pytest.raises(MechirError, match=r"A model is read in eval mode, for dropout would make its scores random"):
        tiny.train()
    assert not tiny.training and not any(module.training for module in tiny.modules())


def test_short_names_of_the_cache(tiny: HookedEncoder) -> None:
    score, cache = tiny.run_with_cache(PAIRS[:2])
    for short, whole in {
        "embed": "embed.hook_embed", "pos_embed": "embed.hook_pos_embed", "token_type_embed": "embed.hook_token_type_embed",
        "full_embed": "hook_full_embed", "pooled": "head.hook_pooled", "logits": "head.hook_logits",
        "score": "head.hook_score", ("q", 1): "blocks.1.attn.hook_q", ("pattern", -1): "blocks.2.attn.hook_pattern",
        ("resid_post", 0): "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out": "blocks.1.hook_mlp_out",
    }.items():  # fmt: skip
        assert cache[short] is cache.cache_dict[whole] and short in cache
    assert torch.equal(cache["score"], score)
    alone = tiny.run_with_cache(PAIRS[0], remove_batch_dim=True)[1]
    assert alone["z", 1].shape == cache["z", 1].shape[1:] or alone["z", 1].ndim == 3


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            ("patern", 0),
            r"There is no activation \('patern', 0\): the closest are 'blocks.*pattern'.*in short 'pattern'",
        ),
        ("poled", r"There is no activation 'poled': .*'pooled'"),
        (("z", 9), r"There is no activation \('z', 9\): the closest are 'blocks"),
        ("z", r"There is no activation 'z': .*with the layer behind: cache\['z', 0\]"),
        (7, "There is no activation 7"),
        ((), r"There is no activation \(\)"),
        (["q", 0], r"There is no activation \['q', 0\]"),
        ("", "There is no activation ''"),
    ],
)
def test_a_wrong_key_is_answered_by_the_closest(tiny: HookedEncoder, key: Any, message: str) -> None:
    _, cache = tiny.run_with_cache(PAIRS[0])
    with pytest.raises(MechirError, match=message):
        cache[key]
    assert key not in cache


def test_what_a_filter_left_out_is_said(tiny: HookedEncoder) -> None:
    _, cache = tiny.run_with_cache(PAIRS[0], names_filter=lambda name: name.endswith("hook_z"))
    assert ("z", 0) in cache and ("q", 0) not in cache
    with pytest.raises(MechirError, match=r"does not hold 'blocks.0.attn.hook_q': it was made with a names_filter"):
        cache["q", 0]
    with pytest.raises(MechirError, match=r"The filter .* matches no hook of this model, e.g. not 'blocks.0.attn"):
        tiny.run_with_cache(PAIRS[0], names_filter=lambda name: "hook_zz" in name)
    with pytest.raises(MechirError, match="Unknown return_type 'loss'"):
        tiny.run_with_cache(PAIRS[0], return_type="loss")


@pytest.mark.parametrize("head", ["h1.2", "L1H2", "1.2", (1, 2), Head(1, 2), (torch.tensor(1), 2)])
def test_heads_are_read_as_others_write_them(tiny: HookedEncoder, head: Any) -> None:
    head = tuple(map(int, head)) if isinstance(head, tuple) and not isinstance(head, Head) else head
    assert as_sites(head) == as_sites([head]) == [Head(1, 2)]
    assert mi.Ablate(head) == mi.Ablate("h1.2") and mi.Mask("doc<-query", heads=[head]) == mi.Mask("doc<-query@h1.2")
    field = options(type(mi.load_experiment("joint/examples").chosen()))["heads"]
    assert field.value([head], "x") == field.value("h1.2", "x") == (Head(1, 2),)
    assert mi.Edge("h0.1", "L1H2.q") == mi.parse_edge("h0.1->h1.2.q")


def test_parts_and_lists_of_heads() -> None:
    assert parse_site("L1H2.q") == parse_site("1.2.q") == Head(1, 2, "q")
    assert as_sites([(1, 2), "0.3", "mlp1"]) == [Head(1, 2), Head(0, 3), parse_site("mlp1")]
    assert mi.Mask.parse("doc<-query@L1H2,0.3") == mi.Mask("doc<-query", heads=["h1.2", "h0.3"])
    for wrong in ("1", "L1", "H2", "1.2.3.4", "L1.2H3", "-1.2"):
        with pytest.raises(MechirError, match="Cannot read"):
            parse_site(wrong)
    with pytest.raises(MechirError, match="is no Head"):
        mi.Mask("doc<-query", heads=[1.2])


@pytest.mark.parametrize(
    "mask",
    [
        mi.Mask("doc<-query", layers=range(6)), mi.Mask("doc<-query", layers=[0, 3]), mi.Mask("cls<-query|doc"),
        mi.Mask("doc<-query", heads=["h1.1", "h2.3"], renormalise=True), mi.Mask("doc<-query", renormalise=True),
    ],
)  # fmt: skip
def test_a_mask_is_read_as_it_prints(mask: mi.Mask) -> None:
    assert mi.Mask(str(mask)) == mask == mi.Mask.parse(str(mask))


def test_a_mask_that_says_twice_where_it_cuts_is_refused() -> None:
    for more in ({"layers": 1}, {"heads": ["h1.1"]}):
        with pytest.raises(MechirError, match="'doc<-query@0-5' names layers or heads, and so do layers= or heads="):
            mi.Mask("doc<-query@0-5", **more)
    with pytest.raises(MechirError, match="Cannot read '@x' in"):
        mi.Mask("doc<-query@x")


@pytest.mark.parametrize("arrow", ["->", "-->", "=>", "\u2192", " \u2192 ", "\u21d2"])
def test_an_arrow_the_other_way_gets_the_sentence_about_arrows(arrow: str) -> None:
    with pytest.raises(MechirError, match=r"reader comes first, so for what doc takes from query, write 'doc<-query'"):
        mi.Mask(f"query{arrow}doc")
    assert str(mi.Direction.parse("doc\u2190query")) == "doc<-query"
