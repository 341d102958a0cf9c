"""Methods on rerankers of other structures: sites, attribution, the lens, and whole experiments on both backends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import Tensor

import mechir as mi
from mechir.catalog import all_experiments
from mechir.errors import MechirError
from mechir.methods.conductance import conductance
from mechir.methods.lens import read_depths
from mechir.methods.lexical import query_pieces
from mechir.methods.matching import attention_by_grade, matching_heads
from mechir.methods.soft_tf import term_mass
from mechir.methods.spectra import head_inputs, qk_spectra
from mechir.recorder import observe
from mechir.reranker import Reranker
from tests import models, rerankers
from tests.models import PAIRS, TOY, TOY_MODEL
from tests.test_language_models import opened as opened_language_model
from tests.test_traced import opened

SHARED = ("qwen2", "qwen3", "llama", "gemma2")


@pytest.mark.parametrize("kind", SHARED)
def test_keys_that_heads_share_have_sites_of_their_own(kind: str) -> None:
    model = opened(kind)
    assert model.cfg.n_key_value_heads == 2 and str(mi.KvHead(1, 0, "k")) == "h1.kv0.k"
    donors = [replace(pair, document=" ".join(reversed(pair.document.split()))) for pair in PAIRS]
    recorded = mi.record(model, donors, ["h1.kv0.k", "h1.kv1.v"])
    for site in ("h1.kv0.k", "h1.kv1.v"):
        seen: dict[str, Tensor] = {}
        look = (mi.parse_site(site).hook, lambda x, hook, seen=seen: seen.__setitem__("after", x))
        batch = model.batch(PAIRS)
        intact = observe(model, batch, [mi.parse_site(site).hook])[1][mi.parse_site(site).hook]
        with model.hooks([*mi.Patch(recorded, site).hooks(batch), look]):
            model(batch)
        number = mi.parse_site(site).head
        assert torch.equal(seen["after"][:, :, 1 - number], intact[:, :, 1 - number]), "the other one stays"
        assert not torch.equal(seen["after"][:, :, number], intact[:, :, number])
    message = r"'h1.3.k' is no site of 'in memory', whose 4 heads share 2 of keys and values: write h1.kv1.k, which changes 2 heads"
    with pytest.raises(MechirError, match=message):
        model.score(PAIRS, mi.Patch(mi.record(model, donors, "h1.kv1.k"), "h1.3.k"))
    with pytest.raises(MechirError, match="Head 2 is out of range"):
        mi.patch(model, [mi.Contrast(PAIRS[0], donors[0])], "h1.kv2.k")
    with pytest.raises(
        MechirError, match=r"'h1.kv1.k' is no site of 'in memory', whose heads have .* own: write h1.1.k"
    ):
        mi.patch(opened("modernbert"), [mi.Contrast(PAIRS[0], donors[0])], "h1.kv1.k")


@pytest.mark.parametrize("kind", ["modernbert", "qwen3", "llama"])
def test_attribution_of_queries_and_keys_is_that_of_the_softmax(kind: str) -> None:
    """With a z that the score is linear in, the fix is exact: as patching all queries or keys of the last layer is."""
    model = opened(kind, torch.float64)
    donors = [replace(pair, document=" ".join(reversed(pair.document.split()))) for pair in PAIRS]
    contrasts = [
        mi.Contrast(pair, donor) for pair, donor in zip(PAIRS, donors, strict=True) if pair.document != donor.document
    ]
    shared = "h0.kv1.k" if model.cfg.n_key_value_heads else "h0.1.k"
    rows = mi.attribute(model, contrasts, ["h0.1.q", shared], at=["all", "doc"])
    batch = model.batch([contrast.base for contrast in contrasts])
    step = ("hook_full_embed", lambda x, hook: x.detach().requires_grad_())
    for name in ("h0.1.q", shared):
        with torch.enable_grad(), model.hooks([step]):
            score, values = observe(model, batch, ["blocks.0.attn.hook_z"])
            (gradient,) = torch.autograd.grad(score.sum(), list(values.values()))
        recorded = mi.record(model, [contrast.donor for contrast in contrasts], name)
        with model.hooks(mi.Patch(recorded, name).hooks(batch)):
            moved = observe(model, batch, ["blocks.0.attn.hook_z"])[1]["blocks.0.attn.hook_z"]
        expected = (gradient * (moved - values["blocks.0.attn.hook_z"])).flatten(1).sum(1).detach()
        found = rows[(rows["site"] == name) & (rows["at"] == "all")]["effect"].to_numpy()
        assert torch.allclose(torch.tensor(found.copy()), expected, rtol=1e-4, atol=1e-6), name
    with pytest.raises(
        MechirError, match=r"assumes attention scores of q k / sqrt\(d_head\) alone, and 'in memory' has"
    ):
        mi.attribute(opened("deberta-v2"), contrasts, "h0.1.q")


@torch.no_grad()
def test_the_lens_reads_every_depth_with_all_that_comes_after_the_last_layer() -> None:
    model = opened("modernbert")
    rows = read_depths(model, PAIRS)
    read = rows[rows["score"].notna()]
    assert set(read["segment"]) == {"cls"} and len(read) == len(PAIRS) * (2 * model.cfg.n_layers + 1)
    final = read[read["site"] == "resid2.post"]["score"].to_numpy().astype("float32")
    assert torch.allclose(torch.from_numpy(final), model.score(PAIRS), atol=1e-5)
    batch = model.batch(PAIRS)
    _, cache = model.run_with_cache(batch, names_filter="blocks.0.hook_resid_post")
    hf = model.hf
    expected = hf.classifier(hf.head(hf.model.final_norm(cache["resid_post", 0])[:, 0]))[:, 0]
    early = read[read["site"] == "resid0.post"]["score"].to_numpy().astype("float32")
    assert torch.allclose(torch.from_numpy(early), expected, atol=1e-5)
    with pytest.raises(MechirError, match="reads what a decoder writes and no row of the encoder by itself"):
        read_depths(opened("t5"), PAIRS)
    prompt = read_depths(opened("qwen3"), PAIRS)
    assert prompt["score"].notna().sum() == len(read)


OPTIONS: dict[str, dict[str, Any]] = {
    "joint/cut": {"sites": "h0.1,h1.2", "draws": 20},
    "joint/examples": {"heads": "h0.1"},
    "vast2024/pruning": {"draws": 20},
    "vast2025/attention_contrast": {"relevant": 2, "hard": 0, "weak": 0},
    "vast2025/cls_lens": {"relevant": 2},
    "vast2025/layer_sweep": {"cut": "doc<-query"},
}
READ_A_REGISTRY = {"joint/across", "joint/across_models", "joint/overlap"}
BOTH = [
    one
    for one in all_experiments()
    if one.tier is Reranker and one.name not in {*READ_A_REGISTRY, "lu2025/head_to_score"}
]


QUICK = ("chen2024/head_maps", "vast2024/importance", "vast2025/attention_contrast", "vast2025/direction_ablation")


@pytest.fixture(scope="module")
def both() -> list[Any]:
    """Our own forward and the nnsight backend on the same weights."""
    hf = transformers.AutoModelForSequenceClassification.from_pretrained(TOY_MODEL).double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOY_MODEL)
    return [mi.load(hf, tokenizer, backend=backend) for backend in ("own", "nnsight")]


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(one, id=one.name, marks=[] if one.name in QUICK else pytest.mark.slow) for one in BOTH],
)
def test_both_backends_give_the_same_frames(experiment: Any, both: list[Any], tmp_path: Path) -> None:
    small, runs = mi.collection(TOY), []
    for number, model in enumerate(both):
        source: Any = mi.diagnostic("tfc1", small, model=model) if experiment.runs_on == "contrasts" else small
        runs.append(
            mi.run(experiment.name, model, source, registry=tmp_path / str(number), **OPTIONS.get(experiment.name, {}))
        )
    for one, other in ((runs[0].rows, runs[1].rows), (runs[0].summary, runs[1].summary)):
        same_frames(one, other)


def same_frames(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same rows and columns, numbers to rounding; a p by permutation may turn on a tie, and ranks with it."""
    assert one.columns.equals(other.columns) and len(one) == len(other)
    for column in (name for name in one if not str(name).startswith(("p_", "rank"))):
        left, right = one[column], other[column]
        if isinstance(left.dropna().head(1).squeeze(), list | np.ndarray):
            left, right = (pd.Series(np.concatenate(list(side.dropna()))) for side in (left, right))
        pd.testing.assert_series_equal(left, right, rtol=1e-5, atol=1e-7)


