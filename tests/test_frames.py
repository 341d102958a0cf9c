"""No change of form changes a number: the frames of every experiment are those that are kept in `data/frames`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mechir.registry.renamed import RENAMED
from tests import frames

DRAWN, OF_NOISE = 2e-3, 0.05
"""How far a p of 10,000 resamples may be off, and one above .05: on planted models heads that do nothing are rounding
alone, which differs between processors, and each is part of the family that the largest statistic is taken of."""


def the_same(kept: Any, now: Any, where: str, most: float = 2e-4) -> None:
    """Refuses what differs by more than rounding: 1e-3 of a value, or `most`."""
    if isinstance(kept, float | int) and not isinstance(kept, bool) and now is not None:
        assert now == pytest.approx(kept, rel=1e-3, abs=most, nan_ok=True), where
    else:
        assert now == kept, where


def compared(kept: dict[str, Any], now: dict[str, Any], where: str, renamed: Mapping[str, str]) -> None:
    """The columns that were kept, renamed ones by their new name; columns may be added."""
    assert bool(kept) == bool(now), where
    if not kept:
        return
    assert kept["n"] == now["n"], where
    places = [now["columns"].index(renamed.get(name, name)) for name in kept["columns"]]
    rows = [in_order(kept["data"]), in_order([[row[place] for place in places] for row in now["data"]])]
    for number, (old_row, new_row) in enumerate(zip(*rows, strict=True)):
        for name, old, new in zip(kept["columns"], old_row, new_row, strict=True):
            is_p = bool(re.match(r"p(_|$)", name)) and isinstance(old, float)
            most = (DRAWN if old < 0.05 else OF_NOISE) if is_p else 2e-4
            the_same(old, new, f"{where}, {name}, row {number}", most)


def in_order(rows: list[list[Any]]) -> list[list[Any]]:
    """Rows by their texts and whole numbers: which of two equal values comes first is a matter of rounding, and of the processor."""
    return sorted(rows, key=lambda row: [str(cell) for cell in row if isinstance(cell, str | int)])


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
