"""The tables of methods and of hooks by structure say what there is now, and what is called exact was compared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AttentionMaskInterface

from scripts import method_matrix
from scripts.method_matrix import COLUMNS, WRONG, Cell, measured, table, written
from tests.references_gradients import ROWS
from tests.references_plain import Case

CONCEPTS = Path(__file__).parent.parent / "docs/concepts.md"
MODELS = {
    "own": ("BERT",),
    "BERT": ("BERT by nnsight",),
    "ModernBERT": ("ModernBERT",),
    "DeBERTa": ("DeBERTa-v2",),
    "decoders": ("Qwen3, yes/no", "Llama, classifier"),
    "T5": ("T5, true/false",),
}
"""The models of each column of the table of hooks."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return method_matrix.cases(tmp_path_factory.mktemp("rerankers"))


def test_the_page_says_of_every_method_and_structure_what_happens_now(models: dict[str, Case]) -> None:
    assert table(models) == written()


def test_no_method_gives_other_numbers_than_the_reference() -> None:
    assert not [line[0] for line in written()[0] if WRONG in line]


def test_every_refusal_is_told_once_and_has_words() -> None:
    lines, sentences = written()
    numbers = {number for line in lines[1:] for cell in line[1:] for number in re.findall(r"\((\d+)\)$", cell)}
    assert numbers == {number for number, _ in sentences[1:]} and len(lines[0]) == 1 + len(COLUMNS)
    assert all(sentence.endswith(".") for _, sentence in sentences[1:])


@pytest.mark.parametrize("name", ["`score`", "`Mask`", "`conductance`"])
def test_a_model_without_its_mask_is_no_more_exact(
    models: dict[str, Case], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = models["Qwen3, yes/no"]
    assert measured(ROWS[name], case).exact
    monkeypatch.delitem(AttentionMaskInterface._global_mapping, "mechir")
    assert measured(ROWS[name], case).exact == (name == "`score`"), (
        "where nothing is open, transformers' own mask counts"
    )


def test_nothing_compared_is_nothing_exact() -> None:
    def nothing(case: Any) -> Any:
        yield [0.0, 0.0], [0.0, 0.0]

    def shorter(case: Any) -> Any:
        yield [1.0], [1.0, 1.0]

    empty: Any = None
    assert not measured(nothing, empty).exact and measured(nothing, empty).short == WRONG
    assert not measured(shorter, empty).exact
    assert not Cell(1e-3, 1.0).exact and Cell(1e-5, 1.0).exact


def hook_table() -> dict[str, dict[str, bool]]:
    """By the last part of a hook's name, or `ln1.hook_in` and the like, which columns have an x."""
    page = CONCEPTS.read_text(encoding="utf-8")
    lines = [line for line in page[page.index("| hook |") :].partition("\n\n")[0].splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found: dict[str, dict[str, bool]] = {}
    for cells in rows:
        first, *more = re.findall(r"`([^`]+)`", cells[0])
        above = first.rpartition(".")[0]
        for name in [first, *(f"{above}.{other.rpartition('.')[2]}" for other in more)]:
            found[name] = {column: cells[header.index(column)] == "x" for column in MODELS}
    return found


def test_the_table_of_hooks_says_which_structure_has_which(models: dict[str, Case]) -> None:
    said = hook_table()
    for column, names in MODELS.items():
        for name in names:
            hooks = [hook for hook in models[name].model.hook_dict if not hook.startswith("decoder.")]
            there = {re.sub(r"^blocks\.\d+", "blocks.L", hook) for hook in hooks}
            assert {hook for hook, columns in said.items() if columns[column]} == there, name
