"""Pages that stand alone: data that cannot become markup, scripts that are named by their hash."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from mechir.atomic import written

DIGITS = 6
"""Significant digits that are kept of a number: more than any chart or table shows."""


@cache
def static(name: str) -> str:
    """A file beside this one: a script, a style, a template."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def plain(value: Any) -> Any:
    """The value as JSON knows it: floats to `DIGITS` digits, and None for those that are missing or infinite."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        listed = value.tolist() if hasattr(value, "tolist") else value
        return [plain(one) for one in listed] if isinstance(listed, Sequence) else plain(listed)
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return str(value)


def as_json(data: Any) -> str:
    """JSON that may stand in a `<script type="application/json">`, whatever its texts are.

    Nothing in it is outside ASCII (U+2028 and lone surrogates among that) or `<`, `>`, `&`.
    """
    written = json.dumps(plain(data), separators=(",", ":"), allow_nan=False)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def document(title: str, style: str, body: str, scripts: Sequence[str]) -> str:
    """A page that asks for nothing and runs these scripts alone, which its policy names by their SHA-256.

    Args:
        title: plain text.
        style: CSS.
        body: HTML, before the scripts.
        scripts: each without `</script`.
    """
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    own = " ".join(f"'sha256-{one}'" for one in hashes) or "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {own}; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        + "".join(f"<script>{one}</script>\n" for one in scripts)
        + "</body>\n</html>\n"
    )


def write(file: Path, page: str) -> Path:
    """Writes a page; it is whole or not there.

    Raises:
        MechirError: where it cannot be written.
    """
    # What was read from JSON may hold half of a surrogate pair, which UTF-8 cannot say.
    return written(file, lambda temporary: temporary.write_bytes(page.encode("utf-8", "xmlcharrefreplace")))
