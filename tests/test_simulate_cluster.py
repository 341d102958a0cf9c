"""The simulation of a cluster: exact where it can be, bounds and the same numbers by seed elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from mechir.work import units
from scripts.simulate_cluster import IDEAL, Case, World, ends, simulate, sized

EQUAL = Case("equal", (10,) * 24, 2.0, size=10)
"""24 units of 20 seconds each."""


@dataclass(frozen=True)
class Item:
    query_id: str


def test_units_are_cut_as_a_run_cuts_them() -> None:
    pairs = (3, 9, 1, 1, 20, 4, 7)
    items = [Item(str(query)) for query, n in enumerate(pairs) for _ in range(n)]
    for size in (1, 5, 12, 100):
        firsts = [int(unit[0].query_id) for unit in units(items, size)]
        assert [0, *ends(pairs, size)] == firsts
    assert ends((20,) * 9, sized(replace(EQUAL, pairs=(20,) * 9), 5).size) == ends((20,) * 9, 5)


def test_one_worker_takes_its_start_and_the_sum() -> None:
    alone = simulate(EQUAL, 1, replace(IDEAL, start=5.0))
    assert alone.makespan == pytest.approx(5 + 480)
    overhead = replace(IDEAL, client=0.5, trip=0.25, operations=2.0, latency=0.125, begin=0.1, chance=0.2, summary=0.3)
    case = replace(EQUAL, writing=0.5, names=2)
    task = 0.5 + 0.25 + 2 * 0.125
    wanted = (24 + 2) * task + 480 + 24 * 0.5 + 240 * (0.1 + 0.2) + 24 * 2 * 0.3
    assert simulate(case, 1, overhead).makespan == pytest.approx(wanted)


def test_equal_units_scale_perfectly_where_nothing_else_costs_time() -> None:
    for workers in (1, 2, 8, 24):
        outcome = simulate(EQUAL, workers, IDEAL)
        assert outcome.makespan == pytest.approx(480 / workers) and outcome.efficiency == pytest.approx(1)
    assert simulate(EQUAL, 48, IDEAL).makespan == pytest.approx(20)  # half of the workers have nothing to do
    ten = replace(EQUAL, runs=10)
    assert simulate(ten, 10, IDEAL).makespan == pytest.approx(480)


def test_a_long_unit_bounds_the_time() -> None:
    case = replace(EQUAL, pairs=(10,) * 9 + (500,))
    assert simulate(case, 100, IDEAL).makespan == pytest.approx(1000)


def test_what_serves_one_after_the_other_bounds_the_time() -> None:
    assert simulate(EQUAL, 24, replace(IDEAL, client=1.0)).makespan == pytest.approx(1 + 24 + 20 + 1)
    assert simulate(EQUAL, 24, replace(IDEAL, operations=3.0, rate=3.0)).makespan == pytest.approx(1 + 20 + 24 + 1)
    # one worker more every 2 s, and the first come back after 20: the last of 24 units begins after 34
    assert simulate(EQUAL, 24, replace(IDEAL, asked=6.0, rate=3.0)).makespan == pytest.approx(34 + 20)


def test_a_worker_that_ends_loses_the_unit_in_work_alone() -> None:
    outcome = simulate(EQUAL, 1, replace(IDEAL, start=5.0, walltime=50.0))  # each job: start, 2 units, 5 seconds lost
    assert outcome.makespan == pytest.approx(11 * 50 + 5 + 40)
    assert outcome.lost == pytest.approx(11 * 5 / 480)
    often = simulate(EQUAL, 3, replace(IDEAL, preempted=60.0), seed=1)
    assert often.lost > 0 and often.makespan > 480 / 3 and often.makespan * 3 >= 480 * (1 + often.lost)


def test_a_unit_longer_than_the_walltime_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^A unit takes longer than the walltime\.$"):
        simulate(EQUAL, 1, replace(IDEAL, walltime=20.0))


def test_the_seed_decides_and_efficiency_is_at_most_one() -> None:
    case = replace(EQUAL, runs=3, names=2)
    for workers in (1, 2, 7, 50):
        first, again, other = (simulate(case, workers, World(), seed) for seed in (0, 0, 1))
        assert first == again and first != other
        assert 0 < first.efficiency <= 1 and other.efficiency <= 1
