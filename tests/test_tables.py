"""Tables that fit a terminal: intervals beside their own estimate, the largest rows, columns that are left out."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.views.latex import interval_ends
from mechir.views.tables import fitted
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call

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
    assert shown.rows == 20 and max(map(len, lines)) <= 60 and shown.left_out == ["more"]
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
    assert fitted(twice, 80).rows == 20 and "h29" in fitted(twice, 80).text
    assert "[1]" in fitted(pd.DataFrame({"s": [[1], [2]], "estimate": [1.0, 2.0]}), 80).text


def test_an_interval_stands_beside_what_it_is_of() -> None:
    """Beside a change the ends are those of the change; the extremes of random draws are no interval."""
    assert interval_ends(["value", "change", "low", "high"]) == {"change": ("low", "high")}
    assert interval_ends(["value", "low", "high"]) == {"value": ("low", "high")}
    assert interval_ends(["random", "random_low", "random_high"]) == {}
    both = interval_ends(["estimate", "low", "high", "change", "change_low", "change_high"])
    assert both == {"change": ("change_low", "change_high"), "estimate": ("low", "high")}


@pytest.mark.parametrize("columns", [80, 120])
def test_a_real_terminal_wraps_no_line(tmp_path: Path, columns: int) -> None:
    mi.run("vast2025/direction_ablation", mi.load(TOY_MODEL), mi.collection(TOY), registry=tmp_path / "r")
    (run,) = (tmp_path / "r" / "runs").iterdir()
    for command in (["show", run.name], ["findings"], ["show"]):
        text = terminal([*command, "--registry", str(tmp_path / "r")], columns)
        tables = [line for line in text.splitlines() if not line.startswith(("weights:", "Run ", "parity ", "reads "))]
        assert tables and [line for line in tables if len(line) > columns] == []


def terminal(arguments: list[str], columns: int) -> str:
    """What a terminal of so many columns shows of a command."""
    parent, child = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "HF_HUB_OFFLINE": "1"}
    code = "import sys; from mechir.cli import main; main(sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=child, stderr=child, env=environment
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


def test_all_rows_are_one_command_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mi.run("vast2025/direction_ablation", mi.load(TOY_MODEL), mi.collection(TOY), registry=tmp_path / "r")
    (run,) = (tmp_path / "r" / "runs").iterdir()
    _, out, _ = call(capsys, "show", run.name, "--registry", str(tmp_path / "r"))
    assert (
        f"all: mechir show {run.name} --all" in out and len([line for line in out.splitlines() if "<-" in line]) <= 20
    )
    _, whole, _ = call(capsys, "show", run.name, "--all", "--registry", str(tmp_path / "r"))
    summary = pd.read_parquet(run / "summary.parquet")
    assert len([line for line in whole.splitlines() if "<-" in line]) == summary["name"].str.contains("<-").sum()
    assert all(name in whole for name in summary)
