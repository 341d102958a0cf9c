"""What chosen heads look at: attention between roles in the base and in the donor (Chen et al. 2024, arXiv:2405.02503).

The mean over the reader's positions of the attention mass that goes to all positions of the source's role. Attention
is not effect: a head may match perfectly and write nothing (see the planted model's trap); `head_positions` says what
its pattern does. The heads are found by the run on one query in three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.contrasts import ROLES, Contrast
from mechir.methods import effects
from mechir.methods.attention import role_attention
from mechir.methods.checks import heads_or_search
from mechir.methods.patching import choose_heads
from mechir.views import charts


def cost(model: Any, **options: Any) -> float:
    """Full forwards per contrast, the search for the heads included."""
    return 2.2 + 0.2 * model.cfg.n_layers * model.cfg.n_heads


def check(model: Any, contrasts: Sequence[Contrast], *, heads: str, top: int) -> dict[str, Any]:
    """Heads by layer; refuses what does not fit."""
    return {"heads": heads_or_search(model, contrasts, heads, top=top)}


prepare = choose_heads


def measure(model: Any, contrasts: Sequence[Contrast], *, heads: str = "", top: int = 4) -> pd.DataFrame:
    """`site`, `reader`, `source` (roles), ids, `base`, `donor`: see `role_attention`."""
    return role_attention(model, contrasts, heads.split(","))


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """One line per head, reader and source: mean `base` and `donor` attention, and the `change` with its interval."""
    by = ["site", "reader", "source"]
    found = effects.summarise(rows.assign(effect=rows["donor"] - rows["base"]), by).drop(columns="left_out")
    means = rows.groupby([*by, "query_id"])[["base", "donor"]].mean().groupby(by).mean().reset_index()
    return means.merge(found.rename(columns={"estimate": "change"}), on=by)


def findings(summary: pd.DataFrame) -> pd.DataFrame:
    """How much of the words' attention goes to CLS and separators on the base, mean over what reads."""
    special = ("cls", "sep")
    readers = summary[~summary["reader"].isin(special) & summary["source"].isin(special)]
    mass = readers.groupby(["site", "reader"], sort=False)["base"].sum().groupby("site", sort=False).mean()
    told = {"measure": "attention to CLS and separators", "unit": "attention", "role": "no-op"}
    return pd.DataFrame({"site": mass.index, "value": mass.to_numpy()}).assign(**told)


def chart(summary: pd.DataFrame) -> Any:
    """Reader x source, a panel per head: the change from base to donor."""
    return charts.effect_map(
        summary.assign(significant=summary["p_max"] < 0.05),
        "source",
        "reader",
        "change",
        title="Attention of reader to source, donor - base",
        subtitle="ring: p < .05 over the whole map (sign flips of queries)",
        ring="significant",
        column="site",
        order_x=list(ROLES),
        order_y=list(ROLES),
    )
