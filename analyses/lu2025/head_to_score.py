"""Finds the heads that write the score: path patching from every head and MLP (Lu et al. 2025, arXiv:2502.04645)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from mechir.contrasts import Contrast
from mechir.experiment import Experiment, Finished, Inputs
from mechir.measures import PATH_TO_SCORE
from mechir.methods import effects
from mechir.methods.edge_graph import every_sender
from mechir.methods.paths import FREEZE, LN, of_sums, path_patch
from mechir.options import option
from mechir.reranker import Reranker
from mechir.views import charts


@dataclass(frozen=True)
class HeadToScore(Experiment):
    """Finds the heads that write the score: path patching from every head and MLP (Lu et al. 2025, arXiv:2502.04645).

    The sender sees the donor's world, all other heads keep the base's (Wang et al.). By default MLPs are recomputed on
    the way and LayerNorms are live, as the authors do; the column `departure` says how far that is from a linear path.
    """

    examples = ("--limit-queries 5", "--freeze heads+mlps --ln frozen --limit-queries 5")
    runs_on = "contrasts"
    figure = 12
    answers: ClassVar = {"scoring": ()}
    shown = ("sender", "share", "estimate", "p_corrected", "queries")

    freeze: str = option("heads", "what keeps the base's activation on the way", among=FREEZE)
    ln: str = option("live", "LayerNorms on the way: recomputed, or with the base's standard deviation", among=LN)

    def cost(self, model: Reranker) -> float:
        """Full forwards per contrast: the base, the donor, and for each sender an MLP per layer at CLS, or a run."""
        return 2.0 + len(every_sender(model)) if of_sums(model, self.ln) else 2.5

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses a model whose paths are not known."""
        of_sums(inputs.model, self.ln)
        return self

    def measure(self, model: Reranker, contrasts: Sequence[Contrast]) -> pd.DataFrame:
        """`sender`, ids, `base`, `donor`, `patched`, `effect`, `departure`: see `path_patch`."""
        return path_patch(model, contrasts, freeze=self.freeze, ln=self.ln)

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One line per sender, the largest effect first: see `effects.table`; `departure` is the contrasts' median."""
        table = effects.table(run.rows, ["sender"])
        table["departure"] = table["sender"].map(run.rows.groupby("sender")["departure"].median())
        return table.sort_values("estimate", key=abs, ascending=False, ignore_index=True)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The gap, and the effect of every sender, corrected over all of them."""
        paths = effects.stated(run.summary, PATH_TO_SCORE(run.diagnostic, self.freeze, self.ln), "sender")
        return pd.concat([effects.gap_stated(run.rows, run.diagnostic), paths], ignore_index=True)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Layer x head, in logits; MLPs are in the table."""
        return charts.head_map(summary, "sender", title="Effect on the score along the path head -> score")
