"""The experiments of Vast et al. on attention and weights, end to end: rows, summary, chart, and the planted verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir import planted, work
from mechir.analyses import AttentionContrast, QkProjection, QkSvd
from mechir.catalog import load_experiment
from mechir.encoder import HookedEncoder
from mechir.estimate import estimate
from mechir.inference import mean_interval, studentised
from mechir.judged_collection import Collection
from mechir.material import Pool
from tests.models import TOY, TOY_MODEL

NAMES = {
    "vast2025/attention_contrast": {},
    "vast2025/qk_svd": {},
    "vast2025/qk_projection": {"strongest": 3, "others": 2, "k": 3, "draws": 3},
}
POOL = Pool(per_grade=2, easy_negatives=2)
LOOK_ALIKE = {"h0.0", "h1.2", "h2.3"}
"""Planted: head 1.2, and the two traps that have its queries and keys."""


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture(scope="module")
def model() -> planted.PlantedEncoder:
    return planted.bm25(c=3.0, seed=3)


@pytest.fixture(scope="module")
def planted_collection(model: planted.PlantedEncoder, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Planted pairs with the grades 3, 0 and 1 as files."""
    folder = tmp_path_factory.mktemp("planted")
    pairs = planted.graded(model, 12, 1)
    queries = {pair.query_id: pair.query for pair in pairs}
    (folder / "queries.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in queries.items()))
    (folder / "docs.tsv").write_text("".join(f"{pair.doc_id}\t{pair.document}\n" for pair in pairs))
    (folder / "qrels.txt").write_text("".join(f"{pair.query_id} 0 {pair.doc_id} {pair.grade}\n" for pair in pairs))
    return mi.collection(folder)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studentised, "RESAMPLES", 500)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("name", NAMES)
