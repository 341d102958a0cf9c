"""Soft-TF: the texts, the masses, and a saturation curve that finds the planted k1."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

import mechir as mi
from mechir.catalog import load_experiment
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.experiment import Inputs
from mechir.material import Pool
from mechir.methods import soft_tf
from mechir.methods.statistics import resampled
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


def points(k1: float, texts: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Texts that agree in k1 alone: each has a base, a size and a term frequency of its own; four to a query."""
    rng = np.random.default_rng(0)
    text = np.repeat(np.arange(texts), len(soft_tf.COUNTS))
    tf = np.tile(np.array(soft_tf.COUNTS, dtype=float), texts) + rng.integers(0, 3, texts)[text]
    mass = rng.normal(0.2, 0.3, texts)[text] + rng.normal(0.5, 0.3, texts)[text] * tf / (tf + k1)
    return tf, mass, text // 4, text


def test_the_curve_finds_the_parameters_behind_the_points() -> None:
    tf, _, query, text = points(2.0)
    exact = soft_tf.saturation(tf, 0.1 + 0.7 * tf / (tf + 2.0), query, text)
    assert exact["k1"] == pytest.approx(2.0, rel=1e-4) and exact["r2"] == pytest.approx(1)
    assert (exact["base"], exact["size"]) == (pytest.approx(0.1, abs=1e-5), pytest.approx(0.7, abs=1e-4))
    noise = np.random.default_rng(1).normal(0, 0.05, len(tf))
    noisy = soft_tf.saturation(tf, 0.1 + 0.7 * tf / (tf + 2.0) + noise, query, text)
    assert noisy["k1_low"] < 2.0 < noisy["k1_high"] and 0.5 < noisy["r2"] < 1
    line = soft_tf.saturation(tf, 0.01 * tf, query, text)
    assert line["k1"] > 500 and line["k1_low"] == line["k1_high"] == pytest.approx(1000)  # no saturation is seen
    flat = soft_tf.saturation(tf, np.full(len(tf), 0.3), query, text)
    assert flat["size"] == pytest.approx(0, abs=1e-9) and np.isnan(flat["r2"])


@pytest.mark.parametrize("k1", [0.45, 3.0])
def test_texts_that_agree_in_nothing_but_k1_show_it(k1: float) -> None:
    tf, mass, query, text = points(k1)
    found = soft_tf.saturation(tf, mass, query, text)
    assert found["k1"] == pytest.approx(k1, rel=1e-4) and found["r2"] == pytest.approx(1)
    assert found["k1_low"] == pytest.approx(k1, rel=1e-3) and found["k1_high"] == pytest.approx(k1, rel=1e-3)
    lines = [np.polyfit(tf[text == one] / (tf[text == one] + k1), mass[text == one], 1) for one in range(80)]
    size, base = np.mean(lines, axis=0)
    assert found["size"] == pytest.approx(size, rel=1e-4) and found["base"] == pytest.approx(base, rel=1e-3)
    order = np.random.default_rng(2).permutation(len(tf))
    names = np.array([f"t{one}" for one in text])
    again = soft_tf.saturation(tf[order], mass[order], query[order], names[order])
    assert again == pytest.approx(found, rel=1e-6)
    # Bases that lie far apart are no part of what the curve explains.
    wavy = mass + np.random.default_rng(3).normal(0, 0.1, len(tf))
    apart = soft_tf.saturation(tf, wavy + 10 * (text % 2), query, text)
    assert apart["r2"] == pytest.approx(soft_tf.saturation(tf, wavy, query, text)["r2"]) and apart["r2"] < 0.9


