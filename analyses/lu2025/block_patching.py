"""Patches stream, attention and MLPs layer by layer at each role (Lu et al. 2025, arXiv:2502.04645, section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mechir.contrasts import ROLES, Contrast
from mechir.experiment import Experiment, Finished, Inputs
from mechir.measures import PATCHING
from mechir.methods import effects
from mechir.methods.checks import place
from mechir.methods.patching import WHERE, patch
from mechir.model_sites import blocks
from mechir.options import option
from mechir.reranker import Reranker
from mechir.views import charts

PLACES = {"role": len(ROLES), "segment": 5, "all": 1}
COMPONENTS = {"resid": "stream (resid_pre)", "attn": "attention (attn_out)", "mlp": "MLP (mlp_out)"}


@dataclass(frozen=True)
class BlockPatching(Experiment):
    """Patches stream, attention and MLPs layer by layer at each role (Lu et al. 2025, arXiv:2502.04645, section 4).

    The donor's activation is put into the base (the authors' direction); `share` is the fraction of the score gap that
    moves, as a ratio of means. At `role` the positions are CLS, the query's and the document's matching and other
    tokens, the injected ones and the separators; `--at segment` and `--at position` are the alternatives.
    """

    examples = ("--limit-queries 5", "--at segment --limit-queries 5")
    runs_on = "contrasts"
    shown = ("component", "layer", "at", "share", "p_corrected", "estimate", "queries")

    at: str = option("role", "where: each role, segment or position, all positions together, or one place such as doc")

    def cost(self, model: Reranker) -> float:
        """Full forwards per contrast: half of one for each of three components, layers and places."""
        return 2 + 0.55 * 3 * model.cfg.n_layers * PLACES.get(self.at, 100)

    def check(self, inputs: Inputs) -> Experiment:
        """The place in its normal form; refuses what does not fit."""
        return replace(self, at=place(inputs.model, inputs.material, self.at, each=WHERE))

    def measure(self, model: Reranker, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """`site`, `at`, ids, scores, `effect`: see `patch`."""
        return patch(model, contrasts, blocks(model), at=self.at)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One line per component, layer and place: see `effects.table`."""
        return effects.by_layer(effects.table(run.rows, ["site", "at"]), COMPONENTS)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The effect of every place, corrected over the whole map."""
        return effects.stated(run.summary, [PATCHING(run.diagnostic, place) for place in run.summary["at"]])

    def chart(self, summary: pd.DataFrame) -> Any:
        """Layer x place, a panel per component, as a share of the score gap."""
        return charts.tested_map(
            summary,
            "at",
            "layer",
            "share",
            title="Share of the score gap that a patch moves",
            low="share_low",
            high="share_high",
            column="component",
            order_x=list(dict.fromkeys(summary["at"])),
            order_y=sorted(summary["layer"].unique()),
        )
