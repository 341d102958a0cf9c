"""Completeness and specificity of circuits, on planted models with and without a backup head."""

from __future__ import annotations

import itertools
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import mechir as mi
from mechir import planted
from mechir.circuits import Circuit
from mechir.errors import MechirError
from mechir.methods.completeness import completeness, drawn
from mechir.methods.faithfulness import faithfulness
from mechir.methods.specificity import specificity
from tests.test_backups import few

PLAIN, BACKUP = planted.bm25(c=3.0), planted.bm25(c=3.0, backup=True)
PAIRS = few(PLAIN, 6)
TRUTH = planted.truth(PLAIN, "tf").edges
QUERY = planted.truth(PLAIN, "query").edges


@pytest.mark.parametrize("counterfactual", ["tf", "query"])
@pytest.mark.parametrize("c", [100.0, 3.0, 1.0])
def test_a_planted_circuit_is_complete_but_for_a_backup(c: float, counterfactual: str) -> None:
    plain, backup = planted.bm25(c=c), planted.bm25(c=c, backup=True)
    pairs, truth = few(plain, 8, counterfactual), planted.truth(plain, counterfactual).edges
    complete = completeness(plain, pairs, truth).frame
    assert complete["without"].tolist() == list(map(str, truth))
    assert complete["estimate"].abs().max() < {100.0: 1e-3, 3.0: 0.05, 1.0: 0.05}[c]
    lines = completeness(backup, pairs, truth).frame.set_index("without")
    hidden = [f"resid0->h1.2.{'k' if counterfactual == 'tf' else 'q'}", "h1.2->mlp1"]
    assert (lines.loc[hidden, "estimate"] > 0.8).all() and (lines.loc[hidden, "low"] > 0.4).all()
    assert (lines.loc[hidden, "p_corrected"] < 0.05).all()
    assert (lines.loc[hidden, "f_model"] > 0.9).all() and (lines.loc[hidden, "f_circuit"] < 0.2).all()
    assert lines.drop(index=hidden)["estimate"].abs().max() < 0.1
    both = completeness(backup, pairs, planted.truth(backup, counterfactual).edges).frame
    assert both["estimate"].abs().max() < {100.0: 1e-3, 3.0: 0.12, 1.0: 0.12}[c]


def test_shares_are_those_of_only_and_without() -> None:
    circuit = Circuit([*TRUTH, "h0.1->mlp1", "resid0->h2.2.q"])
    result = completeness(BACKUP, PAIRS, circuit, share=0.4, draws=5, seed=1)
    bases, queries = [base for base, _ in PAIRS], np.repeat(np.arange(6), 3)
    base, donor = BACKUP.score(bases).numpy(), BACKUP.score([other for _, other in PAIRS]).numpy()
    large, toward = np.abs(base - donor) >= 0.01, np.sign(base - donor)
    assert len(result.sets) == 5 == len(set(result.sets))
    for column, some in enumerate(result.sets):
        assert some <= circuit and len(some) == 2
        for name, do in (("circuit", mi.Only(circuit - some, PAIRS)), ("model", mi.Without(some, PAIRS))):
            moved = (BACKUP.score(bases, do=do).numpy() - donor) * toward
            expected = [moved[large & (queries == query)].mean() for query in range(6)]
            np.testing.assert_allclose(getattr(result, name).toward[:, column], expected, atol=1e-5)
    f = faithfulness(BACKUP, PAIRS, {"rest": circuit - result.sets[0]})["estimate"][0]
    assert result.frame["f_circuit"][0] == pytest.approx(f, abs=1e-6)
    f = faithfulness(BACKUP, PAIRS, {"gone": result.sets[0]}, complement=True)["estimate"][0]
    assert result.frame["f_model"][0] == pytest.approx(f, abs=1e-6)
    np.testing.assert_allclose(result.frame["estimate"], result.frame["f_model"] - result.frame["f_circuit"])


