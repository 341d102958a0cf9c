"""Planted models do what their closed form says, and only their circuit matters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from scipy.stats import kendalltau, pearsonr

import mechir as mi
from mechir import planted
from mechir.errors import MechirError
from mechir.planted.design import WORDS

PLANTED = {mi.Head(1, 2), mi.Head(3, 1)}
HEADS = [mi.Head(layer, head) for layer in range(4) for head in range(4)]
SEEDS = range(10)


def bases(model: mi.HookedEncoder, n: int = 200, seed: int = 0) -> list[mi.Pair]:
    return [base for base, _ in planted.pairs(model, n=n, seed=seed)]


def within_queries(pairs: list[mi.Pair], scores: np.ndarray, other: np.ndarray) -> float:
    """Mean Kendall's tau-b over queries; 0 where all scores of a query are tied."""
    frame = pd.DataFrame({"query": [pair.query_id for pair in pairs], "a": scores, "b": other})
    taus = [kendalltau(rows.a, rows.b).statistic for _, rows in frame.groupby("query")]
    return float(np.nan_to_num(taus).mean())


def effects(model: mi.HookedEncoder, pairs: list[mi.Pair], do: Mapping[str, object]) -> pd.Series:
    """Mean absolute change of the score, by name."""
    frame = mi.sweep(model, pairs, {"original": (), **do}).pivot(index=["query_id", "doc_id"], columns="name")["score"]
    return frame.sub(frame["original"], axis=0).abs().mean().drop("original")


def separated(effect: pd.Series, true: Iterable[object]) -> float:
    """The smallest effect of a true site over the largest of any other: above 1 the AUROC is 1."""
    wanted = {str(site) for site in true}
    return float(effect[effect.index.isin(wanted)].min() / effect[~effect.index.isin(wanted)].max())


@pytest.fixture(scope="module", params=[100.0, 3.0, 1.0], ids=lambda c: f"c={c:g}")
def at_c(request: pytest.FixtureRequest) -> planted.PlantedEncoder:
    return planted.bm25(c=request.param, seed=3)


@pytest.fixture(scope="module")
def clear() -> planted.PlantedEncoder:
    return planted.bm25()


@pytest.mark.parametrize(
    ("c", "a", "pearson", "kendall"),
    [
        (100.0, 8.0, 0.99999, 0.995),
        (100.0, 20.0, 0.99999, 0.995),
        (3.0, 8.0, 0.98, 0.90),
        (1.0, 8.0, 0.95, 0.84),
    ],
)
def test_the_score_is_the_closed_form(c: float, a: float, pearson: float, kendall: float) -> None:
    found = []
    for seed in SEEDS:
        model = planted.bm25(c=c, a=a, seed=seed)
        pairs = bases(model, seed=seed)
        scores, wanted = np.asarray(model.score(pairs)), planted.bm25_scores(model, pairs)
        found.append((pearsonr(scores, wanted).statistic, within_queries(pairs, scores, wanted)))
    worst = np.min(found, axis=0)
    assert worst[0] >= pearson and worst[1] >= kendall, worst


def test_the_closed_form_by_hand(clear: planted.PlantedEncoder) -> None:
    idf = clear.design.idf
    pair = mi.Pair("amber the kelp", "the amber the Amber birch")
    wanted = idf["amber"] * 2 / 3.2 / (2 + idf["amber"] + 0.2 + idf["kelp"])
    assert planted.bm25_scores(clear, [pair]).tolist() == pytest.approx([wanted])
    assert float(clear.score([pair])[0]) == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("labels", [1, 2])
