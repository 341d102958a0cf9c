"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def shared(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One decorator of several options, in their order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


MODEL = (
    click.option(
        "--model", "-m", help="A checkpoint's directory or its name on the hub [default: the one that ships]."
    ),
    click.option("--device", help="cpu, cuda, cuda:1 [default: a GPU where there is one]."),
    click.option("--dtype", default="float32", show_default=True, help="float32, float64 or bfloat16."),
    click.option("--relevant-label", help="Which label means relevance, by number or name [default: the usual one]."),
    click.option(
        "--max-length", type=click.IntRange(min=1), help="Word pieces read of a pair [default: what the model says]."
    ),
)
LIMIT = click.option("--limit-queries", type=click.IntRange(min=1), help="Only the first Q judged queries.")


def collection_option(more: str = "") -> tuple[Callable[[Any], Any], ...]:
    """`--collection`, which may be repeated where `more` says what that means, and `--limit-queries`."""
    told = f"A directory or an ir_datasets id [default: the one that ships]{more}."
    return click.option("--collection", "-c", multiple=bool(more), help=told), LIMIT


REGISTRY = click.option(
    "--registry", type=click.Path(path_type=Path), default="mechir-registry", show_default=True, help="Where runs are."
)
