"""Prompts: what a language model reads of a pair, as a value, and pairs written into it as token ids.

A reranker that is a language model reads one text, in which query and document stand between what it is told:
`Query: {query} Document: {document} Relevant:`. Every word piece of it belongs to a `Segment`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mechir.encoding import Unreadable, Written, too_long
from mechir.errors import MechirError, brief
from mechir.pair import Pair
from mechir.segments import Segment

EXAMPLE = "Query: {query} Document: {document} Relevant:"
SLOTS = {"{query}": Segment.QUERY, "{document}": Segment.DOC}
ANY_SLOT = "|".join(map(re.escape, SLOTS))
PADDING = "  "
"""White space around a text, which shows whether a chat template strips it."""


class Part(NamedTuple):
    """A stretch of a prompt: its segment, and its text, which query and document have only in a pair."""

    segment: Segment
    text: str


@dataclass(frozen=True)
class Template:
    """The prompt of a model: `Template.parse("Query: {query} Document: {document} Relevant:")`.

    What stands before the first of the two texts is INSTRUCTION, between them SEP1, behind them SUFFIX.

    Args:
        text: the prompt, with `{query}` and `{document}` once each, in any order.
        system: what stands before it as SYSTEM.
        special: whether the tokenizer adds its own special tokens, such as the `</s>` of T5.
        strips: whether query and document lose the white space around them.
    """

    text: str
    system: str = ""
    special: bool = True
    strips: bool = False

    def __post_init__(self) -> None:
        for slot in SLOTS:
            if (n := self.text.count(slot)) != 1:
                raise MechirError(f"'{self.text}' holds {slot} {n} times, not once: write e.g. '{EXAMPLE}'.")
        if [part.segment for part in self.parts if part.segment in (*SLOTS.values(), Segment.SEP1)][1] != Segment.SEP1:
            raise MechirError(f"Nothing stands between query and document in '{self.text}': write e.g. '{EXAMPLE}'.")

    @classmethod
    def parse(cls, text: str, *, system: str = "", special: bool = True) -> Template:
        """The prompt written with `{query}` and `{document}`; raises where one of them is missing or stands twice."""
        return cls(text, system, special)

    @classmethod
    def of_chat(cls, tokenizer: Any, instruction: str | None = None, **options: Any) -> Template:
        """The prompt of a tokenizer's chat template, as sentence-transformers' `CrossEncoder` fills it.

        Args:
            tokenizer: the tokenizer, as Hugging Face loads it.
            instruction: the message of the role `system`, which sentence-transformers calls a prompt; None for none.
            options: more variables of the chat template.

        Raises:
            MechirError: where there is no chat template, or it does not write query and document once each.
        """
        if not tokenizer.chat_template:
            raise MechirError(f"This tokenizer has no chat template: write e.g. Template.parse('{EXAMPLE}').")
        text = _rendered(tokenizer, instruction, options)
        kept = all(f"{PADDING}{slot}{PADDING}" in text for slot in SLOTS)
        if kept:
            text = re.sub(f"{PADDING}({ANY_SLOT}){PADDING}", r"\1", text)
        elif re.search(f"{PADDING}({ANY_SLOT})|({ANY_SLOT}){PADDING}", text):
            raise MechirError(
                "The chat template strips white space on one side, or of one text alone: let it strip both, or neither."
            )
        head = text[: min(text.index(slot) for slot in SLOTS)]
        at = _last_turn(tokenizer, head)
        return cls(text[at:], text[:at], special=False, strips=not kept)

    def __str__(self) -> str:
        return self.system + self.text

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts in reading order, those without a text left out; query and document as `{query}`, `{document}`."""
        head, first, between, second, tail = re.split(f"({ANY_SLOT})", self.text)
        segments = (Segment.SYSTEM, Segment.INSTRUCTION, SLOTS[first], Segment.SEP1, SLOTS[second], Segment.SUFFIX)
        texts = (self.system, head, first, between, second, tail)
        return tuple(Part(*part) for part in zip(segments, texts, strict=True) if part[1])

    def filled(self, query: str, document: str) -> tuple[Part, ...]:
        """The parts with these texts in their places."""
        texts = {Segment.QUERY: query, Segment.DOC: document}
        if self.strips:
            texts = {segment: text.strip() for segment, text in texts.items()}
        return tuple(Part(part.segment, texts.get(part.segment, part.text)) for part in self.parts)

    def writer(self, tokenizer: Any) -> PromptWriter:
        """What writes pairs into this prompt with a tokenizer."""
        return PromptWriter(self, tokenizer)


def as_template(given: Template | str) -> Template:
    """The prompt itself, or the one that is written so."""
    return Template.parse(given) if isinstance(given, str) else given