def test_hugging_face_computes_the_same(labels: int, tmp_path) -> None:
    model = planted.bm25(labels=labels, c=3.0)
    pairs = bases(model, 20)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    hf = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    read = tokenizer([p.query for p in pairs], [p.document for p in pairs], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = hf.eval()(**read).logits
    wanted = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
    scores = np.asarray(model.score(pairs))
    np.testing.assert_allclose(scores, wanted.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.asarray(mi.load(tmp_path).score(pairs)), scores, atol=1e-6)
    np.testing.assert_allclose(scores, np.asarray(planted.bm25(c=3.0).score(pairs)), atol=2e-6)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_head_ablation_finds_the_planted_heads(at_c: planted.PlantedEncoder, ablation: str) -> None:
    pairs = bases(at_c, 60)
    with_ = {"zero": lambda *_: None, "mean": mi.means, "resample": mi.samples}[ablation](at_c, pairs)
    effect = effects(at_c, pairs, {str(head): mi.Ablate(head, with_=with_) for head in HEADS})
    margin = separated(effect, PLANTED)
    assert margin > (1000 if at_c.design.c == 100 else 5), effect.sort_values()


@pytest.mark.parametrize("counterfactual", ["tf", "query"])
def test_only_the_true_sites_and_ports_carry_the_counterfactual(at_c, counterfactual: str) -> None:
    truth = planted.truth(at_c, counterfactual)
    pairs = planted.pairs(at_c, n=20, counterfactual=counterfactual)
    base, donor = at_c.batch([b for b, _ in pairs]), at_c.batch([d for _, d in pairs])
    intact = at_c(base)
    with torch.no_grad():
        _, cache = at_c.run_with_cache(donor)

    def effect(hook: str, head: int | None = None) -> float:
        def patch(x: torch.Tensor, hook: object) -> torch.Tensor:
            out = x.clone()
            where = ... if head is None else (slice(None), slice(None), head)
            out[where] = cache[hook.name][:, : x.shape[1]][where]
            return out

        with at_c.hooks([(hook, patch)]):
            return float((at_c(base) - intact).abs().mean())

    sites = {mlp: effect(mlp.hook) for mlp in map(mi.Mlp, range(4))}
    sites |= {head: effect(head.hook, head.head) for head in HEADS}
    margin = separated(pd.Series({str(site): value for site, value in sites.items()}), truth.sites)
    ports = {f"{h}.{p}": effect(f"blocks.{h.layer}.attn.hook_{p}", h.head) for h in PLANTED for p in "qkv"}
    into = {str(reader) for edge in truth.edges for reader in edge.readers if isinstance(reader, mi.Head)}
    least = 1000 if at_c.design.c == 100 else 5
    assert margin > least, sites
    assert separated(pd.Series(ports), into) > least / 5, ports


def test_attention_patterns_cannot_tell_the_traps_from_the_head(clear: planted.PlantedEncoder) -> None:
    pairs = bases(clear, 20)
    batch = clear.batch(pairs)
    _, cache = clear.run_with_cache(batch)
    same = (batch.input_ids[:, :, None] == batch.input_ids[:, None]) & batch.at(mi.Segment.QUERY)[:, :, None]
    same &= batch.at(mi.Segment.DOC)[:, None]
    mass = {
        head: float((cache[f"blocks.{head.layer}.attn.hook_pattern"][:, head.head] * same).sum() / same.any(-1).sum())
        for head in HEADS
    }
    traps = planted.truth(clear, "tf").traps
    looks = [mass[head] for head in (mi.Head(1, 2), *traps)]
    assert (
        max(looks) - min(looks)
        < 1e-3
        < min(looks) - max(v for h, v in mass.items() if h not in (*traps, mi.Head(1, 2)))
    )
    effect = effects(clear, pairs, {str(head): mi.Ablate(head) for head in traps})
    assert effect.max() < 1e-4


def test_the_write_trap_reads_like_the_truth(clear: planted.PlantedEncoder) -> None:
    _, cache = clear.run_with_cache(clear.batch(bases(clear, 20)))
    query = clear.batch(bases(clear, 20)).at(mi.Segment.QUERY)
    tf, unread = (
        cache[f"blocks.{layer}.hook_attn_out"][query] @ torch.tensor(clear.design.direction(name)).float() / 2
        for layer, name in ((1, "tf"), (2, "tf_unread"))
    )
    assert float(np.corrcoef(tf.numpy(), unread.numpy())[0, 1]) > 0.999


def test_two_masks_remove_the_signal_and_the_others_keep_it(clear: planted.PlantedEncoder) -> None:
    pairs = bases(clear, 400)  # 20 queries: the tau of noise has a standard deviation of 0.04
    do = {str(direction): mi.Mask(direction) for direction in mi.directions()}
    assert len(do) == 25
    frame = mi.sweep(clear, pairs, {"original": (), **do}).pivot(index="doc_id", columns="name", values="score")
    frame = frame.loc[[pair.doc_id for pair in pairs]]
    tau = {name: within_queries(pairs, frame[name].to_numpy(), frame["original"].to_numpy()) for name in do}
    assert {name for name, value in tau.items() if value <= 0.1} == {"query<-doc", "cls<-query"}, tau
    assert {name for name, value in tau.items() if value < 0.99} == {"query<-doc", "cls<-query"}, tau


def test_without_its_sink_term_frequency_no_longer_saturates(clear: planted.PlantedEncoder) -> None:
    few, many = (mi.Pair("amber", " ".join(["amber"] * n + ["birch"] * (9 - n))) for n in (1, 6))
    cut = mi.Mask("query<-cls", renormalise=True)
    intact, papers, blind = (np.asarray(clear.score([few, many], do=do)) for do in ((), mi.Mask("query<-cls"), cut))
    assert intact[1] / intact[0] == pytest.approx(6 / 7.2 * 2.2, rel=0.02)
    np.testing.assert_allclose(papers, intact, rtol=1e-3)
    assert blind[1] / blind[0] == pytest.approx(1, abs=0.01)
    pairs = bases(clear, 100)
    assert within_queries(pairs, np.asarray(clear.score(pairs, do=cut)), np.asarray(clear.score(pairs))) < 0.9


def test_a_backup_head_hides_the_primary_until_both_are_gone() -> None:
    model = planted.bm25(backup=True)
    pairs = bases(model, 60)
    primary, backup = mi.Ablate("h1.2"), mi.Ablate("h1.0")
    others = {f"h1.2+{head}": (primary, mi.Ablate(head)) for head in HEADS if str(head) not in ("h1.2", "h1.0", "h3.1")}
    effect = effects(model, pairs, {"h1.2": primary, "h1.0": backup, "both": (primary, backup), **others})
    whole = effects(planted.bm25(), pairs, {"h1.2": primary})["h1.2"]
    assert effect["h1.2"] < 1e-3 and effect["h1.0"] < 1e-3
    assert effect["both"] == pytest.approx(whole, rel=0.01) and whole > 0.1
    assert effect[list(others)].max() < 1e-3
    assert planted.truth(model, "tf").sites == {mi.Head(1, 2), mi.Head(1, 0), mi.Mlp(1), mi.Head(3, 1)}


def test_dials_that_must_not_change_the_score(clear: planted.PlantedEncoder) -> None:
    pairs = bases(clear, 20)
    wanted = np.asarray(clear.score(pairs))
    for dials in (
        {"rotate": False},
        {"decoy": None},
        {"idf_scale": 3.0},
        {"n_layers": 5},
        {"d_model": 256, "n_heads": 8},
    ):
        np.testing.assert_allclose(np.asarray(planted.bm25(**dials).score(pairs)), wanted, atol=3e-3)
    assert planted.bm25(d_model=768, n_heads=12, n_layers=12).cfg.d_head == 64
    assert planted.bm25().fingerprint == clear.fingerprint != planted.bm25(seed=1).fingerprint


@pytest.mark.parametrize("seed", range(3))
def test_a_decoy_that_stands_apart_is_a_singular_vector_and_nothing_reads_it(seed: int) -> None:
    model = planted.bm25(idf_scale=5.0, apart=True, seed=seed)
    _, sigma, vt = np.linalg.svd(model.W_E.detach().double().numpy())
    for vector, name in enumerate(("log_idf", "decoy")):
        direction = model.design.direction(name)
        assert abs(vt[vector] @ direction) / np.linalg.norm(direction) > 0.998
    assert sigma[0] > 1.05 * sigma[1] > 1.05**2 * sigma[2]
    pairs = bases(model, 20)
    plain = planted.bm25(idf_scale=5.0, seed=seed)
    np.testing.assert_allclose(np.asarray(model.score(pairs)), np.asarray(plain.score(pairs)), atol=3e-3)
    with pytest.raises(MechirError, match=r"without a decoy none can stand apart: write decoy=0.4"):
        planted.bm25(decoy=None, apart=True)


def test_the_basis_is_hidden_and_its_directions_known(clear: planted.PlantedEncoder) -> None:
    embedded = clear.hf.get_input_embeddings().weight[5:].double().numpy()
    log_idf = np.log([clear.design.idf[word] for word in WORDS])
    np.testing.assert_allclose(embedded @ clear.design.direction("log_idf") / 2, log_idf, atol=1e-6)
    decoy = embedded @ clear.design.direction("decoy") / 2
    assert 0.8 < np.corrcoef(decoy, log_idf)[0, 1] < 0.999
    assert np.abs(embedded.mean(1)).max() < 1e-7
    plain = planted.bm25(rotate=False).hf.get_input_embeddings().weight[5:]
    assert (plain == 0).float().mean() > 0.4 > 0.01 > (torch.tensor(embedded) == 0).float().mean()


@pytest.mark.parametrize("counterfactual", ["tf", "query"])
def test_pairs_differ_in_one_thing(clear: planted.PlantedEncoder, counterfactual: str) -> None:
    made = planted.pairs(clear, n=45, counterfactual=counterfactual, seed=7)
    assert len(made) == 45 and made == planted.pairs(clear, n=45, counterfactual=counterfactual, seed=7)
    assert [base for base, _ in made] != bases(clear, 45)
    assert len({base.query_id for base, _ in made}) == 3
    for base, donor in made:
        query, other = base.query.split(), donor.query.split()
        document, changed = base.document.split(), donor.document.split()
        assert len(query) == len(other) == 4 and len(document) == len(changed)
        gone = {a for a, b in zip(query + document, other + changed, strict=True) if a != b}
        assert len(gone) == 1 and gone < set(query) & set(document)
        assert (query == other) == (counterfactual == "tf") != (document == changed)


def test_truth_names_the_circuit(clear: planted.PlantedEncoder) -> None:
    edges = {name: planted.truth(clear, name).edges for name in ("tf", "query")}
    shared = mi.Circuit(["h1.2->mlp1", "mlp1->h3.1.v", "h3.1->score"])
    assert edges["tf"] == shared | ["resid0->h1.2.k"]
    assert edges["query"] == shared | ["resid0->h1.2.q", "resid0->mlp1", "resid0->h3.1.k"]
    assert str(edges["tf"]) == "resid0->h1.2.k\nh1.2->mlp1\nmlp1->h3.1.v\nh3.1->score"
    backup = planted.truth(planted.bm25(backup=True), "query").edges
    for circuit in (*edges.values(), backup):
        assert mi.Circuit.parse(str(circuit)) == circuit and len(circuit) >= 4
        assert all(mi.parse_edge(str(edge)) == edge for edge in circuit)
    assert planted.truth(clear, "tf").traps == {mi.Head(0, 0), mi.Head(2, 3)}


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"c": 0.0}, "Cannot plant this model: c, a, k1 and sink must be above 0."),
        ({"idf_scale": 0.0}, "Cannot plant this model: idf_scale=0 leaves no IDF to read: write another length."),
        ({"decoy": -1.0}, "Cannot plant this model: decoy is a standard deviation: write 0 or more, or None."),
        ({"labels": 3}, "Cannot plant this model: labels=3: write 1 or 2."),
        (
            {"n_layers": 3},
            "Cannot plant this model: the planted heads are 1.2, 2.3 and 3.1: 4 layers x 4 heads at least.",
        ),
        ({"d_model": 112}, "Cannot plant this model: a head needs 29 dimensions or more."),
    ],
)
def test_dials_that_leave_no_room_are_refused(dials: dict, message: str) -> None:
    with pytest.raises(mi.MechirError) as caught:
        planted.bm25(**dials)
    assert str(caught.value) == message


def test_models_that_are_not_planted_are_refused(clear: planted.PlantedEncoder, tmp_path) -> None:
    clear.hf.save_pretrained(tmp_path)
    clear.tokenizer.save_pretrained(tmp_path)
    for call, message in (
        (
            lambda: planted.truth(mi.load(tmp_path), "tf"),
            f"{tmp_path} is no planted model: make one with planted.bm25().",
        ),
        (lambda: planted.truth(clear, "idf"), "Unknown counterfactual 'idf': write one of tf, query."),
        (lambda: planted.pairs(clear, n=0), "n=0 asks for nothing: write 1 or more."),
        (
            lambda: planted.bm25_scores(clear, [mi.Pair("amber", "an amber")]),
            "The planted model does not know 'an' (pair q/d): take words of planted.pairs.",
        ),
        (
            lambda: clear.design.direction("idf"),
            "There is no feature 'idf': write one of word, stop, cls, sep, seg1, log_idf, decoy, tf, tf_backup, "
            "tf_content, tf_unread, score, ballast, or a word.",
        ),
    ):
        with pytest.raises(mi.MechirError) as caught:
            call()
        assert str(caught.value) == message
