"""The command line: `mechir run | new | score | show | findings | report | export | delete | convert | fetch`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from mechir.cli.ask import delete, export, findings, report, show
from mechir.cli.files import convert, fetch, new, score
from mechir.cli.run import run
from mechir.errors import MechirError

START = """\b
Examples:
  mechir run --dry-run                           what the whole chain costs
  mechir run NAME --limit-queries 10             one experiment; mechir run --help lists them
  mechir findings --role matching --holds        what is known, and holds
The words of the output: docs/glossary.md."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=START)
@click.version_option(package_name="mechir-encoders")
def commands() -> None:
    """How a neural reranker decides that a document is relevant, proved by intervention."""


for command in (run, new, score, show, findings, report, export, delete, convert, fetch):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; exits with 2 after a user's mistake, printed as one sentence, 130 on Ctrl-C, 143 on SIGTERM."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        commands.main(args=list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
    except MechirError as error:
        _exit(2, str(error))
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        _exit(130, "interrupted; the same command goes on from the last finished unit")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    _exit(143, "terminated; the same command goes on from the last finished unit")


def _exit(code: int, sentence: str) -> None:
    click.echo(f"mechir: {sentence}", err=True)
    sys.exit(code)
