"""From logits to one number: which logit means relevance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mechir.errors import MechirError

READOUTS = ("score", "log_p", "p")


class ScoreHead(nn.Module):
    """The read-out of relevance from logits, with hook points: what the classifier reads, the logits, the score.

    The score is the logit (1 label) or the log-odds of the relevant label: `logit[1] - logit[0]` with 2 labels,
    `logit[r] - logsumexp(others)` with more. It ranks exactly as p(relevant) does, without saturating.
    """

    def __init__(self, labels: Sequence[str], relevant_label: int | str | None, *, pooled: bool = True) -> None:
        super().__init__()
        self.labels, self.n_labels = tuple(labels), len(labels)
        self.relevant_label = relevant(self.labels, relevant_label)
        if pooled:
            self.hook_pooled = HookPoint()
        self.hook_logits, self.hook_score = HookPoint(), HookPoint()

    def score(self, logits: Float[Tensor, "batch label"]) -> Float[Tensor, "batch"]:
        """The log-odds of relevance, in float32 or better."""
        chosen = self.stated_label()
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.n_labels == 1:
            return self.hook_score(logits[:, chosen])
        others = [label for label in range(self.n_labels) if label != chosen]
        return self.hook_score(logits[:, chosen] - logits[:, others].logsumexp(1))

    def stated_label(self) -> int:
        """The number of the label that means relevance; raises when it is not stated."""
        if self.relevant_label is None:
            listed = ", ".join(f"{number} ('{name}')" for number, name in enumerate(self.labels))
            raise MechirError(
                f"The model has {self.n_labels} labels and no score until you say which one is relevance: "
                f"load it with relevant_label= one of {listed}."
            )
        return self.relevant_label

    def __str__(self) -> str:
        """The output that is the score, in words."""
        if self.relevant_label is None:
            return f"not stated which of {self.n_labels} labels it is"
        if self.n_labels == 1:
            return "the logit of the only label"
        return f"log-odds of label {self.relevant_label} ('{self.labels[self.relevant_label]}')"


def label_names(config: Any, n: int) -> tuple[str, ...]:
    """The names of a model's labels, LABEL_0, ... where its configuration gives none."""
    named = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    return tuple(named.get(number, f"LABEL_{number}") for number in range(n))


def relevant(labels: Sequence[str], label: Any) -> int | None:
    """The number of the relevant label, given as a number or name; None where it has to be stated.

    By default it is the only label, or label 1 of LABEL_0 and LABEL_1, which is how rerankers are trained. Labels with
    names of their own may stand in any order (of "entailment" and "not_entailment" the first is relevance). Raises for
    a number or a name that the model does not have.
    """
    if label is None:
        usual = len(labels) == 1 or tuple(labels) == ("LABEL_0", "LABEL_1")
        return len(labels) - 1 if usual else None
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise MechirError(f"relevant_label={label!r} is no label: write its number, or its name.")
    if isinstance(label, str) and label in labels:
        if labels.count(label) > 1:
            raise MechirError(f"relevant_label='{label}' is the name of several labels: give its number.")
        return labels.index(label)
    if isinstance(label, str) and not label.isdecimal():
        raise MechirError(f"relevant_label='{label}' is no label: the model has {', '.join(labels)}.")
    if not 0 <= int(label) < len(labels):
        raise MechirError(f"relevant_label={label} is out of range: the model has labels 0-{len(labels) - 1}.")
    return int(label)


def read_out(score: Float[Tensor, "batch"], readout: str) -> Float[Tensor, "batch"]:
    """The score as it is, or as log p(relevant) or p(relevant). Effects are always taken on the score."""
    if readout not in READOUTS:
        raise MechirError(f"Unknown readout '{readout}': write one of {', '.join(READOUTS)}.")
    if readout == "score":
        return score
    log_p = nn.functional.logsigmoid(score)
    return log_p if readout == "log_p" else log_p.exp()