def contrasted() -> list[mi.Contrast]:
    donors = [replace(pair, document=" ".join(reversed(pair.document.split()))) for pair in PAIRS]
    both = zip(PAIRS, donors, strict=True)
    return [mi.Contrast(pair, donor) for pair, donor in both if pair.document != donor.document]


@pytest.mark.parametrize("kind", ["modernbert", "qwen3", "llama"])
@torch.no_grad()
def test_a_path_to_the_score_is_what_the_sender_adds(kind: str) -> None:
    """Against Hugging Face's own modules: a change of the last stream, through the final norm and the head."""
    model, contrasts = opened(kind), contrasted()
    base, donor = (model.batch([getattr(contrast, side) for contrast in contrasts]) for side in ("base", "donor"))
    layers = model.hf.base_model.layers
    z: list[Tensor] = []
    o = layers[1].get_submodule(model.layout.o)
    handle = o.register_forward_pre_hook(lambda module, given: z.append(given[0]))
    for batch in (base, donor):
        model.root(**model.readout.arguments(batch)[1])
    handle.remove()
    heads = slice(2 * model.cfg.d_head, 3 * model.cfg.d_head)
    change = (z[1] - z[0])[..., heads] @ o.weight[:, heads].T
    handle = layers[-1].register_forward_hook(lambda module, given, output: output + change)
    expected = model.root(**model.readout.arguments(base)[1]).logits[:, 0]
    handle.remove()
    rows = mi.path_patch(model, contrasts, "h1.2", "score", freeze="heads+mlps")
    assert torch.allclose(torch.tensor(rows["patched"].to_numpy().copy()), expected, atol=2e-5)
    assert float(rows["departure"].max()) < 1e-5 and rows["edge"].unique().tolist() == ["h1.2->score"]


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_where_nothing_looks_anew_a_path_is_a_patch(kind: str) -> None:
    model, contrasts = opened(kind), contrasted()
    last = mi.path_patch(model, contrasts, ["h2.1", "mlp2"], "score")
    patched = mi.patch(model, contrasts, ["h2.1", "mlp2"])
    assert np.allclose(last["effect"], patched["effect"], atol=2e-5)
    inside = mi.path_patch(model, contrasts, ["h0.1", "resid0"], "h1.2.q")
    assert inside["edge"].unique().tolist() == ["h0.1->h1.2.q", "resid0->h1.2.q"] and (inside["effect"].abs() > 0).any()
    whole = mi.path_patch(model, contrasts, "resid0", "h0.2.q")
    assert np.allclose(whole["effect"], mi.patch(model, contrasts, "h0.2.q")["effect"], atol=2e-5), "all of its input"
    into = mi.path_patch(model, contrasts, "resid0", "mlp0")
    assert (into["effect"].abs() > 0).any()
    with pytest.raises(
        MechirError, match=r"ln='frozen' is of norms on the way, and on the way through 'in memory' there"
    ):
        mi.path_patch(model, contrasts, "h0.1", ln="frozen")


