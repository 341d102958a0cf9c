"""Finds the heads that carry a perturbation, at the top and bottom of the ranking (Chen et al., arXiv:2405.02503)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd

from mechir.contrasts import Contrast
from mechir.experiment import Experiment, Finished, Inputs
from mechir.measures import PATCHING, TEXT
from mechir.methods import effects
from mechir.methods.checks import place
from mechir.methods.patching import patch
from mechir.model_sites import all_heads
from mechir.options import option
from mechir.reranker import Reranker
from mechir.sites import ATTENTION
from mechir.views import charts


@dataclass(frozen=True)
class HeadMaps(Experiment):
    """Finds the heads that carry a perturbation, at the top and bottom of the ranking (Chen et al., arXiv:2405.02503).

    Every head's output z is patched from the donor, at all positions or only at some (--at "query|doc"). Documents are
    split by thirds of each query's pool under the model's base scores, where Chen et al. compare ranks 1-10 with
    91-100.
    """

    examples = ("--limit-queries 5", "--part pattern --at 'query|doc' --limit-queries 5")
    runs_on = "contrasts"
    figure = 11
    answers: ClassVar = {"soft-tf": ("--at", TEXT)}
    shown = ("site", "share", "estimate", "p_corrected", "queries")

    part: str = option("z", "what of a head is patched", among=tuple(ATTENTION))
    at: str = option("all", "where: all positions, or those of some roles or segments, such as query|doc")

    def cost(self, model: Reranker) -> float:
        """Full forwards per contrast: half of one per head."""
        return 2 + 0.55 * model.cfg.n_layers * model.cfg.n_heads

    def check(self, inputs: Inputs) -> Experiment:
        """The place in its normal form; refuses what does not fit."""
        return replace(self, at=place(inputs.model, inputs.material, self.at))

    def measure(self, model: Reranker, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """`rank`, `site`, `at`, ids, scores, `effect`: see `patch`."""
        rows = patch(model, contrasts, all_heads(model, self.part), at="all" if self.at == "all" else [self.at])
        rows.insert(0, "rank", effects.thirds(rows))
        return rows

    def summarise(self, run: Finished) -> pd.DataFrame:
        """A line per third (and `all`) and head: see `effects.table`; `p_corrected` is over the heads of one third."""
        parts = {"all": run.rows} | {name: run.rows[run.rows["rank"] == name] for name in ("top", "bottom")}
        tables = {name: effects.table(part, ["site"]) for name, part in parts.items() if len(part)}
        return pd.concat(tables, names=["rank"]).reset_index("rank").reset_index(drop=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The gap, and the effect of every head, corrected over all; at query and document it is soft-TF."""
        measure = PATCHING(run.diagnostic, "" if self.at == "all" else self.at)
        patched = effects.stated(run.summary[run.summary["rank"] == "all"], measure)
        return pd.concat([effects.gap_stated(run.rows, run.diagnostic), patched], ignore_index=True)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The heads over all thirds, the largest effect first."""
        return super().table(summary[summary["rank"] == "all"])

    def chart(self, summary: pd.DataFrame) -> Any:
        """Layer x head, a panel per third."""
        return charts.head_map(summary, "site", title="Effect of patching a head on the score (logits)", column="rank")
