"""A registry may lie anywhere: what a path is written with is never read as a pattern."""

from __future__ import annotations

from pathlib import Path

import pytest

import mechir as mi
from mechir.errors import MechirError
from mechir.registry import folded
from mechir.registry.entries import correct, latest
from mechir.registry.runs import open_run, runs
from tests.reports import planted
from tests.test_cli import call
from tests.test_links import CONTRAST, SURE, one, row, tell

NAMES = (
    "runs [old]",
    "all*",
    "why?",
    "[!a]",
    'it\'s "mine"',
    "Größe 温 \u00e9",
    "site=h9.9/value=1",
    "a{b,c}",
    "**",
    "$HOME ~ %20;#",
    "tail\\",
)
"""Names with what patterns, quotes, SQL, folders of partitions and addresses are written with."""


@pytest.fixture(params=NAMES)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    found = tmp_path / request.param
    found.mkdir(parents=True)
    return found


def test_everything_is_asked_there(registry: Path) -> None:
    one(registry)
    table = mi.links(registry=registry)
    assert dict(zip(map(str, table["site"]), table["exploratory"], strict=True))["h1.2"] == "tf"
    found = mi.findings(role="matching", registry=f"{registry}/")  # as a shell completes it
    assert sorted(found["value"]) == [0.001, 0.3, 0.3] and "h9.9" not in set(map(str, found["site"]))
    assert len(mi.dossier("h1.2", registry=registry).agreements) == 1
    assert mi.sql("select count(*) as n from findings", registry=registry)["n"].tolist() == [12]


def test_it_does_not_read_beside_itself(tmp_path: Path) -> None:
    """Where the name of a registry, read as a pattern, is that of another."""
    for name, run, value in (("r[ab]", "a1", 0.1), ("ra", "a1", 0.2), ("r*", "a1", 0.3)):
        (tmp_path / name).mkdir()
        tell(tmp_path / name, run, [row(CONTRAST, "h1.2", value, SURE)])
    assert [mi.findings(registry=tmp_path / name)["value"].tolist() for name in ("r[ab]", "ra", "r*")] == [
        [0.1],
        [0.2],
        [0.3],
    ]
    with pytest.raises(MechirError, match="DuckDB refuses this question: Permission Error"):
        mi.sql(f"from read_parquet('{tmp_path / 'ra' / 'findings' / '*.parquet'}')", registry=tmp_path / "r*")


def test_what_duckdb_cannot_be_told_is_refused(tmp_path: Path) -> None:
    registry = tmp_path / "back\\slash [x]"
    registry.mkdir()
    tell(registry, "aa", [row(CONTRAST, "h1.2", 0.3, SURE)])
    with pytest.raises(MechirError, match=r"whose path holds a backslash and one of \* \? \[: move it, or give reg"):
        mi.findings(registry=registry)


def test_what_is_damaged_there_is_set_aside(registry: Path) -> None:
    for run in ("aa", "bb"):
        tell(registry, run, [row(CONTRAST, "h1.2", 0.3, SURE)])
    latest(registry)[1].path.write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match=r"bb\.000\.v3\.parquet' is damaged and now lies in"):
        assert mi.findings(registry=registry)["run_id"].tolist() == ["aa"]
    tell(registry, "bb", [row(CONTRAST, "h1.2", 0.3, SURE)])
    assert mi.findings(registry=registry)["run_id"].tolist() == ["aa", "bb"]


def test_entries_are_folded_there(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "EACH", 2)
    for run in ("aa", "bb", "cc"):
        tell(registry, run, [row(CONTRAST, "h1.2", 0.3, SURE)])
        assert mi.findings(registry=registry)["run_id"].iloc[-1] == run
    correct(registry, "aa", mi.sql("from findings where run_id = 'bb'", registry=registry).assign(run_id="aa"), "why")
    assert mi.findings(registry=registry)["run_id"].tolist() == ["aa", "bb", "cc"]
    assert len(list((registry / "findings" / "folded").iterdir())) == 2


@pytest.mark.parametrize("registry", ["all* [old] k=v", 'it\'s "why?"'], indirect=True)
def test_commands_work_there(registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted(registry)
    at = ("--registry", f"{registry}/")
    for command in (("show",), ("findings", "--site", "h1.2"), ("report",), ("export", f"{tmp_path}/x.csv", "--links")):
        code, out, err = call(capsys, *command, *at)
        assert code == 0 and out, err
    assert (registry / "report.html").is_file() and (tmp_path / "x.csv").is_file()
    run = open_run(registry, {"x": 1}, lambda run: run.write_record({"units": 1, "identity": {}}))
    tell(registry, run.id, [row(CONTRAST, "h0.3", 0.3, SURE)])
    code, _, err = call(capsys, "delete", run.id, "--reason", "a test", *at)
    assert code == 0, err
    assert run.id not in {one.id for one in runs(registry)} | set(mi.findings(registry=registry)["run_id"])
