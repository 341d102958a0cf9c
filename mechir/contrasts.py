"""Pairs that differ in one thing, aligned: every token that was not edited keeps its position.

A contrast is a base and a donor of equal token length and equal segments. Runs are on the base, activations come from
the donor. Where one of the two texts has more word pieces, the other is given a filler word in that place.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import rapidfuzz.distance
from jaxtyping import Int
from torch import Tensor

from mechir.batches import Batch, padded
from mechir.encoding import Encoded, Writer, encode, writer_of
from mechir.errors import MechirError
from mechir.pair import SHOWN, Pair, pairs_hash
from mechir.reranker import Reranker
from mechir.segments import Segment

Perturbation = Callable[[Pair], Pair]
"""From a pair to the pair that it is contrasted with. `base(pair)`, where it has one, is what the contrast starts from;
`moves = True` says that it only moves words, so that no filler is wanted."""

ROLES = ("cls", "query match", "query other", "injected", "doc match", "doc other", "sep")
"""The role of a position: `injected` where base and donor differ; `match` where a token of the query or of the
document is one of the injected word pieces; `other` where it is not; `sep` at every other part of a pair or a prompt
but CLS. Padding has none (-1)."""

AROUND = 4
"""How many words before and after the first difference `repr(contrast)` shows."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """A base and a donor, aligned with copies of `filler` ("" when the two needed none)."""

    base: Pair
    donor: Pair
    filler: str = ""

    @property
    def query_id(self) -> str:
        """The query of the base."""
        return self.base.query_id

    @property
    def doc_id(self) -> str:
        """The document of the base."""
        return self.base.doc_id

    @property
    def grade(self) -> int | None:
        """The judgment of the base."""
        return self.base.grade

    def swapped(self) -> Contrast:
        """The same contrast the other way round: runs on the donor, activations from the base."""
        return Contrast(self.donor, self.base, self.filler)

    def __str__(self) -> str:
        return str(self.base)

    def __repr__(self) -> str:
        """The words around the first difference, of the query or the document."""
        sides = (self.base, self.donor)
        edited = "query" if self.base.query != self.donor.query else "document"
        words = [getattr(pair, edited).split() for pair in sides]
        same = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(*words, strict=False)))
        base, donor = (" ".join(text[max(0, same - AROUND) : same + AROUND]) for text in words)
        ids = f"{self.query_id!r}, {self.doc_id!r}, grade {self.grade}"
        return f"Contrast({ids}: {base[:SHOWN]!r} -> {donor[:SHOWN]!r}, filler {self.filler!r})"


def contrasts_hash(contrasts: Iterable[Contrast]) -> str:
    """The SHA-256 over both sides of every contrast and its filler, in order."""
    digest = hashlib.sha256()
    for contrast in contrasts:
        digest.update(f"{pairs_hash([contrast.base, contrast.donor])}{contrast.filler}".encode())
    return digest.hexdigest()


def align(
    pair: Pair, perturbation: Perturbation, tokenizer: Any, filler: str = "a", *, max_length: int = 512
) -> Contrast:
    """The contrast between a pair and its perturbation (see `mechir.diagnostics`), for a tokenizer or `model.writer`.

    The filler is a word of one word piece, repeated where a text is shorter than the other; it changes the score by
    itself, so report two. Documents are cut at `max_length`, the word pieces that the model reads.

    Raises:
        MechirError: with the ids and the reason, when nothing was changed, the edit is cut off, or the two cannot be
            brought to equal length without moving another token.
    """
    moves = getattr(perturbation, "moves", False)
    return align_pair(*sides(pair, perturbation), tokenizer, filler, max_length=max_length, moves=moves)


def sides(pair: Pair, perturbation: Perturbation) -> tuple[Pair, Pair]:
    """The two texts that a perturbation contrasts, not aligned yet."""
    start: Perturbation = getattr(perturbation, "base", lambda unchanged: unchanged)
    return start(pair), perturbation(pair)


def align_pair(
    base: Pair, donor: Pair, tokenizer: Any, filler: str = "a", *, max_length: int = 512, moves: bool = False
) -> Contrast:
    """The contrast between two texts of one pair: as `align`, with both given."""
    writer = writer_of(tokenizer)
    single_piece(writer.tokenizer, filler)
    if not base.query.strip() or not base.document.strip():
        raise refused(base, "its query or its document is empty")
    if (base.query, base.document) == (donor.query, donor.document):
        raise refused(base, "the perturbation changes nothing")
    if moves:
        return _checked(Contrast(base, donor), writer, max_length, None)
    query = _filled(base.query, donor.query, writer, Segment.QUERY, filler)
    document = _filled(base.document, donor.document, writer, Segment.DOC, filler)
    contrast = Contrast(
        replace(base, query=query.base, document=document.base),
        replace(donor, query=query.donor, document=document.donor),
        filler if query.filled or document.filled else "",
    )
    return _checked(contrast, writer, max_length, query.edited + document.edited)


class Texts(NamedTuple):
    """Two texts after filling, whether that took a filler, and how many word pieces are edited."""

    base: str
    donor: str
    filled: bool
    edited: int


def _filled(base: str, donor: str, writer: Writer, segment: Segment, filler: str) -> Texts:
    """The texts with filler at the end of every edited stretch of words, as many as the shorter side lacks pieces."""
    if base == donor:
        return Texts(base, donor, False, 0)  # unchanged, white space too
    texts: tuple[list[str], list[str]] = ([], [])
    filled, edited = False, 0
    for sides in _stretches(base.split(), donor.split()):
        if sides[0] != sides[1]:
            before = [" " if text else writer.before(segment) for text in texts]
            sizes = [_n_pieces(writer.tokenizer, *stretch) for stretch in zip(before, sides, strict=True)]
            lacking = sizes[1] - sizes[0]
            sides[0 if lacking > 0 else 1].extend([filler] * abs(lacking))
            filled, edited = filled or lacking != 0, edited + max(sizes)
        for text, side in zip(texts, sides, strict=True):
            text.extend(side)
    return Texts(" ".join(texts[0]), " ".join(texts[1]), filled, edited)


def _stretches(base: list[str], donor: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Words of both texts in stretches that are equal or edited, with the fewest words edited."""
    opcodes = rapidfuzz.distance.Indel.opcodes(base, donor)
    for _, group in itertools.groupby(opcodes, key=lambda step: step.tag == "equal"):
        steps = list(group)
        yield base[steps[0].src_start : steps[-1].src_end], donor[steps[0].dest_start : steps[-1].dest_end]


