"""The command that a record prints makes the run of that record again, from anywhere."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechir as mi
from mechir.collection_groups import collections
from mechir.diagnostic_sets import diagnostic
from mechir.diagnostics import Tfc1
from mechir.encoder import HookedEncoder
from mechir.opening import EMBEDDED
from mechir.perturbed import perturbed
from mechir.registry.findings import of_record
from mechir.registry.runs import Run, runs
from mechir.reporting import answers, commands, figures
from mechir.shard import Shard
from tests import reports
from tests.models import TOY, TOY_MODEL, build, tokenizer
from tests.test_cli import call

NOT_MEASURED = Shard(1, 2)
"""Of one unit: the run is begun, and nothing measured."""
SLOW = str(Path(__file__).parent / "experiments" / "slow.py")
CONTRASTS = "lu2025/head_to_score"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, collections, a run of one, and a published set."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(TOY_MODEL, folder / "a model, mine")
    shutil.copy(SLOW, folder)
    for name in ("toy", "other"):
        shutil.copytree(TOY, folder / "data" / name)
    lines = [f"{pair.query_id} Q0 {pair.doc_id} 1 1.0 x" for pair in mi.collection(TOY).pairs(per_grade=1)]
    for file in ("data/toy/run.bm25.txt", "data/other/run.bm25.txt", "mine.txt"):
        (folder / file).write_text("\n".join(lines) + "\n")
    (folder / "published sets").mkdir()
    header = "qid\tdocno\tscore_delta\ttext\tperturbed_text\tquery\trelevance\n"
    rows = "".join(
        f"{q}\t{d}\t0.5\tthe tank said\tthe tank said goldfish\tgoldfish\t{d}\n" for q in "78" for d in "123"
    )
    (folder / "published sets" / "mechir__x_TFC1_topk_4000.tsv").write_text(header + rows)
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> HookedEncoder:
    with contextlib.chdir(home):
        return mi.load("a model, mine")


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is named from inside that folder."""
    monkeypatch.chdir(home)


@pytest.fixture
def begun(model: HookedEncoder, tmp_path: Path) -> Callable[..., Run]:
    """Begins a run of the toy model."""
    return partial(_begun, model, tmp_path)


def _begun(model: HookedEncoder, folder: Path, name: str, source: Any, **asked: Any) -> Run:
    return mi.run(name, model, source, registry=folder / "r", shard=NOT_MEASURED, **asked)


