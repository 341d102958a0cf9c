"""Checks of experiments' options before anything is measured; messages name each option as Python does."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mechir.contrasts import ROLES, Contrast, encode_contrasts
from mechir.diagnostics import Term
from mechir.errors import MechirError, closest
from mechir.methods.conductance import KIND, unit_readers
from mechir.methods.evaluation import ranking_measures
from mechir.methods.matching import contrasts_of
from mechir.methods.patching import place_name, places
from mechir.methods.targets import Target
from mechir.methods.walk import Way
from mechir.model_sites import heads_of
from mechir.pair import EASY, Pair, split_queries
from mechir.reranker import Reranker, Weights, needs
from mechir.sites import Head

SELECTION = 3
"""Heads that are not named are found on one query in so many."""


def one_of(known: Collection[str], **options: str) -> None:
    """Raises for words that are not known."""
    for name, value in options.items():
        if value not in known:
            raise MechirError(f"Unknown {name}='{value}': the closest are {closest(value, known)}.")


@contextlib.contextmanager
def naming(name: str, text: str) -> Iterator[None]:
    """Names the option that could not be read in the message of an error."""
    try:
        yield
    except MechirError as error:
        raise MechirError(f"Cannot read {name}='{text}': {error}") from error


def place(model: Reranker, contrasts: Sequence[Contrast], text: str, *, each: Sequence[str] = ("all",)) -> str:
    """A place of `patch` in its normal form: `D|Q` is `query|doc`; `each`: the words that stand for several.

    Raises:
        MechirError: for an unknown place, or one that no contrast has.
    """
    name = " ".join(text.lower().split())
    if name in each:
        return name
    normal = place_name(text)
    for batch in encode_contrasts(model, contrasts).batches(model):
        if any(mask is None or bool(mask.any()) for mask in places([normal], batch).values()):
            return normal
    raise MechirError(f"No contrast has a position at '{normal}': write at= with one of {', '.join(ROLES)}, or all.")


def grades_there(pairs: Sequence[Pair], **grades: int) -> None:
    """Raises for grades that no pair of the pool has, naming those that there are, and for pairs without one."""
    if any(pair.grade is None for pair in pairs):
        raise MechirError("Pairs without a grade cannot be contrasted: give judged pairs.")
    known = [str(grade) for grade in sorted({pair.grade for pair in pairs if pair.grade is not None})]
    for name, grade in grades.items():
        if str(grade) not in known:
            other = f"write {name}= with one of {', '.join(known)}"
            hint = "add easy_negatives=10" if grade == EASY else other
            listed = f"grades {', '.join(known)}" if len(known) > 1 else f"grade {known[0]} alone"
            raise MechirError(f"No pair of this pool has grade {grade} ({name}): it has {listed}; {hint}.")


def grades_of(pairs: Iterable[Pair]) -> dict[str, set[int | None]]:
    """The grades of each query's pairs."""
    by_query: dict[str, set[int | None]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query_id, set()).add(pair.grade)
    return by_query


def contrasted(queries: Sequence[set[int | None]], grades: Mapping[str, int], where: str) -> None:
    """Raises where fewer than two queries have pairs of both grades, for any two of `relevant`, `hard`, `weak`."""
    for high, low in contrasts_of(grades):
        n = sum({grades[high], grades[low]} <= known for known in queries)
        if n < 2:
            both = f"grade {grades[high]} ({high}) and of grade {grades[low]} ({low})"
            raise MechirError(f"Queries with pairs of {both}: {n} {where}; take 2 or more.")


def relevant_there(judged: pd.DataFrame) -> None:
    """Raises for a pool whose queries have no relevant document, so that there is no nDCG."""
    if not (judged["grade"] > 0).any():
        raise MechirError("No query of this pool has a relevant document (grade 1 or more), so there is no nDCG.")


def measures_there(judged: pd.DataFrame, evaluate: Sequence[str]) -> tuple[str, ...]:
    """The measures of ranking quality in normal form; raises for one that finds no document relevant enough."""
    measures = ranking_measures(evaluate)
    for measure in measures:
        least = int(measure.params.get("rel", 1))
        if not (judged["grade"] >= least).any():
            raise MechirError(f"evaluate='{measure}': no query has a document of grade {least}, so lower its rel.")
    return tuple(map(str, measures))


def heads_there(model: Reranker, heads: Sequence[Head], name: str = "heads") -> None:
    """Raises for heads that the model does not have; `name`: of the option."""
    if heads:
        with naming(name, ",".join(map(str, heads))):
            heads_of(model, heads)


def heads_or_search(
    model: Reranker, material: Sequence[Any], heads: Sequence[Head], name: str = "heads", *, matching: bool = False
) -> tuple[Head, ...]:
    """Returns the heads that are named, by layer; where none is, raises for a pool on which the run cannot find some.

    `matching`: they are found by attention on documents of two grades.

    Raises:
        MechirError: for heads that the model does not have, too few queries to find heads on one in three and measure
            on the others, or too few grades.
    """
    heads_there(model, heads, name)
    if heads:
        return tuple(sorted(heads))
    chosen, _ = split_queries(material, SELECTION)
    if matching:
        grades_there(material)
        if not any(len(grades) > 1 for grades in grades_of(chosen).values()):
            raise MechirError(
                "Matching heads are found where a query has documents of two grades, and none has among one query in "
                f"{SELECTION}: take more, or name them with {name}=."
            )
    return ()


def embedding_vector(model: Weights, vector: int, sign: int) -> None:
    """Raises for an unknown singular vector of the word embeddings or sign; -1 and 0 stand for those with IDF."""
    needs(model, "embedding_vector", Weights)
    last = min(model.W_E.shape) - 1
    if not -1 <= vector <= last:
        raise MechirError(f"vector={vector} is out of range: write 0 to {last}, or -1 for the one that goes with IDF.")
    if sign not in (-1, 0, 1):
        raise MechirError(f"sign={sign} is out of range: write 1 or -1, or 0 for that of its correlation with IDF.")


def terms_there(pairs: Iterable[Pair], seed: int) -> None:
    """Raises for queries without a word to edit."""
    for pair in {pair.query_id: pair for pair in pairs}.values():
        Term(seed=seed)(pair)


def unit_target(model: Reranker, *, baseline: str, target: str, tol: float, **units: str) -> str:
    """The target of conductance in its normal form; `units`: the activation of `heads` and `neurons`.

    Raises:
        MechirError: for unknown words, a tolerance that is not above 0, a target that the model lacks.
    """
    if not 0 < tol < math.inf:
        raise MechirError(f"tol={tol} is out of range: write a number above 0.")
    for name, unit in units.items():
        one_of([known for known, kind in KIND.items() if kind == name.removesuffix("s")], **{name: unit})
    Way(baseline, tol=tol)
    with naming("target", target):
        goal = Target(target, [] if target == "margin" else None)
        unit_readers(model, tuple(units.values()), goal)
    return goal.name
