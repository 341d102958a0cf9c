"""Pairs of one query and one grade as a group, and frames with a row for every site of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mechir.pair import Pair


class Groups(NamedTuple):
    """The group that each pair is in, and `query_id`, `grade` and `n`, the number of pairs, of each group."""

    of_pair: Int[Tensor, "pair"]
    ids: pd.DataFrame

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Groups:
        """The groups of these pairs, in the order in which they appear."""
        keys = [(pair.query_id, pair.grade) for pair in pairs]
        place = {key: k for k, key in enumerate(dict.fromkeys(keys))}
        of_pair = torch.tensor([place[key] for key in keys])
        ids = pd.DataFrame(list(place), columns=["query_id", "grade"])
        return cls(of_pair, ids.assign(n=of_pair.bincount().numpy()))


def crossed(ids: pd.DataFrame, **columns: Sequence[object]) -> pd.DataFrame:
    """Repeats every row of `ids` for each entry of the columns, which have one length: rows first, entries within."""
    return ids.merge(pd.DataFrame(columns), how="cross")


def pair_ids(pairs: Iterable[Pair]) -> pd.DataFrame:
    """The `query_id`, `doc_id` and `grade` of each pair."""
    rows = [(pair.query_id, pair.doc_id, pair.grade) for pair in pairs]
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "grade"])


def columns_first(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The same rows with these columns before the others."""
    return rows[[*names, *rows.columns.difference(names, sort=False)]]
