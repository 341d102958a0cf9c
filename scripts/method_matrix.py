"""Which method takes which reranker: the table of docs/rerankers.md, computed on small random models.

Run: python scripts/method_matrix.py [--check]

Every cell is a run. "exact" says that the method gives what a reference on plain Hugging Face gives
(tests/references_plain.py, tests/references_gradients.py), "wrong" that it does not; anything else is its refusal in
two or three words, whose sentence stands below the table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mechir as mi
from mechir.errors import MechirError
from scripts.docs_markers import cells_of, put
from scripts.small_rerankers import write
from tests.plain import Plain
from tests.references_gradients import ROWS
from tests.references_plain import Case

PAGE = Path(__file__).parent.parent / "docs/rerankers.md"
COLUMNS = {
    "BERT": ("bert", None),
    "BERT by nnsight": ("bert", "nnsight"),
    "ModernBERT": ("modernbert", None),
    "DeBERTa-v2": ("deberta", None),
    "Qwen3, yes/no": ("qwen3", None),
    "Llama, classifier": ("llama", None),
    "T5, true/false": ("t5", None),
}
"""The columns of the table: a structure, and the backend where it is not the default."""
BOUND, LEAST = 1e-4, 1e-3
"""How far a number may be from the reference's, of the largest of them, or of `LEAST` where all are smaller.

Hugging Face's softmax, norms and rotations are in float32.
"""
WORDS = {
    "what a decoder writes": "reads a decoder",
    "a stream that is a sum": "no sum",
    "shows its weights": "needs weights",
    "starts at any layer": "needs restarts",
    "have no cls": "no CLS",
    "a norm of its own": "norm of q, k",
    "attention scores of": "other scores",
    "generated tokens": "reads a decoder",
    "reads only itself and those before it": "causal mask",
}
"""A refusal in two or three words, by what its sentence says."""
WRONG = "wrong"
MARKS = ("matrix", "refusals")
"""The names of the marks between which the tables stand."""


@dataclass(frozen=True)
class Cell:
    """One method on one model: how far its numbers are from the reference's at most, and how large these are; or why.

    `difference` is a share of the largest number of those that are compared together.
    """

    difference: float = 0.0
    largest: float = 0.0
    refusal: str = ""

    @property
    def exact(self) -> bool:
        """Whether the method gives what the reference gives, and that is something."""
        return not self.refusal and self.difference <= BOUND and self.largest > LEAST

    @property
    def short(self) -> str:
        """The cell in two or three words; raises for a refusal that `WORDS` does not know."""
        if not self.refusal:
            return "exact" if self.exact else WRONG
        found = [words for says, words in WORDS.items() if says in self.refusal]
        if not found:
            raise ValueError(f"Give this refusal two or three words in WORDS: {self.refusal}")
        return found[0]


def pairs() -> list[mi.Pair]:
    """Four documents of a query of the embedded collection, by grade, their first words alone."""
    found = mi.collection("embedded").pairs(limit_queries=1, per_grade=1, easy_negatives=0)
    return [replace(pair, document=" ".join(pair.document.split()[:20])) for pair in found]


def cases(folder: Path) -> dict[str, Case]:
    """The models of the columns, written to a folder."""
    folders, texts = write(folder), pairs()
    plain = {kind: Plain(folders[kind]) for kind in folders}
    return {
        name: Case(mi.load(folders[kind], backend=backend, dtype="float64"), plain[kind], texts)
        for name, (kind, backend) in COLUMNS.items()
    }


def measured(row: Callable[[Case], Any], case: Case) -> Cell:
    """One cell, computed."""
    difference = largest = 0.0
    try:
        for ours, theirs in row(case):
            one, other = (_numbers(values) for values in (ours, theirs))
            if one.shape != other.shape or bool((np.isnan(one) != np.isnan(other)).any()):
                return Cell(difference=np.inf)
            size, apart = (float(np.nanmax(np.abs(x), initial=0.0)) for x in (other, one - other))
            difference, largest = max(difference, apart / max(size, LEAST)), max(largest, size)
    except MechirError as error:
        return Cell(refusal=str(error))
    return Cell(difference, largest)


def _numbers(values: Any) -> np.ndarray:
    return values.detach().numpy().astype(float) if isinstance(values, torch.Tensor) else np.asarray(values, float)


def table(models: dict[str, Case]) -> tuple[list[list[str]], list[list[str]]]:
    """The lines of the table, and of that of its refusals; the number after a refusal is that of its sentence."""
    lines, sentences = [["method", *models]], list[str]()
    for name, row in ROWS.items():
        line = [name]
        for case in models.values():
            cell = measured(row, case)
            text = cell.short
            if cell.refusal:
                sentence = cell.refusal.replace(f"'{case.model.cfg.model_name}'", "this model")
                if sentence not in sentences:
                    sentences.append(sentence)
                text = f"{text} ({sentences.index(sentence) + 1})"
            line.append(text)
        lines.append(line)
    return lines, [["", "sentence"], *([str(k), sentence] for k, sentence in enumerate(sentences, 1))]


def written() -> tuple[list[list[str]], ...]:
    """The two tables as the page has them."""
    text = PAGE.read_text(encoding="utf-8")
    parts = (text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0] for name in MARKS)
    rows = ([cells_of(line) for line in part.splitlines() if line.startswith("|")] for part in parts)
    return tuple([line for k, line in enumerate(lines) if k != 1] for lines in rows)


def main() -> None:
    """Writes the tables, or says whether they are as they would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing: exit 1 where the tables would change")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        tables = table(cases(Path(folder)))
    if check:
        sys.exit(int(tables != written()))
    for name, lines in zip(MARKS, tables, strict=True):
        put(PAGE, name, lines)


if __name__ == "__main__":
    main()
