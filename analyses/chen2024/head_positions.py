"""Patches the output and pattern of chosen heads at each role (Chen et al. 2024, arXiv:2405.02503)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd

from mechir.contrasts import ROLES, Contrast
from mechir.experiment import Experiment, Finished, Inputs
from mechir.measures import PATCHING
from mechir.methods import effects
from mechir.methods.checks import heads_or_search
from mechir.methods.patching import choose_heads, patch
from mechir.options import OR_FOUND, option
from mechir.reranker import Reranker
from mechir.sites import Head
from mechir.views import charts


@dataclass(frozen=True)
class HeadPositions(Experiment):
    """Patches the output and pattern of chosen heads at each role (Chen et al. 2024, arXiv:2405.02503).

    The heads are found by the run on one query in three (the largest effects of patching z), and measured on the rest.
    """

    examples = ("--heads h1.1,h2.9 --limit-queries 5",)
    runs_on = "contrasts"
    shown: ClassVar[tuple[str, ...]] = ("site", "at", "share", "estimate", "p_corrected", "queries")

    heads: tuple[Head, ...] = option((), f"heads {OR_FOUND}", in_order=True)
    top: int = option(4, "heads found by the run where none are named", least=1)

    def cost(self, model: Reranker) -> float:
        """Full forwards per contrast: half of one per head, role, and part."""
        return 2 + 0.55 * 2 * self.top * len(ROLES) + 0.2 * model.cfg.n_layers * model.cfg.n_heads

    def check(self, inputs: Inputs) -> Experiment:
        """Heads by layer; refuses what does not fit."""
        return replace(self, heads=heads_or_search(inputs.model, inputs.material, self.heads))

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Contrast]]:
        """The heads, and the contrasts left to measure: see `choose_heads`."""
        heads, rest = choose_heads(inputs.model, inputs.material, heads=self.heads, top=self.top)
        return replace(self, heads=heads), rest

    def measure(self, model: Reranker, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """`site`, `at` (role), ids, scores, `effect`: see `patch`."""
        sites = [site for head in self.heads for site in (head, head._replace(part="pattern"))]
        return patch(model, contrasts, sites, at="role")

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One line per head, part and role: see `effects.table`."""
        return effects.table(run.rows, ["site", "at"])

    def findings(self, run: Finished) -> pd.DataFrame:
        """The effect of every place, corrected over the whole map."""
        return effects.stated(run.summary, [PATCHING(run.diagnostic, place) for place in run.summary["at"]])

    def chart(self, summary: pd.DataFrame) -> Any:
        """Head x role."""
        return charts.tested_map(
            summary,
            "at",
            "site",
            "estimate",
            title="Effect of patching a head at one role (logits)",
            low="low",
            high="high",
            order_x=list(ROLES),
            order_y=list(dict.fromkeys(summary["site"])),
        )
