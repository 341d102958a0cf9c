"""NumPy has no bfloat16: what a model in it finds comes back in float32 all the same."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.catalog import load_experiment
from mechir.diagnostic_sets import diagnostic
from mechir.encoder import HookedEncoder
from mechir.inference import studentised
from mechir.methods import attribution, paths
from mechir.methods.patching import patch
from tests.models import TOY_MODEL, nine_queries
from tests.test_finished import QUICK

READ = (
    "chen2024/head_attention",
    "lu2025/head_to_heads",
    "lu2025/idf_edit",
    "lu2025/soft_tf",
    "vast2025/qk_projection",
)
"""Experiments that read activations, beside the methods tested below; the others of `QUICK` are slow."""
LEFT_OUT = ("joint/pathway",)
"""Of the toy it leaves a single text to judge a line by in bfloat16, of which scikit-learn warns."""


@pytest.fixture(scope="module")
def rough() -> HookedEncoder:
    return mi.load(TOY_MODEL, dtype="bfloat16")


@pytest.fixture(scope="module")
def exact() -> HookedEncoder:
    return mi.load(TOY_MODEL)


def contrasts(model: HookedEncoder, folder: Path) -> list[mi.Contrast]:
    pairs = mi.collection(nine_queries(folder / "toy")).pairs()
    return [mi.align(pair, mi.diagnostics.Tfc1(), model.tokenizer) for pair in pairs[:8]]


@pytest.mark.parametrize("find", [attribution.attribute, paths.path_patch], ids=["attribution", "paths"])
def test_effects_are_those_of_float32_but_for_rounding(
    find: object, rough: HookedEncoder, exact: HookedEncoder, tmp_path: Path
) -> None:
    made = contrasts(exact, tmp_path)
    sites = ["h0.1", "h1.2", "mlp0"]
    found = [find(model, made, sites)["effect"] for model in (rough, exact)]  # type: ignore[operator]
    assert found[0].dtype == "float32"
    assert float((found[0] - found[1]).abs().max()) < 0.05 * float(patch(exact, made, sites)["base"].abs().max())


def test_a_pattern_is_drawn(rough: HookedEncoder) -> None:
    pytest.importorskip("circuitsvis")
    mi.show.attention(rough, ("goldfish", "a goldfish in a tank"), ("h0.1",), engine="circuitsvis")


@pytest.mark.parametrize(
    "name",
    [
        *READ,
        *(pytest.param(one, marks=pytest.mark.slow) for one in QUICK if one not in READ + LEFT_OUT),
    ],
)
def test_experiments_finish(name: str, rough: HookedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studentised, "RESAMPLES", 50)
    monkeypatch.setattr("mechir.views.charts.save", lambda chart, file: chart.to_dict())  # a picture takes a second
    source = mi.collection(nine_queries(tmp_path / "toy"))
    on_contrasts = load_experiment(name).runs_on == "contrasts"
    given = diagnostic("tfc1", source, fillers=("a",)) if on_contrasts else source
    stored = mi.run(name, rough, given, registry=tmp_path / "registry", **QUICK.get(name, {}))
    assert len(pd.read_parquet(stored.path / "summary.parquet"))
