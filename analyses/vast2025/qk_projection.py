"""Does a head's alignment do anything? Its most aligned directions are taken out of its queries at run time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import LEVEL, mean_interval, mean_row, means
from mechir.measures import ATTENTION_WITHOUT, SCORE_WITHOUT, stated
from mechir.methods.checks import heads_there
from mechir.methods.projection import ALIGNED, project_heads
from mechir.methods.spectra import qk_spectra
from mechir.options import option
from mechir.pair import Pair, first_of_each
from mechir.reranker import Weights
from mechir.sites import Head
from mechir.views.scatter import scatter

ATTENTION, SCORE = "change of its attention to the document", "|change| of the score, logits"


@dataclass(frozen=True)
class QkProjection(Experiment):
    """Does a head's alignment do anything? Its most aligned directions are taken out of its queries at run time.

    The ten heads with the most aligned W_QK, and ten others drawn at random, each lose their k most aligned directions,
    and k random ones twenty times over: a pattern or a spectrum says nothing of effect (extends Vast et al. 2025,
    section 5).
    """

    tier = Weights
    examples = ("--heads h1.1,h2.9 --limit-queries 10", "--strongest 4 --others 4 --dry-run")
    figure = 6
    shown = (
        "site",
        "score_aligned",
        "score_excess",
        "score_excess_p_corrected",
        "attention_excess",
        "chosen",
        "queries",
    )

    heads: tuple[Head, ...] = option((), "heads that are measured, in the place of the strongest and others")
    strongest: int = option(10, "heads with the most aligned W_QK", least=0)
    others: int = option(10, "heads drawn at random from the rest", least=0)
    k: int = option(4, "directions that a head loses")
    draws: int = option(20, "sets of k random directions", least=1)
    take: int = option(1, "pairs of each query and grade", least=1)
    seed: int = option(0, "of the draw of heads", least=0)
    same_queries: bool = option(
        False, "say in the findings that the heads were chosen on queries that are measured, which flatters them"
    )

    def cost(self, model: Weights) -> float:
        """Full forwards per pair: three quarters of one per head and set of directions."""
        return 1 + 0.75 * (len(self.heads) or self.strongest + self.others) * (1 + self.draws)

    def measured(self, material: Sequence[Pair]) -> list[Pair]:
        """`take` pairs of each query and grade."""
        return first_of_each(material, self.take, by_grade=True)

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses heads that the model lacks, and more directions than a head has."""
        if not 1 <= self.k <= inputs.model.cfg.d_head:
            raise MechirError(
                f"k={self.k} is out of range: a head of this model has 1-{inputs.model.cfg.d_head} directions."
            )
        heads_there(inputs.model, self.heads)
        if not (self.heads or self.strongest or self.others):
            raise MechirError("strongest=0 and others=0 leave nothing: write how many heads are taken, or name some.")
        return self

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
        """`chosen` ("aligned", "random", "named"), `z`, and the columns of `project_heads`."""
        picked = _picked(model, self.heads, self.strongest, self.others, self.seed)
        rows = project_heads(model, self.measured(pairs), picked["site"].tolist(), k=self.k, draws=self.draws)
        return picked.merge(rows, on="site")

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One row per head: `chosen`, `z`, `queries`; of `score` and `attention` the change beside that of random sets.

        `score_aligned` is the mean over queries of the mean |change| of the score (logits) without the aligned
        directions, with `score_low` and `score_high`; `score_random` the mean over the random sets, `score_random_max`
        the largest of them; `score_p` = (1 + random sets at least as large) / (1 + sets). `score_excess` = aligned less
        the mean of the random sets, averaged over queries, with its interval, and `score_excess_p_corrected` its
        two-sided p, corrected for all heads by sign flips of queries. The same for `attention`, where the mean signed
        change is given (negative: the match is lost) and `attention_p` counts falls as deep.
        """
        lines, excess = [], {}
        for (site, chosen, z), part in run.rows.groupby(["site", "chosen", "z"], sort=False, dropna=False):
            line: dict[str, Any] = {"site": site, "chosen": chosen, "z": z, "queries": part["query_id"].nunique()}
            for side, size in (("score", part["score_change"].abs()), ("attention", part["attention_change"])):
                numbers, excess[side, site] = _beside_random(part.assign(size=size), deeper=side == "attention")
                line |= {f"{side}_{name}": value for name, value in numbers.items()}
            lines.append(line)
        table = pd.DataFrame(lines)
        for side in ("score", "attention"):
            beyond = np.stack([excess[side, site] for site in table["site"]], 1)
            table[f"{side}_excess_p_corrected"] = means(beyond).p_corrected
        return table

    def findings(self, run: Finished) -> pd.DataFrame:
        """The effect of a head's aligned directions beyond that of random ones, on its attention and on the score."""
        label, summary = "heads chosen on these queries" if self.same_queries else "", run.summary
        parts = [
            stated(summary, measure, f"{side}_excess", label=label, family=f"{len(summary)} heads, {side}")
            for side, measure in (("attention", ATTENTION_WITHOUT), ("score", SCORE_WITHOUT))
        ]
        return pd.concat(parts, ignore_index=True)

    def chart(self, summary: pd.DataFrame) -> Any:
        """Fall of the matching attention against change of the score; named are heads that move it beyond chance."""
        named = (summary["score_excess"] > 0) & (summary["score_excess_p_corrected"] < LEVEL)
        shown = summary.assign(named=named).rename(columns={"attention_aligned": ATTENTION, "score_aligned": SCORE})
        title = "What a head's aligned directions do: mean changes without them"
        subtitle = "named: the score moves more than without random directions, p < .05 over all heads"
        return scatter(shown, ATTENTION, SCORE, "chosen", title=title, subtitle=subtitle, label="site", named="named")


def _picked(model: Weights, heads: Sequence[Head], strongest: int, others: int, seed: int) -> pd.DataFrame:
    """The heads that are measured: `site`, `chosen`, `z`."""
    spectra = qk_spectra(model, draws=1)[["site", "z"]]
    if heads:
        named = pd.DataFrame({"site": list(map(str, heads)), "chosen": "named"})
        return named.merge(spectra, "left", on="site")
    spectra = spectra.dropna(subset="z").sort_values("z", ascending=False, ignore_index=True)
    rest = np.arange(min(strongest, len(spectra)), len(spectra))
    drawn = np.random.default_rng(seed).choice(rest, min(others, len(rest)), replace=False)
    picked = spectra.iloc[[*range(min(strongest, len(spectra))), *sorted(drawn.tolist())]]
    return picked.assign(chosen=np.where(np.arange(len(picked)) < strongest, "aligned", "random"))


def _beside_random(part: pd.DataFrame, *, deeper: bool) -> tuple[dict[str, float], np.ndarray]:
    """The means of one head, and its excess query by query; `deeper`: of the random sets the lowest is the extreme."""
    table = part.groupby(["directions", "query_id"], sort=False)["size"].mean().unstack(0)
    aligned, drawn = table[ALIGNED].to_numpy(), table.drop(columns=ALIGNED)
    random, beyond = drawn.mean().to_numpy(), aligned - drawn.mean(axis=1).to_numpy()
    as_far = random <= aligned.mean() if deeper else random >= aligned.mean()
    low, high = mean_interval(aligned)
    numbers = {"aligned": aligned.mean(), "low": low, "high": high, "random": random.mean()}
    numbers |= {"random_max": random.min() if deeper else random.max(), "p": (1 + as_far.sum()) / (1 + len(random))}
    return numbers | mean_row(beyond, "excess"), beyond
