"""Which heads write the score: path patching from every head and MLP to the score (Lu et al. 2025, arXiv:2502.04645).

The sender sees the donor's world, all other heads keep the base's (Wang et al.). By default MLPs are recomputed on the
way and LayerNorms are live, as the authors do; the column `departure` says how far that is from a linear path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.contrasts import Contrast
from mechir.methods import effects
from mechir.methods.checks import one_of
from mechir.methods.paths import FREEZE, LN, path_patch
from mechir.views import charts


def cost(model: Any, **options: Any) -> float:
    """Full forwards per contrast: the base, the donor, and an MLP per layer at CLS for each sender."""
    return 2.5


def check(model: Any, contrasts: Sequence[Contrast], *, freeze: str, ln: str) -> dict[str, Any]:
    """Refuses unknown words."""
    one_of(FREEZE, freeze=freeze)
    one_of(LN, ln=ln)
    return {}


def measure(model: Any, contrasts: Sequence[Contrast], *, freeze: str = "heads", ln: str = "live") -> pd.DataFrame:
    """`sender`, ids, `base`, `donor`, `patched`, `effect`, `departure`: see `path_patch`."""
    return path_patch(model, contrasts, freeze=freeze, ln=ln)


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One line per sender, the largest effect first: see `effects.table`; `departure` is the median over contrasts."""
    table = effects.table(rows, ["sender"])
    table["departure"] = table["sender"].map(rows.groupby("sender")["departure"].median())
    return table.sort_values("estimate", key=abs, ascending=False, ignore_index=True)


def findings(
    summary: pd.DataFrame, rows: pd.DataFrame, axiom: str, *, freeze: str = "heads", ln: str = "live"
) -> pd.DataFrame:
    """The gap, and the effect of every sender, corrected over all of them."""
    other = "" if (freeze, ln) == ("heads", "live") else f" (freeze {freeze}, LayerNorm {ln})"
    found = effects.stated(summary, f"path to the score{other}", axiom, "sender").assign(role="scoring")
    return pd.concat([effects.gap_stated(rows, axiom), found], ignore_index=True).fillna({"role": ""})


def chart(summary: pd.DataFrame) -> Any:
    """Layer x head, in logits; MLPs are in the table."""
    return charts.head_map(summary, "sender", title="Effect on the score along the path head -> score")
