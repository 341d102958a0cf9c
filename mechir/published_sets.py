"""The diagnostic sets that the papers' authors published, read from their files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mechir import diagnostics as axioms
from mechir.errors import MechirError
from mechir.pairs import Pair
from mechir.perturbed import Diagnostic, perturbed


def _lines(folder: Path, name: str, header: bool = True) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file; without a header its columns are `qid` and `text`."""
    names = None if header else ["qid", "text"]
    with _file(folder, name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, names, delimiter="\t" if name.endswith("tsv") else ","))


def _file(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(name))
    if not found:
        raise MechirError(f"'{folder}' holds no '{name}': give the directory of the published files.")
    if len(found) > 1:
        raise MechirError(
            f"'{folder}' holds several '{name}' ({found[0].name}, {found[1].name}, ...): leave one there."
        )
    return found[0]


def _chen(folder: Path) -> list[Pair]:
    """The 10,000 passages of Chen et al. 2024: 100 queries x 100, without the filler that each begins with."""
    queries = {row["qid"]: row["text"] for row in _lines(folder, "tfc1_add_qids_with_text.csv", header=False)}
    corpus = json.loads(_file(folder, "tfc1_add_baseline_final_dd_corpus.json").read_text(encoding="utf-8"))["corpus"]
    return [
        Pair(queries[query_id], entry["text"].removeprefix("a "), query_id, doc_id)
        for query_id, documents in corpus.items()
        for doc_id, entry in documents.items()
    ]


def _chosen(folder: Path) -> dict[str, dict[str, str]]:
    return {row["qid"]: row for row in _lines(folder, "stmc1_qids_perturbation.csv")}


def _chen_tfc1(where: str) -> Callable[[Path], Diagnostic]:
    def read(folder: Path) -> Diagnostic:
        term = axioms.Term({query_id: row["term"] for query_id, row in _chosen(folder).items()})
        return perturbed(f"chen2024 tfc1 {where}", _chen(folder), axioms.Tfc1(where, term))

    return read


def _chen_stmc1(folder: Path) -> Diagnostic:
    rows = _chosen(folder)
    term = axioms.Term({query_id: row["term"] for query_id, row in rows.items()})
    table = {row["term"]: row["most_similar_synonym"] for row in rows.values()}
    return perturbed("lu2025 stmc1", _chen(folder), axioms.Stmc1(table, term))


def _mechir(axiom: str) -> Callable[[Path], Diagnostic]:
    def read(folder: Path) -> Diagnostic:
        cases = []
        for row in _lines(folder, f"*{axiom}_topk_4000.tsv"):
            base = Pair(row["query"], row["text"], row["qid"], row["docno"], int(row["relevance"]))
            cases.append((base, replace(base, document=row["perturbed_text"])))
        return Diagnostic(f"parry2025 {axiom.lower()}", tuple(cases))

    return read


def _sentences(row: Mapping[str, str]) -> tuple[str, list[str]]:
    """The term that a generated document repeats, and its sentences."""
    text = row["doc"].strip().strip('"')
    found = axioms.words(text)
    term = max(axioms.words(row["query"]), key=lambda word: (found.count(word), len(word)))
    return term, re.split(r"(?<=[.!?])\s+", text)


def _restored(text: str, term: str, n: int) -> str:
    """The text with all but the first n occurrences of the term replaced by "it"."""
    places = [m.span() for m in re.finditer(rf"\b{re.escape(term)}\b", text, re.IGNORECASE)][n:]
    for start, end in reversed(places):
        text = f"{text[:start]}it{text[end:]}"
    return text


def _generated(folder: Path) -> Iterator[tuple[Pair, str, list[str]]]:
    """One generated document per query, with its term and sentences; those that never name a term are left out."""
    seen: set[str] = set()
    for row in _lines(folder, "tfc2_lnc1_query_answer_injected.csv"):
        term, sentences = _sentences(row)
        if row["qid"] not in seen and term in axioms.words(row["doc"]):
            seen.add(row["qid"])
            yield Pair(row["query"], " ".join(sentences), row["qid"], row["qid"]), term, sentences


def _lu_tfc2(folder: Path) -> Diagnostic:
    """Lu et al.: the k-th of a term's occurrences restored, the later ones "it"; `doc_id` ends in `.k`."""
    cases = []
    for pair, term, _ in _generated(folder):
        for k in range(axioms.words(pair.document).count(term)):
            texts = [_restored(pair.document, term, n) for n in (k, k + 1)]
            named = [replace(pair, document=text, doc_id=f"{pair.query_id}.{k}") for text in texts]
            cases.append((named[0], named[1]))
    return Diagnostic("lu2025 tfc2", tuple(cases))


def _lu_lnc2(folder: Path) -> Diagnostic:
    """Lu et al.: the first sentence, and four sentences of the next query's document with its term made "it"."""
    found = list(_generated(folder))
    cases = []
    for (pair, _, sentences), (other, term, noise) in zip(found, [*found[1:], *found[:1]], strict=True):
        base = replace(pair, document=sentences[0])
        added = _restored(" ".join(noise[:4]), term, 0)
        if other.query_id != pair.query_id:
            cases.append((base, replace(base, document=f"{base.document} {added}")))
    return Diagnostic("lu2025 lnc2", tuple(cases))


def _minimal(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        for line in _file(folder, name).read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _negation(folder: Path) -> Diagnostic:
    """Curated minimal pairs: one document, and the same with the excluded term negated (grade 1)."""
    cases = []
    for entry in _minimal(folder, ["gold_curated.jsonl"]):
        if entry["slice_type"] == "minpairs":
            base = Pair(entry["query"]["base"], entry["doc_neg"]["text"], entry["query_id"], entry["doc_neg"]["doc_id"])
            cases.append((base, replace(base, document=entry["doc_pos"]["text"])))
    return Diagnostic("negation minimal pairs", tuple(cases))


def _negation_query(folder: Path) -> Diagnostic:
    """The query, and the same excluding a term; documents that satisfy the exclusion have grade 1, others 0."""
    cases = []
    for entry in _minimal(folder, ["gold.jsonl"]):
        for grade, which in ((1, "doc_pos"), (0, "doc_neg")):
            document = entry[which]
            base = Pair(entry["query"]["base"], document["text"], entry["query_id"], document["doc_id"], grade)
            cases.append((base, replace(base, query=entry["query"]["neg"])))
    return Diagnostic("negation of the query", tuple(cases))


PUBLISHED: dict[str, Callable[[Path], Diagnostic]] = {
    "tfc1": _chen_tfc1("append"),
    **{f"tfc1-{where}": _chen_tfc1(where) for where in axioms.WHERE[1:]},
    "mechir-tfc1": _mechir("TFC1"),
    "mechir-tdc": _mechir("TDC"),
    "tfc2": _lu_tfc2,
    "lnc2": _lu_lnc2,
    "stmc1": _chen_stmc1,
    "negation": _negation,
    "negation-query": _negation_query,
}
