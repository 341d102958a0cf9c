"""Scores as others compute them: Hugging Face called as its users call it, and sentence-transformers' CrossEncoder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import torch
import transformers
from torch import Tensor

Texts = Sequence[tuple[str, str]]


def hugging_face(folder: Path, texts: Texts, label: int | None = None) -> Tensor:
    """`tokenizer(q, d, padding, truncation)` and `AutoModelForSequenceClassification`, on the scale of mechir's scores."""
    with redirect_stderr(io.StringIO()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(
        [query for query, _ in texts], [document for _, document in texts],
        padding=True, truncation=True, return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        output = model(**inputs)
    return odds(output[0] if isinstance(output, tuple) else output.logits, label)


def cross_encoder(folder: Path, texts: Texts, label: int | None = None) -> Tensor:
    """`CrossEncoder(folder).predict(pairs)` without its activation, on the scale of mechir's scores."""
    from sentence_transformers import CrossEncoder

    with redirect_stderr(io.StringIO()):
        model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True)
    found = model.predict(
        list(texts), activation_fn=torch.nn.Identity(), convert_to_tensor=True, show_progress_bar=False
    )
    return odds(found if found.ndim == 2 else found[:, None], label)


def odds(logits: Tensor, label: int | None) -> Tensor:
    """The logit of one label; of several the log-odds of `label`, by default the last."""
    n = logits.shape[1]
    if n == 1:
        return logits[:, 0].float()
    label = n - 1 if label is None else label
    others = [other for other in range(n) if other != label]
    return (logits[:, label] - logits[:, others].logsumexp(1)).float()
