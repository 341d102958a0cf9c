"""Running experiments: the table, resuming, shards, identity, estimates."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import running, work
from mechir.analyses import DirectionAblation
from mechir.catalog import experiments, load_experiment
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.estimate import estimate
from mechir.experiment import Finished
from mechir.material import Pool
from mechir.registry.runs import Run
from mechir.shard import Shard
from tests.models import TOY, TOY_MODEL

SLOW = str(Path(__file__).parent / "experiments" / "slow.py")


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """One query a unit."""
    monkeypatch.setattr(work, "UNIT", 1)


def run(model: HookedEncoder, registry: Path, name: str = SLOW, **options: object) -> Run:
    return running.run(name, model, mi.collection(TOY), registry=registry, **options)  # type: ignore[arg-type]


def test_units_are_whole_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [mi.Pair("q", "d", f"q{i // 5}", f"d{i}") for i in range(40)]
    monkeypatch.setattr(work, "UNIT", 12)
    cut = work.units(pairs)
    assert [len(unit) for unit in cut] == [15, 15, 10]
    assert [pair for unit in cut for pair in unit] == pairs


@pytest.mark.usefixtures("small_units")
def test_interrupted_and_started_again_it_is_the_uninterrupted_run(toy: HookedEncoder, tmp_path: Path) -> None:
    whole = run(toy, tmp_path / "whole")
    broken = run(toy, tmp_path / "broken")
    assert broken.id == whole.id
    for unit in (1, 4):
        broken.part(unit).unlink()
    (broken.path / "summary.parquet").unlink()
    kept = broken.part(0).stat().st_mtime_ns
    said: list[str] = []
    again = run(toy, tmp_path / "broken", say=said.append)
    assert again.part(0).stat().st_mtime_ns == kept
    assert [line.split(":")[0] for line in said[1:]] == ["5/6 units", "6/6 units"]
    pd.testing.assert_frame_equal(again.rows, whole.rows, check_exact=True)
    pd.testing.assert_frame_equal(again.summary, whole.summary, check_exact=True)


@pytest.mark.usefixtures("small_units")
def test_a_second_call_does_nothing_new(toy: HookedEncoder, tmp_path: Path) -> None:
    first = run(toy, tmp_path)
    stamps = {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()}
    second = run(toy, tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in second.path.iterdir()} == stamps
    assert run(toy, tmp_path, fresh=True).id != first.id


@pytest.mark.usefixtures("small_units")
def test_an_interruption_keeps_the_finished_units_and_removes_the_hooks(toy: HookedEncoder, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(toy, tmp_path, fail_at="q3")
    (left,) = (tmp_path / "runs").iterdir()
    assert sorted(file.name for file in left.glob("*part*")) == ["part-00000.parquet", "part-00001.parquet"]
    assert not any(point.has_hooks() for point in toy.hook_points())


@pytest.mark.usefixtures("small_units")
def test_shards_fill_one_run_together(toy: HookedEncoder, tmp_path: Path) -> None:
    whole = run(toy, tmp_path / "whole")
    parts = [run(toy, tmp_path / "shards", shard=Shard.parse(f"{i}/4")) for i in range(1, 5)]
    assert {part.id for part in parts} == {whole.id}
    pd.testing.assert_frame_equal(parts[-1].rows, whole.rows, check_exact=True)
    pd.testing.assert_frame_equal(parts[-1].summary, whole.summary, check_exact=True)


def test_shards_of_slurm_arrays_from_0_and_from_1_cover_everything() -> None:
    for ids in (range(0, 4), range(1, 5)):
        assert {Shard.parse(f"{i}/4").index for i in ids} == {0, 1, 2, 3}
    for text in ("5/4", "1", "a/b", "1/0", "-1/4"):
        with pytest.raises(MechirError, match=rf"Cannot read shard='{text}': write I/N"):
            Shard.parse(text)


def test_the_identity_follows_everything_that_decides_the_numbers(toy: HookedEncoder, tmp_path: Path) -> None:
    runs = [
        run(toy, tmp_path),
        run(toy, tmp_path, pause=0.001),
        run(toy, tmp_path, pool=Pool(per_grade=2)),
        run(toy, tmp_path, pool=Pool(per_grade=2, seed=1)),
        run(mi.load(TOY_MODEL, dtype="float64"), tmp_path),
        run(toy, tmp_path, "vast2025/direction_ablation"),
    ]
    assert len({run.id for run in runs}) == len(runs)
    record = runs[0].record
    assert record["certificate"]["score"] <= 2e-6
    assert record["identity"]["model_fingerprint"] == toy.fingerprint
    assert record["truncated_documents"] == 0
    assert record["pairs"] == 72


def test_a_model_that_changes_in_place_is_certified_anew(tmp_path: Path) -> None:
    model = mi.load(TOY_MODEL)
    before = run(model, tmp_path).record["certificate"]
    after = run(model.to(torch.float64), tmp_path).record
    assert after["identity"]["dtype"] == "float64"
    assert (before["dtype"], after["certificate"]["dtype"]) == ("float32", "float64")


def test_table_1_has_its_rows_and_the_random_ranking(toy: HookedEncoder, tmp_path: Path) -> None:
    stored = run(toy, tmp_path, "vast2025/direction_ablation")
    table = stored.summary.set_index("name")
    told = mi.findings(registry=tmp_path)
    assert len(told) == 30 and set(told["run_id"]) == {stored.id} and told["causal"].all()
    one = told[[site == mi.Mask("doc<-query") for site in told["site"]]].iloc[0]
    expected = table.loc["doc<-query", ["change", "change_low", "change_high", "change_p_corrected", "queries"]]
    assert one[["value", "low", "high", "p_corrected", "n_queries"]].tolist() == expected.tolist()
    told = DirectionAblation(renormalise=True).findings(Finished(stored.rows, summary=stored.summary))
    assert told["site"].str.endswith("<-query renormalised").sum() == 5
    assert len(table) == 1 + 25 + 5 + 2
    assert table.loc["random", "ndcg"] == pytest.approx(table.loc["random_analytic", "ndcg"], abs=0.01)
    # With every source cut, CLS is the same for every document: the ranking is random, and everything is tied.
    assert table.loc["cls<-all", "tied"] == 1
    assert table.loc["cls<-all", "ndcg"] == pytest.approx(table.loc["random_analytic", "ndcg"], abs=0.05)
    assert table.loc["original", "tied"] < 0.2
    cut = table.drop(index=["original", "random", "random_analytic"])
    assert (cut["change_p_corrected"] >= cut["change_p"]).all()
    assert ((cut["low"] <= cut["ndcg"] + 1e-12) & (cut["ndcg"] <= cut["high"] + 1e-12)).all()
    assert (cut["queries"] == 6).all()


def test_the_layer_sweep_cuts_up_to_every_layer_and_from_every_layer(toy: HookedEncoder, tmp_path: Path) -> None:
    stored = run(toy, tmp_path, "vast2025/layer_sweep", cut="doc<-query,cls<-all")
    table = stored.summary
    cut = table[table["direction"].notna()]
    spans = {(row.direction, row.first, row.last) for row in cut.itertuples()}
    assert spans == {(d, *s) for d in ("doc<-query", "cls<-all") for s in ((0, 0), (0, 1), (1, 1))}
    assert (stored.path / "chart.html").stat().st_size > 100_000
    assert (stored.path / "chart.png").stat().st_size > 10_000


def test_both_experiments_agree_where_they_meet(toy: HookedEncoder, tmp_path: Path) -> None:
    table = run(toy, tmp_path, "vast2025/direction_ablation").rows
    sweep = run(toy, tmp_path, "vast2025/layer_sweep", cut="doc<-query").rows
    one = table[table["name"] == "doc<-query"].set_index("doc_id")["score"]
    other = sweep[sweep["name"] == "doc<-query@0-1"].set_index("doc_id")["score"]
    pd.testing.assert_series_equal(one, other, atol=1e-5, rtol=0)


def test_an_estimate_counts_forwards(toy: HookedEncoder) -> None:
    pairs = mi.collection(TOY).pairs(per_grade=1)
    cost = estimate("vast2025/direction_ablation", toy, pairs)
    assert cost["pairs"] == len(pairs)
    assert cost["forwards"] == 31 * len(pairs)
    assert cost["minutes"] > 0
    assert 0.1 < cost["memory_gb"] < 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vast2025/direction_ablatoin", r"Unknown experiment '.*': the closest are 'vast2025/direction_ablation'"),
        (
            "nowhere.py",
            r"There is no file 'nowhere.py': give that of an experiment, or a name such as 'chen2024/block_maps'",
        ),
        ("../../setup", r"Unknown experiment '../../setup'"),
    ],
)
def test_an_unknown_experiment_is_refused(name: str, message: str) -> None:
    with pytest.raises(MechirError, match=message):
        load_experiment(name)


def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path) -> None:
    begin = "from dataclasses import dataclass\nfrom mechir.experiment import Experiment\n"
    whole = "".join(f"    def {one}: ...\n" for one in ("measure(self, model, pairs)", "chart(self, summary)"))
    cases = {
        "def measure(model, pairs): ...\n": "must define one experiment and defines none: see mechir.Experiment",
        "@dataclass(frozen=True)\nclass Half(Experiment):\n    def measure(self, model, pairs): ...\n": (
            "'Half' is no experiment: it defines no summarise and no chart"
        ),
        f"class Thawed(Experiment):\n{whole}    def summarise(self, run): ...\n": "'Thawed' is not frozen: write @datac",
        f"@dataclass(frozen=True)\nclass Old(Experiment):\n{whole}    def summarise(self, rows, judged): ...\n": (
            r"'Old.summarise' cannot be called as summarise\(self, run\): missing a required argument: 'judged'"
        ),
    }
    for place, (text, message) in enumerate(cases.items()):
        (tmp_path / f"half{place}.py").write_text(begin + text)
        with pytest.raises(MechirError, match=message):
            load_experiment(str(tmp_path / f"half{place}.py"))


def test_an_unknown_option_is_refused(toy: HookedEncoder, tmp_path: Path) -> None:
    with pytest.raises(MechirError, match="'slow' has no option 'speed': it takes pause, fail_at"):
        run(toy, tmp_path, speed=3)


def start(registry: Path) -> subprocess.Popen[str]:
    code = "import mechir.work as e; e.UNIT = 1; from mechir.cli import main; main()"
    return subprocess.Popen(
        [
            *(sys.executable, "-c", code, "run", SLOW, "--pause", "0.3", "--registry", str(registry)),
            *("--model", str(TOY_MODEL), "--collection", str(TOY)),
        ],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for jobs in the background
    )  # fmt: skip


def wait_for_parts(registry: Path, n: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while len(list(registry.glob("runs/*/part-*"))) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never interrupted."""
    registry = tmp_path_factory.mktemp("whole")
    start(registry).communicate(timeout=240)
    return next((registry / "runs").iterdir())


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_killed_half_way_it_loses_nothing(whole: Path, tmp_path: Path, number: int, code: int) -> None:
    process = start(tmp_path / "killed")
    wait_for_parts(tmp_path / "killed", 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert len(list((tmp_path / "killed").glob("runs/*/part-*"))) < 6
    again = start(tmp_path / "killed")
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    (one,) = (tmp_path / "killed" / "runs").iterdir()
    assert one.name == whole.name and len(list(whole.glob("part-*"))) == 6
    for part in whole.glob("part-*"):
        pd.testing.assert_frame_equal(pd.read_parquet(one / part.name), pd.read_parquet(part), check_exact=True)


def test_too_few_queries_to_test_are_said_before_anything_is_measured(toy: HookedEncoder, tmp_path: Path) -> None:
    for n, few in ((5, True), (6, False)):
        said: list[str] = []
        pool = Pool(limit_queries=n, per_grade=1)
        running.run("vast2025/layer_sweep", toy, mi.collection(TOY), pool=pool, registry=tmp_path, say=said.append)
        line = f"{n} queries are too few to test: intervals are Student's; tests need 6 or more."
        assert (line in said) is few and said[-1].startswith("1/1 units")
    assert said[-2].startswith("Run ")


def test_the_core_names_no_experiment() -> None:
    """What the report and the command line need, an experiment says of itself."""
    history = "renamed.py"  # what columns were called in the runs of older versions
    package = Path(mi.__file__).parent
    files = [file for file in package.rglob("*.py") if file.name != history]
    naming = {(file.name, name) for file in files for name in experiments() if name in file.read_text(encoding="utf-8")}
    assert len(files) > 80 and naming == set()
