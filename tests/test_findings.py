"""Findings: what an experiment may state, how it is kept, superseded and deleted, and how it is asked."""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import mechir as mi
from mechir.errors import MechirError
from mechir.registry import entries, queries
from mechir.registry.entries import SCHEMA, correct, delete_run, has_findings, latest, reasons, record
from mechir.registry.findings import COLUMNS, Finding, address, checked, of_record, printed
from mechir.registry.runs import open_run
from scripts.stress_registry import round_of
from tests.test_cli import call

OF = {
    "experiment": "a/b",
    "model": "m",
    "model_fingerprint": "f" * 64,
    "collection": "c",
    "n_queries": 9,
    "n_pairs": 90,
}
ONE = {"site": "h1.2", "measure": "patching, tfc1", "value": 0.8, "unit": "share of the gap", "role": "soft-tf"}


def frame(*rows: dict[str, Any], run_id: str = "aa", **of: Any) -> pd.DataFrame:
    return checked(pd.DataFrame([ONE | row for row in rows or ({},)]), OF | {"run_id": run_id} | of)


def test_a_finding_has_every_column_and_the_run_fills_in() -> None:
    found = frame({"p_corrected": 0.01}, {"site": "", "low": 0.5, "n_pairs": 3})
    assert list(found) == list(COLUMNS) and set(found["model"]) == {"m"}
    assert found["n_pairs"].tolist() == [90, 3] and found["p_corrected"].isna().tolist() == [False, True]
    assert Finding(**found.iloc[0].to_dict()).site == "h1.2"
    assert frame({}, {"value": math.nan})["value"].tolist() == [0.8]  # nothing was measured there


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"role": "matchin"}, "Unknown role 'matchin': the closest are 'matching'"),
        ({"term": "tff"}, "Unknown term 'tff': the closest are 'tf'"),
        ({"site": "h1"}, "Cannot read 'h1' as a site"),
        ({"site": "h1.2->h2.3"}, "Cannot read 'h1.2->h2.3' as an edge"),
        ({"value": math.inf}, "The value of h1.2 by 'patching, tfc1' is infinite"),
    ],
)
def test_what_is_no_finding_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(MechirError, match=message):
        frame(row)
    with pytest.raises(MechirError, match="no column 'value': give value, unit"):
        checked(pd.DataFrame({"site": ["h1.2"], "measure": ["x"]}), OF)


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("h8.1", mi.Head(8, 1)),
        ("n5.12", mi.Neuron(5, 12)),
        ("embed.u3", mi.Singular(3)),
        ("h1.3->h8.1.q", mi.Edge(mi.Head(1, 3), mi.Head(8, 1, "q"))),
        ("mlp1->score", mi.Edge(mi.Mlp(1), mi.Score())),
        ("h8.1->h10.1.k+h10.4.k", mi.Edge("h8.1", "h10.1.k", "h10.4.k")),
        ("doc<-query@0-2", mi.Mask("doc<-query", range(3))),
        ("doc<-query renormalised", mi.Mask("doc<-query", renormalise=True)),
        ("", None),
    ],
)
def test_sites_come_back_as_objects(text: str, site: Any) -> None:
    assert address(text) == site and printed("" if site is None else site) == text


def test_an_edge_as_earlier_versions_wrote_it_is_the_same_edge() -> None:
    assert address("mlp1->score.in") == address("mlp1->score") and printed("mlp1->score.in") == "mlp1->score"
    assert address("h1.2->mlp1.in") == address("h1.2->mlp1") and printed("h1.2->mlp1.in") == "h1.2->mlp1"


def test_a_run_on_contrasts_names_what_was_perturbed() -> None:
    of = {"id": "aa", "queries": 1, "pairs": 1, "model": "m", "certificate": {"score_cls_only": 0.0}}
    identity: dict[str, Any] = {"collection": "tfc1 of toy", "axiom": "tfc1", "perturbed": "toy", "swap": False}
    for swap, axiom in ((False, "tfc1"), (True, "tfc1, swapped")):
        found = of_record(of | {"identity": identity | {"swap": swap}})
        assert (found["axiom"], found["collection"]) == (axiom, "toy")
    found = of_record(of | {"identity": {"collection": "texts of mine"}})
    assert (found["axiom"], found["collection"]) == ("", "texts of mine")


