"""Pruning: as ablating each unit, as zeroing its output column, and the same in an exported checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import mechir as mi
from mechir import Prune
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import pruning
from tests.models import FAMILIES, PAIRS, Checkpoints

SITES = ["n0.3", "n0.17", "h0.2", "n2.47", "h2.0", "h2.3"]


def test_it_is_what_ablating_each_does(tiny: HookedEncoder) -> None:
    together = tiny.score(PAIRS, do=Prune(SITES))
    assert torch.equal(together, tiny.score(PAIRS, do=[mi.Ablate(site) for site in SITES]))
    assert not torch.allclose(together, tiny.score(PAIRS), atol=1e-3)
    swept = mi.sweep(tiny, PAIRS, {"one": Prune(SITES), "other order": Prune(SITES[::-1]), "intact": ()})
    scores = swept.pivot(index=["query_id", "doc_id"], columns="name", values="score")
    assert (scores["one"] == scores["other order"]).all()
    pattern = {"blocks.2.attn.hook_pattern": (0, 3), "blocks.0.attn.hook_pattern": (2,)}

    def unweighted(x: torch.Tensor, hook: Any) -> torch.Tensor:
        out = x.clone()
        out[:, list(pattern[hook.name])] = 0
        return out

    heads = [site for site in SITES if site.startswith("h")]
    with tiny.hooks([(name, unweighted) for name in pattern]):
        by_weights = tiny.score(PAIRS)
    assert torch.allclose(by_weights, tiny.score(PAIRS, do=Prune(heads)), atol=1e-5)


def test_a_neuron_is_its_output_column(checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")
    pruned = model.score(PAIRS, do=Prune(["n1.5"]))
    layer = model.parts.layers[1]
    kept = layer.mlp_out.weight[:, 5].clone()
    with torch.no_grad():
        layer.mlp_out.weight[:, 5] = 0
        assert torch.equal(model.score(PAIRS), pruned)
        layer.mlp_out.weight[:, 5] = kept
    assert not torch.equal(model.score(PAIRS), pruned)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_checkpoint_is_the_pruned_model(checkpoints: Checkpoints, family: str, tmp_path: Path) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family), dtype="float64")
    before, pruned = model.score(PAIRS), model.score(PAIRS, do=Prune(SITES))
    folder = pruning.export(model, SITES, tmp_path / "pruned")
    assert {file.name for file in folder.iterdir()} >= {"config.json", "model.safetensors"}
    ours = HookedEncoder.from_pretrained(folder, dtype="float64").score(PAIRS)
    assert torch.allclose(ours, pruned, rtol=0, atol=1e-9) and not torch.allclose(before, pruned, atol=1e-2)
    hf = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    batch = model.batch(PAIRS)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    if family != "distilbert":
        inputs["token_type_ids"] = batch.token_type_ids
    with torch.no_grad():
        logits = hf(**inputs).logits[:, 0]
    assert torch.allclose(logits, pruned, rtol=0, atol=1e-6)
    assert torch.equal(model.score(PAIRS), before)  # the model itself is whole
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        (["mlp3"], r"Cannot prune 'mlp3': write neurons \(n5\.1203\) and heads \(h8\.1\)\."),
        (["h1.2.q"], r"Cannot prune 'h1\.2\.q': write neurons"),
        (["n1.5", "h0.1", "n1.5"], r"'n1\.5' is to be pruned more than once: give each unit once\."),
    ],
)
def test_what_cannot_be_pruned_is_refused(sites: list[str], said: str) -> None:
    with pytest.raises(MechirError, match=said):
        Prune(sites)


def test_units_that_do_not_exist_are_refused(tiny: HookedEncoder, tmp_path: Path) -> None:
    for site, last in (("n1.48", 47), ("h1.4", 3)):
        with pytest.raises(MechirError, match=rf"Unit \d+ is out of range: 'blocks.1.*' has units 0-{last}\."):
            tiny.score(PAIRS, do=Prune([site]))
        what, n = (site[0] == "n" and "Neuron") or "Head", last + 1
        with pytest.raises(MechirError, match=rf"{what} {n} is out of range: layer 1 has {what.lower()}s 0-{last}\."):
            pruning.export(tiny, [site], tmp_path / "never")
    with pytest.raises(MechirError, match=r"is there already: give a directory that does not exist yet\."):
        pruning.export(tiny, ["n1.5"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_nothing(
    tiny: HookedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tiny.tokenizer), "save_pretrained", full)
    with pytest.raises(MechirError, match=r"Cannot write '.*' \(No space left on device\): give another directory\."):
        pruning.export(tiny, ["n1.5"], tmp_path / "pruned")
    assert not list(tmp_path.iterdir())
