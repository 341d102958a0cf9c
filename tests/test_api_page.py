"""docs/api.md: every public name stands there, and its examples print what it says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from types import ModuleType

import pytest

import mechir as mi

PAGE = Path(__file__).parent.parent / "docs" / "api.md"


def test_every_public_name_stands_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = {word for quoted in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", quoted)}
    assert set(dir(mi)) - named == set()


def test_no_name_hides_a_module() -> None:
    modules = {file.stem for file in Path(mi.__file__).parent.iterdir() if not file.name.startswith("_")}
    hiding = {name for name in dir(mi) if name in modules and not isinstance(getattr(mi, name), ModuleType)}
    assert hiding == set()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", ["api.md", "architecture.md", "pyterrier.md"])
def test_the_examples_print_what_the_page_says(page: str, tmp_path: Path) -> None:
    text = PAGE.with_name(page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```pycon\n(.*?)```", text, re.DOTALL))
    names = {"getfixture": {"tmp_path": tmp_path}.get}
    test = doctest.DocTestParser().get_doctest(code, names, page, str(PAGE.with_name(page)), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    runner.run(test, out=report.append)
    assert runner.failures == 0 and runner.tries > 8, "".join(report)
