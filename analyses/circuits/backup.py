"""Asks which heads matter only when others are gone: conditional co-ablation (Gong et al. 2026, arXiv:2607.01940)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mechir.contrasts import Contrast
from mechir.experiment import Experiment, Finished, Inputs, Step
from mechir.inference import LEVEL
from mechir.measures import BACKUP, stated
from mechir.methods.backups import BY, Backups, backups
from mechir.methods.checks import heads_there
from mechir.methods.edge_graph import Graph
from mechir.options import OR_FOUND, option
from mechir.pair import split_queries
from mechir.reranker import Weights
from mechir.sites import Head
from mechir.views.scatter import scatter

from ._scored import Scored, scores_of
from .edges import Edges

PART = 2
"""Primaries are found on one query in so many, and measured on the others."""
SHOWN = 20


@dataclass(frozen=True)
class Backup(Scored):
    """Asks which heads matter only when others are gone: conditional co-ablation (Gong et al. 2026, arXiv:2607.01940).

    The effect of removing each head, alone and once a primary head is gone. By default primaries are the heads whose
    edges carry most on half of the queries, and effects are measured on the other half.
    """

    tier = Weights
    examples = ("--heads h1.1 --limit-queries 8", "--by zero --dry-run")
    figure = 24

    heads: tuple[Head, ...] = option((), f"primary heads {OR_FOUND}")
    top: int = option(2, "primaries that are found where none are named", least=1)
    by: str = option("donor", "what takes a head's place: its z on the donor, or 0", among=BY)

    def cost(self, model: Weights) -> float:
        """Full forwards per contrast: about half a one for each primary and head."""
        return 0.6 * model.cfg.n_layers * model.cfg.n_heads * (1 + (len(self.heads) or self.top))

    def measured(self, material: Sequence[Contrast]) -> list[Contrast]:
        """All contrasts, or those of the queries that edges are not scored on."""
        return list(material) if self.heads else split_queries(material, PART)[1]

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses heads that the model lacks, and options that do not go together."""
        heads_there(inputs.model, self.heads)
        return super().check(inputs)

    def needs(self, inputs: Inputs) -> Sequence[Step]:
        """The effects of edges on half of the queries, where no primaries are named."""
        return () if self.heads else (inputs.step(Edges(**self.scoring, sample=0, every=PART)),)

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Any]]:
        """The primaries, by the sum of |mean effect| over their edges, and the contrasts of the other queries."""
        if self.heads:
            return self, inputs.material
        held_out = self.measured(inputs.material)
        scores = scores_of(inputs.done[0].rows, Graph.of(inputs.model))
        carried = pd.Series(np.abs(scores.estimate)).groupby([str(sender) for sender, _ in scores.graph]).sum()
        heads = carried[[name for name in carried.index if name.startswith("h")]].nlargest(self.top)
        return replace(self, heads=Backup.options()["heads"].value(",".join(heads.index), self.name)), held_out

    def measure(self, model: Weights, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """`primary`, `candidate`, `query_id`, `removal`, `single`, `conditional`, `estimate`: see `Backups.rows`."""
        return backups(model, contrasts, self.heads, by=self.by).rows

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One line per primary and head, the largest growth first: see `Backups.frame`."""
        return Backups.of(run.rows).frame.sort_values("growth", ascending=False, ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The growth of every head's effect once a primary is gone."""
        lines = run.summary.assign(site=run.summary["candidate"])
        measures = [BACKUP(primary, run.diagnostic, by=self.by) for primary in lines["primary"]]
        return stated(lines, measures, family=f"{len(lines)} heads and primaries")

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The heads whose effect grows most."""
        names = ["primary", "candidate", "removal", "single", "conditional", "estimate", "low", "high", "p_corrected"]
        return summary[[*names, "growth", "queries"]].head(SHOWN)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Each head's effect alone against its effect once the primary is gone."""
        shown = summary.assign(test=np.where(summary["p_corrected"] < LEVEL, "differ", "may be the same"))
        shown["named"] = shown["growth"].rank(ascending=False) <= 2
        shown = shown.rename(columns={"single": "effect alone", "conditional": "effect once the primary is gone"})
        return scatter(
            shown,
            "effect alone",
            "effect once the primary is gone",
            "test",
            title="Heads once a primary head is gone (logits)",
            subtitle="a backup: nothing alone, something once the primary is gone",
            label="candidate",
            named="named",
            column="primary",
        )
