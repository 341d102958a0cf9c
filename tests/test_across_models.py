"""Are the heads of a model there in another: planted models, the level where nothing is shared, refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mechir as mi
from mechir import planted
from mechir.catalog import shown
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.alignment import align, distances, found_again, held_out, same_numbers
from mechir.registry.runs import Run
from mechir.views import charts
from scripts.measure_alignment import below
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call
from tests.test_joint import SIZES, tell

LOOKS, ACTS = "contrast, query<-doc", "patching, tfc1"
ORDER = (2, 3, 1, 0)
"""Where the heads of each layer of a planted model come from in the one with other numbers."""


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


def test_what_looks_alike_is_aligned_whatever_its_scale() -> None:
    generator = np.random.default_rng(0)
    one, order = generator.normal(size=(20, 3)), generator.permutation(20)
    other = one[order] * [1.0, 5.0, 0.1] + [3.0, 0.0, 7.0]
    distance = distances(one, other)
    places, others = align(distance)
    assert (order[others] == places).all() and distance[places, others].max() < 1e-6
    assert distances(one, np.ones((4, 3))).shape == (20, 4) and len(align(distances(one, other[:5]))[0]) == 5
    assert distance.mean() > 0.5 and np.isfinite(distances(one, np.ones((4, 3)))).all()  # without spread: 0
    share = same_numbers((places, places), draws=99)
    assert share.value == 1 and share.p == 0.01 and share.expected == pytest.approx(0.05, abs=0.02)
    none = np.zeros(20, dtype=bool)
    assert np.isnan(found_again(none, none, (places, others))).all()
    assert np.isnan(held_out(np.ones(20), np.arange(20.0), (places, others))).all()


def test_dealing_out_what_was_held_out_is_aligning_anew() -> None:
    """Profiles dealt out anew give the same alignment under other names: chance needs no alignment of its own."""
    generator = np.random.default_rng(0)
    one, other, held = generator.normal(size=(12, 2)), generator.normal(size=(15, 2)), generator.normal(size=15)
    _, before = align(distances(one, other))
    for _ in range(20):
        dealt = generator.permutation(15)
        _, again = align(distances(one, other[dealt]))
        assert (dealt[again] == before).all() and (held[again] == held[np.argsort(dealt)][before]).all()


def test_where_nothing_is_shared_the_level_is_kept_even_if_all_grows_with_depth() -> None:
    nothing, growing = (below(0.0, grows, 200) for grows in (0.0, 2.0))
    assert all(0.015 <= share <= 0.09 for share in (*nothing.values(), growing["layers"]))
    assert growing["heads"] > 0.8 and growing["thirds"] > 0.1  # what grows with depth agrees by that alone
    assert below(2.0, 0.0, 50)["layers"] > 0.9  # the same circuit under other numbers


def renumbered(model: planted.PlantedEncoder) -> HookedEncoder:
    """The same model with the heads of every layer in `ORDER`."""
    hf, size = copy.deepcopy(model.hf), model.design.d_head
    places = np.concatenate([np.arange(head * size, (head + 1) * size) for head in ORDER])
    for layer in hf.bert.encoder.layer:
        for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            part.weight.data, part.bias.data = part.weight.data[places], part.bias.data[places]
        layer.attention.output.dense.weight.data = layer.attention.output.dense.weight.data[:, places]
    return mi.load(hf, model.tokenizer, name="renumbered")


def across_models(registry: Path, model: HookedEncoder, source: Any = TOY, **options: Any) -> Run:
    collection = mi.collection(source) if isinstance(source, Path) else source
    return mi.run("joint/across_models", model, collection, registry=registry, **{"draws": 400} | options)


def graded(folder: Path, model: planted.PlantedEncoder, queries: int) -> mi.Collection:
    """A collection of the planted model's judged pairs."""
    pairs = planted.graded(model, queries, 1)
    texts = {pair.query_id: pair.query for pair in pairs}
    (folder / "queries.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in texts.items()))
    (folder / "docs.tsv").write_text("".join(f"{pair.doc_id}\t{pair.document}\n" for pair in pairs))
    (folder / "qrels.txt").write_text("".join(f"{pair.query_id} 0 {pair.doc_id} {pair.grade}\n" for pair in pairs))
    return mi.collection(folder)


def test_a_planted_circuit_is_there_under_other_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "save", lambda chart, stem: [])
    model, registry = planted.bm25(c=3.0), tmp_path / "registry"
    (tmp_path / "collection").mkdir()
    collection, other = graded(tmp_path / "collection", model, 10), renumbered(model)
    pairs = list(collection.pairs())
    np.testing.assert_allclose(model.score(pairs), other.score(pairs), atol=1e-4)
    contrasts = mi.diagnostic("tfc1", collection, fillers=("in",), model=model, per_grade=1)
    for one in (model, other):
        mi.run("vast2025/attention_contrast", one, collection, relevant=3, hard=0, weak=1, registry=registry)
        mi.run("chen2024/head_maps", one, contrasts, registry=registry)
    summary = across_models(registry, model, collection).summary
    tests = summary[summary["kind"] == "test"].set_index(["by", "measure"])
    looked = tests.loc[("looks", ACTS)]
    assert looked["estimate"] > 0.95 and looked["p"] < 0.01 and looked["found"] == 1 and looked["n"] == 16
    heads = summary[(summary["kind"] == "head") & (summary["by"] == "looks")].set_index("site")
    planted_there = f"h1.{ORDER.index(2)}"
    assert heads.loc["h1.2", "aligned"] == heads.loc["h1.2", "nearest"] == planted_there
    assert heads.loc["h1.2", "holds"] and heads.loc["h1.2", "aligned_holds"]
    right = [f"h{site[1]}.{ORDER.index(int(site[3]))}" for site in heads.index]
    assert (heads["aligned"] == right).mean() > 0.8
    by_number = across_models(registry, model, collection, same="renumbered").summary
    numbers = by_number[by_number["kind"] == "numbers"].set_index("by")
    assert numbers.loc["looks", "estimate"] < 0.2 and numbers.loc["looks", "p"] > 0.05


