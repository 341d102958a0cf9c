"""What chosen heads look at: attention between roles in base and donor (Chen et al. 2024, arXiv:2405.02503)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mechir.contrasts import ROLES, Contrast
from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import LEVEL
from mechir.measures import NO_OP, stated
from mechir.methods import effects
from mechir.methods.attention import role_attention
from mechir.methods.checks import heads_or_search
from mechir.methods.patching import choose_heads
from mechir.options import option
from mechir.reranker import Weights
from mechir.sites import Head
from mechir.views import charts


@dataclass(frozen=True)
class HeadAttention(Experiment):
    """What chosen heads look at: attention between roles in base and donor (Chen et al. 2024, arXiv:2405.02503).

    The mean over the reader's positions of the attention mass that goes to all positions of the source's role.
    Attention is not effect: a head may match perfectly and write nothing (see the planted model's trap);
    `head_positions` says what its pattern does. The heads are found by the run on one query in three.
    """

    runs_on = "contrasts"

    heads: tuple[Head, ...] = option((), "heads with commas; found by the run where none are named", in_order=True)
    top: int = option(4, "heads found by the run where none are named", least=1)

    def cost(self, model: Weights) -> float:
        """Full forwards per contrast, the search for the heads included."""
        return 2.2 + 0.2 * model.cfg.n_layers * model.cfg.n_heads

    def check(self, inputs: Inputs) -> Experiment:
        """Heads by layer; refuses what does not fit."""
        return replace(self, heads=heads_or_search(inputs.model, inputs.material, self.heads))

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Contrast]]:
        """The heads, and the contrasts left to measure: see `choose_heads`."""
        heads, rest = choose_heads(inputs.model, inputs.material, heads=self.heads, top=self.top)
        return replace(self, heads=heads), rest

    def measure(self, model: Weights, contrasts: Sequence[Contrast]) -> pd.DataFrame:
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
        """How much of the words' attention goes to CLS and separators on the base, mean over what reads."""
        special, summary = ("cls", "sep"), run.summary
        readers = summary[~summary["reader"].isin(special) & summary["source"].isin(special)]
        mass = readers.groupby(["site", "reader"], sort=False)["base"].sum().groupby("site", sort=False).mean()
        return stated(mass.rename("estimate").reset_index(), NO_OP)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Reader x source, a panel per head: the change from base to donor."""
        return charts.effect_map(
            summary.rename(columns={"estimate": "change"}).assign(significant=summary["p_corrected"] < LEVEL),
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
