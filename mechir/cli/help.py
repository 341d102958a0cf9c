"""How help looks: options in sections, the important first; lines break at spaces alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

from mechir.errors import MechirError, closest

WIDEST = 110
"""Letters of a line of help at most, however wide the terminal is."""
COLUMN = 28
"""Letters of the column of options and commands at most; what is longer has its sentence on the next line."""
WHOLE = {"-": "\u2011", "[default: ": "[default:\u00a0"}
"""What stands in the place of a hyphen and a space while lines are broken, so that `--limit-queries` stays whole."""
TECHNICAL = (
    "relevant_label", "max_length", "device", "dtype", "duplicates", "leave_out", "registry", "dry_run", "workers",
    "slurm", "dask", "engine", "certificates", "listen", "shard", "fresh", "quiet",
)  # fmt: skip
"""Options of how a run is computed and kept, in the order in which help names them."""


class Formatter(click.HelpFormatter):
    """Writes help whose lines break at spaces alone."""

    def write_text(self, text: str) -> None:
        """Writes a paragraph."""
        super().write_text(_whole(text))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = COLUMN, col_spacing: int = 2) -> None:
        """Writes two columns."""
        super().write_dl([(first, _whole(second)) for first, second in rows], col_max, col_spacing)

    def getvalue(self) -> str:
        """The text."""
        text = super().getvalue()
        for broken, whole in WHOLE.items():
            text = text.replace(whole, broken)
        return text


def _whole(text: str) -> str:
    for broken, whole in WHOLE.items():
        text = text.replace(broken, whole)
    return text


class Context(click.Context):
    """The context of a command whose help a `Formatter` writes."""

    formatter_class = Formatter


class Flag(click.Option):
    """An option whose range stands in its sentence, not in brackets behind it."""

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What stands in brackets: the default."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra

    def make_metavar(self, ctx: click.Context) -> str:
        """N for a whole number; the rest as click says it."""
        whole = isinstance(self.type, click.types.IntParamType) and self.metavar is None
        return "N" if whole else super().make_metavar(ctx)


class Group(click.Group):
    """A command of commands, which help lists in the order in which they were added."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.commands)

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence, whole."""
        return first_sentence(self)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that is named; raises for an unknown one, with the closest."""
        if self.get_command(ctx, args[0]) is None:
            near = closest(args[0], self.list_commands(ctx))
            raise MechirError(
                f"No such command '{args[0]}': the closest are {near}; {ctx.command_path} --help lists all."
            )
        return super().resolve_command(ctx, args)


def first_sentence(command: click.Command) -> str:
    """The first paragraph of the help of a command."""
    return command.short_help or " ".join((command.help or "").split("\n\n")[0].split())


def write_options(
    command: click.Command, of_experiment: Sequence[str], ctx: click.Context, formatter: Formatter
) -> None:
    """Writes the options of a command: what it runs on, those of an experiment, and the technical ones of a model."""
    named = {param.name or "": param for param in command.params if isinstance(param, click.Option)}
    technical = [name for name in TECHNICAL if name in named] if "device" in named else []
    chosen = [name for name in named if name in of_experiment]
    first = [name for name in named if name not in {*technical, *chosen}]
    sections = {
        "What it runs on" if chosen else "Options": first,
        "Options of the experiment": chosen,
        "How it is computed and kept": technical,
    }
    shown = {title: [named[name] for name in names] for title, names in sections.items() if names}
    if help_ := command.get_help_option(ctx):
        shown.setdefault(next(reversed(shown), "Options"), []).append(help_)
    for title, options in shown.items():
        if records := [record for option in options if (record := option.get_help_record(ctx))]:
            with formatter.section(title):
                formatter.write_dl(records)
