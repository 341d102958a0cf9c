"""Directions that do not happen in a model: of segments that its pairs lack, or against a causal mask."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import mechir as mi
from mechir.errors import MechirError
from mechir.hooks import as_edit
from mechir.parts import Structure
from tests.models import PAIRS


class Reads:
    """A model as edits see it, of this structure."""

    cfg: Any = type("Sizes", (), {"model_name": "m"})()
    fingerprint = ""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure


BOTH_WAYS, CAUSAL = Structure("post", "absolute", "cls"), Structure("pre", "rotary", "last", causal=True)
DECODED = Structure("pre", "relative", "decoder")
PROMPT = (64, 128, 2, 2, 4, 8, 8, 256)
"""Segments of a prompt, query first."""
TURNED = (128, 8, 8, 4, 2, 256)


def of(structure: Structure, segments: tuple[int, ...], direction: str) -> None:
    """Asks for a mask of a direction in a model of this structure, on a pair of these segments and on padding."""
    rows = torch.tensor([segments, (segments[0],) + (32,) * (len(segments) - 1)])
    batch = mi.Batch(rows, rows, rows != 32, rows, (PAIRS[0], PAIRS[1]))
    for _, edit in mi.Mask(direction, layers=0).hooks(batch):
        assert as_edit(edit).within(Reads(structure)) == edit


@pytest.mark.parametrize(
    ("structure", "segments", "direction"),
    [
        *((CAUSAL, PROMPT, name) for name in ("doc<-query", "suffix<-doc", "query<-query", "doc<-all", "all<-suffix")),
        *((CAUSAL, PROMPT, name) for name in ("doc|query<-sep1", "query<-query|doc", "doc<-cls|query", "cls|doc<-doc")),
        *((CAUSAL, TURNED, name) for name in ("query<-doc", "suffix<-query")),
        *((BOTH_WAYS, PROMPT, name) for name in ("query<-doc", "system<-suffix")),
        *(
            (DECODED, TURNED, name)
            for name in ("decoder<-doc", "decoder<-decoder", "doc|decoder<-decoder", "doc<-query")
        ),
    ],
)
def test_a_direction_that_happens_in_a_prompt_is_cut(
    structure: Structure, segments: tuple[int, ...], direction: str
) -> None:
    of(structure, segments, direction)


THERE = "the segments there are system, instruction, query, sep1, doc, suffix"


@pytest.mark.parametrize(
    ("structure", "segments", "direction", "message"),
    [
        (CAUSAL, PROMPT, "query<-doc", "a position reads only itself and those before it, and query stands before doc; cut 'doc<-query' instead, or choose another model."),
        (CAUSAL, TURNED, "doc<-query|sep1", "a position reads only itself and those before it, and doc stands before query|sep1; cut 'query|sep1<-doc' instead, or choose another model."),
        (CAUSAL, PROMPT, "cls<-doc", f"its pairs have no cls; {THERE}."),
        (BOTH_WAYS, PROMPT, "doc<-cls|sep2", f"its pairs have no cls|sep2; {THERE}."),
        (BOTH_WAYS, (1, 2, 4, 8, 16), "suffix<-doc", "its pairs have no suffix; the segments there are cls, query, sep1, doc, sep2."),
        (BOTH_WAYS, PROMPT, "decoder<-doc", f"its pairs have no decoder; {THERE}."),
        (DECODED, PROMPT, "doc<-decoder", "only the decoder reads the decoder; cut 'decoder<-doc' instead."),
        (DECODED, TURNED, "decoder<-cls", "its pairs have no cls; the segments there are instruction, query, sep1, doc, suffix, decoder."),
    ],
)  # fmt: skip
def test_a_direction_that_cannot_happen_is_refused(
    structure: Structure, segments: tuple[int, ...], direction: str, message: str
) -> None:
    with pytest.raises(MechirError, match="^" + re.escape(f"'{direction}' cannot happen in 'm': {message}") + "$"):
        of(structure, segments, direction)
