"""Numbers and tables of the documentation: markers read, formatted, and pages rewritten; and the markers that there are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from scripts import docs_frames, docs_made, remake_docs
from scripts.docs_markers import (
    Column,
    Condition,
    Wrong,
    number,
    parsed_cell,
    parsed_table,
    rewritten,
    runs_of,
)
from scripts.docs_runs import COMMANDS, FRAMES, RUNS, SCRIPTS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
HEADS = pd.DataFrame(
    {
        "site": ["h1.1", "h2.9", "h1.1", "h2.9"],
        "contrast": ["relevant - weak", "relevant - weak", "hard - weak", "hard - weak"],
        "estimate": [0.3567, 0.1, -0.02, 0.0004],
        "low": [0.324, 0.05, -0.03, -0.001],
        "high": [0.39, 0.2, -0.01, 0.002],
        "p_corrected": [0.000001, 0.0131, 1.0, float("nan")],
        "queries": [20, 20, 1900, 1900],
        "rank": pd.array([1, 2, 1, 2], dtype="Int64"),
    }
)
OF = {
    "attention_contrast": HEADS,
    "attention_contrast.record": HEADS[:1],
    "soft_tf": pd.DataFrame({"site": ["h2.9", "h1.1"], "k1": [1000.0, 0.0857]}),
}


def number_of(spec: str, old: str = ".1") -> str:
    """What `<!-- n SPEC -->old` becomes."""
    found = re.fullmatch(
        r"is <!-- n (.*) -->(.*)<!-- /n -->\.", rewritten(f"is <!-- n {spec} -->{old}<!-- /n -->.", OF)
    )
    assert found and found[1] == spec
    return found[2]


def test_a_marker_is_read() -> None:
    cell = parsed_cell(
        'attention_contrast: direction=query<-doc contrast="relevant - weak" rank<=10: estimate/2 low high*'
    )
    assert cell.run == "attention_contrast"
    assert cell.conditions == (
        Condition("direction", "=", "query<-doc"), Condition("contrast", "=", "relevant - weak"), Condition("rank", "<=", "10"),
    )  # fmt: skip
    assert cell.columns == (Column("estimate", "2", False), Column("low", "2", False), Column("high", "2", True))
    assert (
        parsed_cell(r'layer_sweep-dl19: name="cls<-query\|doc@0-5": ndcg').conditions[0].value == "cls<-query|doc@0-5"
    )
    lines, cells = parsed_table('attention_contrast: rank<=2 | site* | contrast="a | b: c": estimate | soft_tf: k1/g2')
    assert [one.value for one in lines.conditions] == ["2"] and cells[1].conditions[0].value == "a | b: c"
    assert [one.run for one in cells] == ["attention_contrast", "attention_contrast", "soft_tf"]


@pytest.mark.parametrize(
    ("value", "form", "short", "long"),
    [
        (0.3567, "3", ".357", "0.357"), (-0.3567, "2", "-.36", "-0.36"), (1.0, "3", "1.000", "1.000"), (10.05, "1", "10.1", "10.1"),
        (6353, "3", "6,353", "6,353"), (1000.0, "g2", "1,000", "1,000"), (0.0857, "g2", ".086", "0.086"), (3.0, "g2", "3", "3"),
        (0.872, "%", "87", "87"), (0.0131, "p", "= .013", "= 0.013"), (0.00009, "p", "< .0001", "< 0.0001"), (1.0, "p", "= 1", "= 1"),
        (float("nan"), "3", "", ""), (None, "3", "", ""), (pd.NA, "3", "", ""), ("a|b", "3", r"a\|b", r"a\|b"), ("h1", "code", "`h1`", "`h1`"),
        (-0.0004, "3", "-.000", "-0.000"), (-2e-8, "2", ".00", "0.00"), (-2e-8, "9", "-.000000020", "-0.000000020"), ("k1 0.3, b 1, tuned", "c2", "k1 0.3, b 1", "k1 0.3, b 1"), ("one", "c2", "one", "one"),
    ],
)  # fmt: skip
def test_a_value_is_written_as_the_pages_do(value: object, form: str, short: str, long: str) -> None:
    assert (number(value, form), number(value, form, zero=True)) == (short, long)


def test_a_number_is_written_anew() -> None:
    of = 'attention_contrast: site=h1.1 contrast="relevant - weak"'
    assert number_of(f"{of}: estimate low high") == ".357 [.324, .390]"
    assert number_of(f"{of}: estimate/2 low high", "0.2 [0.1, 0.3]") == "0.36 [0.32, 0.39]"
    assert number_of(f"{of}: low high/1") == ".324 to .4"
    assert number_of(f"{of}: p_corrected/p") == "< .0001"
    assert number_of("attention_contrast: rank=1: count") == "2"
    assert number_of("attention_contrast: rank=1 row=2: queries") == "1,900"
    assert number_of("attention_contrast: spearman(estimate,low)/1") == "1.0"
    assert number_of("attention_contrast: site!=h1.1 row=1: estimate") == ".100"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("min(low)/2", "-.03"), ("max(high)/2", ".39"), ("median(queries)/0", "960"), ("mean(queries)/0", "960"),
        ("pearson(estimate,high)/2", ".97"), ("pearson(estimate,estimate)/2", "1.00"), ("shared(estimate,low,2)", "2"), ("shared(estimate,queries,2)", "0"),
        ("shared(low,queries,1)", "0"), ("by_chance(estimate,low,2)", ".167"), ("by_chance(low,queries,1)", "1.000"),
    ],
)  # fmt: skip
def test_what_all_rows_say_together(asked: str, told: str) -> None:
    assert number_of(f"attention_contrast: {asked}") == told


def test_what_is_significant_gets_a_star() -> None:
    of = "attention_contrast: row={}: estimate/2 p_corrected/star"
    assert [number_of(of.format(k)) for k in (1, 2, 3, 4)] == ["**.36***", "**.10***", "-.02", ".00"]
    interval = 'attention_contrast: site=h1.1 contrast="relevant - weak": estimate low high p_corrected/star'
    assert number_of(interval) == "**.357 [.324, .390]***"


TABLE = """<!-- table attention_contrast: contrast="relevant - weak" | site* | estimate low high | contrast="hard - weak": estimate | {last} -->

