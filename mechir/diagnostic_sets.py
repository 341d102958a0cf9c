"""Diagnostic sets: the pairs of a collection under a perturbation, or the sets that the papers' authors published."""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mechir import diagnostics as axioms
from mechir.collection import Collection
from mechir.contrasts import Contrast, Perturbation, align_pair, sides, single_piece
from mechir.errors import MechirError, closest
from mechir.pairs import Pair, pairs_hash
from mechir.text_lines import stored

FILLERS = ("a", "the")
"""Two by default: what depends on the filler is not an effect of the perturbation."""


class Aligned(NamedTuple):
    """Contrasts, and those that there are not: `skipped` has `query_id`, `doc_id`, `filler`, `reason`."""

    contrasts: list[Contrast]
    skipped: pd.DataFrame

    def __repr__(self) -> str:
        return f"Aligned({len(self.contrasts)} contrasts, {len(self.skipped)} skipped)"

    @property
    def bases(self) -> list[Pair]:
        """What runs are on."""
        return [contrast.base for contrast in self.contrasts]

    @property
    def donors(self) -> list[Pair]:
        """Where activations come from."""
        return [contrast.donor for contrast in self.contrasts]


@dataclass(frozen=True, eq=False)
class Diagnostic:
    """Pairs and their perturbations, not aligned yet: that takes a model's tokenizer.

    `refused` are the pairs that the perturbation does not apply to, with the reason. With `swap`, runs are on the
    perturbed text and activations come from the other. `perturbed` is the collection that was, `left_out` what its pool
    leaves out, `folder` that of a published set. `asked` is what `diagnostic` was asked for: `name`, and the options of
    the pool that were given.
    """

    id: str
    cases: tuple[tuple[Pair, Pair], ...] = field(repr=False)
    refused: tuple[tuple[Pair, str], ...] = field(default=(), repr=False)
    moves: bool = False
    fillers: tuple[str, ...] = FILLERS
    swap: bool = False
    left_out: pd.DataFrame | None = field(default=None, repr=False)
    perturbed: Collection | None = field(default=None, repr=False)
    folder: Path | None = None
    asked: Mapping[str, Any] | None = None

    @property
    def full_name(self) -> str:
        """Its id with the folder above the collection, or of a published set with the one that it was read from."""
        if self.perturbed is not None:
            return f"{self.axiom} of {self.perturbed.full_name}"
        return self.id if self.folder is None else f"{self.folder.resolve().name}/{self.id}"

    @property
    def rules(self) -> dict[str, Any]:
        """The rules that the perturbed collection was read by, where they are not those by default."""
        return {} if self.perturbed is None else self.perturbed.rules

    @property
    def axiom(self) -> str:
        """What is perturbed: the name of the diagnostic, without that of the collection."""
        return self.id.removesuffix(f" of {self.collection}")

    @property
    def collection(self) -> str:
        """The id of the collection that was perturbed; empty for a published set."""
        return "" if self.perturbed is None else self.perturbed.id

    def __repr__(self) -> str:
        queries = len({base.query_id for base, _ in self.cases})
        return f"Diagnostic({self.id}: {len(self.cases)} pairs of {queries} queries, {self.hash[:12]})"

    @property
    def hash(self) -> str:
        """SHA-256 of all texts, ids and grades of both sides."""
        sides = [pairs_hash(pair[side] for pair in self.cases) for side in (0, 1)]
        return hashlib.sha256("".join(sides).encode()).hexdigest()

    def limited(self, *, limit_queries: int | None = None, per_grade: int | None = None, seed: int = 0) -> Diagnostic:
        """The first so many queries; of each query and grade at most so many pairs, drawn at random.

        What it was `asked` for is then no longer what it is.
        """
        for name, value in {"limit_queries": limit_queries, "per_grade": per_grade}.items():
            if value is not None and value < 1:
                raise MechirError(f"{name}={value} asks for nothing: write 1 or more, or leave it out.")
        ids = list(dict.fromkeys(base.query_id for base, _ in self.cases))[:limit_queries]
        groups: dict[tuple[str, int | None], list[int]] = {}
        for place, (base, _) in enumerate(self.cases):
            if base.query_id in set(ids):
                groups.setdefault((base.query_id, base.grade), []).append(place)
        kept = sorted(place for key, places in groups.items() for place in _drawn(places, per_grade, seed, key))
        cases = tuple(self.cases[place] for place in kept)
        if limit_queries is None:
            return replace(self, cases=cases, asked=None)
        known = set(ids)
        refused = tuple((pair, reason) for pair, reason in self.refused if pair.query_id in known)
        return replace(self, cases=cases, refused=refused, asked=None)

    def align(self, model: Any, filler: str | Sequence[str] | None = None) -> Aligned:
        """The contrasts for this model, once per filler (by default the set's own two).

        Pairs that cannot be aligned, or whose edit the model would not read, are left out with id and reason.

        Raises:
            MechirError: for a filler that is not one word piece, or when nothing at all can be aligned.
        """
        fillers = (filler,) if isinstance(filler, str) else tuple(filler or self.fillers)
        for word in fillers:
            single_piece(model.tokenizer, word)
        contrasts, skipped = [], [(pair.query_id, pair.doc_id, "", reason) for pair, reason in self.refused]
        limit = model.max_length
        for base, donor in self.cases:
            for word in fillers:
                try:
                    found = align_pair(base, donor, model.tokenizer, word, max_length=limit, moves=self.moves)
                except MechirError as error:
                    skipped.append((base.query_id, base.doc_id, word, str(error)))
                    continue
                contrasts.append(found.swapped() if self.swap else found)
                if not found.filler:  # needed none: another would give the same
                    break
        frame = pd.DataFrame(skipped, columns=["query_id", "doc_id", "filler", "reason"])
        if not contrasts:
            why = f": {frame['reason'].iloc[0]}" if len(frame) else ""
            raise MechirError(f"Not one pair of '{self.id}' could be aligned{why}")
        return Aligned(contrasts, frame)

    def judged(self, pairs: Sequence[Pair], *, full: bool = False) -> pd.DataFrame:
        """`query_id`, `doc_id`, `grade` (missing where unjudged), `pooled`: as `Collection.judged`, of the pool."""
        rows = {(pair.query_id, pair.doc_id): pair.grade for pair in pairs}
        frame = pd.DataFrame(list(rows), columns=["query_id", "doc_id"])
        return frame.assign(grade=pd.array(list(rows.values()), dtype="Int64"), pooled=True)


