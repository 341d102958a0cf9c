"""Two collections of one name are two, everywhere in a registry; what older runs know by its name alone goes on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechir as mi
from mechir.collection_groups import collections
from mechir.errors import MechirError
from mechir.registry.conflicts import conflicts
from mechir.registry.entries import record
from mechir.registry.evidence import held
from mechir.registry.findings import checked
from mechir.registry.names import Named, meant, shown
from mechir.registry.queries import matching, sql
from mechir.reporting.report import gathered
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call
from tests.test_joint import across, chain, overlap, tell
from tests.test_links import CONTRAST, NOT, OF, PATCHING, SURE, one, row

SCIFACT, NFCORPUS = "a1b2c3" + "5" * 58, "a1b2c4" + "7" * 58
OLD = ["collection_full_name", "contrasts_sha256"]
"""Columns that entries of schema 1 lack."""


def test_a_name_that_one_content_has_is_its_id() -> None:
    told = shown([Named("a", "x/a", "1" * 64), Named("b", "x/b", "2" * 64), Named("old")])
    assert list(told.values()) == ["old", "a", "b"]


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ([("test", "scifact/test", SCIFACT), ("test", "nfcorpus/test", NFCORPUS)], ["scifact/test", "nfcorpus/test"]),
        ([("test", "data/test", SCIFACT), ("test", "data/test", NFCORPUS)], ["test (a1b2c3)", "test (a1b2c4)"]),
        ([("test", "x/test", "abcdef1"), ("test", "x/test", "abcdef2")], ["test (abcdef1)", "test (abcdef2)"]),
        ([("test", "test", SCIFACT), ("test", "nfcorpus/test", NFCORPUS)], ["test (a1b2c3)", "nfcorpus/test"]),
        ([("test", "x/test", SCIFACT), ("test", "y/test", NFCORPUS), ("x/test", "x/test", "b")],
         ["test (a1b2c3)", "y/test", "x/test"]),
        ([("test", "x/test", SCIFACT), ("renamed", "y/renamed", SCIFACT)], ["renamed", "renamed"]),
        ([("test", "", ""), ("test", "x/test", SCIFACT)], ["test", "test"]),
        ([("test", "", ""), ("test", "x/test", SCIFACT), ("test", "y/test", NFCORPUS)],
         ["test (of an older run)", "x/test", "y/test"]),
    ],
)  # fmt: skip
def test_names_that_clash_get_more(found: Sequence[tuple[str, str, str]], names: Sequence[str]) -> None:
    told = shown([Named(*one) for one in found])
    assert [told[Named(*one)] for one in found] == list(names)


def test_what_is_meant() -> None:
    names = shown(
        [Named("test", "scifact/test", SCIFACT), Named("test", "nfcorpus/test", NFCORPUS), Named("c", "d/c", "e" * 64)]
    )
    for given in ("scifact/test", SCIFACT[:6], SCIFACT, Named("elsewhere", "x/elsewhere", SCIFACT)):
        assert meant(given, names) == "scifact/test"
    assert meant("c", names) == meant("d/c", names) == meant("eeeeee", names) == "c"
    assert meant("a1b2c", names) == "a1b2c" and meant("other", names) == "other"  # too short, and unknown
    assert meant(Named("c", "f/c", "9" * 64), names) == "c (999999)"  # of this name, and another
    with pytest.raises(MechirError, match=r"^'test' is 2 collections here: write 'nfcorpus/test' or 'scifact/test'\.$"):
        meant("test", names)
    with pytest.raises(MechirError, match="'eeeeee' is 2 collections here: write 'c' or 'd'"):
        meant("eeeeee", shown([Named("c", "d/c", "e" * 64), Named("d", "d/d", "e" * 63 + "f")]))


def two(registry: Path) -> None:
    """Findings of two folders called test: h1.2 is linked to tf on the one, and nothing holds on the other."""
    for name, sha256, p in (("scifact", SCIFACT, SURE), ("nfcorpus", NFCORPUS, NOT)):
        of = {"collection": "test", "collection_full_name": f"{name}/test", "collection_sha256": sha256}
        heads = [row(CONTRAST, site, 0.3, p, family="contrast") for site in ("h1.2", "h0.0")]
        patched = [
            row(PATCHING, "h1.2", 0.9, p, least=0.05, family="patching"),
            row(PATCHING, "h0.0", 0.0, NOT, least=0.05, family="patching"),
        ]
        for k, rows in enumerate((heads, patched)):
            run_id = f"{sha256[:6]}{k}"
            told = {"run_id": run_id, "written": run_id, "contrasts_sha256": "d" * 64 if k else ""}
            record(registry, run_id, checked(pd.DataFrame(rows), OF | of | told))


def test_the_newer_of_two_does_not_hide_the_other(tmp_path: Path) -> None:
    two(tmp_path)
    table = mi.links(registry=tmp_path)
    assert table[["collection", "exploratory"]].to_numpy().tolist() == [["scifact/test", "tf"], ["scifact/test", ""]]
    found = mi.findings(registry=tmp_path)
    assert found.groupby("collection")["value"].count().to_dict() == {"nfcorpus/test": 4, "scifact/test": 4}
    told = mi.dossier("h1.2", registry=tmp_path)
    assert [text.partition(":")[0] for text in told.agreements] == ["linked to tf (exploratory), m on scifact/test"]
    assert told.findings["collection"].nunique() == 2 and told.findings["holds"].notna().all()
    assert "contrast, query<-doc holds on scifact/test and not on nfcorpus/test" in told.conflicts
    kinds = conflicts(held(matching(tmp_path, newest=True)))
    assert set(kinds["kind"]) == {"one collection", "dead"} and set(kinds["collection"]) == {
        "scifact/test",
        "nfcorpus/test",
    }
    sections = gathered(tmp_path)["sections"]
    assert sorted(section["collection"] for section in sections) == ["nfcorpus/test", "scifact/test"]
    assert all(len(section["components"]["sites"]["h1.2"]["findings"]) == 2 for section in sections)


def test_a_name_of_two_is_refused_and_a_longer_one_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two(tmp_path)
    told = "'test' is 2 collections here: write 'nfcorpus/test' or 'scifact/test'."
    for ask in (mi.findings, mi.links, lambda **of: mi.dossier("h1.2", **of)):
        with pytest.raises(MechirError) as refused:
            ask(collection="test", registry=tmp_path)
        assert str(refused.value) == told
        for given in ("scifact/test", SCIFACT[:6], SCIFACT):
            ask(collection=given, registry=tmp_path)
    assert set(mi.findings(collection=NFCORPUS[:7], registry=tmp_path)["run_id"]) == {"a1b2c40", "a1b2c41"}
    assert mi.links(collection="nfcorpus/test", registry=tmp_path).empty
    with pytest.raises(MechirError, match="There is no finding of collection 'tes': the closest are 'scifact/test'"):
        mi.findings(collection="tes", registry=tmp_path)
    at = ("--registry", str(tmp_path))
    for command in (("findings",), ("export", "x.csv"), ("export", "x.csv", "--links")):
        code, _, err = call(capsys, *command, "--collection", "test", *at)
        assert (code, err) == (2, f"mechir: {told}\n")
    code, out, _ = call(capsys, "findings", "--collection", "scifact/test", "--site", "h1.2", *at)
    assert code == 0 and "2 findings of 2 runs" in out and "nfcorpus" not in out
    assert sql("select distinct collection from findings order by 1", registry=tmp_path)["collection"].tolist() == [
        "nfcorpus/test", "scifact/test",
    ]  # fmt: skip


def test_one_content_under_two_names_is_one(tmp_path: Path) -> None:
    for k, name in enumerate(("before", "after")):
        of = {"collection": name, "collection_full_name": f"x/{name}", "collection_sha256": SCIFACT, "run_id": f"a{k}"}
        record(
            tmp_path, f"a{k}", checked(pd.DataFrame([row(CONTRAST, "h1.2", k, SURE)]), OF | of | {"written": str(k)})
        )
    assert mi.findings(registry=tmp_path)["collection"].tolist() == ["after", "after"]
    assert mi.findings(collection="before", registry=tmp_path)["value"].tolist() == [1, 0]
    assert matching(tmp_path, newest=True)["value"].tolist() == [1]


def older(registry: Path, run_id: str, rows: list[dict[str, Any]], **of: Any) -> None:
    """An entry as schema 1 was written: a run on contrasts names the collection, with the hash of the contrasts."""
    told = checked(pd.DataFrame(rows), OF | {"run_id": run_id, "written": run_id, "family": run_id} | of)
    record(registry, run_id, told.drop(columns=OLD))
    (file,) = (registry / "findings").glob(f"{run_id}.*")
    file.rename(file.with_name(f"{run_id}.000.v1.parquet"))


def test_an_old_registry_reads_links_and_reports_as_it_did(tmp_path: Path) -> None:
    older(tmp_path, "a1", [row(CONTRAST, "h1.2", 0.3, SURE)], collection="test", collection_sha256=SCIFACT)
    older(tmp_path, "a2", [row(PATCHING, "h1.2", 0.9, SURE)], collection="test", collection_sha256="d" * 64)
    assert mi.links(registry=tmp_path, collection="test")["exploratory"].tolist() == ["tf"]
    assert mi.findings(registry=tmp_path)["collection"].tolist() == ["test", "test"]
    (section,) = gathered(tmp_path)["sections"]
    assert section["collection"] == "test" and section["links"]["rows"][0]["exploratory"] == "tf"
    of = {"collection": "test", "collection_full_name": "scifact/test", "collection_sha256": SCIFACT}
    record(
        tmp_path,
        "b1",
        checked(pd.DataFrame([row(CONTRAST, "h1.2", 0.4, SURE)]), OF | of | {"run_id": "b1", "written": "b"}),
    )
    assert mi.links(registry=tmp_path)[["contrast", "exploratory"]].to_numpy().tolist() == [
        [0.4, "tf"]
    ]  # measured anew


def test_an_old_registry_that_meets_two_of_its_name_is_neither(tmp_path: Path) -> None:
    older(tmp_path, "a0", [row(CONTRAST, "h1.2", 0.3, SURE)], collection="test", collection_sha256="")
    two(tmp_path)
    assert set(mi.findings(registry=tmp_path)["collection"]) == {
        "test (of an older run)",
        "nfcorpus/test",
        "scifact/test",
    }
    with pytest.raises(MechirError, match=r"write 'nfcorpus/test' or 'scifact/test' or 'test \(of an older run\)'"):
        mi.findings(collection="test", registry=tmp_path)
    assert mi.findings(collection="test (of an older run)", registry=tmp_path)["run_id"].tolist() == ["a0"]


def test_across_sees_two(tmp_path: Path) -> None:
    of = {"collection_full_name": "", "collection_sha256": ""}
    for k, (run, sha256, heads) in enumerate(
        (("a1", SCIFACT, {"h0.1": 0.9, "h1.2": 0.5}), ("a2", NFCORPUS, {"h0.1": 0.8}))
    ):
        of = {"collection_full_name": f"{'xy'[k]}/test", "collection_sha256": sha256}
        chain(tmp_path, run, "test", heads, **of)
    summary = across(tmp_path, mi.load(TOY_MODEL)).summary
    parts = summary[summary["kind"] == "component"].set_index(["site", "collection"])
    assert parts.loc[("h1.2", "x/test"), "where"] == "some" and parts.loc["h0.1", "where"].tolist() == ["all", "all"]
    assert set(summary.loc[summary["kind"] == "values", "two"]) == {"y/test"}


def test_overlap_takes_the_one_it_is_given(tmp_path: Path) -> None:
    toy, collection = mi.load(TOY_MODEL), mi.collection(TOY)
    own = {"collection_full_name": collection.full_name, "collection_sha256": collection.hash}
    for k, measure in enumerate(("one", "two")):
        values = range(1, 9)
        tell(tmp_path, f"a{k}", measure, values, toy, **own)
        tell(
            tmp_path,
            f"b{k}",
            measure,
            [*values][:: (-1) ** k],
            toy,
            collection_full_name="x/toy",
            collection_sha256=SCIFACT,
        )
    assert overlap(tmp_path, toy).summary["rho"].tolist() == [1]
    (tmp_path / "other").mkdir()
    tell(tmp_path / "other", "b1", "one", values, toy, collection_full_name="x/toy", collection_sha256=SCIFACT)
    with pytest.raises(
        MechirError, match=rf"no finding of collection 'toy \({collection.hash[:6]}\)': the closest are 'toy'"
    ):
        overlap(tmp_path / "other", toy)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders called test, with other judgments."""
    made = [tmp_path_factory.mktemp("data") / name / "test" for name in ("scifact", "nfcorpus")]
    for folder in made:
        shutil.copytree(TOY, folder)
    judged = made[1] / "qrels.txt"
    judged.write_text("".join(judged.read_text().splitlines(keepends=True)[:-1]))
    return made


