"""Pruning: as ablating each unit and in an exported checkpoint; sets of units, and each beside its random sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import mechir as mi
from mechir import Ablate
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import pruning
from mechir.methods.statistics import compare
from tests.models import FAMILIES, PAIRS, Checkpoints

SITES = ["n0.3", "n0.17", "h0.2", "n2.47", "h2.0", "h2.3"]


def test_it_equals_ablating_each_unit(tiny: HookedEncoder) -> None:
    together = tiny.score(PAIRS, do=Ablate(SITES))
    assert torch.equal(together, tiny.score(PAIRS, do=[Ablate(site) for site in SITES]))
    assert not torch.allclose(together, tiny.score(PAIRS), atol=1e-3)
    first, second = tiny.batch(PAIRS[:2]), tiny.batch(PAIRS[2:])
    assert len(Ablate(SITES).hooks(first)) == 4 and Ablate(SITES).hooks(first) == Ablate(SITES[::-1]).hooks(second)
    swept = mi.sweep(tiny, PAIRS, {"one": Ablate(SITES), "other order": Ablate(SITES[::-1]), "intact": ()})
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
    assert torch.allclose(by_weights, tiny.score(PAIRS, do=Ablate(heads)), atol=1e-5)


def test_a_neuron_is_its_output_column(checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")
    pruned = model.score(PAIRS, do=Ablate(["n1.5"]))
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
    before, pruned = model.score(PAIRS), model.score(PAIRS, do=Ablate(SITES))
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


def profile(sites: list[str]) -> Counter[str]:
    """How many units of every layer and kind: "n0", "h2"."""
    return Counter(site.partition(".")[0] for site in sites)


def importance(model: HookedEncoder) -> pd.DataFrame:
    """Of "a" the top lies in the first layer and the bottom in the last; "b" knows no layers."""
    sites = [f"{kind[0]}{layer}.{k}" for (layer, kind), n in pruning.sizes(model).items() for k in range(n)]
    layer = np.array([int(site[1]) for site in sites])
    values = np.random.default_rng(0).random(len(sites))
    return pd.DataFrame({"a": values * (1.1 - layer), "b": values}, index=sites)


def test_each_end_has_its_random_sets(tiny: HookedEncoder) -> None:
    groups, shares = {"a": "in", "b": "out"}, [0.05, 0.1]
    sets = pruning.pruned_sets(tiny, importance(tiny), groups, ["a", "F_all"], shares, draws=21, seed=3)
    assert sets["name"].is_unique and len(sets) == 2 * 2 * 2 * 22
    random = sets["set"] == "random"
    assert (sets["like"] != "").equals(random) and (sets["draw"] >= 0).equals(random)
    for _, part in sets.groupby(["scheme", "share"]):
        for end in ("top", "bottom"):
            own = part.loc[part["set"] == end, "sites"].item().split(",")
            likes = part[part["like"] == end]
            assert likes["draw"].tolist() == list(range(21)) and (likes["units"] == len(own)).all()
            assert likes["note"].isna().all()
            for sites in likes["sites"].str.split(","):
                assert profile(sites) == profile(own) and len(set(sites)) == len(sites) and not set(sites) & set(own)
    told = sets.set_index("name")["sites"].str.split(",")
    assert {site[1] for site in told["a 10 % top"]} == {site[1] for site in told["a 10 % random 20 like top"]} == {"0"}
    assert (
        {site[1] for site in told["a 10 % bottom"]}
        == {site[1] for site in told["a 10 % random 20 like bottom"]}
        == {"2"}
    )


def test_too_few_units_beside_an_end_are_noted_at_that_end(tiny: HookedEncoder) -> None:
    wide = importance(tiny)
    wide.loc[["h0.0", "h0.1", "h0.2"], "a"] = 9.0
    sets = pruning.pruned_sets(tiny, wide, {"a": "in"}, ["a"], [0.25]).set_index("name")
    said = "layer 0 has 4 heads, too few to draw 3 beside the chosen ones"
    assert said in sets.loc["a 25 % top", "note"] and said in sets.loc["a 25 % random 0 like top", "note"]
    assert said not in str(sets.loc["a 25 % bottom", "note"])


@pytest.mark.parametrize("end", ["top", "bottom"])
def test_a_scheme_without_a_unit_at_one_end_is_refused(tiny: HookedEncoder, end: str) -> None:
    first = importance(tiny)["a"]
    other = -first if end == "top" else first.where(first > 0, -1 - first)  # the end that they do not share
    wide, said = (
        pd.DataFrame({"a": first, "b": other}),
        rf"'I_in' keeps no unit at the {end}, p=0\.05: take a larger share",
    )
    with pytest.raises(MechirError, match=said):
        pruning.pruned_sets(tiny, wide, {"a": "in", "b": "in"}, ["I_in"], [0.05])


def ranked(ranks: dict[str, tuple[int, ...]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores that give each query's one relevant document this rank among six, and the grades."""
    rows = [
        {"name": name, "query_id": f"c::q{q}", "doc_id": f"d{d}", "score": -float(d or rank - 0.5)}
        for name, places in ranks.items()
        for q, rank in enumerate(places)
        for d in range(6)
    ]
    frame = pd.DataFrame(rows)
    judged = frame[["query_id", "doc_id"]].drop_duplicates()
    return frame, judged.assign(grade=(judged["doc_id"] == "d0").astype(int))


