"""Charts are whole, offline, and safe against what stands in a collection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mechir.views import charts, tables
from mechir.views.labels import Box, placed
from mechir.views.scatter import scatter

EVIL = "</script><img src=x onerror=alert(1)>"
FRAME = pd.DataFrame(
    {"reader": ["a", "a", "b", EVIL], "source": ["x", "y", "x", "y"], "value": [0.1, 0.5, 0.9, 0.3], "star": [True] * 4}
)


def layers() -> pd.DataFrame:
    rows = [(source, layer, side, 0.5 + 0.01 * layer) for source in "xy" for layer in range(4) for side in "lr"]
    frame = pd.DataFrame(rows, columns=["source", "layer", "side", "value"])
    return frame.assign(low=frame["value"] - 0.1, high=frame["value"] + 0.1)


@pytest.mark.parametrize(
    "chart",
    [
        charts.heatmap(FRAME, "source", "reader", "value", title=EVIL, subtitle="s", star="star", order_x=["y", "x"]),
        charts.effect_map(FRAME, "source", "reader", "value", title=EVIL, low="value", high="value", ring="star"),
        charts.effect_map(layers(), "layer", "source", "value", title=EVIL, column="side"),
        charts.lines(layers(), "layer", "value", "source", title=EVIL, low="low", high="high", rule={"random": 0.3}),
        charts.lines(layers(), "layer", "value", "source", title=EVIL, column="side", rule={"random": 0.3}),
        scatter(FRAME, "value", "value", "reader", title=EVIL, label="source", named="star", column="source"),
        charts.strips(
            FRAME.assign(draw=[-1, 0, 1, 2], intact=0.5),
            "source",
            "value",
            "reader",
            title=EVIL,
            faint="draw",
            rule="intact",
            column="reader",
        ),
        charts.stacked(
            scatter(FRAME, "value", "value", "value", title=EVIL, label="reader"),
            scatter(FRAME, "value", "value", "reader", title=EVIL),
        ),
    ],
)
def test_html_needs_no_network_and_runs_no_foreign_markup(chart: Any, tmp_path: Path) -> None:
    html, png, spec = charts.save(chart, tmp_path / "chart")
    page = html.read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert r"\u003c/script\u003e\u003cimg" in page
    assert "https://cdn" not in page
    assert 'src="http' not in page
    assert png.read_bytes().startswith(b"\x89PNG")
    assert json.loads(spec.read_text(encoding="utf-8")) == json.loads(json.dumps(chart.to_dict()))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chart.html", "chart.json", "chart.png"]


def test_texts_that_no_svg_can_hold_are_drawn_as_far_as_they_can(tmp_path: Path) -> None:
    told = FRAME.assign(reader=["\x00", "\x1b[31m", "\ufffe", "whole"])
    spec = charts.heatmap(told, "source", "reader", "value", title="\x08title\ud800").to_dict()
    svg = charts.picture(spec, ".svg").decode()
    assert "\ufffdtitle\ufffd" in svg and "\ufffd[31m" in svg and "whole" in svg
    assert charts.picture(spec, ".png").startswith(b"\x89PNG")


def test_a_chart_that_fails_leaves_nothing(tmp_path: Path) -> None:
    broken = charts.heatmap(FRAME, "source", "reader", "value", title="t")
    broken.layer[0].mark = "no such mark"
    with pytest.raises(Exception, match="no such mark"):
        charts.save(broken, tmp_path / "chart")
    assert list(tmp_path.iterdir()) == []


def test_the_star_and_the_number_stand_in_the_cell() -> None:
    spec = charts.heatmap(FRAME.iloc[:3], "source", "reader", "value", title="t", star="star").to_dict()
    rows = next(iter(spec["datasets"].values()))
    assert [row["written"] for row in rows] == ["0.10*", "0.50*", "0.90*"]
    assert [row["dark"] for row in rows] == [True, False, False]


def test_a_table_rounds_and_leaves_out_empty_columns() -> None:
    frame = pd.DataFrame(
        {"name": ["a", "b"], "n": [3, 4], "x": [0.12345, None], "p_x": [1e-7, 0.5], "none": [None, None]}
    )
    text = tables.summary(frame)
    assert "0.123" in text
    assert "1e-07" in text
    assert "none" not in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize("seed", range(5))
def test_no_label_is_printed_over_another_or_over_a_point(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = np.concatenate([random.uniform(0, 1, (20, 2)) * (380, 300), random.normal((60, 40), 8, (40, 2))])
    texts = [f"h{k // 12}.{k % 12}" for k in range(60)]
    named = [k % 5 != 0 for k in range(60)]
    places = placed(points, texts, named, 380, 300)
    boxes = [
        Box(place.x - 3 * len(text), place.x + 3 * len(text), place.y - 6, place.y + 6)
        for place, text in zip(places, texts, strict=True)
        if np.isfinite(place.x)
    ]
    assert not any(one.meets(other) for k, one in enumerate(boxes) for other in boxes[:k])
    assert not any(box.left < x < box.right and box.bottom < y < box.top for box in boxes for x, y in points)
    assert all(box.inside(380, 300) for box in boxes)
    assert all(np.isnan(place.x) for place, wanted in zip(places, named, strict=True) if not wanted)
    alone = [k for k in range(20) if named[k]]
    assert sum(np.isfinite(places[k].x) for k in alone) >= len(alone) - 2, "those apart have room"


def test_a_label_far_from_its_point_has_a_line() -> None:
    same = np.full((12, 2), 150.0)
    places = placed(same, [f"h1.{k}" for k in range(12)], [True] * 12, 380, 300)
    lines = [place for place in places if np.isfinite(place.end_x)]
    assert np.isfinite([place.x for place in places]).all() and 0 < len(lines) < 12
    assert all(np.hypot(place.end_x - 150, place.end_y - 150) > 8 for place in lines)
    assert all(abs(place.end_y - place.y) <= 6 for place in lines), "it ends at its label"
    assert placed(np.empty((0, 2)), [], [], 380, 300) == []
    (crowded,) = placed(np.array([[2.0, 2.0]]), ["a label much wider than its plot"], [True], 50, 50)
    assert np.isnan(crowded.x)


def test_labels_stand_beside_the_points_of_each_panel() -> None:
    frame = pd.DataFrame({"x": [0.1, 0.1, 0.5, np.nan], "y": [1.0, 1.0, 2.0, 1.0], "site": ["a", "b", "c", "d"],
                          "of": ["q", "d", "q", "q"], "heads": "lexical"})  # fmt: skip
    spec = scatter(frame, "x", "y", "heads", title="t", label="site", column="of").to_dict()
    (rows,) = spec["datasets"].values()
    assert all(row["label_x"] is not None for row in rows if row["site"] != "d")
    assert next(row for row in rows if row["site"] == "d")["label_x"] is None
    same = {row["site"]: (row["label_x"], row["label_y"]) for row in rows}
    assert same["a"] == same["b"], "panels do not take each other's room"
