"""What compares methods, models and collections by the findings of a registry: known answers, chance, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.experiment import load_experiment, shown
from mechir.methods.agreement import first, rank_agreement, sign_agreement, top_agreement
from mechir.registry.entries import record
from mechir.registry.findings import checked
from mechir.registry.runs import Run
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
    told = pd.DataFrame(rows).assign(measure=measure, unit="u", **of)
    of_run = {"model": "m", "model_fingerprint": getattr(model, "fingerprint", model), "collection": collection}
    record(registry, run_id, checked(told, of_run | {"run_id": run_id, "written": run_id}))


def overlap(registry: Path, toy: HookedEncoder, **options: Any) -> Run:
    chosen = {"draws": 400, "top": 3} | options
    return mi.run("joint/overlap", toy, mi.collection(TOY), registry=registry, **chosen)


SIZES = np.array([8.0, 7, 6, 5, 4, 3, 2, 1])


def test_overlap_knows_what_is_alike(toy: HookedEncoder, tmp_path: Path) -> None:
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


def test_overlap_is_another_run_once_the_findings_change(toy: HookedEncoder, tmp_path: Path) -> None:
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


def test_overlap_without_two_measures_says_what_to_run(
    toy: HookedEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "run some first, such as `mechir run vast2025/attention_contrast` and `mechir run chen2024/head_maps`"
    with pytest.raises(MechirError, match=f"holds no findings yet: .* There is nothing to compare: {first}"):
        overlap(tmp_path / "empty", toy)
    tell(tmp_path, "a1", "one", SIZES, toy)
    code, _, err = call(capsys, "run", "joint/overlap", "--registry", str(tmp_path))
    assert code == 2 and "of toy this registry has 'one': run some first, such as `mechir run vast" in err
    tell(tmp_path, "a2", "two", [*[0] * 8, *SIZES], toy)  # no head of the first measure has one
    with pytest.raises(MechirError, match="No measure 'thre' orders heads here: the closest are"):
        overlap(tmp_path, toy, measures="one;thre")
    for name in ("top", "draws"):
        with pytest.raises(MechirError, match=f"--{name} is 0: give 1 or more"):
            overlap(tmp_path, toy, **{name: 0})
    assert not (tmp_path / "runs").exists()
    tell(tmp_path, "a3", "constant there", [*[1] * 8, *SIZES], toy)
    with pytest.raises(MechirError, match="this registry has 'one', 'constant there': run some first"):
        overlap(tmp_path, toy, measures="one;constant there")
    assert not (tmp_path / "runs").exists()
    assert load_experiment("joint/overlap").cost(toy) == 0
