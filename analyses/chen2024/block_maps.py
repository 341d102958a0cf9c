"""Maps the effect of blocks by role, at the top and the bottom of the ranking (Chen et al. 2024, arXiv:2405.02503)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir.contrasts import ROLES, Contrast
from mechir.experiment import Experiment, Finished
from mechir.measures import PATCHING_TOP
from mechir.methods import effects
from mechir.methods.groups import columns_first
from mechir.methods.patching import patch
from mechir.model_sites import blocks
from mechir.reranker import Reranker
from mechir.views import charts

COMPONENTS = {"resid": "resid_pre", "attn": "attn_out", "mlp": "mlp_out"}


@dataclass(frozen=True)
class BlockMaps(Experiment):
    """Maps the effect of blocks by role, at the top and the bottom of the ranking (Chen et al. 2024, arXiv:2405.02503).

    Chen et al. compare documents that ranked 1-10 with those that ranked 91-100; here the split is by thirds of each
    query's pool under the model's own base scores, so that it works for pools of any size.
    """

    examples = ("--limit-queries 5", "--diagnostic tdc --limit-queries 5")
    runs_on = "contrasts"
    shown = ("rank", "component", "layer", "at", "estimate", "p_corrected", "share", "queries")

    def cost(self, model: Reranker) -> float:
        """Full forwards per contrast: half of one for each of three components, layers and roles."""
        return 2 + 0.55 * 3 * model.cfg.n_layers * len(ROLES)

    def measure(self, model: Reranker, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """`rank`, `site`, `at`, ids, scores, `effect`: see `patch`; `rank` is its third of the query."""
        rows = patch(model, contrasts, blocks(model), at="role")
        rows.insert(0, "rank", effects.thirds(rows))
        return rows

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One line per third of the ranking, component, layer and role: see `effects.table`."""
        table = effects.table(run.rows[run.rows["rank"] != "middle"], ["rank", "site", "at"])
        return columns_first(effects.by_layer(table, COMPONENTS), ["rank"])

    def findings(self, run: Finished) -> pd.DataFrame:
        """The effect of every place at the top of the ranking, corrected over the whole map."""
        top = run.summary[run.summary["rank"] == "top"]
        return effects.stated(top, [PATCHING_TOP(run.diagnostic, place) for place in top["at"]])

    def chart(self, summary: pd.DataFrame) -> Any:
        """Layer x role, a panel per component and third."""
        panels = summary["component"] + ", " + summary["rank"] + " third"
        return charts.tested_map(
            summary.assign(panel=panels),
            "at",
            "layer",
            "estimate",
            title="Effect of a patch on the score (logits), by role of the position",
            column="panel",
            order_x=list(ROLES),
            order_y=sorted(summary["layer"].unique()),
        )
