"""`mechir new experiment NAME`: a commented skeleton and its test, to start from."""

from __future__ import annotations

import re
from pathlib import Path

import click

from mechir.cli.options import Command
from mechir.errors import MechirError

SKELETON = Path(__file__).parent.parent / "data" / "skeleton"


@click.group()
def new() -> None:
    """Writes files to start from."""


@new.command(cls=Command)
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), default=".", show_default=True, help="Where they are put.")
def experiment(name: str, folder: Path) -> None:
    """Writes NAME.py, an experiment with one option and one measure of its own, and test_NAME.py."""
    from mechir.analyses import class_name

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise MechirError(f"'{name}' cannot name a Python file: write lower-case letters, digits and _, e.g. my_heads.")
    if not folder.is_dir():
        raise MechirError(f"There is no directory '{folder}': give one that exists with --folder.")
    files = {folder / f"{name}.py": "experiment.txt", folder / f"test_{name}.py": "test.txt"}
    if there := [file for file in files if file.exists()]:
        raise MechirError(f"'{there[0]}' exists already: take another name, or remove it.")
    words = {"name": name, "class_name": class_name(name), "title": name.replace("_", " ").capitalize()}
    for file, template in files.items():
        file.write_text((SKELETON / template).read_text(encoding="utf-8").format(**words), encoding="utf-8")
        click.echo(f"Wrote {file}")
    click.echo(f"Run it: mechir run {folder / name}.py; test it: pytest {folder / f'test_{name}.py'}")