def test_runs_on_pairs_and_contrasts_of_a_collection_are_about_it(told: Path) -> None:
    found = mi.findings(collection="toy", registry=told)
    toy = mi.collection(TOY)
    assert set(found["collection_sha256"]) == {toy.hash} and set(found["collection_full_name"]) == {
        f"{TOY.parent.name}/toy"
    }
    of = found.groupby("experiment")["contrasts_sha256"].unique()
    assert of["vast2025/layer_sweep"].tolist() == [""] and len(of["chen2024/head_maps"][0]) == 64
    (section,) = (one for one in gathered(told)["sections"] if one["collection"] == "toy")
    assert {one["experiment"] for one in section["components"]["measures"]} == {
        "vast2025/layer_sweep",
        "chen2024/head_maps",
    }


def test_two_folders_are_run_together_and_told_apart(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [word for folder in folders for word in ("--collection", str(folder))]
    at = ("--registry", str(tmp_path))
    code, out, err = call(capsys, "run", "lu2025/semantic_bm25", *both, "--top", "2", *at)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[-2:]] == ["scifact/test", "nfcorpus/test"]
    code, out, _ = call(capsys, "show", *at)
    assert "on scifact/test" in out and "on nfcorpus/test" in out
    assert set(mi.findings(registry=tmp_path)["collection"]) == {"scifact/test", "nfcorpus/test"}
    assert len(gathered(tmp_path)["sections"]) == 2


