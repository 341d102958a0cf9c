"""Which pairs a metric calls interesting: classic against robust (Polyakov, Chen and Eickhoff 2025, SIGIR).

Every head is patched; a pair's value is the mean |effect| over all heads, as it is (difference), over |gap| (classic)
and over sqrt(1 + gap^2) (robust). The classic metric is large where the gap is small, so its mean over pairs is led by
the pairs on which the perturbation did nothing: its correlation with the score gap is strongly negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechir.contrasts import Contrast
from mechir.methods import effects
from mechir.methods.patching import all_heads, patch
from mechir.methods.statistics import spearman
from mechir.views import charts

METRICS = {"difference": "difference", "classic": "ratio", "robust": "robust"}


def cost(model: Any) -> float:
    """Full forwards per contrast: half of one per head."""
    return 2 + 0.55 * model.cfg.n_layers * model.cfg.n_heads


def measure(model: Any, contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """One row per contrast: ids, `grade`, `filler`, `base`, `donor`, the mean |effect| over heads by each metric."""
    rows = patch(model, contrasts, all_heads(model))
    keys = ["query_id", "doc_id", "grade", "filler", "base", "donor"]
    sizes = {name: effects.measured(rows, metric, min_gap=0.0).abs() for name, metric in METRICS.items()}
    row = rows.groupby("site").cumcount()
    means = rows.assign(**sizes).groupby(row)[list(METRICS)].mean()
    return pd.concat([rows[keys].iloc[: len(means)], means], axis=1)


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rho of each metric with the score gap (donor - base) and with the grade, intervals over queries.

    `metric`, `with` (score_delta, grade), `n` pairs, `queries`, `rho`, `low`, `high`.
    """
    rows = rows.assign(score_delta=rows["donor"] - rows["base"], grade=rows["grade"].astype(float))
    lines = []
    for metric in METRICS:
        for other in ("score_delta", "grade"):
            kept = rows[["query_id", metric, other]].dropna()
            if kept[other].nunique() > 1:
                rho, low, high = spearman(kept[metric].to_numpy(), kept[other].to_numpy(), kept["query_id"].to_numpy())
            elif other == "score_delta":
                rho, low, high = (np.nan,) * 3  # one gap alone goes with nothing
            else:
                continue
            told = {"metric": metric, "with": other, "n": len(kept), "queries": kept["query_id"].nunique()}
            lines.append(told | {"rho": rho, "low": low, "high": high})
    return pd.DataFrame(lines)


def chart(summary: pd.DataFrame) -> Any:
    """Metric x what it correlates with."""
    return charts.effect_map(
        summary.assign(significant=np.sign(summary["low"]) == np.sign(summary["high"])),
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
