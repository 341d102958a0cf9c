"""T5 as a reranker (monoT5): a prompt, one step of the decoder, and the attention of the decoder to the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import mechir as mi
from mechir.contrasts import align
from mechir.diagnostics import Tfc1
from mechir.encoder.certify import refuse_altered, refuse_unlike
from mechir.encoder.traced.model import TracedReranker
from mechir.errors import MechirError
from mechir.hooks import edits
from mechir.methods.conductance import conductance
from mechir.methods.patching import patch
from mechir.recorder import observe
from mechir.templates import EXAMPLE
from tests import models, rerankers
from tests.models import PAIRS

FALSE, TRUE = "\u2581false", "\u2581true"


def opened(kind: str = "t5", dtype: torch.dtype = torch.float32, **options: Any) -> TracedReranker:
    model = mi.load(rerankers.generator(kind).to(dtype), rerankers.t5_tokenizer(), **options)
    assert isinstance(model, TracedReranker)
    return model


@pytest.fixture(scope="module")
def model() -> TracedReranker:
    return opened()


@torch.no_grad()
def theirs(model: TracedReranker, pairs: Any, words: tuple[str, str] = (FALSE, TRUE)) -> Tensor:
    """The logits of two words by Hugging Face's own forward, on the tokenizer's own ids of the whole prompts."""
    texts = [f"Query: {pair.query} Document: {pair.document} Relevant:" for pair in pairs]
    read = model.tokenizer(texts, padding=True, return_tensors="pt")
    start = torch.zeros(len(texts), 1, dtype=torch.int64)
    output = model.hf(input_ids=read["input_ids"], attention_mask=read["attention_mask"], decoder_input_ids=start)
    return output.logits[:, 0, model.tokenizer.convert_tokens_to_ids(list(words))]


@pytest.mark.parametrize(
    ("kind", "dtype", "bound"),
    [
        ("t5", torch.float32, 2e-6),
        ("mt5", torch.float32, 4e-6),  # its gated MLPs make large numbers
        ("t5", torch.float64, 1e-10),
        ("mt5", torch.float64, 1e-10),
    ],
)
@torch.no_grad()
def test_scores_are_those_of_hugging_face(kind: str, dtype: torch.dtype, bound: float) -> None:
    model = opened(kind, dtype)
    alone = torch.cat([theirs(model, [pair]) for pair in PAIRS])
    if dtype == torch.float32:  # another processor adds in another order: its rounding is no error of ours
        double = theirs(opened(kind, torch.float64), PAIRS)
        bound = max(bound, 3 * float((theirs(model, PAIRS) - double).abs().max() / double.abs().max()))
    runs = {"as it is": model(PAIRS), "alone": torch.cat([model([pair]) for pair in PAIRS])}
    with model.hooks([(lambda name: True, lambda x, hook: x.clone())]):
        runs |= {"open": model(PAIRS), "open, alone": torch.cat([model([pair]) for pair in PAIRS])}
    for name, scores in runs.items():
        for logits in (alone, theirs(model, PAIRS)):
            assert float((scores - logits[:, 1] + logits[:, 0]).abs().max() / logits.abs().max()) < bound, name
    refuse_unlike(model.certify(PAIRS), kind)


def test_it_says_what_it_is(model: TracedReranker) -> None:
    structure = model.structure
    assert (structure.norm, structure.positions, structure.reads) == ("pre", "relative", "decoder")
    assert not structure.causal and structure.window is None
    c = model.cfg
    assert (c.n_layers, c.n_heads, c.d_model, c.d_head, c.d_mlp, c.act_fn) == (3, 4, 32, 8, 48, "relu")
    assert "reads 64 word pieces (the tokenizer's model_max_length)" in "\n".join(model.reading.lines())
    assert f"log-odds of label 1 ('{TRUE}')" in "\n".join(model.reading.lines())
    parts = [mi.Segment.parse(name) for name in ("instruction", "query", "sep1", "doc", "suffix")]
    batch = model.batch(PAIRS)
    assert torch.equal(sum(batch.at(part).sum(1) for part in parts), batch.attention_mask.sum(1))
    assert str(model.prompt.template) == EXAMPLE and not batch.at(mi.Segment.DECODER).any()


def test_texts_are_as_long_as_wanted() -> None:
    assert opened(max_length=9000).max_length == 9000 and opened().limited(600).max_length == 600
    tokenizer = rerankers.t5_tokenizer()
    with pytest.raises(MechirError, match=r"^max_length=0 is out of range: the model reads 1 to 1048576 word pieces\."):
        mi.load(rerankers.generator(), tokenizer, max_length=0)
    tokenizer.model_max_length = int(1e30)
    assert mi.load(rerankers.generator(), tokenizer).max_length == 512
    long = mi.Pair("what is wifi", "the moon pull the ocean and the tide " * 60)
    model = opened()
    assert model.encode([long]).truncated == 1 and model.encode([long], 200).lengths.tolist() == [200]
    refuse_unlike(model.certify([long, *PAIRS]), "cut")


def test_a_saved_model_is_opened(tmp_path: Path) -> None:
    hf, tokenizer = rerankers.generator(), rerankers.t5_tokenizer()
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, here = mi.load(tmp_path), mi.load(hf, tokenizer)
    assert torch.equal(model.score(PAIRS), here.score(PAIRS)) and model.changed() == []
    refuse_unlike(model.certify(PAIRS), "saved")
    refuse_altered(model)
    assert mi.load(tmp_path).fingerprint == model.fingerprint
    assert mi.load(tmp_path, template="{query} ? {document}").fingerprint != model.fingerprint
    # older files hold the shared embeddings several times, and a bias that T5 never had
    weights = load_file(tmp_path / "model.safetensors")
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    old = weights | {name: weights["shared.weight"].clone() for name in names}
    old["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(8, 4)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(mi.load(tmp_path).score(PAIRS), model.score(PAIRS))


def test_other_words_and_another_prompt() -> None:
    other = opened(words=("\u2581cold", "\u2581heat"))
    cold, heat = theirs(other, PAIRS, ("\u2581cold", "\u2581heat")).T
    assert torch.allclose(other.score(PAIRS), heat - cold, rtol=0, atol=1e-5)
    turned = opened(template="Document: {document} Query: {query} Relevant:")
    assert not torch.allclose(turned.score(PAIRS), opened().score(PAIRS), atol=1e-2)


# Masks


def patterns(model: TracedReranker, *do: mi.Mask) -> dict[str, Tensor]:
    """Every pattern of encoder and decoder under masks."""
    batch = model.batch(PAIRS)
    with model.hooks(edits(do, batch)):
        return observe(model, batch, lambda name: name.endswith("hook_pattern"))[1]


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("source", ["doc", "query", "query|suffix"])
def test_the_decoder_does_not_see_what_is_cut(model: TracedReranker, source: str, renormalise: bool) -> None:
    do = mi.Mask(f"decoder<-{source}", renormalise=renormalise)
    batch, intact = model.batch(PAIRS), patterns(model)
    at = batch.at(mi.Segment.parse(source))[:, None, None]
    for name, pattern in patterns(model, do).items():
        if ".cross_attn." not in name:
            continue
        assert pattern.shape == (len(PAIRS), 4, 1, batch.input_ids.shape[1])
        assert not pattern.masked_select(at).any() and intact[name].masked_select(at).any()
        rows = pattern.sum(-1)
        assert torch.allclose(rows, torch.ones_like(rows), atol=1e-5) == renormalise
        if name.startswith("decoder.0.") and not renormalise:
            assert torch.equal(pattern, intact[name].masked_fill(at, 0.0))
    unread = [name for name in intact if name.startswith("blocks.")]
    assert len(unread) == 3 and all(torch.equal(patterns(model, do)[name], intact[name]) for name in unread)


def test_layers_and_heads_of_a_reading_decoder_are_its_own(model: TracedReranker) -> None:
    intact = patterns(model)
    doc = model.batch(PAIRS).at(mi.Segment.DOC)[:, None, None]

    def blind(do: mi.Mask) -> list[str]:
        seen = patterns(model, do)
        return [name for name in seen if not torch.allclose(seen[name], intact[name], atol=1e-6)]

    assert blind(mi.Mask("decoder<-doc", layers=[1])) == ["decoder.1.cross_attn.hook_pattern"]
    assert blind(mi.Mask("decoder<-doc", heads=["h1.2"])) == ["decoder.1.cross_attn.hook_pattern"]
    head = patterns(model, mi.Mask("decoder<-doc", heads=["h1.2"]))["decoder.1.cross_attn.hook_pattern"]
    assert not head[:, 2:3].masked_select(doc).any() and head[:, 1:2].masked_select(doc).any()
    both = blind(mi.Mask("decoder|doc<-query", layers=[1]))
    assert {"blocks.1.attn.hook_pattern", "decoder.1.cross_attn.hook_pattern"} <= set(both)
    assert "blocks.0.attn.hook_pattern" not in both
    one, two = (model.score(PAIRS, mi.Mask(direction)) for direction in ("decoder|doc<-query", "doc<-query"))
    assert not torch.allclose(one, two, atol=1e-3)
    # the last layer of the encoder has no decoder's layer beside it
    assert "blocks.2.attn.hook_pattern" in blind(mi.Mask("all<-query", layers=[2]))


def test_a_decoder_that_sees_nothing_has_one_score(model: TracedReranker) -> None:
    for renormalise in (False, True):
        scores = model.score(PAIRS, mi.Mask("decoder<-all", renormalise=renormalise))
        assert torch.allclose(scores, scores[:1].expand_as(scores), rtol=0, atol=1e-6)
    assert model.score(PAIRS).std() > 0.1
    own = model.score(PAIRS, mi.Mask("decoder<-decoder"))
    assert not torch.allclose(own, model.score(PAIRS), atol=1e-3) and own.std() > 0.1
    assert torch.equal(own, model.score(PAIRS, mi.Mask("decoder<-decoder", renormalise=True)))


def test_without_the_document_the_decoder_reads_of_it_by_other_rows(model: TracedReranker) -> None:
    documents = ("wifi is a radio signal", "grass is a stone bridge")
    pairs = [mi.Pair("what is wifi", text, "q", f"d{at}") for at, text in enumerate(documents)]
    blind = mi.Mask("decoder<-doc", renormalise=True)
    rows = mi.Mask("instruction|query|sep1|suffix<-doc", renormalise=True)

    def apart(*do: mi.Mask) -> float:
        one, other = model.score(pairs, do).tolist()
        return abs(one - other)

    assert min(apart(), apart(blind), apart(rows)) > 1e-2 and apart(blind, rows) < 1e-5


def test_directions_that_cannot_happen_are_refused(model: TracedReranker) -> None:
    with pytest.raises(
        MechirError, match=r"^'doc<-decoder' cannot happen in 'in memory': only the decoder reads the dec"
    ):
        model.score(PAIRS, mi.Mask("doc<-decoder"))
    with pytest.raises(
        MechirError, match=r"^'decoder<-cls' cannot happen in 'in memory': its pairs have no cls; the seg"
    ):
        model.score(PAIRS, mi.Mask("decoder<-cls", layers=[0]))
    bert = mi.load(models.build("bert"), models.tokenizer("bert"))
    for do in (mi.Mask("decoder<-doc"), mi.Mask("decoder<-doc", layers=[0]), mi.Mask("decoder<-all", heads="h0.1")):
        with pytest.raises(
            MechirError, match=r"^'decoder<-.*' cannot happen in 'in memory': its pairs have no decoder; "
        ):
            bert.score(PAIRS, do)
    assert not torch.allclose(bert.score(PAIRS, mi.Mask("all<-doc", layers=[1])), bert.score(PAIRS), atol=1e-3)
    with pytest.raises(
        MechirError, match=r"^Layer 2 is out of range in 'decoder.2.cross_attn.hook_pattern': the decoder h"
    ):
        model.score(PAIRS, mi.Mask("decoder<-doc", layers=[2]))
    with pytest.raises(
        MechirError, match=r"^The filter blocks.9.attn.hook_pattern or decoder.9.cross_attn.hook_pattern or"
    ):
        model.score(PAIRS, mi.Mask("all<-all", layers=[9]))
    with pytest.raises(MechirError, match=r"^Head 4 is out of range: layer 1 has heads 0-3\."):
        model.score(PAIRS, mi.Mask("decoder<-doc", heads=["h1.4"]))


# Hooks and methods


@pytest.mark.parametrize("one_module", [False, True])
def test_the_embeddings_are_those_of_the_encoder_alone(one_module: bool) -> None:
    hf = rerankers.generator()
    if one_module:  # as after a change of the vocabulary: encoder and decoder call one module
        hf.set_input_embeddings(hf.shared)
    model = mi.load(hf, rerankers.t5_tokenizer())
    names = ("blocks.0.hook_resid_pre", "decoder.0.hook_resid_pre")
    batch = model.batch(PAIRS)
    with torch.no_grad():
        score, intact = observe(model, batch, names)
        with model.hooks([("embed.hook_embed", lambda x, hook: x + 1.0)]):
            moved, seen = observe(model, batch, names)
    assert torch.equal(seen[names[0]], intact[names[0]] + 1.0) and not torch.allclose(score, moved, atol=1e-2)
    assert torch.equal(seen[names[1]], intact[names[1]])
    start = hf.shared.weight[0].expand(len(PAIRS), 1, -1)
    assert torch.equal(intact[names[1]], start)


def test_activations_of_the_decoder_add_up(model: TracedReranker) -> None:
    _, cache = model.run_with_cache(PAIRS)
    for layer in range(2):
        at = f"decoder.{layer}."
        mid = cache[f"{at}hook_resid_pre"] + cache[f"{at}hook_attn_out"]
        cross = mid + cache[f"{at}hook_cross_attn_out"]
        for name, value in (
            ("hook_resid_mid", mid),
            ("hook_resid_mid_cross", cross),
            ("hook_mlp_in", cross),
            ("hook_resid_post", cross + cache[f"{at}hook_mlp_out"]),
            ("hook_cross_attn_out", cache[f"{at}cross_attn.hook_result"].sum(2)),
        ):
            assert torch.allclose(cache[at + name], value, atol=1e-4), name
        z = torch.einsum("bhrs,bshd->brhd", cache[f"{at}cross_attn.hook_pattern"], cache[f"{at}cross_attn.hook_v"])
        assert torch.allclose(cache[f"{at}cross_attn.hook_z"], z, atol=1e-5)
        assert (cache[f"{at}attn.hook_pattern"] == 1).all()
    logits = model.hf.lm_head(cache["decoder.ln_final.hook_normalized"] * model.cfg.d_model**-0.5)[:, 0]
    ids = model.tokenizer.convert_tokens_to_ids([FALSE, TRUE])
    assert torch.allclose(cache["head.hook_logits"], logits[:, ids], atol=1e-4)
    assert "decoder.0.attn.hook_q" not in model.hook_dict, "of one position it decides nothing"


def test_ablations_patches_and_sweeps_work(model: TracedReranker) -> None:
    intact = model.score(PAIRS)
    for do in (mi.Ablate("h1.2"), mi.Ablate(["mlp0", "n2.5", "attn1"]), mi.Mask("doc<-query")):
        assert not torch.allclose(model.score(PAIRS, do), intact, atol=1e-3), do
    for fill in (mi.means, mi.samples):
        held = fill(model, PAIRS)
        assert all(name.startswith("blocks.") for name in held.values)
        assert not torch.allclose(model.score(PAIRS, mi.Ablate("h1.2", with_=held)), intact, atol=1e-3)
    do = {"intact": (), "cut": mi.Mask("decoder<-doc"), "head": mi.Ablate("h1.2")}
    table = mi.sweep(model, PAIRS, do)
    for name, some in do.items():
        scores = torch.tensor(table[table.name == name].score.to_numpy())
        assert torch.allclose(scores, model.score(PAIRS, some), atol=1e-5)
    contrast = align(mi.Pair("goldfish", "moon pull the ocean", "q7", "d1"), Tfc1("append"), model.writer)
    rows = patch(model, [contrast], ["h1.2", "resid0", "mlp2"])
    whole = rows[rows.site == "resid0"].iloc[0]
    assert whole.patched == pytest.approx(whole.donor, abs=1e-4) and whole.donor != pytest.approx(whole.base, abs=1e-3)
    donor = mi.record(model, PAIRS, "h1.2")
    assert torch.allclose(model.score(PAIRS, mi.Patch(donor, "h1.2")), intact, atol=1e-5)


def test_attribution_and_conductance_add_up() -> None:
    model = opened("mt5", torch.float64)  # smooth, where T5's MLPs have kinks
    found = conductance(model, PAIRS[:3], units=("resid", "post", "z"))
    assert found.checks.converged.all()
    # what the encoder's last layer writes holds for all that the decoder reads
    for _, flows in found.rows[found.rows.unit == "resid"].groupby("query_id"):
        whole = found.checks[found.checks.query_id == flows.query_id.iloc[0]].delta.iloc[0]
        assert len(flows) == 4 and all(abs(float(flow[0]) - whole) < 0.02 for flow in flows.conductance)
    contrast = align(mi.Pair("goldfish", "moon pull the ocean", "q7", "d1"), Tfc1("append"), model.writer)
    estimates = mi.attribute(model, [contrast], ["h1.2", "mlp2", "resid0"])
    assert estimates.effect.abs().min() > 1e-4


# What is refused


def test_what_cannot_be_a_reranker_is_refused(tmp_path: Path) -> None:
    hf, tokenizer = rerankers.generator(), rerankers.t5_tokenizer()
    with pytest.raises(
        MechirError, match=rf"^'{FALSE}' is no word piece of this tokenizer, .* words=\('{FALSE}', '{TRUE}'\)\.$"
    ):
        mi.load(hf, rerankers.t5_words())
    with pytest.raises(
        MechirError, match=r"^A T5ForConditionalGeneration in memory needs its tokenizer: write mi.load"
    ):
        mi.load(hf)
    with pytest.raises(MechirError, match=r"^'Relevant\?' holds \{query\} 0 times, not once: write e\.g\."):
        mi.load(hf, tokenizer, template="Relevant?")
    with pytest.raises(
        MechirError, match=r"^instruction='Find a fish' has no place in a prompt without roles: write it in"
    ):
        mi.load(hf, tokenizer, instruction="Find a fish")
    classifier = transformers.AutoModelForSequenceClassification.from_config(hf.config)
    with pytest.raises(
        MechirError, match=r"^This is a T5ForSequenceClassification, which mechir cannot open: it opens cla"
    ):
        mi.load(classifier, tokenizer)
    bart = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40, "encoder_attention_heads": 2}
    other = transformers.BartForConditionalGeneration(transformers.BartConfig(**bart, decoder_attention_heads=2))
    with pytest.raises(
        MechirError, match=r"^This is a BartForConditionalGeneration, which mechir cannot open: it opens la"
    ):
        mi.load(other, tokenizer)
    other.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        MechirError, match=r"^This is a BartForConditionalGeneration, which mechir cannot open: it opens la"
    ):
        mi.load(tmp_path)
