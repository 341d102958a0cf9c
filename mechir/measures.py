"""Measures: the quantity that the value of a finding is of, its unit, and the role that it speaks for.

A measure prints as findings store it and reads back from there:

    PATCHING("tfc1", at="query|doc")         # patching, tfc1, at query|doc
    parse_measure("patching, tfc1, at query|doc") == PATCHING("tfc1", at="query|doc")

`MEASURES` holds every measure that an experiment writes, with its unit, role, term, sign, and the least that counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mechir.errors import MechirError, closest

ROLES = ("matching", "soft-tf", "idf", "query-context", "scoring", "no-op", "relevance-neuron")
"""The roles of components: match words; count them; weigh them by rarity; gather the query; make the score of it; take
attention that is not needed; carry relevance."""
TERMS = ("tf", "idf", "length", "saturation")
"""The parts of BM25."""
TERM_OF = {"tfc": "tf", "tdc": "idf", "lnc": "length"}
"""The part of BM25 that a diagnostic changes, by the beginning of its name."""
WORDS = re.compile(r"\{([^\W\d]\w*)(?:=([^{}\[\]]+))?\}")
"""A parameter in the text of a measure, and its default, which is not printed."""
PATTERNS = {
    "metric": r"MRR|effect of a term|(?:nDCG|RR|AP|P|R|Rprec|IPrec|Success)(?:\([^()]*\))?(?:@[0-9.]+)?",
    "baseline": r"pad_\w+",
    "target": r"p|margin|[hn]\d[^ ,]*",
    "heads": "pattern|z",
    "neurons": "post|pre",
    "port": "[qkv]",
    "direction": r"\S+",
}
"""The values of parameters that are not any text."""
MEASURES: tuple[Measure, ...] = ()
"""Every measure that an experiment of mechir's writes, in the order of this file; filled at its end."""