def test_rows_weighted_by_their_gap_are_the_frame() -> None:
    result = completeness(BACKUP, PAIRS, TRUTH)
    assert len(result.rows) == 4 * 6
    for (_, rows), estimate in zip(result.rows.groupby("without", sort=False), result.frame["estimate"], strict=True):
        assert np.average(rows["estimate"], weights=rows["gap"]) == pytest.approx(estimate, abs=1e-6)
    compared = specificity(PLAIN, PAIRS, TRUTH, {"query": Circuit(list(QUERY)[:4]), "same": TRUTH})
    assert compared.rows["other"].tolist() == 6 * ["query"] + 6 * ["same"]
    for (_, rows), line in zip(compared.rows.groupby("other", sort=False), compared.frame.itertuples(), strict=True):
        for name in ("f", "f_other", "estimate"):
            assert np.average(rows[name], weights=rows["gap"]) == pytest.approx(getattr(line, name), abs=1e-6)


def test_sets_are_drawn_without_repetition_and_all_where_there_are_few() -> None:
    assert drawn(TRUTH, 20, 0.5, 0) == [Circuit(two) for two in itertools.combinations(TRUTH, 2)]
    assert drawn(TRUTH, 20, 1.0, 0) == [TRUTH]
    whole = Circuit(f"h0.{a}->h{b}.{c}.k" for a in range(4) for b in (1, 2, 3) for c in range(4))
    parts = drawn(whole, 20, 0.1, 0)
    assert len(set(parts)) == 20 and {len(part) for part in parts} == {5}
    assert drawn(whole, 20, 0.1, 0) == parts != drawn(whole, 20, 0.1, 1)


def test_the_sets_themselves() -> None:
    result = completeness(PLAIN, PAIRS, TRUTH, sets=[["h1.2->mlp1"], TRUTH, "h1.2->mlp1"])
    assert result.frame["without"].tolist() == ["h1.2->mlp1", ", ".join(map(str, TRUTH))]
    assert result.frame["size"].tolist() == [1, 4]
    assert completeness(PLAIN, PAIRS, TRUTH, sets="h1.2->mlp1").sets == (Circuit("h1.2->mlp1"),)
    assert result.frame["f_circuit"][1] == pytest.approx(0, abs=1e-4)


def test_a_metric_of_a_querys_scores() -> None:
    def margin(scores: torch.Tensor) -> torch.Tensor:
        return scores[..., 0] - scores[..., -1]

    result = completeness(BACKUP, PAIRS, TRUTH, metric=margin)
    frame = result.frame.set_index("without")
    assert frame.loc["h1.2->mlp1", "f_model"] == pytest.approx(1, abs=0.1)
    assert frame["pairs"].iloc[0] + frame["left_out"].iloc[0] == 6


@pytest.mark.parametrize("c", [100.0, 3.0, 1.0])
@pytest.mark.parametrize("counterfactual", ["tf", "query"])
def test_the_circuit_of_the_other_counterfactual_does_worse(c: float, counterfactual: str) -> None:
    model = planted.bm25(c=c)
    other = {"tf": "query", "query": "tf"}[counterfactual]
    scores = {name: mi.edges(model, few(model, 8, name)) for name in ("tf", "query")}
    truth = planted.truth(model, counterfactual).edges
    test = few(model, 14, counterfactual)[8 * 3 :]
    compared = specificity(model, test, truth, {other: scores[other]})
    assert compared.others == {other: scores[other].circuit(len(truth))}
    line = compared.frame.iloc[0]
    assert line["size"] == len(truth) and line["shared"] < len(truth)
    assert line["f"] > 0.9 and abs(line["f_other"]) < 0.05
    assert line["low"] > 0.8 and line["p_corrected"] < 0.05


def test_a_circuit_does_as_well_as_itself() -> None:
    frame = specificity(PLAIN, PAIRS, TRUTH, {"same": TRUTH, "text": list(map(str, TRUTH))}).frame
    assert frame["estimate"].tolist() == [0, 0] and frame["p_corrected"].tolist() == [1, 1]
    assert frame["shared"].tolist() == [4, 4]


