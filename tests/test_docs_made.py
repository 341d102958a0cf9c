"""What was made for the documentation: noted, found again, made once; small computations and tables of other scripts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from scripts import docs_frames, docs_made, exam_default_model, method_matrix, remake_docs
from scripts.docs_made import Made, alone, keep, note, noted
from scripts.docs_markers import Wrong, put
from scripts.docs_runs import COMMANDS
from scripts.exam_default_model import lines_of
from tests.test_links import CONTRAST, PATCHING, SURE, row, tell
from tests.test_remake_docs import HEADS, ROOT


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that holds a pathway, its summary, its plan and what it and a run on its way found."""
    monkeypatch.setattr(docs_made, "REGISTRY", tmp_path)
    monkeypatch.setattr(docs_made, "MADE", tmp_path / "made.json")
    for id_ in ("ab", "cd", "ef"):
        (tmp_path / "runs" / id_).mkdir(parents=True)
        (tmp_path / "runs" / id_ / "run.json").write_text(json.dumps({"pairs": 1900, "queries": 20, "given": {}}))
    HEADS.to_parquet(tmp_path / "runs" / "ab" / "summary.parquet")
    HEADS[:1].to_parquet(tmp_path / "runs" / "ab" / "plan.parquet")
    tell(tmp_path, "ab", [row(CONTRAST, "h1.1", 0.2, SURE)])
    tell(tmp_path, "cd", [row(PATCHING, "h1.1", 0.4, SURE)])
    tell(tmp_path, "ef", [row(PATCHING, "h1.1", 0.9, SURE)])
    note("pathway", "ab", "cd")
    return tmp_path


def test_a_marker_may_name_what_is_stored_with_a_run(registry: Path, tmp_path: Path) -> None:
    keep("pools-dl19", {"": pd.DataFrame({"pairs": [765], "random": [0.579]})})
    keep("code-patching", {"gap": pd.DataFrame({"value": [0.59], "what": pd.Series([1j], dtype=object)})})
    note("pools-dl19")
    note("code-patching")
    frames = Made()
    assert frames["pathway"].equals(HEADS) and len(frames["pathway.plan"]) == 1
    assert frames["pathway.record"].to_dict("records") == [{"pairs": 1900, "queries": 20}]
    assert sorted(frames["pathway.findings"]["value"]) == [0.2, 0.4], "another run's findings are not its own"
    assert frames["pools-dl19"]["pairs"].item() == 765 and frames["code-patching.gap"]["value"].item() == 0.59
    assert "pathway.nothing" in frames and "soft_tf" not in frames and set(frames) == {
        "pathway", "pools-dl19", "code-patching"
    }  # fmt: skip
    for name in ("pathway.nothing", "code-patching.nothing"):
        with pytest.raises(Wrong, match=r"There is no frame '.*nothing'"):
            frames[name]
    (tmp_path / "alone").mkdir()
    only = alone("pathway", tmp_path / "alone")
    assert {file.name for file in (only / "runs").iterdir()} == {"ab", "cd"}
    assert {file.name.partition(".")[0] for file in (only / "findings").iterdir()} == {"ab", "cd"}


