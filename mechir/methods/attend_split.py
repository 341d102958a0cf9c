"""An attention score as it was split: writers of queries by writers of keys, with intervals and tests over queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechir.contrasts import Contrast
from mechir.errors import MechirError, refuse_below
from mechir.methods.edge_scores import largest_first, summary
from mechir.methods.metrics import means_by_query
from mechir.pair import Pair
from mechir.sites import Head

REST = "rest"
"""The name of the writers that are put together."""
SHOWN = 3
"""How many of what is left out `repr` names."""


@dataclass(frozen=True, eq=False, repr=False)
class AttentionSplit:
    """The attention score of a head from readers to sources, by what wrote the queries and what wrote the keys.

    Attributes:
        head: whose.
        reader: the positions that attend.
        source: the positions that are attended to.
        of: "base" of pairs; of contrasts "difference" (base less donor), "base" or "donor".
        relative: whether the mean over all sources of each reader was subtracted.
        items: the pairs or contrasts, in the order of the rows.
        q_from: what wrote the queries: "resid0" (the embedding), heads, MLPs (with their biases), "b_O", "b_LN" (the
            biases of attention outputs and of LayerNorms, of all layers), "b_Q".
        k_from: likewise for keys, "b_K" last; it is not there where `relative` takes it out.
        values: the parts of each pair's score; they add up to `score` but for rounding.
        score: the mean attention score itself, from the stream that the head reads.
        left_out: the pairs or contrasts without a position of the reader or of the source.
    """

    head: Head
    reader: str
    source: str
    of: str
    relative: bool
    items: tuple[Pair | Contrast, ...]
    q_from: tuple[str, ...]
    k_from: tuple[str, ...]
    values: Float[np.ndarray, "pair q_from k_from"]
    score: Float[np.ndarray, "pair"]
    left_out: tuple[Pair | Contrast, ...] = ()

    @cached_property
    def queries(self) -> Float[np.ndarray, "query q_from k_from"]:
        """The parts by query: the mean over a query's pairs."""
        return means_by_query(self.values, [item.query_id for item in self.items])

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line for each writer of queries and writer of keys, the largest first whatever their sign.

        `q_from`; `k_from`; `estimate`, the mean part over queries, with its 95 % interval `low`, `high` (bootstrap-t);
        `p` alone and `p_corrected` for the whole table (sign flips of queries, max-T); `queries`.
        """
        tested = summary(self.queries.reshape(len(self.queries), -1))
        tested.insert(0, "q_from", np.repeat(self.q_from, len(self.k_from)))
        tested.insert(1, "k_from", np.tile(self.k_from, len(self.q_from)))
        return largest_first(tested)

    def side(self, port: str) -> pd.DataFrame:
        """One line for each writer of one side, all writers of the other together; else as `frame`.

        Args:
            port: "q", what wrote the queries, or "k", what wrote the keys.

        Raises:
            MechirError: for another letter.
        """
        if port not in ("q", "k"):
            raise MechirError(f"Unknown side '{port}' of an attention score: write 'q' or 'k'.")
        tested = summary(self.queries.sum(2 if port == "q" else 1))
        tested.insert(0, f"{port}_from", self.q_from if port == "q" else self.k_from)
        return largest_first(tested)

    def top(self, n: int) -> AttentionSplit:
        """The same score, with all but the n largest writers of each side put together as "rest".

        A writer is as large as its parts in the mean over queries, added up without their signs.

        Raises:
            MechirError: for n below 1.
        """
        refuse_below(1, n=n)
        size = np.abs(self.queries.mean(0, dtype=np.float64))
        values, q_from = _top(self.values, self.q_from, size.sum(1), n)
        turned, k_from = _top(values.transpose(0, 2, 1), self.k_from, size.sum(0), n)
        return replace(self, values=turned.transpose(0, 2, 1), q_from=q_from, k_from=k_from)

    def __len__(self) -> int:
        """How many pairs or contrasts were measured."""
        return len(self.items)

    def __repr__(self) -> str:
        kind = "contrasts" if isinstance(self.items[0], Contrast) else "pairs"
        names = [f"{item.query_id}/{item.doc_id}" for item in self.left_out]
        more = ", ..." if len(names) > SHOWN else ""
        without = f"; {len(names)} left out: {', '.join(names[:SHOWN])}{more}" if names else ""
        size = f"{len(self.q_from)} x {len(self.k_from)} writers"
        text = f"{self.head}, {self.reader}<-{self.source}, {self.of} of {len(self)} {kind}, {size}{without}"
        return f"AttentionSplit({text})"


def _top(
    values: Float[np.ndarray, "pair writer other"],
    names: Sequence[str],
    size: Float[np.ndarray, "writer"],
    n: int,
) -> tuple[Float[np.ndarray, "pair some other"], tuple[str, ...]]:
    """The parts of the n largest writers in their order, and of the rest together where there is any."""
    if n >= len(names):
        return values, tuple(names)
    largest = np.sort(np.argsort(-size, kind="stable")[:n])
    rest = np.delete(values, largest, axis=1).sum(1, keepdims=True)
    return np.concatenate([values[:, largest], rest], 1), (*(names[place] for place in largest), REST)
