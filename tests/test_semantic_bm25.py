"""The semantic BM25: its features against the patterns, its baselines, and a planted model that it explains."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from mechir.analyses.lu2025 import semantic_bm25 as module

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import lexical
from mechir.methods import semantic_bm25 as semantic
from mechir.segments import Segment

TEXTS = [
    mi.Pair("how do goldfish grow in the cold river", "a goldfish grows in the water of a tall tank", "q0", "d0", 1),
    mi.Pair("why does the ocean rise in the cold", "the moon pulls the ocean and the tide", "q1", "d1", 0),
    mi.Pair("bread", "bread rises in the oven", "q2", "d2", 0),
]


@pytest.fixture(scope="module")
def rows(tiny: HookedEncoder) -> pd.DataFrame:
    return semantic.lexical_features(tiny, TEXTS, lexical.singular_direction(tiny), heads=["h0.1", "h2.3"])


@torch.no_grad()
def test_pooled_features_are_sums_over_the_query(tiny: HookedEncoder, rows: pd.DataFrame) -> None:
    direction = lexical.singular_direction(tiny)
    for pair, row in zip(TEXTS, rows.itertuples(), strict=True):
        batch = tiny.batch(pair)
        _, cache = tiny.run_with_cache(batch)
        query, document = (batch.at(segment)[0] for segment in (Segment.QUERY, Segment.DOC))
        along = direction.coordinates(tiny.W_E[batch.input_ids[0]].double())[query, 0]
        assert row.idf == pytest.approx(float(along.sum()), abs=1e-6)
        assert row.score == pytest.approx(float(tiny.score([pair])), abs=1e-5)
        for place, (layer, head) in enumerate((x, y) for x in range(3) for y in range(4)):
            mass = cache[f"blocks.{layer}.attn.hook_pattern"][0, head][query][:, document].sum(1).double()
            assert row.mass[place] == pytest.approx(float(mass.sum()), abs=1e-5)
            assert row.product[place] == pytest.approx(float((along * mass).sum()), abs=1e-5)
        ids = batch.input_ids[0]
        assert row.tf == [int((ids[document] == piece).sum()) for piece in ids[query]]
        assert row.length == int(document.sum())


@torch.no_grad()
def test_the_papers_design_and_its_stale_index(tiny: HookedEncoder, rows: pd.DataFrame) -> None:
    assert rows["score5"].notna().tolist() == [True, True, False] and rows["design5"].iloc[2] == []
    pair, row = TEXTS[0], rows.iloc[0]
    short = mi.Pair("how do goldfish grow in", pair.document)
    batch = tiny.batch(short)
    _, cache = tiny.run_with_cache(batch)
    assert row["score5"] == pytest.approx(float(tiny.score([short])), abs=1e-5)
    query = batch.at(Segment.QUERY)[0]
    along = lexical.singular_direction(tiny).coordinates(tiny.W_E[batch.input_ids[0]].double())[query, 0]
    document = batch.at(Segment.DOC)[0].nonzero().flatten()
    cut = len(tiny.tokenizer(pair.query, add_special_tokens=False)["input_ids"]) - 5
    stale = [*document[cut:].tolist(), int(document[-1]) + 1]  # begins too late, and ends with the last SEP
    patterns = [cache["blocks.0.attn.hook_pattern"][0, 1], cache["blocks.2.attn.hook_pattern"][0, 3]]
    for name, places in (("design5", document.tolist()), ("stale5", stale)):
        mass = torch.stack([pattern[query][:, places].sum(1) for pattern in patterns], 1).double()
        expected = torch.cat([along[:, None], mass, along[:, None] * mass], 1).flatten()
        assert len(row[name]) == 5 * (1 + 2 * 2)
        assert np.allclose(row[name], expected, atol=1e-5)


def test_bm25_is_the_formula(rows: pd.DataFrame) -> None:
    idf = {piece: 1 + 0.1 * place for place, piece in enumerate(sorted({p for one in rows["pieces"] for p in one}))}
    found = semantic.bm25_scores(rows, idf, k1=1.2, b=0.5, average=8.0)
    for row, score in zip(rows.itertuples(), found, strict=True):
        norm = 1.2 * (0.5 + 0.5 * row.length / 8.0)
        expected = sum(idf.get(p, 0) * tf * 2.2 / (tf + norm) for p, tf in zip(row.pieces, row.tf, strict=True))
        assert score == pytest.approx(expected)
    # The limit of a small k1, whatever b: a term that is there counts its IDF, one that is not counts nothing.
    limit = semantic.bm25_scores(rows, idf, k1=0.0, b=0.5, average=8.0)
    assert rows["tf"].map(lambda tf: 0 in tf).any() and rows["tf"].map(max).max() > 0
    for row, score in zip(rows.itertuples(), limit, strict=True):
        assert score == sum(idf[p] for p, tf in zip(row.pieces, row.tf, strict=True) if tf)
    assert limit == pytest.approx(semantic.bm25_scores(rows, idf, k1=1e-9, b=1.0, average=8.0))
    made, tenth = synthetic(), {1: 0.1, 2: 0.7}
    some = semantic.bm25_scores(made, tenth, k1=0.0, b=0.0, average=8.0)
    exact = {0.0, 0.1, 0.7, 0.1 + 0.7}  # documents with the same terms are tied to the last digit
    assert set(some) == exact


def synthetic(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    tf = rng.integers(0, 6, (n, 2))
    return pd.DataFrame(
        {
            "doc_id": [f"d{k}" for k in range(n)],
            "query_id": [f"q{k // 10}" for k in range(n)],
            "pieces": [[1, 2]] * n,
            "tf": tf.tolist(),
            "length": rng.integers(5, 50, n),
        }
    )


@pytest.mark.parametrize(
    ("k1", "b", "note"),
    [
        (0.9, 0.75, "k1 0.9, b 0.75, tuned on the training queries"),
        (0.05, 0.4, "k1 0.05, b 0.4, tuned on the training queries"),
        (0.0, 0.0, "k1 0, without tf and length, tuned on the training queries; k1 at the edge of the grid"),
        (3.0, 0.5, "k1 3, b 0.5, tuned on the training queries; k1 at the edge of the grid"),
        (1.5, 0.0, "k1 1.5, b 0, tuned on the training queries; b at the edge of the grid"),
        (3.0, 1.0, "k1 3, b 1, tuned on the training queries; k1 and b at the edge of the grid"),
    ],
)
def test_tuning_finds_the_parameters_that_made_the_target(k1: float, b: float, note: str) -> None:
    rows, idf = synthetic(), {1: 1.0, 2: 2.0}
    average = float(rows["length"].mean())
    target = semantic.bm25_scores(rows, idf, k1=k1, b=b, average=average) * 3 - 1
    train = np.arange(len(rows)) < 30
    tuned = semantic.tuned_bm25(rows, idf, target, train, average=average)
    assert (tuned.k1, tuned.b, tuned.note) == (k1, b, note)
    line = semantic.fitted(tuned.scores[:, None], target, train)
    query = rows["query_id"].to_numpy()[~train]
    told = semantic.quality(tuned.scores[~train], target[~train], query, logits=line[~train])
    assert told["estimate"] == pytest.approx(1) and told["r2"] == pytest.approx(1) and told["rmse"] < 1e-6
    assert told["pairs"] == 30 and told["queries"] == 3 and told["within"] == pytest.approx(1)
    assert semantic.quality(tuned.scores[~train], target[~train], query)["rmse"] > 0.9  # another scale


def test_a_prediction_is_judged_as_it_is() -> None:
    rng = np.random.default_rng(0)
    target, query = rng.normal(size=40), np.repeat([*"abcd"], 10)
    shifted = semantic.quality(2 * target + 5, target, query)  # a line through the test pairs would make it perfect
    assert shifted["estimate"] == pytest.approx(1) and shifted["within"] == pytest.approx(1)
    assert shifted["rmse"] == pytest.approx(np.sqrt(np.mean((target + 5) ** 2)))
    assert shifted["r2"] == pytest.approx(1 - np.mean((target + 5) ** 2) / target.var()) and shifted["r2"] < -10
    raw = -target + rng.normal(size=40)
    told = semantic.quality(raw, target, query, logits=target + 1)
    assert told["rmse"] == pytest.approx(1) and told["r2"] == pytest.approx(1 - 1 / target.var())
    assert told["estimate"] == pytest.approx(np.corrcoef(raw, target)[0, 1]) and told["estimate"] < 0
    assert told["spearman"] < 0 and told["within"] < 0


def test_models_and_baselines_are_fitted_on_training_queries_alone() -> None:
    """The errors in the experiment's table: of the fit's own predictions, and of BM25 by a line of training pairs."""
    rng, made = np.random.default_rng(0), synthetic(120)
    train, query = np.arange(120) < 80, made["query_id"].to_numpy()
    made["idf"], made["length"] = rng.normal(size=120), 10
    made["mass"], made["product"] = rng.normal(size=(120, 4)).tolist(), rng.normal(size=(120, 4)).tolist()
    target = rng.normal(size=120) + made["tf"].map(sum).to_numpy() + 2 * ~train  # the test queries lie higher
    counts = lexical.Counts({1: 1.0, 2: 2.0}, 10.0, 120)
    told = module._baselines(made, counts, target, train, query) + module._models(made, [0, 1], target, train, query)
    found = pd.DataFrame(told).set_index("model")
    simple = {"TF": made["tf"].map(sum), "IDF": made["tf"].map(lambda tf: (tf[0] > 0) + 2 * (tf[1] > 0))}
    for name, values in simple.items():
        slope, start = np.polyfit(values[train], target[train], 1)
        wrong = start + slope * values[~train] - target[~train]
        assert found.loc[name, "rmse"] == pytest.approx(np.sqrt((wrong**2).mean()))
        assert found.loc[name, "r2"] == pytest.approx(1 - (wrong**2).mean() / target[~train].var())
        assert found.loc[name, "estimate"] == pytest.approx(np.corrcoef(values[~train], target[~train])[0, 1])
    own = semantic.fitted(semantic.pooled(made, [0, 1]), target, train)[~train] - target[~train]
    assert found.loc["semantic BM25", "rmse"] == pytest.approx(np.sqrt((own**2).mean()))
    assert found.loc["BM25 tuned", "rmse"] > 1.5 and "tuned on the training queries" in found.loc["BM25 tuned", "note"]


def test_fit_sees_the_training_pairs_alone() -> None:
    rng = np.random.default_rng(0)
    features, train = rng.normal(size=(40, 3)), np.arange(40) < 25
    target = features @ [1.0, -2.0, 0.5] + 3
    assert np.allclose(semantic.fitted(features, target, train), target)
    spoiled = np.where(train, target, 1e6)
    assert np.allclose(semantic.fitted(features, spoiled, train), target)


def test_quality_of_nothing_is_nothing() -> None:
    target, query = np.arange(8.0), np.repeat(["a", "b"], 4)
    told = semantic.quality(np.zeros(8), target, query)
    assert told["estimate"] == 0 and told["r2"] <= 0 and np.isnan(told["within"]) and np.isnan(told["spearman"])
    alone = semantic.quality(target, target, np.repeat("a", 8))
    assert alone["estimate"] == pytest.approx(1) and np.isnan(alone["low"])


def test_unknown_features_are_refused(rows: pd.DataFrame) -> None:
    assert semantic.pooled(rows, [0, 5]).shape == (3, 5) and semantic.pooled(rows, [0, 5], "idf").shape == (3, 1)
    with pytest.raises(MechirError, match=r"Unknown features 'tf': write some of idf,soft_tf,product."):
        semantic.pooled(rows, [0], "tf")


def test_a_planted_score_is_explained_by_idf_times_soft_tf() -> None:
    model = mi.planted.bm25(a=20.0)
    pairs = [base for base, _ in mi.planted.pairs(model, n=120)]
    feature = model.design.direction("log_idf")
    direction = mi.Subspace("log IDF", *(torch.from_numpy(x)[None] for x in (feature / 2, feature)), torch.zeros(128))
    rows = semantic.lexical_features(model, pairs, direction, exponential=True)
    query = rows["query_id"].to_numpy()
    idf = np.array([sum(model.design.idf[word] for word in pair.query.split()) for pair in pairs])
    target = rows["score"].to_numpy() * (model.design.sink + idf)
    train = np.isin(query, sorted(set(query))[:4])
    matching = semantic.pooled(rows, [1 * model.cfg.n_heads + 2], "product")
    told = semantic.quality(semantic.fitted(matching, target, train)[~train], target[~train], query[~train])
    assert told["estimate"] >= 0.99 and told["within"] >= 0.99 and told["r2"] >= 0.95
    other = semantic.fitted(semantic.pooled(rows, [5], "product"), target, train)
    assert abs(semantic.quality(other[~train], target[~train], query[~train])["estimate"]) < 0.9
