"""The report: what it says in words, what it holds, what it leaves out, and that no text becomes markup."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mechir as mi
from mechir.errors import MechirError
from mechir.registry.runs import runs
from mechir.reporting import components
from mechir.reporting.report import gathered
from mechir.views import page
from tests.models import PAIRS, TOY_MODEL
from tests.reports import EVIL, SEPARATED, looked_at, planted, record, stored, verification
from tests.test_cli import call
from tests.test_links import CONTRAST, NOT, PATCHING, PATH, one, row, tell


def words(sentence: list[str | dict[str, str]]) -> str:
    return "".join(part if isinstance(part, str) else next(iter(part.values())) for part in sentence)


def summary(section: Mapping[str, Any]) -> dict[str, str]:
    return {one["question"]: " ".join(map(words, one["sentences"])) for one in section["answers"]}


def only(registry: Path) -> dict[str, Any]:
    (section,) = gathered(registry)["sections"]
    return dict(section)


def held(file: Path) -> dict[str, Any]:
    """What stands in a page as data."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(encoding="utf-8"))
    return dict(json.loads(text))


def test_the_summary_answers_in_words_with_numbers(tmp_path: Path) -> None:
    planted(tmp_path)
    section = only(tmp_path)
    (pathway,) = (run.id for run in runs(tmp_path) if run.record["identity"]["experiment"] == "joint/pathway")
    assert words(section["lead"]) == (
        "Exploratory, by no plan: 1 head is linked to term frequency, 1 direction of the word embeddings is linked to "
        "IDF (in the score yes), 1 head writes the score. The ranking depends on the heads: linked to tf (10 held-out queries). A term counts "
        f"for less without the heads: linked to tf (run {pathway})."
    )
    told = summary(section)
    assert told["Which heads match?"] == (
        "2 of 3 heads look at the other text more in relevant documents than in weak ones (the contrast holds; 13 "
        "queries). query<-doc (the query looks at the document), 2 heads: h0.0 0.3 [0.29, 0.31], h1.2 0.3 [0.29, 0.31] "
        "(attention, run a1)."
    )
    assert told["Is it term frequency?"].startswith(
        "Yes: 1 head matches and also carries the effect of term frequency on the score (exploratory): h1.2 0.9 [0.89, 0.91] (share of "
        "the gap, run a2). How their attention rises with tf was not measured. Run mechir run lu2025/soft_tf"
    )
    assert told["Is IDF involved?"].startswith("In the score yes (exploratory). Moving a word along it as if")
    assert told["Which heads write the score?"].startswith(
        "1 of 2 heads have a path to the score that holds (exploratory): h3.1 0.9"
    )
    assert told["Does the ranking depend on them?"] == (
        "The ranking depends on the heads: linked to tf (10 held-out queries). A term counts for less without the heads: "
        f"linked to tf (run {pathway}). Each is set beside random sets of as many heads of the same layers; p is over all "
        "of these. linked to tf (h1.2)"
        + "".join(
            f"; by {way}, nDCG@10 0.7 to 0.58 (\u22120.13 [\u22120.2, \u22120.05] beyond random, p = 0.016), effect of a "
            "term 0.5 to 0.38 (\u22120.13 [\u22120.2, \u22120.05] beyond random, p = 0.016)"
            for way in ("zero", "mean")
        )
        + "."
    )
    sure = told["How sure is this?"]
    assert sure.startswith("No plan was tested: every link here is exploratory. Run mechir run joint/pathway")
    assert "times the number of different answers" in sure and "Measured on 13 queries" in sure
    assert told["What disagrees?"].startswith("2 components look the part and no causal measure of them holds: ")


