"""Compares the pairs that the classic and the robust metric call interesting (Polyakov et al. 2025, SIGIR)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechir.contrasts import Contrast
from mechir.experiment import Experiment, Finished
from mechir.methods import effects
from mechir.methods.patching import patch
from mechir.methods.statistics import spearman
from mechir.model_sites import all_heads
from mechir.reranker import Reranker
from mechir.views import charts

METRICS = {"difference": "difference", "classic": "ratio", "robust": "robust"}


@dataclass(frozen=True)
class RobustMetric(Experiment):
    """Compares the pairs that the classic and the robust metric call interesting (Polyakov et al. 2025, SIGIR).

    Every head is patched; a pair's value is the mean |effect| over all heads, as it is (difference), over |gap|
    (classic) and over sqrt(1 + gap^2) (robust). The classic metric is large where the gap is small, so its mean over
    pairs is led by the pairs on which the perturbation did nothing: its correlation with the score gap is strongly
    negative.
    """

    examples = ("--limit-queries 10", "--diagnostic tdc --limit-queries 10")
    runs_on = "contrasts"

    def cost(self, model: Reranker) -> float:
        """Full forwards per contrast: half of one per head."""
        return 2 + 0.55 * model.cfg.n_layers * model.cfg.n_heads

    def measure(self, model: Reranker, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """A row per contrast: ids, `grade`, `filler`, `base`, `donor`, the mean |effect| over heads by each metric."""
        rows = patch(model, contrasts, all_heads(model))
        keys = ["query_id", "doc_id", "grade", "filler", "base", "donor"]
        sizes = {name: effects.measured(rows, metric, min_gap=0.0).abs() for name, metric in METRICS.items()}
        row = rows.groupby("site").cumcount()
        means = rows.assign(**sizes).groupby(row)[list(METRICS)].mean()
        return pd.concat([rows[keys].iloc[: len(means)], means], axis=1)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """Spearman's rho of each metric with the score gap (donor - base) and with the grade, intervals over queries.

        `metric`, `with` (score_delta, grade), `pairs`, `queries`, `estimate`, `low`, `high`.
        """
        rows = run.rows.assign(grade=run.rows["grade"].astype(float))
        rows["score_delta"] = rows["donor"] - rows["base"]
        lines = []
        for metric in METRICS:
            for other in ("score_delta", "grade"):
                both = rows[["query_id", metric, other]].dropna()
                if both[other].nunique() > 1:
                    numbers = spearman(*(both[name].to_numpy() for name in (metric, other, "query_id")))
                elif other == "score_delta":
                    numbers = (np.nan,) * 3  # one gap alone goes with nothing
                else:
                    continue
                line = {"metric": metric, "with": other, "pairs": len(both), "queries": both["query_id"].nunique()}
                lines.append(line | dict(zip(("estimate", "low", "high"), numbers, strict=True)))
        return pd.DataFrame(lines)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Metric x what it correlates with."""
        return charts.effect_map(
            summary.assign(rho=summary["estimate"], significant=summary["low"] * summary["high"] > 0),
            "with",
            "metric",
            "rho",
            title="Spearman correlation of the mean |effect| over heads",
            subtitle="ring: the 95 % interval over queries leaves 0 out",
            low="low",
            high="high",
            ring="significant",
            order_y=list(METRICS),
        )
