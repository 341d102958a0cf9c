"""The material of experiments: the pairs of a pool or contrasts, and those that were left out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mechir import left_out
from mechir.collection_groups import Collections
from mechir.contrasts import Contrast
from mechir.diagnostic_sets import AXIOMS, diagnostic
from mechir.encoding import encode_readable
from mechir.errors import MechirError
from mechir.inputs import as_pairs
from mechir.irds import is_opened
from mechir.judged_collection import Collection
from mechir.left_out import Row
from mechir.opening import EMBEDDED, collection, of_pairs
from mechir.options import LARGEST
from mechir.pair import Pair
from mechir.perturbed import Diagnostic
from mechir.pools import Sample
from mechir.reranker import Reranker
from mechir.rules import LEAVE_OUT

CONTRASTS = "tfc1"
"""The diagnostic of a run on contrasts where none is named."""
ALONE = "in"
"""The group of a collection that is given without one."""
Source = Any
"""A `Collection`, `Collections` or, for experiments on contrasts, a `Diagnostic`."""


@dataclass(frozen=True)
class Pool:
    """A choice of pairs of a collection: the arguments of `Collection.pairs`, as given.

    `max_length`: word pieces of a pair that are read; by default what the model says.
    """

    per_grade: Any = None
    easy_negatives: Any = None
    top_k: Any = None
    run: Any = None
    limit_queries: Any = None
    seed: Any = 0
    max_length: Any = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
            fits = isinstance(value, str | Path) if name == "run" else whole
            if not fits and (value is not None or name == "seed"):
                kind = "name or a path" if name == "run" else "whole number"
                raise MechirError(f"Cannot take Pool({name}={value!r}): write a {kind}.")

    @property
    def full(self) -> bool:
        """Whether the ideal ranking may use judged documents that are not in the pool: where it is a run's."""
        return self.run is not None or self.top_k is not None

    def pairs(self, collection: Source) -> list[Pair]:
        """The pairs, whole queries one after the other."""
        return self.sample(collection).pairs

    def sample(self, collection: Source) -> Sample:
        """The pairs, and what was left out."""
        return collection.sample(**{name: value for name, value in vars(self).items() if name != "max_length"})


def pairs_of(material: Sequence[Any]) -> list[Pair]:
    """The pairs, of contrasts the bases."""
    return [item.base if isinstance(item, Contrast) else item for item in material]


def opened(source: Any, experiment: Any, model: Reranker, pool: Pool | None) -> tuple[Source, Pool | None]:
    """The source and the pool of a run as values, from what a user gives: see `engine.run`."""
    contrasts, sampled = experiment.runs_on == "contrasts", isinstance(source, Diagnostic)
    axiom = source if isinstance(source, str) and source in AXIOMS else CONTRASTS
    if contrasts and isinstance(source, str) and source in AXIOMS:
        source = EMBEDDED.name
    if not isinstance(source, Collection | Collections | Diagnostic):
        named = isinstance(source, str | Path) or is_opened(source)
        source = collection(source) if named else of_pairs(as_pairs(source))
    if not contrasts or sampled or isinstance(source, Collections):
        return source, pool
    sample = {name: value for name, value in vars(pool or Pool()).items() if value is not None}
    read = Pool(max_length=sample.pop("max_length", None))
    return diagnostic(axiom, source, model=model, **sample), read


def source_of(experiment: Any, source: Source) -> Source:
    """The source as the experiment takes it: one collection alone is a group of one where groups are taken.

    Raises:
        MechirError: for collections in groups that the experiment does not take.
    """
    if experiment.runs_on == "groups" and isinstance(source, Collection):
        return Collections(((ALONE, source),))
    if isinstance(source, Collections) and experiment.runs_on != "groups":
        raise MechirError(f"'{experiment.name}' takes no groups: give a collection without '{source.members[0][0]}:'.")
    return source


class Taken(NamedTuple):
    """The material of a run, pairs that gave no contrast (`skipped`), and pairs that the collection left out."""

    material: list[Any]
    skipped: pd.DataFrame | None
    left_out: pd.DataFrame | None


def material_of(experiment: Any, model: Reranker, source: Source, pool: Pool) -> Taken:
    """The pairs or contrasts that an experiment runs on, and those that were left out; raises for the other kind."""
    if isinstance(source, Diagnostic):
        if experiment.runs_on != "contrasts":
            raise MechirError(f"'{experiment.name}' runs on pairs, not on contrasts: give a collection.")
        if replace(pool, max_length=None) != Pool():
            raise MechirError("A diagnostic set is sampled when it is made: write diagnostic(..., limit_queries=20).")
        return Taken(*source.align(model), source.left_out)
    if experiment.runs_on == "contrasts":
        raise MechirError(f"'{experiment.name}' runs on contrasts: give a diagnostic set such as diagnostic('tfc1').")
    sample = readable(model, pool.sample(source), source)
    return Taken(sample.pairs, None, sample.left_out)


def readable(model: Reranker, sample: Sample, source: Source) -> Sample:
    """The pairs of a pool, as it was drawn, that the model can read; the others are left out (see `encode_readable`).

    The `leave_out` of the collection is the share of pairs that may be left out.

    Raises:
        MechirError: where more would be, with the first of them.
    """
    _, unreadable = encode_readable(model.writer, sample.pairs, model.max_length)
    if not unreadable:
        return sample
    share, n, total = source.rules.get("leave_out", LEAVE_OUT), len(unreadable), len(sample.pairs)
    first = unreadable[min(unreadable)].sentence
    if n == total:
        raise MechirError(f"The model can read none of {total} pairs of '{source.id}'; the first: {first}")
    if n / total > share:
        enough = -(-100 * n // total) / 100
        raise MechirError(
            f"The model cannot read {n} of {total} pairs of '{source.id}', over {100 * share:g} %: leave them out with "
            f"leave_out={enough:g}, or mend them; the first: {first}"
        )
    warnings.warn(f"The model cannot read {n} of {total} pairs of '{source.id}', which are left out.", stacklevel=2)
    pairs = [pair for place, pair in enumerate(sample.pairs) if place not in unreadable]
    lost = {place: sample.pairs[place] for place in sorted(unreadable)}
    rows = [Row(unreadable[place].reason, pair.query_id, pair.doc_id) for place, pair in lost.items()]
    there = {pair.query_id for pair in pairs}
    gone = dict.fromkeys(pair.query_id for pair in lost.values() if pair.query_id not in there)
    rows += [Row(left_out.NO_PAIR, query_id, "") for query_id in gone]
    return Sample(pairs, pd.concat([sample.left_out, left_out.frame(rows)], ignore_index=True))
