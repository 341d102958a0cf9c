"""The command line, in process: what it prints, where it exits, what it leaves."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import ir_measures
import pytest

import mechir as mi
from mechir import cli, left_out
from mechir.catalog import experiments, load_experiment
from mechir.judged_collection import Collection
from mechir.methods import ranking
from mechir.pools import Sample
from tests.models import TOY, TOY_MODEL, Checkpoints, nine_queries

TABLE_1 = "vast2025/direction_ablation"
ON_TOY = ("--model", str(TOY_MODEL), "--collection", str(TOY))


def call(capsys: pytest.CaptureFixture[str], *arguments: str, defaults: bool = False) -> tuple[int, str, str]:
    """Calls mechir; `run` and `score` on the toys, unless with their own defaults."""
    code = 0
    if arguments[0] in ("run", "score") and not defaults:
        named = len(arguments) > 1 and not arguments[1].startswith("-")
        given = [option for option in zip(ON_TOY[::2], ON_TOY[1::2], strict=True) if option[0] not in arguments]
        arguments = (*arguments[: 1 + named], *(word for option in given for word in option), *arguments[1 + named :])
    try:
        cli.main(arguments)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_prints_its_table_and_stores_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = call(capsys, "run", TABLE_1)
    assert code == 0
    assert "doc<-query" in out
    assert "random_analytic" in out
    assert "parity with Hugging Face on 8 pairs" in out
    assert "left out" not in out and "that count" not in out
    (run,) = (tmp_path / "mechir-registry" / "runs").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert record["left_out"] == {} and record["quality"][0]["n"] == record["quality"][0]["queries"] == 6
    assert {file.name for file in run.iterdir()} == {
        "run.json", "judged.parquet", "part-00000.parquet", "summary.parquet", "table.parquet", "chart.html", "chart.png", "chart.json",
    }  # fmt: skip
    code, again, err = call(capsys, "run", TABLE_1)
    assert (code, again) == (0, out)
    assert "1/1 units" not in err  # nothing was computed again
    code, shown, _ = call(capsys, "show", run.name[:6])
    assert shown == out
    code, listed, _ = call(capsys, "show")
    assert run.name in listed
    assert "1/1 units" in listed


def test_without_options_it_runs_what_ships(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = call(capsys, "run", "--dry-run", defaults=True)
    assert (code, err) == (0, "All 61 queries.\n") and out.splitlines()[0].split() == ["pairs", "240"]
    code, out, err = call(capsys, "run", TABLE_1, "--dry-run", defaults=True)
    n = len(mi.collection("embedded").queries)
    assert (code, err) == (0, f"The first 20 of {n} queries; --limit-queries {n} takes all.\n")
    assert out.splitlines()[0].split() == ["pairs", "640"]
    code, out, err = call(
        capsys, "run", TABLE_1, "--limit-queries", "1", "--per-grade", "1", "--easy-negatives", "0", defaults=True
    )
    assert (code, "on embedded: 1 queries, 4 pairs" in out) == (0, True)
    assert "The first" not in err
    (run,) = (tmp_path / "mechir-registry" / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["identity"]["model_fingerprint"] == mi.load().fingerprint
    code, out, _ = call(capsys, "score", "--limit-queries", "1", "--out", "x.run", defaults=True)
    assert (code, out) == (0, "Wrote x.run: 12 pairs by score\n")


def test_an_experiment_s_options_come_from_its_signature(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "run", "vast2025/layer_sweep", "--help")
    assert code == 0
    assert "--cut TEXT" in out
    assert "--renormalise" in out
    assert "--per-grade" in out
    code, out, _ = call(
        capsys, "run", "vast2025/layer_sweep", "--cut", "doc<-query", "--renormalise", "--limit-queries", "2"
    )
    assert code == 0
    assert "doc<-query@0-1" in out
    (run,) = (tmp_path / "mechir-registry" / "runs").iterdir()
    identity = json.loads((run / "run.json").read_text())["identity"]
    assert identity["options"] == {"cut": "doc<-query", "renormalise": True, "evaluate": "nDCG@10"}
    assert identity["pool"]["limit_queries"] == 2


@pytest.mark.parametrize("name", experiments())
def test_every_option_is_there_once(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = call(capsys, "run", name, "--help", defaults=True)
    flags = re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, re.MULTILINE)
    assert (code, err) == (0, "")
    assert len(flags) == len(set(flags)) and {"--seed", "--model"} <= set(flags)
    own = {f"--{option.replace('_', '-')}" for option in load_experiment(name).options()}
    assert own <= set(flags)


def test_the_seed_is_that_of_the_pool_and_of_the_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    limits = ("--limit-queries", "2", "--per-grade", "1", "--per-query", "1", "--seed", "3")
    code, _, _ = call(capsys, "run", "lu2025/soft_tf", "--heads", "h0.1", *limits)
    (run,) = Path("mechir-registry/runs").iterdir()
    identity = json.loads((run / "run.json").read_text())["identity"]
    assert (code, identity["options"]["seed"], identity["pool"]["seed"]) == (0, 3, 3)


def test_an_option_named_like_one_of_the_pool_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from mechir.experiment import Experiment\n"
        "from mechir.options import option\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Experiment):\n"
        "    per_grade: int = option(1, 'documents')\n"
        "    def measure(self, model, material): ...\n"
        "    def summarise(self, run): ...\n"
        "    def chart(self, summary): ...\n"
    )
    code, _, err = call(capsys, "run", "mine.py")
    said = "mechir: 'mine' has an option 'per_grade', which means the pool's everywhere: rename it.\n"
    assert (code, err) == (2, said)


def test_run_lists_the_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "run", "--help", defaults=True)
    assert code == 0
    assert "vast2025/direction_ablation" in out
    assert "Table 1 of Vast et al. 2025" in " ".join(out.split())


def test_options_without_an_experiment_are_those_of_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    ten = ("--collection", str(nine_queries(Path("ten"), 10)))
    code, out, _ = call(capsys, "run", *ten, "--per-grade", "1", "--draws", "5", "--dry-run")
    assert code == 0
    assert out.splitlines()[0].split() == ["pairs", "12"], "sets are cut on the last queries"
    cost = load_experiment("joint/pathway")(draws=5).cost(mi.load(TOY_MODEL))
    (own,) = (line.split() for line in out.splitlines() if line.split()[:1] == ["joint/pathway"])
    assert own[1:3] == ["12", f"{12 * cost:,.0f}"]
    assert "lu2025/idf_edit" in out, "also what follows from findings"
    assert not Path("mechir-registry").exists()


def test_a_shard_says_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechir.work.UNIT", 1)
    code, out, _ = call(capsys, "run", TABLE_1, "--shard", "1/2")
    assert code == 0
    assert "3 of 6 units are done" in out
    code, out, _ = call(capsys, "run", TABLE_1, "--shard", "2/2")
    assert "doc<-query" in out


def test_score_writes_a_run_of_all_judged_pairs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "score", "--out", "intact.run")
    assert code == 0
    assert "72 pairs" in out
    code, _, _ = call(
        capsys, "score", "--mask", "doc<-query@0-1", "--mask", "cls<-doc@h1.2", "--ablate", "h0.3", "--out", "cut.run"
    )
    assert code == 0
    toy, model = mi.collection(TOY), mi.load(TOY_MODEL)
    pairs = toy.pairs()
    do = [mi.Mask("doc<-query"), mi.Mask("cls<-doc", heads=mi.Head(1, 2)), mi.Ablate("h0.3")]
    expected = {
        (pair.query_id, pair.doc_id): score for pair, score in zip(pairs, model.score(pairs, do).tolist(), strict=True)
    }
    lines = [line.split() for line in (tmp_path / "cut.run").read_text().splitlines()]
    assert {(line[0], line[2]): pytest.approx(float(line[4]), abs=1e-5) for line in lines} == expected
    assert [line[3] for line in lines[:3]] == ["1", "2", "3"]
    assert lines[0][5] == "mechir-score-doc<-query@0-1-cls<-doc@h1.2-h0.3"  # what was cut and read out is recorded
    assert (tmp_path / "intact.run").read_text() != (tmp_path / "cut.run").read_text()


def test_a_run_of_equal_scores_ranks_at_random(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    toy = mi.collection(TOY)
    qrels = {query_id: dict(grades) for query_id, grades in toy.qrels.items()}
    found, written = [], set()
    for seed in range(6):
        code, _, _ = call(capsys, "score", "--mask", "cls<-all", "--seed", str(seed), "--out", "tied.run")
        assert code == 0
        lines = [line.split() for line in Path("tied.run").read_text().splitlines()]
        assert len({(line[0], line[4]) for line in lines}) == 6  # one score for all documents of a query
        ranks = {query: {line[2]: -float(line[3]) for line in lines if line[0] == query} for query in qrels}
        found.append(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, ranks)[ir_measures.nDCG @ 10])
        written.add(Path("tied.run").read_text())
    judged = toy.judged(toy.pairs(), full=True)
    random = ranking.random_ndcg(judged, judged)["value"].mean()
    assert len(written) == 6
    assert sum(found) / len(found) == pytest.approx(random, abs=0.05)
    assert max(found) < 0.95
    call(capsys, "score", "--mask", "cls<-all", "--seed", "5", "--out", "again.run")
    assert Path("again.run").read_text() == Path("tied.run").read_text()


def test_ids_with_spaces_are_refused_before_anything_is_scored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = [replace(pair, doc_id="d 1") for pair in mi.collection(TOY).pairs(limit_queries=1)]
    monkeypatch.setattr(Collection, "sample", lambda self, **pool: Sample(spaced, left_out.frame([])))
    code, _, err = call(capsys, "score", "--model", "./nowhere", "--out", "x.run")
    said = "mechir: A TREC run has white space between its fields and cannot hold the document id 'd 1'"
    assert (code, err) == (2, f"{said}: give ids without spaces.\n")
    assert not Path("x.run").exists()


def test_a_collection_s_rules_are_options_wherever_a_collection_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(TOY, tmp_path / "judged"))
    with (folder / "qrels.txt").open("a") as file:
        file.write("q1 1 d0101 3\n")
    on = ("--collection", str(folder), "--limit-queries", "1")
    for command in (("run", TABLE_1), ("score", "--out", "x.run"), ("run", "chen2024/head_maps")):
        code, _, err = call(capsys, *command, *on)
        assert code == 2 and "take the largest with --duplicates 'max'" in err
        assert not Path("mechir-registry").exists() and not Path("x.run").exists()
    code, out, _ = call(capsys, "score", "--out", "x.run", *on, "--duplicates", "max")
    assert code == 0
    assert out.endswith("left out: 1 x pair judged again with another grade, the largest counts (q1/d0101)\n")
    several = ("run", "vast2024/importance", "--collection", f"in:{folder}", "--dry-run", "--limit-queries", "3")
    assert call(capsys, *several)[0] == 2
    assert call(capsys, *several, "--duplicates", "max")[0] == 0
    code, _, err = call(
        capsys, "run", "chen2024/head_maps", "--data", str(tmp_path), "--leave-out", "0.5", defaults=True
    )
    assert (code, err) == (2, "mechir: --data reads a published set without judgments: leave --leave-out out.\n")
    for wrong in (("--duplicates", "last"), ("--leave-out", "2"), ("--leave-out", "nan"), ("--leave-out", "a")):
        code, _, err = call(capsys, "score", "--out", "y.run", *wrong)
        assert code == 2 and wrong[0] in err


def test_convert_and_fetch(
    capsys: pytest.CaptureFixture[str], checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = call(capsys, "convert", str(checkpoints.monobert_layout()), "--out", "converted")
    assert code == 0
    assert "sha256" in out
    code, out, _ = call(capsys, "run", TABLE_1, "--model", "converted", "--limit-queries", "1", "--per-grade", "1")
    assert code == 0
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(checkpoints.path("bert")))
    code, out, _ = call(capsys, "fetch", "some/model")
    assert "mechir reads it by its name" in out
    code, out, _ = call(capsys, "fetch", "sentence-transformers/all-MiniLM-L6-v2")
    wanted = "'sentence-transformers/all-MiniLM-L6-v2' is in the cache: the embedded model finds it there.\n"
    assert (code, out) == (0, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "vast2025/table_1"], r"Unknown experiment 'vast2025/table_1': the closest are 'vast2025/"),
        (["run", "--model", "./nowhere"], "There is no directory './nowhere'"),
        (["run", "--collection", "./nowhere"], "There is no directory './nowhere'"),
        (["run", "--shard", "3"], "Cannot read --shard '3': write I/N"),
        (["run", "--per-grade", "0"], "Invalid value for '--per-grade'"),
        (["run", "--per-grad", "3"], "No such option"),
        (["run", "--dtype", "float8"], "Cannot compute in 'float8'"),
        (
            ["run", "--per-grade", "1", "--top-k", "3"],
            "--per-grade samples judged documents, and --run and --top-k take",
        ),
        (["run", "vast2025/layer_sweep", "--cut", "doc->query"], "write 'query<-doc'"),
        (["score", "--mask", "doc->query", "--out", "x.run"], "write 'query<-doc'"),
        (["score", "--mask", "doc<-query@0-9", "--out", "x.run"], "the model has layers 0-1"),
        (["score", "--ablate", "h1.9", "--out", "x.run"], "Head 9 is out of range: layer 1 has heads 0-3"),
        (["score", "--out", "no/such/x.run"], "Cannot write 'no/such/x.run'"),
        (["show", "abc"], "There is no run 'abc' in 'mechir-registry': it holds no run yet"),
        (["show"], "'mechir-registry' holds no run yet"),
        (["convert", "toy", "--out", "x"], "Cannot get 'toy' from the hub"),
        (["nothing"], "No such command 'nothing'"),
    ],
)
def test_a_mistake_is_one_sentence_exit_code_2_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err + out
    assert list(tmp_path.iterdir()) == []


def test_interruptions_have_their_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mechir.running.run", interrupt)
    code, _, err = call(capsys, "run")
    assert code == 130
    assert "goes on from the last finished unit" in err


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--version")
    assert code == 0
    assert "0.1.0" in out


def test_several_collections_are_a_row_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(TOY, other)
    both = ("run", "lu2025/semantic_bm25", "--collection", str(TOY), "--collection", str(other), "--top", "2")
    code, out, _ = call(capsys, *both)
    assert code == 0
    runs = {run.name: json.loads((run / "run.json").read_text()) for run in Path("mechir-registry/runs").iterdir()}
    assert {run["identity"]["collection"] for run in runs.values()} == {TOY.name, "other"}
    *_, head, first, second = out.splitlines()
    assert head.split()[:5] == ["collection", "queries", "pairs", "low", "high"] and "BM25 tuned" in head
    assert [line.split()[0] for line in (first, second)] == [TOY.name, "other"]
    assert first.split()[1:] == second.split()[1:]  # the same collection under two names
    (one,) = [name for name, run in runs.items() if run["identity"]["collection"] == "other"]
    shown = call(capsys, "show", one)[1]
    (line,) = (line for line in shown.splitlines() if line.split()[:2] == ["semantic", "BM25"] and "[" in line)
    assert shown in out and line.split()[2] in second.split()
    code, out, err = call(capsys, *both, "--dry-run")
    assert (code, out.count("forwards"), err) == (0, 2, "")


def test_a_collection_named_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "run", "lu2025/semantic_bm25", "--collection", str(TOY), "--collection", str(TOY))
    assert (code, err) == (
        2,
        f"mechir: --collection names '{TOY.name}' more than once: give each once, under a name of its own.\n",
    )
    assert not Path("mechir-registry").exists()
