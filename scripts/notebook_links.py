"""For `mkdocs build`: links of notebooks to other pages, which mkdocs-jupyter leaves as files."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, page: Any, **told: Any) -> str:
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return re.sub(r'href="((?:\.\./)?[\w-]+)\.(?:md|ipynb)(#[\w-]+)?"', r'href="../\1/\2"', html)
