"""For `mkdocs build`: links of notebooks to other pages, which mkdocs-jupyter leaves as files, and bars in tables."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, page: Any, **told: Any) -> str:
    if not page.file.src_uri.endswith(".ipynb"):
        # In a table GitHub wants \| in code, and shows |; Python's Markdown shows both characters.
        return re.sub(r"<code>[^<]*</code>", lambda code: code[0].replace(r"\|", "|"), html)
    return re.sub(r'href="((?:\.\./)?[\w-]+)\.(?:md|ipynb)(#[\w-]+)?"', r'href="../\1/\2"', html)
