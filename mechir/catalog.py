"""The experiments by name and by file: classes that are checked when they are loaded."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd

import mechir.analyses
from mechir.errors import MechirError, closest
from mechir.experiment import OWN, Experiment, refuse_incomplete

PACKAGE = "mechir.analyses"


def experiments() -> dict[str, Path]:
    """The files of the experiments that come with mechir, by name, "paper/experiment"."""
    return {f"{file.parent.name}/{file.stem}": file for file in mechir.analyses.files()}


def load_experiment(name: str | Path) -> type[Experiment]:
    """The class of an experiment, by its name or by the path of a `.py` file.

    Raises:
        MechirError: for an unknown name, a file without an experiment or with several, or one that is not complete.
    """
    known, text = experiments(), str(name)
    if text in known:
        return _of_module(importlib.import_module(f"{PACKAGE}.{text.replace('/', '.')}"))
    file = Path(text)
    if not (text.endswith(".py") and file.is_file()):
        raise MechirError(f"Unknown experiment '{text}'. The closest are {closest(text, known)}; or give a .py file.")
    file = file.resolve()
    if shipped := next((key for key, path in known.items() if path.resolve() == file), None):
        return load_experiment(shipped)
    return _of_module(_module_of(file))


def _module_of(file: Path) -> ModuleType:
    """The module of a file, read anew where the file has changed."""
    digest = hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()[:12]
    name = OWN.format(file.stem, digest)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look annotations up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _of_module(module: ModuleType) -> type[Experiment]:
    """The one experiment that a module defines."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Experiment)]
    classes = [kind for kind in kinds if kind.__module__ == module.__name__]
    if len(classes) != 1:
        names = " and ".join(kind.__name__ for kind in classes) or "none"
        raise MechirError(f"'{module.__file__}' must define one experiment and defines {names}: see mechir.Experiment.")
    refuse_incomplete(classes[0])
    return classes[0]


def all_experiments() -> list[type[Experiment]]:
    """The classes of all experiments that come with mechir."""
    return [load_experiment(name) for name in experiments()]


def default_experiment() -> type[Experiment]:
    """The experiment that is run where none is named."""
    return next(kind for kind in all_experiments() if kind.is_default)


def answering(question: str) -> type[Experiment]:
    """The experiment that answers a question of the report."""
    return next(kind for kind in all_experiments() if question in kind.answers)


def shown(name: str, summary: pd.DataFrame) -> pd.DataFrame:
    """The part of a summary that a terminal prints; of an experiment that does not come with mechir all of it."""
    return load_experiment(name).table(summary) if name in experiments() else summary
