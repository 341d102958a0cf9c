"""The experiments that come with mechir, one class in one file: `from mechir.analyses import AttentionContrast`.

In a checkout the files are in the folder `analyses/` beside the package.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
if not any(_FOLDER.glob("*/*.py")):
    __path__.append(str(_FOLDER.parent.parent / "analyses"))


def files() -> list[Path]:
    """The files of the experiments, each in the folder of its paper."""
    return sorted(file for path in __path__ for file in Path(path).glob("*/[!_]*.py") if file.name[:5] != "test_")


def _modules() -> dict[str, str]:
    """The module of each class: `AttentionContrast` is in `vast2025.attention_contrast`."""
    return {class_name(file.stem): f"{__name__}.{file.parent.name}.{file.stem}" for file in files()}


def class_name(stem: str) -> str:
    """The name of the class in a file: `attention_contrast` holds `AttentionContrast`."""
    return "".join(word.capitalize() for word in stem.split("_"))


def __getattr__(name: str) -> Any:
    modules = {} if name.startswith("_") else _modules()
    if name not in modules:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(modules[name]), name)


def __dir__() -> list[str]:
    return sorted(_modules())
