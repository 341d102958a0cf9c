"""Patches the paths from every earlier head into the queries, keys and values of the scoring heads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mechir.circuits import PORTS
from mechir.contrasts import Contrast
from mechir.experiment import Experiment, Finished, Inputs
from mechir.measures import PATH_TO_HEADS
from mechir.methods import effects
from mechir.methods.checks import SELECTION, heads_or_search
from mechir.methods.paths import path_patch, scoring_heads
from mechir.options import OR_FOUND, option
from mechir.pair import split_queries
from mechir.reranker import Weights
from mechir.sites import Head
from mechir.views import charts


@dataclass(frozen=True)
class HeadToHeads(Experiment):
    """Patches the paths from every earlier head into the queries, keys and values of the scoring heads.

    Scoring heads are found by the run, not named: on one query in three the heads with the largest effect along
    head -> score are taken, and the paths into them are measured on the other queries. Of each port (q, k, v) the
    inputs of all scoring heads are replaced together (Lu et al. 2025, arXiv:2502.04645; Wang et al. 2022).
    """

    tier = Weights
    examples = ("--receivers h4.5 --limit-queries 5", "--ports q --dry-run")
    runs_on = "contrasts"
    figure = 13
    shown = ("sender", "port", "share", "estimate", "p_corrected", "queries")

    receivers: tuple[Head, ...] = option((), f"scoring heads {OR_FOUND}", in_order=True)
    top: int = option(4, "scoring heads found by the run where none are named", least=1)
    ports: tuple[str, ...] = option(
        PORTS, "which of their inputs are replaced, each by itself", among=PORTS, not_empty="some of q,k,v"
    )

    def cost(self, model: Weights) -> float:
        """Full forwards per contrast: for each sender the MLPs up to the receivers and the layers after."""
        return 2 + 0.4 * len(self.ports) * (model.cfg.n_layers - 1) * model.cfg.n_heads

    def check(self, inputs: Inputs) -> Experiment:
        """Heads by layer; refuses what does not fit."""
        return replace(self, receivers=heads_or_search(inputs.model, inputs.material, self.receivers, "receivers"))

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Contrast]]:
        """The scoring heads, and the contrasts left to measure, on which they were not found."""
        if self.receivers:
            return self, inputs.material
        chosen, rest = split_queries(inputs.material, SELECTION)
        return replace(self, receivers=scoring_heads(inputs.model, chosen, self.top)), rest

    def measure(self, model: Weights, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """`port`, `sender`, ids, scores, `effect`, `departure`: see `path_patch`."""
        receivers = {port: [head._replace(part=port) for head in self.receivers] for port in self.ports}
        rows = {port: path_patch(model, contrasts, receiver=heads) for port, heads in receivers.items()}
        return pd.concat(rows, names=["port"]).reset_index("port").reset_index(drop=True)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One line per edge, with its port: see `effects.table`. `p_corrected` is over all edges together."""
        table = effects.table(run.rows, ["port", "edge", "sender"])
        return table.sort_values("estimate", key=abs, ascending=False, ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The effect of every sender by way of one port of the scoring heads, corrected over all paths."""
        into = run.summary["edge"].str.partition("->")[2].str.replace(r"\.[qkv]\b", "", regex=True)
        measures = [PATH_TO_HEADS(run.diagnostic, port) for port in run.summary["port"]]
        return effects.stated(run.summary, measures, "sender").assign(label="into " + into)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Layer x head of the senders, a panel per port."""
        edge = summary["edge"].iloc[0].partition("->")[2]
        heads = ", ".join(receiver.rpartition(".")[0] for receiver in edge.split("+"))
        return charts.head_map(summary, "sender", title=f"Effect on the score along head -> {heads}", column="port")