def test_paths_and_their_heads_are_refused_where_they_are_no_sum() -> None:
    contrasts = contrasted()
    with pytest.raises(MechirError, match="path_patch needs a stream that is a sum up to the score"):
        mi.path_patch(opened("gemma2"), contrasts, "h0.1")
    with pytest.raises(MechirError, match=r"heads share 2 of keys and values: write h1\.kv0\.k"):
        mi.path_patch(opened("qwen3"), contrasts, "h0.1", "h1.1.k")


@pytest.mark.parametrize("kind", ["modernbert", "llama"])
@torch.no_grad()
def test_w_qk_at_a_distance_gives_the_scores_at_that_distance(kind: str) -> None:
    model = opened(kind, torch.float64)
    batch = model.batch(PAIRS[:1])
    names = ("ln1.hook_normalized", "attn.hook_attn_scores")
    _, cache = model.run_with_cache(batch, names_filter=lambda name: name.endswith(names))
    for distance in (0, 3) if kind == "llama" else (0, 3, -2):
        qk = model.QK_at(distance).AB
        for layer, reader in ((0, 6), (2, 5)):
            x = cache[f"blocks.{layer}.ln1.hook_normalized"][0]
            scores = cache["attn_scores", layer][0, :, reader, reader - distance]
            expected = torch.einsum("d,hde,e->h", x[reader], qk[layer], x[reader - distance]) / model.cfg.d_head**0.5
            assert torch.allclose(scores, expected, atol=1e-5), (distance, layer)  # turned in float32


