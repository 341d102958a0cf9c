"""Several collections as one, each in a group such as `in` and `out` of the domain that the model was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mechir.errors import MechirError
from mechir.judged_collection import Collection, collection
from mechir.pairs import Pair
from mechir.pools import Sample

IDS = ("query_id", "doc_id")
BETWEEN = "::"
"""Between the name of a collection and the id of a query or document of it."""


@dataclass(frozen=True, eq=False)
class Collections:
    """Collections that are measured together; ids of queries and documents begin with their collection's, `dl19::q1`.

    `members`: (group, collection) one after the other.
    """

    members: tuple[tuple[str, Collection], ...]

    def __repr__(self) -> str:
        return f"Collections({self.id})"

    @property
    def id(self) -> str:
        """`in:dl19+out:cranfield`; of one collection its own."""
        if len(self.members) == 1:
            return self.members[0][1].id
        return "+".join(f"{group}:{one.id}" for group, one in self.members)

    @property
    def full_name(self) -> str:
        """Its id, with the folder above it in every name."""
        return "+".join(f"{group}:{one.full_name}" for group, one in self.members)

    @property
    def hash(self) -> str:
        """The SHA-256 of the members' groups, ids and hashes."""
        told = "\0".join(f"{group}\t{one.id}\t{one.hash}" for group, one in self.members)
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def groups(self) -> dict[str, str]:
        """Collection id -> group."""
        return {one.id: group for group, one in self.members}

    @property
    def rules(self) -> dict[str, Any]:
        """The rules that all were read by, where they are not those by default."""
        return self.members[0][1].rules

    @property
    def queries(self) -> dict[str, str]:
        """The queries of all, one collection after the other."""
        return {_named(one, key): text for _, one in self.members for key, text in one.queries.items()}

    def pairs(self, **pool: Any) -> list[Pair]:
        """The pools of all, each as `Collection.pairs` gives it: `limit_queries` counts in every collection."""
        return self.sample(**pool).pairs

    def sample(self, **pool: Any) -> Sample:
        """The pools of all, and what was left out of them."""
        pairs, frames = [], []
        for _, one in self.members:
            sample = one.sample(**pool)
            pairs += [
                replace(pair, query_id=_named(one, pair.query_id), doc_id=_named(one, pair.doc_id))
                for pair in sample.pairs
            ]
            ids = {name: sample.left_out[name].map(lambda key, of=one: key and _named(of, key)) for name in IDS}
            frames.append(sample.left_out.assign(**ids))
        return Sample(pairs, pd.concat(frames).sort_values("reason", kind="stable", ignore_index=True))

    def judged(self, pairs: Sequence[Pair], *, full: bool) -> pd.DataFrame:
        """As `Collection.judged`."""
        found = []
        for _, one in self.members:
            start = len(one.id + BETWEEN)
            own = [
                replace(pair, query_id=pair.query_id[start:], doc_id=pair.doc_id[start:])
                for pair in pairs
                if pair.query_id.startswith(one.id + BETWEEN)
            ]
            frame = one.judged(own, full=full)
            found.append(frame.assign(**{key: one.id + BETWEEN + frame[key] for key in IDS}))
        return pd.concat(found, ignore_index=True)

    def texts(self, limit: int) -> Iterator[str]:
        """The documents' texts, of each collection at most its share of `limit`."""
        for _, one in self.members:
            yield from one.texts(max(1, limit // len(self.members)))


def _named(of: Collection, key: str) -> str:
    return of.id + BETWEEN + key


def collection_of(query_id: str) -> str:
    """The id of the collection that a query of `Collections` is from."""
    return query_id.partition(BETWEEN)[0]


def in_group(text: str) -> bool:
    """Whether a collection is written `group:name`."""
    group, colon, name = text.partition(":")
    return bool(colon and group.isidentifier() and name)


def collections(named: Sequence[str | Path], **rules: Any) -> Collections:
    """Collections written `group:name`, such as `in:PATH` and `out:beir/nfcorpus/test`; see `collection`.

    Args:
        named: the collections.
        rules: `duplicates` and `leave_out` of `collection`, for all of them.

    Raises:
        MechirError: where a group is missing, two collections have one name, or a collection is refused.
    """
    members = []
    for text in map(str, named):
        group, _, name = text.partition(":")
        if not in_group(text):
            raise MechirError(f"Cannot read the collection '{text}': write group:name, such as in:PATH or out:PATH.")
        members.append((group, collection(name, **rules)))
    ids = [one.id for _, one in members]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise MechirError(f"Two collections are called '{twice[0]}': give each once, under a name of its own.")
    return Collections(tuple(members))
