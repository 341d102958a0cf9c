"""The command line: `mechir run | new | score | show | findings | report | export | delete | convert | fetch`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from mechir.cli.ask import delete, export, findings, report, show
from mechir.cli.files import convert, fetch, new, score
from mechir.cli.help import WIDEST, Group
from mechir.cli.run import run
from mechir.errors import LostWorkers, MechirError, closest

START = """\b
Examples:
  mechir run --dry-run                      what the whole chain costs
  mechir run NAME --limit-queries 10        one experiment (mechir run -h)
  mechir findings --role matching --holds   what is known, and holds
The words of the output: docs/glossary.md."""


SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": WIDEST}


@click.group(cls=Group, context_settings=SETTINGS, epilog=START)
@click.version_option(package_name="mechir-encoders")
def commands() -> None:
    """How a neural reranker decides that a document is relevant, proved by intervention."""


for command in (run, report, findings, show, export, delete, score, new, convert, fetch):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; exits with 2 after a user's mistake, printed as one sentence, 1 where workers were lost.

    130 on Ctrl-C, 143 on SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        commands.main(given, prog_name="mechir", standalone_mode=False)
    except MechirError as error:
        _exit(2, str(error))
    except click.ClickException as error:
        _exit(2, _sentence(error))
    except LostWorkers as error:
        _exit(1, str(error))
    except (KeyboardInterrupt, click.Abort):
        _exit(130, "interrupted; the same command goes on from the last finished unit")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    _exit(143, "terminated; the same command goes on from the last finished unit")


def _sentence(error: click.ClickException) -> str:
    """A mistake that click found, as one sentence; of an unknown option the closest."""
    ctx, text = getattr(error, "ctx", None), error.format_message().rstrip(".")
    if ctx is None:
        return f"{text}."
    if isinstance(error, click.NoSuchOption):
        flags = [flag for param in ctx.command.get_params(ctx) for flag in param.opts if flag.startswith("--")]
        text = f"No such option '{error.option_name}': the closest are {closest(error.option_name, flags)}"
    return f"{text}; {ctx.command_path} --help says what is taken."


def _exit(code: int, sentence: str) -> None:
    click.echo(f"mechir: {sentence}", err=True)
    sys.exit(code)
