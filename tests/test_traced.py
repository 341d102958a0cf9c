"""Rerankers of other structures, opened by nnsight: the scores of Hugging Face, and edits that act everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionMaskInterface

import mechir as mi
from mechir.encoder.certify import refuse_unlike
from mechir.encoder.loading import in_memory
from mechir.encoder.traced import language, loading
from mechir.encoder.traced.model import TracedReranker
from mechir.errors import MechirError
from mechir.hooks import EveryLayer
from mechir.recorder import observe
from tests import models, rerankers
from tests.models import PAIRS


def opened(kind: str, dtype: torch.dtype = torch.float32, **more: Any) -> TracedReranker:
    if kind in rerankers.GENERATORS:
        return language.language_model(rerankers.generator(kind).to(dtype), rerankers.t5_tokenizer(), device="cpu")
    return loading.classifier(rerankers.build(kind, **more).to(dtype), models.tokenizer("bert"), device="cpu")


KINDS = (*rerankers.STRUCTURES, "t5")


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> TracedReranker:
    return opened(request.param)


@torch.no_grad()
def theirs(model: TracedReranker, pairs: Any) -> Tensor:
    """The scores of Hugging Face's own forward, each pair alone."""
    return torch.cat([model.head.score(model.readout.original(model.root, model.features([pair]))) for pair in pairs])


@torch.no_grad()
def rounding(kind: str, **more: Any) -> float:
    """How far Hugging Face's own float32 is from its float64 on this processor, relative to the largest score."""
    single, double = (theirs(opened(kind, dtype, **more), PAIRS) for dtype in (torch.float32, torch.float64))
    return float((single - double).abs().max() / double.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.float64, 1e-10)])
@torch.no_grad()
def test_scores_are_those_of_hugging_face(kind: str, dtype: torch.dtype, bound: float) -> None:
    # In float64 transformers' own Gemma2 gives NaN where padding is longer than the window, and its softmax is float32.
    more = {"sliding_window": 64} if kind == "gemma2" else {}
    model = opened(kind, dtype, **more)
    bound = 1e-6 if kind == "gemma2" and dtype == torch.float64 else bound
    if dtype == torch.float32:  # another processor adds in another order: its rounding is no error of ours
        bound = max(bound, 3 * rounding(kind, **more))
    alone = theirs(model, PAIRS)
    batched = model.head.score(model.readout.original(model.root, model.features(PAIRS)))
    runs = {"as it is": model(PAIRS), "alone": torch.cat([model([pair]) for pair in PAIRS])}
    with model.hooks([(lambda name: True, lambda x, hook: x.clone())]):
        runs |= {"open": model(PAIRS), "open, alone": torch.cat([model([pair]) for pair in PAIRS])}
    with model.hooks([(EveryLayer("attn.hook_pattern"), lambda x, hook: None)]):
        runs["patterns seen"] = model(PAIRS)
    for name, scores in runs.items():
        for reference in (alone, batched):
            assert float((scores - reference).abs().max() / reference.abs().max()) < bound, name


@torch.no_grad()
def test_every_hook_fires_in_order_and_every_edit_acts(model: TracedReranker) -> None:
    fired: list[str] = []
    with model.hooks([(lambda name: True, lambda x, hook: fired.append(hook.name))]):
        intact = model(PAIRS)
    assert sorted(fired) == sorted(model.hook_dict), "each once"
    layers = [int(name.split(".")[1]) for name in fired if name.startswith("blocks.")]
    assert layers == sorted(layers)
    for name in model.hook_dict:
        # of the scores of a decoder's one position nothing but minus infinity acts
        alone = name.startswith("decoder.") and name.endswith(".attn.hook_attn_scores")
        with model.hooks(
            [(name, lambda x, hook, alone=alone: torch.full_like(x, -torch.inf) if alone else x.roll(1, -1) * 1.5)]
        ):
            assert float((model(PAIRS) - intact).abs().max()) > 1e-6, name


@torch.no_grad()
def test_a_pattern_adds_up_to_one_and_a_cut_direction_is_0(model: TracedReranker) -> None:
    batch = model.batch(PAIRS)
    _, cache = model.run_with_cache(batch, names_filter=EveryLayer("attn.hook_pattern"))
    for layer in range(model.cfg.n_layers):
        pattern = cache["pattern", layer]
        rows = pattern.sum(-1)[batch.attention_mask[:, None].expand(pattern.shape[:3])]
        assert torch.allclose(rows, torch.ones_like(rows), atol=1e-6)
        padding = batch.attention_mask[:, :, None] & ~batch.attention_mask[:, None]
        assert not pattern.masked_select(padding[:, None]).any(), "no token reads padding"
    for renormalise in (False, True):
        mask = mi.Mask("doc<-query", renormalise=renormalise)
        with model.hooks(mask.hooks(batch)):
            _, seen = observe(model, batch, EveryLayer("attn.hook_pattern"))
        cut = batch.at(mi.Segment.DOC)[:, :, None] & batch.at(mi.Segment.QUERY)[:, None]
        for pattern in seen.values():
            assert not pattern.masked_select(cut[:, None]).any()
            rows = pattern.sum(-1)[batch.at(mi.Segment.DOC)[:, None].expand(pattern.shape[:3])]
            assert (
                bool((rows < 1.0 + 1e-5).all())
                and torch.allclose(rows, torch.ones_like(rows), atol=1e-5) == renormalise
            )


