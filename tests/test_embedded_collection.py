"""The collection that ships is what its sources say, and its builder refuses what is not as it claims to be."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.opening import EMBEDDED
from mechir.pair import EASY

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import build_collection as build  # noqa: E402

QUERY = "how to sharpen a kitchen knife"
GOOD = {
    "exact": (3, "To sharpen a knife in the kitchen, hold the blade at twenty degrees to a wet stone and draw it toward you from heel to tip."),
    "paraphrase": (3, "Hold the blade at a low angle against a wet whetstone and draw it along its length, ten strokes a side, until a fine edge forms."),
    "high-tf": (0, "A kitchen with an island suits a family: the kitchen is where guests gather, and a kitchen open to the garden makes the kitchen larger still."),
    "rare-only": (0, "Teachers say that reading aloud helps children to sharpen their memory, and that ten minutes each evening are enough for most of them."),
    "common-only": (0, "The knife that the museum shows was found in a river bed, with a handle of bone and a blade of flint, four thousand years old."),
    "negated": (1, "You should not sharpen a serrated knife at all, say most shops, for the teeth are ground by a machine; leave that work to people who have one."),
    "diluted": (1, " ".join(f"The year was long and full of work, and chapter {word} tells of it in some detail." for word in ["one", "two", "three", "four"]) + " Somebody has to sharpen the tools, it says, and a stone is all that anyone needs for that."),
    "dense": (3, "Sharpen a kitchen knife on a wet stone at twenty degrees, heel to tip, ten strokes a side, then wipe the knife dry."),
}  # fmt: skip


def source(tmp_path: Path, lines: list[str]) -> Path:
    file = tmp_path / "part.txt"
    file.write_text("\n".join([f"? {QUERY}", *lines]) + "\n")
    return file


def said(file: Path) -> str:
    with pytest.raises(SystemExit) as caught:
        build.main([file], None)
    return str(caught.value)


def test_what_ships_is_what_the_sources_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.main(build.SOURCES, tmp_path)
    for name in ("queries.tsv", "docs.tsv", "qrels.txt", "design.tsv"):
        assert (tmp_path / name).read_bytes() == (EMBEDDED / name).read_bytes(), name
    assert re.match(r"\d\d queries, \d{3} passages of 20 to \d\d words; ", capsys.readouterr().out)


def test_its_shape_and_its_default_pool() -> None:
    collection = mi.collection("embedded")
    assert len(collection.queries) >= 40 and len(collection.docs) == 12 * len(collection.queries) >= 480
    for query_id, grades in collection.qrels.items():
        counts = Counter(grades.values())
        assert sum(counts.values()) == 12 and min(counts[3], counts[2], counts[1]) >= 2 and counts[0] >= 4, query_id
    pairs = collection.pairs()
    assert Counter(pair.query_id for pair in pairs) == dict.fromkeys(collection.queries, 32)
    assert sum(pair.grade == EASY for pair in pairs) == 20 * len(collection.queries)
    assert len(collection.pairs(easy_negatives=0)) == len(collection.docs)
    assert {p.grade for p in collection.pairs(top_k=10)} <= {None, 0, 1, 2, 3}
    datasheet = (EMBEDDED / "DATASHEET.md").read_text(encoding="utf-8")
    assert f"{len(collection.queries)} queries and {len(collection.docs)} passages of 20 to 90 words" in datasheet


def test_ids_say_nothing_of_grades() -> None:
    collection = mi.collection("embedded")
    assert all(re.fullmatch(r"p[0-9a-f]{8}", doc_id) for doc_id in collection.docs)
    grades = pd.Series({doc_id: grade for judged in collection.qrels.values() for doc_id, grade in judged.items()})
    order = grades.sort_index().reset_index(drop=True)
    assert abs(order.corr(pd.Series(range(len(order))), method="spearman")) < 0.12


def test_the_design_says_why_each_passage_is_there() -> None:
    design = pd.read_csv(EMBEDDED / "design.tsv", sep="\t").set_index("doc_id")
    collection = mi.collection("embedded")
    assert set(design.index) == set(collection.docs)
    assert set(design.tag) == set(build.GRADES) and design.tag.value_counts().min() >= 20
    assert (design[design.tag == "paraphrase"].query_words == 0).all()
    assert (design[design.tag == "high-tf"].max_tf >= 4).all()
    assert (design[design.tag == "diluted"].words >= 70).all() and (design[design.tag == "dense"].words <= 35).all()
    assert design.words.between(20, 90).all()


def test_good_passages_have_nothing_wrong(tmp_path: Path) -> None:
    (query,) = build.read(source(tmp_path, [f"{grade} {tag} | {text}" for tag, (grade, text) in GOOD.items()]))
    assert query.rarest == "sharpen"
    assert [problem for passage in query.passages for problem in build.wrong_passage(passage, query)] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"3 exact | {GOOD['paraphrase'][1]}", "no exact: lacks kitchen, knife, sharpen"),
        (f"3 paraphrase | {GOOD['exact'][1]}", "no paraphrase: shares sharpen, knife, kitchen"),
        (f"3 paraphrase | {GOOD['paraphrase'][1]} Sharpened well.", "no paraphrase: shares sharpen"),
        (f"0 high-tf | {GOOD['exact'][1]}", "no high-tf: no query word four times"),
        (f"0 rare-only | {GOOD['exact'][1]}", "no rare-only: has {'sharpen': 1, 'knife': 1, 'kitchen': 1}, not 'sharpen' alone"),
        (f"0 common-only | {GOOD['exact'][1]}", "no common-only: has {'sharpen': 1, 'knife': 1, 'kitchen': 1}"),
        (f"1 negated | {GOOD['exact'][1]}", "negation False"),
        (f"1 diluted | {GOOD['exact'][1]}", "no diluted: 26 words, 11.5% of them the query's"),
        (f"3 dense | {GOOD['negated'][1]}", "no dense: 28 words, 7.1% of them the query's"),
        (f"2 high-tf | {GOOD['high-tf'][1]}", "grade 2 for high-tf"),
        ("3 exact | Sharpen a kitchen knife.", "4 words, not 20 to 90"),
        (f"3 exactly | {GOOD['exact'][1]}", "unknown tag 'exactly'"),
        (f"5 exact | {GOOD['exact'][1]}", "neither '? QUERY' nor 'GRADE TAG | TEXT'"),
    ],
)  # fmt: skip
def test_a_false_claim_is_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in said(source(tmp_path, [line]))


def test_a_lopsided_query_and_near_duplicates_are_named(tmp_path: Path) -> None:
    again = GOOD["exact"][1].replace("twenty", "fifteen")
    text = said(source(tmp_path, [f"3 exact | {GOOD['exact'][1]}", f"3 exact | {again}", f"3 exact | {again}"]))
    assert "part.txt:1: 3 passages, not 12" in text
    assert "part.txt:1: grades {3: 3}" in text
    assert "part.txt:1: lacks common-only, high-tf, paraphrase, rare-only" in text
    assert "part.txt:1: only 1 of the 8 tags" in text
    assert "part.txt:2 and part.txt:3: near-duplicates" in text
    assert re.search(r"p[0-9a-f]{8}: twice", text)
    assert text.endswith("problems; nothing was written.")


def test_a_small_collection_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="only 8 queries, not 40"):
        build.main([SCRIPTS / "collection" / "body.txt"], out)
    assert not out.exists()
