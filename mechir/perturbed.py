"""Pairs and their perturbations, and the contrasts that they give for a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mechir.contrasts import Contrast, Perturbation, align_pair, sides, single_piece
from mechir.errors import MechirError
from mechir.judged_collection import Collection
from mechir.pair import Pair, pairs_hash
from mechir.pools import draw
from mechir.reranker import Reranker
from mechir.rules import refuse_counts_below

FILLERS = ("a", "the")
"""The default fillers, two: a result that depends on the filler is not an effect of the perturbation."""


class Aligned(NamedTuple):
    """Contrasts, and the pairs that gave none: `skipped` has `query_id`, `doc_id`, `filler`, `reason`."""

    contrasts: list[Contrast]
    skipped: pd.DataFrame

    def __repr__(self) -> str:
        return f"Aligned({len(self.contrasts)} contrasts, {len(self.skipped)} skipped)"

    @property
    def bases(self) -> list[Pair]:
        """The pairs that runs are on."""
        return [contrast.base for contrast in self.contrasts]

    @property
    def donors(self) -> list[Pair]:
        """The pairs that activations come from."""
        return [contrast.donor for contrast in self.contrasts]


@dataclass(frozen=True, eq=False)
class Diagnostic:
    """Pairs and their perturbations, not aligned yet: that takes a model.

    `refused` are the pairs that the perturbation does not apply to, with the reason. With `swap`, runs are on the
    perturbed text and activations come from the other. `perturbed` is the collection, `left_out` what its pool leaves
    out, `folder` that of a published set. `arguments` are those of `diagnostic`: `name`, and the options of the pool
    that were given.
    """

    id: str
    cases: tuple[tuple[Pair, Pair], ...]
    refused: tuple[tuple[Pair, str], ...] = ()
    moves: bool = False
    fillers: tuple[str, ...] = FILLERS
    swap: bool = False
    left_out: pd.DataFrame | None = None
    perturbed: Collection | None = None
    folder: Path | None = None
    arguments: Mapping[str, Any] | None = None

    @property
    def full_name(self) -> str:
        """The id with the folder above the collection, or with the folder of a published set."""
        if self.perturbed is not None:
            return f"{self.axiom} of {self.perturbed.full_name}"
        return self.id if self.folder is None else f"{self.folder.resolve().name}/{self.id}"

    @property
    def rules(self) -> dict[str, Any]:
        """The rules that the perturbed collection was read by, without the defaults."""
        return {} if self.perturbed is None else self.perturbed.rules

    @property
    def axiom(self) -> str:
        """The name of the diagnostic, without that of the collection."""
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
        """The SHA-256 of all texts, ids and grades of both sides."""
        sides = [pairs_hash(pair[side] for pair in self.cases) for side in (0, 1)]
        return hashlib.sha256("".join(sides).encode()).hexdigest()

    def limited(self, *, limit_queries: int | None = None, per_grade: int | None = None, seed: int = 0) -> Diagnostic:
        """The first `limit_queries` queries; of each query and grade at most `per_grade` pairs, drawn at random.

        The result has no `arguments`.
        """
        refuse_counts_below(1, limit_queries=limit_queries, per_grade=per_grade)
        ids = set(list(dict.fromkeys(base.query_id for base, _ in self.cases))[:limit_queries])
        groups: dict[tuple[str, str], list[int]] = {}
        for place, (base, _) in enumerate(self.cases):
            if base.query_id in ids:
                groups.setdefault((base.query_id, str(base.grade)), []).append(place)
        drawn = sorted(place for key, places in groups.items() for place in draw(places, per_grade, seed, *key))
        refused = tuple(case for case in self.refused if limit_queries is None or case[0].query_id in ids)
        return replace(self, cases=tuple(self.cases[place] for place in drawn), refused=refused, arguments=None)

    def align(self, model: Reranker, filler: str | Sequence[str] | None = None) -> Aligned:
        """The contrasts for this model, once per filler (by default the set's own two).

        Pairs that cannot be aligned, or whose edit the model would not read, are skipped with id and reason.

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
                    contrast = align_pair(base, donor, model.writer, word, max_length=limit, moves=self.moves)
                except MechirError as error:
                    skipped.append((base.query_id, base.doc_id, word, str(error)))
                    continue
                contrasts.append(contrast.swapped() if self.swap else contrast)
                if not contrast.filler:  # another filler would give the same
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


def perturbed(name: str, pairs: Sequence[Pair], perturbation: Perturbation) -> Diagnostic:
    """A diagnostic set of pairs under a perturbation."""
    cases, refused = [], []
    for pair in pairs:
        try:
            cases.append(sides(pair, perturbation))
        except MechirError as error:
            refused.append((pair, str(error)))
    return Diagnostic(name, tuple(cases), tuple(refused), getattr(perturbation, "moves", False))
