"""Runs on a circuit alone: all edges are the base, none the donor, and everything between."""

from __future__ import annotations

import numpy as np
import pytest

import mechir as mi
from mechir import planted
from mechir.circuits import Circuit
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.edge_graph import Graph
from mechir.methods.edges import edges
from mechir.methods.faithfulness import circuit_scores
from mechir.pair import Pair
from tests.models import FAMILIES, Checkpoints
from tests.test_patching import CONTRASTS

BASES = [contrast.base for contrast in CONTRASTS[:4]]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_edges_are_the_base_and_none_the_donor(checkpoints: Checkpoints, family: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    contrasts, whole = CONTRASTS[:4], Circuit(Graph.of(model).edges)
    base, donor = model.score(BASES), model.score([contrast.donor for contrast in contrasts])
    for all_of_it, none in (
        (mi.Only(whole, contrasts), mi.Only([], contrasts)),
        (mi.Without([], contrasts), mi.Without(whole, contrasts)),
    ):
        np.testing.assert_allclose(model.score(BASES, do=all_of_it), base, atol=1e-5)
        np.testing.assert_allclose(model.score(BASES, do=none), donor, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_one_edge_is_the_exact_effect_of_that_edge(checkpoints: Checkpoints, family: str) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    scores = edges(model, CONTRASTS[:4], method="exact")
    for column in range(0, len(scores), max(1, len(scores) // 8)):
        edge = scores.graph.edges[column]
        without = model.score(BASES, do=mi.Without(edge, CONTRASTS[:4]))
        np.testing.assert_allclose(without - model.score(BASES), scores.values[:, column], atol=1e-5)


def test_the_planted_circuit_does_all_of_it() -> None:
    for c, least in ((100.0, 0.999), (3.0, 0.95), (1.0, 0.95)):
        model = planted.bm25(c=c)
        pairs = planted.pairs(model, n=12)
        bases, truth = [base for base, _ in pairs], planted.truth(model, "tf").edges
        base, donor = model.score(bases), model.score([other for _, other in pairs])
        only, without = (model.score(bases, do=do(truth, pairs)) for do in (mi.Only, mi.Without))
        assert float((only - donor).mean() / (base - donor).mean()) > least
        assert abs(float((without - donor).mean() / (base - donor).mean())) < 0.02


def test_a_circuit_in_a_sweep_beside_other_interventions() -> None:
    model = planted.bm25(c=3.0)
    pairs = planted.pairs(model, n=6)
    bases, truth = [base for base, _ in pairs], planted.truth(model, "tf").edges
    do = {"intact": (), "only": mi.Only(truth, pairs), "cut": mi.Mask("doc<-query"), "none": mi.Only([], pairs)}
    rows = mi.sweep(model, bases, do)
    for name, what in do.items():
        np.testing.assert_allclose(rows.loc[rows["name"] == name, "score"], model.score(bases, do=what), atol=1e-5)


def test_many_circuits_share_the_donors_run() -> None:
    model = planted.bm25(c=3.0)
    pairs = planted.pairs(model, n=6)
    bases = [base for base, _ in pairs]
    circuits = {size: edges(model, pairs).circuit(size) for size in (4, 40)}
    for complement, do in ((False, mi.Only), (True, mi.Without)):
        scores = circuit_scores(model, pairs, circuits, complement=complement)
        for size, circuit in circuits.items():
            np.testing.assert_allclose(scores.only[size], model.score(bases, do=do(circuit, pairs)), atol=1e-6)
        np.testing.assert_allclose(scores.base, model.score(bases), atol=1e-6)


def test_a_circuit_prints_compares_and_hashes() -> None:
    model = planted.bm25()
    pairs = planted.pairs(model, n=2)
    assert mi.Only("h3.1->score", pairs) == mi.Only(["h3.1->score"], [mi.Contrast(*pair) for pair in pairs])
    assert hash(mi.Only("h3.1->score", pairs)) == hash(mi.Only("h3.1->score", pairs))
    assert mi.Only("h3.1->score", pairs) != mi.Without("h3.1->score", pairs)
    assert repr(mi.Without("h3.1->score", pairs)) == "Without(Circuit(['h3.1->score']), 2 contrasts)"


def test_what_cannot_be_run_is_refused() -> None:
    model = planted.bm25()
    pairs = planted.pairs(model, n=2)
    base, donor = pairs[0]
    other = Pair(donor.query, " ".join(reversed(donor.document.split())), donor.query_id, donor.doc_id)
    longer = Pair(donor.query, f"{donor.document} spruce", donor.query_id, donor.doc_id)
    with pytest.raises(MechirError, match="Pair q0/q0d0 has two donors: give the contrasts of one filler at a time"):
        mi.Only("h3.1->score", [(base, donor), (base, other)])
    with pytest.raises(MechirError, match="Pair q0/q0d1 is the base of none of the contrasts: score the bases"):
        model.score(pairs[1][0], do=mi.Only("h3.1->score", pairs[:1]))
    with pytest.raises(MechirError, match="Pair q0/q0d0 is not aligned"):
        model.score(base, do=mi.Only("h3.1->score", [(base, longer)]))
    with pytest.raises(MechirError, match=r"'h3.1->mlp1' leads backwards: h3.1 writes after mlp1 reads\."):
        model.score(base, do=mi.Only("h3.1->mlp1", pairs))
    with pytest.raises(
        MechirError, match=r"Layer 8 is out of range in 'blocks.8.attn.hook_z': the model has layers 0-3\."
    ):
        model.score(base, do=mi.Only("h8.1->score", pairs))
    with pytest.raises(MechirError, match="Head 9 is out of range"):
        model.score(base, do=mi.Only("resid0->h1.9.k", pairs))
