"""Token attributions as coloured text: colours, words, markup and pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.tokens import token_attribution
from mechir.views.tokens import coloured
from tests.test_tokens import FEW, ONCE, frame

EVIL = "\"'><script>alert(1)</script>&amp;"


class Read(HTMLParser):
    """What a browser makes of it: `tags`, and of each piece (word, text, background, ink, tooltip)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.pieces: list[tuple[int, str, str, str, str]] = []
        self.text, self.words, self.inside = "", 0, False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        told = {name: value or "" for name, value in attrs}
        self.words += told.get("class") == "w"
        self.inside = told.get("class", "").split(" ")[0] == "t"
        if self.inside:
            ground, ink = re.findall(r"#\w{6}", told["style"])
            self.pieces.append((self.words, "", ground, ink, told["title"]))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside:
            word, text, *rest = self.pieces[-1]
            self.pieces[-1] = (word, text + data, *rest)


def text_of(rows: pd.DataFrame) -> str:
    """The words of the view, pieces of one word together."""
    words: dict[int, str] = {}
    for word, text, *_ in Read(coloured(rows).html).pieces:
        words[word] = words.get(word, "") + text
    return " ".join(words.values())


def test_colours_tell_sign_and_size() -> None:
    rows = pd.concat([frame([0.0, 4.0, -1.0]), frame([0.0, -0.5, 1.0], doc="e")])
    first, second = Read(coloured(rows).html).pieces[:6], Read(coloured(rows).html).pieces[6:]
    assert [(text, ground) for _, text, ground, *_ in first] == [
        ("[CLS]", "#ffffff"),
        ("wifi", "#b2182b"),
        ("[SEP]", "#ffffff"),
        ("grow", "#92c5de"),
        ("ing", "#fddbc7"),
        ("[SEP]", "#ffffff"),
    ]
    assert [ground for _, _, ground, *_ in second][1] == "#92c5de"  # -0.5 of 1: each pair has a scale of its own
    assert first[1][4] == "+4.00, query, position 1: wifi" and first[3][4] == "\u22122.00, doc, position 3: grow"
    told = Read(coloured(rows).html).text
    assert "\u22124.00 0 +4.00" in told and "\u22121.00 0 +1.00" in told  # the scales
    assert re.search(
        r"cls\s*query\s*sep1\s*doc\s*sep2\s*sum\s*0\+4.00\s*0\s*\u22121.00\s*0\s*\+3.00\s*sum: of the attributions",
        told,
    )


def test_text_can_be_read_on_every_colour() -> None:
    values = np.linspace(-1, 1, 101)
    rows = pd.DataFrame({"query_id": "q", "doc_id": "d", "position": range(101), "token": "x", "segment": "doc"})
    for _, _, ground, ink, _ in Read(coloured(rows.assign(attribution=values)).html).pieces:
        light, dark = sorted((luminance(ground), luminance(ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(colour: str) -> float:
    parts = np.array(list(bytes.fromhex(colour[1:]))) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_small_and_zero_attributions_have_numbers_too() -> None:
    nothing = frame([0.0, 0.0, 0.0]).assign(attribution=0.0)
    assert {ground for _, _, ground, *_ in Read(coloured(nothing).html).pieces} == {"#ffffff"}
    small = nothing.assign(attribution=[0, 2e-7, 0, 0, 0, 0])
    assert Read(coloured(small).html).pieces[1][4] == "+2.00e\u221207, query, position 1: wifi"
    large = nothing.assign(attribution=[0, 1234.5, 0, 0, 0, 0])
    assert Read(coloured(large).html).pieces[1][4].startswith("+1234, query")


@pytest.mark.parametrize(
    ("query", "document", "shown"),
    [
        (["wifi", "##s"], ["grow", "##ing", "##er", "a"], "wifis growinger a"),
        (["##ing"], ["##ing", "##s", "##", "\u0120x"], "ing ings ## \u0120x"),  # a document may begin within a word
        (
            ["where", "\u0120is"],
            ["\u0120Water", "\u0120ca", "f\u00c3\u00a9", "?", "\u010a"],
            "where is Water caf\u00e9?\u2423",
        ),
        (["\u0120\u00c3", "\u00a9"], ["\u0120a"], "\u00c3\u00a9 a"),  # a character in two pieces stays as it is written
        (["\u2581what", "\u2581is"], ["\u2581wa", "ter", "\u2581"], "what is water \u2423"),
    ],
)
def test_pieces_of_a_word_stand_together(query: list[str], document: list[str], shown: str) -> None:
    tokens = ["<s>", *query, "</s>", *document, "</s>"]
    segments = ["cls", *["query"] * len(query), "sep1", *["doc"] * len(document), "sep2"]
    rows = pd.DataFrame({"query_id": "q", "doc_id": "d", "token": tokens, "segment": segments, "attribution": 0.5})
    rows["position"] = range(len(tokens))
    said = text_of(rows)
    assert said.startswith("<s> ") and said.endswith(" </s>")
    assert [word for word in said.split(" ") if word not in ("<s>", "</s>")] == shown.split(" ")
    assert text_of(rows.iloc[::-1]) == said


def test_no_text_is_markup() -> None:
    rows = frame([0.0, 1.0, 1.0], f"q{EVIL}", f"d{EVIL}").assign(token=EVIL)
    page = coloured(rows, title=EVIL)
    read = Read(page.html)
    assert "script" not in read.tags and "<script" not in page.html
    assert {text for _, text, *_ in read.pieces} == {EVIL}  # and yet all of it is shown
    assert {tip.partition(": ")[2] for *_, tip in read.pieces} == {EVIL}
    for shown in (f"q{EVIL}", f"d{EVIL}", EVIL):
        assert shown in read.text


def test_a_notebook_shows_it_in_colours_of_its_own() -> None:
    html = coloured(frame([0.0, 1.0, 1.0]))._repr_html_()
    assert html.startswith('<div class="mechir-tokens" style="background: #fff; color: #1f2328">')
    assert "<html" not in html and "http" not in html
    style = html.partition("<style>")[2].partition("</style>")[0]
    rules = [rule for line in re.findall(r"([^{}]+)\{", style) for rule in line.strip().split(", ")]
    assert len(rules) > 10 and all(rule.startswith(".mechir-tokens") for rule in rules)  # and no other cell changes


def test_a_page_is_whole_and_offline(tmp_path: Path) -> None:
    page = coloured(frame([0.0, 1.0, 1.0]), title=f"{EVIL} \ud800")  # half a surrogate pair, as JSON may hold
    file = page.save(tmp_path / "tokens.html")
    assert file == tmp_path / "tokens.html" and list(tmp_path.iterdir()) == [file]
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.endswith("</html>\n")
    assert "<script" not in text and "http:" not in text and "https:" not in text and "&#55296;" in text
    assert page.save(file) == file  # and again


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    page = coloured(frame([0.0, 1.0, 1.0]))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    for file, reason in (
        (tmp_path / "none" / "tokens.html", "No such file or directory"),
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / "file" / "tokens.html", "Not a directory"),
    ):
        with pytest.raises(MechirError) as error:
            page.save(file)
        assert str(error.value) == f"Cannot write '{file}' ({reason}): give another file to write."
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_what_was_found_can_be_shown(tiny: HookedEncoder) -> None:
    rows = token_attribution(tiny, FEW, way=ONCE).rows
    read = Read(coloured(rows, title="Two pairs").html)
    assert len(read.pieces) == len(rows)
    assert "goldfish grows in the water" in text_of(rows)
