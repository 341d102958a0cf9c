"""Export: tables and charts for elsewhere, each whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.errors import MechirError
from mechir.registry.entries import record
from mechir.registry.findings import COLUMNS, MEANINGS
from mechir.registry.runs import Run, open_run
from mechir.views import charts, latex
from tests.test_cli import call
from tests.test_findings import frame
from tests.test_links import one

EVIL = "</script> [SEP] a_b & 50% \\input{x} | `x` <b>"


def finished(registry: Path, *, chart: bool = True) -> Run:
    run = open_run(registry, {"x": 1}, lambda run: run.write_record({"units": 1, "identity": {}}))
    told = pd.DataFrame({"site": ["h0.0", EVIL], "estimate": [0.12, -0.3], "low": [0.1, -0.4], "high": [0.15, 0.0]})
    run.write_frame("summary", told)
    if chart:
        charts.save(charts.bars(told, "estimate", "site", title=EVIL), run.path / "chart")
    return run


def test_findings_come_back_from_every_table(tmp_path: Path) -> None:
    small = 1.234567890123e-300
    record(tmp_path / "r", "aa", frame({"label": EVIL, "p": small}, {"site": "doc<-query@0-2", "value": 0.1 + 0.2}))
    found = mi.findings(registry=tmp_path / "r")
    plain = mi.sql("from findings order by measure, abs(value) desc", registry=tmp_path / "r")
    csv = pd.read_csv(mi.export(found, tmp_path / "f.csv"), keep_default_na=False, na_values={"p": [""]})
    assert list(csv) == list(COLUMNS) and csv["label"].tolist() == plain["label"].tolist() == [EVIL, ""]
    assert csv["p"].tolist()[0] == small and csv["value"].tolist() == [0.8, 0.1 + 0.2]
    lines = mi.export(found, tmp_path / "f.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows[0]["label"] == EVIL and rows[1]["p"] is None and rows[1]["site"] == "doc<-query@0-2"
    assert rows[0]["p"] == pytest.approx(small, rel=1e-12)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["f.csv", "f.jsonl", "r"]


def test_a_folder_is_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    record(tmp_path / "r", "aa", frame({"label": EVIL}, {"causal": True, "p": 0.5}, model=EVIL))
    found = mi.findings(registry=tmp_path / "r")
    folder = mi.export(found, f"{tmp_path}/out.v1/")
    assert sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()) == [
        "README.md", "data/train-00000-of-00001.parquet",
    ]  # fmt: skip
    read = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    again = read.to_pandas()
    plain = mi.sql("from findings", registry=tmp_path / "r")
    pd.testing.assert_frame_equal(again[list(COLUMNS)], plain, check_dtype=False)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and "num_examples: 2" in card and "dtype: float64" in card
    assert all(f"| {name.replace('_', chr(92) + '_')} |" in card for name in COLUMNS)
    assert "the upper end of it" in card and "<b>" not in card and "</script>" not in card
    mi.export(mi.links(registry=tmp_path / "r"), tmp_path / "links")
    assert "the value of the measure: patching, tfc1, at query|doc" in (
        tmp_path / "links" / "README.md"
    ).read_text().replace("\\", "")
    empty = tmp_path / "empty"
    empty.mkdir()
    mi.export(pd.DataFrame({"x": [1]}), empty)
    assert "A table of mechir" in (empty / "README.md").read_text()


def test_every_column_of_a_finding_has_a_meaning() -> None:
    assert list(MEANINGS) == list(COLUMNS) and all(MEANINGS.values())
    assert MEANINGS["least"] == "|value| below this is called nothing, whatever p."


def test_a_latex_table_merges_intervals_and_escapes() -> None:
    given = pd.DataFrame(
        {
            "site": ["h0.0", EVIL, "doc<-query"],
            "estimate": [0.12, -0.3, 2e-7],
            "low": [0.1, -0.4, 1e-7],
            "high": [0.15, 0.0, None],
            "r": [0.5, 0.25, -0.5],
            "r_low": [0.4, 0.1, -0.6],
            "r_high": [0.6, 0.3, -0.4],
            "p_corrected": [1e-9, 0.0499, None],
            "n": [3, -1, 0],
            "causal": [True, False, True],
            "none": [None] * 3,
        }
    )
    assert latex.table(given).splitlines() == [
        r"\begin{tabular}{lrrrrl}",
        r"\toprule",
        r"site & estimate [95\,\%] & r [95\,\%] & p\_corrected & n & causal \\",
        r"\midrule",
        r"h0.0 & 0.12 [0.10, 0.15] & 0.50 [0.40, 0.60] & $<$0.001 & 3 & True \\",
        r"\textless{}/script\textgreater{} {[}SEP{]} a\_b \& 50\% \textbackslash{}input\{x\} \textbar{} "
        r"\textasciigrave{}x\textasciigrave{} \textless{}b\textgreater{} & "
        r"$-$0.30 [$-$0.40, 0.00] & 0.25 [0.10, 0.30] & 0.050 & $-$1 & False \\",
        r"doc\textless{}{-}query & $2.0 \times 10^{-7}$ & $-$0.50 [$-$0.60, $-$0.40] &  & 0 & True \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    wide = given.iloc[:2].pivot_table(index="site", columns="n", values=["r"])
    assert r"site & r {-}1 & r 3 \\" in latex.table(wide) and "0.2500" in latex.table(wide, digits=4)
    odd = pd.DataFrame({"x": [float("inf"), 0.0, -0.001], "value": [1, 2, 3]})
    assert (
        r"$\infty$ & 1" in latex.table(odd) and "\n0.00 & 2" in latex.table(odd) and "$-$0.0010 & 3" in latex.table(odd)
    )


def test_the_chart_of_a_run_as_a_picture(tmp_path: Path) -> None:
    run = finished(tmp_path)
    assert mi.export(run, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert mi.export(run, tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    svg = mi.export(run, str(tmp_path / "x.svg")).read_text(encoding="utf-8")
    assert svg.startswith("<svg") and "&lt;/script&gt;" in svg and "</script>" not in svg
    assert "0.12 [0.10, 0.15]" in mi.export(run, tmp_path / "x.tex").read_text()
    with pytest.raises(ValueError, match="not allowed"):  # nothing is fetched
        charts.picture({"data": {"url": "http://127.0.0.1:9/x.json"}, "mark": "point"}, ".png")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    out, table = tmp_path / "out", pd.DataFrame({"x": [1]})
    out.mkdir()
    known = r"write .csv, .jsonl, .tex or a folder for a table, .png, .svg, .pdf for the chart of a run"
    with pytest.raises(MechirError, match=rf"Cannot export to '.*x\.xlsx': {known}"):
        mi.export(table, out / "x.xlsx")
    with pytest.raises(MechirError, match=r"A frame has no chart for '.*x\.png': give a run, or write .csv"):
        mi.export(table, out / "x.png")
    begun = open_run(tmp_path / "r", {"x": 2}, lambda run: run.write_record({"units": 2, "identity": {}}))
    for name in ("x.svg", "x.csv", "folder"):
        with pytest.raises(MechirError, match=rf"Run {begun.id} is not finished \(0 of 2 units\)"):
            mi.export(begun, out / name)
    with pytest.raises(
        MechirError, match=r"has no chart.json, as an older mechir drew it: start it again with fresh=True"
    ):
        mi.export(finished(tmp_path / "r", chart=False), out / "x.svg")
    with pytest.raises(MechirError, match=r"Cannot write '.*x\.csv' \(No such file or directory\): give another file"):
        mi.export(table, out / "no" / "x.csv")
    with pytest.raises(MechirError, match=r"Cannot write '.*x' \(No such file or directory\): give another folder"):
        mi.export(table, out / "no" / "x")
    assert not any(out.iterdir())
    (out / "mine").write_text("mine")
    for held in (out, out / "mine"):
        with pytest.raises(MechirError, match="holds something already: give a folder that is new or empty"):
            mi.export(table, held)
    assert [file.name for file in out.iterdir()] == ["mine"] and (out / "mine").read_text() == "mine"


def test_an_export_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "write_text", full)
    for name, message in (
        ("x.csv", "The disk is full: '.*x.csv' was not written"),
        ("x", "Cannot write '.*x' .No space"),
    ):
        with pytest.raises(MechirError, match=message):
            mi.export(pd.DataFrame({"x": [1]}), tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_the_command_line_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry, out = tmp_path / "r", tmp_path / "out"
    one(registry)
    out.mkdir()
    at = ["--registry", str(registry)]
    code, said, _ = call(capsys, "export", "--role", "matching", str(out / "x.csv"), *at)
    assert code == 0 and said == f"Wrote {out / 'x.csv'}\n"
    assert set(pd.read_csv(out / "x.csv")["role"]) == {"matching"}
    call(capsys, "export", str(out / "x.tex"), "--measure", "patching, tfc1, at query|doc", *at)
    assert (
        r"n\_queries & role & term & model & collection" in (out / "x.tex").read_text()
        and "0.90 [0.89, 0.91]" in (out / "x.tex").read_text()
    )
    call(capsys, "export", "--links", str(out / "links.csv"), *at)
    assert pd.read_csv(out / "links.csv")["exploratory"].tolist().count("tf") == 1
    run = finished(registry)
    code, _, _ = call(capsys, "export", "--run", run.id[:8], str(out / "x.svg"), *at)
    assert code == 0 and (out / "x.svg").read_text().startswith("<svg")
    code, _, _ = call(capsys, "export", f"{out}/set.v1/", *at)
    assert code == 0 and (out / "set.v1" / "README.md").is_file()
    for arguments, message in (
        ([str(out / "x.docx")], "Cannot export to"),
        ([str(out)], "holds something already"),
        (["--links", "--role", "idf", str(out / "x.csv")], "--role asks findings: leave out --links"),
        (["--run", run.id, "--min-effect", "1", str(out / "x.csv")], "--min-effect asks findings: leave out --run"),
        (["--run", run.id, "--links", str(out / "x.csv")], "--links and --run are two tables: give one of them"),
        (["--run", "abc", str(out / "x.csv")], "There is no run 'abc'"),
    ):
        code, _, err = call(capsys, "export", *arguments, *at)
        assert code == 2 and message in err
