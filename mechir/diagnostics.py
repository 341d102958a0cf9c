"""Perturbations after the retrieval axioms: functions from a pair to the pair that it is contrasted with.

Frozen values that give the donor of a pair, in pure Python. Draws depend on the seed and the ids of the pair alone. To
add one, write a function `Pair -> Pair`; `contrasts.align` finds what it edited.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from bm25s.stopwords import STOPWORDS_EN_PLUS

from mechir.contrasts import refused
from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.reranker import Reranker

WHERE = ("append", "prepend", "inject", "replace")
COMMON = frozenset(STOPWORDS_EN_PLUS)


def words(text: str) -> list[str]:
    """The words of a text, lower-cased, without punctuation."""
    return re.findall(r"\w+", text.lower())


class Idf(dict[str, float]):
    """Word -> ln(N / df) over the N documents of a collection; a word that none of them holds has ln N."""

    def __init__(self, documents: Sequence[str]) -> None:
        counts = Counter(word for document in documents for word in set(words(document)))
        self.n = len(documents)
        super().__init__({word: math.log(self.n / count) for word, count in counts.items()})

    def __missing__(self, word: str) -> float:
        return math.log(self.n) if self.n else 0.0


def _generator(pair: Pair, seed: int, *key: str) -> random.Random:
    digest = hashlib.sha256("\0".join([str(seed), pair.query_id, pair.doc_id, *key]).encode()).digest()
    return random.Random(int.from_bytes(digest[:8]))


def _content(pair: Pair) -> list[str]:
    """The words of the query without stop words, each once; all of them if they are stop words alone."""
    distinct = list(dict.fromkeys(words(pair.query)))
    return [word for word in distinct if word not in COMMON] or distinct


@dataclass(frozen=True)
class Term:
    """The term of the query that is edited.

    That of `chosen` for the query's id, else the rarest by `idf`, else a random content word of the query.
    """

    chosen: Mapping[str, str] = field(default_factory=dict, hash=False)
    idf: Mapping[str, float] | None = field(default=None, repr=False, hash=False)
    seed: int = 0

    def __call__(self, pair: Pair) -> str:
        """The term."""
        if pair.query_id in self.chosen:
            return self.chosen[pair.query_id]
        terms = _content(pair)
        if not terms:
            raise MechirError(f"Query '{pair.query_id}' has no word to edit: leave it out.")
        if self.idf is not None:
            return max(terms, key=lambda term: self.idf[term])  # type: ignore[index]
        return _generator(pair, self.seed, "term").choice(terms)


@dataclass(frozen=True)
class Tfc1:
    """TFC1: a document with one more occurrence of a query term should score higher.

    `append`, `prepend`, or `inject` (between two words at random) the term; `replace` takes every occurrence out of the
    document (TFC1-R: the donor is then the one that should score lower). Source: Chen et al. 2024 (arXiv:2405.02503);
    TFC1-R: van Marken and Petcu (arXiv:2510.06728).
    """

    where: str = "append"
    term: Term = Term()

    def __post_init__(self) -> None:
        if self.where not in WHERE:
            raise MechirError(f"Unknown place '{self.where}': write one of {', '.join(WHERE)}.")

    def __call__(self, pair: Pair) -> Pair:
        """The donor."""
        term, read = self.term(pair), pair.document.split()
        if self.where == "replace":
            others = [word for word in read if words(word) != words(term)]
            if len(others) == len(read):
                raise refused(pair, f"its document does not hold '{term}'")
            return replace(pair, document=" ".join(others))
        places = {"append": len(read), "prepend": 0}
        place = places.get(self.where, _generator(pair, self.term.seed, "place").randint(0, len(read)))
        return replace(pair, document=" ".join([*read[:place], term, *read[place:]]))


def tdc(idf: Mapping[str, float], where: str = "append") -> Tfc1:
    """TDC: one more occurrence of the query's most discriminating term, by IDF (MechIR, Parry et al. 2025)."""
    return Tfc1(where, Term(idf=idf))


@dataclass(frozen=True)
class Tfc2:
    """TFC2(K): from K to K + 1 appended occurrences; the effect should fall with K (arXiv:2510.06728)."""

    k: int = 1
    term: Term = Term()

    def __post_init__(self) -> None:
        if self.k < 0:
            raise MechirError(f"k={self.k} is no number of occurrences: write 0 or more.")

    def base(self, pair: Pair) -> Pair:
        """The pair with K occurrences appended."""
        return replace(pair, document=" ".join([*pair.document.split(), *[self.term(pair)] * self.k]))

    def __call__(self, pair: Pair) -> Pair:
        """The donor."""
        return replace(self, k=self.k + 1).base(pair)


