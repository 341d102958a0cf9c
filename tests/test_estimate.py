"""The plan of a run: every step of it, the time of workers, and how far such estimates were off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechir as mi
from mechir import estimate as estimates
from mechir.catalog import load_experiment
from mechir.cli import main
from mechir.cli.plan import time_of_workers
from mechir.estimate import Plan, plan, sentence
from mechir.material import Pool
from tests.models import TOY, TOY_MODEL, nine_queries


def planned(name: str, registry: Path, collection: Any = TOY, **options: Any) -> Plan:
    experiment = load_experiment(name)(**options)
    return plan(experiment, mi.load(TOY_MODEL), mi.collection(collection), Pool(), registry)


def test_every_step_is_in_the_plan_in_its_stage(tmp_path: Path) -> None:
    steps = planned("joint/pathway", tmp_path / "r", nine_queries(tmp_path / "nine")).steps
    stages = steps.groupby("stage")["step"].apply(list)
    assert len(stages[0]) == 10 and "circuits/edges" in stages[0] and stages[2] == ["joint/pathway"]
    assert stages[1] == ["vast2025/qk_projection", "lu2025/idf_edit", "lu2025/idf_edit", "joint/examples"]
    assert not (tmp_path / "r").exists()
    assert planned("vast2024/transfer", tmp_path).steps["step"].tolist() == ["vast2024/importance"]
    assert planned("vast2024/pruning", tmp_path).steps["step"].tolist() == ["vast2024/importance", "vast2024/pruning"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("circuits/backup", {}),
        ("circuits/edges", {"every": 2}),
        ("circuits/faithfulness", {"draws": 1}),
        ("joint/examples", {"queries": 2}),
        ("vast2024/importance", {"take": 1, "every": 2, "tol": 0.05}),
        ("vast2024/matching_heads", {"take": 1, "tol": 0.05}),
        ("vast2024/pruning", {"grid": (10.0,), "draws": 20, "take": 1, "tol": 0.05}),
    ],
)
def test_what_is_measured_is_known_before(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    source = nine_queries(tmp_path / "nine")
    record = mi.run(name, mi.load(TOY_MODEL), source, registry=tmp_path / "r", **options).record
    per_pair = load_experiment(name)(**options).cost(mi.load(TOY_MODEL))
    assert record["pairs"] == pytest.approx(record["forwards"] / per_pair, rel=1e-3)


def test_workers_wait_for_the_stage_before_and_for_the_longest_unit() -> None:
    steps = pd.DataFrame({"stage": [0, 0, 1], "minutes": [8.0, 4.0, 3.0], "units": [8, 1, 3]})
    made = Plan(steps, ())
    assert made.minutes() == 15 and made.minutes(2) == 6 + 1.5 and made.minutes(100) == 4 + 1


def test_processes_with_fewer_threads_are_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = iter([1e-5, 3e-5])  # of this process, and of one of the two
    monkeypatch.setattr(estimates, "seconds_per_token", lambda *_: next(timed))
    step = load_experiment("vast2025/direction_ablation")()
    made = plan(step, mi.load(TOY_MODEL), mi.collection(TOY), Pool(), tmp_path, threads=1)
    assert made.slower == pytest.approx(3)
    even = replace(made, steps=made.steps.assign(units=2))
    assert even.minutes(2) == pytest.approx(1.5 * made.steps["minutes"].sum())
    assert time_of_workers(even, mi.Local(2), "cpu").endswith(f": {even.minutes(2):,.1f} minutes.")
    shared = "What 2 processes take that share cuda:0 is not estimated."
    assert time_of_workers(even, mi.Local(2), "cuda:0") == shared
    assert time_of_workers(even, mi.Local(1), "cpu") == time_of_workers(even, mi.Dask("tls://a:1"), "cpu") == ""


def test_the_error_of_earlier_estimates_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, name = mi.load(TOY_MODEL), "vast2025/direction_ablation"
    run = mi.run(name, model, TOY, registry=tmp_path)
    record = run.record
    assert record["tokens"] == int(model.encode(mi.collection(TOY).pairs()).lengths.sum())
    monkeypatch.setattr(estimates, "seconds_per_token", lambda *_: 1e-5)
    monkeypatch.setattr(estimates, "SHORT", 0.0)
    made = planned(name, tmp_path)
    per_pair = load_experiment(name)().cost(model)
    assert record["forwards"] == per_pair * record["pairs"] == made.steps["forwards"].item()
    assert made.ratios == pytest.approx([record["seconds"] / (1e-5 * per_pair * record["tokens"])])
    assert sentence(made).startswith("The last run of this model here took ")
    mi.run(name, model, TOY, registry=tmp_path, pool=Pool(limit_queries=3))
    assert sentence(planned(name, tmp_path)).startswith("The last 2 runs of this model here took ")
    assert sentence(planned(name, tmp_path / "empty")) == ""
    main(["run", name, "--model", str(TOY_MODEL), "--collection", str(TOY), "--dry-run", "--registry", str(tmp_path)])
    assert "The last 2 runs of this model here took" in capsys.readouterr().out
    wall = ["--workers", "2", "--registry", str(tmp_path / "empty")]
    main(["run", name, "--model", str(TOY_MODEL), "--collection", str(TOY), "--dry-run", *wall])
    out = capsys.readouterr().out
    assert "With 2 processes of 1 thread each: " in out and "The last" not in out
    slurm = ["--slurm", "time=1:00:00", "--registry", str(tmp_path / "empty")]
    main(["run", name, "--model", str(TOY_MODEL), "--collection", str(TOY), "--dry-run", *slurm])
    assert "With 16 workers like this process: " in capsys.readouterr().out
    assert not (tmp_path / "empty").exists()


def test_runs_of_older_versions_and_damaged_ones_say_nothing_of_an_error(tmp_path: Path) -> None:
    model, name = mi.load(TOY_MODEL), "vast2025/direction_ablation"
    older = mi.run(name, model, TOY, registry=tmp_path)
    older.write_record({key: value for key, value in older.record.items() if key not in ("forwards", "tokens")})
    damaged = mi.run(name, model, TOY, registry=tmp_path, pool=Pool(limit_queries=2))
    (damaged.path / "run.json").write_text("{")
    assert planned(name, tmp_path).ratios == ()
