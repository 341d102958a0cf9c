"""Where the signal is, layer by layer: the stream, attention and MLPs patched at each role (Lu et al. 2025, section 4).

The donor's activation is put into the base (the authors' direction); `share` is the fraction of the score gap that
moves, as a ratio of means. At `role` the positions are CLS, the query's and the document's matching and other tokens,
the injected ones and the separators; `--at segment` and `--at position` are the alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.contrasts import ROLES, Contrast
from mechir.methods import effects
from mechir.methods.checks import place
from mechir.methods.patching import WHERE, blocks, patch
from mechir.views import charts

PLACES = {"role": len(ROLES), "segment": 5, "all": 1}
NAMES = {"resid": "stream (resid_pre)", "attn": "attention (attn_out)", "mlp": "MLP (mlp_out)"}


def cost(model: Any, *, at: str = "role") -> float:
    """Full forwards per contrast: half of one for each of three components, layers and places."""
    return 2 + 0.55 * 3 * model.cfg.n_layers * PLACES.get(at, 100)


def check(model: Any, contrasts: Sequence[Contrast], *, at: str) -> dict[str, Any]:
    """The place in its normal form; refuses what does not fit."""
    return {"at": place(model, contrasts, at, each=WHERE)}


def measure(model: Any, contrasts: Sequence[Contrast], *, at: str = "role") -> pd.DataFrame:
    """`site`, `at`, ids, scores, `effect`: see `patch`. `at` is role, segment, position or all."""
    return patch(model, contrasts, blocks(model), at=at)


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One line per component, layer and place: see `effects.table`."""
    table = effects.table(rows, ["site", "at"])
    parsed = table["site"].str.extract(r"([a-z]+)(\d+)")
    table.insert(0, "component", parsed[0].map(NAMES))
    table.insert(1, "layer", parsed[1].astype(int))
    return table


def findings(summary: pd.DataFrame, axiom: str) -> pd.DataFrame:
    """The effect of every place, corrected over the whole map."""
    return effects.stated(summary, "patching", axiom)


def chart(summary: pd.DataFrame) -> Any:
    """Layer x place, a panel per component, as a share of the score gap."""
    return charts.effect_map(
        summary.assign(significant=summary["p_max"] < 0.05),
        "at",
        "layer",
        "share",
        title="Share of the score gap that a patch moves",
        subtitle="ring: p < .05 over the whole map (sign flips of queries)",
        low="share_low",
        high="share_high",
        ring="significant",
        column="component",
        order_x=list(dict.fromkeys(summary["at"])),
        order_y=sorted(summary["layer"].unique()),
    )