@dataclass(frozen=True)
class PromptWriter:
    """Writes pairs into the prompt of a template, for `encoding.encode`, `align` and a model's `writer`.

    The prompt goes through the tokenizer as a whole. A word piece that reaches into query or document is theirs; any
    other belongs to the part that it begins in. Only documents are cut, on the right: whatever stands behind them
    is kept, where sentence-transformers would cut a query that stands there.

    Raises:
        MechirError: for a tokenizer that does not say where a word piece stands, pads with nothing or cuts on the left.
    """

    template: Template
    tokenizer: Any = field(repr=False)

    def __post_init__(self) -> None:
        name = type(self.tokenizer).__name__
        if not self.tokenizer.is_fast:
            raise MechirError(f"{name} does not say where a word piece stands in a prompt: take the fast tokenizer.")
        if self.tokenizer.pad_token_id is None:
            raise MechirError(f"This {name} has no padding token: name one as tokenizer.pad_token.")
        if self.tokenizer.truncation_side != "right":
            raise MechirError(f"This {name} cuts prompts on the left, where they begin: set truncation_side to right.")

    def write(self, pairs: Sequence[Pair], max_length: int) -> list[Written | Unreadable]:
        """Every pair as the model reads it, or the reason why its query leaves no room for a document."""
        if not pairs:
            return []
        filled = [self.template.filled(pair.query, pair.document) for pair in pairs]
        return [
            self._fitted(pair, np.asarray(read.ids, dtype=np.int64), *self._placed(parts, read), max_length)
            for pair, parts, read in zip(pairs, filled, self._read(filled), strict=True)
        ]

    def before(self, segment: Segment) -> str:
        """The literal text right before the query or the document, on which its first word pieces may depend."""
        parts = self.template.parts
        place = [part.segment for part in parts].index(segment)
        return parts[place - 1].text if place else ""

    @cached_property
    def suffix(self) -> np.ndarray:
        """The ids that end every prompt, whatever its texts: sentence-transformers' own rule."""
        first, second = (read.ids for read in self._read([self.template.filled(t, t) for t in ("0", "1 2 3 4")]))
        common = 0
        while common < min(len(first), len(second)) and first[-1 - common] == second[-1 - common]:
            common += 1
        fixed = common if common < min(len(first), len(second)) else 0
        return np.asarray(first[len(first) - fixed :], dtype=np.int64)

    def _read(self, filled: Sequence[tuple[Part, ...]]) -> list[Any]:
        texts = ["".join(part.text for part in parts) for parts in filled]
        return self.tokenizer(texts, add_special_tokens=self.template.special, verbose=False).encodings

    def _placed(self, parts: tuple[Part, ...], read: Any) -> tuple[np.ndarray, int]:
        """The segment of each word piece, and the place of the first that reaches beyond the document, or behind it."""
        ends = np.cumsum([len(part.text) for part in parts])
        starts = np.append(0, ends[:-1])
        values = np.array([part.segment.value for part in parts], dtype=np.int64)
        begin, end = np.asarray(read.offsets, dtype=np.int64).reshape(-1, 2).T
        segments = values[np.searchsorted(ends, begin, side="right").clip(max=len(parts) - 1)]
        for slot in np.flatnonzero(np.isin(values, [Segment.DOC.value, Segment.QUERY.value])):
            segments[(begin < ends[slot]) & (end > starts[slot])] = values[slot]
        own = np.array([side is not None for side in read.sequence_ids])
        first = int(own.argmax())
        segments[~own] = Segment.SUFFIX.value
        segments[:first] = (Segment.SYSTEM if self.template.system else Segment.INSTRUCTION).value
        document = ends[[part.segment for part in parts].index(Segment.DOC)]
        beyond = np.flatnonzero((end > document) | ~own & (np.arange(len(own)) > first))
        return segments, int(beyond[0]) if len(beyond) else len(own)

    def _fitted(
        self, pair: Pair, ids: np.ndarray, segments: np.ndarray, behind: int, max_length: int
    ) -> Written | Unreadable:
        """The pair, its document cut where it is too long; `behind` is the place of the first piece behind it."""
        cut, whole = len(ids) > max_length, segments
        if len(ids) >= max_length and Segment.DOC.value in segments:
            last = not (segments[behind:] == Segment.QUERY.value).any()
            tail = self.suffix if last else ids[behind:]
            room = max(max_length - len(tail), 0)
            ids = np.append(ids[:room], tail)
            segments = np.append(whole[:room], np.full(len(tail), Segment.SUFFIX.value) if last else whole[behind:])
            if Segment.DOC.value not in whole[:room]:
                query = int((whole == Segment.QUERY.value).sum())
                around = len(whole) - query - int((whole == Segment.DOC.value).sum())
                return too_long(pair, query, f"{around} of the prompt", max_length)
        return Written(ids, np.zeros_like(ids), segments, cut)


def _rendered(tokenizer: Any, instruction: str | None, options: dict[str, Any]) -> str:
    """A chat template around `{query}` and `{document}`, which it writes once each; contents flat, else in a list."""
    told = [] if instruction is None else [("system", instruction)]
    messages = [*told, *((slot[1:-1], f"{PADDING}{slot}{PADDING}") for slot in SLOTS)]
    found, failed = "", ""
    for structured in (False, True):
        chat = [
            {"role": role, "content": [{"type": "text", "text": content}] if structured else content}
            for role, content in messages
        ]
        try:
            text = str(tokenizer.apply_chat_template(chat, tokenize=False, **options))
        except Exception as error:
            failed = failed or brief(error).rstrip(".")
            continue
        if all(text.count(slot) == 1 for slot in SLOTS):
            return text
        found = found or text
    if not found:
        raise MechirError(f"The chat template cannot write a query and a document ({failed}): give another.")
    slot, n = next((slot, n) for slot in SLOTS if (n := found.count(slot)) != 1)
    raise MechirError(
        f"The chat template writes the {slot[1:-1]} {n} times, not once: give one that writes the messages of the "
        f"roles 'query' and 'document', or write e.g. Template.parse('{EXAMPLE}')."
    )


def _last_turn(tokenizer: Any, head: str) -> int:
    """Where the turn with the texts begins in what stands before them: at the last special token of the tokenizer."""
    special = sorted((str(token) for token in tokenizer.added_tokens_decoder.values() if token.special), key=len)
    if not special:
        return 0
    one = "|".join(map(re.escape, reversed(special)))
    turns = [found.start() for found in re.finditer(rf"(?:{one})(?:\w+(?:{one}))?", head)]  # <|role|>user<|end|> too
    return turns[-1] if turns else 0
