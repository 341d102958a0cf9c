"""New names for columns in the summaries of older runs."""

from __future__ import annotations

import pandas as pd

EFFECTS = {"n": "pairs", "p_max": "p_corrected"}
RANKING = {"n": "queries", "p_unpaired": "change_p_unpaired", "p_paired": "change_p", "p_holm": "change_p_corrected"}
RENAMED = {
    "chen2024/block_maps": EFFECTS,
    "chen2024/head_attention": EFFECTS | {"change": "estimate"},
    "chen2024/head_maps": EFFECTS,
    "chen2024/head_positions": EFFECTS,
    "lu2025/block_patching": EFFECTS,
    "lu2025/head_to_heads": EFFECTS,
    "lu2025/head_to_score": EFFECTS,
    "lu2025/idf_direction": {"p_idf": "pearson_idf_p_corrected", "p_log_idf": "pearson_log_idf_p_corrected"},
    "lu2025/semantic_bm25": {"n": "pairs", "pearson": "estimate"},
    "polyakov2025/robust_metric": {"n": "pairs", "rho": "estimate"},
    "vast2024/distribution": {"conductance": "estimate"},
    "vast2024/importance": {"conductance": "estimate"},
    "vast2024/pruning": {
        "p": "share",
        "low": "change_low",
        "high": "change_high",
        "p_paired": "change_p",
        "p_holm": "change_p_corrected",
        "p_excess": "excess_p",
        "p_excess_holm": "excess_p_corrected",
    },
    "vast2024/transfer": {"p_holm": "p_corrected"},
    "vast2025/attention_contrast": {"p_max": "p_corrected"},
    "vast2025/direction_ablation": RANKING,
    "vast2025/layer_sweep": RANKING,
    "vast2025/qk_projection": {
        "attention_p_max": "attention_excess_p_corrected",
        "score_p_max": "score_excess_p_corrected",
    },
    "vast2025/qk_svd": {
        "p": "z_p",
        "p_holm": "z_p_corrected",
        "p_relu": "relu_p",
        "p_relu_holm": "relu_p_corrected",
        "p_max": "contrast_p_corrected",
    },
}
"""For each experiment, columns of a summary as older versions of mechir stored them, and their names now."""


def renamed(summary: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """Gives a stored summary today's column names, unless it has them already."""
    names = RENAMED.get(experiment, {})
    old = names.keys() & set(summary.columns)
    return summary if set(names.values()) & set(summary.columns) - old else summary.rename(columns=names)
