"""The role of each position of a pair, and the directions of attention between roles."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mechir.errors import MechirError, closest


class Segment(enum.Flag):
    """The part of a pair at a position: `[CLS] query [SEP] document [SEP] [PAD]...`. Unions are written with `|`.

    `DOC` never includes a separator. The double separator of RoBERTa (`</s></s>`) is SEP1 as a whole. A language model
    reads a prompt: SYSTEM, INSTRUCTION, query, SEP1 (whatever stands between the two texts), document, SUFFIX.
    DECODER is where a model with a decoder, such as T5, generates.
    """

    CLS = 1
    QUERY = 2
    SEP1 = 4
    DOC = 8
    SEP2 = 16
    PAD = 32
    SYSTEM = 64
    INSTRUCTION = 128
    SUFFIX = 256
    DECODER = 512
    ALL = CLS | QUERY | SEP1 | DOC | SEP2 | SYSTEM | INSTRUCTION | SUFFIX | DECODER
    """Every position that holds a token: all but PAD."""

    def __str__(self) -> str:
        if self == Segment.ALL:
            return "all"
        return "|".join(str(part.name).lower() for part in (*PARTS, Segment.PAD) if self & part)

    @classmethod
    def parse(cls, text: str) -> Segment:
        """The segment written as `doc`, `cls|query` or as in the papers (`CLS`, `Q`, `SEP1`, `D`, `SEP2`).

        Raises for any other word.
        """
        segment = cls(0)
        for word in text.split("|"):
            name = {"q": "query", "d": "doc", "document": "doc"}.get(word.strip().lower(), word.strip().lower())
            if name not in _NAMES:
                where, near = f" in '{text}'" * (word != text), closest(word.strip().lower(), _NAMES, n=1)
                names = ", ".join(_NAMES)
                raise MechirError(f"Unknown segment '{word.strip()}'{where}: the closest is {near}, of {names}.")
            segment |= _NAMES[name]
        return segment


_NAMES = {str(part.name).lower(): part for part in Segment} | {"all": Segment.ALL}
FIVE = (Segment.CLS, Segment.QUERY, Segment.SEP1, Segment.DOC, Segment.SEP2)
"""The five parts of a pair, in reading order: rows and columns of the papers' tables."""
PARTS = (
    *(Segment.SYSTEM, Segment.INSTRUCTION, Segment.CLS, Segment.QUERY, Segment.SEP1, Segment.DOC, Segment.SEP2),
    *(Segment.SUFFIX, Segment.DECODER),
)
"""Every part that holds tokens, of pairs and of prompts, in reading order."""


def parts_of(present: Segment) -> tuple[Segment, ...]:
    """The five parts of a pair; where positions of a prompt are among them, those parts of it that are there."""
    if present in Segment.CLS | Segment.QUERY | Segment.SEP1 | Segment.DOC | Segment.SEP2 | Segment.PAD:
        return FIVE
    return tuple(part for part in PARTS if part & present)


@dataclass(frozen=True, order=False)
class Direction:
    """The attention of positions in `reader` to those in `source`: `X<-Y` in the papers, rows of the pattern first.

    `str(Direction.parse("D<-Q")) == "doc<-query"`, and parsing that gives the same value again.
    """

    reader: Segment
    source: Segment

    def __post_init__(self) -> None:
        for side, segment in (("reader", self.reader), ("source", self.source)):
            if set(segment) == set(FIVE):  # all that a pair has, under one name
                object.__setattr__(self, side, Segment.ALL)
            if not segment or Segment.PAD in segment:
                raise MechirError(
                    f"The {side} of a direction must hold tokens, not '{segment}': write e.g. 'doc<-query'."
                )

    def __str__(self) -> str:
        return f"{self.reader}<-{self.source}"

    @classmethod
    def parse(cls, text: str | Direction) -> Direction:
        """The direction written `reader<-source`; raises for anything else (`query->doc`: with the right spelling)."""
        if isinstance(text, Direction):
            return text
        text = re.sub(r"\s*[\u2190\u27f5\u21d0]\s*", "<-", text)
        turned = re.fullmatch(r"\s*([\w|]+)\s*(?:[-=]+>|[\u2192\u27f6\u21d2])\s*([\w|]+)\s*", text)
        if turned:
            right = cls(Segment.parse(turned[2]), Segment.parse(turned[1]))
            raise MechirError(
                f"Cannot read '{text}' as a direction: the reader comes first, so for what "
                f"{right.reader} takes from {right.source}, write '{right}'."
            )
        parts = text.split("<-")
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise MechirError(f"Cannot read '{text}' as a direction: write reader<-source, e.g. 'doc<-query'.")
        return cls(Segment.parse(parts[0]), Segment.parse(parts[1]))


def directions(parts: Sequence[Segment] = FIVE) -> list[Direction]:
    """The directions between parts, by default the 25 of a pair; readers in the outer loop, as in the papers."""
    return [Direction(reader, source) for reader in parts for source in parts]