def test_each_runs_in_units_and_draws(
    toy: HookedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    collection, experiment = mi.collection(TOY), load_experiment(name).chosen(**NAMES[name])
    monkeypatch.setattr(work, "UNIT", 1)
    stored = mi.run(name, toy, collection, pool=POOL, registry=tmp_path, **NAMES[name])
    assert len(stored.done()) == 6 and len(stored.summary) > 1 and (stored.path / "chart.html").is_file()
    assert (stored.path / "chart.png").read_bytes().startswith(b"\x89PNG")
    told = mi.findings(registry=tmp_path)
    assert (
        set(told["role"]) == {"matching"}
        and len(told) == {"contrast": 16, "svd": 8, "projection": 10}[name.split("_")[-1]]
    )
    assert told["causal"].all() == (name == "vast2025/qk_projection") and told["p_corrected"].between(0, 1).all()
    assert mi.run(experiment, toy, collection, pool=POOL, registry=tmp_path).id == stored.id
    whole = experiment.measure(toy, POOL.pairs(collection))
    keys = [key for key in ("site", "directions", "direction", "query_id", "doc_id", "grade") if key in whole]
    numbers = [key for key in whole if key not in keys and whole[key].dtype.kind == "f"]
    both = [rows.set_index(keys)[numbers].sort_index() for rows in (stored.rows, whole)]
    pd.testing.assert_frame_equal(*both, atol=1e-5)
    estimated = estimate(experiment, toy, POOL.pairs(collection))
    measured = 30 if name == "vast2025/qk_projection" else 60  # one of each query and grade
    assert estimated["pairs"] == measured and estimated["forwards"] >= 60


@pytest.mark.usefixtures("few_draws")
def test_attention_contrast_measures_on_all_queries(
    model: planted.PlantedEncoder, planted_collection: Collection, tmp_path: Path
) -> None:
    stored = mi.run(AttentionContrast(weak=1), model, planted_collection, registry=tmp_path)
    summary = stored.summary
    heads = summary[(summary["direction"] == "query<-doc") & (summary["contrast"] == "relevant - weak")]
    heads = heads.set_index("site")
    assert len(heads) == 16 and heads["rank"].tolist() == list(range(1, 17))
    assert set(heads.index[heads["rank"] <= 3]) == set(heads["estimate"].nlargest(3).index) == LOOK_ALIKE
    assert set(heads.index[heads["p_corrected"] < 0.05]) >= LOOK_ALIKE
    assert (heads["queries"] == 12).all()
    rows = stored.rows[(stored.rows["site"] == "h1.2") & (stored.rows["direction"] == "query<-doc")]
    wide = rows.pivot_table(index="query_id", columns="grade", values="mean_max")
    assert heads.loc["h1.2", "estimate"] == pytest.approx((wide[3] - wide[1]).mean())
    layers = summary[summary["site"].str.startswith("attn")]
    assert len(layers) == 4 * 25 and (layers["queries"] == 12).all()
    readers = layers.groupby(["site", layers["direction"].str.split("<-").str[0]])["estimate"].sum()
    np.testing.assert_allclose(readers, 1, atol=1e-5)
    one = layers[(layers["site"] == "attn1") & (layers["direction"] == "query<-doc")].iloc[0]
    part = stored.rows[(stored.rows["site"] == "attn1") & (stored.rows["direction"] == "query<-doc")]
    per_query = part.groupby("query_id", sort=False)["mass"].mean()
    assert one["estimate"] == pytest.approx(per_query.mean())
    assert (one["low"], one["high"]) == pytest.approx(mean_interval(per_query.to_numpy()))


@pytest.mark.usefixtures("few_draws")
def test_qk_svd_sets_the_weights_against_the_attention(
    model: planted.PlantedEncoder, planted_collection: Collection, tmp_path: Path
) -> None:
    stored = mi.run(QkSvd(weak=1), model, planted_collection, registry=tmp_path)
    summary = stored.summary.set_index("site")
    assert len(summary) == 16 and "sigma" not in summary
    for column in ("trace", "z", "relu", "contrast", "query_prefers_doc"):
        assert set(summary[column].nlargest(3).index) == LOOK_ALIKE, column
    assert (summary["contrast_low"] <= summary["contrast"]).all()
    assert np.isnan(summary.loc["h3.1", "z"]) and summary.loc["h1.2", "contrast_p_corrected"] < 0.05
    assert summary.loc["h1.2", "query_prefers_doc_low"] > 10


def test_qk_projection_clears_the_traps(
    model: planted.PlantedEncoder, planted_collection: Collection, tmp_path: Path
) -> None:
    pool = Pool(limit_queries=10)
    experiment = QkProjection(strongest=5, others=3, k=8, draws=4)
    stored = mi.run(experiment, model, planted_collection, pool=pool, registry=tmp_path)
    summary, rows = stored.summary.set_index("site"), stored.rows
    assert summary["chosen"].tolist() == ["aligned"] * 5 + ["random"] * 3 and (summary["queries"] == 10).all()
    assert set(summary.index[:5]) > LOOK_ALIKE and "h3.1" not in summary.index
    others = summary.drop("h1.2")
    assert summary.loc["h1.2", "score_aligned"] > 10 * others["score_aligned"].max()
    assert summary.loc["h1.2", "score_low"] > 10 * others["score_high"].max()
    assert (summary.loc[list(LOOK_ALIKE), "attention_high"] < 0).all()  # the pattern alone cannot tell them apart
    part = rows[rows["site"] == "h1.2"].assign(size=lambda found: found["score_change"].abs())
    table = part.groupby(["directions", "query_id"])["size"].mean().groupby("directions").mean()
    random = table.drop("aligned")
    assert len(random) == 4 and summary.loc["h1.2", "score_random"] == pytest.approx(random.mean())
    assert summary.loc["h1.2", "score_aligned"] == pytest.approx(table["aligned"])
    assert summary.loc["h1.2", "score_random_max"] == pytest.approx(random.max())
    assert summary.loc["h1.2", "score_p"] == pytest.approx((1 + (random >= table["aligned"]).sum()) / 5)
    assert (summary["attention_p"] >= 1 / 5).all()
    wide = part.groupby(["query_id", "directions"])["size"].mean().unstack()
    excess = wide["aligned"] - wide.drop(columns="aligned").mean(axis=1)
    assert summary.loc["h1.2", "score_excess"] == pytest.approx(excess.mean())
    low, high = summary.loc["h1.2", ["score_excess_low", "score_excess_high"]]
    assert low < excess.mean() < high and (low, high) == pytest.approx(mean_interval(excess.to_numpy()))
    beyond = summary.loc[summary["score_excess_p_corrected"] < 0.05, "score_excess"]
    assert (beyond.abs() < 5e-3).all()  # what moves the score beyond chance moves it by next to nothing
    moved = summary.loc[list(LOOK_ALIKE)]
    assert (moved["attention_excess_p_corrected"] < 0.05).all() and (moved["attention_excess_high"] < 0).all()


def test_qk_projection_takes_so_many_pairs_of_a_query_and_grade(toy: HookedEncoder) -> None:
    pairs = POOL.pairs(mi.collection(TOY))
    for take in (1, 2):
        rows = QkProjection(strongest=1, others=1, k=2, draws=1, take=take).measure(toy, pairs)
        assert len(rows) == 2 * 2 * 6 * 5 * take
        assert (rows.groupby(["site", "directions", "query_id", "grade"]).size() == take).all()
    named = QkProjection(heads=(mi.Head(1, 0), mi.Head(0, 1)), draws=1).measure(toy, pairs[:2])
    assert named["site"].unique().tolist() == ["h0.1", "h1.0"] and set(named["chosen"]) == {"named"}
    drawn = [
        QkProjection(strongest=2, others=3, draws=1, seed=seed).measure(toy, pairs[:2])["site"].unique().tolist()
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 5 and drawn[0][:2] == drawn[2][:2]
