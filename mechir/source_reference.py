"""What travels to a worker in the place of a collection: the address and the rules that it is read by, and its hash."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from mechir.collection_groups import Collections
from mechir.errors import MechirError
from mechir.judged_collection import IN_MEMORY, Collection
from mechir.material import Source
from mechir.opening import collection
from mechir.perturbed import Diagnostic

KEPT = 8
"""Collections that a worker keeps in memory."""


@dataclass(frozen=True)
class CollectionReference:
    """A collection by its address, with the SHA-256 that it must have."""

    address: str
    rules: tuple[tuple[str, Any], ...]
    hash: str

    def open(self) -> Collection:
        """Reads the collection, once in a process; raises where it is another one now."""
        return _opened(self)


@lru_cache(maxsize=KEPT)
def _opened(reference: CollectionReference) -> Collection:
    opened = collection(reference.address, **dict(reference.rules))
    if opened.hash != reference.hash:
        raise MechirError(
            f"'{reference.address}' is another collection on this worker (hash {opened.hash[:12]}, the run is of "
            f"{reference.hash[:12]}): give all machines the same files."
        )
    return opened


@dataclass(frozen=True)
class CollectionsReference:
    """Collections in groups, each as it travels."""

    members: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class DiagnosticReference:
    """A diagnostic set without the collection that it perturbs, and this as it travels."""

    cases: Diagnostic
    perturbed: Any


def referred(source: Source) -> Any:
    """The source with every collection that can be read again by its reference; tables in memory travel as they are."""
    if isinstance(source, Collections):
        return CollectionsReference(tuple((group, referred(member)) for group, member in source.members))
    if isinstance(source, Diagnostic):
        folder = None if source.folder is None else source.folder.resolve()  # a worker may be in another folder
        return DiagnosticReference(replace(source, perturbed=None, folder=folder), referred(source.perturbed))
    if isinstance(source, Collection) and not source.address.startswith(f"{IN_MEMORY}/"):
        return CollectionReference(source.address, tuple(sorted(source.rules.items())), source.hash)
    return source


def restored(travelled: Any) -> Source:
    """The source that `referred` was given."""
    if isinstance(travelled, CollectionReference):
        return travelled.open()
    if isinstance(travelled, CollectionsReference):
        return Collections(tuple((group, restored(member)) for group, member in travelled.members))
    if isinstance(travelled, DiagnosticReference):
        return replace(travelled.cases, perturbed=restored(travelled.perturbed))
    return travelled
