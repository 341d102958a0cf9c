"""What users write and what is printed are the same thing: segments, directions, sites, masks."""

from __future__ import annotations

from functools import reduce
from operator import or_

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mechir as mi
from mechir.errors import MechirError
from mechir.segments import FIVE
from mechir.sites import ATTENTION, MLP, RESID, is_head

SEGMENTS = st.sets(st.sampled_from(FIVE), min_size=1).map(lambda parts: reduce(or_, parts))
DIRECTIONS = st.builds(mi.Direction, SEGMENTS, SEGMENTS)
INDEX = st.integers(0, 5000)
SITES = st.one_of(
    st.tuples(INDEX, INDEX).map(lambda at: mi.Head(*at)), st.builds(mi.Neuron, INDEX, INDEX), INDEX.map(mi.Mlp),
    INDEX.map(mi.Attn), INDEX.map(mi.Resid), st.builds(mi.Head, INDEX, INDEX, st.sampled_from(sorted(ATTENTION))),
    st.builds(mi.Attn, INDEX, st.sampled_from(sorted(ATTENTION))), st.builds(mi.Resid, INDEX, st.sampled_from(sorted(RESID))),
    st.builds(mi.Mlp, INDEX, st.sampled_from(sorted(MLP))),
)  # fmt: skip


@given(DIRECTIONS)
def test_a_direction_prints_as_it_is_written(direction: mi.Direction) -> None:
    assert mi.Direction.parse(str(direction)) == direction
    assert mi.Direction.parse(str(direction).upper()) == direction


@given(SITES)
def test_a_site_prints_as_it_is_written(site: mi.Head) -> None:
    parsed = mi.parse_site(str(site))
    assert (parsed, type(parsed)) == (site, type(site))
    assert site.hook.split(".")[1] == str(site.layer)


@given(DIRECTIONS, st.sets(st.integers(0, 30), min_size=1), st.booleans())
def test_a_mask_s_repr_is_its_constructor_call(direction: mi.Direction, layers: set[int], renormalise: bool) -> None:
    mask = mi.Mask(direction, layers, renormalise=renormalise)
    assert eval(repr(mask), {"Mask": mi.Mask}) == mask  # the text is this test's own
    assert hash(mask) == hash(mi.Mask(str(direction), sorted(layers), renormalise=renormalise))


@given(st.integers(0, 30), st.integers(0, 30))
def test_a_range_of_layers_includes_its_end(first: int, more: int) -> None:
    assert mi.Mask.parse(f"doc<-query@{first}-{first + more}").layers == tuple(range(first, first + more + 1))


@given(SITES, SITES)
def test_only_a_head_is_a_head(site: mi.Head, other: mi.Head) -> None:
    parts = isinstance(site, mi.Head)
    whole = parts and site.part == "z"
    column = pd.Series([str(site), str(other), "", f"h1.2->{site}", "h8", "head", None], dtype=object)
    assert is_head(column).tolist() == [whole, isinstance(other, mi.Head) and other.part == "z", *[False] * 5]
    assert is_head(column, parts=True).tolist() == [parts, isinstance(other, mi.Head), *[False] * 5]
    assert is_head(pd.Series([site, None])).tolist() == [whole, False] and is_head(column[:0]).dtype == bool


def test_the_papers_names_are_understood() -> None:
    assert [str(mi.Direction.parse(text)) for text in ("D<-Q", "CLS<-SEP1", "cls <- q|d", "d<-all")] == [
        "doc<-query", "cls<-sep1", "cls<-query|doc", "doc<-all",
    ]  # fmt: skip
    assert len(set(mi.directions())) == 25


@pytest.mark.parametrize("text", ["", "h1", "h1.2.3", "mlp", "n-1.2", "H 1.2"])
def test_what_is_no_site_is_refused(text: str) -> None:
    with pytest.raises(MechirError, match=r"as a site: write h8.1"):
        mi.parse_site(text)


def test_sites_of_different_kinds_are_different_keys() -> None:
    kinds = [mi.Mlp(3), mi.Attn(3), mi.Resid(3), mi.Head(3, 1), mi.Neuron(3, 1), mi.Score(), mi.Attn(3, "z")]
    assert len(set(kinds)) == len(kinds)
    assert mi.Mlp(3) != mi.Attn(3)
    assert mi.Head(3, 1) == mi.Head(3, 1, "z") and hash(mi.Head(3, 1)) == hash(mi.Head(3, 1, "z"))
    assert str(mi.Head(3, 1, "q")) == "h3.1.q" and repr(mi.Head(3, 1, "q")) == "Head(3, 1, 'q')"
