"""Where in depth the directions matter: Figure 1a of Vast et al. 2025 (arXiv:2507.14604, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from mechir.experiment import Experiment, Finished, Inputs
from mechir.interventions import Mask
from mechir.methods.checks import relevant_there
from mechir.methods.directions import condition_table, stated
from mechir.options import option
from mechir.pairs import Pair
from mechir.reranker import Weights
from mechir.segments import Direction, directions
from mechir.sweeps import sweep
from mechir.views import charts

ORIGINAL = "original"
FIGURE = (
    "cls<-cls,cls<-query,cls<-doc,query<-cls,query<-query,query<-doc,doc<-cls,doc<-query,doc<-doc,"
    "cls<-query|doc,cls<-all,query|doc<-query|doc"
)
"""The directions between CLS, query and document, and the unions that the paper and its extension plot."""
ALL = {"25": ",".join(map(str, directions()))}


@dataclass(frozen=True)
class LayerSweep(Experiment):
    """Where in depth the directions matter: Figure 1a of Vast et al. 2025 (arXiv:2507.14604, section 3).

    Each direction is cut in layers 0..l for every l, and in layers l..last. The cut is 0 after the softmax without
    renormalisation, as in the paper; `--renormalise` cuts before it.
    """

    figure: ClassVar[int | None] = 3

    cut: tuple[Direction, ...] = option(
        tuple(map(Direction.parse, FIGURE.split(","))),
        "directions that are cut, with commas, or 25 for all of them",
        aliases=ALL,
        not_empty="directions with commas, e.g. doc<-query,cls<-all",
    )
    renormalise: bool = option(False, "cut before the softmax, so that the other weights take over")

    def interventions(self, model: Weights) -> dict[str, Any]:
        """The intact model, and each direction cut from the first layer up to l, and from l to the last."""
        last = model.cfg.n_layers - 1
        masks = [
            Mask(direction, range(first, end + 1), renormalise=self.renormalise)
            for direction in self.cut
            for first, end in [*((0, end) for end in range(last + 1)), *((first, last) for first in range(1, last + 1))]
        ]
        return {ORIGINAL: ()} | {
            f"{mask.direction}@{mask.layers[0]}-{mask.layers[-1]}": mask for mask in masks if mask.layers
        }

    def check(self, inputs: Inputs) -> Experiment:
        """Refuses a pool without a relevant document."""
        relevant_there(inputs.judged)
        return self

    def measure(self, model: Weights, pairs: Sequence[Pair]) -> pd.DataFrame:
        """Scores of every pair under every cut: `name` (`doc<-query@0-3`), `query_id`, `doc_id`, `grade`, `score`."""
        return sweep(model, pairs, self.interventions(model))

    def summarise(self, run: Finished) -> pd.DataFrame:
        """nDCG@10 of every cut, with `direction`, `first` and `last` layer: see `condition_table`."""
        table = condition_table(run.rows, run.judged, original=ORIGINAL)
        parsed = table["name"].str.extract(r"^(?P<direction>.+)@(?P<first>\d+)-(?P<last>\d+)$")
        table.insert(1, "direction", parsed["direction"])
        table.insert(2, "first", parsed["first"].astype("Int64"))
        table.insert(3, "last", parsed["last"].astype("Int64"))
        return table

    def findings(self, run: Finished) -> pd.DataFrame:
        """What cutting each direction in each run of layers does to nDCG@10; Holm over all of them."""
        return stated(run.summary, self.renormalise)

    def chart(self, summary: pd.DataFrame) -> Any:
        """nDCG@10 against depth: cut from the first layer on and up to the last; lines are sources, rows readers."""
        cells = summary[summary["direction"].notna()].copy()
        cells[["reader", "source"]] = cells["direction"].str.split("<-", expand=True)
        end = cells["last"].max()
        up, down = cells[cells["first"] == 0].copy(), cells[cells["last"] == end].copy()
        up["layer"], up["layers"] = up["last"], "cut in layers 0 to the layer"
        down["layer"], down["layers"] = down["first"], "cut in the layer to the last"
        drawn = pd.concat([up, down], ignore_index=True)
        fixed = summary.set_index("name")["ndcg"]
        return charts.lines(
            drawn,
            "layer",
            "ndcg",
            "source",
            title="nDCG@10 with reader<-source cut",
            low="low",
            high="high",
            row="reader",
            column="layers",
            rule={"original": float(fixed["original"]), "random": float(fixed["random"])},
        )
