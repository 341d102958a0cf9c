"""The prompt of a language model, and the way in which its own users fill it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mechir.pair import Pair
from mechir.templates import Template


@dataclass(frozen=True)
class Prompt:
    """A template; `chat` says that it is the tokenizer's chat template, with an `instruction` as system or none."""

    template: Template
    instruction: str | None = None
    chat: bool = False

    def features(self, tokenizer: Any, pairs: Sequence[Pair]) -> Mapping[str, Tensor]:
        """Ids and mask of whole prompts, filled without our own way of writing pairs, and padded on the left."""
        texts = [self._filled(tokenizer, pair) for pair in pairs]
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        read = tokenizer(texts, add_special_tokens=self.template.special, **options)
        return {name: read[name] for name in ("input_ids", "attention_mask")}

    def _filled(self, tokenizer: Any, pair: Pair) -> str:
        if not self.chat:
            return "".join(part.text for part in self.template.filled(pair.query, pair.document))
        messages = [] if self.instruction is None else [{"role": "system", "content": self.instruction}]
        messages += [{"role": "query", "content": pair.query}, {"role": "document", "content": pair.document}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
