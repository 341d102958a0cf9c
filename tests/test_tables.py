"""Tables that fit a terminal: intervals beside their own estimate, the largest rows, columns that are left out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.catalog import experiments
from mechir.views.latex import interval_ends
from mechir.views.tables import LINES, fitted
from tests import frames
from tests.models import TOY, TOY_MODEL
from tests.reports import record, stored
from tests.test_cli import call
from tests.test_links import NOT, PATCHING, SURE, row, tell

ROWS = pd.DataFrame(
    {
        "site": [f"h{n}.0" for n in range(30)],
        "measure": "patching, tfc1",
        "note": "",
        "estimate": [n / 100 - 0.1 for n in range(30)],
        "low": [n / 100 - 0.2 for n in range(30)],
        "high": [n / 100 for n in range(30)],
        "p_corrected": 0.01,
        "queries": 20,
        "detail": "a text that is long and says little " * 3,
        "more": [f"another text of line {n}" for n in range(30)],
    }
)


def test_the_largest_rows_in_the_width_with_their_intervals() -> None:
    shown = fitted(ROWS, 60)
    lines = shown.text.splitlines()
    assert shown.rows == 16 and len(lines) == 20 and max(map(len, lines)) <= 60 and shown.left_out == ["more"]
    assert lines[0].startswith("measure patching, tfc1; detail a text that is long")
    assert re.search(r"h29.0 +0.190 \[0.090, 0.290\]", shown.text) and "h10.0" not in shown.text
    narrow = fitted(ROWS, 45)
    assert narrow.left_out == ["queries", "more"] and "p_corrected" not in narrow.left_out
    assert fitted(ROWS.head(5), 200).left_out == [] and fitted(ROWS.head(0), 80).text == "no rows"
    assert [line.split()[0] for line in fitted(ROWS.head(3), 200).text.splitlines()[-3:]] == ["h0.0", "h1.0", "h2.0"]


def test_small_numbers_and_tables_of_one_text_are_shown() -> None:
    assert "0.00012" in fitted(pd.DataFrame({"site": ["a", "b"], "estimate": [1.2e-4, 0.5]}), 80).text
    assert "x" in fitted(pd.DataFrame({"a": ["x", "x"], "b": ["y", "y"]}), 80).text
    twice = pd.DataFrame({"site": [f"h{n}" for n in range(30)], "estimate": range(30)}, index=[0] * 30)
    assert fitted(twice, 80).rows == 19 and "h29" in fitted(twice, 80).text
    assert "[1]" in fitted(pd.DataFrame({"s": [[1], [2]], "estimate": [1.0, 2.0]}), 80).text


def test_an_interval_stands_beside_what_it_is_of() -> None:
    """Beside a change the ends are those of the change; the extremes of random draws are no interval."""
    assert interval_ends(["value", "change", "low", "high"]) == {"change": ("low", "high")}
    assert interval_ends(["value", "low", "high"]) == {"value": ("low", "high")}
    assert interval_ends(["random", "random_low", "random_high"]) == {}
    both = interval_ends(["estimate", "low", "high", "change", "change_low", "change_high"])
    assert both == {"change": ("change_low", "change_high"), "estimate": ("low", "high")}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a run."""
    made = tmp_path_factory.mktemp("tables") / "r"
    mi.run("vast2025/direction_ablation", mi.load(TOY_MODEL), mi.collection(TOY), registry=made)
    return made


@pytest.mark.parametrize("columns", [80, 120])
def test_a_real_terminal_wraps_no_line(registry: Path, columns: int) -> None:
    (run,) = (registry / "runs").iterdir()
    for command in (["show", run.name], ["findings"]):
        text = terminal(["-c", MAIN, *command, "--registry", str(registry)], columns)
        tables = [
            line
            for line in text.splitlines()
            if not line.startswith(("weights:", "Run ", "parity ", "reads ", "chart: "))
        ]
        assert tables and [line for line in tables if len(line) > columns] == []