def told(registry: Path, run: str, measure: str, values: Any, model: Any, material: str = "", **of: Any) -> None:
    """Findings of 8 heads with intervals of .5 either way, and the hash of what they were measured on."""
    if material:
        (registry / "runs" / run).mkdir(parents=True)
        record = {"identity": {"pairs_sha256": material}}
        (registry / "runs" / run / "run.json").write_text(json.dumps(record))
    tell(registry, run, measure, values, model, **{"least": 0.1, "causal": measure == ACTS} | of)


def both(registry: Path, toy: HookedEncoder, **of: Any) -> None:
    """Looks and acts of the toy and of another model, whose heads have the numbers in reverse."""
    told(registry, "a1", LOOKS, SIZES, toy, "q")
    told(registry, "a2", ACTS, SIZES**2, toy, "q")
    told(registry, "b1", LOOKS, SIZES[::-1], "f" * 64, "q")
    told(registry, "b2", ACTS, SIZES[::-1] ** 2, "f" * 64, "q", **of)


def test_what_was_aligned_by_is_not_tested(toy: HookedEncoder, tmp_path: Path) -> None:
    both(tmp_path, toy)
    stored = across_models(tmp_path, toy)
    summary = stored.summary
    assert set(summary["kind"]) == {"test", "head"} and len(shown("joint/across_models", summary)) == 2
    tests = summary[summary["kind"] == "test"].set_index(["by", "measure"])
    assert set(tests.index) == {("looks", ACTS), ("acts", LOOKS)}
    assert tests["estimate"].tolist() == pytest.approx([1, 1]) and (tests["p"] < 0.02).all()
    assert (tests["p_corrected"] >= tests["p"]).all() and tests["n"].tolist() == [8, 8]
    assert (tests["low"] <= tests["estimate"]).all() and tests["holding"].tolist() == [0, 0]
    heads = summary[(summary["kind"] == "head") & (summary["by"] == "looks")].set_index("site")
    assert heads.loc["h0.0", "aligned"] == "h1.3" and heads.loc["h0.0", ["estimate", "aligned_value"]].tolist() == [
        64,
        64,
    ]
    assert heads.loc["h0.0", ["depth", "aligned_depth"]].tolist() == [0, 0.5] and heads["distance"].max() < 1e-9
    assert (stored.path / "chart.html").is_file()


