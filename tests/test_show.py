"""What values print in a terminal and draw in a notebook; texts of collections never become markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pandas as pd
import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.tokens import token_attribution
from mechir.methods.walk import Way
from mechir.registry.entries import record
from mechir.registry.findings import COLUMNS
from mechir.registry.runs import Run
from mechir.views.pictures import Picture
from tests.models import PAIRS, TOY_MODEL
from tests.test_findings import frame
from tests.test_links import PATCHING, SURE, one, row, tell

EVIL = "</script><img src=x onerror=alert(1)>\x1b[31m"


def test_a_pair_shows_its_beginning() -> None:
    pair = mi.Pair("rare words", f"{EVIL} {'long ' * 50}", "q1", "d2", 3)
    assert len(repr(pair)) < 200 and repr(pair).startswith("Pair('q1', 'd2', grade 3: 'rare words' | '</script><img")
    assert "\x1b" not in repr(pair) and repr(pair).endswith("\u2026')")
    assert repr([mi.Pair("a", "b")]) == "[Pair('q', 'd', grade None: 'a' | 'b')]"


def test_a_contrast_shows_what_differs(tiny: HookedEncoder) -> None:
    pair = mi.Pair("rare words", "one two three four five six", "q1", "d2", 3)
    added = mi.Contrast(
        replace(pair, document=f"{pair.document} a"), replace(pair, document=f"{pair.document} rare"), "a"
    )
    assert (
        repr(added)
        == "Contrast('q1', 'd2', grade 3: 'three four five six a' -> 'three four five six rare', filler 'a')"
    )
    swapped = mi.Contrast(pair, replace(pair, query="rare things"))
    assert repr(swapped) == "Contrast('q1', 'd2', grade 3: 'rare words' -> 'rare things', filler '')"
    long = mi.Contrast(replace(pair, document="x" * 500), replace(pair, document=EVIL))
    assert len(repr(long)) < 250 and "\x1b" not in repr(long)
    aligned = mi.diagnostic("tfc1", limit_queries=1, per_grade=1).align(mi.load(), "a")
    assert repr(aligned) == f"Aligned({len(aligned.contrasts)} contrasts, 0 skipped)"


def test_a_run_shows_what_it_is(tmp_path: Path) -> None:
    run = Run(tmp_path / "ab")
    assert repr(run) == f"Run('{tmp_path / 'ab'}')"
    run.path.mkdir()
    run.write_record({"identity": {"experiment": "a/b", "collection": "c"}, "model": "m", "units": 2})
    assert repr(run) == "Run(ab: a/b, m on c, 0 of 2 units)"


def test_a_dossier_as_html_is_text(tmp_path: Path) -> None:
    record(tmp_path, "aa", frame({"site": "h0.1", "unit": EVIL, "collection": EVIL, "value": 0.123456}))
    shown = mi.dossier("h0.1", registry=tmp_path)._repr_html_()
    assert shown.startswith("h0.1: 1 findings of 1 runs<br>") and "<td>0.123</td>" in shown
    assert "<img" not in shown and "&lt;img" in shown


def test_a_model_shows_its_parity_once_it_is_certified(checkpoints: object, tiny: HookedEncoder) -> None:
    tiny.parity = None
    n = sum(one.numel() for one in tiny.hf.parameters())
    assert f"{n:,} parameters, fingerprint {tiny.fingerprint[:12]})" in repr(tiny)
    found = tiny.certify(PAIRS[:2])
    assert f"scores {found['score_head_row']:.1e} from Hugging Face's)" in repr(tiny)
    tiny.parity = None


@pytest.mark.parametrize(
    "text", ["doc<-query", "doc<-query@0-5", "cls<-query|doc@0,3", "doc<-query@4-4", "doc<-query@h8.1,h8.3"]
)
def test_a_mask_prints_as_it_is_parsed(text: str) -> None:
    assert str(mi.Mask.parse(text)) == text
    assert str(mi.Mask.parse(text, renormalise=True)) == f"{text} renormalised"


def sites(registry: Path) -> pd.DataFrame:
    names = ("h10.2", "h2.3", "doc<-query@0-2", "h1.3->h8.1.q", "", "embed.u3", "mlp3", "h2.3")
    rows = [{"site": site, "value": 8.0 - k, "label": EVIL} for k, site in enumerate(names)]
    record(registry, "aa", frame(*rows))
    return mi.findings(registry=registry)


def test_frames_of_sites_are_sorted_grouped_and_written_by_their_text(tmp_path: Path) -> None:
    found = sites(tmp_path)
    short = found[["site", "value"]]
    order = short.sort_values("site")["site"]
    assert [str(site) for site in order if site is not None] == [
        "doc<-query@0-2", "embed.u3", "h1.3->h8.1.q", "h2.3", "h2.3", "h10.2", "mlp3",
    ]  # fmt: skip
    assert short.sort_values("value")["value"].is_monotonic_increasing
    assert mi.Ablate(short.sort_values("value").iloc[-1]["site"]) == mi.Ablate("h10.2")
    assert short.groupby("site")["value"].mean()["h2.3"] == 4.0
    assert found.pivot_table(index="site", columns="unit", values="value").loc["doc<-query@0-2"].tolist() == [6.0]
    assert short["site"].value_counts()["h2.3"] == 2 and short.set_index("site").index[0] == "h10.2"
    assert "doc<-query@0-2,6.0" in short.to_csv(index=False) and short.to_json().count("h2.3") == 2
    assert "Head(" not in short.T.to_string() and "h10.2" in repr(short.T) and "h10.2" in short.to_html()
    assert short[short["site"] == mi.Head(2, 3)]["value"].tolist() == [7.0, 1.0]
    long = pd.concat([found] * 50, ignore_index=True)
    assert isinstance(long, type(found)) and "18 of 400 rows; and " in repr(long)
    page = long[["site", "value", "label"]]._repr_html_()
    assert page is not None and len(page) < 40_000 and "<img" not in page and "&lt;img" in page


def test_a_frame_shows_the_first_columns_to_look_at_and_names_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one(tmp_path)
    found, links = mi.findings(registry=tmp_path), mi.links(registry=tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    lines, by_links, added = (
        repr(frame).splitlines() for frame in (found, links, found.assign(mine=[3] * 6 + [4] * 6))
    )
    assert all(len(line) <= 100 for line in [*lines, *by_links, *added])
    chosen = repr(found[["site", "parity"]]).splitlines()
    assert lines[0].split() == ["site", "measure", "value", "unit", "p_corrected", "n_queries"]
    assert lines[1].split() == [
        "h0.0",
        "contrast,",
        "query<-doc",
        "0.300",
        "[0.290,",
        "0.310]",
        "attention",
        "0.001",
        "13",
    ]
    assert added[0].split() == ["site", "mine", *lines[0].split()[1:-1]]
    assert lines[-3].startswith("and 24 more columns: role, term, label, sign, ") and lines[-1].endswith(
        "seed, written"
    )
    assert by_links[0].split() == ["site", "exploratory", "effect", "unit", "p_all", "conflicts"]
    assert "flagged by its pattern but causall\u2026" in "".join(by_links)
    assert by_links[-3].startswith("and 21 more columns: model, collection, contrast, ")
    assert chosen[0].split() == ["site", "parity"] and "more columns" not in "".join(chosen)
    assert "<th>p_corrected</th>" in found._repr_html_() and "<p>and 22 more columns: label" in found._repr_html_()
    one(tmp_path, collection="<other>", run="b")
    both = mi.findings(registry=tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    assert repr(both).splitlines()[0].split()[:2] == ["site", "collection"] and "<other>" in repr(both)
    assert "&lt;other&gt;" in both._repr_html_()
    none = both[both["value"] > 2]
    assert repr(none).startswith("no rows; columns: site, measure, ") and "<p>no rows; columns" in none._repr_html_()
    beside = repr(pd.concat([links, links], axis=1))
    assert "more columns" not in beside and "h1.2" in beside
    assert list(both.columns) == list(COLUMNS) and pd.DataFrame(both).shape == (24, 32)


def test_a_map_of_heads_keeps_the_rows_and_columns_without_a_cell(tmp_path: Path) -> None:
    """h5.3 stands in column 3 of row 5, also where nothing stands beside it."""
    few = pd.DataFrame({"site": ["h5.3", "h1.1"], "value": [0.5, -0.2]})
    shown = mi.show.heads(few)
    lines = shown.text.splitlines()[1:]
    assert lines[0].split() == ["head", "0", "1", "2", "3"] and [line[0] for line in lines[2:]] == list("012345")
    assert lines[7].index("0.5") + 2 == lines[0].index("3")
    spec = shown.chart.to_dict()
    scales = {name: spec["layer"][0]["encoding"][name]["scale"]["domain"] for name in ("x", "y")}
    assert scales == {"x": [0, 1, 2, 3], "y": [0, 1, 2, 3, 4, 5]}
    whole = mi.show.heads(few.iloc[1:], model=mi.load(TOY_MODEL))
    assert whole.text.splitlines()[1].split() == ["head", "0", "1", "2", "3"]
    for suffix, begins in ((".svg", b"<svg"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        assert shown.save(tmp_path / f"heads{suffix}").read_bytes().startswith(begins)
    with pytest.raises(MechirError, match=r"Cannot save a chart as '.*heads.gif': write .svg, .png, .pdf"):
        shown.save(tmp_path / "heads.gif")


def test_the_map_of_heads(tmp_path: Path) -> None:
    one(tmp_path)
    shown = mi.show.heads(mi.findings(measure="patching, tfc1, at query|doc", registry=tmp_path))
    assert repr(shown).splitlines()[0] == (
        "patching, tfc1, at query|doc, share of the gap (layer x head; *: it holds (p_corrected < 0.05, and at least what counts))"
    )
    assert shown.text.count("0.9*") == 2 and "\n0      0 " in shown.text
    small = pd.DataFrame({"site": ["h0.0", "h0.1", "h0.2"], "value": [0.2, -0.01234567, -1e-7]})
    assert mi.show.heads(small).text.splitlines()[-1].split() == ["0", "0.2", "-0.012", "0"]
    rows = next(iter(shown.chart.to_dict()["datasets"].values()))
    assert {(row["layer"], row["head"], row["significant"]) for row in rows} == {
        (1, 2, True), (0, 0, False), (3, 1, True),
    }  # fmt: skip
    svg = shown._repr_svg_()
    assert svg.startswith("<svg") and "http://www.w3.org" in svg and "<script" not in svg
    several = mi.show.heads(mi.findings(registry=tmp_path))
    assert len(several.chart.vconcat) == 3 and several.text.count("layer x head") == 3
    tell(tmp_path, "b9", [row(PATCHING, "h2.2", 0.03, SURE), row(PATCHING, "h2.3", 0.06, SURE)])
    small = mi.show.heads(mi.findings(measure="patching, tfc1, at query|doc", registry=tmp_path))
    assert "0.06*" in small.text and "0.03*" not in small.text, "what is smaller than what counts does not hold"
    by_links = mi.show.heads(mi.links(registry=tmp_path), "contrast")
    assert "ring" not in by_links.text and "*" not in by_links.text and "0.3" in by_links.text
    assert "*: it holds (p_all < 0.05)" in mi.show.heads(mi.links(registry=tmp_path)).text
    dossier = mi.dossier("h1.2", registry=tmp_path).findings
    assert "*: it holds" in mi.show.heads(dossier).text
    summary = pd.DataFrame({"site": ["h0.1", "h0.0"], "r": [0.5, -0.5], "r_low": [0.4, -0.6], "r_high": [0.6, 0.1]})
    assert "between" in next(iter(mi.show.heads(summary, "r").chart.to_dict()["datasets"].values()))[0]


def test_texts_in_a_map_of_heads_stay_text() -> None:
    told = pd.DataFrame({"site": ["h0.1"], "value": [0.5], "measure": [EVIL], "unit": ["<b>"]})
    svg = mi.show.heads(told)._repr_svg_()
    assert "<img" not in svg and "&lt;img" in svg


def test_what_is_no_map_of_heads_is_refused(tmp_path: Path) -> None:
    heads = pd.DataFrame({"site": ["h0.1", "h0.1"], "value": [0.5, 0.6], "collection": ["a", "b"], "measure": "m"})
    for given, message in (
        (heads.drop(columns="site"), "There is no column 'site' in this frame: give findings, links"),
        (heads.drop(columns="value"), "There is no column of numbers '' in this frame: it has none"),
        (heads.assign(site="mlp3"), "No head in this frame has a 'value': ask for others"),
        (heads.assign(value=np.nan), "No head in this frame has a 'value'"),
        (heads, "h0.1 has 2 values by 'm': keep one of each head, such as those whose 'collection' is 'a'"),
        (heads.assign(collection="a"), r"h0.1 has 2 values by 'm': keep one of each head\."),
    ):
        with pytest.raises(MechirError, match=message):
            mi.show.heads(given)
    with pytest.raises(MechirError, match="no column of numbers 'valu' in this frame: the closest are 'value'"):
        mi.show.heads(heads, "valu")


def drawn_edges(shown: Picture) -> list[str]:
    """The edges of a picture that its slider lets through, in their order."""
    spec = shown.chart.to_dict()
    many = next(param["value"] for param in spec["params"] if param["name"] == "edges")
    rows = [row for rows in spec["datasets"].values() for row in rows if "edge" in row]
    return [row["edge"] for row in rows if row["rank"] < many]


def test_the_largest_edges_are_drawn_whatever_their_sign() -> None:
    names = [f"h0.{head}->h1.0.{port}" for head in range(20) for port in "qkv"]
    frame = pd.DataFrame({"edge": names, "estimate": [(-1) ** k * (k + 1) / 100 for k in range(60)]})
    shown = mi.show.circuit(frame, 50)
    assert drawn_edges(shown) == names[:9:-1]  # not the 40 at which a slider stands
    lines = repr(shown).splitlines()
    assert lines[0] == "The 50 largest of 60 edges" and lines[2].split() == ["h0.19->h1.0.v", "-0.6000"]
    assert len(drawn_edges(mi.show.circuit(frame))) == 40 and len(lines) == 52
    frame.loc[59, "estimate"] = np.nan  # as edges(only=) leaves those that it does not patch
    assert drawn_edges(mi.show.circuit(frame, 100)) == names[58::-1]
    assert mi.show.circuit(frame, 100).text.startswith("All 59 edges\n")
    svg = shown._repr_svg_()
    assert svg.startswith("<svg") and ">h0.19</text>" in svg and "<script" not in svg


def test_the_circuit_of_a_planted_model_is_drawn_from_its_scores() -> None:
    planted = mi.planted.bm25()
    scores = mi.edges(planted, mi.planted.pairs(planted, n=12))
    shown = mi.show.circuit(scores, 4)
    assert {*drawn_edges(shown)} == {*map(str, mi.planted.truth(planted, "tf").edges)}
    assert "The 4 largest of 479 edges" in shown.chart.to_dict()["title"]["text"]
    assert shown.text == mi.show.circuit(scores.frame, 4).text
    objects = scores.frame.assign(edge=[mi.parse_edge(text) for text in scores.frame["edge"]])
    assert shown.text == mi.show.circuit(objects, 4).text


def test_what_holds_no_effects_of_edges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    edges = pd.DataFrame({"edge": ["h0.1->mlp0", "h0.2->mlp0"], "estimate": [0.5, 0.6]})
    for given, message in (
        (edges.drop(columns="edge"), "There is no column 'edge' in this frame: give one of edges and their estimates."),
        (edges.drop(columns="estimate"), "There is no column 'estimate' in this frame"),
        (edges.assign(estimate="much"), "The column 'estimate' of this frame holds no numbers: give effects."),
        (edges.assign(estimate=np.inf), "The effect of 'h0.1->mlp0' is not finite: leave the edge out."),
        (edges.assign(estimate=1j), "The column 'estimate' of this frame holds complex numbers: give effects, which"),
        (edges.assign(edge=["h0.1->mlp0", "h0.1->mlp0.in"]), "'h0.1->mlp0' has several effects"),
        (edges.assign(estimate=np.nan), "No edge of this frame has an effect: there is nothing to draw."),
        (edges.assign(edge="h0.1->mlp0"), "'h0.1->mlp0' has several effects: keep one row of each edge."),
        (edges.assign(edge=["h0.1->mlp0", "h0.1->h1.0.k+h1.1.k"]), "'h0.1->h1.0.k.h1.1.k' has several readers, and a"),
        (edges.assign(edge=["h0.1->mlp0", "h0.1"]), "Cannot read 'h0.1' as an edge"),
    ):
        with pytest.raises(MechirError, match=message):
            mi.show.circuit(given)
    for size in (0, True, 1.5, "3", None, np.inf):
        with pytest.raises(MechirError, match=r"^size=.* is out of range: write a whole number, 1 or more\.$"):
            mi.show.circuit(edges, size)


def test_roles_of_edges_and_circuits_without_effects_are_refused() -> None:
    planted = mi.planted.bm25()
    roles = mi.edges(planted, mi.planted.pairs(planted, n=4), at="roles", receivers="h1.2.k")
    for given in (roles, roles.plain.circuit(2)):
        with pytest.raises(
            MechirError, match=r"holds no effects of whole edges: give mi\.edges\(\.\.\.\), of roles its \.plain\."
        ):
            mi.show.circuit(given)
    assert len(drawn_edges(mi.show.circuit(roles.plain))) == len(roles.plain)


def test_tokens_by_rows_or_numbers(tiny: HookedEncoder) -> None:
    pairs = [mi.Pair(pair.query, pair.document, f"q{k}", f"d{k}") for k, pair in enumerate(PAIRS[:2])]
    rows = token_attribution(tiny, pairs, way=Way("pad_both", steps=2, tol=np.inf)).rows
    shown = mi.show.tokens(pairs[1], rows)
    assert "q1" in shown.html and "q0" not in shown.html
    own = rows[rows["query_id"] == "q1"]
    numbers = own["attribution"].to_numpy()
    of = "the score of the text less that of its baseline, pad_both, logits"
    assert f"sum: {of}" in shown.html and repr(shown).endswith(f"({of})")
    alone = mi.show.tokens(pairs[1], numbers, model=tiny)
    assert (
        alone.html.replace("of the numbers that were given", of) == shown.html
        and "numbers that were given" in alone.html
    )
    strongest = own.loc[own["attribution"].abs().idxmax()]
    assert repr(shown).startswith(f"pair 'q1/d1': {strongest['token']!r} ({strongest['segment']}) ")
    with pytest.raises(
        MechirError, match=r"no row of pair q0/d0 in this frame: give token_attribution\(model, \[pair\]\)"
    ):
        mi.show.tokens(PAIRS[0], rows.assign(query_id="other"))
    with pytest.raises(MechirError, match="Numbers say nothing of the word pieces that they are of: give model="):
        mi.show.tokens(pairs[1], numbers)
    n = len(numbers)
    with pytest.raises(MechirError, match=rf"pair q1/d1 has {n} word pieces, and you gave {n - 1} numbers"):
        mi.show.tokens(pairs[1], numbers[1:], model=tiny)
    with pytest.raises(MechirError, match="There is no token to colour"):
        mi.show.tokens(pairs[1], rows.iloc[:0])


def test_arguments_of_attend_of_the_wrong_kind_are_refused(
    tiny: HookedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for given in (iter(PAIRS), pd.Series(PAIRS)):
        split = mi.attend(tiny, given, "h1.2")
        assert len(split) == len(PAIRS)
    for top in (None, "x", 1.5, True, 0):
        with pytest.raises(MechirError, match=r"^top=.* is out of range: write a whole number, 1 or more\.$"):
            mi.show.attend(split, top)
    with pytest.raises(MechirError, match=r"^NoneType is no split of an attention score: give mi\.attend\(\.\.\.\)\.$"):
        mi.show.attend(None)
    for head in (None, 5):
        with pytest.raises(MechirError, match=rf"^head={head} is no head: write e\.g\. 'h8\.1'\.$"):
            mi.attend(tiny, PAIRS, head)
    with pytest.raises(MechirError, match=r"^relative='no' is neither: write True or False\.$"):
        mi.attend(tiny, PAIRS, "h1.2", relative="no")