@dataclass(frozen=True)
class Measure:
    """The quantity that a finding's value is of.

    Called with its parameters, by place or by name, a measure prints as it is stored. One without its parameters stands
    for all of them.

    Attributes:
        text: with `{name}` for a parameter, `[...]` around a part that is left out where its parameters are not given
            or have their defaults (`{name=value}`): "kept[ of {share=0.5}]" prints as "kept", or as "kept of 0.3".
            A text that a measure of mechir prints, in another unit, is refused.
        unit: of a finding's value, interval and `least`; findings may have another where the data decide it.
        role: of `ROLES`, for or against which it is evidence; may be empty.
        term: of `TERMS`, the part of BM25 that it is about; may be empty.
        sign: 1 where a positive value speaks for the role, -1 where a negative one does, 0 where either does.
        causal: the component itself is changed, not only looked at.
        least: |value| below this is called nothing, whatever p.
        follows: returns the fields that depend on the parameters.
        parameters: those that it was called with, by name.
    """

    text: str
    unit: str
    role: str = ""
    term: str = ""
    sign: int = 1
    causal: bool = False
    least: float = 0.0
    follows: Callable[[Mapping[str, str]], Mapping[str, Any]] | None = field(default=None, repr=False, compare=False)
    parameters: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        refuse_unknown(self.role, self.term)
        if set("{}") & set(WORDS.sub("", self.text)):
            raise MechirError(f"Cannot read the parameters of '{self.text}': write {{name}} or {{name=default}}.")
        alike = [other for other in MEASURES if other.text == self.text and other.follows is self.follows]
        same, short = any(self.follows or other.unit == self.unit for other in alike), _short(self.text)
        for other in () if same or self.parameters else MEASURES:
            if _pattern(other.text).fullmatch(short) or _pattern(self.text).fullmatch(_short(other.text)):
                raise MechirError(
                    f"'{self.text}' ({self.unit}) may read as '{other.text}' ({other.unit}), a measure of mechir's: "
                    "give it another text."
                )

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of its parameters in the order of the text, those in brackets last."""
        required = WORDS.findall(_short(self.text))
        return tuple(name for name, _ in required + _optional(self.text))

    def __call__(self, *values: object, **named: object) -> Measure:
        """The measure with these parameters; one that is left out of brackets may be missing or empty.

        Raises:
            MechirError: for an unknown parameter, or one that is missing.
        """
        given = dict(zip(self.takes, values, strict=False)) | named
        defaults = dict(WORDS.findall(self.text))
        missing = defaults.keys() - dict(_optional(self.text)) - given.keys()
        if missing or given.keys() - defaults.keys() or len(values) > len(defaults):
            takes, written = ", ".join(self.takes) or "no parameter", ", ".join(map(str, [*values, *named])) or "none"
            raise MechirError(f"The measure '{self.text}' takes {takes}: given {written}.")
        parameters = {name: str(given.get(name) or value) for name, value in defaults.items()}
        fields = self.follows(parameters) if self.follows else {}
        return replace(self, parameters=tuple(parameters.items()), **fields)

    def __str__(self) -> str:
        given = dict(self.parameters)
        if not given:
            return self.text
        # without the brackets that hold defaults alone
        short = re.sub(
            r"\[(.*?)\]",
            lambda part: part[1] if any(given[name] != value for name, value in WORDS.findall(part[1])) else "",
            self.text,
        )
        return WORDS.sub(lambda word: given[word[1]], short)

    @property
    def family(self) -> Measure:
        """The same measure whatever its parameters."""
        return replace(self, parameters=())

    def covers(self, text: str) -> bool:
        """Whether a finding's measure is this one; without parameters, this one with any."""
        if self.parameters or not self.takes:
            return text == str(self)
        return _pattern(self.text).fullmatch(text) is not None

    def among(self, texts: pd.Series) -> pd.Series:
        """A mask of the findings' measures that it covers."""
        codes, unique = pd.factorize(texts, use_na_sentinel=False)  # a missing measure is no other one
        covered = [isinstance(text, str) and self.covers(text) for text in unique]
        return pd.Series(np.array(covered, dtype=bool)[codes], texts.index)


def parse_measure(text: str) -> Measure:
    """The measure that a finding's text names, with its parameters; of two with one text the first of `MEASURES`.

    Raises:
        MechirError: for a text that no measure of mechir prints.
    """
    for measure in MEASURES:
        if matched := _pattern(measure.text).fullmatch(text):
            return measure(**{name: value for name, value in matched.groupdict().items() if value is not None})
    raise MechirError(
        f"Unknown measure '{text}': the closest are {closest(text, [measure.text for measure in MEASURES])}."
    )


def _short(text: str) -> str:
    """The text without the parts in brackets."""
    return re.sub(r"\[.*?\]", "", text)


def _optional(text: str) -> list[tuple[str, str]]:
    """The parameters in brackets, each with its default."""
    return WORDS.findall("".join(re.findall(r"\[.*?\]", text)))


@cache
def _pattern(text: str) -> re.Pattern[str]:
    """The pattern of the text with any parameters."""
    pattern = ""
    for part in re.split(r"(\[|\]|\{.*?\})", text):
        if word := WORDS.fullmatch(part):
            pattern += f"(?P<{word[1]}>{PATTERNS.get(word[1], '.*?')})"
        else:
            pattern += {"[": "(?:", "]": ")?"}.get(part, re.escape(part))
    return re.compile(pattern)


def refuse_unknown(role: str | None = None, term: str | None = None) -> None:
    """Raises for an unknown role or term, with the closest names."""
    for kind, given, known in (("role", role, ROLES), ("term", term, TERMS)):
        if given and given not in known:
            raise MechirError(f"Unknown {kind} '{given}': the closest are {closest(given, known)}.")


def term_of(axiom: str) -> str:
    """The part of BM25 that a diagnostic changes, or an empty text."""
    return next((term for start, term in TERM_OF.items() if re.search(rf"\b{start}", axiom)), "")