def test_asking_by_column(tmp_path: Path) -> None:
    record(tmp_path, "aa", frame({"p_corrected": 0.01}, {"site": "h0.0", "value": -0.9, "p_corrected": 0.5}))
    record(
        tmp_path,
        "bb",
        frame({"site": "h1.2", "causal": True, "term": "tf"}, run_id="bb", model="other", model_fingerprint="e" * 64),
    )
    asked = {"registry": tmp_path}
    assert [str(site) for site in mi.findings(**asked)["site"]] == ["h0.0", "h1.2", "h1.2"]
    assert mi.findings(site=mi.Head(1, 2), **asked)["run_id"].tolist() == ["aa", "bb"]
    assert mi.findings(corrected_p=0.05, **asked)["value"].tolist() == [0.8]
    assert mi.findings(min_effect=0.85, **asked)["value"].tolist() == [-0.9]
    assert mi.findings(causal=True, **asked)["run_id"].tolist() == ["bb"]
    assert mi.findings(causal=False, term=None, model="ffffff", **asked)["run_id"].tolist() == ["aa", "aa"]
    assert mi.findings(model="other", term="tf", **asked)["site"].tolist() == [mi.Head(1, 2)]
    assert mi.findings(role="idf", **asked).empty
    assert mi.Ablate(mi.findings(model="other", **asked)["site"][0]) == mi.Ablate("h1.2")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"role": "matchin"}, "Unknown role 'matchin': the closest are 'matching'"),
        ({"term": "idff"}, "Unknown term 'idff': the closest are 'idf'"),
        ({"site": "h9.9"}, "no finding of site 'h9.9': the closest are 'h1.2'"),
        ({"site": "head"}, "Cannot read 'head' as a site"),
        ({"model": "bert"}, "no run of model 'bert' here: there are m"),
        ({"collection": "dl19"}, "no finding of collection 'dl19': the closest are 'c'"),
        ({"measure": "patching"}, "no finding of measure 'patching': the closest are 'patching, tfc1'"),
    ],
)
def test_unknown_names_are_answered_with_the_closest(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    record(tmp_path, "aa", frame())
    with pytest.raises(MechirError, match=message):
        mi.findings(registry=tmp_path, **asked)


def test_sql_asks_and_does_nothing_else(tmp_path: Path) -> None:
    record(tmp_path, "aa", frame({}, {"site": "h0.0"}))
    asked = "select site, count(*) as n from findings group by 1 order by 1"
    assert mi.sql(asked, registry=tmp_path).to_dict("list") == {"site": ["h0.0", "h1.2"], "n": [1, 1]}
    assert len(mi.sql("from findings where value > 0.5", registry=tmp_path)) == 2
    secret = tmp_path.parent / "secret.csv"
    secret.write_text("a\n1\n")
    for question, message in (
        ("drop view findings", "only asks"),
        ("create table t as select 1", "only asks"),
        (f"copy findings to '{tmp_path}/x.csv'", "only asks"),
        ("select 1; select 2", "only asks"),
        ("set enable_external_access = true", "only asks"),
        ("select nonsense from findings", 'DuckDB refuses this question: Binder Error: .*"nonsense" not found'),
        ("selec", "DuckDB refuses this question: Parser Error"),
        (f"from read_csv('{secret}')", "DuckDB refuses this question: Permission Error"),
    ):
        with pytest.raises(MechirError, match=message):
            mi.sql(question, registry=tmp_path)
    assert not (tmp_path / "x.csv").exists()


def test_what_is_no_registry_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MechirError, match="holds no findings yet: run an experiment first, or give registry=DIR"):
        mi.findings(registry=tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(MechirError, match="is no registry: it holds no runs; give registry=DIR"):
            mi.findings(registry=path)
        for command in (
            "findings",
            "show",
            "show ab",
            "delete ab --reason x",
            "report",
            "export x.csv",
            "export x --run a",
        ):
            code, _, err = call(capsys, *command.split(), "--registry", str(path))
            assert code == 2 and err.startswith(f"mechir: '{path}' is no registry: ")


def test_the_first_findings_of_a_run_stay_until_they_are_corrected(tmp_path: Path) -> None:
    assert record(tmp_path, "aa", frame()) and not record(tmp_path, "aa", frame({"value": 5.0}))
    assert mi.findings(registry=tmp_path)["value"].tolist() == [0.8]
    correct(tmp_path, "aa", frame({"value": 0.7}), "counted twice")
    correct(tmp_path, "aa", frame({"value": 0.6}), "and again")
    assert mi.findings(registry=tmp_path)["value"].tolist() == [0.6]
    assert reasons(tmp_path)[["number", "what", "reason"]].to_numpy().tolist() == [
        [1, "corrected", "counted twice"],
        [2, "corrected", "and again"],
    ]
    assert len(list((tmp_path / "findings").glob("aa.*"))) == 3  # nothing is overwritten
    with pytest.raises(MechirError, match="A correction without a reason"):
        correct(tmp_path, "aa", frame(), " ")
    with pytest.raises(MechirError, match=r"Run bb has no findings in .* to correct"):
        correct(tmp_path, "bb", frame(), "why")


def test_a_deleted_run_leaves_a_tombstone(tmp_path: Path) -> None:
    run = open_run(tmp_path, {"x": 1}, lambda run: run.write_record({"units": 1}))
    follower = open_run(tmp_path, {"x": 2}, lambda one: one.write_record({"units": 1, "rows_of": run.id}))
    record(tmp_path, run.id, frame(run_id=run.id))
    with pytest.raises(
        MechirError, match=f"Run {follower.id} summarises the rows of run {run.id}: delete that one first"
    ):
        delete_run(tmp_path, run, "wrong model")
    with pytest.raises(MechirError, match="not deleted without a reason: write reason=TEXT"):
        delete_run(tmp_path, follower, "")
    delete_run(tmp_path, follower, "not needed")
    delete_run(tmp_path, run, "wrong model")
    assert not run.path.exists() and mi.findings(registry=tmp_path).empty
    assert reasons(tmp_path)["reason"].tolist() == sorted(["not needed", "wrong model"], reverse=follower.id > run.id)
    assert not has_findings(tmp_path, run.id) and record(tmp_path, run.id, frame(run_id=run.id))  # run anew
    assert mi.findings(registry=tmp_path)["run_id"].tolist() == [run.id]


@pytest.mark.parametrize("damage", ["cut", "empty", "inside"])
def test_a_damaged_entry_is_named_and_set_aside(tmp_path: Path, damage: str) -> None:
    record(tmp_path, "aa", frame())
    record(tmp_path, "bb", frame(*[{"value": float(k)} for k in range(5000)], run_id="bb"))
    (bad,) = (entry.path for entry in latest(tmp_path) if entry.run_id == "bb")
    whole = bad.read_bytes()
    middle = b"\xff" * 400
    bad.write_bytes({"cut": whole[:-200], "empty": b"", "inside": whole[:100] + middle + whole[500:]}[damage])
    with pytest.warns(UserWarning, match=r"bb\.000\.v3\.parquet' is damaged and now lies in .*damaged"):
        assert mi.findings(registry=tmp_path)["run_id"].tolist() == ["aa"]
    assert mi.findings(registry=tmp_path)["run_id"].tolist() == ["aa"]
    assert (tmp_path / "findings" / "damaged" / bad.name).is_file()
    assert not has_findings(tmp_path, "bb") and record(tmp_path, "bb", frame(run_id="bb"))  # its command heals it


def test_a_newer_schema_is_refused_and_an_older_one_read(tmp_path: Path) -> None:
    old = frame().drop(columns=["written", "seed"])
    record(tmp_path, "aa", old)
    assert mi.findings(registry=tmp_path)["written"].isna().all()
    record(tmp_path, "bb", frame(run_id="bb"))
    (new,) = (entry.path for entry in latest(tmp_path) if entry.run_id == "bb")
    table = pq.read_table(new)
    told = (table.schema.metadata or {}) | {b"mechir": b"9.1.0"}
    pq.write_table(table.replace_schema_metadata(told), new.with_name(f"bb.000.v{SCHEMA + 1}.parquet"))
    with pytest.raises(
        MechirError, match=f"schema {SCHEMA + 1}, and this mechir reads up to {SCHEMA}: install mechir-encoders 9.1.0"
    ):
        mi.findings(registry=tmp_path)


def test_a_full_disk_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MechirError, match=r"The disk is full: '.*aa.000.v3.parquet' was not written"):
        record(tmp_path, "aa", frame())
    assert not any((tmp_path / "findings").iterdir())


