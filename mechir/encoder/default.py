"""The model that is loaded when none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechir.encoder.hooked import HookedEncoder

DEFAULT = Path(__file__).parent.parent / "data" / "toy-model"
"""A tiny random BERT: it shows that everything runs, and its numbers mean nothing."""


def load(name_or_path: str | Path | None = None, **options: Any) -> HookedEncoder:
    """`HookedEncoder.from_pretrained`, or the default model when no name is given."""
    return HookedEncoder.from_pretrained(DEFAULT if name_or_path is None else name_or_path, **options)