def test_what_was_not_measured_is_said_with_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(tmp_path, "a1", [{"site": "mlp3", "measure": "m", "value": 0.1, "unit": "u"}], "embedded", model="embedded")
    told = summary(only(tmp_path))
    assert list(told) == ["How sure is this?", "What disagrees?", "What was not measured?"], (
        "no headline without an answer"
    )
    assert told["What was not measured?"] == (
        "Which heads match? Run mechir run vast2025/attention_contrast --collection embedded --easy-negatives 10. "
        "Is it term frequency? Run mechir run chen2024/head_maps --diagnostic tfc1 --collection embedded --at 'query|doc'. "
        "Is IDF involved? Run mechir run lu2025/idf_direction --collection embedded. "
        "Which heads write the score? Run mechir run lu2025/head_to_score --diagnostic tfc1 --collection embedded. "
        "How much of the score is it? Run mechir run lu2025/semantic_bm25 --collection embedded. "
        "Does the ranking depend on them? Run mechir run joint/pathway --collection embedded."
    )
    assert told["How sure is this?"] == "No finding here has a test, so nothing holds and nothing is linked."
    assert told["What disagrees?"] == "No conflict among the findings."
    # Every command that it gives can be given.
    for command in re.findall(r"mechir (run .*?)\.(?: |$)", " ".join(told.values())):
        code, out, err = call(capsys, *command.split(), "--help", defaults=True)
        assert code == 0 and out.startswith("Usage: "), err


def test_nothing_that_holds_is_said_to_hold(tmp_path: Path) -> None:
    one(tmp_path, p=NOT)
    told = summary(only(tmp_path))
    assert told["Which heads match?"].startswith(
        "None of 3 heads, as far as can be told: no contrast holds; the surest"
    )
    assert told["Is it term frequency?"].startswith("No link holds: no head matches. The largest effect is h1.2 0.9")
    assert told["Is IDF involved?"].startswith("No singular vector of W_E, the word embeddings, goes with IDF")
    assert told["Which heads write the score?"].startswith(
        "No path from a head to the score holds; the largest is h3.1"
    )
    assert words(only(tmp_path)["lead"]).startswith("Exploratory, by no plan: no heads are linked")


def test_findings_without_a_test_are_not_said_to_fail_it(tmp_path: Path) -> None:
    one(tmp_path, p=NOT)
    few = {"p": float("nan"), "n_queries": 2}
    heads = [row(CONTRAST, "h1.2", 0.2, **few), row(CONTRAST, "h0.0", -0.3, **few)]
    tell(tmp_path, "b1", heads, "few")
    tell(tmp_path, "b2", [row(PATCHING, "h1.2", 0.9, **few)], "few")
    tell(tmp_path, "b3", [row(PATH, "h3.1", 0.9, **few)], "few")
    section = next(section for section in gathered(tmp_path)["sections"] if section["collection"] == "few")
    told = summary(section)
    untested = "(none was tested: 2 queries, a test takes 6)"
    assert told["Which heads match?"] == (
        f"Not known of 2 heads {untested}; the largest contrast is h0.0 \u22120.3 [\u22120.31, \u22120.29] attention "
        "(run b1) by contrast, query<-doc."
    )
    assert told["Is it term frequency?"].startswith(f"No link holds: which heads match is not known {untested}. The")
    assert told["Which heads write the score?"].startswith(f"No path from a head to the score holds {untested}; the")


