"""Findings by label and by whether they hold, in Python and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import mechir as mi
from mechir.errors import MechirError
from mechir.registry.evidence import held
from mechir.registry.queries import matching
from tests.test_cli import call


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
