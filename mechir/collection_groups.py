"""Several collections as one, in groups such as `in` and `out` of the domain that the model was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mechir.errors import MechirError
from mechir.judged_collection import Collection
from mechir.opening import collection
from mechir.pair import Pair
from mechir.pools import Sample

IDS = ["query_id", "doc_id"]
BETWEEN = "::"
"""Between the name of a collection and the id of a query or document of it."""


@dataclass(frozen=True, eq=False)
class Collections:
    """Collections that are measured together, as (group, collection).

    Ids of queries and documents begin with their collection's, `dl19::q1`.
    """

    members: tuple[tuple[str, Collection], ...]

    def __repr__(self) -> str:
        return f"Collections({self.id})"

    @property
    def id(self) -> str:
        """The ids joined, `in:dl19+out:cranfield`; of one collection its own."""
        if len(self.members) == 1:
            return self.members[0][1].id
        return "+".join(f"{group}:{member.id}" for group, member in self.members)

    @property
    def full_name(self) -> str:
        """The id, with the folder above it in every name."""
        return "+".join(f"{group}:{member.full_name}" for group, member in self.members)

    @property
    def hash(self) -> str:
        """The SHA-256 of the members' groups, ids and hashes."""
        text = "\0".join(f"{group}\t{member.id}\t{member.hash}" for group, member in self.members)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def groups(self) -> dict[str, str]:
        """The mapping from collection id to group."""
        return {member.id: group for group, member in self.members}

    @property
    def rules(self) -> dict[str, Any]:
        """The rules that all were read by, without the defaults."""
        return self.members[0][1].rules

    def pairs(self, **pool: Any) -> list[Pair]:
        """The pools of all, each from `Collection.pairs`: `limit_queries` counts in every collection."""
        return self.sample(**pool).pairs

    def sample(self, **pool: Any) -> Sample:
        """The pools of all, and what was left out of them."""
        pairs, frames = [], []
        for _, member in self.members:
            sample, prefix = member.sample(**pool), member.id + BETWEEN
            pairs += [
                replace(pair, query_id=prefix + pair.query_id, doc_id=prefix + pair.doc_id) for pair in sample.pairs
            ]
            ids = sample.left_out[IDS]
            frames.append(sample.left_out.assign(**(prefix + ids).where(ids != "", "")))
        return Sample(pairs, pd.concat(frames).sort_values("reason", kind="stable", ignore_index=True))

    def judged(self, pairs: Sequence[Pair], *, full: bool) -> pd.DataFrame:
        """The table of `Collection.judged` for all."""
        frames = []
        for _, member in self.members:
            prefix = member.id + BETWEEN
            part = [
                replace(pair, query_id=pair.query_id.removeprefix(prefix), doc_id=pair.doc_id.removeprefix(prefix))
                for pair in pairs
                if pair.query_id.startswith(prefix)
            ]
            frame = member.judged(part, full=full)
            frames.append(frame.assign(**(prefix + frame[IDS])))
        return pd.concat(frames, ignore_index=True)


def collection_of(query_id: str) -> str:
    """The id of the collection that a query of `Collections` is from."""
    return query_id.partition(BETWEEN)[0]


def in_group(text: str) -> bool:
    """Whether a collection is written `group:name`."""
    group, _, name = text.partition(":")
    return group.isidentifier() and bool(name)


def collections(named: Sequence[str | Path], **rules: Any) -> Collections:
    """Opens collections written `group:name`, such as `in:PATH` and `out:beir/nfcorpus/test`.

    `rules` are `duplicates` and `leave_out` of `collection`, for all of them.

    Raises:
        MechirError: for a missing group, two collections of one name, or a collection that is refused.
    """
    members = []
    for text in map(str, named):
        group, _, name = text.partition(":")
        if not in_group(text):
            raise MechirError(f"Cannot read the collection '{text}': write group:name, such as in:PATH or out:PATH.")
        members.append((group, collection(name, **rules)))
    ids = [member.id for _, member in members]
    if twice := sorted({id_ for id_ in ids if ids.count(id_) > 1}):
        raise MechirError(f"Two collections are called '{twice[0]}': give each once, under a name of its own.")
    return Collections(tuple(members))
