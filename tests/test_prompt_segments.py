"""Activations, patches and edits at the segments of a prompt; a segment that is not there is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import mechir as mi
from mechir.activations import BySegment
from mechir.contrasts import align
from mechir.diagnostics import Tfc1
from mechir.encoder import HookedEncoder
from mechir.encoding import Encoded
from mechir.errors import MechirError
from mechir.methods import patching
from mechir.methods.tokens import by_role
from mechir.segments import FIVE, Segment
from mechir.views.tokens import coloured
from tests.models import PAIRS, Checkpoints

PROMPT = {Segment.CLS: Segment.INSTRUCTION, Segment.SEP2: Segment.SUFFIX}


@pytest.fixture
def prompted(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> HookedEncoder:
    """A BERT whose pairs have the segments of a prompt."""
    model = HookedEncoder.from_pretrained(checkpoints.path("bert"))
    plain = model.encode

    def encoded(pairs: Any, max_length: int | None = None) -> Encoded:
        found = plain(pairs, max_length)
        names = {old.value: new.value for old, new in PROMPT.items()}
        rows = [[names.get(value, value) for value in row.tolist()] for row in found.segments]
        return replace(found, segments=tuple(map(np.array, rows)))

    monkeypatch.setattr(model, "encode", encoded)
    return model


def test_activations_are_kept_by_the_segments_of_a_prompt(tiny: HookedEncoder, prompted: HookedEncoder) -> None:
    for take in (mi.means, partial(mi.means, by="all"), partial(mi.samples, draws=3)):
        plain, found = take(tiny, PAIRS), take(prompted, PAIRS)
        assert " ".join(map(str, found.segments)) == "instruction query sep1 doc suffix"
        assert (plain == found) is False and plain.segments == FIVE
        for name, value in plain.values.items():
            torch.testing.assert_close(found.values[name], value, atol=0, rtol=0)
        expected = tiny.score(PAIRS, mi.Ablate("mlp1", plain))
        torch.testing.assert_close(prompted.score(PAIRS, mi.Ablate("mlp1", found)), expected, atol=0, rtol=0)
        message = "^These activations hold no 'instruction\\|suffix' \\(they hold cls, query, sep1, doc, sep2\\): take them from pairs of the same prompt.$"
        with pytest.raises(MechirError, match=message):
            prompted.score(PAIRS, mi.Ablate("mlp1", plain))


def test_stored_means_of_a_prompt_name_its_segments(tiny: HookedEncoder, prompted: HookedEncoder) -> None:
    found = mi.means(prompted, PAIRS, hooks=["attn.hook_z"])
    assert BySegment.of_frame(found.frame()) == found
    assert "segments" not in mi.means(tiny, PAIRS, hooks=["attn.hook_z"]).frame()


def test_patches_and_attributions_of_a_prompt_have_its_segments(prompted: HookedEncoder) -> None:
    names = ["instruction", "query", "sep1", "doc", "suffix"]
    contrast = align(PAIRS[0], Tfc1(), prompted.writer)
    patched = patching.patch(prompted, [contrast], "h1.2", at="segment")
    assert patched["at"].unique().tolist() == names
    rows = mi.token_attribution(prompted, PAIRS[:2]).rows
    assert by_role(rows)["segment"].tolist() == names
    assert "<th>instruction</th><th>query</th>" in coloured(rows).html


@pytest.mark.parametrize(
    ("fixture", "missing", "there"),
    [
        ("prompted", "cls", "instruction, query, sep1, doc, suffix"),
        ("prompted", "cls|sep2", "instruction, query, sep1, doc, suffix"),
        ("tiny", "suffix", "cls, query, sep1, doc, sep2"),
        ("tiny", "decoder", "cls, query, sep1, doc, sep2"),
    ],
)
def test_an_edit_at_a_segment_that_such_pairs_never_have_is_refused(
    fixture: str, missing: str, there: str, request: pytest.FixtureRequest
) -> None:
    model, pairs = request.getfixturevalue(fixture), PAIRS[:1]
    contrast, donor = align(PAIRS[0], Tfc1(), model.writer), mi.record(model, pairs, "h1.2")
    message = f"^These pairs have no {re.escape(missing)}; the segments there are {there}: write one of these.$"
    for edit in (
        mi.Patch(donor, "h1.2", at=missing),
        mi.Add("resid1", torch.ones(model.cfg.d_model), at=missing),
    ):
        with pytest.raises(MechirError, match=message):
            model.score(pairs, do=edit)
    for many in (mi.patch, mi.attribute):
        with pytest.raises(MechirError, match=re.escape(f"No contrast has a position at ['{missing}']: write ")):
            many(model, [contrast], ["h1.2"], at=[missing])
    for some in (f"{missing}|doc", "pad", "all"):
        assert len(model.score(pairs, do=mi.Add("resid1", torch.ones(model.cfg.d_model), at=some))) == 1


# Contrasts and roles
