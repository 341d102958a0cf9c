"""However small the pool, a run is refused before it is written, or finished: summary, chart and findings."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

import mechir as mi
from mechir.catalog import experiments, load_experiment
from mechir.diagnostic_sets import diagnostic
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.inference import studentised
from tests.models import TOY_MODEL, nine_queries

POOLS = {
    "one pair": lambda query, grade: (query, grade) == ("q0", 1),
    "two queries": lambda query, grade: query in ("q0", "q1"),
    "three queries": lambda query, grade: query in ("q0", "q1", "q2"),
    "one grade": lambda query, grade: grade == 0,
    "two grades, never in one query": lambda query, grade: grade == 3 * (query in ("q1", "q3", "q5", "q7")),
}
"""Which judgments there are."""
QUICKLY, SLOWLY = list(POOLS)[:2], list(POOLS)[2:]
QUICK: dict[str, dict[str, Any]] = {
    "vast2025/attention_contrast": {"weak": 0, "hard": 0},
    "vast2025/qk_svd": {"weak": 0, "hard": 0},
    "vast2025/cls_lens": {"draws": 5},
    "vast2025/qk_projection": {"strongest": 1, "others": 1, "draws": 2},
    "vast2025/layer_sweep": {"cut": "doc<-query"},
    "vast2024/pruning": {"grid": "10", "tol": 0.5},
    "vast2024/importance": {"tol": 0.5},
    "vast2024/distribution": {"tol": 0.5},
    "vast2024/transfer": {"tol": 0.5},
    "vast2024/matching_heads": {"tol": 0.5},
    "lu2025/idf_edit": {"factors": "3", "draws": 2, "heads": "h0.1"},
    "lu2025/soft_tf": {"per_query": 1},
    "joint/pathway": {"draws": 2},
}


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.mark.parametrize("pool", [*QUICKLY, *(pytest.param(pool, marks=pytest.mark.slow) for pool in SLOWLY)])
@pytest.mark.parametrize("name", experiments())
def test_no_run_is_left_unfinished(
    name: str, pool: str, toy: HookedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studentised, "RESAMPLES", 50)
    monkeypatch.setattr("mechir.views.charts.save", lambda chart, file: chart.to_dict())  # a picture takes a second
    folder = nine_queries(tmp_path / "toy")
    lines = (folder / "qrels.txt").read_text().splitlines()
    kept = [line for line in lines if POOLS[pool](line.split()[0], int(line.split()[3]))]
    (folder / "qrels.txt").write_text("\n".join(kept) + "\n")
    source: Any = mi.collection(folder)
    if load_experiment(name).runs_on == "contrasts":
        source = diagnostic("tfc1", source, fillers=("a",))
    with contextlib.suppress(MechirError):  # a refusal is right where no run is written
        stored = mi.run(name, toy, source, registry=tmp_path / "registry", **QUICK.get(name, {}))
        assert stored.path.is_dir()
    runs = [run for run in (tmp_path / "registry").glob("runs/*") if run.is_dir()]
    assert all((run / "summary.parquet").is_file() for run in runs)