def test_an_end_is_compared_with_its_random_sets() -> None:
    drawn = [("random", end, k, f"{end} {k}") for end in ("top", "bottom") for k in range(20)]
    ends = [("top", "", -1, "t"), ("bottom", "", -1, "b")]
    sets = pd.DataFrame([*ends, *drawn], columns=["set", "like", "draw", "name"])
    sets = sets.assign(scheme="c", share=0.1, units=3, note=None)
    few = {"original": (1, 1, 2), "t": (4, 5, 4), "b": (2, 3, 4)}
    few |= {f"top {k}": (2, 2 + k % 2, 3) for k in range(20)}  # none as bad as the top
    few |= {f"bottom {k}": (5, 4, 5) if k < 7 else (1, 1, 1) for k in range(20)}  # seven worse than the bottom
    ranks = {name: places * 2 for name, places in few.items()}
    rows, judged = ranked(ranks)
    table = pruning.pruning_table(rows, judged, sets, {"c": 1}, {"c": "in"})
    found = table[table["measure"] == "MRR"]
    values = {name: np.array([1 / rank for rank in places]) for name, places in ranks.items()}
    for end, name, p_draws in (("top", "t", 1 / 21), ("bottom", "b", 8 / 21)):
        random = np.mean([values[f"{end} {k}"] for k in range(20)], axis=0)
        own = found[found["set"] == end].iloc[0]
        expected = compare(values[name], random)
        assert own["excess"] == pytest.approx(expected.change) and own["excess_p"] == pytest.approx(expected.p_paired)
        assert own["excess_low"] == pytest.approx(expected.low) and own["p_draws"] == pytest.approx(p_draws)
        assert own["value"] == pytest.approx(values[name].mean()) and own["like"] == ""
        mean = found[(found["like"] == end) & (found["draw"] < 0)].iloc[0]
        assert (
            mean["value"] == pytest.approx(random.mean())
            and mean["change_p_corrected"] >= mean["change_p"]
            and mean["units"] == 3
        )
        single = found[(found["like"] == end) & (found["draw"] >= 0)].set_index("draw")
        assert len(single) == 20 and single["change_p"].isna().all()
        assert single.loc[3, "change"] == pytest.approx((values[f"{end} 3"] - values["original"]).mean())
    assert found["set"].value_counts().to_dict() == {"random": 42, "top": 1, "bottom": 1, "original": 1}
    assert list(table.columns[:8]) == ["collection", "group", "measure", "scheme", "share", "set", "like", "draw"]


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        (["n1.5", "h1.2.q"], r"Cannot ablate 'h1\.2\.q': write a head \(h8\.1\), neuron \(n5\.1203\)"),
        (["n1.5", "h0.1", "n1.5"], r"'n1\.5' is to be ablated more than once: give each site once\."),
        ([], r"There is nothing to ablate: name a site such as 'h8\.1', or several\."),
    ],
)
def test_sites_that_cannot_be_ablated_are_refused(sites: list[str], said: str) -> None:
    with pytest.raises(MechirError, match=said):
        Ablate(sites)


def test_units_that_do_not_exist_are_refused(tiny: HookedEncoder, tmp_path: Path) -> None:
    for site, last in (("n1.48", 47), ("h1.4", 3)):
        what, n = (site[0] == "n" and "Neuron") or "Head", last + 1
        with pytest.raises(MechirError, match=rf"{what} {n} is out of range: layer 1 has {what.lower()}s 0-{last}\."):
            tiny.score(PAIRS, do=Ablate(["n1.5", "h1.0", site]))
        with pytest.raises(MechirError, match=rf"{what} {n} is out of range: layer 1 has {what.lower()}s 0-{last}\."):
            pruning.export(tiny, [site], tmp_path / "never")
    with pytest.raises(MechirError, match=r"Cannot prune 'mlp1': write neurons \(n5\.1203\) and heads \(h8\.1\)\."):
        pruning.export(tiny, ["n1.5", "mlp1"], tmp_path / "never")
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
