"""Every bound that a message gives: at the bound it works, one below it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir import diagnostics
from mechir.catalog import load_experiment
from mechir.diagnostic_sets import diagnostic
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.experiment import Inputs
from mechir.material import Pool, material_of, source_of
from mechir.methods import (
    checks,
    importance,
    lens,
    lexical,
    matching,
    patching,
    pruning,
    ranking,
    schemes,
    soft_tf,
    spectra,
)
from mechir.methods.walk import Way
from mechir.pair import Pair, split_queries
from mechir.planted import known
from mechir.work import checked
from tests.models import TOY, TOY_MODEL, nine_queries


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


def pairs(*grades: str) -> list[Pair]:
    """A query for each text, with a pair for each grade in it: "31" has two."""
    return [Pair("a", "b", f"q{k}", f"d{one}", int(one)) for k, text in enumerate(grades) for one in text]


def frame(found: list[Pair]) -> pd.DataFrame:
    return pd.DataFrame([(pair.query_id, pair.grade) for pair in found], columns=["query_id", "grade"])


def attention(queries: int) -> pd.DataFrame:
    """Rows as of `attention_by_grade` for so many queries with both grades."""
    rows = [(f"q{k}", grade, "query<-doc", "h0.0", grade + k / 7) for k in range(queries) for grade in (0, 3)]
    return pd.DataFrame(rows, columns=["query_id", "grade", "direction", "site", "mean_max"])


def scored() -> pd.DataFrame:
    return pd.DataFrame({"query_id": ["q0", "q0"], "doc_id": ["d1", "d0"], "score": [2.0, 1.0]})


GRADES = {"relevant": 3, "hard": 0, "weak": 0}
IDF = {k: 1.0 + k for k in range(10)}
BOUNDS: dict[str, tuple[str, Callable[[int], Any], int]] = {
    "numbers": (r"top=0 is out of range: write 1 or more", lambda n: load_experiment("lu2025/soft_tf").chosen(top=n), 1),
    "numbers of 0": (r"take=-1 is out of range: write 0 or more", lambda n: load_experiment("vast2024/importance").chosen(take=n), 0),
    "queries contrasted": (
        r"grade 3 \(relevant\) and of grade 0 \(weak\): 1 of 1; take 2 or more",
        lambda n: checks.contrasted([{0, 3}] * n, GRADES, f"of {n}"),
        2,
    ),
    "rows contrasted": (r": 1; take 2 or more", lambda n: matching.compare_grades(attention(n), GRADES), 2),
    "two sides": (
        r"3 queries have pairs on both sides of grade 1: a probe needs 4",
        lambda n: lens.both_sides(frame(pairs(*["10"] * n)), 1),
        4,
    ),
    "draws of labels": (
        r"draws=4 is too few for a control: write 5 or more",
        lambda n: lens.both_sides(frame(pairs(*["10"] * 4)), 1, n),
        5,
    ),
    "random sets": (r"draws=19 random sets are too few", lambda n: pruning.refuse({"a": "in"}, ["a"], [0.1], n), 20),
    "term frequencies": (
        r"A saturation curve needs a text with three different term frequencies or more",
        lambda n: soft_tf.saturation(np.arange(6) % n, np.arange(6) / 7, np.array([*"aaabbb"]), np.arange(6) // 3, draws=2),
        3,
    ),
    "queries split": (r"One query cannot both find heads or edges and test them", lambda n: split_queries(pairs(*"1" * n), 3), 2),
    "limit": (
        r"limit_queries=0 asks for nothing: write 1 or more",
        lambda n: mi.collection(TOY).pairs(limit_queries=n),
        1,
    ),
    "easy negatives": (
        r"easy_negatives=-1 asks for nothing: write 0 or more",
        lambda n: mi.collection(TOY).pairs(easy_negatives=n),
        0,
    ),
    "limit of a set": (
        r"per_grade=0 asks for nothing: write 1 or more",
        lambda n: diagnostic("tfc1", TOY, limit_queries=1).limited(per_grade=n),
        1,
    ),
    "occurrences": (r"k=-1 is no number of occurrences: write 0 or more", lambda n: diagnostics.Tfc2(n), 0),
    "repetitions": (r"times=1 repeats nothing: write 2 or more", lambda n: diagnostics.Lnc2(n), 2),
    "vectors": (
        r"vectors=0 is out of range: write 1 or more",
        lambda n: lexical.idf_correlations(mi.load(TOY_MODEL), IDF, vectors=n, draws=1),
        1,
    ),
    "frames": (
        r"draws=0 is out of range: write 1 or more",
        lambda n: spectra.qk_spectra(mi.load(TOY_MODEL), draws=n),
        1,
    ),
    "heads of the largest effect": (
        r"top=0 is out of range: write 1 or more",
        lambda n: patching.largest(pd.DataFrame({"site": ["h0.0"], "query_id": ["q"], "effect": [1.0]}), "site", n),
        1,
    ),
    "delta": (
        r"delta=-1.0 is out of range: write 0 or more",
        lambda n: matching.compare_grades(attention(2), GRADES, delta=float(n)),
        0,
    ),
    "words": (r"words=0 is out of range: write 1 or more", lambda n: list(soft_tf.dosed(pairs("1"), words=n)), 1),
    "pairs of a label": (
        r"take=-1 is out of range: write 0 or more",
        lambda n: importance.labelled([Pair("a", "b", "c::q", "d", grade) for grade in (0, 1)], {"c": 1}, n),
        0,
    ),
    "cutoff": (
        r"k=0 is out of range: write 1 or more",
        lambda n: ranking.ndcg(scored(), frame(pairs("10")).assign(doc_id=["d1", "d0"]), n),
        1,
    ),
    "steps": (r"steps=0 is out of range: write 1 to 512", lambda n: Way(steps=n), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS)
def test_at_the_bound_it_works_and_below_it_is_refused(name: str) -> None:
    message, ask, least = BOUNDS[name]
    ask(least)
    with pytest.raises(MechirError, match=message):
        ask(least - 1)


def test_shares_and_steps_have_an_upper_bound() -> None:
    Way(steps=512)
    with pytest.raises(MechirError, match="steps=513 is out of range: write 1 to 512"):
        Way(steps=513)
    schemes.refuse_share(1.0)
    for p in (0.0, 1.0000001, float("nan")):
        with pytest.raises(MechirError, match="is no share of units: write a number above 0 and up to 1"):
            schemes.refuse_share(p)


def test_correlations_take_ten_pieces(toy: HookedEncoder) -> None:
    assert set(lexical.idf_correlations(toy, IDF, vectors=1, draws=2)["n"]) == {10}
    with pytest.raises(MechirError, match=r"9 word pieces have an IDF above 0: correlations need 10 or more"):
        lexical.idf_correlations(toy, {k: IDF[k] for k in range(9)}, vectors=1, draws=2)


def test_half_of_one_unit_is_the_least_share(toy: HookedEncoder) -> None:
    most = toy.cfg.n_layers * max(toy.cfg.d_mlp, toy.cfg.n_heads)
    pruning.refuse_small(toy, [0.5 / most])
    with pytest.raises(MechirError, match=r"% of \d+ units is less than half of one: take a larger share"):
        pruning.refuse_small(toy, [0.499 / most])
    values = pd.Series(np.arange(10.0), [f"n0.{k}" for k in range(10)])
    assert schemes.top(values, 0.05) == ["n0.9"]
    with pytest.raises(MechirError, match=r"p=0.049 of 10 units is less than half of one"):
        schemes.top(values, 0.049)


def asked(name: str, toy: HookedEncoder, folder: Path, limit: int | None = None, **chosen: Any) -> dict[str, Any]:
    experiment, pool = load_experiment(name).chosen(**chosen), Pool(limit_queries=limit)
    source = source_of(experiment, mi.collection(folder))
    material = material_of(experiment, toy, source, pool).material
    return checked(experiment, Inputs(toy, material, source, pool, folder)).written


CONTRAST = {"weak": 0, "hard": 0}
QUERIES: list[tuple[str, int, dict[str, Any], str]] = [
    (
        "joint/pathway",
        9,
        {},
        r"8 judged queries cannot both link heads and test them: a test needs 6 or more, so take 9 or more",
    ),
    ("lu2025/semantic_bm25", 3, {}, r"2 queries cannot be fitted and tested on: take 3 or more"),
    ("vast2025/qk_svd", 2, CONTRAST, r"grade 3 \(relevant\) and of grade 0 \(weak\): 1 of 1; take 2 or more"),
    (
        "vast2025/attention_contrast",
        2,
        CONTRAST,
        r"grade 3 \(relevant\) and of grade 0 \(weak\): 1 of 1; take 2 or more",
    ),
    ("vast2025/cls_lens", 4, {}, r"3 queries have pairs on both sides of grade 1: a probe needs 4"),
    ("lu2025/soft_tf", 2, {}, r"One query cannot both find heads or edges and test them"),
    ("lu2025/idf_edit", 2, {}, r"One query cannot both find heads or edges and test them"),
]


@pytest.mark.parametrize(("name", "least", "chosen", "message"), QUERIES)
def test_an_experiment_takes_as_many_queries_as_it_says(
    name: str, least: int, chosen: dict[str, Any], message: str, toy: HookedEncoder, tmp_path: Path
) -> None:
    folder = nine_queries(tmp_path / "toy")
    asked(name, toy, folder, least, **chosen)
    with pytest.raises(MechirError, match=message):
        asked(name, toy, folder, least - 1, **chosen)


LEAST = {"top": 1, "draws": 1, "per_query": 1, "words": 1, "vectors": 1, "queries": 1, "k": 1, "seed": 0, "delta": 0}
LEAST |= {"strongest": 0, "others": 0, "take": 0, "every": 1}
OF_EXPERIMENTS = {
    ("vast2025/cls_lens", "draws"): 5,
    ("vast2024/pruning", "draws"): 20,
    ("vast2024/pruning", "every"): 2,
    ("vast2025/qk_projection", "take"): 1,
}
NUMBERS = [
    (name, option)
    for name in ("joint/across", "joint/across_models", "joint/examples", "joint/overlap", "joint/pathway", "lu2025/idf_direction",
                 "lu2025/idf_edit", "lu2025/semantic_bm25", "lu2025/soft_tf", "vast2024/importance",
                 "vast2024/matching_heads", "vast2024/pruning", "vast2025/attention_contrast", "vast2025/cls_lens",
                 "vast2025/qk_projection")
    for option in load_experiment(name).options()
    if option in LEAST
]  # fmt: skip


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_the_least_number_of_an_option_works(name: str, option: str, toy: HookedEncoder, tmp_path: Path) -> None:
    folder, least = nine_queries(tmp_path / "toy"), OF_EXPERIMENTS.get((name, option), LEAST[option])
    more = {
        "vast2025/attention_contrast": CONTRAST,
        "vast2024/pruning": {"grid": "10"},
        "lu2025/idf_edit": {"heads": "h0.1"},
    }
    chosen = more.get(name, {})
    assert asked(name, toy, folder, **chosen | {option: least})[option] == least
    with pytest.raises(MechirError, match=rf"{option.replace('_', '.')}\b.*\b{least}\b"):
        asked(name, toy, folder, **chosen | {option: least - 1})


def test_a_head_has_as_many_directions_as_it_says(toy: HookedEncoder, tmp_path: Path) -> None:
    folder, last = nine_queries(tmp_path / "toy"), toy.cfg.d_head
    asked("vast2025/qk_projection", toy, folder, k=last)
    with pytest.raises(
        MechirError, match=f"k={last + 1} is out of range: a head of this model has 1-{last} directions"
    ):
        asked("vast2025/qk_projection", toy, folder, k=last + 1)
    last = min(toy.W_E.shape) - 1
    asked("lu2025/semantic_bm25", toy, folder, vector=last)
    with pytest.raises(MechirError, match=f"vector={last + 1} is out of range: write 0 to {last}, or -1"):
        asked("lu2025/semantic_bm25", toy, folder, vector=last + 1)


def test_samples_of_planted_models_are_one_or_more() -> None:
    model = mi.planted.bm25()
    assert len(known.pairs(model, n=1)) == 1
    with pytest.raises(MechirError, match=r"n=0 asks for nothing: write 1 or more"):
        known.pairs(model, n=0)


def test_a_planted_model_is_as_small_as_it_says() -> None:
    mi.planted.bm25(n_layers=4, n_heads=4, decoy=0.0)
    cases = (
        ({"n_layers": 3}, "4 layers x 4 heads at least"),
        ({"n_heads": 3}, "4 layers x 4 heads at least"),
        ({"decoy": -0.01}, "decoy is a standard deviation: write 0 or more"),
    )
    for chosen, message in cases:
        with pytest.raises(MechirError, match=message):
            mi.planted.bm25(**chosen)  # type: ignore[arg-type]


def test_a_planted_head_is_as_wide_as_it_says() -> None:
    mi.planted.bm25(n_heads=4, d_model=4 * 29)
    with pytest.raises(MechirError, match="a head needs 29 dimensions or more"):
        mi.planted.bm25(n_heads=4, d_model=4 * 28)