class Rank(NamedTuple):
    """A place among so many, as the label of a finding: "rank 3 of 72"."""

    place: int
    of: int

    def __str__(self) -> str:
        return f"rank {self.place} of {self.of}"

    @classmethod
    def parse(cls, label: str) -> Rank | None:
        """Parses a label such as "rank 3 of 72"; None for any other label."""
        matched = re.fullmatch(r"rank (\d+) of (\d+)", label)
        return cls(int(matched[1]), int(matched[2])) if matched else None


def stated(
    summary: pd.DataFrame, measure: Measure | Iterable[Measure], column: str = "estimate", **more: Any
) -> pd.DataFrame:
    """The rows of a summary as findings by a measure.

    Args:
        summary: `estimate` and, if known, `low`, `high`, `p`, `p_corrected`, `site`, `label`, `collection`, `queries`,
            `pairs`.
        measure: of all rows, or one for each.
        column: the estimate's where a row has several; its interval and p are then in `{column}_low`, `{column}_high`,
            `{column}_p`, `{column}_p_corrected`.
        more: other columns of `Finding`, and those that differ from the measure or the summary.

    Returns:
        Columns of `Finding`.

    Raises:
        MechirError: for a summary without the column of the estimate.
    """
    if column not in summary and "value" not in more:
        raise MechirError(f"The summary has no column '{column}': write stated(summary, measure, 'its name').")
    begins = "" if column == "estimate" else f"{column}_"
    names = {column: "value"} | {begins + name: name for name in ("low", "high", "p", "p_corrected")}
    names |= {name: name for name in ("site", "label", "collection")} | {"queries": "n_queries", "pairs": "n_pairs"}
    measures = [measure] * len(summary) if isinstance(measure, Measure) else list(measure)
    columns = ["unit", "role", "term", "sign", "causal", "least"]
    fields = [[str(each), *(getattr(each, name) for name in columns)] for each in measures]
    meanings = pd.DataFrame(fields, columns=["measure", *columns], index=summary.index)
    values = summary[[name for name in names if name in summary]].rename(columns=names)
    return pd.concat([values, meanings], axis=1).assign(**more)


TEXT = "query|doc"
"""The place where matching heads write their counts. In the last layer nobody reads it."""


def _of_axiom(given: Mapping[str, str]) -> Mapping[str, str]:
    return {"term": term_of(given["axiom"])}


def _of_place(given: Mapping[str, str]) -> Mapping[str, str]:
    """Output at query and document where a term is repeated is soft term frequency."""
    term = term_of(given["axiom"])
    return {"term": term, "role": "soft-tf" if term == "tf" and given["at"] == TEXT else ""}


def _of_quantity(given: Mapping[str, str]) -> Mapping[str, str]:
    quantity = given.get("metric") or given["target"]
    return {"unit": "logits" if quantity in ("score", "effect of a term") else quantity}


def _of_link(given: Mapping[str, str]) -> Mapping[str, str]:
    name = given["to"]
    return {"role": {"tf": "soft-tf"}.get(name, name), "term": name if name in TERMS else ""}


SHARE, LOGITS, ATTENTION = "share of the gap", "logits", "attention"
EFFECT = 0.05
"""An effect below this share of the gap, or below so many logits, is called nothing."""

CONTRAST = Measure("contrast[ of {of=mean_max}], {direction}", ATTENTION, role="matching", least=0.02)
QK_ALIGNMENT = Measure("QK alignment", "sd of random directions", role="matching")
ATTENTION_WITHOUT = Measure(
    "attention without aligned directions", ATTENTION, role="matching", sign=-1, causal=True, least=0.005
)
SCORE_WITHOUT = Measure("score without aligned directions", LOGITS, role="matching", causal=True, least=0.01)
NO_OP = Measure("attention to CLS and separators", ATTENTION, role="no-op")

