"""The same numbers as Hugging Face, for every family, activation, label count and number type."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from mechir.encoder import HookedEncoder
from mechir.encoder.head import READOUTS
from mechir.pair import Pair
from mechir.segments import Segment
from tests.models import FAMILIES, PAIRS, Checkpoints

CASES = [*itertools.product(FAMILIES, ["gelu"], [1, 2, 3]), *itertools.product(FAMILIES, ["relu", "gelu_new"], [1])]
# max_rows=16 pads the eight pairs to one length; equal lengths are not padded.
EQUAL = [Pair("dog", "a cat", "q", "d0"), Pair("cat", "the moon", "q", "d1")]


@pytest.mark.parametrize(("family", "act", "labels"), CASES)
def test_float32_agrees_with_hugging_face(checkpoints: Checkpoints, family: str, act: str, labels: int) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family, act, labels), relevant_label=labels - 1)
    for pairs in (PAIRS, EQUAL):
        found = model.certify(pairs)
        assert found["score"] <= 2e-6
        # Their own eager and fused logits differ by as much as 2e-6 here; ours by up to 7e-6, depending on the CPU.
        assert found["score_head_row"] <= 1e-5
        assert found["hidden"] <= 2e-5
        assert found["pattern"] <= 2e-5


@pytest.mark.parametrize(("family", "act", "labels"), CASES)
def test_float64_agrees_with_hugging_face(checkpoints: Checkpoints, family: str, act: str, labels: int) -> None:
    path = checkpoints.path(family, act, labels)
    model = HookedEncoder.from_pretrained(path, dtype="float64", relevant_label=labels - 1)
    for pairs in (PAIRS, EQUAL):
        found = model.certify(pairs)
        assert max(found[key] for key in ("score", "score_head_row", "hidden", "pattern")) <= 1e-12


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_segment_ids_matter_and_reach_the_model(checkpoints: Checkpoints, family: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    assert model.certify(PAIRS)["segments_matter"] > 0.1


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "camembert"])
def test_the_double_separator_is_sep1_and_positions_start_after_the_pad(checkpoints: Checkpoints, family: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    batch = model.batch(Pair("bread", "bread rises"))
    assert [Segment(int(value)) for value in batch.segment[0]] == [
        Segment.CLS, Segment.QUERY, Segment.SEP1, Segment.SEP1, Segment.DOC, Segment.DOC, Segment.DOC, Segment.SEP2,
    ]  # fmt: skip
    assert model.cfg.n_ctx == 62


def test_bfloat16_is_close_and_scores_come_in_float32(checkpoints: Checkpoints) -> None:
    path = checkpoints.path("bert")
    exact = HookedEncoder.from_pretrained(path).score(PAIRS)
    rough = HookedEncoder.from_pretrained(path, dtype="bfloat16").score(PAIRS)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.2


def test_two_labels_score_the_log_odds_of_label_1(checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert", labels=2))
    logits = torch.cat([model(pair, return_type="logits") for pair in PAIRS])
    scores = {name: torch.cat([model.score([pair], readout=name) for pair in PAIRS]) for name in READOUTS}
    torch.testing.assert_close(scores["score"], logits[:, 1] - logits[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(scores["p"], logits.softmax(1)[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(scores["log_p"], logits.log_softmax(1)[:, 1], atol=1e-6, rtol=0)


def test_parameters_are_hugging_face_s_own(tiny: HookedEncoder) -> None:
    body = tiny.hf.bert.encoder.layer[1]
    assert tiny.parts.layers[1].q.weight is body.attention.self.query.weight
    bytes_ours = sum(parameter.numel() for parameter in tiny.parameters())
    assert bytes_ours == sum(parameter.numel() for parameter in tiny.hf.parameters())


@pytest.mark.shared
def test_the_trained_model_agrees_over_200_real_pairs(trained: HookedEncoder, real_pairs: list[Pair]) -> None:
    found = trained.certify(real_pairs[:200])
    assert found["score"] <= 1e-5
    assert found["segments_matter"] > 0.1


@pytest.mark.shared
def test_scores_do_not_depend_on_how_pairs_are_batched(trained: HookedEncoder, real_pairs: list[Pair]) -> None:
    few = real_pairs[:24]
    together, alone = trained.score(few), trained.score(few, max_rows=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.score(few[::-1]).flip(0), together, atol=1e-5, rtol=0)


def test_the_fingerprint_follows_the_weights(checkpoints: Checkpoints, tmp_path: Path) -> None:
    first = HookedEncoder.from_pretrained(checkpoints.path("bert"))
    assert first.fingerprint == HookedEncoder.from_pretrained(checkpoints.path("bert")).fingerprint
    assert first.fingerprint != HookedEncoder.from_pretrained(checkpoints.path("bert", "relu")).fingerprint
