"""The numbers and charts of the documentation, remade from what they come from: see `scripts/docs_runs.py`.

Run: bash scripts/remake_docs [--check] [--only NAME NAME ...]

What is in `build/docs` is not made again: after a change of mechir's own code take that folder away. What needs
collections that do not ship needs MECHIR_SHARED. In a page a number, or a table, is between

    <!-- n RUN: CONDITIONS: COLUMNS -->.357 [.324, .390]<!-- /n -->
    <!-- table RUN: CONDITIONS | CELL | CELL ... --> (the table, of which the header stays) <!-- /table -->

RUN is the summary of a run, or a frame of `scripts/docs_frames.py`; RUN.findings is what it and the runs on its way
found, RUN.record its record (`pairs`, `queries`), RUN.NAME another frame of it. CONDITIONS (`site=h1.1
contrast="relevant - weak"`; =, !=, <, <=, >, >=) pick a row; `row` is its place from 1. One column is a value, two `low
to high`, three a value with its interval. `count` is how many rows there are; `mean(a)`, `median(a)`, `min(a)`,
`max(a)`, `spearman(a,b)`, `pearson(a,b)`, `shared(a,b,10)` and `by_chance(a,b,10)` are of all of them. After a column:
`/2` decimals (by default 3), `/g2` significant digits, `/%` per cent, `/p` a p-value with its sign, `/code` as code,
`/c2` of a text two parts between commas; a column with `/star` is a p: below .05 the others are bold with a star. A
CELL is COLUMNS, or of another row CONDITIONS: COLUMNS or RUN: CONDITIONS: COLUMNS, the one with the same values in
columns with a star: `site*`.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from scripts import docs_frames
from scripts.docs_made import REGISTRY, Made, keep, note, noted, run_of
from scripts.docs_markers import NUMBER, TABLE, Wrong, rewritten
from scripts.docs_runs import COMMANDS, FRAMES, RUNS

DOCS = Path(__file__).parent.parent / "docs"
SHARED = "MECHIR_SHARED"


def make(name: str) -> None:
    """Makes it, or what is missing of it, and notes it; what is no run and there already stays."""
    given = COMMANDS[name].replace("SHARED", os.environ.get(SHARED, ""))
    if name in RUNS:
        mechir = str(Path(sys.executable).with_name("mechir"))
        note(name, *ids_of(said([mechir, "run", *given.split(), "--registry", str(REGISTRY)])))
    elif name in noted():
        return
    elif name in FRAMES:
        keep(name, docs_frames.made(given))
        note(name)
    else:
        script, *words = given.split()
        subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *words], check=True)
        note(name)


def said(command: list[str]) -> str:
    """What a command prints, errors and all; it is shown as it comes."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", file=sys.stderr, flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return "".join(lines)


def ids_of(output: str) -> list[str]:
    """The ids of the runs that `mechir run` names, each once, its own, which is the last, first."""
    return list(dict.fromkeys(reversed(re.findall(r"^Run ([0-9a-f]+): ", output, re.MULTILINE))))


def changes() -> Iterator[tuple[Path, bytes]]:
    """The pages and figures that would be other than they are, with what they would hold."""
    frames = Made()
    for page in sorted(DOCS.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        try:
            new = rewritten(old, frames)
        except Wrong as error:
            raise SystemExit(f"docs/{page.name}: {error}") from error
        if new != old:
            yield page, new.encode()
    for name in frames:
        figure = DOCS / "figures" / f"{name}.png"
        if name in RUNS and figure.is_file():
            drawn = small(run_of(name).path / "chart.png")
            if figure.read_bytes() != drawn:
                yield figure, drawn


def small(chart: Path) -> bytes:
    """The picture in 256 colours, a fifth of its size."""
    Image.open(chart).convert("RGB").quantize().save(drawn := io.BytesIO(), "PNG", optimize=True)
    return drawn.getvalue()


def lines_of(file: Path, new: bytes) -> Iterator[str]:
    """What changes in a page, marker by marker; of a figure its name."""
    if file.suffix == ".png":
        yield file.name
        return
    old = file.read_text(encoding="utf-8")
    for pattern in (NUMBER, TABLE):
        for before, after in zip(pattern.finditer(old), pattern.finditer(new.decode()), strict=True):
            if before["text"] != after["text"]:
                says = f"{before['text']} -> {after['text']}" if pattern is NUMBER else "the table"
                yield f"{file.name}:{old.count(chr(10), 0, before.start()) + 1}: {before['spec'].split(':')[0]}: {says}"


def main() -> None:
    """Makes what is missing, then writes pages and figures, or says what would change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="make and write nothing: say what would change")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=COMMANDS, metavar="NAME", help="make only these")
    arguments = parser.parse_args()
    for name in [] if arguments.check else arguments.only:
        if "SHARED" in COMMANDS[name] and not os.environ.get(SHARED):
            print(f"{name}: needs {SHARED}, its numbers stay as they are")
        else:
            make(name)
    changed = list(changes())
    for file, new in changed:
        print("\n".join(lines_of(file, new)))
        if not arguments.check:
            file.write_bytes(new)
    sys.exit(int(arguments.check and bool(changed)))


if __name__ == "__main__":
    main()
