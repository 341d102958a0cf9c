"""The CLS lens: its end is the model's score, it finds the planted aggregator, and probes are tested on other queries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import planted
from mechir.analyses import ClsLens
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.estimate import estimate
from mechir.inference import studentised
from mechir.methods import lens
from mechir.segments import FIVE
from tests.models import FAMILIES, PAIRS, TOY, TOY_MODEL, Checkpoints


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested elsewhere."""
    monkeypatch.setattr(studentised, "RESAMPLES", 500)


@pytest.fixture(scope="module")
def circuit() -> pd.DataFrame:
    """Rows of the planted model; the better half of each query's documents is relevant."""
    model = planted.bm25()
    pairs = [base for base, _ in planted.pairs(model, n=160)]
    scores = pd.Series(planted.bm25_scores(model, pairs))
    above = scores > scores.groupby([pair.query_id for pair in pairs]).transform("median")
    return lens.read_depths(model, [replace(pair, grade=int(grade)) for pair, grade in zip(pairs, above, strict=True)])


def drawn(n_queries: int, signal: float, *, d: int = 12, seed: int = 0) -> pd.DataFrame:
    """Rows of one site and segment: noise, each query in a place of its own, and a direction that relevance moves."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n_queries * 10, d)) + 5 * np.repeat(generator.normal(size=(n_queries, d)), 10, axis=0)
    grade = np.tile([0, 1], n_queries * 5)
    x[:, 3] += signal * grade
    return pd.DataFrame(
        {
            "query_id": np.repeat([f"q{k}" for k in range(n_queries)], 10),
            "doc_id": [f"d{k}" for k in range(len(x))],
            "grade": grade, "site": "resid0", "depth": 0.0, "segment": "cls", "score": x[:, 3], "p": 0.5,
            "mean": list(x.astype(np.float32)),
        }
    )  # fmt: skip


@pytest.mark.parametrize(("family", "labels"), [*((family, 1) for family in FAMILIES), ("bert", 2)])
def test_the_last_point_is_the_score(checkpoints: Checkpoints, family: str, labels: int) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family, labels=labels))
    rows = lens.read_depths(model, PAIRS)
    last = rows[(rows["site"] == "resid2.post") & (rows["segment"] == "cls")]
    assert last["doc_id"].tolist() == [pair.doc_id for pair in PAIRS]
    np.testing.assert_allclose(last["score"], model.score(PAIRS), atol=1e-5)
    np.testing.assert_allclose(last["p"], model.score(PAIRS, readout="p"), atol=1e-5)
    assert list(dict.fromkeys(rows["site"])) == [
        "resid0", "resid0.mid", "resid0.post", "resid1.mid", "resid1.post", "resid2.mid", "resid2.post",
    ]  # fmt: skip
    assert list(dict.fromkeys(rows["depth"])) == [0, 0.5, 1, 1.5, 2, 2.5, 3]


@torch.no_grad()
def test_the_means_and_the_heads_are_those_of_the_stream(tiny: HookedEncoder) -> None:
    rows = lens.read_depths(tiny, PAIRS)
    batch = tiny.batch(PAIRS)
    _, cache = tiny.run_with_cache(batch, head_row=False)
    for site in ("resid0", "resid1.mid", "resid1.post"):
        x = cache[mi.parse_site(site).hook]
        own = rows[rows["site"] == site]
        wanted = tiny.head.score(tiny.logits(x))
        np.testing.assert_allclose(own.loc[own["segment"] == "cls", "score"], wanted, atol=1e-5)
        for segment in FIVE:
            part = own[own["segment"] == str(segment)]
            if site.endswith("mid"):
                assert part["mean"].isna().all() and len(part) == (len(PAIRS) if segment == FIVE[0] else 0)
                continue
            means = [x[k, batch.at(segment)[k]].mean(0).numpy() for k in range(len(PAIRS))]
            np.testing.assert_allclose(np.stack(part["mean"].to_list()), means, atol=1e-5)
            assert part["mean"].iloc[0].dtype == np.float32
            assert part["score"].isna().all() == (segment != FIVE[0])


def test_hooks_of_the_head_are_left_as_they_were(tiny: HookedEncoder) -> None:
    lens.read_depths(tiny, PAIRS[:2])
    assert not any(point.has_hooks() for point in tiny.hook_points())


def test_the_planted_gap_appears_with_the_aggregator(circuit: pd.DataFrame) -> None:
    table = lens.gathered(circuit)
    gap = table[(table["of"] == lens.GAP) & (table["measure"] == "score")].set_index("site")
    before = gap[gap["depth"] <= 3]
    assert len(before) == 7 and before["estimate"].abs().max() < 1e-5
    after = gap.loc[["resid3.mid", "resid3.post"]]
    assert (after["low"] > 0.1).all() and np.ptp(after["estimate"]) < 1e-3
    areas = table[table["measure"] == "auroc"].set_index("site")["estimate"]
    assert areas["resid3.mid"] == 1 and (areas[before.index] == 0.5).all()


def test_probes_read_the_planted_query_from_layer_1_on(circuit: pd.DataFrame) -> None:
    table = lens.readable(circuit).set_index(["of", "measure", "site"])
    query = table.loc["query"]
    for site in ("resid1.post", "resid2.post", "resid3.post"):
        assert query.loc[("auroc", site), "low"] > 0.83 > query.loc[("control", site), "high"]
        assert query.loc[("selectivity", site), "low"] > 0.3
    assert query.loc[("auroc", "resid0"), "estimate"] == 0.5  # the same words, whatever the document
    assert query.loc[("auroc", "resid0.post"), "low"] < query.loc[("control", "resid0.post"), "high"]
    cls = table.loc["cls"]
    assert cls.loc[("auroc", "resid3.post"), "low"] > 0.85
    assert cls.loc[("auroc", "resid2.post"), "low"] < cls.loc[("control", "resid2.post"), "high"]


def test_the_gap_by_hand() -> None:
    rows = drawn(2, 0.0).iloc[:12].assign(grade=[3, 1, 0, 0, -1, 0, 0, 0, 0, 0, 0, 2])
    rows["score"] = [5.0, 3.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 3.0, 0.0, 4.0]
    table = lens.gathered(rows)
    score = table[table["measure"] == "score"].set_index("of")
    assert score["queries"].to_dict() == {
        "grade -1": 1, "grade 0": 2, "grade 1": 1, "grade 2": 1, "grade 3": 1, lens.GAP: 2,
    }  # fmt: skip
    assert score.loc["grade 0", "estimate"] == pytest.approx((9 / 7 + 0) / 2)
    assert score.loc[lens.GAP, "estimate"] == pytest.approx(((4 - 9 / 8) + 4) / 2)
    area = table[table["measure"] == "auroc"]
    assert area["estimate"].item() == pytest.approx((15.5 / 16 + 1) / 2)  # one tie
    three = lens.gathered(rows, relevant=3).set_index(["measure", "of"])
    assert three.loc[("score", lens.GAP), ["queries", "estimate"]].tolist() == [1, pytest.approx(5 - 12 / 9)]


def test_probes_find_a_planted_signal_and_nothing_else() -> None:
    strong = lens.readable(drawn(12, 4.0)).set_index("measure")
    assert strong.loc["auroc", "low"] > 0.9 and strong.loc["auroc", "queries"] == 12
    difference = strong.loc["auroc", "estimate"] - strong.loc["control", "estimate"]
    assert strong.loc["selectivity", "estimate"] == pytest.approx(difference)
    assert strong.loc["control", "estimate"] == pytest.approx(0.5, abs=0.06)
    inside = []
    for seed in range(20):
        none = lens.readable(drawn(12, 0.0, seed=seed)).set_index("measure")
        inside.append(none.loc["control", "low"] < none.loc["auroc", "estimate"] < none.loc["control", "high"])
    assert sum(inside) >= 17


def test_no_query_trains_the_probe_that_reads_it() -> None:
    rows = drawn(10, 4.0)
    x, grade = np.stack(rows["mean"].to_list()).astype(float), rows["grade"].to_numpy()
    query = np.repeat(np.arange(10), 10)
    labels = np.where(grade, 1.0, -1.0)[:, None]
    said = lens._held_out(x, labels, query, 1.0)
    turned = np.where(query[:, None] == 7, -labels, labels)
    other = lens._held_out(x, turned, query, 1.0)
    same_fold = query % lens.FOLDS == 7 % lens.FOLDS
    np.testing.assert_array_equal(said[same_fold], other[same_fold])
    assert (said[~same_fold] != other[~same_fold]).all()


def test_labels_are_permuted_within_queries() -> None:
    truth, query = np.arange(60) % 3 == 0, np.repeat(np.arange(5), 12)
    labels = lens._labels(truth, query, 8, 0)
    assert (labels[:, 0] == np.where(truth, 1, -1)).all()
    assert all((labels[query == one].sum(0) == -4).all() for one in range(5))
    assert len(np.unique(labels, axis=1).T) == 9


def test_features_constant_within_queries_are_not_read() -> None:
    rows = drawn(6, 4.0)
    means = rows.groupby("query_id")["mean"].transform("first")
    noise = np.random.default_rng(0).normal(scale=1e-7, size=(len(rows), 12)).astype(np.float32)
    noise[:, 0] += 1e-6 * rows["grade"].to_numpy()
    flat = rows.assign(mean=[mean + own for mean, own in zip(means, noise, strict=True)])
    assert set(lens.readable(flat).set_index("measure")["estimate"]) == {0.5, 0.0}


def test_the_experiment_runs_and_draws(tmp_path: Path) -> None:
    toy, collection = mi.load(TOY_MODEL), mi.collection(TOY)
    stored = mi.run(ClsLens(draws=5), toy, collection, registry=tmp_path)
    summary = stored.summary
    assert (stored.path / "chart.png").is_file() and summary["estimate"].notna().all()
    assert list(summary) == ["site", "depth", "measure", "of", "queries", "estimate", "low", "high"]
    assert {"score", "p", "auroc", "control", "selectivity"} == set(summary["measure"])
    pairs = collection.pairs()
    gathered = lens.gathered(lens.read_depths(toy, pairs))
    pd.testing.assert_frame_equal(summary.iloc[: len(gathered)], gathered, atol=1e-5)
    assert estimate(ClsLens, toy, pairs)["forwards"] >= len(pairs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: lens.read_depths(model, [mi.Pair("bread", "bread rises")]),
            "Pairs without a grade are neither relevant nor not: give judged pairs.",
        ),
        (
            lambda model: lens.gathered(lens.read_depths(model, PAIRS), relevant=3),
            "No pair has grade 3 or more: the grades are [0, 1, 2]; write relevant= with one that parts them.",
        ),
        (
            lambda model: lens.readable(drawn(4, 1.0), relevant=0),
            "Every pair has grade 0 or more: the grades are [0, 1]; write relevant= with one that parts them.",
        ),
        (
            lambda model: lens.readable(drawn(3, 1.0)),
            "3 queries have pairs on both sides of grade 1: a probe needs 4, some to train on and some to test.",
        ),
        (
            lambda model: lens.readable(drawn(4, 1.0), draws=4),
            "draws=4 is too few for a control: write 5 or more.",
        ),
    ],
)  # fmt: skip
def test_impossible_readings_are_refused(tiny: HookedEncoder, call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MechirError) as caught:
        call(tiny)
    assert str(caught.value) == message
