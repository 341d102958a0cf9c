"""Edges and circuits print, parse, compare and hash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mechir as mi
from mechir.circuits import PORTS, readers_in_order
from mechir.errors import MechirError

INDEX = st.integers(0, 5000)
WRITERS = st.one_of(
    st.tuples(INDEX, INDEX).map(lambda at: mi.Head(*at)), st.builds(mi.Neuron, INDEX, INDEX), INDEX.map(mi.Mlp), INDEX.map(mi.Attn),
    INDEX.map(mi.Resid),
)  # fmt: skip
INPUTS = st.builds(mi.Head, INDEX, INDEX, st.sampled_from(PORTS))
READERS = st.one_of(
    INPUTS.map(lambda head: (head,)), INDEX.map(lambda layer: (mi.Mlp(layer),)), st.just((mi.Score(),)),
    INDEX.map(lambda layer: (mi.Mlp(layer, "in"),)), st.lists(INPUTS, min_size=1, max_size=4),
)  # fmt: skip
ENDS = st.lists(st.tuples(WRITERS, READERS), max_size=6)
TF = mi.Circuit(["mlp1->h3.1.v", "h3.1->score", "resid0->h1.2.k", "h1.2->mlp1"])


@given(WRITERS, READERS)
def test_an_edge_prints_as_it_is_written(source: mi.Head, readers: list[mi.Head]) -> None:
    edge = mi.Edge(source, *readers)
    again = mi.parse_edge(str(edge))
    assert again == edge and hash(again) == hash(edge) and str(again) == str(edge)
    assert eval(repr(edge), vars(mi)) == edge  # the text is this test's own
    assert mi.Edge(str(edge.source), *map(str, edge.readers)) == edge
    assert mi.Edge(edge.source, *edge.readers[::-1], *edge.readers[1:]) == edge


@given(ENDS, ENDS)
def test_a_circuit_prints_as_it_is_written_and_is_a_set(first: list[Any], second: list[Any]) -> None:
    one, other = (mi.Circuit([mi.Edge(source, *readers) for source, readers in ends]) for ends in (first, second))
    assert mi.Circuit.parse(str(one)) == one == mi.Circuit(json.loads(json.dumps(list(map(str, one)))))
    assert hash(mi.Circuit(reversed(list(one)))) == hash(one)
    assert eval(repr(one), vars(mi)) == one  # the text is this test's own
    assert str(one).count("\n") + bool(one) == len(one) == len(list(one))
    assert set(one | other) == set(one) | set(other) and set(one & other) == set(one) & set(other)
    assert (one - other) | (one & other) == one <= one | other
    assert (one <= other) == all(edge in other for edge in one)


@pytest.mark.parametrize(
    ("edge", "text", "earlier"),
    [
        (mi.Edge(mi.Head(1, 3), mi.Head(8, 1, "q")), "h1.3->h8.1.q", "h1.3->h8.1.q"),
        (mi.Edge(mi.Mlp(1), mi.Mlp(3)), "mlp1->mlp3", "mlp1->mlp3.in"),
        (mi.Edge(mi.Head(1, 3), mi.Mlp(3, "in")), "h1.3->mlp3", "h1.3->mlp3.in.in"),
        (mi.Edge(mi.Head(8, 1), mi.Score()), "h8.1->score", "h8.1->score.in"),
        (mi.Edge("resid0", "h1.2.k"), "resid0->h1.2.k", " resid0->h1.2.k"),
        (mi.Edge("h8.1", "h10.4.k", "h10.1.k"), "h8.1->h10.1.k+h10.4.k", "h8.1->h10.4.k+h10.1.k"),
    ],
)
def test_an_edge_has_one_normal_form(edge: mi.Edge, text: str, earlier: str) -> None:
    assert str(edge) == text and mi.parse_edge(text) == mi.parse_edge(earlier) == edge
    assert edge.readers[0].hook == mi.parse_edge(text).readers[0].hook


def test_an_edge_reads_where_its_reader_does() -> None:
    assert mi.Edge("h1.3", "mlp3").readers == (mi.Mlp(3, "in"),) == readers_in_order([mi.Mlp(3)])
    assert mi.Score() == mi.Score() and mi.Score() and mi.Score().hook == "head.hook_logits"
    assert len({mi.Edge("h1.3", "h8.1.q"), mi.Edge("h1.3", "h8.1.k"), mi.Edge("n1.3", "h8.1.q")}) == 3


@pytest.mark.parametrize(
    "text",
    ["", "h1.3", "h1.3->", "->score", "h1.3->h8.1", "h1.3->h8.1.in", "h1.3->h8.1.z", "h1.3.q->score", "h1->score",
     "mlp1.post->mlp3", "mlp1->mlp3.post", "h1.3->h2.1.k+mlp3", "h1.3->h2.1.k+", "resid0.mid->score", "h1.3->resid4",
     "score->score", "h1.3->h2.1.k->score"],
)  # fmt: skip
def test_what_is_no_edge_is_refused(text: str) -> None:
    message = f"Cannot read '{text}' as an edge: write h1.3->h8.1.q, mlp1->mlp3 or h8.1->score."
    for call in (lambda: mi.parse_edge(text), lambda: mi.Circuit([text]), lambda: text in TF):
        with pytest.raises(MechirError) as caught:
            call()
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (("h1.3.q", "score"), "'h1.3.q' is no source of an edge: write a head (h8.1), an MLP (mlp3) or resid0."),
        ((mi.Score(), "score"), "'score' is no source of an edge: write a head (h8.1), an MLP (mlp3) or resid0."),
        (("h1.3", 3), "'3' receives nothing: write 'score', a head's input such as h10.1.k, or mlp3."),
        (("h1.3",), "There is no receiver: write 'score', a head's input such as h10.1.k, or mlp3."),
    ],
)
def test_what_has_no_two_ends_is_no_edge(ends: tuple[Any, ...], message: str) -> None:
    with pytest.raises(MechirError) as caught:
        mi.Edge(*ends)
    assert str(caught.value) == message


def test_a_circuit_knows_its_sites_and_its_order() -> None:
    assert str(TF) == "resid0->h1.2.k\nh1.2->mlp1\nmlp1->h3.1.v\nh3.1->score"
    assert TF.sites == {mi.Head(1, 2), mi.Mlp(1), mi.Head(3, 1)} and TF.heads == {mi.Head(1, 2), mi.Head(3, 1)}
    mixed = mi.Circuit(["mlp10->score", "h10.0->score", "h2.1->score", "h2.1->mlp2", "resid0->score", "h2.1->h3.0.q"])
    assert list(map(str, mixed)) == [
        "resid0->score", "h2.1->mlp2", "h2.1->h3.0.q", "h2.1->score", "h10.0->score", "mlp10->score",
    ]  # fmt: skip


def test_readers_together_are_an_edge_each_in_a_circuit() -> None:
    circuit = mi.Circuit("h8.1->h10.1.k+h10.4.k")
    assert circuit == mi.Circuit(["h8.1->h10.1.k", "h8.1->h10.4.k"]) and "h8.1->h10.1.k+h10.4.k" in circuit
    assert "h8.1->h10.1.k" in circuit and "h8.1->h10.1.k+h10.5.k" not in circuit and mi.Edge("h8.1", "score") not in TF


@pytest.mark.parametrize("form", [str, lambda edge: edge, lambda edge: {str(edge)}, lambda edge: [str(edge)]])
def test_operators_take_edges_in_every_form_that_a_circuit_does(form: Any) -> None:
    edge, new = mi.Edge("h3.1", "score"), mi.Edge("h3.2", "score")
    assert TF & form(edge) == mi.Circuit(edge) and TF - form(edge) == mi.Circuit([e for e in TF if e != edge])
    assert TF | form(new) == mi.Circuit([*TF, new]) and TF & form(new) == mi.Circuit() and TF - form(new) == TF
    both = mi.Circuit("h8.1->h10.1.k+h10.4.k")
    assert both & ["h8.1->h10.1.k+h10.5.k"] == mi.Circuit("h8.1->h10.1.k") == both - {"h8.1->h10.4.k+h10.5.k"}


def test_an_empty_circuit_and_empty_lines() -> None:
    assert not mi.Circuit() and mi.Circuit.parse(" \n\n") == mi.Circuit() == mi.Circuit.parse(str(mi.Circuit()))
    assert mi.Circuit.parse(f"\n{TF}\n\n") == TF and TF - TF == mi.Circuit() != TF