def test_models_of_one_numbering_say_what_changed(
    toy: HookedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "save", lambda chart, stem: [])
    ends = {"low": [*(SIZES[::-1] ** 2 - 0.5)], "high": [*(SIZES[::-1] ** 2 + 0.5)], "n_queries": 9}
    both(tmp_path, toy, **ends)
    told(tmp_path, "a3", ACTS, SIZES**2, toy, "q", low=SIZES**2 - 1, high=SIZES**2 + 1, n_queries=9)
    summary = across_models(tmp_path, toy, same="ffffff").summary
    changes = summary[summary["kind"] == "change"].set_index(["measure", "site"])
    first = changes.loc[(ACTS, "h0.0")]
    assert first["on"] == "the same queries" and first[["estimate", "low", "high"]].tolist() == [63, 61.5, 64.5]
    assert first["n"] == 9 and first["p"] < 1e-6 and first["p_corrected"] >= first["p"]
    close = changes.loc[(ACTS, "h0.3")]  # 25 - 16
    assert close["estimate"] == 9 and close["p"] < 1e-6
    assert np.isnan(changes.loc[(LOOKS, "h0.0"), "low"]) and changes.loc[(LOOKS, "h0.0"), "estimate"] == 7
    numbers = summary[summary["kind"] == "numbers"]
    assert numbers["estimate"].tolist() == [0, 0] and numbers["n"].tolist() == [8, 8]
    by_number = summary[(summary["kind"] == "test") & (summary["by"] == "number")]
    assert by_number["estimate"].max() < 0
    told(tmp_path, "b3", ACTS, SIZES**2, "f" * 64, "others", n_queries=9)
    again = across_models(tmp_path, toy, same="ffffff").summary
    other = again[(again["kind"] == "change") & (again["measure"] == ACTS)]
    assert set(other["on"]) == {"other queries"} and other["estimate"].isna().all()
    told(tmp_path, "b4", LOOKS, SIZES, "f" * 64, "q", unit="logits")
    units = across_models(tmp_path, toy, same="ffffff").summary
    other = units[(units["kind"] == "change") & (units["measure"] == LOOKS)]
    assert set(other["on"]) == {"other units (logits)"} and other["estimate"].isna().all()


def test_what_cannot_be_compared_is_refused(
    toy: HookedEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "run vast2025/attention_contrast and chen2024/head_maps on both models first"
    with pytest.raises(MechirError, match=f"holds no findings yet: .* There is nothing to compare: {first}"):
        across_models(tmp_path / "empty", toy)
    told(tmp_path, "a1", LOOKS, SIZES, toy)
    told(tmp_path, "a2", ACTS, SIZES, toy)
    code, _, err = call(capsys, "run", "joint/across_models", "--collection", str(TOY), "--registry", str(tmp_path))
    assert code == 2 and "no other model shares with this one a measure that observes its heads and one" in err
    told(tmp_path, "b1", LOOKS, SIZES, "f" * 64)
    with pytest.raises(MechirError, match=f"On toy no other model shares with this one .* changes them: {first}"):
        across_models(tmp_path, toy)
    told(tmp_path, "b2", ACTS, SIZES[:6], "f" * 64)  # not of every head
    with pytest.raises(MechirError, match="no other model shares"):
        across_models(tmp_path, toy)
    told(tmp_path, "c1", LOOKS, SIZES[:7], "e" * 64)
    told(tmp_path, "c2", ACTS, SIZES[:7], "e" * 64)
    with pytest.raises(MechirError, match="same=nothing names no other model here: there are m eeeeee"):
        across_models(tmp_path, toy, same="nothing")
    with pytest.raises(MechirError, match="has 7 heads and this model 8, so they are not of one numbering: leave it"):
        across_models(tmp_path, toy, same="m eeeeee")
    with pytest.raises(MechirError, match="No head here has a finding by 'patch': the closest are 'patching, tfc1'"):
        across_models(tmp_path, toy, measures="patch")
    with pytest.raises(MechirError, match="draws=0 is out of range: write 1 or more"):
        across_models(tmp_path, toy, draws=0)
    assert not (tmp_path / "runs").exists()
    summary = across_models(tmp_path, toy).summary  # the smaller model leaves heads without one that is aligned
    heads = summary[(summary["kind"] == "head") & (summary["by"] == "looks")]
    assert len(heads) == 8 and heads["aligned"].isna().sum() == 1