def test_local_layers_see_their_window_alone() -> None:
    model = opened("modernbert")
    batch = model.batch(PAIRS)
    _, cache = model.run_with_cache(batch, names_filter=EveryLayer("attn.hook_pattern"))
    assert model.structure.window == 4 and model.hf.config.layer_types[1] == "sliding_attention"
    places = torch.arange(batch.input_ids.shape[1])
    far = (places[:, None] - places).abs() > model.structure.window
    assert not cache["pattern", 1].masked_select(far).any() and cache["pattern", 0].masked_select(far).any()


def test_the_certificate_is_green_and_says_what_every_edit_does(model: TracedReranker) -> None:
    certificate = model.certify(PAIRS)
    refuse_unlike(certificate, "a model")
    assert certificate["input"] == 0 and certificate["score"] < 5e-6 and certificate["score_head_row"] < 2e-6
    assert {"attn.hook_pattern", "attn.hook_z", "hook_resid_mid", "mlp.hook_post"} <= set(certificate["edits"])
    assert min(certificate["edits"].values()) > 1e-3
    assert model.parity == certificate["score_head_row"] and f"scores {model.parity:.1e} from" in repr(model)


@pytest.mark.parametrize("kind", ["modernbert", "qwen3", "llama", "gemma2", "t5"])
def test_without_the_mask_function_the_certificate_is_red(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(kind)
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, "mechir")
    with pytest.raises(MechirError, match="differ from Hugging Face's"):
        refuse_unlike(model.certify(PAIRS), "a model")