def test_the_interval_is_that_of_fits_to_resampled_queries() -> None:
    tf, mass, query, text = points(1.0, texts=24)
    mass = mass + np.random.default_rng(1).normal(0, 0.1, len(tf))
    found = soft_tf.saturation(tf, mass, query, text, draws=40, seed=5)
    drawn = []
    for some in resampled(query, 40, 5):
        copies = np.cumsum(np.concatenate([[0], np.diff(text[some]) != 0]))  # a query drawn twice counts twice
        drawn.append(soft_tf.saturation(tf[some], mass[some], query[some], copies, draws=1)["k1"])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found["k1_low"], found["k1_high"]) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))
    alone = soft_tf.saturation(tf[:6], mass[:6], query[:6], text[:6])
    assert np.isnan(alone["k1_low"]) and np.isfinite(alone["k1"])


def test_a_text_of_two_frequencies_is_left_out() -> None:
    tf, mass, query, text = points(2.0)
    found = soft_tf.saturation(tf, mass, query, text)
    few = np.concatenate([tf, [0.0, 1, 1, 1]])
    more = (
        np.concatenate([one, added]) for one, added in ((mass, [0.0, 9, 8, 7]), (query, [99] * 4), (text, [99] * 4))
    )
    assert soft_tf.saturation(few, *more) == found
    said = r"A saturation curve needs a text with three different term frequencies or more\."
    with pytest.raises(MechirError, match=said):  # three frequencies, but no text has them all
        soft_tf.saturation(np.array([0.0, 1, 1, 2]), np.arange(4.0), np.zeros(4), np.array([0, 0, 1, 1]))


def test_many_heads_are_fitted_in_seconds() -> None:
    tf, mass, query, text = points(1.0, texts=108)
    begun = time.process_time()
    for _ in range(12):
        soft_tf.saturation(tf, mass, query, text)
    assert (time.process_time() - begun) * 72 / 12 < 10


def test_a_text_is_its_query_and_document(tiny: HookedEncoder) -> None:
    pairs = [
        mi.Pair("cold river", "the river is cold", query, doc) for query, doc in (("a", "d+1"), ("a", "d"), ("b", "d"))
    ]
    rows = soft_tf.term_mass(tiny, pairs, words=5)
    rows = rows[(rows["kind"] == "tf") & (rows["site"] == "h0.0")]
    text = soft_tf.text_of(rows)
    told = {(row.query_id, row.doc_id.rsplit("+", 1)[0]): one for row, one in zip(rows.itertuples(), text, strict=True)}
    assert len(rows) == 18 and sorted(told.values()) == [0, 1, 2]


def test_frequencies_are_counted_in_one_text(tiny: HookedEncoder, tmp_path: Path) -> None:
    assert soft_tf.frequencies(tiny, PAIRS[:2], words=5) == len(soft_tf.COUNTS)
    cut = [mi.Pair("river", "tank " * 500, "q", "d"), mi.Pair("river", "river " * 500, "q", "e")]
    assert soft_tf.frequencies(tiny, cut, words=500) == 1  # 0 in one text, many in the other
    kind, inputs = load_experiment("lu2025/soft_tf"), Inputs(tiny, cut, None, Pool(), tmp_path)
    asked = kind.chosen(heads="h0.1", words=5)
    assert asked.check(inputs) == asked
    said = r"words=500 leaves no room for the words that are appended: write a smaller number\."
    with pytest.raises(MechirError, match=said):
        kind.chosen(heads="h0.1", words=500).check(inputs)


@pytest.mark.parametrize("k1", [1.2, 0.6])
def test_the_planted_k1_is_found_to_one_percent(k1: float) -> None:
    model = mi.planted.bm25(a=20.0, k1=k1)
    pairs = [base for base, _ in mi.planted.pairs(model, n=40)][::4]
    rows = soft_tf.term_mass(model, pairs, filler="delta", words=24)
    chosen = rows[(rows["site"] == "h1.2") & (rows["kind"] == "tf") & ~rows["term"].isin(STOP_WORDS)]
    tf, mass = (chosen[name].to_numpy(float) for name in ("tf", "mass"))
    found = soft_tf.saturation(tf, mass, chosen["query_id"].to_numpy(), soft_tf.text_of(chosen))
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
