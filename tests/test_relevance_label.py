"""The label of a model that means relevance: by number or name, asked for where there is no usual one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechir.encoder import HookedEncoder
from mechir.encoder.families import FAMILIES
from mechir.encoder.head import relevant
from mechir.errors import MechirError
from tests.models import PAIRS, build, tokenizer

LABELS = ["entailment", "neutral", "entails not"]


@pytest.mark.parametrize(("asked", "number"), [(0, 0), ("0", 0), ("entailment", 0), ("entails not", 2), (1, 1)])
def test_relevance_is_a_number_or_a_name(asked: int | str, number: int) -> None:
    hf = build("bert", labels=3)
    hf.config.id2label = dict(enumerate(LABELS))
    model = HookedEncoder(hf, tokenizer("bert"), FAMILIES["bert"], relevant_label=asked)
    assert model.head.relevant_label == number
    assert model.reading.relevance == f"log-odds of label {number} ('{LABELS[number]}')"
    odds = model(PAIRS, return_type="logits").softmax(1)[:, number].logit()
    torch.testing.assert_close(model.score(PAIRS), odds, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (None, r"has 3 labels and no score until you say which one .*load it with relevant_label= one of 0 \('entailment'\), 1 \('neutral'\)"),
        ("relevant", r"relevant_label='relevant' is no label: the model has entailment, neutral, entails not"),
        ("3", r"relevant_label=3 is out of range: the model has labels 0-2"),
        (-1, r"relevant_label=-1 is out of range"),
        ("neutral ", r"relevant_label='neutral ' is no label"),
    ],
)  # fmt: skip
def test_relevance_that_is_not_stated_is_asked_for(asked: Any, message: str) -> None:
    hf = build("bert", labels=3)
    hf.config.id2label = dict(enumerate(LABELS))
    with pytest.raises(MechirError, match=message):
        HookedEncoder(hf, tokenizer("bert"), FAMILIES["bert"], relevant_label=asked).score(PAIRS)


def test_two_labels_of_one_name_are_told_apart_by_number() -> None:
    hf = build("bert", labels=2)
    hf.config.id2label = {0: "x", 1: "x"}
    with pytest.raises(MechirError, match="relevant_label='x' is the name of several labels: give its number"):
        HookedEncoder(hf, tokenizer("bert"), FAMILIES["bert"], relevant_label="x")


@pytest.mark.parametrize("asked", [True, 1.5, b"1", [1], float("nan")])
def test_a_label_is_a_number_or_a_name(asked: Any) -> None:
    with pytest.raises(MechirError, match=r"relevant_label=.* is no label: write its number, or its name"):
        relevant(("a", "b"), asked)