TABLES = """
import json, sys
from types import SimpleNamespace
import pandas as pd
from mechir.cli.ask import print_table
from mechir.registry.renamed import renamed
kept = {name: one["summary"] for name, one in json.load(open(sys.argv[1], encoding="utf-8")).items()}
for name, one in (kept | json.load(open(sys.argv[2], encoding="utf-8"))).items():
    summary = renamed(pd.DataFrame(one["data"], columns=one["columns"]), name)
    print("#", name)
    print_table(SimpleNamespace(id="0" * 16, summary=summary, record={"identity": {"experiment": name}}))
"""
"""Prints the table of every experiment, as `mechir show` does, from the beginning of its summary on the default model:
those of `tests.frames`, and in `data/tables.json` those of runs that take minutes."""


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_of_every_experiment_fits_a_terminal(columns: int) -> None:
    kept = [frames.FOLDER / "default.json", frames.FOLDER.parent / "tables.json"]
    text = terminal(["-c", TABLES, *map(str, kept)], columns)
    tables = dict(part.strip().partition("\n")[::2] for part in text.split("# ")[1:])
    assert sorted(tables) == sorted(experiments())
    for name, table in tables.items():
        lines = table.splitlines()
        assert not [line for line in lines if len(line) > columns], name
        assert 3 <= len(lines) <= LINES + 1, name  # and one that says how to see all
        assert not re.search(r"\b(NaN|nan|None)\b", table), name
    assert re.search(r"h2.9 +0\.157 \[", tables["vast2025/attention_contrast"])


def terminal(arguments: list[str], columns: int) -> str:
    """What a terminal of so many columns shows of Python with these arguments."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, *arguments], stdin=child, stdout=child, stderr=child, env=environment | {"HF_HUB_OFFLINE": "1"}
    ) as process:
        os.close(child)
        read = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # the end, as Linux says it
                break
            if not part:
                break
            read += part
        assert process.wait() == 0, read.decode()
    os.close(parent)
    return read.decode().replace("\r\n", "\n")


MAIN = "import sys; from mechir.cli import main; main(sys.argv[1:])"


def test_all_rows_are_one_command_away(registry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = (registry / "runs").iterdir()
    _, out, _ = call(capsys, "show", run.name, "--registry", str(registry))
    assert (
        f"all: mechir show {run.name} --all" in out and len([line for line in out.splitlines() if "<-" in line]) <= 20
    )
    _, whole, _ = call(capsys, "show", run.name, "--all", "--registry", str(registry))
    summary = pd.read_parquet(run / "summary.parquet")
    rows = [line for line in whole.splitlines() if re.match(r" *[a-z0-9|]+<-", line)]
    assert len(rows) == summary["name"].str.contains("<-").sum()
    assert all(name in whole for name in summary)


def test_a_run_says_how_many_findings_hold_and_which_are_largest(tmp_path: Path) -> None:
    other = {"measure": "conductance, relevant documents", "unit": "logits", "low": None, "high": None}
    gap = {"measure": "gap, tfc1", "unit": "logits", "least": 0.05}
    rows = [{**other, "site": f"h3.{k}", "value": k / 10} for k in range(5)]
    rows += [row(PATCHING, f"h1.{k}", 0.3 + k / 10, SURE if k % 2 else NOT) for k in range(3)]
    rows += [row(PATCHING, "h1.9", 0.04, SURE), row(gap, "", 0.5, SURE)]
    run = stored(tmp_path, record("a/b"), pd.DataFrame({"estimate": [0.1]}), rows=pd.DataFrame({"a": [1]}))
    tell(tmp_path, run.id, rows)
    assert run.answer == [
        "patching, tfc1, at query|doc: 1 of 4 hold (p < 0.05, corrected); h1.1 0.4 [0.39, 0.41] (share of the gap).",
        "gap, tfc1: 0.5 [0.49, 0.51] logits, holds.",
        "conductance, relevant documents: 5, untested; h3.4 0.4, h3.3 0.3, h3.2 0.2 and 2 more (logits).",
    ]
    (run.path / "summary.parquet").unlink()
    assert run.answer == [], "a run that is not finished says nothing"


def test_of_a_measure_of_which_nothing_holds_the_largest_are_named(tmp_path: Path) -> None:
    run = stored(tmp_path, record("a/b"), pd.DataFrame({"estimate": [0.1]}), rows=pd.DataFrame({"a": [1]}))
    assert run.answer == []
    tell(tmp_path, run.id, [row(PATCHING, "h1.0", 0.3, NOT), row(PATCHING, "h1.1", -0.4, NOT)])
    (sentence,) = run.answer
    assert "0 of 2 hold (p < 0.05, corrected); the largest: h1.1 -0.4 [-0.41, -0.39], h1.0 0.3" in sentence
