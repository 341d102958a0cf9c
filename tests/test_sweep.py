"""A sweep gives what the plain loop gives, and computes what interventions share only once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import batches, encoding
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.sweeps import forwards
from tests.models import FAMILIES, PAIRS, Checkpoints


def naive_sweep(model: HookedEncoder, pairs: list[mi.Pair], do: dict) -> pd.DataFrame:
    """The plain loop: one scoring of all pairs for each intervention."""
    frames = [
        pd.DataFrame(
            {"name": name, "doc_id": [pair.doc_id for pair in pairs], "score": model.score(pairs, what).numpy()}
        )
        for name, what in do.items()
    ]
    return pd.concat(frames, ignore_index=True)


def mixture(model: HookedEncoder) -> dict:
    """Masks, ablations and their mixtures over mixed layer ranges; two of them equal."""
    means, drawn = mi.means(model, PAIRS), mi.samples(model, PAIRS, draws=4)
    prefix = {f"doc<-query@0-{end}": mi.Mask("doc<-query", range(end + 1)) for end in range(3)}
    suffix = {f"cls<-all@{first}-2": mi.Mask("cls<-all", range(first, 3), renormalise=True) for first in range(3)}
    return (
        {"original": ()}
        | prefix
        | suffix
        | {
            "again": mi.Mask("doc<-query"),
            "head": mi.Ablate("h1.2"),
            "head mean": mi.Ablate("h1.2", means),
            "neuron": mi.Ablate("n0.5"),
            "last mlp": mi.Ablate("mlp2", drawn),
            "attn": mi.Ablate("attn1", drawn),
            "both": [mi.Ablate("h0.1"), mi.Mask("query<-doc", [0, 2])],
            "heads": mi.Mask("doc<-doc", heads=[mi.Head(0, 1), mi.Head(2, 3)]),
            "by hand": ByHand(),
        }
    )


class ByHand:
    """A user's own intervention, at the embeddings, in the last layer and in the head."""

    def hooks(self, batch: mi.Batch) -> list:
        return [
            ("embed.hook_embed", lambda x, hook: 0.9 * x),
            ("blocks.2.hook_mlp_out", lambda x, hook: x + x[:, 1:2]),
            ("head.hook_pooled", lambda x, hook: 0.5 * x),
        ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [{}, {"max_rows": 3}, {"max_rows": 100, "max_tokens": 100_000}])
def test_a_sweep_is_the_plain_loop(checkpoints: Checkpoints, family: str, sizes: dict) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    do = mixture(model)
    swept, plain = mi.sweep(model, PAIRS, do, **sizes), naive_sweep(model, PAIRS, do)
    assert list(swept["name"]) == list(plain["name"])
    assert list(swept["doc_id"]) == list(plain["doc_id"])
    np.testing.assert_allclose(swept["score"], plain["score"], atol=1e-5, rtol=1e-6)
    assert swept.groupby("name")["score"].first().nunique() >= len(do) - 2  # "again" and one pair of equal cuts


def test_in_float64_to_the_last_digits(checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")
    do = mixture(model)
    swept, plain = mi.sweep(model, PAIRS, do), naive_sweep(model, PAIRS, do)
    assert swept["score"].dtype == np.float64
    np.testing.assert_allclose(swept["score"], plain["score"], atol=1e-12, rtol=0)


def test_shared_states_are_computed_once(tiny: HookedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    written: list[int] = []
    alike = [PAIRS[0]] * 4  # one batch
    for name, layers in (("run_read", read), ("run_write", written)):
        half = getattr(tiny, name)

        def counted(
            layer: int,
            resid: torch.Tensor,
            *rest: object,
            half: object = half,
            layers: list[int] = layers,
            **plan: bool,
        ) -> object:
            layers.extend([layer] * (len(resid) // len(alike)))
            return half(layer, resid, *rest, **plan)  # type: ignore[operator]

        monkeypatch.setattr(tiny, name, counted)
    prefix = {f"0-{end}": mi.Mask("doc<-query", range(end + 1)) for end in range(3)}
    mi.sweep(tiny, alike, {"original": ()} | prefix)
    branches = [0, 0, 1, 1, 1, 2, 2, 2, 2]  # intact and cut, then one more branch in each layer
    assert sorted(read) == sorted(written) == branches
    assert forwards(tiny, {"original": ()} | prefix) == pytest.approx(9 / 3)
    read.clear()
    written.clear()
    heads = {str(head): mi.Ablate(mi.Head(1, head)) for head in range(4)}
    mi.sweep(tiny, alike, {"original": ()} | heads)
    assert sorted(read) == [0, 1, *[2] * 5]  # what heads read is shared by all that change what they write
    assert sorted(written) == [0, *[1] * 5, *[2] * 5]
    assert forwards(tiny, {"original": ()} | heads) == pytest.approx((1 + 3 + 5) / 3)


def test_the_frame_has_a_row_per_name_and_pair(tiny: HookedEncoder) -> None:
    unjudged = [mi.Pair("dog", "a cat", "q", "d0"), mi.Pair("dog", "the moon", "q", "d1", -1)]
    frame = mi.sweep(tiny, unjudged, {"original": (), "cut": mi.Mask("doc<-query")})
    assert list(frame.columns) == ["name", "query_id", "doc_id", "grade", "score"]
    assert frame["grade"].isna().tolist() == [True, False, True, False]
    assert frame["grade"][1] == -1


def test_an_empty_sweep_is_refused(tiny: HookedEncoder) -> None:
    with pytest.raises(MechirError, match="A sweep needs at least one intervention"):
        mi.sweep(tiny, PAIRS, {})


def test_a_non_finite_score_is_refused_by_pair_and_layer(tiny: HookedEncoder) -> None:
    class Poison:
        def hooks(self, batch: mi.Batch) -> list:
            return [("blocks.0.hook_attn_out", lambda x, hook: x / 0)]

    with pytest.raises(MechirError, match=r"The score of pair q0/d0 is (nan|inf).*beginning after 'blocks.0"):
        mi.sweep(tiny, PAIRS, {"original": (), "bad": Poison()})


def test_batches_hold_every_pair_once_and_memory_is_given_back(
    tiny: HookedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[None] = []
    monkeypatch.setattr(encoding, "TRIM", 2)
    monkeypatch.setattr(encoding, "give_back", lambda: given.append(None))
    index = [batch for batch, _ in tiny.encode(PAIRS).buckets(2, 4096)]
    assert sorted(np.concatenate(index)) == list(range(len(PAIRS))) and max(map(len, index)) == 2
    assert len(given) == len(index) // 2 >= 2


def test_giving_memory_back_needs_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    batches.give_back()
    monkeypatch.setattr(batches.ctypes, "CDLL", lambda name: object())
    batches.give_back()
