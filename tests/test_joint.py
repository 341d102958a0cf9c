"""What compares methods, models and collections by the findings of a registry: known answers, chance, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir.catalog import load_experiment, shown
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.agreement import first, rank_agreement, sign_agreement, top_agreement
from mechir.registry.entries import record
from mechir.registry.findings import checked
from mechir.registry.runs import Run
from mechir.views import charts
from tests.models import TOY, TOY_MODEL
from tests.test_cli import call

EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


def test_ranks_agree_disagree_or_neither() -> None:
    values = np.random.default_rng(0).normal(size=72)
    same = rank_agreement(values, np.exp(values), draws=2000)
    assert same.value == pytest.approx(1) and same.low == pytest.approx(1) and same.p == 1 / 2001
    assert rank_agreement(values, -values, draws=500).value == pytest.approx(-1)
    noisy = rank_agreement(values, values + np.random.default_rng(1).normal(size=72), draws=2000)
    assert 0.4 < noisy.low < noisy.value < noisy.high < 0.9 and noisy.p < 0.001
    ps = [rank_agreement(*np.random.default_rng(k).normal(size=(2, 30)), draws=400, seed=k).p for k in range(200)]
    assert 0.02 <= np.mean(np.array(ps) < 0.05) <= 0.09 and 0.4 < np.median(ps) < 0.6
    assert (
        np.isnan(rank_agreement(values, np.ones(72))).all() and np.isnan(rank_agreement(values[:2], values[:2])).all()
    )


def test_the_first_of_two_measures_against_chance() -> None:
    values = np.arange(20.0)
    whole = top_agreement(values, values**3, 5, draws=500)
    assert (whole.value, whole.low, whole.high) == (1, 1, 1) and whole.p == pytest.approx(1 / 15504)
    apart = top_agreement(values, -values, 5, draws=500)
    assert (apart.value, apart.low, apart.high, apart.p) == (0, 0, 0, 1)
    drawn = [len({*np.random.default_rng(k).permutation(20)[:5]} & {*range(5)}) for k in range(4000)]
    assert apart.expected == pytest.approx(np.mean([k / (10 - k) for k in drawn]), abs=0.01)
    some = top_agreement(values, np.where(values < 2, values + 100, values), 5, draws=500)
    assert some.value == 3 / 7 and 0 <= some.low < some.value < some.high <= 1
    zeros = np.zeros(40)
    shared = [len({*one} & {*two}) for one, two in (first(zeros, zeros, 10, seed=2 * seed) for seed in range(100))]
    assert np.mean(shared) == pytest.approx(2.5, abs=0.4)  # ties that both have are not shared


def test_signs_agree_beyond_chance_or_not() -> None:
    signs = np.tile([1.0, -1.0], 10)
    same = sign_agreement(signs, signs, draws=999)
    assert (
        same.value == 1
        and same.expected == 0.5
        and same.p == 0.001
        and 0.8 < same.low < same.high
        and same.high == pytest.approx(1)
    )
    assert sign_agreement(signs, np.ones(20), draws=99) == pytest.approx((0.5, 0.5, 0.2993, 0.7007, 1), abs=1e-3)
    assert sign_agreement(np.ones(9), np.ones(9), draws=99).p == 1  # all alike is what chance gives too


def tell(
    registry: Path, run_id: str, measure: str, values: Any, model: Any, collection: str = "toy", **of: Any
) -> None:
    """The findings of 8 heads, 4 in each of two layers."""
    rows = [{"site": f"h{k // 4}.{k % 4}", "value": float(value)} for k, value in enumerate(values)]
    told = pd.DataFrame(rows).assign(**{"measure": measure, "unit": "u"} | of)
    of_run = {"model": "m", "model_fingerprint": getattr(model, "fingerprint", model), "collection": collection}
    record(registry, run_id, checked(told, of_run | {"run_id": run_id, "written": run_id}))


def overlap(registry: Path, toy: HookedEncoder, **options: Any) -> Run:
    chosen = {"draws": 400, "top": 3} | options
    return mi.run("joint/overlap", toy, mi.collection(TOY), registry=registry, **chosen)


SIZES = np.array([8.0, 7, 6, 5, 4, 3, 2, 1])


def test_overlap_knows_which_measures_are_alike(toy: HookedEncoder, tmp_path: Path) -> None:
    tell(tmp_path, "a1", "contrast, query<-doc", SIZES, toy)
    tell(tmp_path, "a2", EVIL, -(SIZES**2), toy)  # the same order of |value|
    tell(tmp_path, "a3", "path to the score, tfc1", SIZES[::-1], toy)
    tell(tmp_path, "a4", "of few heads", SIZES[:5], toy)
    tell(tmp_path, "a5", "the same everywhere", np.ones(8), toy)
    tell(tmp_path, "a6", "of another collection", SIZES, toy, "other")
    tell(tmp_path, "a7", "of another model", SIZES, "f" * 64)
    stored = overlap(tmp_path, toy)
    summary = stored.summary.set_index(["one", "two"])
    assert len(summary) == 3 and set(summary["n"]) == {8} and set(summary["top"]) == {3}
    alike = summary.loc[(EVIL, "contrast, query<-doc")]
    assert alike["rho"] == pytest.approx(1) and alike["jaccard"] == 1 and alike["shared"] == "h0.0, h0.1, h0.2"
    assert alike["p_corrected"] == pytest.approx(3 / 401) and alike["p_jaccard"] == pytest.approx(1 / 56)
    apart = summary.loc[("contrast, query<-doc", "path to the score, tfc1")]
    assert apart["rho"] == pytest.approx(-1) and apart["jaccard"] == 0 and apart["shared"] == ""
    assert alike["jaccard_expected"] == pytest.approx((30 * 1 / 5 + 15 * 2 / 4 + 1) / 56)
    assert stored.record["pairs"] == 1 and len(shown("joint/overlap", stored.summary)) == 3
    page = (stored.path / "chart.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and r"\u003cimg src=x" in page


def test_overlap_is_another_run_once_the_findings_change(
    toy: HookedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "save", lambda chart, stem: [])
    tell(tmp_path, "a1", "one", SIZES, toy)
    tell(tmp_path, "a2", "two", SIZES, toy)
    before = overlap(tmp_path, toy)
    assert overlap(tmp_path, toy).id == before.id
    tell(tmp_path, "a3", "two", SIZES[::-1], toy, label="rank 3 of 8")  # measured anew, and named otherwise
    after = overlap(tmp_path, toy)
    assert after.id != before.id and after.summary["rho"].tolist() == pytest.approx([-1])
    assert before.summary["rho"].tolist() == pytest.approx([1])
    tell(tmp_path, "a4", "three", SIZES, toy)
    assert len(overlap(tmp_path, toy).summary) == 3
    assert len(overlap(tmp_path, toy, measures="two; one").summary) == 1


def test_overlap_without_two_measures_names_the_experiments_to_run(
    toy: HookedEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "run some first, such as vast2025/attention_contrast and chen2024/head_maps"
    with pytest.raises(MechirError, match=f"holds no findings yet: .* There is nothing to compare: {first}"):
        overlap(tmp_path / "empty", toy)
    tell(tmp_path, "a1", "one", SIZES, toy)
    code, _, err = call(capsys, "run", "joint/overlap", "--registry", str(tmp_path))
    assert code == 2 and "of toy this registry has 'one': run some first, such as vast" in err
    tell(tmp_path, "a2", "two", [*[0] * 8, *SIZES], toy)  # no head of the first measure has one
    with pytest.raises(MechirError, match="No measure 'thre' orders heads here: the closest are"):
        overlap(tmp_path, toy, measures="one;thre")
    for name in ("top", "draws"):
        with pytest.raises(MechirError, match=f"{name}=0 is out of range: write 1 or more"):
            overlap(tmp_path, toy, **{name: 0})
    assert not (tmp_path / "runs").exists()
    tell(tmp_path, "a3", "constant there", [*[1] * 8, *SIZES], toy)
    with pytest.raises(MechirError, match="this registry has 'constant there', 'one': run some first"):
        overlap(tmp_path, toy, measures="one;constant there")
    assert not (tmp_path / "runs").exists()
    assert load_experiment("joint/overlap")().cost(toy) == 0


def chain(
    registry: Path,
    run: str,
    collection: str,
    heads: dict[str, float],
    model: Any = "a" * 64,
    layers: int = 2,
    **of: Any,
) -> None:
    """Contrast, patching and paths of 4 heads in each layer; those named hold with these effects, the rest is nothing."""
    sites = [f"h{layer}.{head}" for layer in range(layers) for head in range(4)]
    spread = np.random.default_rng(int(run[1:], 16)).normal(scale=1e-3, size=len(sites))
    for k, (measure, role, term, causal) in enumerate(
        (
            ("contrast, query<-doc", "matching", "tf", False),
            ("patching, tfc1", "soft-tf", "tf", True),
            ("path to the score, tfc1", "scoring", "tf", True),
        )
    ):
        strong = {site: 0.0 if role == "scoring" else effect for site, effect in heads.items()}
        values = np.array([strong.get(site, 0.0) for site in sites]) + spread
        frame = pd.DataFrame({"site": sites, "value": values, "low": values - 0.01, "high": values + 0.01})
        frame = frame.assign(
            p_corrected=np.where(np.abs(values) > 0.1, 1e-4, 0.9), measure=measure, role=role, term=term
        )
        told = frame.assign(unit="share of the gap", least=0.05, causal=causal, family=f"{len(sites)} heads")
        of_run = {"model": f"m{layers}", "model_fingerprint": model, "collection": collection, "run_id": f"{run}{k}"}
        record(registry, f"{run}{k}", checked(told, of_run | {"written": run} | of))


def across(registry: Path, toy: HookedEncoder) -> Run:
    return mi.run("joint/across", toy, mi.collection(TOY), registry=registry, draws=400)


def test_across_names_the_links_of_each_model(toy: HookedEncoder, tmp_path: Path) -> None:
    chain(tmp_path, "a1", "c", {"h0.1": 0.9, "h1.2": 0.5})
    chain(tmp_path, "a2", EVIL, {"h0.1": 0.8})
    stored = across(tmp_path, toy)
    summary = stored.summary
    parts = summary[summary["kind"] == "component"].set_index(["site", "collection"])
    assert parts.loc["h0.1", "where"].tolist() == ["all", "all"] and set(parts.loc["h0.1", "on"]) == {f"{EVIL}, c"}
    assert parts.loc["h0.1", "effect"].sort_index().round(1).tolist() == [0.8, 0.9]
    only = parts.loc[("h1.2", "c")]
    assert only["where"] == "some" and only["on"] == "c" and only["depth"] == 0.5 and only["asked"] == 2
    assert f"patching, tfc1 holds on c and not on {EVIL}" in only["conflicts"]
    counts = summary[summary["kind"] == "links"].set_index(["term", "collection"])
    assert counts["n"].to_dict() == {("tf", EVIL): 1, ("scoring", EVIL): 0, ("tf", "c"): 2, ("scoring", "c"): 0}
    best = counts.loc[("tf", "c")]
    assert best["site"] == "h0.1" and best["depth"] == 0.25 and best["depth_high"] == 0.5
    assert best["low"] == pytest.approx(best["effect"] - 0.01)
    values = summary[summary["kind"] == "values"].set_index("measure")
    assert len(values) == 3 and set(values["n"]) == {8} and set(values["one"]) == {EVIL}
    assert (values["low"] <= values["rho"]).all() and (values["p_corrected"] >= values["p"]).all()
    page = (stored.path / "chart.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page and r"\u003cimg src=x" in page
    told = shown("joint/across", summary)
    assert len(told) == len(summary) == 10 and "conflicts" not in told and str(told["n"].dtype) == "Int64"


def test_across_models_compares_depth_and_numbers(toy: HookedEncoder, tmp_path: Path) -> None:
    chain(tmp_path, "a1", "c", {"h1.0": 0.9})
    chain(tmp_path, "b1", "c", {"h1.0": 0.4, "h3.1": -0.6, "h2.2": 0.5}, "b" * 64, layers=4)
    before = across(tmp_path, toy)
    summary = before.summary
    assert set(summary["kind"]) == {"links", "component"}  # heads of two models are not set side by side
    tf = summary[(summary["kind"] == "links") & (summary["term"] == "tf")].set_index("model")
    assert tf["n"].to_dict() == {"m2": 1, "m4": 2}  # h3.1 acts against it
    assert tf["depth"].to_dict() == {"m2": 0.5, "m4": 0.375} and tf.loc["m4", "site"] == "h2.2"
    assert set(summary.loc[summary["kind"] == "component", "where"]) == {"only asked here"}
    tell(tmp_path, "c1", "something else", SIZES, "a" * 64, "c")
    assert across(tmp_path, toy).id != before.id


def test_across_of_one_model_names_the_experiments_to_run(
    toy: HookedEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(tmp_path, "a1", "one", SIZES, toy)
    code, _, err = call(capsys, "run", "joint/across", "--registry", str(tmp_path))
    assert code == 2 and "are of m on toy, and two collections or models are needed: run joint/path" in err
    tell(tmp_path, "a2", "two", SIZES, toy, "other")
    with pytest.raises(MechirError, match="hold no links, and no two collections share a measure: run joint/pathway"):
        across(tmp_path, toy)
    with pytest.raises(MechirError, match="draws=0 is out of range: write 1 or more"):
        mi.run("joint/across", toy, mi.collection(TOY), registry=tmp_path, draws=0)
    assert not (tmp_path / "runs").exists()
    tell(tmp_path, "a3", "one", -SIZES, toy, "other")
    values = across(tmp_path, toy).summary
    assert values["kind"].tolist() == ["values"]
    assert values["rho"].tolist() == pytest.approx([-1]) and values["same"].tolist() == [0]
    with pytest.raises(MechirError, match="holds no findings yet: run an experiment first, or give registry=DIR"):
        across(tmp_path / "empty", toy)
