"""No change of form changes a number: the frames of every experiment are those that are kept in `data/frames`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mechir.registry.renamed import RENAMED
from tests import frames


def the_same(kept: Any, now: Any, where: str) -> None:
    """Refuses what differs by more than rounding: 1e-3 of a value, or 2e-4."""
    if isinstance(kept, float | int) and not isinstance(kept, bool) and now is not None:
        assert now == pytest.approx(kept, rel=1e-3, abs=2e-4, nan_ok=True), where
    else:
        assert now == kept, where


def compared(kept: dict[str, Any], now: dict[str, Any], where: str, renamed: Mapping[str, str]) -> None:
    """The columns that were kept, renamed ones by their new name; columns may be added."""
    assert bool(kept) == bool(now), where
    if not kept:
        return
    assert kept["n"] == now["n"], where
    for place, name in enumerate(kept["columns"]):
        new = now["columns"].index(renamed.get(name, name))
        for number, (old_row, new_row) in enumerate(zip(kept["data"], now["data"], strict=True)):
            the_same(old_row[place], new_row[new], f"{where}, {name}, row {number}")


@pytest.mark.parametrize("name", ["planted", pytest.param("default", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_every_experiment_has_the_numbers_that_were_kept(name: str, tmp_path: Path) -> None:
    kept = json.loads((frames.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(frames.frames(name, tmp_path)))
    assert sorted(now) == sorted(kept)
    for experiment, old in kept.items():
        compared(old["summary"], now[experiment]["summary"], f"{experiment}, summary", RENAMED.get(experiment, {}))
        compared(old["findings"], now[experiment]["findings"], f"{experiment}, findings", {})
        for column, value in old["rows"].items():
            the_same(value, now[experiment]["rows"][column], f"{experiment}, rows, {column}")
