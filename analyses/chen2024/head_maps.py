"""Which heads carry the perturbation, at the top and at the bottom of the ranking (Chen et al. 2024, arXiv:2405.02503).

Every head's output z is patched from the donor, at all positions or only at some (--at "query|doc"). Documents are
split by thirds of each query's pool under the model's base scores, where Chen et al. compare ranks 1-10 with 91-100.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.contrasts import Contrast
from mechir.methods import effects
from mechir.methods.checks import one_of, place
from mechir.methods.patching import all_heads, patch
from mechir.sites import ATTENTION
from mechir.views import charts

TEXT = "query|doc"
"""Where matching heads write what they count. In the last layer nobody reads it."""


def cost(model: Any, **options: Any) -> float:
    """Full forwards per contrast: half of one per head."""
    return 2 + 0.55 * model.cfg.n_layers * model.cfg.n_heads


def check(model: Any, contrasts: Sequence[Contrast], *, part: str, at: str) -> dict[str, Any]:
    """The place in its normal form; refuses what does not fit."""
    one_of(ATTENTION, part=part)
    return {"at": place(model, contrasts, at)}


def measure(model: Any, contrasts: Sequence[Contrast], *, part: str = "z", at: str = "all") -> pd.DataFrame:
    """`rank`, `site`, `at`, ids, scores, `effect`: see `patch`.

    `part` is z, or v, q, k, pattern; `at` "all" positions, or those of some roles or segments.
    """
    rows = patch(model, contrasts, all_heads(model, part), at=at if at == "all" else [at])
    rows.insert(0, "rank", effects.thirds(rows))
    return rows


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One line per third (and `all`) and head: see `effects.table`; `p_max` is over the heads of one third."""
    parts = [("all", rows), *((name, rows[rows["rank"] == name]) for name in ("top", "bottom"))]
    tables = [effects.table(part, ["site"]).assign(rank=name) for name, part in parts if len(part)]
    found = pd.concat(tables, ignore_index=True)
    return found[["rank", *(name for name in found.columns if name != "rank")]]


def findings(summary: pd.DataFrame, rows: pd.DataFrame, axiom: str, *, at: str = "all") -> pd.DataFrame:
    """The gap, and the effect of every head, corrected over all; soft-TF is what it writes at query and document."""
    found = effects.stated(summary[summary["rank"] == "all"], "patching", axiom)
    counts = (found["term"] == "tf") & (at == TEXT)
    where = "" if at == "all" else f", at {at}"
    found = found.assign(role=counts.map({True: "soft-tf", False: ""}), measure=found["measure"] + where)
    return pd.concat([effects.gap_stated(rows, axiom), found], ignore_index=True).fillna({"role": ""})


def chart(summary: pd.DataFrame) -> Any:
    """Layer x head, a panel per third."""
    return charts.head_map(summary, "site", title="Effect of patching a head on the score (logits)", column="rank")
