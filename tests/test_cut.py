"""Components cut together: the sets, the table against a plain computation, masks, findings, and what is refused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.cut_ranking import sets_of
from mechir.methods.evaluation import per_query, ranking_measures
from mechir.registry.queries import matching
from mechir.reporting import commands
from tests.models import TOY, TOY_MODEL, nine_queries
from tests.test_cli import call
from tests.test_links import CONTRAST, SURE, row, tell

CUT = "joint/cut"


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nine_queries(tmp_path_factory.mktemp("nine") / "nine")


@pytest.fixture(scope="module")
def groups(nine: Path) -> Path:
    file = nine.parent / "groups.tsv"
    names = list(mi.collection(nine).queries)
    file.write_text("".join(f"{name}\t{'exact' if place % 2 else 'other'}\n" for place, name in enumerate(names)))
    return file


@pytest.fixture(scope="module")
def stored(toy: HookedEncoder, nine: Path, groups: Path) -> Any:
    return mi.run(
        CUT, toy, mi.collection(nine), registry=nine.parent / "registry", sites=["L1H1", "n0.3", "mlp1"],
        masks=["doc<-query@h0.2", "cls<-doc@0"], evaluate=["nDCG@10", "RR(rel=2)@3"], groups=str(groups), draws=3,
    )  # fmt: skip


def test_the_table_is_what_a_plain_computation_gives(stored: Any, toy: HookedEncoder, nine: Path) -> None:
    pairs = mi.collection(nine).pairs()
    means = mi.means(toy, pairs)
    for way, filling in {"zero": None, "mean": means}.items():
        cut = [mi.Ablate(["h1.1", "n0.3", "mlp1"], filling), mi.Mask("doc<-query@h0.2"), mi.Mask("cls<-doc@0")]
        scores = {"intact": toy.score(pairs, frame=True), "cut": toy.score(pairs, do=cut, frame=True)}
        for text in ("nDCG@10", "RR(rel=2)@3"):
            (measure,) = ranking_measures(text)
            values = {name: per_query(frame, frame, measure) for name, frame in scores.items()}
            of = stored.summary[stored.summary["group"] == "all"].set_index(["measure", "way"])
            line = of.loc[(text, way)]
            assert line["intact"] == pytest.approx(values["intact"].mean(), abs=1e-9)
            assert line["change"] == pytest.approx((values["cut"] - values["intact"]).mean(), abs=1e-6)
            assert line["value"] == pytest.approx(values["cut"].mean(), abs=1e-6)
    summary = stored.summary
    assert set(summary["way"]) == {"zero", "mean", "resample"} and set(summary["group"]) == {
        "all",
        "exact",
        "other",
        "other - exact",
    }
    random = [name for name in stored.rows["name"].unique() if name.startswith("random ") and name.endswith("|zero")]
    assert len(random) == 3 and summary["random"].notna().sum() == 2 * 3 * 3
    both = summary[(summary["way"] == "zero") & (summary["measure"] == "nDCG@10")].set_index("group")["change"]
    assert both["other - exact"] == pytest.approx(both["other"] - both["exact"])
    assert summary["sites"].iloc[0] == "h1.1, mlp1, n0.3, cls<-doc@0-0, doc<-query@h0.2"


def test_a_stored_run_is_evaluated_by_other_measures(stored: Any, groups: Path) -> None:
    again = stored.evaluate("nDCG@10", "AP(rel=2)", groups=groups).set_index(["measure", "group", "name"])
    line = stored.summary.query("measure == 'nDCG@10' and group == 'exact' and way == 'zero'").iloc[0]
    assert again.loc[("nDCG@10", "exact", "chosen|zero"), "change"] == pytest.approx(line["change"])
    assert ("AP(rel=2)", "all", "chosen|mean") in again.index


def test_random_sets_have_as_many_units_of_every_layer(toy: HookedEncoder) -> None:
    sets, notes = sets_of(toy, ["h1.1", "h1.2", "n0.3", "mlp1"], ["doc<-query@h0.1", "cls<-doc@1"], 4, 0)
    assert sets["set"].tolist()[0] == "chosen" and len(sets) == 5
    for drawn in sets.iloc[1:].itertuples():
        sites = drawn.sites.split(",")
        assert sorted(site[:2] for site in sites) == ["h1", "h1", "ml", "n0"] and "mlp1" in sites
        assert not {"h1.1", "h1.2", "n0.3"} & set(sites)
        whole, moved = drawn.masks.split(";")
        assert moved.startswith("doc<-query@h0.") and moved != "doc<-query@h0.1" and whole == "cls<-doc@1-1"
    assert notes == [
        "mlp1: whole layers, the same in the random sets",
        "cls<-doc@1-1: whole layers, the same in the random sets",
    ]
    alone, _ = sets_of(toy, ["mlp1"], [], 4, 0)
    assert len(alone) == 1


def test_random_sets_differ_and_a_head_stays_one_head(toy: HookedEncoder) -> None:
    """A layer of four heads has three others: three sets, so that the least p is one in four."""
    sets, notes = sets_of(toy, ["h1.1"], [], 20, 0)
    assert sorted(sets["sites"]) == ["h1.0", "h1.1", "h1.2", "h1.3"]
    assert notes == ["there are 3 other sets of these layers, not 20"]
    every, notes = sets_of(toy, ["h0.0", "h0.1", "h0.2", "h0.3"], [], 20, 0)
    assert len(every) == 1 and notes == ["all 4 heads of layer 0 are chosen, the same in the random sets"]
    many, notes = sets_of(toy, ["h0.0", "h0.1", "h0.2"], [], 20, 0)
    assert len(many) == 4 == many["sites"].nunique() and "too few to draw 3 beside the chosen ones" in notes[0]
    both, _ = sets_of(toy, ["h1.1"], ["doc<-query@h1.2"], 2, 0)
    for drawn in both.iloc[1:].itertuples():
        assert {drawn.sites, drawn.masks.partition("@")[2]} == {"h1.0", "h1.3"}
    twice, _ = sets_of(toy, [], ["doc<-query@h1.1", "query<-doc@h1.1"], 3, 0)
    for drawn in twice.itertuples():
        assert len({mask.partition("@")[2] for mask in drawn.masks.split(";")}) == 1


def test_masks_alone_have_one_way_and_no_value_in_their_place(toy: HookedEncoder, nine: Path, tmp_path: Path) -> None:
    run = mi.run(CUT, toy, mi.collection(nine), registry=tmp_path, masks="doc<-query@0-1")
    assert run.summary["way"].tolist() == ["mask"] and "random" not in run.summary
    assert matching(tmp_path)["measure"].tolist() == ["nDCG@10 without the set doc<-query@0-1, by mask"]


def tell_of(registry: Path, toy: HookedEncoder, site: str, collection: Any) -> None:
    """Writes a finding of this head on this collection that holds."""
    of = {"model_fingerprint": toy.fingerprint, "collection_sha256": collection.hash}
    tell(registry, f"a{site[1]}{site[3]}", [row(CONTRAST, site, 0.3, SURE, label="lexical")], collection.id, **of)


def test_findings_say_what_is_cut(toy: HookedEncoder, nine: Path, tmp_path: Path) -> None:
    collection, registry = mi.collection(nine), tmp_path / "r"
    asked: dict[str, Any] = {"registry": registry, "role": "matching", "ways": "zero", "draws": 1}
    with pytest.raises(MechirError, match="holds no findings yet"):
        mi.run(CUT, toy, collection, **asked)
    tell_of(registry, toy, "h0.1", mi.collection(TOY))
    said: list[str] = []
    run = mi.run(CUT, toy, collection, say=said.append, **asked)
    assert run.summary["sites"].unique().tolist() == ["h0.1"]
    assert any(line.startswith("cut: h0.1 (run a01 on toy)") for line in said)
    with pytest.raises(MechirError, match=r"There is no finding of label 'purple': the closest are 'lexical'"):
        mi.run(CUT, toy, collection, label="purple", **asked)
    with pytest.raises(
        MechirError, match=r"No finding of role='scoring' on this model holds for a head|no finding of role"
    ):
        mi.run(CUT, toy, collection, **asked | {"role": "scoring"})


def test_findings_of_several_collections_are_not_united(toy: HookedEncoder, nine: Path, tmp_path: Path) -> None:
    collection, other = mi.collection(nine), mi.collection(nine_queries(tmp_path / "other", 6))
    asked: dict[str, Any] = {"registry": tmp_path / "r", "role": "matching", "ways": "zero", "draws": 1}
    tell_of(tmp_path / "r", toy, "h0.1", mi.collection(TOY))
    tell_of(tmp_path / "r", toy, "h1.2", other)
    with pytest.raises(
        MechirError, match=r"Findings of role='matching' hold on 2 collections here \((other, toy|toy, other)\)"
    ):
        mi.run(CUT, toy, collection, **asked)
    tell_of(tmp_path / "r", toy, "h1.3", collection)
    said: list[str] = []
    run = mi.run(CUT, toy, collection, say=said.append, **asked)
    assert run.summary["sites"].unique().tolist() == ["h1.3"]
    assert any("found on these queries, which flatters what they do" in line for line in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "There is nothing to cut: name sites='h1.1,h2.9' or masks="),
        ({"sites": "h1.1", "role": "matching"}, "sites= and masks= name what is cut, and so do role="),
        ({"sites": "h9.1"}, "Layer 9 is out of range"),
        ({"sites": "h0.9"}, "Head 9 is out of range"),
        ({"sites": "resid0"}, "Cannot ablate 'resid0'"),
        ({"sites": "dog"}, "Cannot read 'dog' as a site"),
        ({"masks": "query->doc"}, "the reader comes first"),
        ({"masks": "doc<-query@h0.9"}, "Head 9 is out of range"),
        ({"masks": "doc<-query@7"}, "Layer 7 is out of range: the model has layers 0-1"),
        ({"sites": "h1.1", "evaluate": "nDGC@10"}, "Cannot read the ranking measure 'nDGC@10'"),
        ({"sites": "h1.1", "evaluate": ""}, "evaluate='' is empty: write a measure such as nDCG@10"),
        ({"sites": "h1.1", "evaluate": "AP(rel=9)"}, r"evaluate='AP\(rel=9\)': no query has a document of grade 9"),
        (
            {"sites": "h1.1", "groups": {"a": "b"}},
            "Groups of queries are compared with each other, and there is only 'b'",
        ),
        ({"sites": "h1.1", "groups": 3}, "groups=3 names no groups: give a mapping"),
        ({"sites": "h1.1", "groups": "q1\ta b\tc"}, "groups, line 1: cannot read"),
        ({"sites": "h1.1", "groups": "none.tsv"}, "There is no file of groups 'none.tsv'"),
        ({"sites": "h1.1", "ways": "half"}, "Unknown ways='half'"),
        ({"sites": "h1.1", "draws": 0}, "draws=0 is out of range: write 1 or more"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_is_measured(
    toy: HookedEncoder, nine: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MechirError, match=message):
        mi.run(CUT, toy, mi.collection(nine), registry=tmp_path / "r", **options)
    assert not (tmp_path / "r" / "runs").exists()


def test_the_command_takes_measures_and_masks_one_by_one(
    nine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("run", CUT, "--model", str(TOY_MODEL), "--collection", str(nine), "--registry", str(tmp_path), "--draws", "1",
                 "--masks", "doc<-query@h0.1", "--masks", "cls<-doc@h1.1", "--evaluate", "RR", "--evaluate", "AP(rel=2)")  # fmt: skip
    code, out, _ = call(capsys, *arguments)
    assert code == 0 and "AP(rel=2)" in out and "mask" in out
    (run,) = (tmp_path / "runs").iterdir()
    assert pd.read_parquet(run / "summary.parquet")["measure"].tolist() == ["RR", "AP(rel=2)"]
    code, out, _ = call(capsys, "run", CUT, "--help")
    assert "--evaluate" in out and "nDCG@10" in out


def test_the_groups_file_is_part_of_the_identity(toy: HookedEncoder, nine: Path, groups: Path, tmp_path: Path) -> None:
    options = {"registry": tmp_path, "masks": "doc<-query@0"}
    first = mi.run(CUT, toy, mi.collection(nine), groups=str(groups), **options)
    copy = tmp_path / "same.tsv"
    copy.write_bytes(groups.read_bytes())
    assert mi.run(CUT, toy, mi.collection(nine), groups=str(copy), **options).id == first.id
    copy.write_text(copy.read_text().replace("exact", "literal"))
    assert mi.run(CUT, toy, mi.collection(nine), groups=str(copy), **options).id != first.id
    assert np.isfinite(first.summary["change"]).all()


def test_groups_may_be_a_mapping_a_column_or_lines(
    toy: HookedEncoder, nine: Path, groups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"registry": tmp_path, "masks": "doc<-query@0"}
    first = mi.run(CUT, toy, mi.collection(nine), groups=groups, **options)
    mapping = dict(line.split("\t") for line in groups.read_text().splitlines())
    frame = mi.collection(nine).pairs().frame()
    frame["group"] = frame["qid"].map(mapping)
    alike = [mi.run(CUT, toy, mi.collection(nine), groups=given, **options) for given in (mapping, frame)]
    assert alike[0].id == alike[1].id
    for run in alike:
        pd.testing.assert_frame_equal(run.summary, first.summary)
    by_group = mi.run(CUT, toy, frame, groups=frame, **options)
    assert {"exact", "other - exact"} <= set(by_group.summary["group"])
    command = shlex.split(commands.command(alike[0].record))
    code, _, err = call(capsys, *command[1:], "--registry", str(tmp_path))
    assert code == 0, err
    assert len(list((tmp_path / "runs").iterdir())) == 3, "the command makes the same run"


def test_a_head_may_be_layer_and_number() -> None:
    cut = mi.load_experiment("joint/cut").chosen
    alike = [(1, 1), [(1, 1)], "h1.1", ["L1H1"], mi.Head(1, 1), "(1, 1)", "(1,1), (01, 1)"]
    assert {cut(sites=way).written["sites"] for way in alike} == {"h1.1"}
    assert cut(sites="mlp1 (1, 1) n0.3") == cut(sites=[(1, 1), "n0.3", "mlp1"]) == cut(sites="mlp1 n0.3,h1.1")
    heads = mi.load_experiment("lu2025/idf_edit").chosen
    assert heads(heads=(1, 1)) == heads(heads="h1.1") and heads(heads=[(1, 1), (0, 3)]) == heads(heads="h1.1,h0.3")
    with pytest.raises(MechirError, match=r"Cannot read sites='3': 3 is no site: write h8\.1"):
        cut(sites=3)


def test_a_run_tells_the_ids_of_groups_without_a_query(toy: HookedEncoder, nine: Path, tmp_path: Path) -> None:
    queries = list(mi.collection(nine).queries)
    lines = [f"{query_id}\t{'ab'[place % 2]}" for place, query_id in enumerate([*queries, "x1"])]
    (tmp_path / "groups.tsv").write_text("\n".join(lines))
    said: list[str] = []
    asked = {"sites": "h1.1", "groups": str(tmp_path / "groups.tsv"), "ways": "zero", "draws": 1}
    mi.run(CUT, toy, mi.collection(nine), registry=tmp_path / "r", say=said.append, **asked)
    assert f"groups: 1 of {len(lines)} ids are no query here, such as 'x1'." in said
