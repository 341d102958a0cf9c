"""The experiments by name and by file: classes that are checked when they are loaded."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd

import mechir.analyses
from mechir.errors import MechirError, closest, located
from mechir.experiment import OWN, Experiment, refuse_incomplete

PACKAGE = "mechir.analyses"


def experiments() -> dict[str, Path]:
    """The files of the experiments that come with mechir, by name, "paper/experiment"."""
    return {f"{file.parent.name}/{file.stem}": file for file in mechir.analyses.files()}


def load_experiment(name: str | Path) -> type[Experiment]:
    """The class of an experiment, by its name or by the path of a `.py` file.

    Raises:
        MechirError: for an unknown name, a file that is not there or that Python cannot read, one without an experiment
            or with several, or one that is not complete.
    """
    known, text = experiments(), str(name)
    if text in known:
        return _checked(lambda: importlib.import_module(f"{PACKAGE}.{text.replace('/', '.')}"), known[text])
    if not text.endswith(".py"):
        raise MechirError(f"Unknown experiment '{text}': the closest are {closest(text, known)}; or give a .py file.")
    file = Path(text).resolve()
    if not file.is_file():
        raise MechirError(f"There is no file '{text}': give that of an experiment, or a name such as '{min(known)}'.")
    if name := next((key for key, path in known.items() if path.resolve() == file), ""):
        return load_experiment(name)
    return _checked(lambda: _module_of(file), file)


def _checked(load: Callable[[], ModuleType], file: Path) -> type[Experiment]:
    """The experiment of a module; raises in one sentence for whatever is wrong with its file."""
    try:
        module = load()
        kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Experiment)]
        classes = [kind for kind in kinds if kind.__module__ == module.__name__]
        if len(classes) != 1:
            names = " and ".join(kind.__name__ for kind in classes) or "none"
            raise MechirError(f"'{file}' must define one experiment and defines {names}: see mechir.Experiment.")
        refuse_incomplete(classes[0])
        return classes[0]
    except MechirError:
        raise
    except Exception as error:
        frozen = ": write @dataclass(frozen=True) above the class" if "non-frozen dataclass" in str(error) else ""
        raise MechirError(f"'{file}' cannot be loaded, {located(error, str(file))}{frozen}.") from error


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


def shipped(name: str) -> type[Experiment] | None:
    """The class of an experiment that comes with mechir; None for another, and for a file that cannot be loaded."""
    try:
        return load_experiment(name) if name in experiments() else None
    except MechirError:
        return None


def all_experiments() -> list[type[Experiment]]:
    """The classes of all experiments that come with mechir, without files that cannot be loaded."""
    return [kind for name in experiments() if (kind := shipped(name))]


def default_experiment() -> type[Experiment]:
    """The experiment that is run where none is named."""
    return _first(lambda kind: kind.is_default)


def answering(question: str) -> type[Experiment]:
    """The experiment that answers a question of the report."""
    return _first(lambda kind: question in kind.answers)


def _first(fits: Callable[[type[Experiment]], bool]) -> type[Experiment]:
    """The first experiment that fits; where none does, raises for the file that cannot be loaded."""
    return next(filter(fits, all_experiments()), None) or next(filter(fits, map(load_experiment, experiments())))


def shown(name: str, summary: pd.DataFrame) -> pd.DataFrame:
    """The part of a summary that a terminal prints; of an experiment that does not come with mechir all of it."""
    return kind.table(summary) if (kind := shipped(name)) else summary
