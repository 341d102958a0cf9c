"""Schemes: which units are kept, alone and together, how they agree, and random sets like them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mechir.errors import MechirError
from mechir.methods import schemes
from mechir.sites import parse_site

NEURONS = [f"n{layer}.{unit}" for layer in range(2) for unit in range(50)]
HEADS = [f"h{layer}.{head}" for layer in range(2) for head in range(10)]
SIZES = {(layer, kind): n for layer in range(2) for kind, n in (("neuron", 50), ("head", 10))}
GROUPS = {"a": "in", "b": "in", "c": "out"}


def values(seed: int) -> pd.Series:
    rng = np.random.default_rng(seed)
    return pd.Series(rng.normal(size=120), index=[*NEURONS, *HEADS])


def importance() -> pd.DataFrame:
    return pd.DataFrame({one: values(k) for k, one in enumerate("abc")})


def test_neurons_and_heads_are_ranked_apart_unless_joint() -> None:
    found = values(0)
    kept = schemes.top(found, 0.05)
    neurons, heads = found[NEURONS], found[HEADS]
    assert kept == [*neurons.nlargest(5).index, *heads.nlargest(1).index]
    assert schemes.top(found, 0.05, bottom=True) == [*neurons.nsmallest(5).index, *heads.nsmallest(1).index]
    assert schemes.top(found, 0.05, joint=True) == found.nlargest(6).index.tolist()
    assert schemes.top(found, 0.02) == [*neurons.nlargest(2).index]  # two fifths of a head are none
    ties = pd.Series(1.0, index=NEURONS)
    assert schemes.top(ties, 0.03) == NEURONS[:3]


def test_schemes_over_collections() -> None:
    ranked, by_name = schemes.Ranked.of(importance(), GROUPS), {one: values(k) for k, one in enumerate("abc")}
    assert schemes.schemes(GROUPS) == ["a", "b", "c", "I_in", "I_out", "I_all", "F_in", "F_out", "F_all", "out-in"]
    assert schemes.schemes({"a": "in"}) == ["a"]
    assert ranked.units("a", 0.1) == schemes.top(by_name["a"], 0.1)
    both = schemes.top((by_name["a"] + by_name["b"]) / 2, 0.1)
    assert ranked.units("F_in", 0.1) == both
    tops = [set(schemes.top(by_name[one], 0.3)) for one in "abc"]
    assert set(ranked.units("I_all", 0.3)) == tops[0] & tops[1] & tops[2]
    assert set(ranked.units("I_in", 0.3)) == tops[0] & tops[1]
    only = ranked.units("out-in", 0.3)
    assert set(only) == tops[2] - set(ranked.units("F_in", 0.3)) and only


def test_agreement_against_chance() -> None:
    found = schemes.agreement(NEURONS[:10], NEURONS[5:20], 100)
    assert found["shared"] == 5 and found["share"] == 0.5 and found["jaccard"] == 5 / 20
    assert found["expected"] == pytest.approx(0.15) and found["p"] == pytest.approx(0.00755, abs=2e-3)
    rng = np.random.default_rng(0)
    p = [
        schemes.agreement(*(rng.choice(NEURONS, 20, replace=False).tolist() for _ in range(2)), 100)["p"]
        for _ in range(300)
    ]
    assert np.mean(np.array(p) < 0.05) < 0.07
    nothing = schemes.agreement([], [], 100)
    assert np.isnan(nothing["share"]) and np.isnan(nothing["jaccard"])
    places = schemes.by_place(["n0.1", "n0.2", "h1.3"], ["n0.2", "h1.3", "h1.4"], SIZES).set_index(["layer", "kind"])
    assert places.loc[(0, "neuron"), ["first", "second", "shared"]].tolist() == [2, 1, 1]
    assert places.loc[(1, "head"), "jaccard"] == 0.5 and places.loc[(1, "neuron"), "first"] == 0


def test_random_sets_have_the_same_profile_and_none_of_the_chosen() -> None:
    chosen = schemes.top(values(0), 0.1)
    sets, notes = schemes.random_like(chosen, SIZES, 20, seed=3)
    assert notes == [] and len(sets) == 20 and len({tuple(one) for one in sets}) == 20

    def profile(sites: list[str]) -> dict[tuple[int, str], int]:
        return pd.Series([(parse_site(site).layer, schemes.kind(site)) for site in sites]).value_counts().to_dict()

    for one in sets:
        assert profile(one) == profile(chosen) and not set(one) & set(chosen) and len(set(one)) == len(one)
    assert (
        sets == schemes.random_like(chosen, SIZES, 20, seed=3)[0] != schemes.random_like(chosen, SIZES, 20, seed=4)[0]
    )
    most = [f"h0.{head}" for head in range(7)]
    sets, notes = schemes.random_like([*most, "n1.0"], SIZES, 2)
    assert notes == ["layer 0 has 10 heads, too few to draw 7 beside the chosen ones"]
    assert all(len(one) == 8 for one in sets)


def test_unknown_schemes_and_empty_choices_are_refused() -> None:
    for p in (0.0, -1.0, 1.5):
        with pytest.raises(MechirError, match=rf"p={p} is no share of units: write a number above 0 and up to 1"):
            schemes.top(values(0), p)
    with pytest.raises(MechirError, match=r"p=0.001 of 120 units is less than half of one: take a larger share\."):
        schemes.top(values(0), 0.001)
    with pytest.raises(MechirError, match=r"Unknown scheme 'F_ins': the closest are "):
        schemes.Ranked.of(importance(), GROUPS).units("F_ins", 0.1)
