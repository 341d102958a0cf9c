"""The README and the documentation run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import mechir as mi
from scripts.docs_outputs import SHOWING, Block, blocks, printed, rewritten
from tests.outputs import same

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_what_runs_prints_what_the_page_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        output = printed(block, names, page)
        if block.output is not None:
            assert same("stdout", block.output, output), stale(page, block, output)
        elif ROOT / page in SHOWING:
            assert not output, stale(page, block, output)


def stale(page: str, block: Block, output: str) -> str:
    """Where a page says something else than its code prints, in words."""
    return f"{page} says of\n{block.code}that it prints\n{block.output}but it prints\n{output}"


def test_a_page_that_says_something_else_is_found() -> None:
    text = "```python\nx = 2.5\nprint('a', x)\nx * 2\n```\n\n```text\na 2.5\n5.0\n```\n\n```python\nx\n```\nprose\n```text\nb\n```\n"
    first, second = blocks(text)
    assert second == Block("python", "x\n", None), "what does not follow directly is no output"
    output = printed(first, {}, "page")
    assert output == "a 2.5\n5.0\n" and same("stdout", first.output or "", output)
    for wrong in ("a 2.8\n5.0\n", "a 2.5\n", "b 2.5\n5.0\n"):
        assert not same("stdout", wrong, output)
        assert rewritten(text.replace("a 2.5\n5.0\n", wrong), "page") == text


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target, anchor in re.findall(
        r"\]\(([\w./-]+\.(?:md|ipynb|png))(?:#([\w-]+))?\)", file.read_text(encoding="utf-8")
    ):
        assert (file.parent / target).is_file(), target
        if anchor and target.endswith(".md"):
            headings = re.findall(r"^#+ (.*)$", (file.parent / target).read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"


def test_the_page_for_assistants_is_short_and_names_what_there_is() -> None:
    page = (ROOT / "docs" / "assistants.md").read_text(encoding="utf-8")
    assert page.count("\n") <= 200
    named = set(re.findall(r"\bmi\.(\w+)", page))
    assert named <= set(dir(mi)), named - set(dir(mi))
    verbs = {
        "load",
        "collection",
        "pairs",
        "sweep",
        "evaluate",
        "patch",
        "path_patch",
        "run",
        "findings",
        "dossier",
        "links",
    }
    assert verbs <= named


def test_commands_of_a_page_run_where_their_output_stands_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = "```bash\nmechir new experiment some  # a file\n```\n```text\n```\n"
    (block,) = blocks("```bash\nmechir run  # takes minutes\n```\nprose\n" + page)
    assert printed(block, {}, "page").startswith("Wrote some.py\n")
    (block,) = blocks("```bash\nrm some.py\n```\n```text\n```\n")
    with pytest.raises(ValueError, match=r"^Only mechir runs here, not 'rm some\.py'"):
        printed(block, {}, "page")
    assert (tmp_path / "some.py").is_file()


def test_every_hook_is_in_the_table() -> None:
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    for name in mi.load().hook_dict:
        assert re.sub(r"blocks\.\d+\.", "", name).split(".")[-1] in page, name


def test_every_public_name_is_importable_and_described() -> None:
    for name in dir(mi):
        assert getattr(mi, name) is not None
    with pytest.raises(AttributeError, match="module 'mechir' has no attribute 'nothing'"):
        _ = mi.nothing  # type: ignore[attr-defined]


def test_import_leaves_the_heavy_libraries_for_later() -> None:
    code = "import sys, mechir; print([n for n in ('transformers', 'transformer_lens', 'altair', 'ir_datasets') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_wheel_carries_the_experiments_and_the_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.startswith("mechir_encoders-")
    assert {
        "mechir/analyses/vast2025/direction_ablation.py",
        "mechir/data/assistants.md",
        "mechir/data/embedded/docs.tsv",
        "mechir/data/default/difference.safetensors",
        *(f"mechir/views/{name}" for name in ("report.html", "report.css", "report.js", "dossier.js", "start.js")),
        *(f"mechir/views/{name}" for name in ("strips.css", "strips.js")),
    } <= names
    # In an empty folder, from the wheel alone: nothing of the checkout is on the path.
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    run = [
        sys.executable,
        "-c",
        "from mechir.cli import main; main(['run', 'vast2025/direction_ablation', '--limit-queries', '1', '--per-grade', '1'])",
    ]
    done = subprocess.run(
        run, cwd=tmp_path / "empty",
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "on embedded: 1 queries" in done.stdout
    assert "random_analytic" in done.stdout
