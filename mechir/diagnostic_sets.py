"""Diagnostic sets by name: the pairs of a collection under a perturbation, or a set that was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mechir import diagnostics as axioms
from mechir.contrasts import Perturbation
from mechir.errors import MechirError, closest
from mechir.judged_collection import Collection, refuse_unknown
from mechir.opening import collection
from mechir.pair import Pair
from mechir.perturbed import FILLERS, Diagnostic, perturbed
from mechir.published_sets import PUBLISHED
from mechir.reranker import Reranker
from mechir.trec_files import stored


def diagnostic(
    name: str,
    source: Collection | str | Path = "embedded",
    *,
    fillers: Sequence[str] = FILLERS,
    swap: bool = False,
    model: Reranker | None = None,
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
        model: the model whose embedding gives the synonyms of stmc1 over a collection.
        pool: `limit_queries`, `per_grade`, `seed`; with a collection whatever `Collection.pairs` takes.

    Raises:
        MechirError: for an unknown set, missing files, an empty pool.
    """
    folder = Path(source) if isinstance(source, str | Path) else None
    given = {key: value for key, value in pool.items() if value is not None}
    if folder is not None and folder.is_dir() and not stored(folder, "qrels.txt"):
        if name not in PUBLISHED:
            raise MechirError(f"Unknown diagnostic set '{name}': in files there are {', '.join(PUBLISHED)}.")
        if unknown := sorted(given.keys() - {"limit_queries", "per_grade", "seed"}):
            raise MechirError(f"A set read from files has no {unknown[0]}=: only limit_queries=, per_grade= and seed=.")
        result = replace(PUBLISHED[name](folder).limited(**given), folder=folder)
    else:
        result = _of_collection(name, source, model, pool)
    words = (fillers,) if isinstance(fillers, str) else tuple(dict.fromkeys(fillers))
    return replace(result, fillers=words, swap=swap, arguments={"name": name, "seed": 0} | given)


def _of_collection(name: str, source: Any, model: Reranker | None, pool: Mapping[str, Any]) -> Diagnostic:
    if name not in AXIOMS:
        raise MechirError(f"Unknown diagnostic '{name}': the closest are {closest(name, AXIOMS)}.")
    opened = source if isinstance(source, Collection) else collection(source)
    refuse_unknown(pool)
    sample = opened.sample(**{"easy_negatives": 0, **{k: v for k, v in pool.items() if v is not None}})
    made = perturbed(f"{name} of {opened.id}", sample.pairs, AXIOMS[name](opened, sample.pairs, model))
    return replace(made, perturbed=opened, left_out=sample.left_out)


def _idf(opened: Collection) -> axioms.Idf:
    if not isinstance(opened.docs, dict):
        raise MechirError(f"'{opened.id}' is read on demand, so its IDF is not known here: use tfc1 or query-swap.")
    return axioms.Idf(list(opened.docs.values()))


def _synonyms(opened: Collection, pairs: Sequence[Pair], model: Reranker | None) -> axioms.Stmc1:
    if model is None:
        raise MechirError("stmc1 takes synonyms from a model's embedding: give model=, or a directory with a table.")
    term = axioms.Term()
    return axioms.Stmc1(axioms.neighbours(model, sorted({term(pair) for pair in pairs})), term)


def _others(opened: Collection) -> list[str]:
    return sorted({word for text in opened.queries.values() for word in axioms.words(text)} - axioms.COMMON)


def _documents(opened: Collection, pairs: Sequence[Pair]) -> list[str]:
    """The documents that noise is taken from: all, or those of the pool where documents are read on demand."""
    if not isinstance(opened.docs, dict):
        return [pair.document for pair in pairs]
    return [text for text in opened.docs.values() if text]


AXIOMS: dict[str, Callable[[Collection, Sequence[Pair], Reranker | None], Perturbation]] = {
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
