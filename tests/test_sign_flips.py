"""Sign flips of queries: exact on small samples, honest on noise, and all columns together."""

from __future__ import annotations

import itertools

import numpy as np

from mechir.inference import sign_flips


def by_hand(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flips = np.array(list(itertools.product((1, -1), repeat=len(values))))
    t = np.abs(flips @ values) / np.sqrt((values**2).sum(0))
    own = t[0] - 1e-9
    return (t >= own).mean(0), (t.max(1)[:, None] >= own).mean(0)


def test_few_queries_have_all_their_flips() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, (8, 5))
    p, corrected = by_hand(values)
    tests = sign_flips(values)
    np.testing.assert_allclose(tests.p, p)
    np.testing.assert_allclose(tests.p_corrected, corrected)


def test_many_columns_are_taken_in_parts() -> None:
    values = np.random.default_rng(1).normal(size=(8, 4100))
    np.testing.assert_allclose(sign_flips(values).p_corrected, by_hand(values)[1])


def test_noise_is_rejected_as_often_as_the_level_says() -> None:
    generator = np.random.default_rng(2)
    rejected = [(sign_flips(generator.normal(size=(20, 40)), seed=i).p_corrected < 0.05).any() for i in range(300)]
    assert 0.02 <= np.mean(rejected) <= 0.085


def test_an_effect_among_ten_thousand_columns_is_seen() -> None:
    values = np.random.default_rng(3).normal(size=(40, 10_000))
    values[:, 7] += 2
    assert sign_flips(values).p_corrected.argmin() == 7
    assert sign_flips(values).p_corrected[7] < 0.01


def test_columns_of_zeros_and_few_queries() -> None:
    values = np.random.default_rng(4).normal(3, 1, (10, 3))
    values[:, 1] = 0
    assert sign_flips(values).p_corrected[1] == 1
    assert sign_flips(values).p[1] == 1
    assert np.isnan(sign_flips(values[:5]).p).all()
