"""The same intervention through nnsight on Hugging Face's own model: an engine that shares no code with ours."""

from __future__ import annotations

import warnings
from typing import Any

import nnsight
import pytest
import torch
import transformers

import mechir as mi
from mechir.encoder import HookedEncoder
from tests.models import PAIRS, Checkpoints


@pytest.fixture
def theirs(checkpoints: Checkpoints) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnsight says that it serves BERT's own `output` modules as `E_output`
        return nnsight.NNsight(
            transformers.BertForSequenceClassification.from_pretrained(
                checkpoints.path("bert"), attn_implementation="eager"
            ).eval()
        )


def test_a_mask_and_an_ablation_are_the_same_through_nnsight(theirs: Any, checkpoints: Checkpoints) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"))
    batch = model.batch(PAIRS)
    inputs = {
        "input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long(), "token_type_ids": batch.token_type_ids
    }  # fmt: skip
    cut = batch.at(mi.Segment.DOC)[:, None, :, None] & batch.at(mi.Segment.QUERY)[:, None, None, :]
    d_head = model.cfg.d_head
    with torch.no_grad(), theirs.trace(**inputs):
        attention = theirs.bert.encoder.layer[0].attention.self
        pattern = attention.source.attention_interface_1.source.nn_functional_dropout_0.output
        attention.source.attention_interface_1.source.nn_functional_dropout_0.output = pattern.masked_fill(cut, 0.0)
        projection = theirs.bert.encoder.layer[1].attention.E_output.dense
        z = projection.input.clone()
        z[..., 2 * d_head : 3 * d_head] = 0
        projection.input = z
        logits = theirs.output.logits.save()
    ours = model.score(PAIRS, [mi.Mask("doc<-query", layers=0), mi.Ablate("h1.2")])
    assert (ours - model.score(PAIRS)).abs().max() > 0.05
    torch.testing.assert_close(ours, logits[:, 0], atol=1e-5, rtol=0)
