"""Pages that stand alone: data that cannot become markup, scripts that are named by their hash."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from mechir.atomic import written

DIGITS = 6
"""Significant digits of a number: more than any chart or table shows."""


@cache
def static(name: str) -> str:
    """A file beside this one: a script, a style, a template."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def plain(value: Any) -> Any:
    """The value in the types of JSON: floats to `DIGITS` digits, None for those that are missing or infinite."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        listed = value.tolist() if hasattr(value, "tolist") else value
        return [plain(part) for part in listed] if isinstance(listed, Sequence) else plain(listed)
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return str(value)


def as_json(data: Any) -> str:
    """JSON for a `<script type="application/json">`: pure ASCII without `<`, `>`, `&`, whatever its texts are."""
    written = json.dumps(plain(data), separators=(",", ":"), allow_nan=False)
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def document(title: str, style: str, body: str, scripts: Sequence[str]) -> str:
    """A page that loads nothing and runs these scripts alone, which its policy names by their SHA-256.

    Args:
        title: plain text.
        style: CSS.
        body: HTML, before the scripts.
        scripts: each without `</script`.
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{text}'" for text in hashes) or "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; base-uri 'none'; form-action 'none'"
    tags = "".join(f"<script>{script}</script>\n" for script in scripts)
    return static("page.html").format(policy=policy, title=escape(title), style=style, body=body, scripts=tags)


def write(file: Path, page: str) -> Path:
    """Writes a page, whole or not at all; raises where it cannot be written."""
    # What was read from JSON may hold half of a surrogate pair, which UTF-8 cannot say.
    return written(file, lambda temporary: temporary.write_bytes(page.encode("utf-8", "xmlcharrefreplace")))


@dataclass(frozen=True)
class Drawing:
    """A drawing that a notebook shows as `html` with `script`, a terminal as `text`, and that is saved as a page.

    `html` is a fragment that needs nothing else, `title` names the page, `ground` is the CSS of its background.
    """

    html: str = field(repr=False)
    text: str
    title: str
    script: str = field(default="", repr=False)
    ground: str = ""

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"{self.html}\n<script>{self.script}</script>" if self.script else self.html

    def save(self, file: Path) -> Path:
        """Writes a page that needs no network, whole or not at all; raises where it cannot be written."""
        scripts = [self.script] if self.script else []
        return write(file, document(self.title, f"body {{ margin: 0; {self.ground}}}\n", self.html, scripts))