def test_circuits_that_cannot_be_compared_are_refused() -> None:
    scores = mi.edges(PLAIN, PAIRS[:3], receivers="score", senders=["h3.1", "h3.0"])
    part = mi.edges(PLAIN, PAIRS[:3], method="exact", only=["h3.1->score"])
    by_name = "others= holds no circuits by name: give a dictionary, {'query': circuit or scores}."
    for others, message in (
        ({"query": part}, "'query' scores 1 edges, and the circuit has 4: score all edges."),
        *((other, by_name) for other in ([TRUTH], TRUTH, scores, None, {"query": None})),
        (
            {"query": QUERY},
            "'query' has 6 edges and the circuit 4, and more edges do better: make it of scores.circuit(4), or give "
            "the scores.",
        ),
        ({"query": scores}, "'query' scores 2 edges, and the circuit has 4: score all edges."),
        ({}, "There is no other circuit: give others={'query': edges(model, other_contrasts)}."),
    ):
        with pytest.raises(MechirError) as refused:
            specificity(PLAIN, PAIRS, TRUTH, others)
        assert str(refused.value) == message
    with pytest.raises(MechirError, match=r"The circuit has no edges to compare: give one, e\.g\. scores\.circuit"):
        specificity(PLAIN, PAIRS, Circuit(), {"same": Circuit()})
    with pytest.raises(MechirError, match=r"Head 9 is out of range"):
        specificity(PLAIN, PAIRS, Circuit("h3.1->score"), {"foreign": Circuit("h3.9->score")})


ODD = (2.5, True, float("inf"), "3", None, float("nan"))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({"circuit": []}, "The circuit has no edges to knock out: give one, e.g. scores.circuit(20)."),
    "empty, sets": (
        {"circuit": [], "sets": [[]]},
        "The circuit has no edges to knock out: give one, e.g. scores.circuit(20).",
    ),
    "draws": ({"draws": 0}, "draws=0 is out of range: write a whole number, 1 or more."),
    **{f"draws {x!r}": ({"draws": x}, f"draws={x!r} is out of range: write a whole number, 1 or more.") for x in ODD},
    **{f"seed {x!r}": ({"seed": x}, f"seed={x!r} is out of range: write a whole number, 0 or more.") for x in ODD},
    **{
        f"share {x!r}": ({"share": x}, f"share={x!r} is no fraction: write e.g. share=0.1 of the circuit's edges.")
        for x in ODD
    },
    "empty set": ({"sets": [[]]}, "sets= holds a set without edges, which knocks out nothing: leave it out."),
    "number": ({"sets": 5}, "sets=5 are no sets of edges: give some, e.g. [[edge] for edge in circuit]."),
    "option": (
        {"complement": True},
        "completeness has no option 'complement': write max_rows, max_tokens, max_length or progress.",
    ),
    "share": ({"share": 0.0}, "share=0.0 is no fraction: write e.g. share=0.1 of the circuit's edges."),
    "large share": ({"share": 2.0}, "share=2.0 is no fraction: write e.g. share=0.1 of the circuit's edges."),
    "no sets": ({"sets": []}, "sets= holds no set of edges: give some, e.g. [[edge] for edge in circuit]."),
    "foreign set": (
        {"sets": [["h1.0->mlp1"]]},
        "'h1.0->mlp1' is no edge of the circuit: knock out what belongs to it.",
    ),
    "backwards": ({"circuit": ["h3.1->mlp1"]}, "'h3.1->mlp1' leads backwards: h3.1 writes after mlp1 reads."),
    "gap": (
        {"min_gap": 9.0},
        "Base and donor differ by less than 9.0 on all 2 contrasts, e.g. that of query q0: there is nothing to be "
        "faithful to; give other contrasts, or a smaller min_gap.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    options, message = WRONG[case]
    with pytest.raises(MechirError) as refused:
        completeness(PLAIN, PAIRS[:2], **{"circuit": TRUTH, **options})
    assert str(refused.value) == message
