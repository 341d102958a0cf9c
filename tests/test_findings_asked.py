"""Findings by label and by whether they hold, in Python and on the command line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.errors import MechirError
from mechir.registry.evidence import held
from mechir.registry.queries import matching
from tests.test_cli import call
from tests.test_links import CONTRAST, SURE, row, tell


def test_findings_by_label_and_by_whether_they_hold(told: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = held(matching(told, newest=True))
    holding, not_holding = (mi.findings(holds=holds, registry=told) for holds in (True, False))
    assert len(holding) == every["holds"].sum() > 0 and len(holding) + len(not_holding) == len(every)
    label = next(label for label in every["label"] if label)
    assert set(mi.findings(label=label, registry=told)["label"]) == {label}
    with pytest.raises(
        MechirError, match=f"There is no finding of label 'no such label': the closest are .*'{label}'|closest"
    ):
        mi.findings(label="no such label", registry=told)
    code, out, _ = call(capsys, "findings", "--registry", str(told))
    assert code == 0 and len(out.splitlines()) <= 22
    n = len(mi.findings(registry=told))
    assert f"20 of {n} findings" in out and f"--limit {n} prints all" in out
    code, out, _ = call(capsys, "findings", "--registry", str(told), "--holds", "--limit", "1")
    assert code == 0 and len(out.splitlines()) == 3 and f"1 of {len(holding)} findings" in out
    code, out, _ = call(capsys, "findings", "--registry", str(told), "--format", "csv")
    assert len(out.splitlines()) == n + 1


def test_an_older_run_with_the_label_is_no_newest_finding(tmp_path: Path) -> None:
    tell(tmp_path, "a1", [row(CONTRAST, "h1.2", 0.3, SURE, label="lexical")], written="2026-01-01")
    tell(tmp_path, "b1", [row(CONTRAST, "h1.2", 0.3, SURE, label="undecided")], written="2026-01-02")
    assert mi.findings(label="lexical", holds=True, registry=tmp_path).empty
    assert mi.findings(label="undecided", holds=True, registry=tmp_path)["run_id"].tolist() == ["b1"]
    assert len(mi.findings(label="lexical", registry=tmp_path)) == 1, "without holds every run's are shown"


def test_what_holds_is_exported(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "holds.csv"
    code, _, err = call(capsys, "export", str(out), "--holds", "--registry", str(told))
    assert code == 0, err
    assert len(pd.read_csv(out)) == len(mi.findings(holds=True, registry=told)) > 0
    code, _, err = call(capsys, "export", str(tmp_path / "l.csv"), "--links", "--holds", "--registry", str(told))
    assert code == 2 and "--holds asks findings: leave out --links" in err
