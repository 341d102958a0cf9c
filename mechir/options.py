"""The options of an experiment: fields of its dataclass, each with its sentence, checked when a value is given.

    heads: tuple[Head, ...] = option((), "matching heads; found by the run where none are named")

The annotation is the kind of a value: `int`, `float`, `bool`, `str`, or a list of heads, directions, numbers or words,
`tuple[Head, ...]`, which may be given as a list or as text with commas and is kept in one normal form, so that equal
options give one run. A field that is a `frame` is no option: the experiment's `prepare` fills it. There are no others.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError, closest
from mechir.segments import Direction
from mechir.sites import Head, Site, as_site

SCALARS: dict[Any, str] = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
"""The kinds of options that are no list, and their names in messages."""
LARGEST = 2**63
"""Numbers reach up to here: what a random generator takes as a seed."""
OPTION, DERIVED = "option", "derived"
BY_MEASURES: dict[str, Any] = {
    "says": "measures of ir_measures, such as RR(rel=2)@10; may be repeated",
    "separator": ";",
    "in_order": True,
    "repeated": True,
    "not_empty": "a measure such as nDCG@10",
}
"""What options for measures of ranking quality are: `evaluate: tuple[str, ...] = option((NDCG,), **BY_MEASURES)`."""
PLACE = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)")
"""A head written as layer and number, `(8, 1)`."""
OR_FOUND = "with commas; found by the run where none are named"
"""The end of the sentence of an option for heads."""


@dataclass(frozen=True)
class Option:
    """An option of an experiment; its name, kind and default are those of its field.

    Attributes:
        says: the sentence that `--help` shows.
        among: the words it may be, or hold.
        least: the smallest number.
        most: the largest number.
        positive: whether a number must be above 0.
        separator: between the items of a list; white space separates heads and numbers as well where it is a comma.
        repeated: whether the command line takes a list as one flag for each item.
        in_order: whether a list keeps the order in which it is given; else it is sorted.
        not_empty: the advice of the message for an empty list; empty where a list may be empty.
        aliases: words that stand for a list, and the text of it.
        reads: turns what is no text, such as a frame, into the text of the option; raises for what it cannot read.
        name: of the field.
        kind: the annotation, `int` or `tuple[Head, ...]`.
        default: the value where none is given.
    """

    says: str
    among: tuple[str, ...] = ()
    least: float | int | None = None
    most: float | int | None = None
    positive: bool = False
    separator: str = ","
    repeated: bool = False
    in_order: bool = False
    not_empty: str = ""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reads: Callable[[Any], str] | None = None
    name: str = ""
    kind: Any = None
    default: Any = None

    @property
    def item(self) -> Any:
        """The kind of a list's items; None where it is no list."""
        return typing.get_args(self.kind)[0] if typing.get_origin(self.kind) is tuple else None

    @property
    def help(self) -> str:
        """Its sentence, with the words or the numbers it may be."""
        among = ", ".join(self.among) or self.range
        return f"{self.says[:1].upper()}{self.says[1:]}{f' ({among})' if among else ''}."

    @property
    def range(self) -> str:
        """The numbers it may be, in words; empty where it may be any."""
        least, most = self.least, self.most
        if least is not None and most is not None:
            return f"{least} to {most}"
        texts = ["a number above 0"] * self.positive + [f"{least} or more"] * (least is not None)
        return ", ".join(texts + [f"{most} or less"] * (most is not None))

    def written(self, value: Any) -> Any:
        """A value as text or number, as it stands in a record and on the command line."""
        if self.item is None:
            return value
        items = (str(item).removesuffix(".0") if isinstance(item, float) else str(item) for item in value)
        text = self.separator.join(items)
        return next((alias for alias, stands_for in self.aliases.items() if text == stands_for), text)

    def value(self, given: Any, experiment: str) -> Any:
        """A given value in its normal form.

        Raises:
            MechirError: for a value of another kind, an unknown word, or a number out of its range.
        """
        given = self.reads(given) if self.reads and not isinstance(given, str) else given
        return self._list(given) if self.item else self._allowed(self._scalar(given, experiment))

    def _allowed(self, value: Any) -> Any:
        """The value; raises for an unknown word, and for a number out of range."""
        if self.among and value not in self.among:
            raise MechirError(f"Unknown {self.name}='{value}': the closest are {closest(value, self.among)}.")
        outside = (self.least is not None and value < self.least, self.most is not None and value > self.most)
        if any(outside) or (self.positive and value <= 0):
            raise MechirError(f"{self.name}={value:g} is out of range: write {self.range}.")
        return value

    def _scalar(self, given: Any, experiment: str) -> Any:
        """The value as its kind: 1 and numpy's 1.0 are one number, so that they give one run."""
        switch = isinstance(given, bool | np.bool_)
        number = isinstance(given, numbers.Real) and not switch and bool(abs(float(given)) < LARGEST)  # NaN is not
        whole = number and float(given).is_integer()
        if not {bool: switch, int: whole, float: number, str: isinstance(given, str)}[self.kind]:
            raise MechirError(f"{self.name}={given!r} is no value for '{experiment}': write {SCALARS[self.kind]}.")
        return self.kind(given)

    def _list(self, given: Any) -> tuple[Any, ...]:
        text = self.aliases.get(given.strip(), given) if isinstance(given, str) else given
        place = self.item in (Head, Site) and isinstance(text, tuple) and isinstance(as_site(text), Head)
        alone = place or isinstance(text, self.item) or not isinstance(text, Iterable)
        items = self._split(text) if isinstance(text, str) else [text] if alone else list(text)
        if not items and self.item in (int, float) and text:
            items = [text]  # only separators: no list of numbers
        if not items and self.not_empty:
            raise MechirError(f"{self.name}='' is empty: write {self.not_empty}.")
        try:
            values = dict.fromkeys(map(READERS[self.item], items))
        except MechirError as error:
            shown = given if isinstance(given, str) else ",".join(map(str, items))
            raise MechirError(f"Cannot read {self.name}='{shown}': {error}") from error
        known = {word.lower(): word for word in self.among}
        values = {known.get(value.lower(), value): None for value in values} if known else values
        allowed = tuple(map(self._allowed, values))
        order: Any = self.among.index if self.among else {Direction: _as_read, Site: str}.get(self.item)
        return allowed if self.in_order else tuple(sorted(allowed, key=order))

    def _split(self, text: str) -> list[str]:
        spaced = self.separator == "," and self.item in (Head, Site, int, float)
        pattern = r"[\s,]+" if spaced else self.separator
        text = PLACE.sub(r"h\1.\2", text) if self.item in (Head, Site) else text
        return [part.strip() for part in re.split(pattern, text) if part.strip()]


