"""The report's page: data in, one HTML file out, which loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mechir.views import charts
from mechir.views import page as pages


def page(data: Mapping[str, Any]) -> str:
    """The page of the data that `mechir.reporting.report.gathered` returns."""
    title = f"mechir report: {data['registry']}"
    style = "".join(pages.static(name) for name in ("report.css", "strips.css"))
    body = pages.static("report.html")
    body += f'<script type="application/json" id="data">{pages.as_json(data)}</script>'
    parts = "\n".join(pages.static(name) for name in ("strips.js", "report.js", "dossier.js", "start.js"))
    script = f'(() => {{\n"use strict";\n{parts}}})();'  # Vega's script takes many names
    return pages.document(title, style, body, [charts.vega(), script])
