"""Soft-TF: the texts, the masses, and a saturation curve that finds the planted k1."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import soft_tf
from mechir.planted.design import STOP_WORDS
from tests.models import PAIRS


def test_texts_of_one_dose_have_one_length_and_the_word_so_often() -> None:
    made = list(soft_tf.dosed(PAIRS[:2], filler="of", words=6))
    assert len(made) == 2 * (len(soft_tf.COUNTS) + len(soft_tf.TIMES))
    for kind, dose, term, pair in made:
        original = next(one for one in PAIRS if pair.doc_id[:2] == one.doc_id)
        text, before = pair.document.split(), original.document.split()[:6]
        assert term in original.query.split() and pair.query == original.query and text[: len(before)] == before
        if kind == "tf":
            assert len(text) == len(before) + 8
            assert text[len(before) :].count(term) == dose == int(pair.doc_id.split("+")[1])
        else:
            assert len(text) == len(before) * dose
            assert dose == int(pair.doc_id.split("x")[1])


@torch.no_grad()
def test_masses_are_those_of_the_patterns(tiny: HookedEncoder) -> None:
    rows = soft_tf.term_mass(tiny, PAIRS[:3], words=5)
    texts = {pair.doc_id: (term, pair) for _, _, term, pair in soft_tf.dosed(PAIRS[:3], words=5)}
    for doc_id, (term, pair) in list(texts.items())[::4]:
        batch = tiny.batch(pair)
        _, cache = tiny.run_with_cache(batch)
        pieces = torch.tensor(tiny.tokenizer(term, add_special_tokens=False)["input_ids"])
        own = torch.isin(batch.input_ids[0], pieces)
        readers = own & batch.at(mi.Segment.QUERY)[0]
        document = batch.at(mi.Segment.DOC)[0]
        for site, layer, head in (("h0.1", 0, 1), ("h2.3", 2, 3)):
            row = rows[(rows["doc_id"] == doc_id) & (rows["site"] == site)].iloc[0]
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head][readers]
            assert row["mass"] == pytest.approx(float(pattern[:, document].sum(1).mean()), abs=1e-5)
            assert row["same"] == pytest.approx(float(pattern[:, document & own].sum(1).mean()), abs=1e-5)
            assert row["tf"] == int(((batch.input_ids[0] == pieces[0]) & document).sum())
            assert row["length"] == int(document.sum())


def test_the_curve_finds_what_made_the_points() -> None:
    rng = np.random.default_rng(0)
    tf, query = np.tile([0.0, 1, 2, 3, 5, 8], 20), np.repeat([f"q{k}" for k in range(20)], 6)
    exact = soft_tf.saturation(tf, 0.1 + 0.7 * tf / (tf + 2.0), query)
    assert exact["k1"] == pytest.approx(2.0, rel=1e-4) and exact["r2"] == pytest.approx(1)
    assert (exact["base"], exact["size"]) == (pytest.approx(0.1, abs=1e-5), pytest.approx(0.7, abs=1e-4))
    noisy = soft_tf.saturation(tf, 0.1 + 0.7 * tf / (tf + 2.0) + rng.normal(0, 0.05, len(tf)), query)
    assert noisy["k1_low"] < 2.0 < noisy["k1_high"] and 0.5 < noisy["r2"] < 1
    line = soft_tf.saturation(tf, 0.01 * tf, query)
    assert line["k1"] > 500  # no saturation is seen
    flat = soft_tf.saturation(tf, np.full(len(tf), 0.3), query)
    assert flat["size"] == pytest.approx(0, abs=1e-9) and np.isnan(flat["r2"])
    with pytest.raises(MechirError, match=r"A saturation curve needs three different term frequencies or more."):
        soft_tf.saturation(np.array([0.0, 1, 1]), np.array([0.0, 1, 1]), np.array(["a", "b", "c"]))


@pytest.mark.parametrize("k1", [1.2, 0.6])
def test_the_planted_k1_is_found_to_one_percent(k1: float) -> None:
    model = mi.planted.bm25(a=20.0, k1=k1)
    pairs = [base for base, _ in mi.planted.pairs(model, n=40)][::4]
    rows = soft_tf.term_mass(model, pairs, filler="delta", words=24)
    chosen = rows[(rows["site"] == "h1.2") & (rows["kind"] == "tf") & ~rows["term"].isin(STOP_WORDS)]
    found = soft_tf.saturation(
        chosen["tf"].to_numpy(float), chosen["mass"].to_numpy(float), chosen["query_id"].to_numpy()
    )
    assert found["k1"] == pytest.approx(k1, rel=0.01) and found["size"] == pytest.approx(1, rel=0.01)
    assert found["base"] == pytest.approx(0, abs=0.01)


def test_similarity_is_a_correlation_over_cells(tiny: HookedEncoder) -> None:
    rows = soft_tf.similarity_correlation(tiny, PAIRS)
    unit = torch.nn.functional.normalize(tiny.W_E, dim=1)
    for pair in PAIRS[:3]:
        batch = tiny.batch(pair)
        with torch.no_grad():
            _, cache = tiny.run_with_cache(batch)
        query, document = (batch.at(segment)[0] for segment in (mi.Segment.QUERY, mi.Segment.DOC))
        likeness = unit[batch.input_ids[0, query]] @ unit[batch.input_ids[0, document]].T
        pattern = cache["blocks.1.attn.hook_pattern"][0, 2][query][:, document]
        expected = np.corrcoef(likeness.flatten(), pattern.flatten())[0, 1]
        row = rows[(rows["doc_id"] == pair.doc_id) & (rows["site"] == "h1.2")].iloc[0]
        assert row["r"] == pytest.approx(expected, abs=1e-4)


def test_the_planted_matching_head_looks_at_likeness() -> None:
    model = mi.planted.bm25()
    rows = soft_tf.similarity_correlation(model, [base for base, _ in mi.planted.pairs(model, n=10)])
    means = rows.groupby("site")["r"].mean()
    assert means["h1.2"] > 0.4 and means.drop(["h1.2", "h0.0", "h2.3"]).abs().max() < 0.4
