"""Summaries that older versions stored are read under today's names."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mechir.catalog import experiments
from mechir.registry.renamed import RENAMED, renamed
from tests import reports


@pytest.mark.parametrize("name", RENAMED)
def test_old_names_become_those_of_today_once(name: str) -> None:
    old = pd.DataFrame([range(len(RENAMED[name]) + 1)], columns=["site", *RENAMED[name]])
    now = renamed(old, name)
    assert list(now) == ["site", *RENAMED[name].values()] and now.to_numpy().tolist() == old.to_numpy().tolist()
    assert renamed(now, name).equals(now) and renamed(old, "mine").equals(old)
    assert name in experiments()


def test_a_stored_summary_of_before_is_shown(tmp_path: Path) -> None:
    old = pd.DataFrame({"site": ["h0.1"], "n": [9], "queries": [3], "estimate": [0.1], "p_max": [0.02]})
    run = reports.stored(tmp_path, reports.record("lu2025/head_to_score"), old, rows=old)
    assert list(run.summary) == ["site", "pairs", "queries", "estimate", "p_corrected"]
    own = reports.stored(tmp_path, reports.record("mine"), old, rows=old)
    assert list(own.summary) == list(old)  # an experiment of one's own keeps its columns