@dataclass(frozen=True)
class Lnc1:
    """LNC1: appending text without a word of the query should not raise the score.

    As many words as the document has (at most `limit`), from a random other document of `documents`, query words left
    out.
    """

    documents: Sequence[str] = field(repr=False)
    limit: int = 100
    seed: int = 0

    def __call__(self, pair: Pair) -> Pair:
        """The donor."""
        read, query = pair.document.split(), set(words(pair.query))
        generator, noise = _generator(pair, self.seed, "noise"), list[str]()
        wanted = min(len(read), self.limit)
        others = [text for text in self.documents if text != pair.document]
        if not others:
            raise MechirError("LNC1 appends words of other documents: give documents= of more than one.")
        while len(noise) < wanted and others:
            text = generator.choice(others)
            new = [word for word in text.split() if not query & set(words(word))]
            noise += new
            if not new:
                others.remove(text)
        if len(noise) < wanted:
            raise refused(pair, "other documents hold no word beside the query's")
        return replace(pair, document=" ".join([*read, *noise[:wanted]]))


@dataclass(frozen=True)
class Lnc2:
    """LNC2: a document repeated `times` times should not score lower."""

    times: int = 2

    def __post_init__(self) -> None:
        if self.times < 2:
            raise MechirError(f"times={self.times} repeats nothing: write 2 or more.")

    def __call__(self, pair: Pair) -> Pair:
        """The donor."""
        return replace(pair, document=" ".join([pair.document] * self.times))


@dataclass(frozen=True)
class Stmc1:
    """STMC1: appending a synonym of a query term should raise the score.

    `synonyms` maps terms to words: a table, or `neighbours(model, terms)`.
    """

    synonyms: Mapping[str, str] = field(repr=False)
    term: Term = Term()

    def __call__(self, pair: Pair) -> Pair:
        """The donor."""
        term = self.term(pair)
        if term not in self.synonyms:
            raise refused(pair, f"there is no synonym of '{term}'")
        return replace(pair, document=f"{' '.join(pair.document.split())} {self.synonyms[term]}")


def neighbours(model: Reranker, terms: Sequence[str]) -> dict[str, str]:
    """The nearest whole word of the vocabulary for each term, by cosine of the embeddings in this model.

    A term of several word pieces is their mean. Pieces of words, special tokens and words that share a stem with the
    term (its first four letters, or all of the shorter one) are left out: they are its spelling, not its meaning. A
    term without any neighbour is not in the result.
    """
    table = torch.nn.functional.normalize(model.W_E.detach().float(), dim=-1)
    pieces = [piece or "" for piece in model.tokenizer.convert_ids_to_tokens(list(range(len(table))))]
    begins = any(piece.startswith(BEGINS) for piece in pieces)  # some vocabularies mark where a word begins
    vocabulary = [piece.lstrip("".join(BEGINS)) if piece.startswith(BEGINS) or not begins else "" for piece in pieces]
    whole = torch.tensor([place for place, word in enumerate(vocabulary) if word.isalpha() and len(word) > 2])
    nearest = {}
    for term in terms:
        ids = model.tokenizer(f" {term}", add_special_tokens=False)["input_ids"]
        near = table[whole] @ table[ids].mean(0)
        ranked = (vocabulary[int(whole[place])] for place in near.argsort(descending=True))
        if word := next((word for word in ranked if not _same_stem(word.lower(), term.lower())), None):
            nearest[term] = word
    return nearest


BEGINS = ("\u0120", "\u2581")
"""How byte-level BPE and SentencePiece mark the beginning of a word."""


def _same_stem(word: str, term: str) -> bool:
    return word.startswith(term[:4]) or term.startswith(word[:4])


@dataclass(frozen=True)
class Negate:
    """A negation before the first occurrence of the term in the document."""

    word: str = "not"
    term: Term = Term()

    def __call__(self, pair: Pair) -> Pair:
        """The donor."""
        term, read = self.term(pair), pair.document.split()
        place = next((k for k, word in enumerate(read) if words(word) == words(term)), None)
        if place is None:
            raise refused(pair, f"its document does not hold '{term}'")
        return replace(pair, document=" ".join([*read[:place], self.word, *read[place:]]))


@dataclass(frozen=True)
class QuerySwap:
    """Another word of `others` in the place of a query term: the document's matches then match nothing."""

    others: Sequence[str] = field(repr=False)
    term: Term = Term()

    def __call__(self, pair: Pair) -> Pair:
        """The donor."""
        term, taken = self.term(pair), {*words(pair.query), *words(pair.document)}
        free = [word for word in self.others if not taken & set(words(word))]
        if not free:
            raise refused(pair, "every other word is in its texts")
        other = _generator(pair, self.term.seed, "swap").choice(free)
        swapped = [other if words(word) == words(term) else word for word in pair.query.split()]
        return replace(pair, query=" ".join(swapped))


@dataclass(frozen=True)
class Shuffle:
    """The words of the document in a random order: word order should matter, and to BM25 it does not."""

    seed: int = 0
    moves = True

    def __call__(self, pair: Pair) -> Pair:
        """The donor."""
        read = pair.document.split()
        _generator(pair, self.seed, "shuffle").shuffle(read)
        return replace(pair, document=" ".join(read))
