"""The documentation as a site: every page has its place, every module is documented once, and no link is lost."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import mechir as mi
from scripts.site_html import on_page_content

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
INTERNAL = {
    "analyses", "atomic", "certificates", "cli", "cli.ask", "cli.files", "cli.help", "cli.options", "cli.plan", "cli.run", "cli.where", "encoder", "encoder.checkpoint",
    "encoder.cross_encoder", "encoder.families", "encoder.fingerprint", "encoder.forward", "encoder.loading",
    "encoder.stored", "encoder.tiers", "encoder.tokenizing", "encoder.traced", "encoder.traced.attention",
    "encoder.traced.decoder", "encoder.traced.loading", "encoder.traced.places", "encoder.traced.prompt",
    "encoder.traced.readout", "encoder.traced.rotary", "inference", "inference.flipped", "irds", "methods", "methods.checks",
    "job_files", "methods.edge_gradients", "methods.edge_patching", "parts", "place", "planted", "planted.weights",
    "processes", "provenance", "recorder", "registry", "registry.in_sql", "registry.names", "registry.renamed", "reporting",
    "reporting.commands", "reporting.sentences", "source_reference",
    "trec_files", "views", "views.attend", "views.charts", "views.circuits", "views.grid", "views.heads", "views.labels", "views.page",
    "views.scatter", "views.tables",
}  # fmt: skip
"""Modules that nobody calls from outside, and packages that are documented by what is in them."""


class _Any(yaml.SafeLoader):
    """Reads tags of other programs as nothing."""


_Any.add_multi_constructor("", lambda loader, suffix, node: None)


def navigation() -> list[tuple[str, ...]]:
    """Of every page in the navigation the titles above it, its own, and its file."""

    def walk(entry: Any, above: tuple[str, ...]) -> list[tuple[str, ...]]:
        if isinstance(entry, str):
            return [(*above, entry)]
        if isinstance(entry, list):
            return [found for one in entry for found in walk(one, above)]
        return [found for title, inner in entry.items() for found in walk(inner, (*above, title))]

    return walk(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Any)["nav"], ())


def documented() -> list[str]:
    """What stands in the reference, below `mechir.`: modules, and classes of some."""
    return [name for page in REFERENCE for name in re.findall(r"^::: mechir\.(\S+)$", page.read_text(), re.MULTILINE)]


def modules_of(names: list[str]) -> set[str]:
    """The modules of these."""
    return {re.sub(r"\.[A-Z]\w*$", "", name) for name in names}


def test_every_page_stands_in_the_navigation_once() -> None:
    files = [place[-1] for place in navigation()]
    pages = [file.relative_to(DOCS).as_posix() for kind in ("md", "ipynb") for file in DOCS.rglob(f"*.{kind}")]
    assert sorted(files) == sorted(page for page in pages if ".ipynb_checkpoints" not in page)
    groups = dict.fromkeys(place[0] for place in navigation())
    assert list(groups) == ["Home", "Tutorials", "How to", "Papers", "Concepts", "API", "Project"]


def test_every_module_is_in_the_reference_once_or_internal() -> None:
    package = Path(mi.__file__).parent
    files = [file.relative_to(package).with_suffix("") for file in package.rglob("*.py")]
    modules = {".".join(file.parts).removesuffix("__init__").rstrip(".") for file in files} - {""}
    there = modules_of(documented())
    assert there | INTERNAL == modules and not there & INTERNAL, "put a new module on a page of docs/reference"
    assert sorted(documented()) == sorted(set(documented()))


def test_every_public_name_comes_from_a_module_in_the_reference() -> None:
    for name in dir(mi):
        module = getattr(getattr(mi, name), "__module__", None) or getattr(mi, name).__name__
        assert module.removeprefix("mechir.") in {*modules_of(documented()), "planted"}, name


@pytest.mark.parametrize("page", REFERENCE, ids=lambda page: page.stem)
def test_a_page_of_the_reference_begins_with_a_sentence_and_is_listed(page: Path) -> None:
    title, sentence, first = page.read_text(encoding="utf-8").split("\n\n")[:3]
    assert (
        re.fullmatch(r"# [A-Z].*", title) and re.fullmatch(r"[A-Z].*\.", sentence) and first.startswith("::: mechir.")
    )
    line = f"| [{title[2:]}](reference/{page.name}) | {sentence} |"
    assert line in (DOCS / "reference.md").read_text(encoding="utf-8")
    assert ("API", title[2:], f"reference/{page.name}") in navigation()


def test_names_in_tables_stay_in_one_piece() -> None:
    style = (DOCS / "stylesheets" / "extra.css").read_text(encoding="utf-8")
    assert re.search(r"\.md-typeset td code[^}]*white-space: nowrap", style)
    assert "stylesheets/extra.css" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_a_bar_of_a_direction_in_a_table_stands_alone() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    assert on_page_content(r"<td><code>query\|doc</code> a\|b</td>", page) == r"<td><code>query|doc</code> a\|b</td>"
