"""How a model was read: a value that goes into the record of every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mechir.errors import MechirError

ASKED = "asked for"
"""The limit of word pieces is the user's own."""


@dataclass(frozen=True)
class Reading:
    """How a model and its texts are read.

    Attributes:
        weights: the files that its tensors are from; empty for a model in memory.
        tokenizer: the class of its tokenizer.
        max_length: word pieces of a pair that it reads, special ones included.
        limited_by: what sets that limit; `ASKED` where the user did.
        token_types: where token types come from.
        lower_case: whether texts are lowered first, beyond what the tokenizer does.
        relevance: which output is the score.
        settings: files of sentence-transformers that were followed.
        left_out: tensors of the weights that the model has no use for (position ids, heads of language models).
    """

    weights: tuple[str, ...] = ()
    tokenizer: str = ""
    max_length: int = 0
    limited_by: str = ""
    token_types: str = ""
    lower_case: bool = False
    relevance: str = ""
    settings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Reading:
        """The value that a record holds, where JSON has made lists of tuples."""
        fields: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in record.items()}
        return cls(**fields)

    def lines(self) -> Iterator[str]:
        """The same in words, a line each."""
        weights = ", ".join(self.weights) or "in memory"
        yield f"weights: {weights}; tokenizer: {self.tokenizer}{', texts lowered first' * self.lower_case}"
        yield f"reads {self.max_length} word pieces ({self.limited_by}); token types: {self.token_types}"
        yield f"score: {self.relevance}"
        if self.settings:
            yield f"settings of sentence-transformers: {', '.join(self.settings)}"
        if self.left_out:
            more = f" and {len(self.left_out) - 3} more" if len(self.left_out) > 3 else ""
            yield f"tensors without use: {', '.join(self.left_out[:3])}{more}"


def length_limit(n_ctx: int, tokenizer: Any, asked: int | None) -> tuple[int, str]:
    """How many word pieces of a pair are read, and what sets that limit.

    Args:
        n_ctx: the positions that the model has.
        tokenizer: whose `model_max_length` is the limit where none is asked for, as Hugging Face truncates; or None.
        asked: the user's own limit.

    Raises:
        MechirError: for an asked limit that the model has no positions for, or below 1.
    """
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= n_ctx:
            raise MechirError(f"max_length={asked!r} is out of range: the model reads 1 to {n_ctx} word pieces.")
        return asked, ASKED
    own = n_ctx if tokenizer is None else tokenizer.model_max_length
    if isinstance(own, bool) or not isinstance(own, int | float):
        raise MechirError(f"The tokenizer's model_max_length is {own!r}: write a number of word pieces.")
    if own >= n_ctx:
        return n_ctx, "the model's positions"
    if own < 1:
        raise MechirError(f"The tokenizer's model_max_length is {own}: write 1 to {n_ctx} word pieces.")
    return int(own), "the tokenizer's model_max_length"


def token_types(tokenizer: Any, embedded: int) -> str:
    """Where token types come from; `embedded`: how many kinds the model embeds."""
    if not embedded:
        return "the model has none"
    if tokenizer is not None and "token_type_ids" in tokenizer.model_input_names:
        return "written by the tokenizer"
    return "0 everywhere, for the tokenizer writes none"
