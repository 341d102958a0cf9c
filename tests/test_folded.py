"""Folded entries: the same answers from fewer files, and nothing lost where a fold is stale, damaged or not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import mechir as mi
from mechir.registry import entries, folded, queries
from mechir.registry.entries import SCHEMA, correct, delete_run, latest, record
from mechir.registry.evidence import LINKS
from mechir.registry.folded import Mark
from mechir.registry.queries import matching
from mechir.registry.runs import open_run
from tests.test_findings import frame


@pytest.fixture(autouse=True)
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded, "EACH", 3)


def filled(registry: Path, runs: str = "abc") -> Path:
    """A registry of runs aa, bb, cc, each with three findings of its own."""
    for number, run in enumerate(runs):
        sites = [{"site": f"h{number}.{k}", "value": number + k / 10} for k in range(3)]
        record(registry, 2 * run, frame(*sites, run_id=2 * run))
    return registry


def folds(registry: Path) -> list[str]:
    return sorted(file.name for file in (registry / "findings" / "folded").glob("*"))


def asked(registry: Path) -> dict[str, list[float]]:
    """The values of each run."""
    rows = mi.sql(
        "select run_id, list(value order by value) as v from findings group by 1 order by 1", registry=registry
    )
    return {row.run_id: list(row.v) for row in rows.itertuples()}


def unreadable(registry: Path, *runs: str) -> None:
    """Overwrites the entries of these runs, by default all, with as many zeros, of the same time."""
    for entry in (entry for entry in latest(registry) if not runs or entry.run_id in runs):
        status = entry.path.stat()
        entry.path.write_bytes(bytes(status.st_size))
        os.utime(entry.path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_fold_is_written_once_and_answers_alone(tmp_path: Path) -> None:
    filled(tmp_path, "ab")
    before = asked(tmp_path)
    assert not (tmp_path / "findings" / "folded").exists()
    record(tmp_path, "cc", frame({"value": 9.0}, run_id="cc"))
    assert asked(tmp_path) == before | {"cc": [9.0]} and folds(tmp_path) == [f"0000.v{SCHEMA}.parquet"]
    unreadable(tmp_path)
    assert asked(tmp_path) == before | {"cc": [9.0]} and folds(tmp_path) == [f"0000.v{SCHEMA}.parquet"]


def test_the_question_that_folds_reads_the_fold(tmp_path: Path) -> None:
    filled(tmp_path)
    with duckdb.connect() as connection:
        assert (
            "aa.000" in folded.rows_that_count(connection, tmp_path, folded=False)
            and not (tmp_path / "findings" / "folded").exists()
        )
        query = folded.rows_that_count(connection, tmp_path)
        assert query.count("read_parquet") == 1 and f"0000.v{SCHEMA}.parquet" in query and "aa.000" not in query


def test_every_column_is_as_the_entries_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, "ab")
    record(tmp_path, "cc", frame({"p": 0.5, "label": 'it\'s "one"'}).drop(columns=["written", "seed"]))  # of schema 1
    filled(tmp_path, "abde")  # one is in no fold
    with monkeypatch.context() as at_once:
        at_once.setattr(folded, "EACH", 100)
        alone = matching(tmp_path), matching(tmp_path, newest=True)
    both = matching(tmp_path), matching(tmp_path, newest=True)
    assert len(folds(tmp_path)) == 1 and alone[0]["seed"].isna().any()
    for one, other in zip(alone, both, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_a_corrected_and_a_deleted_run_count_as_they_do_without(tmp_path: Path) -> None:
    run = open_run(tmp_path, {"x": 1}, lambda run: run.write_record({"units": 1}))
    record(tmp_path, run.id, frame(run_id=run.id))
    for name in ("a1", "a2", "a3", "a4", "a5"):
        record(tmp_path, name, frame(run_id=name))
    assert len(asked(tmp_path)) == 6 and len(folds(tmp_path)) == 2
    correct(tmp_path, "a1", frame({"value": 0.1}, run_id="a1"), "why")
    delete_run(tmp_path, run, "why")
    assert asked(tmp_path) == {"a1": [0.1]} | {name: [0.8] for name in ("a2", "a3", "a4", "a5")}
    assert len(folds(tmp_path)) == 2


def test_an_entry_that_is_taken_away_does_not_count(tmp_path: Path) -> None:
    asked(filled(tmp_path))
    latest(tmp_path)[0].path.unlink()
    assert sorted(asked(tmp_path)) == ["bb", "cc"]


def test_an_entry_that_has_changed_is_read_itself(tmp_path: Path) -> None:
    asked(filled(tmp_path))
    changed = latest(tmp_path)[0].path
    frame({"value": 7.0}, run_id="aa").to_parquet(changed)
    assert asked(tmp_path)["aa"] == [7.0]
    other = latest(tmp_path)[1].path
    other.write_bytes(bytes(other.stat().st_size))
    with pytest.warns(UserWarning, match=r"bb\.000\.v3\.parquet' is damaged and now lies in"):
        assert sorted(asked(tmp_path)) == ["aa", "cc"]


def test_a_damaged_entry_comes_into_no_fold(tmp_path: Path) -> None:
    filled(tmp_path)
    latest(tmp_path)[1].path.write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match=r"bb\.000\.v3\.parquet' is damaged and now lies in"):
        assert sorted(asked(tmp_path)) == ["aa", "cc"]
    assert folds(tmp_path) == []
    assert sorted(asked(filled(tmp_path))) == ["aa", "bb", "cc"] and len(folds(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "inside", "foreign", "deleted"])
def test_a_damaged_fold_costs_nothing_but_time(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "set_damaged_aside", lambda registry: pytest.fail("looked through all entries"))
    for number in range(3):
        rows = [{"site": f"h{k % 7}.{k % 11}", "value": float(k)} for k in range(500)]
        record(tmp_path, f"a{number}", frame(*rows, run_id=f"a{number}"))
    before = asked(tmp_path)
    (fold,) = (tmp_path / "findings" / "folded").iterdir()
    whole = fold.read_bytes()
    if damage == "deleted":
        fold.unlink()
    elif damage == "foreign":
        pd.DataFrame({"a": [1]}).to_parquet(fold)
    else:
        inside = whole[:50] + b"\xff" * 3000 + whole[3050:]
        fold.write_bytes({"cut": whole[:-200], "empty": b"", "inside": inside}[damage])
    assert asked(tmp_path) == before
    assert asked(tmp_path) == before and len(folds(tmp_path)) == 1
    unreadable(tmp_path)
    assert asked(tmp_path) == before  # a new one is there and answers
    assert not (tmp_path / "findings" / "damaged").exists()


def test_a_damaged_fold_that_cannot_be_deleted_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = asked(filled(tmp_path))
    (fold,) = (tmp_path / "findings" / "folded").iterdir()
    whole = fold.read_bytes()
    start = pq.read_metadata(fold).row_group(0).column(2).data_page_offset
    fold.write_bytes(whole[:start] + b"\xff" * 20 + whole[start + 20 :])

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refused)
    assert asked(tmp_path) == before and fold.exists()


def test_folds_that_overlap_double_nothing(tmp_path: Path) -> None:
    before = asked(filled(tmp_path))
    (fold,) = (tmp_path / "findings" / "folded").iterdir()
    (fold.parent / f"0007.v{SCHEMA}.parquet").write_bytes(fold.read_bytes())
    assert asked(tmp_path) == before
    assert asked(filled(tmp_path, "abcdef"))["ff"] == [5.0, 5.1, 5.2]
    assert folds(tmp_path) == [f"0000.v{SCHEMA}.parquet", f"0008.v{SCHEMA}.parquet"]  # numbers are not taken again


def test_a_slower_reader_leaves_the_fold_of_a_faster_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    first = f"0000.v{SCHEMA}.parquet"
    inner = folded.whole

    @contextmanager
    def slow(path: Path, *, once: bool) -> Iterator[Path]:
        with inner(path, once=once) as file:
            yield file
            path.write_bytes(b"of another")  # it appears while this one writes

    monkeypatch.setattr(folded, "whole", slow)
    assert sorted(asked(tmp_path)) == ["aa", "bb", "cc"]
    assert folds(tmp_path) == [first] and (tmp_path / "findings" / "folded" / first).read_bytes() == b"of another"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_where_nothing_can_be_written_everything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    filled(tmp_path)

    def refused(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    assert sorted(asked(tmp_path)) == ["aa", "bb", "cc"] and folds(tmp_path) == []


def test_a_disk_that_is_full_is_no_reason_to_look_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)

    @contextmanager
    def nowhere(path: Path, *, once: bool) -> Iterator[Path]:
        yield path / "nowhere"  # DuckDB fails as it writes

    monkeypatch.setattr(folded, "whole", nowhere)
    monkeypatch.setattr(queries, "set_damaged_aside", lambda registry: pytest.fail("looked for damage"))
    assert sorted(asked(tmp_path)) == ["aa", "bb", "cc"] and folds(tmp_path) == []


def test_folds_of_no_use_give_way(tmp_path: Path) -> None:
    asked(filled(tmp_path))
    for run in ("aa", "bb", "cc"):
        correct(tmp_path, run, frame({"value": 1.5}, run_id=run), "why")
        now = asked(tmp_path)
        assert now[run] == [1.5] and len(now) == 3
        assert folds(tmp_path) == [f"000{int(run != 'aa')}.v{SCHEMA}.parquet"]  # the first while it answers for half
    unreadable(tmp_path, "aa", "bb")  # the last correction is in no fold yet
    assert asked(tmp_path) == {run: [1.5] for run in ("aa", "bb", "cc")}


def test_folds_are_full_and_large_entries_in_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = [Mark(f"{k}", 10, 0) for k in range(7)]
    assert [len(batch) for batch in folded._batches(marks)] == [3, 3]
    monkeypatch.setattr(folded, "TOGETHER", 20)
    assert [len(batch) for batch in folded._batches(marks)] == [2, 2, 2]
    monkeypatch.setattr(folded, "LARGE", 1)
    assert len(asked(filled(tmp_path))) == 3 and not (tmp_path / "findings" / "folded").exists()


def test_an_entry_that_another_reader_has_just_set_aside_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    listed, told = entries.latest(tmp_path), []
    listed[0].path.unlink()

    def latest_then(registry: Path) -> list[entries.Entry]:
        told.append(registry)
        return listed if len(told) == 1 else latest(registry)

    monkeypatch.setattr(folded, "latest", latest_then)
    assert sorted(asked(tmp_path)) == ["bb", "cc"] and len(told) == 2


def test_a_mistake_is_no_reason_to_look_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr(queries, "set_damaged_aside", lambda registry: pytest.fail("looked for damage"))
    with pytest.raises(mi.MechirError, match="DuckDB refuses this question: Conversion Error"):
        mi.sql("select cast(site as int) from findings", registry=tmp_path)


def _by_hand(rows: pd.DataFrame) -> set[tuple[Any, ...]]:
    """The newest of some findings by the rule as it is written: `row` and tries of each."""
    planned = {str(link.conclusion) for link in LINKS}
    kept = set()
    for one in rows.to_dict("records"):
        concluded = one["measure"] in planned
        about = [
            other
            for other in rows.to_dict("records")
            if (other["model_fingerprint"], other["collection"]) == (one["model_fingerprint"], one["collection"])
        ]
        same = [other for other in about if (other["site"], other["measure"]) == (one["site"], one["measure"])]
        rivals = [other for other in about if other["measure"] in planned] if concluded else same
        never = [other for other in rivals if other["written"] is None]
        timed = [other for other in rivals if other["written"] is not None] or never
        time = (min if concluded else max)(other["written"] or "" for other in timed)
        wins = min(other["run_id"] for other in timed if (other["written"] or "") == time)
        answers = {other["p_corrected"] for other in same if other["p_corrected"] == other["p_corrected"]}
        if one["run_id"] == wins:
            kept.add((one["row"], max(1, len(answers))))
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_the_newest_findings_are_those_of_the_rule(seed: int) -> None:
    rng, size = np.random.default_rng(seed), 120
    runs = {f"r{k}": rng.choice([None, "2026-01", "2026-02", "2026-03"]) for k in range(12)}
    rows = pd.DataFrame({"run_id": rng.choice(list(runs), size)})
    rows["written"] = pd.Series([runs[run] for run in rows["run_id"]], dtype=object)
    for name, values in (
        ("model_fingerprint", ["e", "f", None]),
        ("collection", ["c", "d"]),
        ("site", ["h1.1", ""]),
        ("measure", ["m", str(LINKS[0].conclusion), str(LINKS[1].conclusion)]),
    ):
        rows[name] = pd.Series(rng.choice(np.array(values, dtype=object), size), dtype=object)
    rows["p_corrected"] = rng.choice([0.1, 0.2, 0.3, np.nan], size)
    rows["row"] = range(size)
    with duckdb.connect() as connection:
        connection.register("these", rows)
        missing = "case when row % 2 = 0 then coalesce(p_corrected, 'nan') else p_corrected end as p_corrected"
        found = connection.execute(queries._newest(f"(select * replace ({missing}) from these)")).df()
    assert len(found) and set(zip(found["row"], found["tries"], strict=True)) == _by_hand(rows)
