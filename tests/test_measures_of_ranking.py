"""Experiments that rank anew say the ranking by any measure: the values of `mi.evaluate`, by the measure's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.circuit_ranking import ranking_table
from mechir.registry.runs import Run
from tests.models import TOY, TOY_MODEL, nine_queries

MEASURES = ["RR(rel=2)@10", "AP(rel=2)", "nDCG@10"]
EXPERIMENTS: list[tuple[str, dict[str, Any]]] = [
    ("vast2025/direction_ablation", {}),
    ("vast2025/layer_sweep", {"cut": "doc<-query,cls<-all"}),
    ("vast2024/pruning", {"grid": "10", "tol": 1.0, "take": 1}),
]
ON_PAIRS = EXPERIMENTS[:2]


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nine_queries(tmp_path_factory.mktemp("folder") / "toy")


def ran(model: HookedEncoder, nine: Path, name: str, folder: Path, **options: Any) -> Run:
    return mi.run(name, model, mi.collection(nine), registry=folder / "r", **options)


@pytest.mark.parametrize(("name", "options"), ON_PAIRS, ids=[name for name, _ in ON_PAIRS])
def test_the_values_are_those_of_evaluate(
    name: str, options: dict[str, Any], toy: HookedEncoder, nine: Path, tmp_path: Path
) -> None:
    run = ran(toy, nine, name, tmp_path, evaluate=MEASURES, **options)
    table, expected = run.summary, run.evaluate(*MEASURES)
    assert list(table["measure"].unique()) == MEASURES and run.record["identity"]["options"]["evaluate"] == ";".join(
        MEASURES
    )
    cuts = table[~table["name"].str.startswith("random")].merge(
        expected, on=["measure", "name"], suffixes=("", "_known")
    )
    assert len(cuts) == len(expected) > 3 * 3
    np.testing.assert_allclose(cuts["value"], cuts["estimate"], atol=1e-12)
    np.testing.assert_allclose(cuts["change"], cuts["change_known"], atol=1e-12)
    assert (cuts["queries"] == cuts["queries_known"]).all()
    random = table[table["name"] == "random_analytic"]
    assert list(random["measure"]) == ["nDCG@10"]  # the others are known by draws alone
    drawn = table[table["name"] == "random"].set_index("measure")["value"]
    assert drawn["nDCG@10"] == pytest.approx(random["value"].iloc[0], abs=0.02)


@pytest.mark.parametrize(("name", "options"), EXPERIMENTS, ids=[name for name, _ in EXPERIMENTS])
def test_findings_carry_the_name_and_the_chart_shows_the_first(
    name: str, options: dict[str, Any], toy: HookedEncoder, nine: Path, tmp_path: Path
) -> None:
    run = ran(toy, nine, name, tmp_path, evaluate=MEASURES[:2], **options)
    findings = mi.findings(registry=tmp_path / "r", causal=True)
    findings = findings[findings["run_id"] == run.id]
    beside = {"MRR without"} if "pruning" in name else set()
    assert set(findings["measure"]) == {f"{measure} without" for measure in MEASURES[:2]} | beside
    assert set(findings["unit"]) == {text.removesuffix(" without") for text in findings["measure"]}
    roles = {"relevance-neuron"} if "pruning" in name else {""}
    assert set(findings["role"].fillna("")) == roles
    assert "RR(rel=2)@10 with" in (run.path / "chart.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "options"), EXPERIMENTS, ids=[name for name, _ in EXPERIMENTS])
def test_ndcg_is_what_it_was(
    name: str, options: dict[str, Any], toy: HookedEncoder, nine: Path, tmp_path: Path
) -> None:
    """One measure more changes no value of the first, nor its column where it stands alone."""
    alone = ran(toy, nine, name, tmp_path, **options).summary
    both = ran(toy, nine, name, tmp_path, evaluate=["nDCG@10", "P@3"], **options).summary
    first = both[both["measure"] == "nDCG@10"].reset_index(drop=True)
    if "pruning" in name:
        assert list(alone["measure"].unique()) == ["nDCG@10", "MRR"]
        alone = alone[alone["measure"] == "nDCG@10"].reset_index(drop=True)
        column = "value"
    else:
        assert "measure" not in alone and "value" not in alone
        column = "ndcg"
    columns = [value for value in ("queries", "change", "change_low", "change_p") if value in alone]
    pd.testing.assert_frame_equal(alone[columns], first[columns])
    pd.testing.assert_series_equal(alone[column], first["value"], check_names=False)


@pytest.mark.parametrize(("name", "options"), EXPERIMENTS, ids=[name for name, _ in EXPERIMENTS])
def test_a_grade_that_no_document_has_is_refused(
    name: str, options: dict[str, Any], toy: HookedEncoder, tmp_path: Path
) -> None:
    with pytest.raises(MechirError, match=r"evaluate='AP\(rel=9\)': no query has a document of grade 9"):
        mi.run(name, toy, TOY, registry=tmp_path / "r", evaluate="AP(rel=9)", **options)
    assert not (tmp_path / "r").exists()


def test_the_ranking_of_a_circuit_is_measured_as_asked() -> None:
    ids = pd.DataFrame({"query_id": ["a"] * 3 + ["b"] * 3, "doc_id": list("xyz") * 2})
    judged = ids.assign(grade=[2, 0, 1, 0, 2, 0])
    intact, only = np.array([3.0, 2, 1, 1, 3, 2]), np.array([[3.0, 1, 2, 3, 2, 1], [1.0, 2, 3, 1, 3, 2]]).T
    table = ranking_table(ids, intact, only, judged, "RR(rel=2)@10")
    assert table["RR(rel=2)@10"].tolist() == pytest.approx([(1 + 1 / 2) / 2, (1 / 3 + 1) / 2])
    assert table["RR(rel=2)@10_loss"].tolist() == pytest.approx([1 / 4, 1 / 3])
    default = ranking_table(ids, intact, only, judged)
    assert default["kendall"].tolist() == table["kendall"].tolist() and {"ndcg", "ndcg_loss"} <= set(default)
