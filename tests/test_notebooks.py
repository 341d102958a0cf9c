"""The notebooks run from the top, and what they hold is what they compute now, without a trace of where."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.site_html import on_page_content
from tests.outputs import same

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
TRACES = (
    r"/home/|/root/|/tmp/|/usr/|/Users/|site-packages|[A-Z]:\\",  # paths of a machine
    r"20\d\d-\d\d-\d\dT|0x[0-9a-f]{8}",  # times and addresses
)
NETWORK = r"""(?:src|href|data|action)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//|(?:import|fetch)\s*\(?\s*["'](?:https?:)?//"""


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def outputs(notebook: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of every output the id of its cell, its kind and its text."""
    found = []
    for cell in notebook["cells"]:
        for one in cell.get("outputs", []):
            if one["output_type"] == "stream":
                found.append((cell["id"], one["name"], "".join(one["text"])))
            else:
                assert one["output_type"] != "error", one
                found += [(cell["id"], kind, "".join(text)) for kind, text in sorted(one["data"].items())]
    return found


def executed(file: Path, into: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "notebooks.py"), str(file), "--into", str(into)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_holds_what_it_computes(file: Path, tmp_path: Path) -> None:
    done = executed(file, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    stored, now = read(file), read(tmp_path / file.name)
    for old, new in zip_longest(outputs(stored), outputs(now)):
        what = f"{file.name} is stale: write python scripts/notebooks.py\n{old}\n{new}"
        assert old and new and old[:2] == new[:2] and same(*old[1:], new[2]), what
    assert stored["metadata"] == now["metadata"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_its_outputs_need_no_network_and_do_not_say_where_it_ran(file: Path) -> None:
    assert file.stat().st_size < 600_000
    notebook = read(file)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["metadata"] == {} for cell in notebook["cells"]) and {*notebook["metadata"]} == {
        "kernelspec",
        "language_info",
    }
    held = outputs(notebook)
    assert len({cell for cell, _, _ in held}) >= len(code) - 2  # what sets things up shows nothing
    assert {kind for _, kind, _ in held} <= {"text/plain", "text/html", "image/svg+xml", "stdout"}
    assert any(kind in ("text/html", "image/svg+xml") for _, kind, _ in held)
    for cell, kind, text in held:
        for trace in (*TRACES, NETWORK, re.escape(str(ROOT))):
            found = re.search(trace, text, re.IGNORECASE if trace == NETWORK else 0)
            assert not found, (cell, kind, found)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_its_links_lead_somewhere(file: Path) -> None:
    """As files here, and as pages of the built documentation."""
    text = "".join("".join(cell["source"]) for cell in read(file)["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    page = SimpleNamespace(file=SimpleNamespace(src_uri=f"notebooks/{file.name}"))
    for link in links:
        target, _, anchor = link.partition("#")
        assert (file.parent / target).is_file(), link
        there = "../" + target.rpartition(".")[0] + "/" + (f"#{anchor}" if anchor else "")
        assert on_page_content(f'<a href="{link}">', page) == f'<a href="{there}">'
        if anchor:
            assert f"## {anchor}\n" in (file.parent / target).read_text(encoding="utf-8").lower(), link


def test_a_cell_that_fails_leaves_the_file_alone(tmp_path: Path) -> None:
    """And it is this checkout that it runs on."""
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": None, "outputs": []}
    cell |= {"source": "import mechir\nraise LookupError(f'no, {mechir.__file__}')"}
    file = tmp_path / "failing.ipynb"
    file.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    before = file.read_bytes()
    done = executed(file, tmp_path)
    assert done.returncode != 0
    assert f"LookupError: no, {ROOT / 'mechir' / '__init__.py'}" in re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
    assert file.read_bytes() == before and [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(
    ("stored", "now", "is_same"),
    [
        ("h1.1  0.0861   12 pairs", "h1.1 0.0862 12  pairs", True),
        ("0.0861", "0.0961", False),
        ("12 pairs", "13 pairs", False),
        ("12 pairs", "12 contrasts", False),
        ("h1.1 0.086", "h1.2 0.086", False),
        ("0.25", "-0.25", False),
        ("8.5e-08", "-1.2e-07", True),
        ("0.03", "0.0299", True),
        ("0", "0.0001", True),
        ("0", "0.9", False),
        ("4.24 1.90", "4.24", False),
    ],
)
def test_what_is_stale(stored: str, now: str, is_same: bool) -> None:
    assert same("text/plain", stored, now) is is_same


def test_of_pictures_the_words_and_shapes_count() -> None:
    assert same("image/svg+xml", '<path d="M1,2"/><text>a</text>', '<path d="M1.5,\u22122"/><text>a</text>')
    assert not same("image/svg+xml", "<text>a</text>", "<text>b</text>")


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://a.b/c.js">', "<img src='//a.b/c'>", "<link rel=x href=http://a.b>",
        "background: url(https://a.b)", 'import("https://a.b")', "fetch('//a.b')",
    ],
)  # fmt: skip
def test_what_would_fetch(text: str) -> None:
    assert re.search(NETWORK, text)
    assert not re.search(NETWORK, '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">')