def option(default: Any, says: str, **more: Any) -> Any:
    """A field that is an option: `option(0.02, "differences within this count as none", least=0)`; see `Option`."""
    return dataclasses.field(default=default, metadata={OPTION: Option(says, **more)})


def frame(*columns: str, derived: bool = False) -> Any:
    """A field for a frame that `prepare` fills; its content is part of the identity of a run.

    `derived`: nothing decides it but the options, the material, the model and the runs that are needed. These are the
    identity then, without its content, whose last digits depend on the machine.
    """
    new = partial(pd.DataFrame, columns=list(columns))
    return dataclasses.field(default_factory=new, compare=False, repr=False, metadata={DERIVED: derived})


def _head(item: Any) -> Head:
    site = as_site(item)
    if not isinstance(site, Head):
        raise MechirError(f"'{site}' has no attention: write heads, such as h8.1.")
    if site.part != "z":
        raise MechirError(f"'{site}' is a part of a head: write h{site.layer}.{site.head}.")
    return site


def _site(item: Any) -> Site:
    site = as_site(item)
    if not isinstance(site, Site):
        raise MechirError(f"{item!r:.60} is no site: write h8.1 (head), n5.1203 (neuron), mlp3 or attn3.")
    return site


def _number(item: Any) -> float:
    try:
        number = float(item)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < math.inf:
        raise MechirError("write numbers of 0 or more with commas, e.g. 1,5.")
    return number


def _whole(item: Any) -> int:
    number = _number(item)
    if not number.is_integer():
        raise MechirError("write whole numbers with commas, e.g. 1,5.")
    return int(number)


def _as_read(direction: Direction) -> tuple[bool, int, int]:
    """Directions of single segments first, as the papers' tables are read."""
    reader, source = direction.reader, direction.source
    return len(reader) + len(source) > 2, reader.value, source.value


READERS: dict[Any, Callable[[Any], Any]] = {
    Head: _head,
    Site: _site,
    Direction: Direction.parse,
    int: _whole,
    float: _number,
    str: str,
}
"""The kinds of items in a list, and the functions that read them."""


def options(experiment: type) -> dict[str, Option]:
    """The options of an experiment, by name, in their order; raises for other fields and annotations."""
    hints = typing.get_type_hints(experiment)
    declared = {}
    for field in dataclasses.fields(experiment):
        if OPTION in field.metadata:
            described, kind = field.metadata[OPTION], hints[field.name]
            option = dataclasses.replace(described, name=field.name, kind=kind, default=field.default)
            if option.kind not in SCALARS and option.item not in READERS:
                raise MechirError(
                    f"The option '{field.name}' of {experiment.__name__} is a {option.kind}: annotate it as "
                    f"{', '.join(kind.__name__ for kind in SCALARS)}, or as a list, "
                    f"{', '.join(f'tuple[{item.__name__}, ...]' for item in READERS)}."
                )
            declared[field.name] = option
        elif hints[field.name] is not pd.DataFrame:
            raise MechirError(
                f"'{field.name}' of {experiment.__name__} is a field and no option: write option(...) behind it, or "
                "annotate a constant as ClassVar."
            )
    return declared
