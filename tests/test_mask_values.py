"""A mask that is written in two ways is one value, and nothing of what is written is dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.sites import Head

ALIKE: list[list[mi.Mask]] = [
    [mi.Mask("doc|query<-cls"), mi.Mask("query|doc<-cls"), mi.Mask("D|Q<-CLS"), mi.Mask("document|q<-cls")],
    [mi.Mask("cls<-all"), mi.Mask("cls<-cls|query|sep1|doc|sep2"), mi.Mask.parse(" CLS <- ALL ")],
    [mi.Mask("doc<-query", [0, 1, 2]), mi.Mask("doc<-query", range(3)), mi.Mask("doc<-query", [2, 1, 0, 1]),
     mi.Mask("doc<-query", np.arange(3)), mi.Mask.parse("doc<-query@0-2"), mi.Mask.parse("D<-Q@2,0 - 1,"),
     mi.Mask.parse("doc<-query @ 0 1 2")],
    [mi.Mask("doc<-query", 1), mi.Mask("doc<-query", np.int64(1)), mi.Mask("doc<-query", [1]),
     mi.Mask.parse("doc<-query@1"), mi.Mask.parse("doc<-query@01-1")],
    [mi.Mask("doc<-query", heads=[Head(2, 9), Head(1, 1)]), mi.Mask("doc<-query", heads=(Head(1, 1), Head(2, 9), Head(1, 1))),
     mi.Mask("doc<-query", heads=["h2.9", "h01.1"]), mi.Mask.parse("doc<-query@h1.1,h2.9"),
     mi.Mask.parse("doc<-query@h2.9 h1.1"), mi.Mask.parse("doc<-query@ h2.9, h1.1, ,h2.9,")],
    [mi.Mask("doc<-query", heads=Head(1, 1)), mi.Mask("doc<-query", heads="h1.1"), mi.Mask.parse("doc<-query@h1.1")],
]  # fmt: skip


@pytest.mark.parametrize("masks", ALIKE, ids=lambda masks: str(masks[0]))
def test_one_mask_under_several_names_is_one_value(masks: list[mi.Mask]) -> None:
    assert len(set(masks)) == 1 and len({str(mask) for mask in masks}) == 1 and len(set(map(repr, masks))) == 1
    assert mi.Mask.parse(str(masks[0])) == masks[0]


@pytest.mark.parametrize(
    "text",
    ["doc<-query@", "doc<-query@ ", "doc<-query@,", "doc<-query@5-0", "doc<-query@0-", "doc<-query@-1",
     "doc<-query@0,h1.1", "doc<-query@n1.1", "doc<-query@0@1", "doc<-query@x"],
)  # fmt: skip
def test_what_names_no_layers_and_no_heads_is_refused(text: str) -> None:
    with pytest.raises(MechirError, match=r"^Cannot read '@.*' in '.*': write @0-5, @0,3 \(layers\) or @h8.1,h8.3"):
        mi.Mask.parse(text)
    for head, message in (("h1.1.q", "'h1.1.q' is a part of a head"), ("h1", "Cannot read 'h1' as a site")):
        with pytest.raises(MechirError, match=message):
            mi.Mask.parse(f"doc<-query@h2.1,{head}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": []}, r"layers=\[\] names no layer"),
        ({"layers": -1}, r"layers=-1 names no layer"),
        ({"layers": "0-5"}, r"layers='0-5' names no layer"),
        ({"layers": 1.5}, r"layers=1.5 names no layer"),
        ({"layers": [0.5]}, r"layers=\[0.5\] names no layer"),
        ({"layers": True}, r"layers=True names no layer"),
        ({"heads": []}, r"heads=\[\] names no head"),
        ({"heads": ""}, r"heads='' names no head"),
        ({"heads": "h1.1,h2.9"}, r"Cannot read 'h1.1,h2.9' as a site"),
        ({"heads": [Head(1, 1, "q")]}, r"'h1.1.q' is a part of a head, and a mask cuts its whole pattern: write h1.1"),
        ({"heads": [3]}, r"3 is no Head"),
        ({"heads": [mi.Mlp(1)]}, r"Mlp\(1\) is no Head|no Head"),
        ({"layers": 0, "heads": Head(0, 0)}, r"takes layers= or heads=, not both"),
    ],
)
def test_what_a_mask_cannot_cut_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(MechirError, match=message):
        mi.Mask("doc<-query", **given)


def test_what_the_model_lacks_is_named_with_its_range(tiny: HookedEncoder, pairs: list[mi.Pair]) -> None:
    for mask, message in (
        (mi.Mask("doc<-query", 3), "the model has layers 0-2"),
        (mi.Mask("doc<-query", heads="h1.4"), "Head 4 is out of range: layer 1 has heads 0-3"),
        (mi.Mask("doc<-query", heads="h9.0"), "the model has layers 0-2"),
        (mi.Ablate("h2.99"), "Head 99 is out of range: layer 2 has heads 0-3"),
        (mi.Ablate("n2.99"), "Neuron 99 is out of range: layer 2 has neurons 0-47"),
    ):
        with pytest.raises(MechirError, match=message):
            tiny.score(pairs[:2], mask)


def test_what_is_ablated_has_no_order() -> None:
    one, other = mi.Ablate(["h1.1", "n0.2", "h0.1"]), mi.Ablate(["h0.1", "h1.1", "n0.02"])
    assert one == other and hash(one) == hash(other)