def _drawn(places: list[int], n: int | None, seed: int, key: tuple[str, int | None]) -> list[int]:
    if n is None or len(places) <= n:
        return places
    digest = hashlib.sha256(f"{seed}\0{key[0]}\0{key[1]}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16]))
    return [places[k] for k in generator.choice(len(places), n, replace=False)]


def perturbed(name: str, pairs: Sequence[Pair], perturbation: Perturbation) -> Diagnostic:
    """These pairs under a perturbation."""
    cases, refused = [], []
    for pair in pairs:
        try:
            cases.append(sides(pair, perturbation))
        except MechirError as error:
            refused.append((pair, str(error)))
    return Diagnostic(name, tuple(cases), tuple(refused), getattr(perturbation, "moves", False))


def diagnostic(
    name: str,
    source: Collection | str | Path = "embedded",
    *,
    fillers: Sequence[str] = FILLERS,
    swap: bool = False,
    model: Any = None,
    **pool: Any,
) -> Diagnostic:
    """A diagnostic set: `diagnostic("tfc1")`, `diagnostic("tfc1", collection)`, `diagnostic("tfc1", DIRECTORY)`.

    Args:
        name: with a collection tfc1 (also tfc1-prepend, -inject, -replace), tfc2, tdc, lnc1, lnc2, stmc1, negation,
            query-swap, shuffle; with a directory of published files tfc1 (also -prepend, ...), mechir-tfc1, mechir-tdc,
            tfc2, lnc2, stmc1, negation, negation-query.
        source: a collection (or its name), or a directory that holds the files of the set.
        fillers: words that make two texts equally long; every pair is aligned with each.
        swap: run on the perturbed text, take activations from the other.
        model: whose embedding gives the synonyms of stmc1 over a collection.
        pool: `limit_queries`, `per_grade`, `seed`; with a collection whatever `Collection.pairs` takes.

    Raises:
        MechirError: for an unknown set, missing files, an empty pool.
    """
    folder = Path(source) if isinstance(source, str | Path) else None
    given = {key: value for key, value in pool.items() if value is not None}
    if folder is not None and folder.is_dir() and not stored(folder, "qrels.txt"):
        if name not in PUBLISHED:
            raise MechirError(f"Unknown diagnostic set '{name}': in files there are {', '.join(PUBLISHED)}.")
        unknown = sorted(given.keys() - {"limit_queries", "per_grade", "seed"})
        if unknown:
            raise MechirError(f"A set read from files has no {unknown[0]}: only limit_queries, per_grade and seed.")
        found = replace(PUBLISHED[name](folder).limited(**given), folder=folder)
    else:
        found = _of_collection(name, source, model, pool)
    words = (fillers,) if isinstance(fillers, str) else tuple(fillers)
    return replace(found, fillers=words, swap=swap, asked={"name": name, "seed": 0} | given)


def _of_collection(name: str, source: Any, model: Any, pool: Mapping[str, Any]) -> Diagnostic:
    from mechir.collection import collection as open_collection

    if name not in AXIOMS:
        raise MechirError(f"Unknown diagnostic '{name}'. The closest are {closest(name, AXIOMS)}.")
    opened = source if isinstance(source, Collection) else open_collection(source)
    known = inspect.signature(opened.pairs).parameters
    unknown = sorted(pool.keys() - known.keys())
    if unknown:
        raise MechirError(f"A pool has no option '{unknown[0]}': it takes {', '.join(known)}.")
    sample = opened.sample(**{"easy_negatives": 0, **{k: v for k, v in pool.items() if v is not None}})
    found = perturbed(f"{name} of {opened.id}", sample.pairs, AXIOMS[name](opened, sample.pairs, model))
    return replace(found, perturbed=opened, left_out=sample.left_out)


def _idf(opened: Collection) -> axioms.Idf:
    if not isinstance(opened.docs, dict):
        raise MechirError(f"'{opened.id}' is read on demand, so its IDF is not known here: use tfc1 or query-swap.")
    return axioms.Idf(list(opened.docs.values()))


def _synonyms(opened: Collection, pairs: Sequence[Pair], model: Any) -> axioms.Stmc1:
    if model is None:
        raise MechirError("stmc1 takes synonyms from a model's embedding: give model=, or a directory with a table.")
    term = axioms.Term()
    return axioms.Stmc1(axioms.neighbours(model, sorted({term(pair) for pair in pairs})), term)


def _others(opened: Collection) -> list[str]:
    return sorted({word for text in opened.queries.values() for word in axioms.words(text)} - axioms.COMMON)


def _documents(opened: Collection, pairs: Sequence[Pair]) -> list[str]:
    """Where noise comes from: the whole collection, or the pool where documents are read on demand."""
    if not isinstance(opened.docs, dict):
        return [pair.document for pair in pairs]
    return [text for text in opened.docs.values() if text]


AXIOMS: dict[str, Callable[[Collection, Sequence[Pair], Any], Perturbation]] = {
    "tfc1": lambda opened, pairs, model: axioms.Tfc1(),
    "tfc1-prepend": lambda opened, pairs, model: axioms.Tfc1("prepend"),
    "tfc1-inject": lambda opened, pairs, model: axioms.Tfc1("inject"),
    "tfc1-replace": lambda opened, pairs, model: axioms.Tfc1("replace"),
    "tfc2": lambda opened, pairs, model: axioms.Tfc2(),
    "tdc": lambda opened, pairs, model: axioms.tdc(_idf(opened)),
    "lnc1": lambda opened, pairs, model: axioms.Lnc1(_documents(opened, pairs)),
    "lnc2": lambda opened, pairs, model: axioms.Lnc2(),
    "stmc1": _synonyms,
    "negation": lambda opened, pairs, model: axioms.Negate(),
    "query-swap": lambda opened, pairs, model: axioms.QuerySwap(_others(opened)),
    "shuffle": lambda opened, pairs, model: axioms.Shuffle(),
}


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
