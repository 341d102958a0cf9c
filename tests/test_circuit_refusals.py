"""What edges, circuits and their statistics refuse, each in one sentence; and what they do not mix up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import inference, planted
from mechir.circuits import Circuit
from mechir.errors import MechirError
from mechir.methods import selection

MODEL = planted.bm25(c=3.0)
PAIRS = planted.pairs(MODEL, n=60)
TRUTH = planted.truth(MODEL, "tf").edges
SCORES = mi.edges(MODEL, PAIRS, method="eap")
PART = mi.edges(MODEL, PAIRS[:20], method="exact", only=TRUTH)
LINES = pd.DataFrame({"size": [0, 1, 10], "estimate": [0.0, 0.1, 1.0]})
WHOLE = "is out of range: write a whole number, "


@dataclass(frozen=True)
class At:
    """An intervention of one's own at one hook."""

    name: str

    def hooks(self, batch: mi.Batch) -> list[Any]:
        return [(self.name, lambda x, hook: x)]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no circuit": (lambda: Circuit(None), r"None is no circuit: give its edges, such as"),
    "no edge": (lambda: Circuit([mi.Head(1, 2)]), r"Head\(1, 2\) is no edge: a circuit is made of edges"),
    "lines": (lambda: Circuit(str(TRUTH)), r"Several lines are a circuit, not an edge: read them with Circuit\.parse"),
    "contrasts": (lambda: mi.edges(MODEL, None), r"None are no contrasts: give Contrasts"),
    "senders": (lambda: mi.edges(MODEL, PAIRS, senders=[]), r"senders is empty: name some, or leave it out for all"),
    "receivers": (lambda: mi.edges(MODEL, PAIRS, receivers=[]), r"receivers is empty: name some"),
    "roles of some": (
        lambda: mi.edges(MODEL, PAIRS, method="exact", only=TRUTH, at="roles"),
        r"only= patches whole edges, and at='roles' splits them",
    ),
    "exact and the QK fix": (
        lambda: mi.edges(MODEL, PAIRS, method="exact", qk_fix=True),
        r"qk_fix=True belongs to gradients, and method='exact' has none: leave it out",
    ),
    "exact and a Jacobian": (
        lambda: mi.edges(MODEL, PAIRS, method="exact", ln="jacobian"),
        r"ln='jacobian' belongs to gradients",
    ),
    "true points": (lambda: mi.edges(MODEL, PAIRS, points=True), rf"points=True {WHOLE}1 or more"),
    "seed": (lambda: mi.edges(MODEL, PAIRS, method="screen", seed=-1), rf"seed=-1 {WHOLE}0 or more"),
    "rows": (lambda: mi.edges(MODEL, PAIRS, max_rows=0), r"max_rows=0 is out of range: write 1 or more"),
    "constant, exact": (
        lambda: mi.edges(MODEL, PAIRS[:4], method="exact", only=TRUTH, metric=lambda s: s.mean(-1) * 0),
        r"The metric is constant in the scores of query q0 \(4 contrasts\)",
    ),
    "infinite": (
        lambda: mi.edges(MODEL, PAIRS[:4], metric=lambda s: s[..., 0] / 0),
        r"The metric is not finite on the scores of query q0",
    ),
    "dividing": (
        lambda: mi.faithfulness(MODEL, PAIRS[:4], {"t": TRUTH}, metric=lambda s: s[..., 0] * (1 // 0)),
        r"The metric fails on the 4 scores of query q0: integer division",
    ),
    "more than measured": (lambda: PART.circuit(10), r"size=10 asks for more edges than the 4 that were measured"),
    "nested in part": (lambda: mi.nested(PART, [10]), r"size=10 asks for more edges than the 4 that were measured"),
    "stability in part": (lambda: mi.stability(PART, 2), r"Stability needs the effects of all edges"),
    "stability of one query": (
        lambda: mi.stability(mi.edges(MODEL, PAIRS[:20], method="eap"), 4),
        r"Queries are drawn anew, and there is one alone: take more",
    ),
    "one draw": (lambda: mi.stability(SCORES, 4, draws=1), rf"draws=1 {WHOLE}2 or more"),
    "size": (lambda: SCORES.circuit(-1), rf"size=-1 {WHOLE}1 or more"),
    "no draws": (lambda: selection.constant_sign(SCORES, draws=0), rf"draws=0 {WHOLE}1 or more"),
    **{
        f"sizes {size}": (lambda size=size: mi.nested(SCORES, [size]), r"size=.* is out of range: write a whole number")
        for size in (0, -1, True, 2.7, float("nan"), "3", None)
    },
    "sizes as text": (lambda: mi.nested(SCORES, "35"), r"sizes='35' is no list"),
    "circuits": (lambda: mi.faithfulness(MODEL, PAIRS[:4], [TRUTH]), r"are no circuits: give a dictionary of some"),
    "gap": (
        lambda: mi.faithfulness(MODEL, PAIRS[:4], {"t": TRUTH}, min_gap=float("nan")),
        r"min_gap=nan is out of range: write 0 or more",
    ),
    "fewer edges": (lambda: mi.curve(LINES, 3), r"A curve needs circuits of one edge or more"),
    "no f": (lambda: mi.curve(LINES.assign(estimate=np.nan), 479), r"A curve needs circuits of one edge or more"),
    "random of another model": (
        lambda: selection.random_alike(SCORES.graph, Circuit("h7.1->score")),
        r"'h7\.1->score' is no edge of this graph of 4 layers",
    ),
    "signs of one query": (
        lambda: selection.constant_sign(mi.edges(MODEL, PAIRS[:20], method="eap")),
        r"Queries are drawn anew, and there is one alone",
    ),
    "an input beside": (
        lambda: MODEL.score([PAIRS[0][0]], do=[mi.Only(TRUTH, PAIRS), At("blocks.1.hook_q_input")]),
        r"an edit at 'blocks\.1\.hook_q_input' beside it",
    ),
    "a LayerNorm beside": (
        lambda: MODEL.score([PAIRS[0][0]], do=[At("blocks.0.ln1.hook_scale"), mi.Only(TRUTH, PAIRS)]),
        r"an edit at 'blocks\.0\.ln1\.hook_scale' beside it",
    ),
    "two circuits": (
        lambda: MODEL.score([PAIRS[0][0]], do=[mi.Only(TRUTH, PAIRS), mi.Without(TRUTH, PAIRS)]),
        r"Only hands every reader its stream, so an edit at 'blocks\.0\..*' beside it would be lost or not",
    ),
    "a head beside": (
        lambda: MODEL.score([PAIRS[0][0]], do=[mi.Ablate("h1.2"), mi.Only(TRUTH, PAIRS)]),
        r"an edit at 'blocks\.1\.attn\.hook_z' beside it",
    ),
    "a layer beside": (
        lambda: mi.sweep(MODEL, [PAIRS[0][0]], {"x": [mi.Only(TRUTH, PAIRS), mi.Ablate("attn1")]}),
        r"an edit at 'blocks\.1\.hook_attn_out' beside it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_sentence(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(MechirError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_is_right_is_taken() -> None:
    assert PART.circuit(4) == TRUTH
    assert list(mi.nested(SCORES, [np.float32(0.01), np.int64(7)])) == [5, 7]
    assert mi.curve(LINES, 479).size == 10  # the line without edges is no point of the curve
    greedy = mi.nested(SCORES, how="greedy")
    assert all(len(circuit) == size > 0 for size, circuit in greedy.items())
    one = mi.faithfulness(MODEL, PAIRS[:40], TRUTH)
    assert one["circuit"].tolist() == ["circuit"]
    pd.testing.assert_frame_equal(one, mi.faithfulness(MODEL, PAIRS[:40], {"circuit": list(map(str, TRUTH))}))
    assert 5 not in TRUTH and "h1.2->mlp1" in TRUTH
    assert len(mi.edges(MODEL, PAIRS[0], method="eap").values) == 1  # one (base, donor) pair


def test_edges_that_were_not_measured_are_no_part_of_the_family() -> None:
    pairs = planted.pairs(MODEL, n=160)[::3]  # of eight queries
    lines = mi.edges(MODEL, pairs, method="exact", only=TRUTH).frame.set_index("edge")
    alone = inference.sign_flips(
        mi.edges(MODEL, pairs, method="exact", only=TRUTH).queries[:, PART.graph.columns(TRUTH)]
    )
    np.testing.assert_allclose(lines.loc[list(map(str, TRUTH)), "p_corrected"], alone.p_corrected)
    assert (alone.p_corrected < 0.05).all()
    rest = lines.drop(list(map(str, TRUTH)))
    assert rest[["p", "p_corrected", "estimate"]].isna().all(axis=None) and (rest["queries"] == 0).all()


def test_one_circuit_is_a_curve_of_one_point() -> None:
    point = mi.curve(LINES[1:2], 10)
    assert (point.cmd_log, point.cpr_log) == (pytest.approx(0.9), pytest.approx(0.1))


def test_masks_and_neurons_go_beside_a_circuit() -> None:
    bases, every = [base for base, _ in PAIRS[:6]], mi.Only(Circuit(SCORES.graph.edges), PAIRS)
    for other in (mi.Mask("doc<-query"), mi.Ablate("n1.0")):
        alone = MODEL.score(bases, do=other)
        for do in ([other, every], [every, other]):
            torch.testing.assert_close(MODEL.score(bases, do=do), alone, atol=1e-5, rtol=0)


def test_roles_in_bfloat16() -> None:
    model = planted.bm25(c=3.0).to(torch.bfloat16)
    roles = mi.edges(model, PAIRS[:8], at="roles", receivers="h1.2.k")
    assert np.isfinite(roles.values).all() and str(roles.plain.circuit(1)) == "resid0->h1.2.k"


def test_the_qk_fix_where_no_sender_has_written_yet() -> None:
    scores = mi.edges(MODEL, PAIRS[:4], senders="h1.0", receivers=["h0.1.k", "score"], qk_fix=True)
    assert scores.values.shape == (4, 1)