def test_a_registry_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(
        MechirError, match=r"Cannot write the registry '.*' \(Read-only file system\): give registry=DIR"
    ):
        record(tmp_path / "new", "aa", frame())


def test_writers_readers_and_kills_lose_nothing(tmp_path: Path) -> None:
    told = round_of(tmp_path, seed=1, runs=4)
    assert told["findings that count"] == 8 * 4 * 50 + 50 and told["questions answered meanwhile"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_fifty_rounds_lose_nothing(tmp_path: Path, seed: int) -> None:
    assert round_of(tmp_path, seed)["findings that count"] == 8 * 500 + 50


def test_a_slow_reader_moves_nothing_that_was_written_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, "aa", frame())
    record(tmp_path, "bb", frame(run_id="bb"))
    seen = entries.entries(tmp_path)[1:]
    seen[0].path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"bb\.000\.v3\.parquet' is damaged"):
        assert entries.set_damaged_aside(tmp_path) == ["bb.000.v3.parquet"]
    record(tmp_path, "bb", frame(run_id="bb"))

    def damaged(path: Path) -> None:
        raise OSError("damaged")

    monkeypatch.setattr(entries, "entries", lambda registry: seen)  # this one read it before the other moved it
    monkeypatch.setattr(entries.pq, "read_table", damaged)
    assert entries.set_damaged_aside(tmp_path) == []
    monkeypatch.undo()
    assert sorted(mi.findings(registry=tmp_path)["run_id"]) == ["aa", "bb"]


