"""The experiments on IDF, soft-TF and the semantic BM25, end to end on a toy collection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mechir.analyses.lu2025.idf_direction import IdfDirection

import mechir as mi
from mechir import running
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.experiment import Finished
from mechir.material import Pool
from mechir.methods import lexical
from tests.models import TOY, TOY_MODEL

QUICK = {
    "lu2025/idf_direction": {"vectors": 5},
    "lu2025/idf_edit": {"factors": "1,3", "draws": 2, "per_query": 1, "top": 2},
    "lu2025/soft_tf": {"per_query": 1, "top": 2},
    "lu2025/semantic_bm25": {"top": 2},
}


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


@pytest.fixture(scope="module")
def summaries(toy: HookedEncoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    registry, found = tmp_path_factory.mktemp("registry"), {}
    for name, options in QUICK.items():
        stored = running.run(name, toy, mi.collection(TOY), pool=Pool(per_grade=4), registry=registry, **options)
        assert (stored.path / "chart.png").is_file() and (stored.path / "chart.html").is_file()
        assert running.run(name, toy, mi.collection(TOY), pool=Pool(per_grade=4), registry=registry, **options)
        found[name] = stored.summary
        found[f"{name.partition('/')[2]} rows"] = stored.rows
    found["findings"] = mi.findings(registry=registry)
    return found


def test_every_part_becomes_a_finding(summaries: dict[str, pd.DataFrame]) -> None:
    told = summaries["findings"]
    rise = told[told["measure"] == "rise of attention, tf 0 to 8"]
    rise = rise.set_index(rise["site"].map(str))
    heads = summaries["lu2025/soft_tf"].set_index("site")
    np.testing.assert_allclose(rise["value"], heads.loc[rise.index, "rise"])
    assert len(rise) == 8 and set(rise["family"]) == {"8 heads"}
    assert rise["p_corrected"].isna().all() and (rise["n_queries"] < 6).all()  # too few to test
    assert set(told[told["measure"] == "k1 of attention"]["term"]) == {"saturation"}
    vectors = told[told["measure"] == "r with IDF"]
    assert sorted(map(str, vectors["site"])) == [f"embed.u{k}" for k in range(5)] and not vectors["causal"].any()
    edit = told[told["measure"].str.contains("up IDF")]
    assert edit["causal"].all() and edit["site"].map(str).str.startswith("embed.u").all() and (edit["least"] > 0).all()
    rows = summaries["idf_edit rows"]
    rows = rows[rows["matched"]].set_index(["along", "factor", "query_id", "doc_id"])["score_change"].sort_index()
    halves = {}
    for along in ("shift", "shift random 0", "shift random 1"):
        up, down = rows.loc[along, 1.0], rows.loc[along, -1.0]
        halves[along] = ((up - down) / 2).groupby("query_id").mean().mean()
    score = edit[edit["unit"] == "logits"].iloc[0]
    assert score["value"] == pytest.approx(halves["shift"], abs=1e-6)
    random = np.array([halves["shift random 0"], halves["shift random 1"]])
    assert score["least"] == pytest.approx(4.302653 * np.sqrt((random**2).mean()), rel=1e-4)  # t, 2 degrees, 97.5 %
    weights = told[told["measure"].isin(["weight of soft-TF", "weight of IDF x soft-TF"])]
    assert len(weights) == 4 and (weights["low"] <= weights["high"]).all()
    whole = told[told["measure"] == "semantic BM25"].iloc[0]
    assert whole["site"] is None and whole["n_queries"] == 2


def test_idf_direction_has_every_vector_and_the_norm(summaries: dict[str, pd.DataFrame], toy: HookedEncoder) -> None:
    found = summaries["lu2025/idf_direction"]
    assert found["vector"].tolist() == ["0", "1", "2", "3", "4", "norm"]
    collection = mi.collection(TOY)  # all of it counts, whatever the pool
    table = lexical.collection_counts(toy, collection).idf
    assert (found["n"] == sum(value > 0 for value in table.values())).all()
    assert "pearson_query" not in found  # the queries have seven word pieces
    asked = pd.DataFrame({"query_id": "q", "piece": [*sorted(table)[::2], 0]})  # 0: in no document
    run = Finished(pd.concat([asked, asked]), model=toy, source=collection)
    found = IdfDirection(vectors=5).summarise(run)
    own = lexical.idf_correlations(toy, {piece: table[piece] for piece in sorted(table)[::2]}, vectors=5, draws=1)
    assert (found["n_query"] == own["n"]).all() and (own["n"] < found["n"]).all()
    np.testing.assert_allclose(found["pearson_query"], own["pearson_idf"])
    assert (found["pearson_query_low"] < found["pearson_query"]).all()


def test_idf_edit_has_every_dose(summaries: dict[str, pd.DataFrame]) -> None:
    found = summaries["lu2025/idf_edit"]
    sizes = found.groupby(["measure", "along"]).size()
    assert sizes.to_dict() == {
        (what, along): n
        for what in ("score", "attention")
        for along, n in (("direction", 4), ("row", 4), ("random", 2), ("shift", 1), ("shift random", 1))
    }
    row = found[(found["along"] == "row") & (found["factor"] == 1)]
    assert (row["estimate"].abs() < 1e-6).all()  # the whole row times one is no edit
    scaled = found[~found["along"].str.startswith("shift")]  # steps count on documents that hold the word
    assert (scaled["low"] <= scaled["estimate"]).all() and (scaled["estimate"] <= scaled["high"]).all()
    assert (scaled["queries"] == 4).all()  # two of six queries found the heads


def test_soft_tf_has_every_head_and_two_curves(summaries: dict[str, pd.DataFrame], toy: HookedEncoder) -> None:
    found = summaries["lu2025/soft_tf"]
    heads = found[found["site"].str.match(r"h\d")]
    assert len(heads) == toy.cfg.n_layers * toy.cfg.n_heads and (heads["heads"] == "matching").sum() == 2
    assert found[found["site"] == "mass"].groupby("heads")["count"].apply(list).map(len).to_dict() == {
        "matching": 6,
        "other": 6,
    }
    assert set(found.loc[found["site"] == "mean", "heads"]) == {"matching", "other"}


def test_semantic_bm25_has_its_ablations_and_baselines(summaries: dict[str, pd.DataFrame]) -> None:
    found = summaries["lu2025/semantic_bm25"].set_index("model")
    expected = {
        "semantic BM25",
        "IDF only",
        "soft-TF only",
        "random heads",
        "random features",
        "BM25 tuned",
        "TF",
        "IDF",
    }
    assert expected <= set(found.index)
    assert found.loc["semantic BM25", "features"] == 5 and found.loc["soft-TF only", "features"] == 2
    assert found.loc["BM25 tuned", "note"].startswith("k1 ")
    assert (found.loc[["semantic BM25", "BM25 tuned"], "queries"] == 2).all()  # every third of six


@pytest.mark.parametrize("name", ["lu2025/idf_direction", "lu2025/idf_edit", "lu2025/semantic_bm25"])
def test_a_table_that_is_not_there_stores_nothing(toy: HookedEncoder, tmp_path: Path, name: str) -> None:
    with pytest.raises(MechirError, match=r"There is no IDF table 'nowhere.tsv'"):
        running.run(name, toy, mi.collection(TOY), registry=tmp_path, idf="nowhere.tsv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lu2025/idf_edit", "lu2025/soft_tf"])
def test_one_query_is_too_few(toy: HookedEncoder, tmp_path: Path, name: str) -> None:
    with pytest.raises(MechirError, match=r"One query cannot both find heads or edges and test them: take more"):
        running.run(name, toy, mi.collection(TOY), pool=Pool(limit_queries=1), registry=tmp_path, **QUICK[name])


def test_named_heads_leave_every_query(toy: HookedEncoder, tmp_path: Path) -> None:
    options = QUICK["lu2025/idf_edit"] | {"heads": "h1.0", "vector": 2}
    stored = running.run(
        "lu2025/idf_edit", toy, mi.collection(TOY), pool=Pool(per_grade=1), registry=tmp_path, **options
    )
    assert stored.record["identity"]["options"]["vector"] == 2 and stored.summary["queries"].max() == 6


def test_steps_alone_are_taken_and_drawn(toy: HookedEncoder, tmp_path: Path) -> None:
    options = QUICK["lu2025/idf_edit"] | {"heads": "h1.0", "vector": 2, "factors": ""}
    stored = running.run("lu2025/idf_edit", toy, mi.collection(TOY), registry=tmp_path, **options)
    assert set(stored.summary["along"]) == {"shift", "shift random"} and (stored.path / "chart.png").is_file()
    assert len(mi.findings(registry=tmp_path)) == 2
