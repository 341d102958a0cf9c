"""Options that several commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from mechir.cli.help import Context, Flag, first_sentence, write_options
from mechir.errors import MechirError

PATH, COUNT = click.Path(path_type=Path), click.IntRange(min=1)
option = functools.partial(click.option, cls=Flag)


class Command(click.Command):
    """A command that refuses repeated options and empty values, where click would take the last silently.

    `of_experiment`: the options of an experiment, which checks by itself whether they may be empty.
    """

    context_class = Context
    of_experiment: tuple[str, ...] = ()

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence, whole."""
        return first_sentence(self)

    def format_options(self, ctx: click.Context, formatter: Any) -> None:
        """Writes the options in sections."""
        write_options(self, self.of_experiment, ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; messages name its options as they are given here, `--top-k 3` and not `top_k=3`."""
        try:
            return super().invoke(ctx)
        except MechirError as error:
            raise MechirError(in_flags(str(error), self.params)) from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises for an option of one value that is given twice, and for an empty value."""
        given, _, order = self.make_parser(ctx).parse_args(list(args))
        for param in order:
            value, times = given.get(param.name or ""), order.count(param)
            if isinstance(param, click.Option) and times > 1 and not (param.multiple or param.is_eager):
                named = " and ".join(dict.fromkeys([*param.opts, *param.secondary_opts]))
                raise MechirError(f"{named} is given {times} times and is taken once: leave the others out.")
            if param.name not in self.of_experiment and "" in (value if isinstance(value, list | tuple) else [value]):
                named = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
                raise MechirError(f"{named} is empty: give it a value, or leave it out.")
        return super().parse_args(ctx, args)


ARGUMENT = re.compile(r"""(?<![\w.'"(=])(?P<name>[a-z]\w*)=(?P<value>'[^']*'|(?:[^\s,;:.)]|[,;:.](?=[^\s]))*)""")
"""An argument of Python in a message: `top_k=3`, `run='bm25'`, or `out=` alone."""
ELSEWHERE = {"fresh": "--fresh"}
"""Options of `mechir run` that the messages of other commands name."""


def in_flags(message: str, options: Iterable[click.Parameter]) -> str:
    """A message with the names of these options as the command line has them."""
    flags = ELSEWHERE | {one.name or "": one.opts[0] for one in options if isinstance(one, click.Option)}

    def written(argument: re.Match[str]) -> str:
        flag = flags.get(argument["name"])
        value = "" if argument["value"] == "True" else argument["value"]
        return argument[0] if flag is None else f"{flag} {value}".rstrip()

    return ARGUMENT.sub(written, message)


def shared(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Combines several options into one decorator, in their order."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


MODEL = (
    option("--model", "-m", help="A checkpoint's directory or its name on the hub [default: the one that ships]."),
    option("--device", help="Where it computes: cpu, cuda, cuda:1 [default: a GPU where there is one]."),
    option(
        "--dtype",
        default="float32",
        show_default=True,
        help="The numbers it computes with: float32, float64 or bfloat16.",
    ),
    option(
        "--relevant-label",
        metavar="LABEL",
        help="Which label means relevance, by number or name [default: the usual one].",
    ),
    option("--max-length", type=COUNT, help="Word pieces read of a pair [default: what the model says]."),
)
RULES = (
    option(
        "--duplicates",
        type=click.Choice(["refuse", "max"]),
        help="Of a pair judged twice with different grades: refuse it, or take the largest [default: refuse].",
    ),
    option(
        "--leave-out",
        type=click.FloatRange(min=0, max=1),
        metavar="SHARE",
        help="The share of judgments, 0 to 1, that may name what is missing or empty [default: 0.01].",
    ),
)


def collection_option(more: str = "") -> tuple[Callable[[Any], Any], ...]:
    """`--collection` (repeated, if `more` explains how), its rules, and `--limit-queries`."""
    text = f"A directory or an ir_datasets id [default: the one that ships]{more}."
    limit = option("--limit-queries", type=COUNT, help="The first N judged queries alone [default: all; embedded: 20].")
    return option("--collection", "-c", multiple=bool(more), help=text), *RULES, limit


def rules_of(given: dict[str, Any]) -> dict[str, Any]:
    """Removes the values of `RULES` from the options and returns them as arguments of `collection`."""
    rules = {name: given.pop(name) for name in ("duplicates", "leave_out")}
    return {name: value for name, value in rules.items() if value is not None}


REGISTRY = option(
    "--registry", type=PATH, metavar="DIR", default="mechir-registry", show_default=True, help="Where runs are."
)
