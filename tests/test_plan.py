"""What a plan concludes, why it concludes nothing, and that nothing which is run later changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechir as mi
from mechir.inference import holm
from mechir.measures import GAP, LINK_TO
from mechir.registry.findings import checked
from mechir.registry.plan import FAMILY, concluded
from tests.test_links import CONTRAST, EDIT, NOT, OF, PATCHING, PATH, R_IDF, SURE, TURNED, one, row, tell

LINKED = {name: str(LINK_TO(name)) for name in ("tf", "idf", "scoring")}
POSITIVE = {"site": "", "measure": str(GAP("tfc1")), "value": 0.5, "low": 0.4, "high": 0.6, "unit": "logits", "least": 0.2,
            "p": SURE, "p_corrected": SURE, "n_queries": 20, "causal": True}  # fmt: skip


def evidence(gap: dict[str, Any] | None = None, p: float = SURE) -> list[dict[str, Any]]:
    """A head that matches and counts, one that only matches, one that only counts; a path; a vector like IDF."""
    acts = {"least": 0.05, "effect": 0.2, "effect_low": 0.1, "effect_high": 0.3}
    return [
        POSITIVE | (gap or {}),
        *(row(CONTRAST, site, 0.3, p, least=0.02) for site in ("h1.2", "h0.0")),
        row(CONTRAST, "h2.0", 0.3, NOT, least=0.02),
        *(row(PATCHING, site, value, q, **acts) for site, value, q in (("h1.2", 0.4, p), ("h0.0", 0.0, NOT), ("h2.0", 0.4, p))),
        row(PATH, "h3.1", 0.9, p, **acts),
        row(R_IDF, "embed.u0", -0.9, p),
        row(EDIT, "embed.u0", 0.01, NOT, 0.1, least=0.005, run_id="e0"),
        row(TURNED, "embed.u0", 0.4, p, least=0.005, run_id="e0"),
    ]  # fmt: skip


def plan(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return concluded(checked(pd.DataFrame(rows), OF)).set_index(["measure", "site"])


def test_a_head_must_look_and_act_and_a_term_must_raise_the_score() -> None:
    found = plan(evidence())
    linked = found[(found["label"] == "linked")]
    assert set(linked.index) == {(LINKED["tf"], "h1.2"), (LINKED["scoring"], "h3.1"), (LINKED["idf"], "embed.u0")}
    own = found.loc[LINKED["tf"], "h1.2"]
    assert (own["p"], own["p_corrected"], own["value"]) == (SURE, 3 * SURE, 0.4) and own["family"] == FAMILY
    assert (own["effect"], own["effect_low"], own["effect_high"]) == (0.2, 0.1, 0.3)
    assert found.loc[LINKED["tf"], "h0.0"]["label"] == "does not act"
    assert found.loc[LINKED["tf"], "h2.0"]["label"] == "does not match"
    tops = found[found.index.get_level_values("site") == ""]
    assert tops["value"].tolist() == [1, 1, 1] and (tops["label"] == "").all()
    assert tops["p_corrected"].tolist() == holm(tops["p"].to_numpy()).tolist()


def test_the_p_of_a_link_is_the_larger_of_its_parts() -> None:
    rows = evidence()
    rows[1] |= {"p_corrected": 0.012}
    assert plan(rows).loc[LINKED["tf"], "h1.2"]["p_corrected"] == pytest.approx(0.036)
    rows[1] |= {"p_corrected": 0.02}  # below .05, and not below a third of it
    own = plan(rows).loc[LINKED["tf"], "h1.2"]
    assert own["p_corrected"] == pytest.approx(0.06) and own["label"] == "does not match"
    assert plan(evidence({"p": 0.015})).loc[LINKED["scoring"], "h3.1"]["p_corrected"] == pytest.approx(0.045)


@pytest.mark.parametrize(
    ("gap", "why"),
    [
        ({"value": -0.5, "low": -0.6, "high": -0.4},
         "one more occurrence of a query term changes the score by -0.5 [-0.6, -0.4] logits: it lowers it"),
        ({"value": 0.1, "low": -0.1, "high": 0.3},
         "one more occurrence of a query term changes the score by +0.1 [-0.1, 0.3] logits: not told from 0"),
        ({"value": 0.1, "low": 0.05, "high": 0.15},
         "one more occurrence of a query term changes the score by +0.1 [0.05, 0.15] logits: less than the 0.2 that "
         "count beside the spread within queries"),
        ({"p": float("nan"), "n_queries": 4},
         "one more occurrence of a query term changes the score by +0.5 [0.4, 0.6] logits, on 4 queries: too few to "
         "test"),
    ],
)  # fmt: skip
def test_without_a_gap_nothing_is_linked_and_it_says_why(gap: dict[str, Any], why: str) -> None:
    found = plan(evidence(gap))
    assert not (found["label"] == "linked").any() and (found["p_corrected"] == 1).all()
    assert found.loc[LINKED["tf"], ""]["label"] == why == found.loc[LINKED["tf"], "h1.2"]["label"]


def test_what_was_not_measured_is_said() -> None:
    found = plan(evidence()[1:3])
    assert found["label"].tolist() == ["what changing them does was not measured"] * 3
    found = plan(evidence()[1:])
    assert found.loc[LINKED["tf"], ""]["label"] == "the effect of a term on the score was not measured"


@pytest.mark.parametrize("change", [{"value": -0.4}, {"value": 0.04}, {"p_corrected": float("nan")}])
def test_a_wrong_sign_too_little_or_no_test_is_no_evidence(change: dict[str, float]) -> None:
    rows = evidence()
    rows[4] |= change
    assert plan(rows).loc[LINKED["tf"], ""]["value"] == 0
    assert plan(rows).loc[LINKED["tf"], ""]["label"] == "no one of the heads has all that a link needs"


def test_directions_are_paid_for_by_the_vectors_that_are_tried() -> None:
    rows = evidence()
    other = [row(R_IDF, "embed.u1", 0.9, SURE), row(TURNED, "embed.u1", 0.0, NOT, run_id="e1")]
    assert plan(rows + other).loc[LINKED["idf"], "embed.u0"]["p"] == pytest.approx(2 * SURE)


def conclude(registry: Path, run: str, written: str, rows: list[dict[str, Any]]) -> None:
    told = plan(rows).reset_index().to_dict("records")
    tell(registry, run, told, written=written, experiment="joint/pathway")


def links(registry: Path) -> dict[str, tuple[str, str]]:
    table = mi.links(registry=registry)
    return dict(zip(map(str, table["site"]), zip(table["links"], table["exploratory"], strict=True), strict=True))


def test_nothing_that_is_run_later_changes_a_conclusion(tmp_path: Path) -> None:
    conclude(tmp_path, "b1", "2026-01-01", evidence())
    before = {site: planned for site, (planned, _) in links(tmp_path).items()}
    assert before == {"h1.2": "tf", "h3.1": "scoring", "embed.u0": "idf"}
    for k in range(10):  # ten more experiments, some of which say the contrary
        one(tmp_path, p=NOT if k % 2 else SURE, run=f"c{k}")
    after = {site: planned for site, (planned, _) in links(tmp_path).items()}
    assert {site: after[site] for site in before} == before
    conclude(tmp_path, "b2", "2026-01-03", evidence({"value": -0.5, "low": -0.6, "high": -0.4}))
    assert {site: planned for site, (planned, _) in links(tmp_path).items()}.items() >= before.items()
    assert mi.findings(measure=LINKED["tf"], registry=tmp_path)["run_id"].nunique() == 2  # the record shows both


def test_a_plan_that_links_nothing_stands_as_well(tmp_path: Path) -> None:
    conclude(tmp_path, "b1", "2026-01-01", evidence({"value": -0.5, "low": -0.6, "high": -0.4}))
    conclude(tmp_path, "b2", "2026-01-02", evidence())
    one(tmp_path, run="c")
    assert {planned for planned, _ in links(tmp_path).values()} == {""}
    assert links(tmp_path)["h1.2"] == ("", "tf")  # what the other runs say is exploratory
    told = mi.dossier("h1.2", registry=tmp_path)
    assert told.agreements[0].startswith("linked to tf (exploratory), m on c")


def test_the_report_says_what_is_planned_and_what_is_not(tmp_path: Path) -> None:
    from tests.test_report import only, summary, words

    one(tmp_path, run="c")
    conclude(tmp_path, "b1", "2026-01-01", evidence({"value": -0.5, "low": -0.6, "high": -0.4}))
    tell(tmp_path, "a9", [POSITIVE | {"value": -0.5, "low": -0.6, "high": -0.4}])
    section = only(tmp_path)
    told = summary(section)
    assert words(section["lead"]).startswith("No heads are linked to term frequency, no directions")
    assert told["Is it term frequency?"].startswith(
        "One more occurrence of a query term changes the score by \u22120.5 [\u22120.6, \u22120.4] logits, p = 0.001 (20 queries, run a9). "
        "No link holds: one more occurrence of a query term changes the score by -0.5 [-0.6, -0.4] logits: it lowers it."
    )
    assert told["How sure is this?"].startswith("Links to tf, to idf and to the score are what a plan concluded")