def test_spectra_are_of_one_distance_where_positions_turn() -> None:
    table = qk_spectra(opened("modernbert"), distance=2, draws=20)
    assert len(table) == 12 and not table["z"].equals(qk_spectra(opened("modernbert"), distance=0, draws=20)["z"])
    for model, distance, message in (
        (opened("modernbert"), None, r"W_QK is another one for each distance: write distance=0, or another number"),
        (mi.load(), 1, "distance=1 is of rotary positions, and 'embedded' has one W_QK for all: leave it out"),
        (opened("qwen3"), 1, "'in memory' puts every query and key through a norm of its own"),
        (opened("gemma2"), 1, "'in memory' does not turn queries and keys by their positions, and it has no W_QK"),
        (opened("deberta-v2"), None, "qk_spectra needs a model that starts at any layer and shows its weights"),
    ):
        with pytest.raises(MechirError, match=message):
            qk_spectra(model, distance=distance)


def test_what_a_causal_mask_hides_is_refused_and_what_is_left_is_ranked() -> None:
    model = opened("llama")
    heads = matching_heads(model, PAIRS, 3)
    rows = attention_by_grade(model, PAIRS)
    assert set(rows["direction"]) & {"query<-doc", "doc<-query"} == {"doc<-query"} and len(set(heads)) == 3
    with pytest.raises(MechirError, match="'query<-doc' cannot happen in 'in memory'"):
        conductance(model, PAIRS[:2], target="h2.1@query<-doc")
    with pytest.raises(MechirError, match="'query<-doc' cannot happen in 'in memory'"):
        term_mass(model, PAIRS, words=8)
    with pytest.raises(
        MechirError, match="head_inputs assumes absolute positions, and 'in memory' has rotary positions"
    ):
        head_inputs(model, PAIRS)
    with pytest.raises(
        MechirError, match=r"cache.decompose_resid adds up .* for this model that is not offered: patch"
    ):
        model.run_with_cache(PAIRS[:1])[1].decompose_resid()


def test_padding_that_a_classifier_would_read_is_refused() -> None:
    hf, tokenizer = rerankers.build("llama"), models.tokenizer("bert")
    hf.config.pad_token_id = 7
    with pytest.raises(MechirError, match="reads its score before padding of id 7, and the tokenizer pads with 0"):
        mi.load(hf, tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(MechirError, match=r"has no padding token: name one as tokenizer\.pad_token"):
        mi.load(hf, tokenizer)


def test_query_pieces_are_those_of_the_prompt() -> None:
    model = opened_language_model()
    pieces = query_pieces(model, PAIRS)
    encoded = model.encode(PAIRS[:1])
    there = encoded.ids[0][encoded.segments[0] == mi.Segment.QUERY.value].tolist()
    assert pieces[pieces["query_id"] == PAIRS[0].query_id]["piece"].tolist() == list(dict.fromkeys(there))


@pytest.mark.parametrize("kind", rerankers.STRUCTURES)
def test_a_sweep_goes_on_from_the_first_layer_that_is_touched(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, begins = opened(kind), []
    resumed = type(model).resumed
    monkeypatch.setattr(type(model), "resumed", lambda self, *given: begins.append(given[-1]) or resumed(self, *given))
    last = {"intact": (), "late": mi.Ablate("h2.1"), "mlp": mi.Ablate("mlp1"), "cut": mi.Mask("doc<-query", layers=[1])}
    do = last | {"early": mi.Ablate("h0.1"), "words": mi.EditEmbedding(2.0)}
    table = mi.sweep(model, PAIRS, do)
    assert set(begins) == {0, 1, 2, 3} and table.attrs["computed"] == "one run for each intervention"
    for name, intervention in do.items():
        scores = torch.tensor(table[table["name"] == name]["score"].to_numpy().copy())
        assert torch.allclose(scores, model.score(PAIRS, intervention), rtol=0, atol=3e-5), name


def test_a_layer_sweep_says_which_direction_cannot_happen() -> None:
    model, small = opened_language_model(), mi.collection(TOY)
    with pytest.raises(
        MechirError, match=r"cut=cls<-cls cannot happen in 'in memory': its pairs have no cls; .* as cut="
    ):
        mi.run("vast2025/layer_sweep", model, small)
