"""The experiments of Vast et al. 2024, end to end: rows, summaries, charts, groups, and the planted verdict."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir import planted, work
from mechir.analyses import Importance, Pruning
from mechir.catalog import load_experiment, shown
from mechir.collection_groups import Collections, collections
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.estimate import estimate
from mechir.experiment import Finished
from mechir.inference import mean_interval
from mechir.material import Pool
from mechir.methods import importance, pruning, ranking, schemes
from mechir.methods.walk import Way
from mechir.registry.queries import matching
from mechir.registry.runs import Run
from mechir.shard import Shard
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call

QUICK: dict[str, Any] = {"tol": 1.0, "take": 1, "relevant": "2"}
HEADS = [f"h{layer}.{head}" for layer in range(2) for head in range(4)]
POOL = Pool(per_grade=2, limit_queries=4)


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Collections:
    other = tmp_path_factory.mktemp("collections") / "other"
    shutil.copytree(TOY, other)
    lines = (other / "queries.tsv").read_text().splitlines()
    (other / "queries.tsv").write_text("\n".join(f"{line} again" for line in lines) + "\n")
    return collections([f"in:{TOY}", f"out:{other}"])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


def run(name: str, model: HookedEncoder, source: Any, registry: Path, **options: Any) -> Run:
    stored = mi.run(f"vast2024/{name}", model, source, pool=POOL, registry=registry, **QUICK, **options)
    assert (stored.path / "chart.html").is_file()
    assert (stored.path / "chart.png").read_bytes().startswith(b"\x89PNG")
    return stored


def test_importance_is_told_for_each_collection_and_label(
    toy: HookedEncoder, both: Collections, registry: Path
) -> None:
    summary = run("importance", toy, both, registry).summary
    c = toy.cfg
    assert summary.groupby(["collection", "label"]).size().tolist() == [c.n_layers * (c.d_mlp + c.n_heads)] * 4
    assert summary["unconverged"].isna().all() and (summary["queries"] == 4).all() and (summary["pairs"] == 4).all()
    assert (summary["low"] <= summary["estimate"]).all() and (summary["estimate"] <= summary["high"]).all()
    table = shown("vast2024/importance", summary)
    assert len(table) == 4 * (10 + min(10, c.n_layers * c.n_heads)) and (table["rank"] <= 10).all()
    few = run("importance", toy, both, registry, every=2)
    assert few.record["pairs"] == 8 and few.record["identity"]["options"]["relevant"] == f"{TOY.name}:2,other:2"


def test_pairs_that_do_not_converge_are_named(toy: HookedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = importance.labelled(collections([f"in:{TOY}"]).pairs(limit_queries=2), {TOY.name: 2})
    rows = importance.unit_rows(toy, pairs, units=("z",), way=Way(steps=1, max_steps=1, tol=1e-9))
    told = Importance().summarise(Finished(rows))
    first = [pair for pair in pairs if pair.grade == 1]
    named = told[told["label"] == "relevant"]["unconverged"].unique()
    expected = ", ".join(f"{pair.query_id}/{pair.doc_id}" for pair in first[:3])
    assert named.tolist() == [f"{expected} and {len(first) - 3} more" if len(first) > 3 else expected]


def test_a_margin_is_over_the_query_s_other_pairs(toy: HookedEncoder, registry: Path) -> None:
    stored = run("importance", toy, mi.collection(TOY), registry, target="margin")
    pairs = stored.rows[stored.rows["kind"] == "pair"].set_index(["query_id", "label"])
    scores = run("importance", toy, mi.collection(TOY), registry).rows
    scores = scores[scores["kind"] == "pair"].set_index(["query_id", "label"])["value"]
    for query_id, label in pairs.index:
        other = next(one for one in schemes.LABELS if one != label)
        margin = scores[query_id, label] - scores[query_id, other]
        assert pairs.loc[(query_id, label), "value"] == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-5)


def test_transfer_and_distribution_compute_nothing_again(
    toy: HookedEncoder, both: Collections, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run("importance", toy, both, registry)
    stamps = {file: file.stat().st_mtime_ns for file in first.path.glob("part-*")}
    said: list[str] = []
    transfer = run("transfer", toy, both, registry, say=said.append)
    distribution = run("distribution", toy, both, registry)
    assert not any(line.startswith("unit") for line in said)
    assert {file: file.stat().st_mtime_ns for file in first.path.glob("part-*")} == stamps
    assert not list(transfer.path.glob("part-*")) and transfer.record["rows_of"] == first.id
    pd.testing.assert_frame_equal(transfer.rows, first.rows)
    assert len({first.id, transfer.id, distribution.id}) == 3 and transfer.seconds == first.seconds

    told = transfer.summary
    own = importance.tables(first.rows)
    wide = {
        label: pd.DataFrame({t.collection: pd.Series(t.mean(), t.sites) for t in own if t.label == label})
        for label in schemes.LABELS
    }
    whole = told[told["layer"].isna() & (told["p"] == 0.1) & (told["kind"] == "neuron")]
    names = [TOY.name, "other", "F_all"]
    label = schemes.LABELS[0]
    ranked = schemes.Ranked.of(wide[label], both.groups)
    one = whole[whole["label"] == label].set_index(["first", "second"])
    assert len(one) == 3 + 1 + 2  # pairs of three schemes, the intersection of both groups, two halves
    for k, name in enumerate(names):
        for other in names[k + 1 :]:
            kept = [{site for site in ranked.units(n, 0.1) if site[0] == "n"} for n in (name, other)]
            assert one.loc[(name, other), "share"] == len(kept[0] & kept[1]) / len(kept[0])
    assert one.loc[(TOY.name, "I_all"), "shared"] == one.loc[(TOY.name, "other"), "shared"]
    assert one.loc[(TOY.name, "I_all"), "p_chance"] == pytest.approx(one.loc[(TOY.name, "other"), "p_chance"])
    assert not {"F_in", "F_out"} & {*told["first"], *told["second"]}  # the fusion of one collection is that one
    assert (told["label"] == "both labels").any() and (told["second"] == "other queries").any()
    assert told[told["layer"].notna()]["p"].eq(0.01).all() and told[told["layer"].isna()]["p_corrected"].notna().all()


def test_the_distribution_adds_up(toy: HookedEncoder, both: Collections, registry: Path) -> None:
    first, told = run("importance", toy, both, registry), run("distribution", toy, both, registry).summary
    stream = told[told["kind"] == "resid"]
    sums = stream.groupby(["collection", "label", "layer"])["estimate"].sum().unstack()
    pairs = first.rows[first.rows["kind"] == "pair"]
    delta = pairs.groupby(["collection", "label"])["delta"].mean()
    assert sums.shape == (4, toy.cfg.n_layers + 1)
    np.testing.assert_allclose(sums, np.tile(delta.to_numpy()[:, None], 3), rtol=0.5, atol=0.1)  # tol=1: coarse
    last = stream[(stream["layer"] == toy.cfg.n_layers) & (stream["part"] != "cls")]
    assert (last["estimate"] == 0).all()
    top = importance.importance(first.rows)
    for (collection, label), part in told[told["kind"] == "neuron"].groupby(["collection", "label"]):
        values = top[(top["collection"] == collection) & (top["label"] == label) & (top["kind"] == "neuron")]
        best = values[values["rank"] <= int(0.01 * len(values) + 0.5)]
        assert part["estimate"].sum() == pytest.approx(best["estimate"].sum(), rel=1e-4)
        assert part.groupby("layer")["of"].first().sum() == part["units"].sum() == len(best) > 0


def test_pruning_tests_on_other_queries_and_stores_every_draw(
    toy: HookedEncoder, both: Collections, registry: Path
) -> None:
    stored = run("pruning", toy, both, registry, grid="5", scheme="F_in,out-in", every=2)
    learned = [one for one in (registry / "runs").iterdir() if one.name != stored.id]
    ids = {tuple(sorted(set(Run(one).rows["query_id"]))) for one in learned}
    assert any(not set(stored.rows["query_id"]) & set(one) for one in ids)
    sets = pd.read_parquet(stored.path / "sets.parquet")
    assert sets.groupby(["scheme", "share"]).size().tolist() == [2 * 21] * 2 and sets["name"].is_unique
    rows = stored.rows
    cut = sets[(sets["set"] == "top") & (sets["share"] == 0.05)].iloc[0]
    asked = POOL.pairs(both)
    kept = [pair for pair in asked if pair.query_id in set(rows["query_id"])]
    expected = toy.score(kept, do=mi.Ablate(cut["sites"].split(",")))
    np.testing.assert_allclose(rows[rows["name"] == cut["name"]]["score"], expected, atol=1e-5)
    told = stored.summary
    lines = told[(told["collection"] == "other") & (told["measure"] == "nDCG@10")]
    assert len(lines) == 1 + 2 * 2 * (1 + 20 + 1) and len(told) == 4 * len(lines)
    one = lines[(lines["scheme"] == "F_in") & (lines["share"] == 0.05)]
    for kind in ("top", "bottom"):
        draws = one[(one["like"] == kind) & (one["draw"] >= 0)]["change"]
        mean = one[(one["like"] == kind) & (one["draw"] < 0)]["change"].item()
        end = one[one["set"] == kind].iloc[0]
        assert len(draws) == 20 and mean == pytest.approx(draws.mean())
        assert end["excess"] == pytest.approx(end["change"] - mean)
        assert end["p_draws"] == pytest.approx((1 + (draws <= end["change"] + 1e-12).sum()) / 21)
    assert {group for _, group in told.groupby("collection")["group"].first().items()} == {"in", "out"}
    printed = shown("vast2024/pruning", told)
    assert len(printed) == 4 * (1 + 2 * 4)
    assert printed["like"].value_counts().to_dict() == {"": 4 * 5, "top": 8, "bottom": 8}
    chart = Pruning().chart(told)
    colours = {row["pruned"] for row in next(iter(chart.to_dict()["datasets"].values()))}
    assert colours == {"top", "bottom", "random, like top", "random, like bottom"}
    wide = pd.DataFrame(
        {"a": pd.Series(range(136), [f"n0.{k}" for k in range(64)] + [f"n1.{k}" for k in range(64)] + HEADS)}
    )
    drawn = [
        pruning.pruned_sets(toy, wide.astype(float), {"a": "in"}, ["a"], [0.05], seed=seed).set_index("name")["sites"]
        for seed in (0, 0, 1)
    ]
    assert drawn[0].equals(drawn[1]) and drawn[0]["a 5 % top"] == drawn[2]["a 5 % top"]
    assert (drawn[0] == drawn[2]).mean() < 0.2
    assert Pruning(grid=(1.0, 5.0), draws=20, scheme=("F_in", "out-in")).cost(toy) == 1 + 2 * 2 * (20 + 1) * 2


def test_units_can_be_ranked_by_what_separates_the_labels(toy: HookedEncoder, registry: Path) -> None:
    source = mi.collection(TOY)
    stored = run("pruning", toy, source, registry, grid="10", label="difference", every=2)
    learned = run("importance", toy, source, registry, every=2).summary
    wide = learned.pivot(index="site", columns="label", values="estimate").reindex(learned["site"].unique())
    sets = pd.read_parquet(stored.path / "sets.parquet").set_index("set")
    expected = schemes.top(wide["relevant"] - wide["non-relevant"], 0.1)
    assert sets.loc["top", "sites"].split(",") == expected


def test_units_become_findings(toy: HookedEncoder, both: Collections, registry: Path) -> None:
    learned = run("importance", toy, both, registry)
    told = matching(registry, {"run_id": learned.id})
    heads = told[told["site"].str.startswith("h")]
    assert len(heads) == 2 * 2 * 8 and set(heads["collection"]) == {TOY.name, "other"}
    summary = learned.summary.set_index(["collection", "label", "site"])
    for row in told.itertuples():
        label = row.measure.removeprefix("conductance, ").removesuffix(" documents")
        source = summary.loc[(row.collection, label, row.site)]
        assert (row.value, row.label.split()[1]) == (source["estimate"], str(source["rank"]))
    neurons = told[told["role"] == "relevance-neuron"]
    assert len(neurons) and neurons["site"].str.startswith("n").all() and set(heads["role"]) == {"scoring"}
    pruned = run("pruning", toy, both, registry, grid="5", scheme="F_in,out-in", every=2)
    told = matching(registry, {"run_id": pruned.id})
    assert told["causal"].all() and (told["site"] == "").all() and (told["sign"] == -1).all()
    assert set(told["measure"]) == {"nDCG@10 without", "MRR without"}
    assert set(told["label"]) == {
        f"{end} 5 % of {scheme}" for end in ("top", "bottom") for scheme in ("F_in", "out-in")
    }
    excess = pruned.summary["excess"].dropna().sort_values()
    np.testing.assert_array_equal(told["value"].sort_values(), excess)


def test_matching_heads_are_set_beside_conductance(toy: HookedEncoder, registry: Path) -> None:
    stored = run("matching_heads", toy, mi.collection(TOY), registry)
    told = stored.summary
    heads = told[told["kind"] == "head"].set_index("site")
    assert sorted(heads["rank"]) == sorted(heads["rank_contrast"]) == list(range(1, len(heads) + 1))
    wide = stored.rows.pivot(index="query_id", columns=["label", "site"], values="mean_max")
    contrast = (wide["relevant"] - wide["non-relevant"]).mean()
    np.testing.assert_allclose(heads["contrast"], contrast[heads.index], atol=1e-6)
    three = told[told["k"] == 3].iloc[0]
    first = [set(heads.index[heads[name] <= 3]) for name in ("rank", "rank_contrast")]
    assert three["shared"] == len(first[0] & first[1]) and three["expected"] == pytest.approx(9 / len(heads))
    assert told["rho"].notna().sum() == 1


@pytest.mark.parametrize("name", ["importance", "transfer", "distribution", "pruning", "matching_heads"])
def test_each_says_what_it_costs(toy: HookedEncoder, name: str) -> None:
    pairs = POOL.pairs(mi.collection(TOY))
    experiment = load_experiment(f"vast2024/{name}")
    assert estimate(experiment, toy, pairs)["forwards"] >= 15 * len(pairs)
    assert "sets" not in experiment.options() and "tol" in experiment.options()


def test_shards_fill_the_rows_that_another_experiment_summarises(
    toy: HookedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "UNIT", 1)
    source = mi.collection(TOY)
    asked: dict[str, Any] = {"pool": POOL, "registry": tmp_path} | QUICK
    half = mi.run("vast2024/transfer", toy, source, shard=Shard(0, 2), **asked)
    with pytest.raises(MechirError, match=rf"Run {half.id} is not finished \(2 of 4 units\): start it again"):
        _ = half.summary
    whole = mi.run("vast2024/transfer", toy, source, shard=Shard(1, 2), **asked)
    assert whole.id == half.id and len(whole.summary)


@pytest.mark.parametrize("c", [100.0, 3.0])
def test_without_the_planted_units_the_ranking_is_chance(c: float) -> None:
    model = planted.bm25(c=c)
    pairs = [base for base, _ in planted.pairs(model, n=160)]
    scores = planted.bm25_scores(model, pairs)
    frame = pd.DataFrame(
        {"query_id": [pair.query_id for pair in pairs], "doc_id": [pair.doc_id for pair in pairs], "bm25": scores}
    )
    best = frame.groupby("query_id")["bm25"].rank(ascending=False, method="first") <= 3
    judged = frame[["query_id", "doc_id"]].assign(grade=best.astype(int))
    units = ["h1.2", "h3.1", "n1.0"]
    random, _ = schemes.random_like(units, pruning.sizes(model), 20)
    do = {"original": (), "planted": mi.Ablate(units)} | {str(k): mi.Ablate(one) for k, one in enumerate(random)}
    rows = mi.sweep(model, pairs, do)
    found = {
        name: ranking.ndcg(part, judged).set_index("query_id")["value"]
        for name, part in rows.groupby("name", sort=False)
    }
    chance = ranking.random_ndcg(judged, judged).set_index("query_id")["value"]
    low, high = mean_interval((found["planted"] - chance).to_numpy())
    assert low <= 0 <= high and found["original"].mean() - chance.mean() > 0.3
    worst = min(found[str(k)].mean() for k in range(20))
    assert found["original"].mean() - worst < 0.02


def test_groups_on_the_command_line(toy: HookedEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(TOY, other)
    common = ["--model", str(TOY_MODEL), "--registry", str(tmp_path / "r"), "--limit-queries", "2", "--per-grade", "1"]
    own = ["--tol", "1.0", "--take", "1"]
    code, out, err = call(
        capsys, "run", "vast2024/importance", *common, *own, "--collection", f"in:{TOY}", "--collection", f"out:{other}"
    )
    assert code == 0 and f"on in:{TOY.name}+out:other: 4 queries" in out and "rows; all: " in out, err
    for arguments, said in (
        (
            ["vast2024/importance", "--collection", f"in:{TOY}", "--collection", str(other)],
            "Cannot read the collection",
        ),
        (["vast2025/qk_svd", "--collection", f"in:{TOY}"], "is neither a directory nor an ir_datasets id"),
        (["vast2024/importance", "--collection", str(TOY), *own, "--relevant", "9"], "has no relevant document"),
        (
            ["vast2024/importance", "--collection", str(TOY), *own, "--baseline", "zero"],
            "The baseline 'zero' is refused",
        ),
        (
            ["vast2024/pruning", "--collection", str(TOY), *own, "--scheme", "F_in"],
            "Unknown --scheme 'F_in': the closest are",
        ),
        (["vast2024/pruning", "--collection", str(TOY), *own, "--draws", "3"], "--draws 3 random sets are too few"),
        (
            ["vast2024/pruning", "--collection", str(TOY), *own, "--grid", "200"],
            "--grid 200 is no share: write per cent above 0 and up to 100",
        ),
        (["vast2024/pruning", "--collection", str(TOY), *own, "--grid", "x"], "Cannot read --grid 'x'"),
        (["vast2024/pruning", "--collection", str(TOY), *own, "--label", "good"], "Unknown --label 'good'"),
    ):
        code, out, err = call(capsys, "run", *arguments, *common)
        assert code == 2 and said in err, (arguments, err)


def test_groups_are_refused_where_they_mean_nothing(toy: HookedEncoder, both: Collections, tmp_path: Path) -> None:
    with pytest.raises(MechirError, match=r"'vast2025/qk_svd' takes no groups: give a collection without 'in:'\."):
        mi.run("vast2025/qk_svd", toy, both, registry=tmp_path)
    assert not list(tmp_path.iterdir())
