"""What a worker must see and be: the registry, this version of mechir, and the same code."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import platform
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import mechir
from mechir.atomic import forgotten, whole
from mechir.batches import without_bars
from mechir.errors import MechirError
from mechir.registry.runs import make_folder, unwritable_said

ONE_AT_A_TIME = threading.Lock()
"""A model has one set of hooks: threads of one worker compute one after the other."""
TOKEN = ".workers-{}"
"""The file in a registry by which workers know that it is the client's."""


@dataclass(frozen=True)
class Place:
    """The registry and the code of the client.

    Attributes:
        registry: its whole path.
        session: a word of this client, which the file `.workers-SESSION` of the registry holds.
        version: of mechir.
        code: the SHA-256 of its files.
    """

    registry: Path
    session: str
    version: str
    code: str


@contextlib.contextmanager
def token_of(registry: Path) -> Iterator[Place]:
    """The place of this process, while the token lies in the registry."""
    make_folder(registry, registry)
    session = secrets.token_hex(8)
    for old in forgotten(registry, TOKEN.format("*")):
        old.unlink(missing_ok=True)
    token = registry / TOKEN.format(session)
    with unwritable_said(registry), whole(token) as file:
        file.write_text(session, encoding="utf-8")
    try:
        yield Place(registry.resolve(), session, metadata.version("mechir-encoders"), code_hash())
    finally:
        token.unlink(missing_ok=True)


def task_of(work: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """A task as it travels: read by the worker itself, so that what it cannot read is an error and not its end."""
    return pickle.dumps((work, arguments))


def on_worker(place: Place, task: bytes) -> Any:
    """Does a task on a worker, which is checked once, before it reads the task.

    Raises:
        MechirError: where it does not see the registry, or has another version of mechir.
    """
    _refuse_other(place)
    with ONE_AT_A_TIME, without_bars():
        work, arguments = pickle.loads(task)
        return work(*arguments)


@lru_cache(maxsize=8)
def _refuse_other(place: Place) -> None:
    host = platform.node()
    version = metadata.version("mechir-encoders")
    if (version, code_hash()) != (place.version, place.code):
        same = f"{version} with other code" if version == place.version else version
        raise MechirError(
            f"The worker on {host} has mechir {same}, and the run was started with {place.version}: give all machines "
            "the same installation."
        )
    token = place.registry / TOKEN.format(place.session)
    if not token.is_file():
        raise MechirError(
            f"The worker on {host} does not see the registry '{place.registry}': give registry=DIR on a file system "
            "that all machines share."
        )


@lru_cache(maxsize=1)
def code_hash() -> str:
    """The SHA-256 over the Python files of mechir."""
    digest = hashlib.sha256()
    folder = Path(mechir.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