def again(run: Run, capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """The id of the run that the command of a record makes in another registry, given in another folder."""
    words = shlex.split(figures.command(run.record))
    code, _, err = call(capsys, *words[1:], "--shard", "1/2", "--registry", str(folder / "again"), defaults=True)
    assert code == 0, err
    (made,) = runs(folder / "again")
    return made.id


SOURCES: dict[str, Callable[[], tuple[str, Any, dict[str, Any]]]] = {
    "pairs": lambda: ("vast2025/layer_sweep", mi.collection("data/toy"), {"cut": "doc<-query", "pool": mi.Pool(limit_queries=2)}),
    "pairs, all that may be said": lambda: (
        "vast2025/layer_sweep",
        mi.collection("data/toy"),
        {"pool": mi.Pool(per_grade=1, easy_negatives=2, limit_queries=3, seed=5)},
    ),
    "embedded": lambda: ("joint/examples", mi.collection("embedded"), {"pool": mi.Pool(limit_queries=2), "heads": "h0.1"}),
    "the folder of embedded": lambda: ("joint/examples", mi.collection(EMBEDDED), {"pool": mi.Pool(limit_queries=2)}),
    "a run's name": lambda: ("vast2025/layer_sweep", mi.collection("data/toy"), {"pool": mi.Pool(run="bm25", top_k=2)}),
    "a run's file": lambda: ("vast2025/layer_sweep", mi.collection("data/toy"), {"pool": mi.Pool(run="mine.txt")}),
    "groups": lambda: ("vast2024/importance", collections(["in:data/toy", "out:data/other"]), {"pool": mi.Pool(limit_queries=1)}),
    "groups by a run's name": lambda: ("vast2024/importance", collections(["in:data/toy", "out:data/other"]), {"pool": mi.Pool(run="bm25")}),
    "a group of its own": lambda: ("vast2024/importance", collections(["out:data/toy"]), {"tol": 1e-7}),
    "one where groups are taken": lambda: ("vast2024/importance", mi.collection("data/toy"), {"tol": 0.123456789}),
    "rows of another": lambda: ("vast2024/distribution", mi.collection("data/toy"), {"take": 2}),
    "a file of one's own": lambda: (str(Path(SLOW).name), mi.collection("data/toy"), {"fail_at": "no such"}),
    "contrasts": lambda: (CONTRASTS, diagnostic("tdc", "data/toy", limit_queries=2, per_grade=1, seed=4), {}),
    "contrasts of another collection": lambda: (CONTRASTS, diagnostic("tfc1-replace", mi.collection("data/other")), {}),
    "contrasts of a run": lambda: (CONTRASTS, diagnostic("tfc1", "data/toy", run="mine.txt", top_k=2), {}),
    "contrasts of embedded": lambda: (CONTRASTS, diagnostic("tfc1", limit_queries=1), {}),
    "swapped, by another filler": lambda: (CONTRASTS, diagnostic("tfc1", "data/toy", limit_queries=2, swap=True, fillers=["a"]), {}),
    "a length": lambda: ("vast2025/layer_sweep", mi.collection("data/toy"), {"pool": mi.Pool(limit_queries=2, max_length=24)}),
    "contrasts of a length": lambda: (CONTRASTS, diagnostic("tfc1", "data/toy", limit_queries=1), {"pool": mi.Pool(max_length=24)}),
    "other rules": lambda: ("vast2025/layer_sweep", mi.collection("data/toy", duplicates="max", leave_out=0.25), {}),
    "contrasts by other rules": lambda: (CONTRASTS, diagnostic("tfc1", mi.collection("data/toy", leave_out=0.5), limit_queries=1), {}),
    "published": lambda: (CONTRASTS, diagnostic("mechir-tfc1", "published sets"), {"freeze": "heads+mlps"}),
    "published, sampled": lambda: (CONTRASTS, diagnostic("mechir-tfc1", "published sets", per_grade=1, limit_queries=1), {}),
}  # fmt: skip


@pytest.mark.parametrize("what", SOURCES)
def test_the_command_of_a_record_makes_its_run(
    what: str,
    begun: Callable[..., Run],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, source, asked = SOURCES[what]()
    run = begun(name, source, **asked)
    assert "PATH" not in figures.command(run.record) and "not recorded" not in figures.remark(run.record)
    monkeypatch.chdir(tmp_path)
    if mi.load_experiment(run.record["file"]).rows_of is None:
        assert again(run, capsys, tmp_path) == run.id
    else:
        words = shlex.split(figures.command(run.record))
        call(capsys, *words[1:], "--shard", "1/2", "--registry", str(tmp_path / "again"), defaults=True)
        assert run.id in {one.id for one in runs(tmp_path / "again")}


def test_a_run_s_file_is_what_it_holds(begun: Callable[..., Run], home: Path) -> None:
    """Not where it lies, nor how it is written."""
    shutil.copy("mine.txt", "data/elsewhere.txt")
    written = ("mine.txt", home / "mine.txt", "./data/../mine.txt", "data/elsewhere.txt")
    ids = {begun("vast2025/layer_sweep", mi.collection("data/toy"), pool=mi.Pool(run=str(one))).id for one in written}
    assert len(ids) == 1
    Path("data/elsewhere.txt").write_text(Path("mine.txt").read_text().replace(" 1.0 x", " 1.5 y"))
    pool = mi.Pool(run="data/elsewhere.txt")
    assert begun("vast2025/layer_sweep", mi.collection("data/toy"), pool=pool).id not in ids


def test_a_collection_elsewhere_is_the_same_run(begun: Callable[..., Run], home: Path) -> None:
    Path("moved").mkdir()
    shutil.copytree("data/toy", "moved/toy")
    both = [
        begun("vast2025/layer_sweep", mi.collection(f"{folder}/toy"), cut="doc<-query") for folder in ("data", "moved")
    ]
    assert both[0].id == both[1].id and both[0].record["given"]["collection"] == [str(home / "data" / "toy")]


def test_a_record_says_how_contrasts_were_sampled(begun: Callable[..., Run]) -> None:
    run = begun(CONTRASTS, diagnostic("tfc1", "data/toy", limit_queries=2, per_grade=1, seed=7))
    record, told = run.record, dict(figures.provenance(run.record))
    toy = mi.collection("data/toy")
    assert of_record(record)["seed"] == 7 and told["seed"] == "7"
    assert told["sampled"] == "per_grade 1, limit_queries 2" and told["read from"] == str(Path("data/toy").resolve())
    assert record["identity"]["perturbed_sha256"] == toy.hash != record["identity"]["collection_sha256"]
    assert told["collection"] == f"toy, SHA-256 {toy.hash[:12]}" and told["contrasts"].startswith(
        "tfc1 of toy, SHA-256 "
    )


@pytest.mark.parametrize("how", ["limited", "perturbed"])
def test_what_cannot_be_said_is_said_to_be_missing(begun: Callable[..., Run], how: str) -> None:
    whole = diagnostic("tfc1", "data/toy")
    pairs = mi.collection("data/toy").pairs(limit_queries=1)
    run = begun(CONTRASTS, whole.limited(limit_queries=1) if how == "limited" else perturbed("mine", pairs, Tfc1()))
    assert "How the diagnostic set was sampled is not recorded: it had 1 queries" in figures.remark(run.record)
    assert ("--data PATH" in figures.command(run.record)) == (how == "perturbed")


def test_what_no_command_can_make_again_is_said(begun: Callable[..., Run]) -> None:
    run = begun("vast2025/layer_sweep", mi.collection("data/toy"), fresh=True)
    assert figures.remark(run.record) == "It was measured with --fresh: the command makes a run of its own."
    told = reports.record("lu2025/soft_tf", options={"seed": 0}, pool=vars(mi.Pool(seed=3)), collection="embedded")
    assert figures.remark(told).endswith("which one --seed cannot say: use mechir.run.")


def test_a_command_that_is_proposed_names_the_folder(begun: Callable[..., Run], home: Path) -> None:
    run = begun("vast2025/layer_sweep", mi.collection("data/toy"))
    on = commands.on([reports.record("a/b"), run.record], "m", "toy")
    known = answers.Known(on, *[pd.DataFrame()] * 3, None)
    assert known.command("idf") == shlex.join(
        ["mechir", "run", "lu2025/idf_direction", "--model", str(home / "a model, mine"), "--collection", str(home / "data" / "toy")]
    )  # fmt: skip
    told = commands.on([reports.record("a/b")], "embedded", "toy")
    assert told == {"model": None, "collection": ["PATH/toy"]}


def test_how_a_model_was_asked_to_read_is_said_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hf = build("bert", labels=3)
    hf.save_pretrained(tmp_path / "three")
    tokenizer("bert").save_pretrained(tmp_path / "three")
    for asked, flags in (
        ({"relevant_label": 1}, "--relevant-label 1"),
        ({"relevant_label": "LABEL_0", "max_length": 32}, "--relevant-label 0 --max-length 32"),
    ):
        model = mi.load(tmp_path / "three", **asked)  # type: ignore[arg-type]
        run = _begun(model, tmp_path / str(asked["relevant_label"]), "vast2025/layer_sweep", mi.collection(TOY))
        assert flags in figures.command(run.record)
        monkeypatch.chdir(tmp_path)
        assert again(run, capsys, tmp_path / f"again {asked['relevant_label']}") == run.id
