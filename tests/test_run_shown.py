"""A run in a notebook: its table, its chart, both as a page, and a chart that was wrong and is mended."""

from __future__ import annotations

from html import escape
from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.shard import Shard
from tests.models import TOY, TOY_MODEL

OWN = """from dataclasses import dataclass
from mechir.experiment import Experiment
from mechir.sweeps import sweep
from mechir.views import charts

@dataclass(frozen=True)
class Mine(Experiment):
    \"\"\"How high scores are.\"\"\"

    def measure(self, model, pairs):
        with open(COUNTED, "a") as file:
            file.write("x")
        return sweep(model, pairs, {"original": ()})

    def summarise(self, run):
        return run.rows.groupby("query_id")["score"].mean().reset_index(name="estimate")

    def chart(self, summary):
        return charts.bars(summary, "estimat", "query_id", title="mine")
"""


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


def test_a_run_shows_its_table_and_its_chart(toy: HookedEncoder, tmp_path: Path) -> None:
    run = mi.run("vast2025/direction_ablation", toy, mi.collection(TOY), registry=tmp_path)
    pd.testing.assert_frame_equal(
        run.table, type(mi.load_experiment("vast2025/direction_ablation")()).table(run.summary)
    )
    assert run.answer[0].startswith("nDCG@10 without: 0 of 30 hold (p < 0.05, corrected); the largest: ")
    html = run._repr_html_()
    assert f"<p>{escape(run.answer[0])}</p>" in html
    assert "vast2025/direction_ablation" in html and "<table" in html and "<svg" in html and "&lt;-" in html
    assert run.chart.chart.to_dict()["title"]["text"] == "nDCG@10 with reader<-source cut in all layers"
    assert run.save(tmp_path / "chart.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(MechirError, match=r"Cannot save a chart as"):
        run.save(tmp_path / "chart.csv")
    (run.path / "table.parquet").unlink()
    assert len(run.table) == len(run.summary)
    (run.path / "chart.json").unlink()
    with pytest.raises(MechirError, match=r"has no chart.json, as an older mechir drew it"):
        _ = run.chart


def test_a_run_that_is_not_finished_shows_its_name(toy: HookedEncoder, tmp_path: Path) -> None:
    run = mi.run("vast2025/layer_sweep", toy, mi.collection(TOY), registry=tmp_path, shard=Shard(1, 2))
    assert "0 of 1 units" in run._repr_html_() and "<table" not in run._repr_html_()
    with pytest.raises(MechirError, match="is not finished"):
        _ = run.chart


def test_a_wrong_chart_is_mended_without_measuring_again(toy: HookedEncoder, tmp_path: Path) -> None:
    file, counted = tmp_path / "mine.py", tmp_path / "counted"
    code = OWN.replace("COUNTED", repr(str(counted)))
    file.write_text(code)
    with pytest.raises(
        MechirError, match=r"fails in chart, .*: mend it and give the same command again, which measures nothing"
    ):
        mi.run(file, toy, mi.collection(TOY), registry=tmp_path / "r")
    file.write_text("# mended\n" + code.replace('"estimat"', '"estimate"'))
    run = mi.run(file, toy, mi.collection(TOY), registry=tmp_path / "r")
    assert run.finished and counted.read_text() == "x" and len(list((tmp_path / "r" / "runs").iterdir())) == 1
    file.write_text(code.replace('"estimat"', '"estimate"').replace(".mean()", ".max()"))
    assert mi.run(file, toy, mi.collection(TOY), registry=tmp_path / "r").id != run.id
