"""Do the methods name the same heads? Every two measures of the registry about heads, on one model and collection."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pandas as pd

from mechir.errors import MechirError, closest
from mechir.experiment import Experiment, Finished, Inputs
from mechir.inference import LEVEL, holm
from mechir.measures import LINK_TO
from mechir.methods.agreement import first, rank_agreement, top_agreement
from mechir.methods.statistics import RESAMPLES
from mechir.options import frame, option
from mechir.pair import Pair
from mechir.registry.names import Named
from mechir.registry.queries import matching
from mechir.reranker import Reranker
from mechir.sites import is_head
from mechir.views import charts

LEAST = 6
"""Two measures, or collections, with fewer heads in common are not compared."""
FIRST = "run some first, such as vast2025/attention_contrast and chen2024/head_maps"


@dataclass(frozen=True)
class Overlap(Experiment):
    """Do the methods name the same heads? Every two measures of the registry about heads, on one model and collection.

    Of each two: Spearman's rho of |value| over the heads that both have, and Jaccard's index of the heads that each
    puts first, against chance (values paired at random; hypergeometric), corrected by Holm over all pairs of measures.
    It reads the findings of the registry and runs nothing itself; the newest run of a measure counts.

    The heads of a model are all there are: the 95 % intervals, heads resampled, say how much a number hangs on single
    heads, not how sure the values are. They mislead where few heads matter: without those the rest is noise in both.
    Two measures that both grow with depth, or that were taken on the same queries, agree beyond chance without
    measuring the same; and |value| of a measure that is no strength, such as k1, has no order that means anything.
    """

    examples = ("", "--top 5")
    forwards = 0.0

    measures: tuple[str, ...] = option(
        (), "measures that are compared, as findings write them, with semicolons; by default all", separator=";"
    )
    top: int = option(10, "heads that each measure puts first", least=1)
    draws: int = option(RESAMPLES, "pairings at random, and resamples", least=1)
    seed: int = option(0, "seed of what is drawn at random", least=0)
    heads: pd.DataFrame = frame("measure", "site", "value")

    def prepare(self, inputs: Inputs) -> tuple[Experiment, list[Pair]]:
        """One pair, so that the run has a query; the findings about heads: `measure`, `site`, `value`."""
        collection = inputs.source
        on = {"collection": Named(collection.id, collection.full_name, collection.hash)}
        try:
            findings = matching(inputs.registry, on, model=inputs.model.fingerprint, newest=True)
        except MechirError as error:
            raise MechirError(f"{error} There is nothing to compare: {FIRST}.") from error
        findings = findings[~LINK_TO.among(findings["measure"])]  # conclusions repeat what they stand on
        findings = findings[is_head(findings["site"])].sort_values(["measure", "site", "written"])
        heads = findings.drop_duplicates(["measure", "site"], keep="last")[["measure", "site", "value"]]
        asked = self._asked(heads)
        heads = heads[heads["measure"].isin(asked)].reset_index(drop=True)
        if not _comparable(heads):
            named = ", ".join(f"'{name}'" for name in asked) or "none"
            raise MechirError(
                f"Two measures of the same {LEAST} heads or more are needed, and of {collection.id} this registry has "
                f"{named}: {FIRST}."
            )
        return replace(self, heads=heads), inputs.material[:1]

    def _asked(self, heads: pd.DataFrame) -> list[str]:
        """The measures that are compared; refuses one that orders no heads."""
        sizes = heads.assign(size=heads["value"].abs()).groupby("measure")["size"].agg(["count", "nunique"])
        known = sizes.index[(sizes["count"] >= LEAST) & (sizes["nunique"] > 1)].tolist()
        if wrong := [name for name in self.measures if name not in known]:
            known = known or ["none"]
            raise MechirError(f"No measure '{wrong[0]}' orders heads here: the closest are {closest(wrong[0], known)}.")
        return list(self.measures) or known

    def measure(self, model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
        """The ids of the pair; everything is in the findings."""
        return pd.DataFrame(list(pairs))[["query_id", "doc_id", "grade"]]

    def summarise(self, run: Finished) -> pd.DataFrame:
        """One row for every two measures with `LEAST` heads in common.

        `one`, `two`; `n`, heads that both have; `rho` with `low`, `high`, `p`, `p_corrected` (Holm over all rows);
        `top`, heads that each puts first (at most half of them), `shared`, their names, `jaccard` with `jaccard_low`,
        `jaccard_high`, `jaccard_expected` by chance, `p_jaccard`, `p_jaccard_corrected`.
        """
        lines = []
        for name, other, both in _comparable(self.heads):
            sides, k = (both[name].to_numpy(), both[other].to_numpy()), min(self.top, len(both) // 2)
            rank = rank_agreement(*sides, draws=self.draws, seed=self.seed)
            share = top_agreement(*sides, k, draws=self.draws, seed=self.seed)
            firsts = (set(places.tolist()) for places in first(*sides, k, seed=self.seed))
            shared = both.index[sorted(set.intersection(*firsts))]
            line = {"one": name, "two": other, "n": len(both)}
            line |= {"rho": rank.value, "low": rank.low, "high": rank.high, "p": rank.p}
            line |= {"top": k, "shared": ", ".join(shared), "jaccard": share.value, "jaccard_low": share.low}
            line |= {"jaccard_high": share.high, "jaccard_expected": share.expected, "p_jaccard": share.p}
            lines.append(line)
        table = pd.DataFrame(lines)
        corrected = {f"{name}_corrected": holm(table[name].to_numpy()) for name in ("p", "p_jaccard")}
        return table.assign(**corrected)

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The pairs from the most alike on, without the names of the heads."""
        names = ["one", "two", "n", "rho", "low", "high", "p_corrected", "jaccard", "jaccard_low", "jaccard_high"]
        names += ["jaccard_expected", "p_jaccard_corrected"]
        return summary.sort_values("rho", ascending=False, kind="stable")[names]

    def chart(self, summary: pd.DataFrame) -> Any:
        """Spearman's rho of every two measures, with a star where p < .05 over all pairs; the numbers name the rows."""
        names = sorted({*summary["one"], *summary["two"]})
        number = {name: str(place + 1) for place, name in enumerate(names)}
        numbered = {name: f"{place} {name}" for name, place in number.items()}
        turned = summary.rename(columns={"one": "two", "two": "one"})
        shown = pd.concat([summary, turned], ignore_index=True)
        cells = {"measure": shown["one"].map(numbered), "other": shown["two"].map(number)}
        return charts.heatmap(
            shown.assign(**cells, star=shown["p_corrected"] < LEVEL),
            "other",
            "measure",
            "rho",
            title="Do the methods order the heads alike? Spearman's rho of |value|",
            subtitle=f"{int(summary['n'].median())} heads in the median; *: p < .05 over all pairs of measures (Holm)",
            star="star",
            order_x=list(number.values()),
            order_y=list(numbered.values()),
        )


def _comparable(heads: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Every two measures that can be compared, and |value| by both for the heads that have them."""
    wide = heads.assign(size=heads["value"].abs()).pivot(index="site", columns="measure", values="size")
    return measured_by_both(wide)


def measured_by_both(wide: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Every two columns with `LEAST` rows or more in common, not all alike, and the rows that both have."""
    pairs = [(name, other, wide[[name, other]].dropna()) for name, other in combinations(wide.columns, 2)]
    return [(name, other, both) for name, other, both in pairs if len(both) >= LEAST and both.nunique().min() > 1]
