"""Files that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mechir.errors import MechirError

FORGOTTEN = 30 * 24 * 3600
"""Seconds after which what a process leaves at its end is taken for that of one that was killed."""


@contextlib.contextmanager
def whole(target: Path, *, once: bool = False) -> Iterator[Path]:
    """A temporary file that becomes `target` at the end, synced first; on any error nothing is left behind.

    `once`: raises FileExistsError where `target` exists by then, which stays as it is.
    """
    with full_disk_said(target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            if once:
                os.link(temporary, target)
            else:
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def full_disk_said(target: Path) -> Iterator[None]:
    """Says in one sentence that the disk is full, or a quota, where something is written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MechirError(
            f"The disk is full: '{target}' was not written; free some space and start the same command again, which "
            "computes only what is missing."
        ) from error


def refuse_unwritable(target: Path) -> None:
    """Raises for a file that could not be written at the end of a long computation."""
    if target.is_dir() or not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
        why = "is a directory" if target.is_dir() else "its directory is not there, or cannot be written to"
        raise MechirError(f"Cannot write '{target}' ({why}): give another file to write.")


def written(target: Path, write: Callable[[Path], object]) -> Path:
    """Writes a whole file by `write`, and returns its path; raises where it cannot be written."""
    try:
        with whole(target) as file:
            write(file)
    except OSError as error:
        raise MechirError(f"Cannot write '{target}' ({error.strerror}): give another file to write.") from error
    return target


def forgotten(folder: Path, pattern: str) -> list[Path]:
    """What processes that were killed have left in a folder, 30 days ago or more."""
    return [path for path in folder.glob(pattern) if time.time() - path.stat().st_mtime > FORGOTTEN]