def test_a_damaged_entry_that_cannot_be_moved_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, "aa", frame())
    latest(tmp_path)[0].path.write_bytes(b"")

    def refused(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(
        MechirError, match=r"aa.000.v3.parquet' is damaged and cannot be moved \(Read-only file system\)"
    ):
        mi.findings(registry=tmp_path)


def test_two_writers_of_one_run_write_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, "aa", frame())
    monkeypatch.setattr(entries, "_of_run", lambda registry, run_id: [])  # this one looked before the other wrote
    assert not record(tmp_path, "aa", frame({"value": 5.0}))
    monkeypatch.undo()
    assert queries.findings(registry=tmp_path)["value"].tolist() == [0.8]


def test_the_command_line_asks_and_deletes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_run(tmp_path, {"x": 1}, lambda run: run.write_record({"units": 1, "identity": {}}))
    record(tmp_path, run.id, frame({}, {"site": "h0.0", "value": -0.9, "role": "idf"}, run_id=run.id))
    at = ["--registry", str(tmp_path)]
    code, out, _ = call(capsys, "findings", "--role", "soft-tf", *at)
    assert code == 0 and "patching, tfc1" in out and "h0.0" not in out and "1 findings of 1 runs" in out
    _, out, _ = call(capsys, "findings", "--format", "csv", *at)
    assert pd.read_csv(io.StringIO(out))["site"].tolist() == ["h0.0", "h1.2"]
    _, out, _ = call(capsys, "findings", "--format", "json", "--min-effect", "0.85", *at)
    assert [json.loads(line)["value"] for line in out.splitlines()] == [-0.9]
    code, _, err = call(capsys, "findings", "--role", "idff", *at)
    assert code == 2 and "Unknown role 'idff': the closest are 'idf'" in err
    code, _, err = call(capsys, "delete", run.id, "--reason", " ", *at)
    assert code == 2 and "not deleted without a reason" in err
    code, out, _ = call(capsys, "delete", run.id[:6], "--reason", "wrong model", *at)
    assert code == 0 and out == f"Deleted run {run.id}; its findings no longer count.\n"
    assert mi.findings(registry=tmp_path).empty


def test_frames_of_sites_print_them_as_they_are_written(tmp_path: Path) -> None:
    rows = [{"site": site} for site in ("h1.2", "doc<-query@0-2", "h1.3->h8.1.q", "", "embed.u3", "n5.12")]
    record(tmp_path, "aa", frame(*rows))
    found = mi.findings(registry=tmp_path)
    for text in (
        repr(found),
        repr(found[["site", "value"]]),
        repr(found["site"]),
        repr(found.query("value > 0")),
        found._repr_html_(),
    ):
        assert all(row["site"].replace("<", "&lt;").replace(">", "&gt;") in text or row["site"] in text for row in rows)
        assert "Mask(" not in text and "(1, 2" not in text
    assert mi.Mask("doc<-query", range(3)) in list(found["site"]) and mi.Head(1, 2) in list(found["site"])
    assert repr(found["value"]).endswith("dtype: float64")
