"""The way in which a model was read: a value that goes into the record of every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mechir.errors import MechirError

ASKED = "asked for"
"""The value of `limited_by` where the user set the limit of word pieces."""


@dataclass(frozen=True)
class Reading:
    """The way in which a model and its texts are read.

    Attributes:
        weights: the files that its tensors are from; empty for a model in memory.
        tokenizer: the class of its tokenizer.
        max_length: word pieces of a pair that it reads, special ones included.
        limited_by: the source of that limit; `ASKED` where the user set it.
        token_types: the source of token types.
        lower_case: whether texts are lowered first, beyond what the tokenizer does.
        relevance: which output is the score.
        settings: files of sentence-transformers that were followed.
        left_out: tensors of the weights that the model does not use (position ids, heads of language models).
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
    def of_record(cls, record: Mapping[str, Any]) -> Reading:
        """The value of a record in JSON, which holds lists in place of tuples."""
        fields: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in record.items()}
        return cls(**fields)

    def lines(self) -> Iterator[str]:
        """Describes the value in words, line by line."""
        weights = ", ".join(self.weights) or "in memory"
        yield f"weights: {weights}; tokenizer: {self.tokenizer}{', texts lowered first' * self.lower_case}"
        yield f"reads {self.max_length} word pieces ({self.limited_by}); token types: {self.token_types}"
        yield f"score: {self.relevance}"
        if self.settings:
            yield f"settings of sentence-transformers: {', '.join(self.settings)}"
        if self.left_out:
            more = f" and {len(self.left_out) - 3} more" if len(self.left_out) > 3 else ""
            yield f"tensors without use: {', '.join(self.left_out[:3])}{more}"


def length_limit(n_ctx: int, tokenizer: Any, max_length: int | None) -> tuple[int, str]:
    """The number of word pieces of a pair that are read, and the source of that limit.

    It is the user's `max_length`, else the tokenizer's `model_max_length`, as Hugging Face truncates, and at most
    `n_ctx`, the positions that the model has. `tokenizer` may be None. Raises for a limit that is out of range.
    """
    if max_length is not None:
        if isinstance(max_length, bool) or not isinstance(max_length, int) or not 1 <= max_length <= n_ctx:
            raise MechirError(f"max_length={max_length!r} is out of range: the model reads 1 to {n_ctx} word pieces.")
        return max_length, ASKED
    limit = n_ctx if tokenizer is None else tokenizer.model_max_length
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise MechirError(f"The tokenizer's model_max_length is {limit!r}: write a number of word pieces.")
    if limit >= n_ctx:
        return n_ctx, "the model's positions"
    if limit < 1:
        raise MechirError(f"The tokenizer's model_max_length is {limit}: write 1 to {n_ctx} word pieces.")
    return int(limit), "the tokenizer's model_max_length"


def token_types(tokenizer: Any, embedded: int) -> str:
    """The source of token types, in words; `embedded` is how many kinds the model embeds."""
    if not embedded:
        return "the model has none"
    if tokenizer is not None and "token_type_ids" in tokenizer.model_input_names:
        return "written by the tokenizer"
    return "0 everywhere, for the tokenizer writes none"