| head | one | two | three |
|---|---|---|---|
| h1.1 | 0.1 | 0.2 | old |

<!-- /table -->
"""


def test_the_lines_of_a_table_are_written_anew() -> None:
    found = rewritten(TABLE.format(last="soft_tf: k1/g2"), OF).splitlines()
    assert found[2:6] == [
        "| head | one | two | three |",
        "|---|---|---|---|",
        "| h1.1 | 0.357 [0.324, 0.390] | -0.020 | 0.086 |",
        "| h2.9 | 0.100 [0.050, 0.200] | 0.000 | 1,000 |",
    ]
    assert found[6:] == ["", "<!-- /table -->"] and rewritten("\n".join(found), OF) == "\n".join(found)


def test_what_is_of_a_run_that_is_not_there_stays() -> None:
    found = rewritten(TABLE.format(last="idf_edit: estimate"), OF).splitlines()
    assert [line.split(" | ")[-1] for line in found[4:6]] == ["old |", " |"]
    for page in (TABLE.format(last="label"), "a <!-- n attention_contrast: estimate -->.1<!-- /n -->"):
        assert rewritten(page, {}) == page


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing: site=h1.1: estimate", "There is no run 'nothing'"),
        ("attention_contrast: row=1: estimat", "There is no column 'estimat': there are site, contrast"),
        ("attention_contrast: sit=h1.1: estimate", "There is no column 'sit'"),
        ("attention_contrast: site=h9.9: estimate", "'attention_contrast: site=h9.9' chooses 0 rows: it must be one"),
        ("attention_contrast: site=h1.1: estimate", "chooses 2 rows"),
        ("attention_contrast: contrast=relevant - weak: estimate", "in conditions spaces in quotes"),
        ("attention_contrast: site=h1.1: __import__('os')", "Cannot read the column"),
        ("attention_contrast: site=h1.1: a b c d", "is 4 columns"),
        ("attention_contrast: site=h1.1: p_corrected/star", "is 0 columns"),
        ("attention_contrast.record: row=1: nothing(estimate)", "There is no 'nothing' in 'nothing(estimate)': there are mean"),
        ("attention_contrast: max(nothing)", "There is no column 'nothing'"),
    ],
)  # fmt: skip
def test_a_marker_that_says_nothing_is_refused(spec: str, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        number_of(spec)


def test_a_marker_that_is_not_closed_is_refused() -> None:
    for page in (
        "<!-- n soft_tf: k1 -->.1",
        "<!-- n soft_tf: k1 -->.1\n<!-- /n -->",
        TABLE.format(last="site").replace("\n\n", "\n"),
    ):
        with pytest.raises(Wrong, match="A marker is not closed"):
            rewritten(page, OF)
    with pytest.raises(Wrong, match="has 5 cells, and its header 4"):
        rewritten(TABLE.format(last="site | site"), OF)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_marker_of_the_pages_is_read_and_names_a_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(runs_of(text)) <= RUNS.keys() | FRAMES.keys()
    assert not re.search(r"^\s*<!-- /?n ", text, re.MULTILINE), "a comment that begins a line ends the paragraph"


def test_every_run_and_frame_is_on_a_page_or_draws_a_figure() -> None:
    named = {name for page in PAGES for name in runs_of(page.read_text(encoding="utf-8"))}
    figures = {file.stem for file in (ROOT / "docs" / "figures").glob("*.png")}
    assert RUNS.keys() <= named | figures and FRAMES.keys() <= named and figures <= COMMANDS.keys()
    assert all((ROOT / "scripts" / command.split()[0]).is_file() for command in SCRIPTS.values())
    assert all(hasattr(docs_frames, command.split()[0]) for command in FRAMES.values())


def test_without_the_collections_the_command_says_which_numbers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs_made, "MADE", tmp_path / "made.json")
    monkeypatch.delenv(remake_docs.SHARED, raising=False)
    for arguments, code, said in (
        (["--only", "soft_tf-dl19"], 0, "soft_tf-dl19: needs MECHIR_SHARED, its numbers stay as they are\n"),
        (["--only", "default"], 0, "default: needs MECHIR_SHARED, its numbers stay as they are\n"),
        (["--check"], 0, ""),
        (["--only", "nothing"], 2, ""),
    ):
        monkeypatch.setattr(sys, "argv", ["remake_docs.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            remake_docs.main()
        assert str(ended.value.code).startswith(str(code)) and capsys.readouterr().out == said
