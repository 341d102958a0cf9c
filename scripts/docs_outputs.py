"""Runs the code of README and documentation, and writes what it prints into the `text` block right below it.

Run: python scripts/docs_outputs.py [PAGE ...]

Only a `text` block that follows a `python` or `bash` block directly is written; an empty one asks for the output. Of
`bash` only such a block runs, and only `mechir`. By default all pages on which everything that Python prints stands
below it. Each page runs from its top, in an empty folder.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mechir.cli import main as main_of_mechir

ROOT = Path(__file__).parent.parent
SHOWING = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("index.md", "assistants.md"))]
SHOWING += sorted((ROOT / "docs" / "howto").glob("*.md"))
FENCED = re.compile(
    r"^```(?P<kind>python|bash)\n(?P<code>.*?)^```$(?:\n+```text\n(?P<output>.*?)^```$)?", re.DOTALL | re.MULTILINE
)
COLUMNS = "100"
"""How wide the terminal is that everything is printed for."""


class Block(NamedTuple):
    """Code of a page, and the `text` block that follows it directly: what it prints, or None where there is none."""

    kind: str
    code: str
    output: str | None


def blocks(page: str) -> Iterator[Block]:
    """What runs of a page, in its order: all Python, and commands whose output stands below them."""
    for fence in FENCED.finditer(page):
        if fence["kind"] == "python" or fence["output"] is not None:
            yield Block(fence["kind"], fence["code"], fence["output"])


def printed(block: Block, names: dict[str, Any], page: str) -> str:
    """What a block prints."""
    width = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        return _commands(block.code) if block.kind == "bash" else _python(block.code, names, page)
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)


def _commands(code: str) -> str:
    """What commands print to standard output, one after the other."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for line in code.splitlines():
            command, *words = shlex.split(line, comments=True)
            if command != "mechir":
                raise ValueError(f"Only mechir runs here, not '{line}': leave no text block right below it.")
            main_of_mechir(words)
    return output.getvalue()


def _python(code: str, names: dict[str, Any], page: str) -> str:
    """What Python prints, and at its end the value of a last line that is an expression, as a notebook shows it."""
    tree = ast.parse(code, page)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(tree, page, "exec"), names)  # our own documentation
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), page, "eval"), names)
            if value is not None:
                print(repr(value))
    return output.getvalue()


def rewritten(page: str, name: str) -> str:
    """The page with the outputs of now."""
    names: dict[str, Any] = {}

    def of(fence: re.Match[str]) -> str:
        for block in blocks(fence[0]):
            output = printed(block, names, name)
        if fence["output"] is None:
            return fence[0]
        lines = "".join(f"{line.rstrip()}\n" for line in output.splitlines())
        return f"```{fence['kind']}\n{fence['code']}```\n\n```text\n{lines}```"

    return FENCED.sub(of, page)


def main() -> None:
    """Writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="*", default=SHOWING)
    for page in [page.resolve() for page in parser.parse_args().pages]:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            text = rewritten(page.read_text(encoding="utf-8"), page.name)
            os.chdir(ROOT)
        page.write_text(text, encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