@pytest.mark.filterwarnings("ignore:LanguageModel is deprecated", "ignore:Module .* has a submodule")
@pytest.mark.parametrize(
    ("kind", "error"), [("bert", "there is no 'classifier'"), ("qwen2", r"Logits of shape \(3, 28")]
)
def test_with_a_wrapper_that_opens_another_model_the_certificate_is_red(
    kind: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnsight's LanguageModel silently reads a classifier as a language model with a random head."""
    hf, tokenizer = (models.build if kind == "bert" else rerankers.build)(kind), models.tokenizer("bert")
    hf.save_pretrained(tmp_path)
    wrapped = nnsight.LanguageModel(str(tmp_path), tokenizer=tokenizer)
    monkeypatch.setattr("mechir.encoder.traced.model.traced", lambda root, tokenizer: wrapped)
    with pytest.raises(MechirError, match=error):
        loading.classifier(hf, tokenizer).certify(PAIRS)


def test_an_edit_that_does_nothing_is_refused() -> None:
    model = opened("modernbert")
    visit = next(visit for visit in model._visits if visit.place.points[-1].endswith("mlp.hook_post"))
    model._visits = [other for other in model._visits if not other.place.points[-1].endswith("mlp.hook_post")]
    with pytest.raises(MechirError, match=r"Edits of mlp.hook_post change no score of 'in memory': do not use"):
        model.certify(PAIRS)
    assert visit.place.side == "input"


SAME = ("bert", "roberta", "electra", "distilbert")


@pytest.fixture(scope="module", params=SAME)
def both(request: pytest.FixtureRequest) -> tuple[mi.HookedEncoder, TracedReranker]:
    """Our own forward and the nnsight backend on the same weights."""
    hf, tokenizer = models.build(request.param), models.tokenizer(request.param)
    return in_memory(hf, tokenizer), loading.classifier(hf, tokenizer)


def test_both_backends_agree_under_interventions(both: tuple[mi.HookedEncoder, TracedReranker]) -> None:
    own, traced = both
    swapped = [
        mi.Pair(pair.query, " ".join(reversed(pair.document.split())), pair.query_id, pair.doc_id) for pair in PAIRS
    ]
    interventions = {
        "intact": (),
        "cut": mi.Mask("doc<-query"),
        "blind": mi.Mask("cls<-doc", layers=[1], renormalise=True),
        "heads": mi.Mask("query<-doc", heads=["h0.1", "h2.3"]),
        "head": mi.Ablate("h1.2"),
        "parts": mi.Ablate(["n1.5", "mlp2", "attn0"]),
    }
    for name, do in interventions.items():
        assert torch.allclose(own.score(PAIRS, do), traced.score(PAIRS, do), rtol=0, atol=1e-5), name
    for site in (
        "h1.2",
        "h1.2.q",
        "h1.0.k",
        "h0.3.v",
        "h2.1.pattern",
        "resid1",
        "resid1.mid",
        "mlp1",
        "mlp1.post",
        "attn2",
        "n0.7",
    ):
        scores = [model.score(PAIRS, mi.Patch(mi.record(model, swapped, site), site, at="doc")) for model in both]
        assert torch.allclose(*scores, rtol=0, atol=1e-5), site
    for kind, fill in (("means", mi.means), ("samples", mi.samples)):
        scores = [model.score(PAIRS, mi.Ablate("h1.2", with_=fill(model, PAIRS))) for model in both]
        assert torch.allclose(*scores, rtol=0, atol=1e-5), kind


def test_both_backends_have_the_same_activations(both: tuple[mi.HookedEncoder, TracedReranker]) -> None:
    own, traced = both
    assert set(traced.hook_dict) <= set(own.hook_dict)
    kinds = {name.rpartition("hook_")[2] for name in own.hook_dict} - {
        name.rpartition("hook_")[2] for name in traced.hook_dict
    }
    assert kinds <= {"q_input", "k_input", "v_input", "in", "scale", "pos_embed", "token_type_embed"}
    ours, theirs = (model.run_with_cache(PAIRS)[1] for model in both)
    real = own.batch(PAIRS).attention_mask
    for name in traced.hook_dict:
        one, other = ours[name], theirs[name]
        if name.endswith(("pattern", "scores")):
            keep = real[:, None, :, None] & real[:, None, None, :]
            one, other = one.masked_fill(~keep, 0.0), other.masked_fill(~keep, 0.0)
        elif one.ndim > 2:
            one, other = one[real], other[real]
        assert torch.allclose(one, other, rtol=1e-5, atol=2e-5), name


@pytest.mark.parametrize("kind", ["own", "bert", "modernbert", "deberta-v2", "qwen3", "t5"])
def test_gradients_are_of_what_is_read_there_alone(kind: str) -> None:
    """A gradient is what a step to either side says, not too small a one: rotations and norms are in float32."""
    if kind in ("own", "bert"):
        wrap = in_memory if kind == "own" else loading.classifier
        model: Any = wrap(models.build("bert").double(), models.tokenizer("bert"))
    else:
        model = opened(kind, torch.float64)
    batch = model.batch(PAIRS)
    start = ("embed.hook_embed", lambda x, hook: x.detach().requires_grad_())
    with torch.enable_grad(), model.hooks([start]):
        score, values = observe(model, batch, lambda name: name != "embed.hook_embed")
        values = {name: x for name, x in values.items() if x.requires_grad and not name.endswith("attn_scores")}
        gradients = torch.autograd.grad(score.sum(), list(values.values()))
    for (name, value), gradient in zip(values.items(), gradients, strict=True):
        steepest = gradient.reshape(len(value), -1).abs().argmax(1, keepdim=True)
        step = torch.zeros(len(value), value[0].numel(), dtype=value.dtype).scatter(1, steepest, 1e-3).view_as(value)

        def moved(by: float, name: str = name, step: Tensor = step) -> Tensor:
            with torch.no_grad(), model.hooks([(name, lambda x, hook: x + by * step)]):
                return model(batch)

        expected = (gradient * step).reshape(len(value), -1).sum(1)
        assert float(((moved(1) - moved(-1)) / 2 - expected).abs().max()) < 0.05 * float(expected.abs().max()) + 1e-8, (
            name
        )


def test_what_cannot_be_opened_is_refused() -> None:
    tokenizer = models.tokenizer("bert")
    with pytest.raises(MechirError, match=r"A ModernBertForSequenceClassification in memory needs its tokenizer"):
        mi.load(rerankers.build("modernbert"))
    gpt = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=40)
    )
    with pytest.raises(MechirError, match="This is a GPT2ForSequenceClassification, which mechir cannot"):
        mi.load(gpt, tokenizer)
    with pytest.raises(MechirError, match=r"Unknown backend 'vllm': write one of own, nnsight"):
        mi.load(backend="vllm")


def test_it_says_which_backend_it_took() -> None:
    hf, tokenizer = models.build("bert"), models.tokenizer("bert")
    assert repr(mi.load(hf, tokenizer)).startswith("HookedEncoder(")
    assert repr(mi.load(hf, tokenizer, backend="nnsight")).startswith(
        "TracedReranker(in memory: bert by nnsight, 3 layers"
    )


def test_a_module_of_another_is_not_touched() -> None:
    """Two models on the same weights have hooks of their own."""
    hf, tokenizer = rerankers.build("modernbert"), models.tokenizer("bert")
    one, other = mi.load(hf, tokenizer), mi.load(hf, tokenizer)
    intact = other.score(PAIRS)
    with one.hooks([(EveryLayer("attn.hook_pattern"), lambda x, hook: x.roll(1, -1))]):
        assert torch.equal(other.score(PAIRS), intact) and not torch.equal(one.score(PAIRS), intact)
    assert hf.config._attn_implementation == "sdpa" and isinstance(hf, nn.Module)