def _n_pieces(tokenizer: Any, before: str, words: list[str]) -> int:
    """The number of word pieces of words where they stand: some tokenizers treat a word after a space differently."""
    if not words:
        return 0
    text = before + " ".join(words)
    if before in ("", " "):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)  # a piece may begin before the words
    return sum(end > len(before) for _, end in read["offset_mapping"])


def single_piece(tokenizer: Any, filler: str) -> set[int]:
    """The ids of a filler at the beginning of a text and after a space.

    Raises:
        MechirError: for a filler of several word pieces, or unknown to the tokenizer.
    """
    pieces = set()
    for text in (filler, f" {filler}"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise MechirError(
                f"The filler '{filler}' is {len(ids)} word pieces of this tokenizer, or unknown to it: give a word of "
                "one word piece, such as 'a'."
            )
        pieces.add(int(ids[0]))
    return pieces


def _checked(contrast: Contrast, writer: Writer, max_length: int, edited: int | None) -> Contrast:
    """The contrast, if it is aligned, nothing but the edited pieces differs, and the model reads them all."""
    base, donor = contrast.base, contrast.donor
    whole, read = ([encode(writer, [pair], n) for pair in (base, donor)] for n in (1_000_000, max_length))
    refuse_unaligned(contrast, whole[0], whole[1], writer.tokenizer)
    edits = [int((sides[0].ids[0] != sides[1].ids[0]).sum()) for sides in (whole, read)]
    if edits[0] == 0:
        raise refused(base, "the perturbation changes no word piece")
    if edited is not None and edits[0] > edited:
        raise refused(base, "word pieces that were not edited differ or move with this tokenizer")
    if edits[1] < edits[0]:
        raise refused(base, f"what is edited lies beyond the {max_length} word pieces that the model reads")
    return contrast


def refuse_unaligned(contrast: Contrast, base: Encoded, donor: Encoded, tokenizer: Any, place: int = 0) -> None:
    """Raises for unequal lengths or segments, naming the pair, the first position and both tokens."""
    ids, segments = (base.ids[place], donor.ids[place]), (base.segments[place], donor.segments[place])
    if len(ids[0]) == len(ids[1]) and np.array_equal(*segments):
        return
    shorter = min(map(len, ids))
    differ = np.flatnonzero(segments[0][:shorter] != segments[1][:shorter])
    at = int(differ[0]) if len(differ) else shorter
    tokens = [tokenizer.convert_ids_to_tokens(int(row[at])) if at < len(row) else "nothing" for row in ids]
    raise MechirError(
        f"Pair {contrast.query_id}/{contrast.doc_id} is not aligned: at position {at} the base has '{tokens[0]}' and "
        f"the donor '{tokens[1]}' (lengths {len(ids[0])} and {len(ids[1])})."
    )


def refused(pair: Pair, reason: str) -> MechirError:
    """The error that says why a pair gives no contrast."""
    return MechirError(f"Pair {pair.query_id}/{pair.doc_id} gives no contrast: {reason}.")


@dataclass(frozen=True, eq=False)
class EncodedContrasts:
    """Contrasts as token ids, row by row aligned, with the role of every position."""

    contrasts: tuple[Contrast, ...]
    base: Encoded
    donor: Encoded
    roles: tuple[np.ndarray, ...]

    def batches(
        self, model: Reranker, *, max_rows: int = 64, max_tokens: int | None = None, progress: bool | None = False
    ) -> Iterator[ContrastBatch]:
        """Batches of contrasts of similar length, as from `model.batches`."""
        for index, base in model.batches(self.base, max_rows=max_rows, max_tokens=max_tokens, progress=progress):
            donor, roles = self.donor.batch(index), padded([self.roles[place] for place in index], -1)
            yield ContrastBatch(index, base, donor.to(model.device), roles.to(model.device))


class ContrastBatch(NamedTuple):
    """A batch of contrasts: the row of each among all, both sides as the model reads them, every position's role."""

    rows: np.ndarray
    base: Batch
    donor: Batch
    roles: Int[Tensor, "batch pos"]


def encode_contrasts(model: Reranker, contrasts: Sequence[Contrast], max_length: int | None = None) -> EncodedContrasts:
    """The contrasts as the model reads them.

    Raises:
        MechirError: for no contrasts at all, and for a base and a donor of unequal length or segments.
    """
    if not contrasts:
        raise MechirError("There are no contrasts to run: none was given, or none could be aligned.")
    base = model.encode([contrast.base for contrast in contrasts], max_length)
    donor = model.encode([contrast.donor for contrast in contrasts], max_length)
    for place, contrast in enumerate(contrasts):
        refuse_unaligned(contrast, base, donor, model.tokenizer, place)
    fillers = {c.filler: single_piece(model.tokenizer, c.filler) for c in contrasts if c.filler}
    roles = tuple(
        _roles(base.ids[place], donor.ids[place], base.segments[place], fillers.get(contrast.filler, set()))
        for place, contrast in enumerate(contrasts)
    )
    return EncodedContrasts(tuple(contrasts), base, donor, roles)


def _roles(base: np.ndarray, donor: np.ndarray, segments: np.ndarray, filler: set[int]) -> np.ndarray:
    differ = base != donor
    injected = set(base[differ].tolist()) | set(donor[differ].tolist())
    match = np.isin(base, list(injected - filler))
    query, document = segments == Segment.QUERY.value, segments == Segment.DOC.value
    roles = np.full(len(base), ROLES.index("sep"))
    roles[segments == Segment.CLS.value] = ROLES.index("cls")
    for name, where in (("query", query), ("doc", document)):
        roles[where & match], roles[where & ~match] = ROLES.index(f"{name} match"), ROLES.index(f"{name} other")
    roles[differ] = ROLES.index("injected")
    return roles
