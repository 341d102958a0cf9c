"""A grade as judgments write it."""

from __future__ import annotations

import re
from typing import Any


def grade_of(written: Any) -> int:
    """The grade as a whole number of at most nine digits.

    Raises:
        ValueError: for anything else, such as 1_0, which Python reads as 10, or a grade of 0.5.
    """
    if not re.fullmatch(r"[+-]?\d{1,9}(\.0+)?", str(written), re.ASCII):
        raise ValueError(f"{written!r} is no whole number")
    return int(float(written))