def test_the_page_holds_findings_links_figures_and_examples(told: Path, tmp_path: Path) -> None:
    file = mi.report(registry=told, out=tmp_path / "page.html")
    data = held(file)
    assert file.stat().st_size < 3_000_000 and [one["collection"] for one in data["sections"]] == ["toy", "c"]
    toy, small = data["sections"]
    drawn = [one["experiment"] for one in toy["figures"]]
    assert drawn == ["vast2025/layer_sweep", "chen2024/head_maps", "joint/examples"]
    assert all(one["chart"] and "usermeta" not in one["chart"] for one in toy["figures"])
    table = toy["figures"][0]["table"]
    assert {"name", "ndcg", "change", "change_low", "change_high"} <= set(table["columns"]) and table["of"] == len(
        table["rows"]
    ) == 6
    assert {"h0.0", "h1.3", "doc<-query@0-0"} <= set(toy["components"]["sites"])
    assert [pair["heads"].keys() for pair in toy["examples"]["pairs"]] == [{"h0.0"}] * 4 + [{"h1.1"}] * 4
    own = small["components"]["sites"]["h1.2"]
    assert own["agreements"][0].startswith(
        "linked to tf (exploratory), m on c: patching, tfc1, at query|doc 0.9 [0.89, 0.91] share of the gap"
    )
    assert small["components"]["sites"]["h0.0"]["conflicts"][0].startswith("flagged by its pattern but causally dead")
    assert [one["why"] for one in small["others"]] == ["not finished: 0 of 1 units"]
    assert [row["site"] for row in small["links"]["rows"]][:2] == ["h1.2", "h3.1"]
    assert {one["name"] for one in small["links"]["columns"]} == {
        "contrast",
        "patching",
        "to_score",
        "r_idf",
        "edit_score",
    }
    assert "k1" in small["links"]["missing"]


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    planted(tmp_path)
    file = mi.report(registry=tmp_path)
    text = re.sub("<script>.*?</script>", "<script></script>", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert file == tmp_path / "report.html" and "<img" not in text and "<script>window" not in text
    assert re.findall(r"<script[^>]*>", text) == ['<script type="application/json" id="data">', "<script>", "<script>"]
    assert text.count("</script>") == 3 and "\u2028" not in text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "unsafe-inline" not in policy[1].partition("script-src")[2]
    assert not re.search(r'(src|href)="(?!#)', text.partition("<script>")[0])
    (section,) = held(file)["sections"]
    assert section["examples"]["pairs"][0]["query_id"] == EVIL
    assert [EVIL, False] in section["examples"]["pairs"][0]["doc"] and [SEPARATED, False] in section["examples"][
        "pairs"
    ][0]["doc"]
    assert [one["chart"]["title"]["text"] for one in section["figures"] if one["chart"]] == [EVIL]


def test_data_is_plain_and_safe() -> None:
    told = page.as_json({"a<b>&": [1.23456789, float("nan"), float("inf"), None, True, 7, pd.NA, "\u2028", "\ud800"]})
    assert told == '{"a\\u003cb\\u003e\\u0026":[1.23457,null,null,null,true,7,"\\u003cNA\\u003e","\\u2028","\\ud800"]}'


def test_a_page_has_no_room_for_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    neurons = [{"site": f"n0.{k}", "measure": "conductance", "value": k * (-1) ** k, "unit": "u"} for k in range(99)]
    edges = [row({"measure": "path", "unit": "u"}, f"h0.{k}->h1.1.v", k, NOT) for k in range(40)]
    tell(tmp_path, "a1", neurons + edges)
    frame = verification()
    run = stored(tmp_path, record("a/b"), frame, rows=frame)
    (run.path / "chart.json").write_text(json.dumps({"description": "x" * 400_000}))
    looks = pd.concat([looked_at(["a"], ["b"], site=f"h0.{k}") for k in range(3)])
    stored(tmp_path, record("joint/examples"), frame, rows=looks)
    monkeypatch.setattr(components, "EXAMPLES", 300)
    section = only(tmp_path)
    assert [one["site"] for one in section["neurons"]] == [f"n0.{k}" for k in range(98, 68, -1)]
    assert sorted(section["components"]["sites"]) == sorted(f"h0.{k}->h1.1.v" for k in range(10, 40))
    assert section["figures"][0]["chart"] is None and section["figures"][0]["note"].startswith(
        "Too large for this page"
    )
    assert section["examples"]["left_out"] == ["h0.2"] and len(section["examples"]["pairs"]) == 2


def test_an_older_run_with_another_label_does_not_count(tmp_path: Path) -> None:
    tell(tmp_path, "a1", [row(CONTRAST, "h1.2", 0.3, 0.001, label="lexical")], written="2026-01-01")
    tell(tmp_path, "b1", [row(CONTRAST, "h1.2", 0.0, NOT, label="undecided")], written="2026-01-02")
    section = only(tmp_path)
    assert [one[1] for one in section["components"]["sites"]["h1.2"]["findings"]] == [0.0]
    assert summary(section)["Which heads match?"].startswith("None of 1 heads")


def test_what_is_no_registry_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MechirError, match="holds no run yet: write `mechir run` first, or give registry=DIR"):
        mi.report(registry=tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MechirError, match="is no registry: it holds no runs"):
        mi.report(registry=tmp_path)
    code, _, err = call(capsys, "report", "--registry", str(tmp_path / "none"))
    assert code == 2 and "holds no run yet" in err and "Traceback" not in err


