"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mechir.errors import MechirError

PATH, COUNT = click.Path(path_type=Path), click.IntRange(min=1)


class Command(click.Command):
    """A command that refuses repeated options and empty values, where click would take the last silently.

    `may_be_empty`: options whose empty value means something, or that the experiment checks by itself.
    """

    may_be_empty: frozenset[str] = frozenset()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises for an option of one value that is given twice, and for an empty value."""
        given, _, order = self.make_parser(ctx).parse_args(list(args))
        for param in order:
            value, times = given.get(param.name or ""), order.count(param)
            if isinstance(param, click.Option) and times > 1 and not (param.multiple or param.is_eager):
                named = " and ".join(dict.fromkeys([*param.opts, *param.secondary_opts]))
                raise MechirError(f"{named} is given {times} times and is taken once: leave the others out.")
            if param.name not in self.may_be_empty and "" in (value if isinstance(value, list | tuple) else [value]):
                named = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
                raise MechirError(f"{named} is empty: give it a value, or leave it out.")
        return super().parse_args(ctx, args)


def shared(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Combines several options into one decorator, in their order."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


MODEL = (
    click.option(
        "--model", "-m", help="A checkpoint's directory or its name on the hub [default: the one that ships]."
    ),
    click.option("--device", help="cpu, cuda, cuda:1 [default: a GPU where there is one]."),
    click.option("--dtype", default="float32", show_default=True, help="float32, float64 or bfloat16."),
    click.option("--relevant-label", help="Which label means relevance, by number or name [default: the usual one]."),
    click.option("--max-length", type=COUNT, help="Word pieces read of a pair [default: what the model says]."),
)
RULES = (
    click.option(
        "--duplicates",
        type=click.Choice(["refuse", "max"]),
        help="Of a pair judged twice with different grades: refuse it, or take the largest [default: refuse].",
    ),
    click.option(
        "--leave-out",
        type=click.FloatRange(min=0, max=1),
        metavar="SHARE",
        help="The share of judgments that may name what is missing or empty [default: 0.01].",
    ),
)


def collection_option(more: str = "") -> tuple[Callable[[Any], Any], ...]:
    """`--collection` (repeated, if `more` explains how), its rules, and `--limit-queries`."""
    text = f"A directory or an ir_datasets id [default: the one that ships]{more}."
    limit = click.option("--limit-queries", type=COUNT, help="Only the first Q judged queries.")
    return click.option("--collection", "-c", multiple=bool(more), help=text), *RULES, limit


def rules_of(given: dict[str, Any]) -> dict[str, Any]:
    """Removes the values of `RULES` from the options and returns them as arguments of `collection`."""
    rules = {name: given.pop(name) for name in ("duplicates", "leave_out")}
    return {name: value for name, value in rules.items() if value is not None}


REGISTRY = click.option("--registry", type=PATH, default="mechir-registry", show_default=True, help="Where runs are.")
