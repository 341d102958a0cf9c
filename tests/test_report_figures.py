"""The figures of a report: which runs are drawn, in which order, and the command that makes each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import mechir as mi
from mechir.registry.runs import runs
from mechir.reporting import figures
from mechir.reporting.report import gathered
from tests.models import TOY
from tests.reports import record, stored, verification
from tests.test_cli import call
from tests.test_links import CONTRAST, NOT, PATCHING, one, row, tell


def test_one_run_of_each_experiment_and_options_is_drawn(tmp_path: Path) -> None:
    frame = verification()
    records = [{"options": {"k": 0}}, {"options": {"k": 0}, "pool": vars(mi.Pool(per_grade=2))}, {"options": {"k": 1}}]
    made = [stored(tmp_path, record("a/b", **one), frame, rows=frame) for one in records]
    for k, run in enumerate(made):
        os.utime(run.path / "run.json", (k, k))
    stored(tmp_path, record("a/b", collection="other"), frame, rows=frame)
    first, second = sorted(gathered(tmp_path)["sections"], key=lambda one: str(one["collection"]))
    assert [one["run"] for one in first["figures"]] == [made[2].id, made[1].id] and len(second["figures"]) == 1
    why = f"run {made[1].id} has the same options, which is newer"
    assert [(one["run"], one["why"]) for one in first["others"]] == [(made[0].id, why)]
    assert first["figures"][0]["note"].startswith("This run stored no specification of its chart")
    assert [one["about"] for one in first["figures"]] == [
        "13 queries, 90 pairs; --k 1",
        "13 queries, 90 pairs; --k 0 --per-grade 2",
    ]
    tell(tmp_path, made[0].id, [row(CONTRAST, "h1.2", 0.3, NOT)])
    (section,) = (one for one in gathered(tmp_path)["sections"] if one["collection"] == "c")
    assert [one["run"] for one in section["figures"]] == [made[0].id, made[2].id], "findings stand on it"
    assert section["others"][0]["why"] == f"run {made[0].id} has the same options, on which findings stand"


def test_the_run_that_carries_a_link_is_drawn_first(tmp_path: Path) -> None:
    frame = verification()
    made = [stored(tmp_path, record("a/b", options={"k": k}), frame, rows=frame) for k in range(3)]
    for k, run in enumerate(made):
        os.utime(run.path / "run.json", (k, k))
    one(tmp_path)
    tell(tmp_path, made[0].id, [row(PATCHING, "h1.2", 0.9, 0.001)], written="later")
    (section,) = gathered(tmp_path)["sections"]
    assert [one["run"] for one in section["figures"]] == [made[k].id for k in (0, 2, 1)]


@pytest.mark.parametrize(
    ("told", "command"),
    [
        ({"model": "embedded", "collection": "embedded"}, "mechir run vast2025/direction_ablation --collection embedded"),
        (
            {"collection": "vaswani", "pool": vars(mi.Pool(per_grade=2, easy_negatives=0, seed=3))},
            "mechir run vast2025/direction_ablation --model m --collection vaswani --per-grade 2 --easy-negatives 0 "
            "--seed 3",
        ),
        (
            {"model": "a b; rm", "collection": "toy", "options": {"renormalise": True}, "device": "cuda"},
            "mechir run vast2025/direction_ablation --model 'a b; rm' --collection PATH/toy --renormalise --device cuda",
        ),
        (
            {"experiment": "vast2025/layer_sweep", "options": {"cut": "doc<-query", "renormalise": False}},
            "mechir run vast2025/layer_sweep --model m --collection PATH/c --cut 'doc<-query'",
        ),
        (
            {"experiment": "lu2025/soft_tf", "options": {"heads": "h1.2", "top": 10}, "asked": {"heads": "", "top": 4}},
            "mechir run lu2025/soft_tf --model m --collection PATH/c --top 4",
        ),
        (
            {"experiment": "chen2024/head_maps", "collection": "tfc1 of embedded", "perturbed": "embedded",
             "axiom": "tfc1", "fillers": ["a"], "swap": True},
            "mechir run chen2024/head_maps --model m --diagnostic tfc1 --collection embedded --filler a --swap",
        ),
        (
            {"experiment": "vast2024/importance", "collection": "in:embedded+out:toy", "options": {"tol": 0.05, "take": 4}},
            "mechir run vast2024/importance --model m --collection in:embedded --collection out:PATH/toy --tol 0.05",
        ),
    ],
)  # fmt: skip
def test_the_command_that_makes_a_run(told: dict[str, Any], command: str) -> None:
    given = record(**{"experiment": "vast2025/direction_ablation"} | told)
    assert figures.command(given) == command
    assert ("PATH" in command) == ("PATH stands for the directory" in figures.remark(given))
    assert ("fillers" in told) == ("How the diagnostic set was sampled" in figures.remark(given))


def test_a_command_makes_its_run_again(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [run for run in runs(told) if run.record["identity"]["collection"] == "toy"]
    (swept,) = (run for run in own if run.record["identity"]["experiment"] == "vast2025/layer_sweep")
    arguments = figures.command(swept.record).replace("PATH/toy", str(TOY)).replace("'", "").split()[1:]
    arguments += ["--shard", "1/2"]  # of one unit: begun, not measured
    code, _, _ = call(capsys, *arguments, "--registry", str(tmp_path / "again"), defaults=True)
    assert code == 0 and [run.id for run in runs(tmp_path / "again")] == [swept.id]