def test_a_file_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one(tmp_path / "r")
    code, _, err = call(capsys, "report", "--registry", str(tmp_path / "r"), "--out", str(tmp_path / "no" / "a.html"))
    assert (
        code == 2
        and f"Cannot write '{tmp_path / 'no' / 'a.html'}' (No such file or directory): give another file" in err
    )
    with pytest.raises(MechirError, match="Is a directory"):
        mi.report(registry=tmp_path / "r", out=tmp_path)
    with monkeypatch.context() as small:
        small.setattr("mechir.reporting.report.SIZE", 10_000)
        with pytest.raises(MechirError, match=r"would have \d\.\d MB, more than 0: keep models and collections in reg"):
            mi.report(registry=tmp_path / "r", out=tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()
    code, out, _ = call(capsys, "report", "--registry", str(tmp_path / "r"))
    assert code == 0 and out == f"Wrote {tmp_path / 'r' / 'report.html'}\n"
    before = (tmp_path / "r" / "report.html").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MechirError, match="The disk is full"):
        mi.report(registry=tmp_path / "r")
    assert (tmp_path / "r" / "report.html").read_bytes() == before
    assert sorted(file.name for file in (tmp_path / "r").iterdir()) == ["findings", "report.html"]


def test_attention_is_shown_as_text_and_as_a_fragment(tmp_path: Path) -> None:
    model = mi.load(TOY_MODEL)
    shown = mi.show.attention(model, ("how do goldfish grow", "the goldfish grow in a tank"), heads=("h0.1", "h1.2"))
    first, second, third = repr(shown).splitlines()[:3]
    assert first.startswith("h0.1 on q1/d1, score ") and second.startswith("  query<-doc: ") and " \u2192 " in third
    assert second.count("\u2192") == 5
    html = shown._repr_html_()
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', html)
    pair = json.loads(data)
    assert list(pair["heads"]) == ["h0.1", "h1.2"] and pair["query"][2] == ["goldfish", False] and pair["grade"] is None
    assert (
        len(pair["heads"]["h0.1"][0]) == len(pair["query"]) * len(pair["doc"])
        and max(pair["heads"]["h0.1"][0]) <= 10_000
    )
    assert "http" not in html.replace("http-equiv", "")
    page_ = shown.save(tmp_path / "a.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page_ and page_.count("<script") == 2


def test_attention_by_circuitsvis_needs_no_network_and_escapes(tmp_path: Path) -> None:
    pair = mi.Pair("</script><script>1</script>", "a </script> b CircuitsVis.render( ", "q", "d")
    shown = mi.show.attention(mi.load(TOY_MODEL), pair, heads="h0.1", engine="circuitsvis")
    html = shown._repr_html_()
    assert html.count("</script>") == 1 and "unpkg.com" not in html and "AttentionHeads" in html
    assert repr(shown).startswith("h0.1 on q/d")


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    model = mi.load(TOY_MODEL)
    with pytest.raises(MechirError, match=r"mi\.show\.attention draws one pair, and you gave 8: give one of them"):
        mi.show.attention(model, PAIRS, heads="h0.1")
    with pytest.raises(MechirError, match="Unknown engine 'bertviz': write mechir or circuitsvis"):
        mi.show.attention(model, PAIRS[0], heads="h0.1", engine="bertviz")
    with pytest.raises(MechirError, match="There is no head to draw"):
        mi.show.attention(model, PAIRS[0], heads=())
    with pytest.raises(MechirError, match="has no attention: write heads"):
        mi.show.attention(model, PAIRS[0], heads="mlp1")
    shown = mi.show.attention(model, PAIRS[0], heads="h0.1")
    with pytest.raises(MechirError, match="Cannot write"):
        shown.save(tmp_path / "no" / "a.html")