RISE = Measure("rise of attention, tf 0 to 8", ATTENTION, role="soft-tf", term="tf", least=0.02)
K1 = Measure("k1 of attention", "occurrences", role="soft-tf", term="saturation")
BY_LENGTH = Measure("rise of attention, document three times over", ATTENTION, role="soft-tf", term="length")
LIKENESS = Measure("attention and likeness of embeddings", "r", role="soft-tf", term="tf")
WEIGHT = Measure("weight of soft-TF", "logits per sd", role="soft-tf", term="tf")
IDF_WEIGHT = Measure("weight of IDF x soft-TF", "logits per sd", role="idf", term="idf")
SEMANTIC_BM25 = Measure("semantic BM25", "r, held out")

R_IDF = Measure("r with IDF", "r", role="idf", term="idf", sign=0, least=0.1)
SCORE_UP_IDF = Measure("score, a matched term up IDF", LOGITS, role="idf", term="idf", causal=True)
ATTENTION_UP_IDF = Measure("attention, a matched term up IDF", ATTENTION, role="idf", term="idf", causal=True)


def _moved(text: str, role: str = "", follows: Callable[[Mapping[str, str]], Mapping[str, Any]] = _of_axiom) -> Measure:
    """A causal measure in shares of the gap between the base and the donor of a diagnostic."""
    return Measure(text, SHARE, role, causal=True, least=EFFECT, follows=follows)


GAP = Measure("gap, {axiom}", LOGITS, causal=True, least=EFFECT, follows=_of_axiom)
PATCHING = _moved("patching, {axiom}[, at {at}]", follows=_of_place)
PATCHING_TOP = _moved("patching in the top third, {axiom}[, at {at}]")
PATH_TO_HEADS = _moved("path into the scoring heads, {axiom}, by {port}", "query-context")
PATH_TO_SCORE = _moved("path to the score[ (freeze {freeze=heads}, LayerNorm {ln=live})], {axiom}", "scoring")

EDGE = Measure("edge, {axiom}, by {method}[, LayerNorm {ln=frozen}]", LOGITS, causal=True, least=0.0, follows=_of_axiom)
CIRCUIT = Measure(
    "faithfulness of the largest {edges} edges, {axiom}", SHARE, causal=True, least=EFFECT, follows=_of_axiom
)

BACKUP = Measure(
    "effect gained without {primary}, {axiom}[, by {by=donor}]", LOGITS, causal=True, sign=0, follows=_of_axiom
)

CONDUCTANCE = Measure(
    "conductance, {label} documents[, {baseline=pad_query}][, {target=score}][, {heads=pattern}][, {neurons=post}]",
    LOGITS,
    role="scoring",
    follows=_of_quantity,
)
NEURON_CONDUCTANCE = replace(CONDUCTANCE, role="relevance-neuron")
WITHOUT_DIRECTION = Measure("nDCG@10 without", "nDCG@10", sign=-1, causal=True, least=0.01)
WITHOUT_UNITS = Measure(
    "{metric} without", "nDCG@10", role="relevance-neuron", sign=-1, causal=True, least=0.01, follows=_of_quantity
)
WITHOUT_DIRECTION_BY = replace(WITHOUT_UNITS, role="")
"""`WITHOUT_DIRECTION` by another measure of ranking quality."""
WITHOUT_HEADS = Measure("{metric} without heads {set}, by {way}", "nDCG@10", sign=-1, causal=True, follows=_of_quantity)

WITHOUT_SET = Measure(
    "{metric} without the set {sites}, by {way}", "nDCG@10", sign=-1, causal=True, follows=_of_quantity
)

LINK_TO = Measure("link to {to}", SHARE, causal=True, follows=_of_link)
"""A conclusion of a plan; see `mechir.registry.plan`."""

MEASURES = tuple(value for value in vars().values() if isinstance(value, Measure))
