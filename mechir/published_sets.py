"""The diagnostic sets that the papers' authors published, read from their files."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mechir import diagnostics as axioms
from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.perturbed import Diagnostic, perturbed


def _lines(folder: Path, name: str, header: bool = True) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file; without a header its columns are `qid` and `text`."""
    names = None if header else ["qid", "text"]
    with _file(folder, name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, names, delimiter="\t" if name.endswith("tsv") else ","))


def _file(folder: Path, name: str) -> Path:
    files = sorted(folder.glob(name))
    if not files:
        raise MechirError(f"'{folder}' holds no '{name}': give the directory of the published files.")
    if len(files) > 1:
        raise MechirError(
            f"'{folder}' holds several '{name}' ({files[0].name}, {files[1].name}, ...): leave one there."
        )
    return files[0]


def _chen(folder: Path) -> list[Pair]:
    """The 10,000 passages of Chen et al. 2024: 100 queries x 100, without the filler that each begins with."""
    queries = {row["qid"]: row["text"] for row in _lines(folder, "tfc1_add_qids_with_text.csv", header=False)}
    corpus = json.loads(_file(folder, "tfc1_add_baseline_final_dd_corpus.json").read_text(encoding="utf-8"))["corpus"]
    return [
        Pair(queries[query_id], entry["text"].removeprefix("a "), query_id, doc_id)
        for query_id, documents in corpus.items()
        for doc_id, entry in documents.items()
    ]


def _terms(folder: Path) -> tuple[axioms.Term, dict[str, str]]:
    """The term of each query that is edited, and the synonym of each term."""
    rows = {row["qid"]: row for row in _lines(folder, "stmc1_qids_perturbation.csv")}
    synonyms = {row["term"]: row["most_similar_synonym"] for row in rows.values()}
    return axioms.Term({query_id: row["term"] for query_id, row in rows.items()}), synonyms


def _chen_tfc1(where: str, folder: Path) -> Diagnostic:
    term, _ = _terms(folder)
    return perturbed(f"chen2024 tfc1 {where}", _chen(folder), axioms.Tfc1(where, term))


def _chen_stmc1(folder: Path) -> Diagnostic:
    term, synonyms = _terms(folder)
    return perturbed("lu2025 stmc1", _chen(folder), axioms.Stmc1(synonyms, term))


def _mechir(axiom: str, folder: Path) -> Diagnostic:
    cases = []
    for row in _lines(folder, f"*{axiom}_topk_4000.tsv"):
        base = Pair(row["query"], row["text"], row["qid"], row["docno"], int(row["relevance"]))
        cases.append((base, replace(base, document=row["perturbed_text"])))
    return Diagnostic(f"parry2025 {axiom.lower()}", tuple(cases))


def _restored(text: str, term: str, n: int) -> str:
    """The text with all but the first n occurrences of the term replaced by "it"."""
    places = [m.span() for m in re.finditer(rf"\b{re.escape(term)}\b", text, re.IGNORECASE)][n:]
    for start, end in reversed(places):
        text = f"{text[:start]}it{text[end:]}"
    return text


def _generated(folder: Path) -> Iterator[tuple[Pair, str, list[str]]]:
    """The first generated document of each query that names a term of it, with that term and its sentences."""
    seen: set[str] = set()
    for row in _lines(folder, "tfc2_lnc1_query_answer_injected.csv"):
        text = row["doc"].strip().strip('"')
        counts = Counter(axioms.words(text))
        term = max(axioms.words(row["query"]), key=lambda word: (counts[word], len(word)))
        if row["qid"] not in seen and counts[term]:
            seen.add(row["qid"])
            sentences = re.split(r"(?<=[.!?])\s+", text)
            yield Pair(row["query"], " ".join(sentences), row["qid"], row["qid"]), term, sentences


def _lu_tfc2(folder: Path) -> Diagnostic:
    """Lu et al.: the k-th of a term's occurrences restored, the later ones "it"; `doc_id` ends in `.k`."""
    cases = []
    for pair, term, _ in _generated(folder):
        for k in range(axioms.words(pair.document).count(term)):
            base, donor = (_restored(pair.document, term, n) for n in (k, k + 1))
            named = replace(pair, doc_id=f"{pair.query_id}.{k}")
            cases.append((replace(named, document=base), replace(named, document=donor)))
    return Diagnostic("lu2025 tfc2", tuple(cases))


def _lu_lnc2(folder: Path) -> Diagnostic:
    """Lu et al.: the first sentence, and four sentences of the next query's document with its term made "it"."""
    generated = list(_generated(folder))
    cases = []
    for (pair, _, sentences), (other, term, noise) in zip(generated, [*generated[1:], *generated[:1]], strict=True):
        base = replace(pair, document=sentences[0])
        added = _restored(" ".join(noise[:4]), term, 0)
        if other.query_id != pair.query_id:
            cases.append((base, replace(base, document=f"{base.document} {added}")))
    return Diagnostic("lu2025 lnc2", tuple(cases))


def _entries(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _file(folder, name).read_text(encoding="utf-8").splitlines()]


def _negation(folder: Path) -> Diagnostic:
    """Curated minimal pairs: one document, and the same with the excluded term negated (grade 1)."""
    cases = []
    for entry in _entries(folder, "gold_curated.jsonl"):
        if entry["slice_type"] == "minpairs":
            base = Pair(entry["query"]["base"], entry["doc_neg"]["text"], entry["query_id"], entry["doc_neg"]["doc_id"])
            cases.append((base, replace(base, document=entry["doc_pos"]["text"])))
    return Diagnostic("negation minimal pairs", tuple(cases))


def _negation_query(folder: Path) -> Diagnostic:
    """The query, and the same excluding a term; documents that satisfy the exclusion have grade 1, others 0."""
    cases = []
    for entry in _entries(folder, "gold.jsonl"):
        for grade, side in ((1, "doc_pos"), (0, "doc_neg")):
            document = entry[side]
            base = Pair(entry["query"]["base"], document["text"], entry["query_id"], document["doc_id"], grade)
            cases.append((base, replace(base, query=entry["query"]["neg"])))
    return Diagnostic("negation of the query", tuple(cases))


PUBLISHED: dict[str, Callable[[Path], Diagnostic]] = {
    "tfc1": partial(_chen_tfc1, "append"),
    **{f"tfc1-{where}": partial(_chen_tfc1, where) for where in axioms.WHERE[1:]},
    "mechir-tfc1": partial(_mechir, "TFC1"),
    "mechir-tdc": partial(_mechir, "TDC"),
    "tfc2": _lu_tfc2,
    "lnc2": _lu_lnc2,
    "stmc1": _chen_stmc1,
    "negation": _negation,
    "negation-query": _negation_query,
}