def test_a_group_of_one_is_the_collection_and_of_several_each(folders: list[Path], tmp_path: Path) -> None:
    toy, small = mi.load(TOY_MODEL), mi.Pool(limit_queries=2)
    mi.run("vast2024/importance", toy, mi.collection(folders[1]), pool=small, registry=tmp_path, take=1)
    grouped = collections([f"in:{folders[1]}", f"out:{TOY}"])
    mi.run("vast2024/importance", toy, grouped, pool=small, registry=tmp_path, take=1)
    found = mi.sql(
        "select distinct collection, collection_full_name as full, collection_sha256 as sha from findings",
        registry=tmp_path,
    )
    assert sorted(found.itertuples(index=False, name=None)) == sorted(
        (one.id, one.full_name, one.hash) for _, one in grouped.members
    )


def test_two_models_of_one_name_agree_each_for_itself(tmp_path: Path) -> None:
    one(tmp_path)
    for k, rows in enumerate(([row(CONTRAST, "h1.2", 0.3, SURE)], [row(PATCHING, "h1.2", 0.0, NOT)])):
        of = OF | {"model_fingerprint": "e" * 64, "collection": "c", "run_id": f"e{k}", "family": f"{k}"}
        record(tmp_path, f"e{k}", checked(pd.DataFrame(rows), of))
    assert len(mi.dossier("h1.2", registry=tmp_path).agreements) == 1
