"""The importance of units: who counts as relevant, means over pairs, intervals over queries."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import mechir as mi
from mechir.collection_groups import collections
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.conductance import conductance
from mechir.methods.importance import (
    against_others,
    format_thresholds,
    importance,
    labelled,
    thresholds,
    unconverged,
    unit_rows,
    with_both,
)
from mechir.methods.walk import Way
from tests.models import TOY


def test_half_of_the_highest_grade_is_relevant(tmp_path: Path) -> None:
    shutil.copytree(TOY, tmp_path / "binary")
    qrels = tmp_path / "binary" / "qrels.txt"
    lines = [line.split() for line in qrels.read_text().splitlines()]
    qrels.write_text("".join(f"{q} {zero} {d} {min(int(g), 1)}\n" for q, zero, d, g in lines))
    toy, alone = mi.collection(TOY), collections([f"in:{TOY}"])
    highest = max(grade for grades in toy.qrels.values() for grade in grades.values())
    assert thresholds(alone) == {TOY.name: -(-highest // 2)} and thresholds(alone, "1") == {TOY.name: 1}
    both = collections([f"in:{TOY}", f"out:{tmp_path / 'binary'}"])
    assert thresholds(both) == {TOY.name: -(-highest // 2), "binary": 1}
    assert thresholds(both, f"{TOY.name}:1") == {TOY.name: 1, "binary": 1}
    assert thresholds(both, format_thresholds(thresholds(both))) == thresholds(both)
    for text, said in (
        ("x", r"Cannot read relevant='x': write a grade above 0, or NAME:GRADE with commas, where NAME is toy\."),
        ("other:1", r"Cannot read relevant='other:1'"),
        (
            str(highest + 1),
            rf"'{TOY.name}' has no relevant document: its highest grade is {highest}, not {highest + 1}\.",
        ),
    ):
        with pytest.raises(MechirError, match=said):
            thresholds(alone, text)
    qrels.write_text("".join(f"{q} {zero} {d} 0\n" for q, zero, d, _ in lines))
    with pytest.raises(MechirError, match=r"'binary' has no relevant document: its highest grade is 0"):
        thresholds(collections([f"in:{tmp_path / 'binary'}"]))


def test_importance_is_the_mean_over_pairs(tiny: HookedEncoder) -> None:
    pairs, lowest = collections([f"in:{TOY}"]).pairs(limit_queries=3), {TOY.name: 2}
    kept = labelled(pairs, lowest, take=2)
    assert {pair.grade for pair in kept} == {0, 1} and len(kept) == 3 * 4
    assert len(labelled(pairs, lowest)) == len(pairs)
    rows = unit_rows(tiny, kept, way=Way(tol=1.0))
    found = importance(rows, draws=200)
    c = tiny.cfg
    assert len(found) == 2 * c.n_layers * (c.d_mlp + c.n_heads)
    assert (found["pairs"] == 6).all() and (found["queries"] == 3).all()
    alone = [mi.Pair(pair.query, pair.document, f"q{k}", "d", pair.grade) for k, pair in enumerate(kept)]
    each = conductance(tiny, alone, way=Way(tol=1.0)).rows
    for label, grade in (("relevant", 1), ("non-relevant", 0)):
        own = found[found["label"] == label].set_index("site")
        here = each[(each["grade"] == grade) & (each["layer"] == 1) & (each["unit"] == "post")]
        mean = np.stack(here["conductance"].to_list()).mean(0)
        np.testing.assert_allclose(own.loc[[f"n1.{k}" for k in range(c.d_mlp)], "estimate"], mean, atol=1e-5)
        assert (own["low"] <= own["estimate"] + 1e-9).all() and (own["estimate"] <= own["high"] + 1e-9).all()
        for kind, n in (("neuron", c.n_layers * c.d_mlp), ("head", c.n_layers * c.n_heads)):
            ranked = own[own["kind"] == kind].sort_values("rank")
            assert ranked["rank"].tolist() == list(range(1, n + 1)) and ranked["estimate"].is_monotonic_decreasing
    assert len(unconverged(rows)) == 0 and len(rows[rows["kind"] == "pair"]) == len(kept)
    few = unit_rows(tiny, kept[:2], way=Way(steps=1, max_steps=1, tol=1e-9))
    assert len(unconverged(few)) == 2


def test_a_collection_needs_both_labels(tiny: HookedEncoder) -> None:
    pairs = collections([f"in:{TOY}"]).pairs(limit_queries=3)
    for part, said in (
        ([pair for pair in pairs if pair.grade and pair.grade >= 2], "a document that is not relevant"),
        ([pair for pair in pairs if not pair.grade], "a document of grade 2 or more"),
    ):
        with pytest.raises(
            MechirError, match=rf"No pair of '{TOY.name}' has {said}: take more queries, or set relevant=\."
        ):
            labelled(part, {TOY.name: 2})
    kept = labelled(pairs, {TOY.name: 2}, take=1)
    assert with_both(kept) == kept and with_both(kept[1:]) == kept[2:]
    with pytest.raises(MechirError, match=r"Query '.*' has no pair of the other label, so it has no margin\."):
        against_others(tiny, kept[1:])
