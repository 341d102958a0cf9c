"""The experiments on circuits, run as a user runs them, on a toy model and contrasts of term frequency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir.circuits import parse_edge
from mechir.errors import MechirError
from mechir.methods.edge_graph import Graph
from mechir.methods.selection import circuits_of
from mechir.perturbed import Diagnostic
from mechir.registry.runs import Run, runs
from tests.models import TOY_MODEL, nine_queries

MODEL = mi.load(TOY_MODEL)


@pytest.fixture(scope="module")
def tfc1(tmp_path_factory: pytest.TempPathFactory) -> Diagnostic:
    collection = mi.collection(nine_queries(tmp_path_factory.mktemp("circuits") / "nine"))
    return mi.diagnostic("tfc1", collection, limit_queries=8, per_grade=1, fillers=("a",))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def edges_run(tfc1: Diagnostic, registry: Path) -> Run:
    return mi.run("circuits/edges", MODEL, tfc1, registry=registry, sample=30)


@pytest.fixture(scope="module")
def faithful(tfc1: Diagnostic, registry: Path) -> Run:
    return mi.run("circuits/faithfulness", MODEL, tfc1, registry=registry, draws=5)


def test_edges_are_those_of_the_function_with_exact_effects_beside(edges_run: Run, tfc1: Diagnostic) -> None:
    contrasts, summary = tfc1.align(MODEL).contrasts, edges_run.summary
    lines = summary[summary["kind"] == "edge"].set_index("edge")
    scores = mi.edges(MODEL, contrasts)
    assert len(lines) == len(scores) == len(Graph.of(MODEL))
    expected = pd.Series(scores.estimate, [str(edge) for edge in scores.graph.edges])
    np.testing.assert_allclose(lines["estimate"], expected[lines.index], atol=1e-6)
    drawn = lines["exact"].dropna()
    exact = mi.edges(MODEL, contrasts, method="exact", only=list(drawn.index))
    columns = exact.graph.columns(map(parse_edge, drawn.index))
    assert len(drawn) == 30
    np.testing.assert_allclose(drawn, exact.estimate[columns], atol=1e-6)
    r = summary.set_index("measure").loc["r"]
    assert r["estimate"] == pytest.approx(np.corrcoef(lines.loc[drawn.index, "estimate"], drawn)[0, 1], abs=1e-6)
    assert r["low"] <= r["estimate"] <= r["high"] and r["edges"] == 30


def test_edges_on_some_queries_are_scored_on_these_alone(tfc1: Diagnostic, registry: Path) -> None:
    some = mi.run("circuits/edges", MODEL, tfc1, registry=registry, sample=0, every=2)
    queries = list(dict.fromkeys(contrast.query_id for contrast in tfc1.align(MODEL).contrasts))
    assert set(some.rows["query_id"]) == set(queries[::2])
    assert some.summary["exact"].isna().all() and set(some.summary["kind"]) == {"edge"}


def test_circuits_are_found_and_run_on_disjoint_queries(faithful: Run, registry: Path) -> None:
    edges_of = next(run for run in runs(registry) if run.record["identity"]["options"].get("every") == 2)
    assert not set(edges_of.rows["query_id"]) & set(faithful.rows["query_id"])


def test_what_circuits_reach_is_that_of_the_function(faithful: Run, tfc1: Diagnostic) -> None:
    sizes = faithful.summary[faithful.summary["kind"] == "size"]
    empty, sizes = sizes.iloc[0], sizes.iloc[1:].reset_index(drop=True)
    assert (empty["size"], empty["estimate"], empty["without"]) == (0, 0, 1) and empty["kendall"] < 1
    scored = pd.read_parquet(faithful.path / "scored.parquet")
    circuits = circuits_of(scored)
    tested = [c for c in tfc1.align(MODEL).contrasts if c.query_id in set(faithful.rows["query_id"])]
    for complement, prefix in (
        (False, ("estimate", "low", "high")),
        (True, ("without", "without_low", "without_high")),
    ):
        lines = mi.faithfulness(MODEL, tested, circuits, complement=complement, min_gap=0.01)
        np.testing.assert_allclose(sizes[list(prefix)], lines[["estimate", "low", "high"]], atol=2e-3)
        assert (sizes["left_out"] == lines["left_out"]).all()
    whole = sizes.iloc[-1]
    assert whole["size"] == len(Graph.of(MODEL)) and whole["estimate"] == pytest.approx(1, abs=1e-3)
    assert whole["without"] == pytest.approx(0, abs=1e-3) and np.isnan(whole["random"])
    assert whole["kendall"] == pytest.approx(1) and whole["ndcg_loss"] == pytest.approx(0)
    others = sizes[sizes["share"] <= 0.2]
    assert sizes.loc[sizes["share"] > 0.2, "random"].isna().all() and len(others) == len(sizes) - 2
    assert (others["random_low"] <= others["random"]).all() and (others["random"] <= others["random_high"]).all()
    assert others["p_draws"].between(1 / 6, 1).all()
    curve = faithful.summary[faithful.summary["kind"] == "curve"].set_index("measure")
    assert curve.loc["cmd", "estimate"] == pytest.approx(mi.curve(sizes, len(Graph.of(MODEL))).cmd, abs=1e-6)


def test_the_largest_edges_have_their_exact_effect(faithful: Run, tfc1: Diagnostic) -> None:
    rows = faithful.rows
    lines = faithful.summary[faithful.summary["kind"] == "edge"].reset_index(drop=True)
    gaps = (rows["base"] - rows["donor"]).abs().groupby(rows["query_id"], sort=False).idxmax()
    keys = set(rows.loc[gaps, ["query_id", "doc_id"]].itertuples(index=False, name=None))
    some = [c for c in tfc1.align(MODEL).contrasts if (c.query_id, c.doc_id) in keys]
    first = lines["edge"][:5].tolist()
    exact = mi.edges(MODEL, some, method="exact", only=first)
    columns = exact.graph.columns(map(parse_edge, first))
    np.testing.assert_allclose(lines["exact"][:5], exact.values[:, columns].mean(0), atol=1e-6)
    assert lines["exact"].notna().sum() == 40


def test_stability_is_summarised_from_the_rows_of_edges(edges_run: Run, tfc1: Diagnostic, registry: Path) -> None:
    run = mi.run("circuits/stability", MODEL, tfc1, registry=registry, sample=30)
    assert run.record["rows_of"] == edges_run.id
    sizes = run.summary[run.summary["kind"] == "size"]
    assert (sizes["estimate"].iloc[:-1] < 1).all() and sizes["estimate"].iloc[-1] == 1
    assert (sizes["estimate"] >= sizes["chance"] - 1e-9).all()
    often = run.summary[run.summary["kind"] == "edge"]["estimate"]
    assert often.is_monotonic_decreasing and often.sum() == pytest.approx(round(0.01 * len(Graph.of(MODEL))), abs=1e-3)


@pytest.mark.parametrize("name", ["edges", "faithfulness", "stability"])
def test_charts_are_drawn(name: str, edges_run: Run, faithful: Run, tfc1: Diagnostic, registry: Path) -> None:
    run = {"edges": edges_run, "faithfulness": faithful}.get(name)
    run = run or mi.run("circuits/stability", MODEL, tfc1, registry=registry, sample=30)
    spec = (run.path / "chart.json").read_text()
    assert ('"bind"' in spec) == (name != "stability")  # the slider
    assert (run.path / "chart.png").stat().st_size > 20_000


def test_backups_are_those_of_the_function(tfc1: Diagnostic, registry: Path) -> None:
    run = mi.run("circuits/backup", MODEL, tfc1, registry=registry, top=1)
    tested = [c for c in tfc1.align(MODEL).contrasts if c.query_id in set(run.rows["query_id"])]
    (primary,) = run.summary["primary"].unique()
    expected = mi.backups(MODEL, tested, primary).frame.set_index("candidate")
    lines = run.summary.set_index("candidate").loc[expected.index]
    columns = ["removal", "single", "conditional", "estimate", "growth", "low", "high"]
    np.testing.assert_allclose(lines[columns], expected[columns], atol=1e-6)
    assert run.summary["growth"].is_monotonic_decreasing and (run.path / "chart.png").stat().st_size > 20_000
    stated = mi.findings(registry=registry, measure=f"effect gained without {primary}, tfc1")
    assert len(stated) == len(expected)


def test_one_query_cannot_find_and_test(tmp_path: Path, tfc1: Diagnostic) -> None:
    one = mi.diagnostic("tfc1", tfc1.perturbed, limit_queries=1, per_grade=1, fillers=("a",))
    with pytest.raises(MechirError, match="One query cannot both find heads or edges and test them"):
        mi.run("circuits/faithfulness", MODEL, one, registry=tmp_path)
