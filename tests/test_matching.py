"""Attention between query and document by grade: against loops in plain Python, and grades compared head by head."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import mechir as mi
from mechir import encoding, planted
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.inference import grade_contrasts, studentised
from mechir.methods import matching
from mechir.methods.matching import MEASURES, SIDES, attention_by_grade, attention_by_pair, compare_grades
from mechir.segments import FIVE, Segment
from tests.models import PAIRS, Checkpoints

GRADES = {"relevant": 3, "hard": 0, "weak": -1}
KEYS = ["query_id", "grade", "direction", "site"]
BY_GRADE = [mi.Pair(p.query, p.document, p.query_id, p.doc_id, int(i in (4, 5, 6))) for i, p in enumerate(PAIRS)]
"""Queries with one pair of either grade, and one with two of the same."""


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studentised, "RESAMPLES", 500)


def one_head(p: list[list[float]], readers: list[int], sources: list[int], ids: list[int]) -> dict[str, float]:
    """The five measures of one head on one pair, one reader and one source at a time."""
    largest, mass, entropy, identical = [], [], 0.0, 0.0
    for reader in readers:
        weights = [p[reader][source] for source in sources]
        total = sum(weights)
        largest.append(max(weights))
        mass.append(total)
        entropy += total * -sum(w / total * math.log(w / total) for w in weights if w > 0)
        identical += sum(w for w, source in zip(weights, sources, strict=True) if ids[source] == ids[reader])
    return {
        "mean_max": sum(largest) / len(readers),
        "max": max(largest),
        "mass": sum(mass) / len(readers),
        "entropy": entropy / sum(mass),
        "identical": identical / sum(mass),
    }


def by_loops(model: HookedEncoder, pairs: list[mi.Pair], sep2: bool) -> pd.DataFrame:
    """`attention_by_grade`, one pair at a time."""
    rows = []
    for pair in pairs:
        batch = model.batch(pair)
        _, cache = model.run_with_cache(batch, names_filter=lambda name: name.endswith("hook_pattern"))
        ids, key = batch.input_ids[0].tolist(), {"query_id": pair.query_id, "grade": pair.grade}
        at = {part: batch.at(part)[0].nonzero().flatten().tolist() for part in FIVE}
        query, document = at[Segment.QUERY], at[Segment.DOC] + (at[Segment.SEP2] if sep2 else [])
        for layer in range(model.cfg.n_layers):
            heads = cache[f"blocks.{layer}.attn.hook_pattern"][0].double().tolist()
            for side, (readers, sources) in zip(SIDES, ((query, document), (document, query)), strict=True):
                for head, p in enumerate(heads):
                    told = one_head(p, readers, sources, ids)
                    rows.append(key | {"direction": side, "site": f"h{layer}.{head}"} | told)
            for reader in FIVE:
                for source in FIVE:
                    mass = [sum(p[i][j] for j in at[source]) for p in heads for i in at[reader]]
                    told = {"direction": f"{reader}<-{source}", "site": f"attn{layer}"}
                    rows.append(key | told | {"mass": sum(mass) / len(mass)})
    frame = pd.DataFrame(rows)
    counts = frame.groupby(KEYS, sort=False).size().rename("n")
    return frame.groupby(KEYS, sort=False).mean().join(counts)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize(("sep2", "real"), [(False, 0.0), (True, 0.0), (True, 0.9)])
def test_it_equals_loops_over_pairs_readers_and_sources(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, family: str, sep2: bool, real: float
) -> None:
    model = HookedEncoder.from_pretrained(checkpoints.path(family))
    monkeypatch.setattr(encoding, "REAL", real)  # 0: all lengths in one batch
    padded = [not batch.attention_mask.all() for _, batch in model.batches(BY_GRADE)]
    assert padded == [True] if real == 0 else len(padded) > 3
    found = attention_by_grade(model, BY_GRADE, sep2=sep2).set_index(KEYS)
    wanted = by_loops(model, BY_GRADE, sep2).loc[found.index]
    assert len(found) == len(wanted) == 7 * 3 * (2 * 4 + 25) and found["n"].value_counts().to_dict() == {1: 594, 2: 99}
    pd.testing.assert_frame_equal(found, wanted[list(found)], atol=1e-5, rtol=0, check_dtype=False)
    if not sep2:
        return
    # The masses of whole layers keep the separator apart; each reader's are a distribution.
    layers = found[found.index.get_level_values("site").str.startswith("attn")].reset_index()
    sums = layers.groupby(["query_id", "grade", "site", layers["direction"].str.split("<-").str[0]])["mass"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-5)


def test_the_grade_of_one_pair_moves_no_other_group(tiny: HookedEncoder) -> None:
    whole = attention_by_grade(tiny, BY_GRADE).set_index(KEYS)
    chosen = [pair for pair in BY_GRADE if pair.query_id in ("q0", "q2")][::-1]
    part = attention_by_grade(tiny, chosen, progress=False).set_index(KEYS)
    pd.testing.assert_frame_equal(part, whole.loc[part.index], atol=1e-6, check_dtype=False)
    cut = attention_by_grade(tiny, BY_GRADE, max_length=13).set_index(KEYS)
    assert not np.allclose(cut["mass"], whole["mass"], atol=0.01)


def test_pairs_without_grades_are_refused(tiny: HookedEncoder) -> None:
    with pytest.raises(MechirError) as caught:
        attention_by_grade(tiny, [*BY_GRADE, mi.Pair("a", "b")])
    assert str(caught.value) == "Pairs without a grade cannot be contrasted: give judged pairs."


def synthetic(means: dict[str, tuple[float, float, float]], n: int = 16, noise: float = 0.01) -> pd.DataFrame:
    """Rows as of `attention_by_grade`: heads with means for relevant, hard and weak, noise over queries."""
    draw, rows = np.random.default_rng(0), []
    for query in range(n):
        for grade, place in ((3, 0), (0, 1), (-1, 2)):
            for side in SIDES:
                for site, mean in means.items():
                    value = mean[place] + noise * draw.normal()
                    rows.append((f"q{query}", grade, 1, side, site, value, -value))
    return pd.DataFrame(rows, columns=["query_id", "grade", "n", "direction", "site", "mean_max", "mass"])


HEADS = {
    "h0.0": (0.5, 0.4, 0.1),  # the term is enough
    "h0.1": (0.5, 0.1, 0.1),  # the term is not enough
    "h0.2": (0.1, 0.1, 0.1),
    "h0.3": (0.5, 0.5, 0.5),
    "h1.0": (0.5, 0.1, 0.3),  # between: hard is below weak
    "h1.1": (0.1, 0.1, 0.5),  # less where relevant
}


@pytest.mark.usefixtures("few_draws")
def test_heads_are_labelled_by_the_grades_they_separate() -> None:
    found = compare_grades(synthetic(HEADS), GRADES)
    labels = found.drop_duplicates(["direction", "site"]).set_index(["direction", "site"])["label"]
    for side in SIDES:
        assert labels[side].to_dict() == {
            "h0.0": "lexical", "h0.1": "semantic", "h0.2": "undecided", "h0.3": "undecided", "h1.0": "undecided",
            "h1.1": "undecided",
        }  # fmt: skip
    wide = compare_grades(synthetic(HEADS), GRADES, delta=0.25).set_index(["direction", "site"])["label"]
    assert set(wide["query<-doc"]["h1.0"]) == {"semantic"}
    assert (compare_grades(synthetic(HEADS, n=4), GRADES)["label"] == "undecided").all()  # no p below 1/16
    assert found.groupby("contrast", sort=False).ngroups == 3 and (found["queries"] == 16).all()
    turned = compare_grades(synthetic(HEADS), GRADES, measure="mass")
    np.testing.assert_allclose(turned["estimate"], -found["estimate"])
    turned_labels = turned.set_index(["direction", "site"])["label"]
    assert set(turned_labels[turned_labels == "lexical"].index) == {(side, "h1.1") for side in SIDES}


@pytest.mark.parametrize(
    ("p_corrected", "p_equal", "label"),
    [
        ((0.01, 0.01, 0.5), 0.9, "lexical"),
        ((0.01, 0.9, 0.01), 0.01, "semantic"),
        ((0.01, 0.9, 0.01), 0.2, "undecided"),
        ((0.01, 0.9, 0.2), 0.01, "undecided"),  # relevant is not told apart from hard
        ((0.2, 0.9, 0.01), 0.01, "undecided"),
        ((0.01, 0.01, 0.01), 0.01, "lexical"),
    ],
)
def test_a_label_needs_each_of_its_parts(p_corrected: tuple[float, ...], p_equal: float, label: str) -> None:
    contrasts = ["relevant - weak", "hard - weak", "relevant - hard"]
    found = pd.DataFrame({"contrast": contrasts, "p_corrected": p_corrected, "p_equal": p_equal, "estimate": 0.1})
    rows = found.assign(direction=SIDES[0], site="h0.0")
    assert matching._labelled(rows)["label"].tolist() == [label] * 3
    below = matching._labelled(rows.assign(estimate=-0.1))
    assert set(below["label"]) == {"undecided"}


def test_intervals_and_p_values_of_a_comparison() -> None:
    rows, delta = synthetic(HEADS, n=20), 0.012
    found = compare_grades(rows, GRADES, delta=delta)
    assert found["direction"].unique().tolist() == list(SIDES)
    assert ((found["low_all"] < found["low"]) & (found["high"] < found["high_all"])).all()
    assert ((found["low"] < found["estimate"]) & (found["estimate"] < found["high"])).all()
    apart = (found["low_all"] > 0) | (found["high_all"] < 0)
    assert (apart == (found["p_corrected"] < 0.05)).mean() > 0.95
    one = found[(found["direction"] == SIDES[1]) & (found["contrast"] == "hard - weak")].set_index("site")
    values = rows[rows["direction"] == SIDES[1]].pivot(index="query_id", columns=["grade", "site"], values="mean_max")
    p = {}
    for site in HEADS:
        x = (values[0] - values[-1])[site].to_numpy()
        assert one.loc[site, "estimate"] == pytest.approx(x.mean())
        error = x.std(ddof=1) / math.sqrt(20)
        p[site] = max(stats.t.sf((x.mean() + delta) / error, 19), stats.t.cdf((x.mean() - delta) / error, 19))
    ordered, largest = sorted(p, key=lambda site: p[site]), 0.0
    for place, site in enumerate(ordered):  # Holm over the heads
        largest = max(largest, min(1.0, (6 - place) * p[site]))
        assert one.loc[site, "p_equal"] == pytest.approx(largest)
    assert one["p_equal"].min() < 0.5 < one["p_equal"].max()


@pytest.mark.usefixtures("few_draws")
def test_heads_without_any_spread_are_equal_or_not_without_warnings() -> None:
    found = compare_grades(synthetic({"h0.0": (0.0, 0.0, 0.0), "h0.1": (0.3, 0.2, 0.1)}, noise=0.0), GRADES)
    by_site = found.set_index(["site", "contrast", "direction"])
    assert by_site.loc[("h0.0", "hard - weak", SIDES[0]), ["p_equal", "p_corrected", "low_all", "high_all"]].tolist() == [
        0, 1, 0, 0,
    ]  # fmt: skip
    assert by_site.loc[("h0.1", "hard - weak", SIDES[0]), "p_equal"] == 1


@pytest.mark.usefixtures("few_draws")
def test_two_queries_are_compared_and_show_nothing() -> None:
    found = compare_grades(synthetic(HEADS, n=2), GRADES)
    assert found["p_corrected"].isna().all() and found["low_all"].isna().all() and (found["label"] == "undecided").all()


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("hard", [-1, 3])
def test_without_hard_negatives_the_kind_of_match_is_undecided(hard: int) -> None:
    """A grade compared with itself differs by 0 for sure, which would make every lexical head semantic."""
    found = compare_grades(synthetic(HEADS), GRADES | {"hard": hard})
    assert "hard - weak" not in set(found["contrast"]) or hard == 3
    assert (found["label"] == "undecided").all() and (found["estimate"] != 0).all()
    assert found.loc[(found["site"] == "h0.0") & (found["contrast"] == "relevant - weak"), "p_corrected"].max() < 0.05


@pytest.mark.usefixtures("few_draws")
def test_queries_without_both_grades_and_rows_of_layers_do_not_count() -> None:
    rows = synthetic(HEADS, n=8)
    lacking = rows[~((rows["query_id"] == "q3") & (rows["grade"] == 0))]
    layers = rows.assign(site="attn0")
    found = compare_grades(pd.concat([lacking, layers]), GRADES).groupby("contrast")["queries"].unique()
    assert {name: counts.tolist() for name, counts in found.items()} == {
        "hard - weak": [7], "relevant - hard": [7], "relevant - weak": [8],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("n", "dropped", "grades", "options", "message"),
    [
        (4, [], {}, {"measure": "most"}, "Unknown measure 'most': write one of mean_max, max, mass, entropy, identical."),
        (4, [-1], {}, {}, "No pair has the grade -1 (weak): the grades are [0, 3]; add easy_negatives=10."),
        (4, [], {"relevant": 2}, {}, "No pair has the grade 2 (relevant): the grades are [-1, 0, 3]; write relevant= with another."),
        (4, [], {"relevant": -1}, {}, "relevant and weak are both -1: write two grades."),
        (1, [], {}, {}, "Queries with pairs of grade 3 and of grade -1: 1; take 2 or more."),
    ],
)  # fmt: skip
def test_incomparable_grades_are_refused(
    n: int, dropped: list[int], grades: dict[str, int], options: dict[str, str], message: str
) -> None:
    rows = synthetic(HEADS, n=n)
    with pytest.raises(MechirError) as caught:
        compare_grades(rows[~rows["grade"].isin(dropped)], GRADES | grades, **options)
    assert str(caught.value) == message


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("c", [100.0, 3.0, 1.0])
def test_patterns_flag_the_matching_head_and_the_traps_alike(c: float) -> None:
    model = planted.bm25(c=c, seed=3)
    found = compare_grades(attention_by_pair(model, planted.graded(model, 12)), {"relevant": 3, "hard": 0, "weak": 1})
    one = found[(found["direction"] == "query<-doc") & (found["contrast"] == "relevant - weak")].set_index("site")
    alike = {"h0.0", "h1.2", "h2.3"}
    assert set(one["estimate"].nlargest(3).index) == alike
    assert one.loc[list(alike), "estimate"].min() > 2 * one["estimate"].drop(list(alike)).max()
    # The traps are false positives: nothing that reads the score knows of them.
    assert (one.loc[list(alike), "p_corrected"] < 0.05).all() and (one.loc[list(alike), "label"] == "lexical").all()
    assert (one["estimate"].drop(list(alike)) < one.loc["h1.2", "low_all"]).all()


@pytest.mark.usefixtures("few_draws")
def test_meaningless_grades_seldom_differ() -> None:
    """One relevant document to each five weak ones: signs of queries, flipped, reject up to .37 of such families."""
    model = planted.bm25(c=3.0)
    rows = attention_by_pair(model, planted.graded(model, 12, 3))
    rows = rows[(rows["direction"] == SIDES[0]) & rows["doc_id"].notna()]
    wide = rows.pivot(index=["query_id", "doc_id"], columns="site", values="mean_max")
    query, values = wide.index.get_level_values(0).to_numpy(), wide.to_numpy()
    first = np.array([place == 0 or query[place] != query[place - 1] for place in range(len(query))])
    draw, rejected = np.random.default_rng(0), 0
    for seed in range(100):
        dealt = np.concatenate([draw.permutation(first[query == one]) for one in dict.fromkeys(query.tolist())])
        rejected += grade_contrasts(values, query, dealt, seed=seed).estimates.p_corrected.min() < 0.05
    assert rejected <= 10
    as_they_are = compare_grades(rows, {"relevant": 3, "hard": 0, "weak": 1})
    assert as_they_are.loc[as_they_are["contrast"] == "relevant - weak", "p_corrected"].min() < 0.01


def test_means_over_pairs_cannot_be_permuted(tiny: HookedEncoder) -> None:
    pairs = [mi.Pair("a b", f"c {k}", "q", f"d{k}", k % 2) for k in range(4)]
    with pytest.raises(MechirError, match=r"Grades are permuted over pairs, and these rows are means over some: write"):
        compare_grades(attention_by_grade(tiny, pairs), {"relevant": 1, "hard": 0, "weak": 0})


def test_the_measures_are_those_of_the_rows(tiny: HookedEncoder) -> None:
    rows = attention_by_grade(tiny, BY_GRADE)
    assert list(rows) == ["query_id", "grade", "n", "direction", "site", *MEASURES]
    heads = rows[rows["site"].str.startswith("h")]
    assert heads[list(MEASURES)].notna().all(axis=None) and rows["mass"].between(0, 1).all()
    assert (heads["mean_max"] <= heads["max"] + 1e-9).all() and (heads["mean_max"] <= heads["mass"] + 1e-9).all()
    assert rows.loc[~rows.index.isin(heads.index), ["mean_max", "max", "entropy", "identical"]].isna().all(axis=None)
