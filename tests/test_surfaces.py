"""Messages name Python's arguments in Python, and on the command line its flags."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import mechir as mi
from mechir.catalog import load_experiment
from mechir.cli.options import in_flags
from mechir.errors import MechirError
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call

ROOT = Path(__file__).parent.parent
NAMED = [click.Option([flag]) for flag in ("--top-k", "--run", "--out", "--same-queries", "--masks", "--leave-out")]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def messages() -> Iterator[tuple[str, str]]:
    """The texts of the errors of everything that can be called from Python."""
    files = [*(ROOT / "analyses").glob("*/*.py"), *(ROOT / "mechir").rglob("*.py")]
    for file in files:
        if file.is_relative_to(ROOT / "mechir" / "cli"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MechirError":
                parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                yield f"{file.relative_to(ROOT)}:{node.lineno}", "".join(map(str, parts))


def test_no_message_of_the_library_names_a_flag() -> None:
    """But in a command to type, between backticks."""
    every = list(messages())
    assert len(every) > 300
    with_flags = [where for where, text in every if re.search(r"--[a-z]", re.sub("`[^`]*`", "", text))]
    assert with_flags == []


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("top_k=3 is out of range: write 1 or more.", "--top-k 3 is out of range: write 1 or more."),
        ("Unknown run='bm 52': write run=FILE.", "Unknown --run 'bm 52': write --run FILE."),
        ("give out= a directory, or out=.", "give --out a directory, or --out."),
        ("leave out same_queries=True.", "leave out --same-queries."),
        ("run= and top_k= take them: give one.", "--run and --top-k take them: give one."),
        ("with leave_out=0.02, or mend them", "with --leave-out 0.02, or mend them"),
        ("masks='doc<-query@h1.1', or masks=a;b", "--masks 'doc<-query@h1.1', or --masks a;b"),
        ("queries=, docs= and qrels=", "queries=, docs= and qrels="),  # no options
        ("Cannot read 'top_k=3', nor RR(run=2)@10", "Cannot read 'top_k=3', nor RR(run=2)@10"),  # what was given
    ],
)
def test_arguments_become_flags(said: str, shown: str) -> None:
    assert in_flags(said, NAMED) == shown


def on_toy(name: str, **chosen: Any) -> Callable[[], Any]:
    return lambda: mi.run(name, mi.load(TOY_MODEL), mi.collection(TOY), **chosen)


BOTH: list[tuple[Callable[[], Any], list[str], str, str]] = [
    (
        lambda: mi.collection(TOY).pairs(per_grade=1, top_k=2),
        ["score", "--per-grade", "1", "--top-k", "2", "--out", "x.run"],
        "per_grade= samples judged documents, and run= and top_k= take a run's: give one or the other.",
        "--per-grade samples judged documents, and --run and --top-k take a run's: give one or the other.",
    ),
    (
        on_toy("vast2025/attention_contrast"),
        ["run", "vast2025/attention_contrast"],
        "No pair of this pool has grade -1 (weak): it has grades 0, 1, 2, 3; add easy_negatives=10.",
        "No pair of this pool has grade -1 (weak): it has grades 0, 1, 2, 3; add --easy-negatives 10.",
    ),
    (
        on_toy("vast2025/attention_contrast", weak=0, of="meanmax"),
        ["run", "vast2025/attention_contrast", "--weak", "0", "--of", "meanmax"],
        "Unknown of='meanmax': the closest are 'mean_max', 'max', 'identical'.",
        "Unknown --of 'meanmax': the closest are 'mean_max', 'max', 'identical'.",
    ),
    (
        on_toy("vast2025/attention_contrast", delta=-1),
        ["run", "vast2025/attention_contrast", "--delta", "-1"],
        "delta=-1 is out of range: write 0 or more.",
        "--delta -1 is out of range: write 0 or more.",
    ),
    (
        on_toy("joint/cut", sites="h1.1", role="matching"),
        ["run", "joint/cut", "--sites", "h1.1", "--role", "matching"],
        "sites= and masks= name what is cut, and so do role=, label= and term=: give one or the other.",
        "--sites and --masks name what is cut, and so do --role, --label and --term: give one or the other.",
    ),
    (
        lambda: mi.findings(),
        ["findings"],
        "'mechir-registry' holds no findings yet: run an experiment first, or give registry=DIR.",
        "'mechir-registry' holds no findings yet: run an experiment first, or give --registry DIR.",
    ),
    (
        lambda: mi.load(TOY_MODEL, max_length=4000),
        ["score", "--max-length", "4000", "--out", "x.run"],
        "max_length=4000 is out of range: the model reads 1 to ",
        "--max-length 4000 is out of range: the model reads 1 to ",
    ),
    (
        lambda: load_experiment("vast2025/layer_sweep").chosen(cut=""),
        ["run", "vast2025/layer_sweep", "--cut", ""],
        "cut='' is empty: write directions with commas, e.g. doc<-query,cls<-all.",
        "--cut '' is empty: write directions with commas, e.g. doc<-query,cls<-all.",
    ),
]


@pytest.mark.parametrize(("python", "arguments", "said", "shown"), BOTH, ids=[" ".join(one[1][:2]) for one in BOTH])
def test_one_mistake_in_the_words_of_each_surface(
    python: Callable[[], Any], arguments: list[str], said: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MechirError) as caught:
        python()
    assert str(caught.value).startswith(said)
    code, _, err = call(capsys, *arguments)
    assert code == 2 and err.splitlines()[-1].startswith(f"mechir: {shown}")
