"""`mechir new experiment`: what it writes runs, is tested, and is refused where it would overwrite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mechir as mi
from mechir import analyses
from mechir.analyses import class_name
from mechir.catalog import all_experiments
from tests.test_cli import call


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_skeleton_passes_its_own_test(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = call(capsys, "new", "experiment", "my_heads", defaults=True)
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["Wrote my_heads.py", "Wrote test_my_heads.py"]
    kind = mi.load_experiment("my_heads.py")
    assert (kind.__name__, kind.name) == ("MyHeads", "my_heads") and list(kind.options()) == ["renormalise", "relevant"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_heads.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    code, out, _ = call(capsys, "run", "my_heads.py", "--help", defaults=True)
    assert code == 0 and "Divide the change by the standard deviation of the scores." in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("My-Heads",), "'My-Heads' cannot name a Python file: write lower-case letters, digits and _, e.g. my_heads."),
        (("../heads",), "'../heads' cannot name a Python file: write lower-case letters, digits and _, e.g. my_heads."),
        (("heads", "--folder", "none"), "There is no directory 'none': give one that exists with --folder."),
        (("there",), "'test_there.py' exists already: take another name, or remove it."),
    ],
)
def test_what_cannot_be_written_is_refused(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("test_there.py").touch()
    code, out, err = call(capsys, "new", "experiment", *words, defaults=True)
    assert (code, out, err) == (2, "", f"mechir: {message}\n")
    assert [file.name for file in Path().iterdir()] == ["test_there.py"]


def test_every_class_is_named_as_its_file() -> None:
    for kind in all_experiments():
        assert kind.__name__ == class_name(kind.name.rpartition("/")[2])
        assert getattr(analyses, kind.__name__) is kind
        assert all(len(option.says.split()) > 1 for option in kind.options().values()), kind.name
