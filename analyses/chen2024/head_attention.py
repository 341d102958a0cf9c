"""Shows the attention of chosen heads between roles, in base and donor (Chen et al. 2024, arXiv:2405.02503)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir.contrasts import ROLES, Contrast
from mechir.experiment import Finished
from mechir.measures import NO_OP, stated
from mechir.methods import effects
from mechir.methods.attention import role_attention
from mechir.reranker import Reranker
from mechir.views import charts

from .head_positions import HeadPositions


@dataclass(frozen=True)
class HeadAttention(HeadPositions):
    """Shows the attention of chosen heads between roles, in base and donor (Chen et al. 2024, arXiv:2405.02503).

    The mean over the reader's positions of the attention mass that goes to all positions of the source's role.
    Attention is not effect: a head may match perfectly and write nothing (see the planted model's trap);
    `HeadPositions`, which finds the heads in the same way, on one query in three, says what its pattern does.
    """

    shown = ("site", "reader", "source", "estimate", "p_corrected", "base", "donor", "queries")
    examples = ("--heads h1.1,h2.9 --limit-queries 5",)

    def cost(self, model: Reranker) -> float:
        """Full forwards per contrast, the search for the heads included."""
        return 2.2 + 0.2 * model.cfg.n_layers * model.cfg.n_heads

    def measure(self, model: Reranker, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """`site`, `reader`, `source` (roles), ids, `base`, `donor`: see `role_attention`."""
        return role_attention(model, contrasts, self.heads)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One line per head, reader and source: mean attention `base` and `donor`, `change` with its interval."""
        by = ["site", "reader", "source"]
        changes = run.rows.assign(effect=run.rows["donor"] - run.rows["base"])
        table = effects.summarise(changes, by).drop(columns="left_out")
        means = run.rows.groupby([*by, "query_id"])[["base", "donor"]].mean().groupby(by).mean().reset_index()
        return means.merge(table, on=by)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The attention of the words to CLS and separators on the base, mean over the readers."""
        special, summary = ("cls", "sep"), run.summary
        readers = summary[~summary["reader"].isin(special) & summary["source"].isin(special)]
        mass = readers.groupby(["site", "reader"], sort=False)["base"].sum().groupby("site", sort=False).mean()
        return stated(mass.rename("estimate").reset_index(), NO_OP)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Reader x source, a panel per head: the change from base to donor."""
        return charts.tested_map(
            summary.assign(change=summary["estimate"]),
            "source",
            "reader",
            "change",
            title="Attention of reader to source, donor - base",
            column="site",
            order_x=list(ROLES),
            order_y=list(ROLES),
        )
