"""Whether an output that stands in the documentation is what is computed now."""

from __future__ import annotations

import re

_WRITTEN = "[-\u2212+]?(?:[0-9]+[.]?[0-9]*|[.][0-9]+)(?:e[-+]?[0-9]+)?"
NUMBER, IN_PICTURES = re.compile(rf"(?<![\w.]){_WRITTEN}"), re.compile(_WRITTEN)
"""That of a site, h1.1, belongs to its name; the M10 of a path does not."""
ALIKE = 0.01
"""Numbers of two machines may differ by this share, by one in the last digit that is written, and by `NOISE`."""
NOISE = 1e-5


def alike(one: str, other: str) -> bool:
    """Whether two numbers as they are written are the same; counts must be equal."""
    fractions = [text for text in (one, other) if not text.lstrip("-+\u2212").isdigit()]
    if one == other or not fractions:
        return one == other
    a, b = (float(text.replace("\u2212", "-")) for text in (one, other))
    last = min(_last_place(text) for text in fractions)
    return abs(a - b) <= max(1.001 * last, ALIKE * max(abs(a), abs(b)), NOISE)


def _last_place(text: str) -> float:
    digits, _, exponent = text.partition("e")
    return float(10 ** (int(exponent or 0) - len(digits.partition(".")[2])))


def same(kind: str, stored: str, now: str) -> bool:
    """Whether an output is what is computed now: the words, and of text the numbers; pictures are words and shapes."""
    is_text = kind in ("text/plain", "stdout")
    words = [" ".join((NUMBER if is_text else IN_PICTURES).sub("#", text).split()) for text in (stored, now)]
    if words[0] != words[1] or not is_text:
        return words[0] == words[1]
    return all(alike(*two) for two in zip(NUMBER.findall(stored), NUMBER.findall(now), strict=True))
