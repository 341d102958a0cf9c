"""Certificates of a Dask cluster: a folder of mode 0700 with `ca.pem`, `cert.pem` and `key.pem`."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mechir.atomic import forgotten, full_disk_said
from mechir.errors import MechirError

CA, CERT, KEY = "ca.pem", "cert.pem", "key.pem"


def tls_files(folder: Path) -> dict[str, Path]:
    """The three files; raises where one is missing, or the key can be read by others."""
    files = {name: folder / name for name in (CA, CERT, KEY)}
    if missing := [name for name, file in files.items() if not file.is_file()]:
        raise MechirError(
            f"'{folder}' holds no {' and no '.join(missing)}: give certificates=DIR with {CA}, {CERT}, {KEY}."
        )
    if files[KEY].stat().st_mode & 0o077:
        raise MechirError(
            f"'{files[KEY]}' can be read by others: chmod 600 it, for whoever has it can run code on the cluster."
        )
    return files


@contextlib.contextmanager
def folder_of(registry: Path, texts: Mapping[str, str]) -> Iterator[Path]:
    """A folder beside the registry with these texts by file name, for its owner alone; removed at the end."""
    beside, prefix = registry.resolve().parent, f".{registry.resolve().name}-keys-"
    for old in forgotten(beside, f"{prefix}*"):
        shutil.rmtree(old, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
    except OSError as error:
        raise MechirError(
            f"Cannot write the keys of the run beside the registry, into '{beside}' ({error.strerror}): give "
            "certificates=DIR."
        ) from error
    try:
        with full_disk_said(folder):
            write_keys(folder, texts)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_keys(folder: Path, texts: Mapping[str, str]) -> None:
    """Writes files that their owner alone can read."""
    for name, text in texts.items():
        file = folder / name
        file.touch(mode=0o600)
        file.write_text(text, encoding="ascii")
