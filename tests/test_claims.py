"""What the report claims: only what was measured, and each by the run that it stands on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechir as mi
from mechir.registry.entries import record
from mechir.registry.evidence import held
from mechir.registry.findings import checked
from mechir.registry.links import measured
from mechir.registry.queries import matching
from mechir.registry.runs import Run
from mechir.reporting import figures
from mechir.reporting.report import gathered
from mechir.views import charts
from tests import reports
from tests.reports import stored, verification
from tests.test_links import CONTRAST, EDIT, NOT, OF, PATCHING, PATH, R_IDF, SURE, one, row, tell
from tests.test_report import only, summary, words

TF, IDF = "links of heads to term frequency", "links of directions of the word embeddings to IDF"
NOTHING = "No link was measured yet."


@pytest.mark.parametrize(
    ("rows", "lead"),
    [
        ([], NOTHING),
        ([row(CONTRAST, "h1.2", 0.3, SURE)], f"Measured by half: {TF} (what changing them does is not known)."),
        ([row(PATCHING, "h1.2", 0.3, SURE)], f"Measured by half: {TF} (what they look like is not known)."),
        ([row(CONTRAST, "h1.2", 0.3, SURE), row(PATCHING, "attn1", 0.9, SURE)],  # of no head
         f"Measured by half: {TF} (what changing them does is not known)."),
        ([row(PATH, "h1.2->h3.1.q", 0.3, SURE)], NOTHING),
        ([row(CONTRAST, "h1.2", 0.3, SURE), row(PATCHING, "h1.2", 0.0, NOT)],
         "Exploratory, by no plan: no heads are linked to term frequency."),
        ([row(PATH, "h3.1", 0.9, SURE), row(R_IDF, "embed.u0", 0.9, SURE)],
         f"Exploratory, by no plan: 1 head writes the score. Measured by half: {IDF} (what changing them does is not known)."),
        ([row(R_IDF, "embed.u0", 0.9, SURE), row(EDIT, "embed.u0", 0.9, SURE), row(PATH, "h3.1", 0.0, NOT)],
         "Exploratory, by no plan: 1 direction of the word embeddings is linked to IDF (in the score yes), no heads write the score."),
    ],
)  # fmt: skip
def test_the_headline_says_what_was_measured(tmp_path: Path, rows: list[dict[str, Any]], lead: str) -> None:
    tell(tmp_path, "a1", [{"site": "mlp3", "measure": "m", "value": 0.1, "unit": "u"}, *rows])
    assert words(only(tmp_path)["lead"]) == lead


def test_a_link_of_which_no_looks_were_measured_is_not_denied(tmp_path: Path) -> None:
    tell(tmp_path, "a1", [row(PATCHING, "h1.2", 0.9, SURE)])
    told = summary(only(tmp_path))["Is it term frequency?"]
    assert told.startswith("Which heads match is not known, so none is linked. Run mechir run vast2025/attention_")
    assert "The largest effect is h1.2 0.9" in told and "no head matches" not in told


def test_what_was_measured(tmp_path: Path) -> None:
    one(tmp_path)
    found = held(matching(tmp_path, newest=True))
    both = {"looks": True, "acts": True}
    assert measured(found) == {"tf": both, "idf": both, "scoring": {"acts": True}}
    assert measured(found.iloc[:0]) == {
        "tf": {"looks": False, "acts": False}, "idf": {"looks": False, "acts": False}, "scoring": {"acts": False},
    }  # fmt: skip


def three(registry: Path) -> list[Run]:
    """Three runs of one experiment, the oldest first: the second measured all heads, the last one head only."""
    frame = pd.DataFrame({"rank": "all", "site": ["h0.0", "h1.2"], "x": "x", "value": [0.1, 0.9]})
    made = []
    for k, heads in enumerate((("h0.0", "h1.2"), ("h0.0", "h1.2"), ("h1.2",))):
        told = reports.record("chen2024/head_maps", options={"k": k}, started=f"2026-01-0{k + 1}")
        chart = charts.heatmap(frame, "site", "x", "value", title=f"run {k}")
        run = stored(registry, told, frame, rows=frame, chart=chart)
        os.utime(run.path / "run.json", (k, k))
        rows = [row(PATCHING, head, 0.1 * (k + 1), SURE) for head in heads]
        tell(registry, run.id, rows, written=f"2026-01-0{k + 1}", experiment="chen2024/head_maps")
        made.append(run)
    return made


def test_a_figure_is_of_the_run_that_claims_stand_on(tmp_path: Path) -> None:
    oldest, all_heads, one_head = three(tmp_path)
    section = only(tmp_path)
    assert [one["run"] for one in section["figures"]] == [one_head.id, all_heads.id, oldest.id]
    assert [one["claims"] for one in section["figures"]] == [*[["patching, tfc1, at query|doc"]] * 2, []]
    assert [one["chart"]["title"]["text"] for one in section["figures"]] == ["run 2", "run 1", "run 0"]
    assert section["others"] == []
    stands = {site: [one[-1] for one in told["findings"]] for site, told in section["components"]["sites"].items()}
    assert stands == {"h0.0": [all_heads.id], "h1.2": [one_head.id]}
    (told,) = (one["sentences"] for one in section["answers"] if one["question"] == "Is it term frequency?")
    assert {"run": one_head.id} in [part for sentence in told for part in sentence]


def test_a_pathway_is_named_by_its_run(tmp_path: Path) -> None:
    lost = verification()
    run = stored(tmp_path, reports.record("joint/pathway"), lost, rows=lost)
    one(tmp_path)
    section = only(tmp_path)
    assert {"run": run.id} in section["lead"]
    (told,) = (one["sentences"] for one in section["answers"] if one["question"] == "Does the ranking depend on them?")
    assert {"run": run.id} in told[0]


def test_a_run_on_groups_is_shown_with_each_collection_that_it_speaks_of(tmp_path: Path) -> None:
    frame = verification()
    told = reports.record("a/b", collection="in:c+out:d")
    run = stored(tmp_path, told, frame, rows=frame)
    rows = [row(CONTRAST, "h1.2", 0.3, SURE, collection=name) for name in "cd"]
    record(tmp_path, run.id, checked(pd.DataFrame(rows), OF | {"run_id": run.id, "collection": "in:c+out:d"}))
    shown = {one["collection"]: [figure["run"] for figure in one["figures"]] for one in gathered(tmp_path)["sections"]}
    assert shown == {"in:c+out:d": [run.id], "c": [run.id], "d": [run.id]}


def test_charts_for_which_there_is_no_room_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, all_heads, _ = three(tmp_path)
    monkeypatch.setattr(figures, "CHARTS", int(1.5 * (all_heads.path / "chart.json").stat().st_size))
    first, second, _ = only(tmp_path)["figures"]
    assert first["chart"] and second["chart"] is None
    assert second["note"] == f"Too large for this page: see runs/{all_heads.id}/chart.html in the registry."


def test_findings_of_a_run_that_is_gone_stand_without_a_figure(tmp_path: Path) -> None:
    tell(tmp_path, "a1", [row(CONTRAST, "h1.2", 0.3, SURE)])
    section = only(tmp_path)
    assert section["figures"] == [] and section["components"]["sites"]["h1.2"]["findings"][0][-1] == "a1"
    assert mi.report(registry=tmp_path).is_file()
