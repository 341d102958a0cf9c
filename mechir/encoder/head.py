"""From the CLS row to one number: pooler, classifier, and which logit means relevance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mechir.encoder.families import Parts
from mechir.errors import MechirError

READOUTS = ("score", "log_p", "p")


class ClassificationHead(nn.Module):
    """Pooler, classifier and relevance read-out, with a hook point after each.

    The score is the logit (1 label) or the log-odds of the relevant label: `logit[1] - logit[0]` with 2 labels,
    `logit[r] - logsumexp(others)` with more. It ranks exactly as p(relevant) does, without saturating.
    """

    def __init__(self, n_labels: int, relevant_label: int | None) -> None:
        super().__init__()
        if relevant_label is None and n_labels <= 2:
            relevant_label = n_labels - 1
        if relevant_label is not None and not 0 <= relevant_label < n_labels:
            raise MechirError(
                f"relevant_label={relevant_label} is out of range: the model has labels 0-{n_labels - 1}."
            )
        self.n_labels, self.relevant_label = n_labels, relevant_label
        self.hook_pooled, self.hook_logits, self.hook_score = HookPoint(), HookPoint(), HookPoint()

    def forward(self, parts: Parts, cls: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch label"]:
        """The logits."""
        pooled = self.hook_pooled(parts.pooler_activation(parts.pooler(cls)))
        return self.hook_logits(parts.classifier(pooled))

    def score(self, logits: Float[Tensor, "batch label"]) -> Float[Tensor, "batch"]:
        """The log-odds of relevance, in float32 or better.

        Raises:
            MechirError: for 3 or more labels when none was named as the relevant one.
        """
        if self.relevant_label is None:
            raise MechirError(
                f"The model has {self.n_labels} labels and no score until you say which one is relevance: "
                "load it with relevant_label=0, 1, ..."
            )
        logits = logits if logits.dtype == torch.float64 else logits.float()
        relevant = logits[:, self.relevant_label]
        if self.n_labels == 1:
            return self.hook_score(relevant)
        others = [label for label in range(self.n_labels) if label != self.relevant_label]
        return self.hook_score(relevant - logits[:, others].logsumexp(1))


def read_out(score: Float[Tensor, "batch"], readout: str) -> Float[Tensor, "batch"]:
    """The score as it is, or as log p(relevant) or p(relevant). Effects are always taken on the score."""
    if readout not in READOUTS:
        raise MechirError(f"Unknown readout '{readout}'. Write one of {', '.join(READOUTS)}.")
    if readout == "score":
        return score
    log_p = nn.functional.logsigmoid(score)
    return log_p if readout == "log_p" else log_p.exp()
