"""Where chosen heads matter: their output and their pattern patched at each role (Chen et al. 2024, arXiv:2405.02503).

The heads are found by the run on one query in three (the largest effects of patching z), and measured on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.contrasts import ROLES, Contrast
from mechir.methods import effects
from mechir.methods.checks import heads_or_search
from mechir.methods.patching import choose_heads, patch
from mechir.views import charts


def cost(model: Any, *, top: int = 4, **options: Any) -> float:
    """Full forwards per contrast: half of one per head, role, and part."""
    return 2 + 0.55 * 2 * top * len(ROLES) + 0.2 * model.cfg.n_layers * model.cfg.n_heads


def check(model: Any, contrasts: Sequence[Contrast], *, heads: str, top: int) -> dict[str, Any]:
    """Heads by layer; refuses what does not fit."""
    return {"heads": heads_or_search(model, contrasts, heads, top=top)}


prepare = choose_heads


def measure(model: Any, contrasts: Sequence[Contrast], *, heads: str = "", top: int = 4) -> pd.DataFrame:
    """`site`, `at` (role), ids, scores, `effect`. `heads` with commas, or found by the run, `top` of them."""
    sites = [site for head in heads.split(",") for site in (head, f"{head}.pattern")]
    return patch(model, contrasts, sites, at="role")


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One line per head, part and role: see `effects.table`."""
    return effects.table(rows, ["site", "at"])


def findings(summary: pd.DataFrame, axiom: str) -> pd.DataFrame:
    """The effect of every place, corrected over the whole map."""
    return effects.stated(summary, "patching", axiom)


def chart(summary: pd.DataFrame) -> Any:
    """Head x role."""
    return charts.effect_map(
        summary.assign(significant=summary["p_max"] < 0.05),
        "at",
        "site",
        "estimate",
        title="Effect of patching a head at one role (logits)",
        subtitle="ring: p < .05 over the whole map (sign flips of queries)",
        low="low",
        high="high",
        ring="significant",
        order_x=list(ROLES),
        order_y=list(dict.fromkeys(summary["site"])),
    )
