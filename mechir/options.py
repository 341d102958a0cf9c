"""The options of an experiment: which there are, of what kind, and checked before anything is measured or written."""

from __future__ import annotations

import inspect
import numbers
import typing
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError
from mechir.sweep import forwards

KINDS: dict[Any, str] = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
"""What an option may be, and how a sentence says it."""


LARGEST = 2**63
"""Numbers reach up to here: what a random generator takes as a seed."""


def options(experiment: ModuleType) -> dict[str, inspect.Parameter]:
    """The options of an experiment: the keyword-only parameters of its `measure`, but for frames that it finds."""
    parameters = inspect.signature(experiment.measure, eval_str=True).parameters
    keywords = {name: one for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    return {name: one for name, one in keywords.items() if one.annotation is not pd.DataFrame}


def kind_of(parameter: inspect.Parameter) -> Any:
    """Which of `KINDS` an option is, `int | None` like `int`; None where its annotation says nothing."""
    written = (parameter.annotation, *typing.get_args(parameter.annotation))
    return next((kind for kind in KINDS if kind in written), None)


def with_defaults(module: ModuleType, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an experiment, as chosen or by default.

    Raises:
        MechirError: for one that it does not take, or a value of another kind.
    """
    parameters = options(module)
    for name in chosen:
        if name not in parameters:
            raise MechirError(f"'{module.name}' has no option '{name}': it takes {', '.join(parameters) or 'none'}.")
    return {
        name: _typed(module, one, chosen[name]) if name in chosen else one.default for name, one in parameters.items()
    }


def _typed(module: ModuleType, parameter: inspect.Parameter, value: Any) -> Any:
    """A value as its option has it: 1 and numpy's 1.0 are one number, so that they are one run."""
    kind, flag = kind_of(parameter), isinstance(value, bool | np.bool_)
    if kind is None or (value is None and type(None) in typing.get_args(parameter.annotation)):
        return value
    number = isinstance(value, numbers.Real) and not flag and bool(abs(float(value)) < LARGEST)  # which no NaN is
    fits = {bool: flag, int: number and float(value).is_integer(), float: number, str: isinstance(value, str)}
    if not fits[kind]:
        raise MechirError(f"--{_flag(parameter.name)} of '{module.name}' is {value!r}: write {KINDS[kind]}.")
    return kind(value)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def by_name(function: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What a function asks for by name among what is known."""
    return {name: known[name] for name in inspect.signature(function).parameters if name in known}


def in_normal_form(
    module: ModuleType, model: Any, material: Sequence[Any], chosen: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """The options as the experiment's `check` writes them, so that what is one thing is one run.

    Args:
        module: an experiment; one without `check` takes its options as they come.
        model: a `HookedEncoder`.
        material: the pairs or contrasts of the pool.
        chosen: all options, as of `with_defaults`.
        known: what `check` may ask for by name.

    Raises:
        MechirError: for what the experiment cannot do with this model and this pool.
    """
    normal = dict(chosen)
    if hasattr(module, "check"):
        normal |= module.check(model, material, **by_name(module.check, known), **chosen)
    if hasattr(module, "interventions"):
        forwards(model, module.interventions(model, **normal))  # refuses what does not fit the model
    return normal
