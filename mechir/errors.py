"""The exception for mistakes that the caller can mend, and the checks that raise it everywhere."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path


class MechirError(ValueError):
    """A mistake of the caller's, in one sentence: what was given, what is known, what to write instead.

    The command line exits with 2.
    """


class LostWorkers(RuntimeError):
    """Processes that computed were lost again and again; no mistake of the caller's. The command line exits with 1."""


def brief(error: Exception) -> str:
    """The message of another library's error on one line, cut to 200 characters."""
    return " ".join(str(error).split())[:200]


def located(error: Exception, file: str) -> str:
    """The kind of an error in a user's file, its message, and the line of that file that it came from."""
    lines = [entry.lineno for entry in traceback.extract_tb(error.__traceback__) if entry.filename == file]
    lines += [error.lineno] if isinstance(error, SyntaxError) else []
    return f"{type(error).__name__}{f' in line {lines[-1]}' if lines else ''}: {brief(error).rstrip('.')}"


def closest(word: str, known: Iterable[str], n: int = 3) -> str:
    """The `n` known words most like `word`, quoted and joined, for the end of an error sentence."""
    known = list(known)
    matches = difflib.get_close_matches(word, known, n=n, cutoff=0.0)
    return ", ".join(f"'{match}'" for match in matches or known[:n])


def beside(path: Path, n: int = 3) -> str:
    """Folders there that are called much like a path that is none, for the end of an error sentence; often nothing."""
    try:
        folders = [folder.name for folder in path.expanduser().parent.iterdir() if folder.is_dir()]
    except OSError:
        return ""
    like = difflib.get_close_matches(path.name, folders, n=n, cutoff=0.7)
    return f"; there is {' and '.join(repr(str(path.parent / name)) for name in like)}" if like else ""


def refuse_index(unit: str, index: int, size: int, where: str) -> None:
    """Raises for the number of a head, neuron or other unit that `where` does not have."""
    if not 0 <= index < size:
        raise MechirError(f"{unit} {index} is out of range: {where} has {unit.lower()}s 0-{size - 1}.")


def refuse_other_than_whole(least: int, **arguments: object) -> None:
    """Raises for what is no whole number from the least that makes sense, by the argument's name; 2.0 is none."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise MechirError(f"{name}={value!r:.40} is out of range: write a whole number, {least} or more.")


def refuse_below(least: int, **arguments: int | float | None) -> None:
    """Raises for numbers below the least that makes sense, by the argument's name; None is left to the function."""
    for name, value in arguments.items():
        if value is not None and not value >= least:
            raise MechirError(f"{name}={value} is out of range: write {least} or more.")
