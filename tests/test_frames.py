"""No change of form changes a number: the frames of every experiment are those that are kept in `data/frames`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mechir.inference import LEVEL
from mechir.registry.renamed import RENAMED
from tests import frames

DRAWN = 2e-3
"""How far a p of 10,000 resamples may be off, whose ties rounding breaks."""


def the_same(kept: Any, now: Any, where: str, *, is_p: bool = False, sure: bool = True) -> None:
    """Refuses what differs by more than rounding: 1e-3 of a value, or 2e-4.

    In rows that are not `sure` by 2e-2 or 2e-3, and both p are .05 or more: on planted models these are components that
    do nothing but round, each in the family that the largest statistic is taken of, and processors round differently.
    """
    if not isinstance(kept, float | int) or isinstance(kept, bool) or now is None:
        assert now == kept, where
    elif is_p and not sure:
        assert now >= LEVEL and kept >= LEVEL, where
    else:
        rel, most = (1e-3, DRAWN if is_p else 2e-4) if sure else (2e-2, 2e-3)
        assert now == pytest.approx(kept, rel=rel, abs=most, nan_ok=True), where


def compared(kept: dict[str, Any], now: dict[str, Any], where: str, renamed: Mapping[str, str]) -> None:
    """The columns that were kept, renamed ones by their new name; columns may be added."""
    assert bool(kept) == bool(now), where
    if not kept:
        return
    assert kept["n"] == now["n"], where
    places = [now["columns"].index(renamed.get(name, name)) for name in kept["columns"]]
    rows = [in_order(kept["data"]), in_order([[row[place] for place in places] for row in now["data"]])]
    ps = [place for place, name in enumerate(kept["columns"]) if re.match(r"p(_|$)", name)]
    for number, (old_row, new_row) in enumerate(zip(*rows, strict=True)):
        known = [old_row[place] for place in ps if old_row[place] is not None]
        low, high = (dict(zip(kept["columns"], old_row, strict=True)).get(end) for end in ("low", "high"))
        known += [1.0] if low is not None and high is not None and low < 0 < high else []
        for place, (name, old, new) in enumerate(zip(kept["columns"], old_row, new_row, strict=True)):
            unsure = bool(known) and (old if place in ps and old is not None else max(known)) >= LEVEL
            the_same(old, new, f"{where}, {name}, row {number}", is_p=place in ps, sure=not unsure)


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
