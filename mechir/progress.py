"""The progress of a run: how far it is, as plain lines or as one line of a terminal that is written anew."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

EVERY = 0.2
"""Seconds between two drawings of the display."""
BAR = 16
"""Letters of the bar."""


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        experiment: the name of the step that is in work.
        step: its number, from 1.
        steps: how many steps there are, as far as they are known.
        done: units of it that are there.
        units: all of its units; 0 while it is prepared.
        pairs: pairs or contrasts of it that are there.
        of_pairs: all of them.
        kind: "pairs" or "contrasts".
        left: seconds until the whole run is finished; None while nothing is measured.
    """

    experiment: str
    step: int
    steps: int
    done: int = 0
    units: int = 0
    pairs: int = 0
    of_pairs: int = 0
    kind: str = "pairs"
    left: float | None = None

    @property
    def share(self) -> float:
        """The share of its units that are there."""
        return self.done / self.units if self.units else 0.0


@runtime_checkable
class Watch(Protocol):
    """Shows how far a run is."""

    def say(self, line: str) -> None:
        """One line about what happens."""

    def announce(self, line: str) -> None:
        """One line that is needed while the run goes on, such as an address."""

    def show(self, standing: Standing) -> None:
        """How far the run is now."""

    def close(self) -> None:
        """The run has ended, in one way or another."""


class Lines:
    """Progress as plain lines, each given to a function: for files, logs, notebooks."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = self.announce = say

    def show(self, standing: Standing) -> None:
        """One line for each unit."""
        if not standing.units or not standing.done:
            return
        step = f"{standing.experiment}, step {standing.step} of {standing.steps}, " if standing.steps > 1 else ""
        left = "" if standing.left is None else f", {duration(standing.left)} left"
        pairs = f"{standing.pairs}/{standing.of_pairs} {standing.kind}"
        self.say(f"{step}{standing.done}/{standing.units} units: {pairs}{left}")

    def close(self) -> None:
        """Nothing."""


class Display:
    """Progress as one line of a terminal: the experiment, the step, a bar, the units and the time left."""

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or sys.stderr
        self.drawn = 0.0
        self.empty = True

    def say(self, line: str) -> None:
        """Nothing: the display is all there is."""

    def announce(self, line: str) -> None:
        """One line above the display."""
        self.stream.write(f"\r\033[K{line}\n")

    def show(self, standing: Standing) -> None:
        """Draws the line anew, some times a second."""
        ends = standing.units and standing.done == standing.units
        if time.monotonic() - self.drawn < EVERY and not ends:
            return
        self.drawn, self.empty = time.monotonic(), False
        width = shutil.get_terminal_size().columns
        self.stream.write(f"\r\033[K{written(standing, width - 1)}")
        self.stream.flush()

    def close(self) -> None:
        """Clears the line."""
        if not self.empty:
            self.stream.write("\r\033[K")
            self.stream.flush()


class Quiet:
    """No progress."""

    def announce(self, line: str) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def show(self, standing: Standing) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def shown_by_default() -> Watch:
    """The display where there is a terminal, nothing elsewhere."""
    return Display() if sys.stderr.isatty() else Quiet()


def written(standing: Standing, width: int) -> str:
    """How far a run is, in one line of so many letters at most; the bar goes first where there is no room."""
    full = round(BAR * standing.share)
    parts = [standing.experiment, f"step {standing.step} of {standing.steps}"]
    parts += [f"[{'=' * full}{' ' * (BAR - full)}]"]
    parts += [f"{standing.done}/{standing.units} units" if standing.units else "preparing"]
    parts += [] if standing.left is None else [f"{duration(standing.left)} left"]
    while len("  ".join(parts)) > width and len(parts) > 1:
        parts.pop(2 if len(parts) > 3 else -1)
    return "  ".join(parts)[:width]


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
