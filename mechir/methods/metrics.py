"""The number that is asked of the scores of a query's contrasts: their mean, a margin, any function of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechir.errors import MechirError

Metric = Callable[[Float[Tensor, "*axes contrast"]], Float[Tensor, "*axes"]]
"""From the scores of a query's contrasts, in the order in which these were given, to one number; leading axes stay.
`lambda s: s[..., 0] - s[..., 1]` is the margin of the first over the second."""


def score(scores: Float[Tensor, "*axes contrast"]) -> Float[Tensor, "*axes"]:
    """The mean score of a query's contrasts."""
    return scores.mean(-1)


def as_metric(metric: str | Metric) -> Metric:
    """The metric "score", or the function that was given.

    Raises:
        MechirError: for another word.
    """
    if metric == "score":
        return score
    if not callable(metric):
        raise MechirError(
            f"Unknown metric={metric!r}: write 'score', or a function of a query's scores [..., contrast]."
        )
    return metric


def by_query(query_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows of each query, in order."""
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(query_ids):
        rows.setdefault(query, []).append(row)
    return {query: np.array(some) for query, some in rows.items()}


def means_by_query(
    values: Float[np.ndarray, "contrast *axes"], query_ids: Sequence[str]
) -> Float[np.ndarray, "query *axes"]:
    """The mean over each query's contrasts."""
    return np.stack([values[some].mean(0) for some in by_query(query_ids).values()])


def weights(metric: Metric, scores: Float[Tensor, "contrast"], query_ids: Sequence[str]) -> Float[Tensor, "contrast"]:
    """The derivative of each query's metric by its contrasts' scores, times their number.

    So the mean over a query's contrasts of weight times effect on the score is the effect on the metric.

    Raises:
        MechirError: for a metric that does not depend on a query's scores, or that is no number for each query.
    """
    if metric is score:
        return torch.ones_like(scores)
    out = torch.empty_like(scores)
    for query, rows in by_query(query_ids).items():
        of = scores[rows].detach().requires_grad_()
        with torch.enable_grad():
            value = evaluated(metric, of, query)
            (gradient,) = torch.autograd.grad(value, of, allow_unused=True) if value.requires_grad else (None,)
        if gradient is None or not bool(gradient.any()):
            raise MechirError(
                f"The metric is constant in the scores of query {query} ({len(rows)} contrasts), so its gradient is 0: "
                "leave the query out, or give a metric that its scores move."
            )
        out[rows] = gradient * len(rows)
    return out


def evaluated(metric: Metric, scores: Float[Tensor, "*axes contrast"], query: str) -> Float[Tensor, "*axes"]:
    """The metric of one query's scores.

    Raises:
        MechirError: when it fails on them, gives another shape than one number for each leading place, or one that is
            not finite where the scores are.
    """
    try:
        value = metric(scores)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise MechirError(f"The metric fails on the {scores.shape[-1]} scores of query {query}: {error}.") from error
    if not isinstance(value, Tensor) or value.shape != scores.shape[:-1]:
        raise MechirError(
            f"The metric gives no single number for query {query}: write a function of scores [..., contrast] that "
            "takes the last axis away, such as lambda s: s[..., 0] - s[..., 1]."
        )
    if not bool(value[scores.isfinite().all(-1)].isfinite().all()):
        raise MechirError(f"The metric is not finite on the scores of query {query}: give one that is a number there.")
    return value


def refuse_non_finite_runs(
    scores: Float[np.ndarray, "run contrast"], contrasts: Sequence[object], runs: Sequence[str]
) -> None:
    """Raises for scores that are not finite, by the run (in words: "of the base") and the contrast."""
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        run, place = bad[0]
        raise MechirError(f"The score {runs[run]} of {contrasts[place]} is not finite: check the checkpoint.")
