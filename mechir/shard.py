"""The part of a run that one process of an array computes."""

from __future__ import annotations

from dataclasses import dataclass

from mechir.errors import MechirError


@dataclass(frozen=True)
class Shard:
    """The units of this process: those whose number is `index` modulo `of`."""

    index: int = 0
    of: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`I/N` with I from 0 to N: both `--array=0-9` and `--array=1-10` of Slurm cover everything."""
        index, _, of = text.partition("/")
        numbers = all(part.isascii() and part.isdigit() for part in (index, of))
        if not (numbers and int(of) > 0 and int(index) <= int(of)):
            raise MechirError(f"Cannot read shard='{text}': write I/N with 0 <= I <= N, e.g. 3/10.")
        return cls(int(index) % int(of), int(of))

    def holds(self, unit: int) -> bool:
        """Whether a unit is of this part."""
        return unit % self.of == self.index


NOTHING = Shard(-1)
"""No unit at all: the run is begun, and others compute it."""
