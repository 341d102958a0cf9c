"""Experiments on contrasts: they run, resume, choose on other queries than they measure, and say what they skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from analyses.lu2025.head_to_score import HeadToScore
from mechir import running
from mechir.catalog import all_experiments
from mechir.contrasts import ROLES
from mechir.diagnostic_sets import diagnostic
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.estimate import estimate
from mechir.material import Pool, material_of
from mechir.methods import effects, patching
from mechir.methods.attention import role_attention
from mechir.methods.statistics import spearman
from mechir.perturbed import Diagnostic
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call

ALL_ON_CONTRASTS = [experiment.name for experiment in all_experiments() if experiment.runs_on == "contrasts"]
ON_CONTRASTS = [name for name in ALL_ON_CONTRASTS if not name.startswith("circuits/")]
"""Those on circuits have lines of several kinds, and runs on their way: tests/test_circuit_experiments.py."""


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture(scope="module")
def tfc1() -> Diagnostic:
    return diagnostic("tfc1", TOY, limit_queries=4, per_grade=2)


@pytest.mark.parametrize("name", ON_CONTRASTS)
def test_each_runs_and_draws(toy: HookedEncoder, tfc1: Diagnostic, tmp_path: Path, name: str) -> None:
    stored = running.run(name, toy, tfc1, registry=tmp_path)
    summary, record = stored.summary, stored.record
    assert len(summary) > 1 and (stored.path / "chart.png").is_file() and (stored.path / "chart.html").is_file()
    assert record["identity"]["fillers"] == ["a", "the"] and record["identity"]["collection"].startswith("tfc1 of")
    assert summary["estimate"].notna().all()
    assert {"pairs", "queries", "low", "high"} <= set(summary)
    assert running.run(name, toy, tfc1, registry=tmp_path).id == stored.id
    if name != "polyakov2025/robust_metric":  # which is about metrics, not components
        told = mi.findings(collection=tfc1.collection, registry=tmp_path)
        assert set(told["run_id"]) == {stored.id} and set(told["term"]) <= {"tf", ""} and (told["n_queries"] > 0).all()
        assert (told["measure"].str.contains("tfc1") & told["causal"]).all() != (name == "chen2024/head_attention")
        assert told["p_corrected"].isna().all()  # four queries are too few to test
    assert estimate(name, toy, tfc1.align(toy).contrasts)["forwards"] > 0


def test_there_is_an_experiment_for_every_figure_promised() -> None:
    assert ALL_ON_CONTRASTS == [
        "chen2024/block_maps", "chen2024/head_attention", "chen2024/head_maps", "chen2024/head_positions",
        "circuits/backup", "circuits/edges", "circuits/faithfulness", "circuits/stability",
        "lu2025/block_patching", "lu2025/head_to_heads", "lu2025/head_to_score", "polyakov2025/robust_metric",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["lu2025/head_to_heads", "chen2024/head_positions", "chen2024/head_attention"])
def test_heads_are_chosen_on_queries_that_are_not_measured(
    toy: HookedEncoder, tfc1: Diagnostic, tmp_path: Path, name: str
) -> None:
    said: list[str] = []
    stored = running.run(name, toy, tfc1, registry=tmp_path, say=said.append)
    everything = {base.query_id for base, _ in tfc1.cases}
    measured = set(stored.rows["query_id"])
    assert measured < everything and len(measured) == 2
    option = "receivers" if "receivers" in stored.record["identity"]["options"] else "heads"
    chosen = stored.record["identity"]["options"][option].split(",")
    assert len(chosen) == 4 and said[0] == f"found: {option} {','.join(chosen)}"
    named = running.run(name, toy, tfc1, registry=tmp_path, **{option: chosen[0]})
    assert set(named.rows["query_id"]) == everything


def test_one_query_cannot_choose_and_test(toy: HookedEncoder, tmp_path: Path) -> None:
    with pytest.raises(
        MechirError, match=r"One query cannot both find heads or edges and test them: take more, or name"
    ):
        running.run("lu2025/head_to_heads", toy, diagnostic("tfc1", TOY, limit_queries=1), registry=tmp_path)
    with pytest.raises(MechirError, match=r"Unknown ports='z': the closest are 'v', 'q', 'k'"):
        running.run("lu2025/head_to_heads", toy, diagnostic("tfc1", TOY, limit_queries=2), registry=tmp_path, ports="z")


def test_swapped_and_other_fillers_are_other_runs(toy: HookedEncoder, tmp_path: Path) -> None:
    one = diagnostic("tfc1", TOY, limit_queries=2, per_grade=1)
    ids = {
        running.run("lu2025/head_to_score", toy, chosen, registry=tmp_path).id
        for chosen in (
            one, diagnostic("tfc1", TOY, limit_queries=2, per_grade=1, swap=True),
            diagnostic("tfc1", TOY, limit_queries=2, per_grade=1, fillers=("a",)),
            diagnostic("tfc1-prepend", TOY, limit_queries=2, per_grade=1),
        )
    }  # fmt: skip
    assert len(ids) == 4


def test_what_was_skipped_is_stored_with_its_reason(toy: HookedEncoder, tmp_path: Path) -> None:
    replaced = diagnostic("tfc1-replace", TOY, limit_queries=3)
    stored = running.run("lu2025/head_to_score", toy, replaced, registry=tmp_path)
    assert stored.record["skipped"] == len(stored.skipped) > 0
    assert stored.skipped["reason"].str.contains("its document does not hold").all()
    assert not set(stored.skipped["doc_id"]) & set(stored.rows["doc_id"])


def test_pairs_and_contrasts_are_not_confused(toy: HookedEncoder, tfc1: Diagnostic, tmp_path: Path) -> None:
    with pytest.raises(
        MechirError, match=r"'vast2025/direction_ablation' runs on pairs, not on contrasts: give a coll"
    ):
        running.run("vast2025/direction_ablation", toy, tfc1, registry=tmp_path)
    with pytest.raises(MechirError, match=r"runs on contrasts: give a diagnostic set such as diagnostic\('tfc1'\)"):
        material_of(HeadToScore(), toy, mi.collection(TOY), Pool())
    with pytest.raises(MechirError, match=r"A diagnostic set is sampled when it is made: write diagnostic\(..., limit"):
        running.run("lu2025/head_to_score", toy, tfc1, pool=Pool(limit_queries=1), registry=tmp_path)


def test_the_command_line_runs_a_diagnostic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("run", "lu2025/head_to_score", "--registry", str(tmp_path))
    code, out, _ = call(capsys, *common, "--diagnostic", "tfc1-replace", "--limit-queries", "3", "--filler", "a")
    assert code == 0 and "contrasts" in out and "pairs gave no contrast, e.g.: Pair " in out
    for arguments, message in (
        (("--diagnostic", "tfc9"), "Unknown diagnostic 'tfc9': the closest are"),
        (("--data", str(tmp_path / "none")), "There is no directory"),
        (("--data", str(tmp_path), "--collection", str(TOY)), "--data reads a published set and --collection"),
        (("--data", str(tmp_path)), "holds no 'stmc1_qids_perturbation.csv'"),
        (("--filler", "goldfish tank"), "The filler 'goldfish tank' is"),
        (("--freeze", "all", "--limit-queries", "1"), "Unknown --freeze 'all': the closest are 'heads+mlps', 'heads'"),
    ):
        code, out, err = call(capsys, *common, "--model", str(TOY_MODEL), *arguments, defaults="--data" in arguments)
        assert (code, out) == (2, "") and message in err, err


def test_attention_over_roles_sums_to_one_and_is_the_mean_of_the_pattern(toy: HookedEncoder, tfc1: Diagnostic) -> None:
    contrasts = tfc1.align(toy, "a").contrasts
    rows = role_attention(toy, contrasts, ["h0.1", "h1.0"])
    sums = rows.groupby(["site", "reader", "query_id", "doc_id"])[["base", "donor"]].sum()
    assert np.allclose(sums, 1, atol=1e-5)
    one = contrasts[0]
    _, cache = toy.run_with_cache(one.donor, names_filter="blocks.0.attn.hook_pattern")
    found = rows[(rows.site == "h0.1") & (rows.reader == "cls") & (rows.source == "sep") & (rows.doc_id == one.doc_id)]
    pattern = cache["blocks.0.attn.hook_pattern"][0, 1, 0]
    separators = toy.batch(one.donor).at(mi.Segment.SEP1 | mi.Segment.SEP2)[0]
    assert found["donor"].item() == pytest.approx(float(pattern[separators].sum()), abs=1e-6)
    assert set(rows["source"]) <= set(ROLES)
    with pytest.raises(MechirError, match=r"'mlp0' has no attention: write heads, such as h8.1"):
        role_attention(toy, contrasts, ["mlp0"])  # type: ignore[list-item]


def test_thirds_are_of_each_query_s_own_pool() -> None:
    scores = {"q0": [5.0, 4.0, 3.0, 2.0, 1.0, 0.0], "q1": [50.0, 40.0, 30.0]}
    rows = pd.DataFrame(
        [(q, f"d{k}", "a", s) for q, own in scores.items() for k, s in enumerate(own)],
        columns=["query_id", "doc_id", "filler", "base"],
    )
    found = effects.thirds(pd.concat([rows, rows], ignore_index=True))
    wanted = ["top", "top", "middle", "middle", "bottom", "bottom", "top", "middle", "bottom"]
    assert found.tolist() == wanted * 2


def test_the_largest_heads_are_large_whatever_their_sign() -> None:
    rows = pd.DataFrame({"site": ["a", "b", "c"] * 2, "query_id": ["q", "q", "q", "r", "r", "r"]})
    rows["effect"] = [1.0, -3.0, 5.0, 1.0, -3.0, -5.0]  # c cancels over queries
    assert patching.largest(rows, "site", 2) == ["b", "a"]


def test_spearman_s_interval_resamples_queries() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=200)
    query = np.repeat(np.arange(20), 10)
    rho, low, high = spearman(x, x + generator.normal(size=200), query)
    assert low < rho < high and 0.4 < rho < 0.9
    one_query = spearman(x, x, np.zeros(200))
    assert one_query[0] == pytest.approx(1) and np.isnan(one_query[1:]).all()