def test_what_was_made_by_another_command_counts_as_missing(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert noted() == {"pathway": ["joint/pathway", "ab", "cd"]}
    note("code-lu2025")
    assert list(noted()) == ["pathway", "code-lu2025"]
    monkeypatch.setattr(docs_made, "digest", lambda page: "other")
    assert list(noted()) == ["pathway"], "the code on the page is another one"
    monkeypatch.setitem(docs_made.COMMANDS, "pathway", "joint/pathway --seed 1")
    assert noted() == {}


def test_a_run_is_made_by_its_command_and_noted_with_those_on_its_way(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    told = "Run cd: 1 of 1\nRun ef: x\nRun cd: again\nno Run aa: x\nRun ab: y\n"
    monkeypatch.setattr(remake_docs, "said", lambda command: started.append(command) or told)
    monkeypatch.setenv(remake_docs.SHARED, "/collections")
    remake_docs.make("pathway-dl19")
    (command,) = started
    assert command[1:6] == ["run", "joint/pathway", "--model", "/collections/models/ce-minilm-l6", "--per-grade"]
    assert noted()["pathway-dl19"] == [COMMANDS["pathway-dl19"], "ab", "cd", "ef"]


def test_what_a_run_says_on_its_way_is_kept_and_shown(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('Run cd: on its way', file=sys.stderr); print('Run ab: done'); sys.exit({})"
    assert remake_docs.ids_of(remake_docs.said([sys.executable, "-c", code.format(0)])) == ["ab", "cd"]
    assert "Run cd: on its way" in capfd.readouterr().err
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        remake_docs.said([sys.executable, "-c", code.format(3)])


def test_what_is_no_run_is_made_once(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: started.append(command))
    monkeypatch.setenv(remake_docs.SHARED, "/collections")
    for _ in range(2):
        remake_docs.make("default")
    assert started == [
        [sys.executable, str(ROOT / "scripts" / "exam_default_model.py"), "--write", "--shared", "/collections"]
    ]
    asked: list[str] = []
    monkeypatch.setattr(docs_frames, "made", lambda of: asked.append(of) or {"": pd.DataFrame({"pairs": [765]})})
    for _ in range(2):
        remake_docs.make("pools-dl19")
    assert asked == ["pools /collections/data/dl19"] and Made()["pools-dl19"]["pairs"].item() == 765
    assert set(noted()) == {"pathway", "default", "pools-dl19"}


def test_the_code_of_a_page_gives_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_frames, "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport numpy as np, pandas as pd\na = np.array([1.0, 2.0])\n_own, text, sure = 1, 'x', True\n```\n"
        "```bash\nnot Python\n```\n```python\nb = pd.Series({'h1.1': a.sum()}).rename_axis('site')\nc = b.to_frame('of')\nd = 4\n```\n"
    )
    found = docs_frames.made("code page")
    assert set(found) == {"a", "b", "c", "d"}
    assert found["a"]["value"].tolist() == [1, 2] and found["d"]["value"].tolist() == [4]
    assert found["b"].to_dict("list") == {"site": ["h1.1"], "value": [3.0]}
    assert found["c"].to_dict("list") == {"site": ["h1.1"], "of": [3.0]}
    before = docs_frames.digest("page")
    page.write_text(page.read_text() + "prose\n")
    assert docs_frames.digest("page") == before
    page.write_text(page.read_text().replace("d = 4", "d = 5"))
    assert docs_frames.digest("page") != before


def test_what_pools_give_is_counted(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "tests" / "data" / "toy", tmp_path / "toy")
    run = [f"q{query} Q0 d0{query}{k:02d} {k} {-k} x" for query in (1, 2) for k in (1, 2, 3)]
    (folder / "run.bm25.txt").write_text("\n".join(run) + "\n")
    found = docs_frames.pools(str(folder)).set_index("pool")
    assert found.loc["all judged", "pairs"] == 72 and found["random"].between(0, 1).all()
    assert found.loc["--run bm25 --top-k 50", "pairs"] == 6


def test_a_table_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- exam -->\nold\n<!-- /exam -->\nafter\n")
    put(page, "exam", [["a", "b"], ["x", 1]])
    assert page.read_text() == "before\n<!-- exam -->\n\n| a | b |\n| --- | --- |\n| x | 1 |\n\n<!-- /exam -->\nafter\n"
    for text in ("no marks", "<!-- exam --> never closed", "<!-- /exam --> <!-- exam -->"):
        page.write_text(text)
        with pytest.raises(Wrong, match=r"^page\.md has no '<!-- exam -->' with '<!-- /exam -->' after it"):
            put(page, "exam", [["a"]])
        assert page.read_text() == text


def test_every_table_that_a_script_writes_has_its_marks() -> None:
    pages = {page: ("exam",) for page in exam_default_model.PAGES}
    pages |= {"docs/inference.md": ("error", "coverage", "power", "null"), "docs/rerankers.md": method_matrix.MARKS}
    for page, names in pages.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert all(text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1 for name in names)


def test_the_exam_is_a_table_of_rankers_and_collections() -> None:
    rows = [
        {"collection": name, "ranker": who, "n": 43, "ndcg": 0.6021, "low": 0.535, "high": 0.6664}
        for name in ("embedded", "dl19")
        for who in ("BM25", "model", "bi-encoder")
    ]
    chance = [
        {"collection": name, "ranker": "random (analytic)", "n": 43, "ndcg": 0.297} for name in ("embedded", "dl19")
    ]
    found = lines_of(pd.DataFrame([*rows, *chance]), ["dl19", "embedded"])
    assert found[0] == ["nDCG@10", "TREC DL 2019 (n = 43)", "embedded (n = 43)"]
    assert found[1] == ["random (analytic)", "0.297", "0.297"]
    assert [line[0] for line in found[2:]] == ["BM25", "bi-encoder (its teacher)", "embedded model"]
    assert found[4][1] == "0.602 [0.535, 0.666]"
    assert [len(line) for line in lines_of(pd.DataFrame([*rows, *chance]), ["embedded"])] == [2] * 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--write", "--model", "other"], "--write is for the embedded model on all collections"),
        (["--write", "--only", "embedded"], "--write is for the embedded model on all collections"),
        (["--only", "dl19"], "give --shared DIR, or set MECHIR_SHARED"),
    ],
)
def test_the_exam_refuses_what_the_page_does_not_say(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MECHIR_SHARED", raising=False)
    monkeypatch.setattr(sys, "argv", ["exam_default_model.py", *arguments])
    with pytest.raises(SystemExit):
        exam_default_model.main()
    assert message in capsys.readouterr().err
