"""Cuts the directions of attention up to and from every layer (Vast et al. 2025, arXiv:2507.14604, Figure 1a)."""

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished, Inputs
from mechir.interventions import Mask
from mechir.methods.checks import measures_there, relevant_there
from mechir.methods.directions import condition_table, first_of, stated
from mechir.methods.evaluation import NDCG
from mechir.options import BY_MEASURES, option
from mechir.possible import why_impossible
from mechir.reranker import Reranker
from mechir.segments import Direction, directions
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
    """Cuts the directions of attention up to and from every layer (Vast et al. 2025, arXiv:2507.14604, Figure 1a).

    Each direction is cut in layers 0..l for every l, and in layers l..last. The cut is 0 after the softmax without
    renormalisation, as in the paper; `--renormalise` cuts before it.
    """

    examples = ("--cut 'doc<-query,cls<-all' --limit-queries 10", "--cut 25 --dry-run")
    figure = 3
    shown = ("name", "ndcg", "change", "change_p_corrected", "queries")

    cut: tuple[Direction, ...] = option(
        tuple(map(Direction.parse, FIGURE.split(","))),
        "directions that are cut, with commas, or 25 for all of them",
        aliases=ALL,
        not_empty="directions with commas, e.g. doc<-query,cls<-all",
    )
    renormalise: bool = option(False, "cut before the softmax, so that the other weights take over")
    evaluate: tuple[str, ...] = option((NDCG,), **BY_MEASURES)

    def interventions(self, model: Reranker) -> dict[str, Any]:
        """The intact model, and each direction cut in layers 0 to l and in l to the last, such as `doc<-query@0-3`."""
        last = model.cfg.n_layers - 1
        spans = [(0, end) for end in range(last + 1)] + [(first, last) for first in range(1, last + 1)]
        return {ORIGINAL: ()} | {
            f"{direction}@{first}-{end}": Mask(direction, range(first, end + 1), renormalise=self.renormalise)
            for direction in self.cut
            for first, end in spans
        }

    def check(self, inputs: Inputs) -> Experiment:
        """The measures in normal form; refuses what cannot happen, and a pool without a relevant document."""
        batch = inputs.model.batch(("a", "b"))
        for direction in self.cut:
            if reason := why_impossible(direction, batch, inputs.model):
                raise MechirError(
                    f"cut={direction} cannot happen in '{inputs.model.cfg.model_name}': {reason}; give others as cut=."
                )
        relevant_there(inputs.judged)
        return replace(self, evaluate=measures_there(inputs.judged, self.evaluate))

    def summarise(self, run: Finished) -> pd.DataFrame:
        """The measures of every cut, with `direction`, `first` and `last` layer: see `condition_table`."""
        table = condition_table(run.rows, run.judged, original=ORIGINAL, evaluate=self.evaluate)
        parsed = table["name"].str.extract(r"^(?P<direction>.+)@(?P<first>\d+)-(?P<last>\d+)$")
        parsed = parsed.astype({"first": "Int64", "last": "Int64"})
        named = [name for name in ("measure", "name") if name in table]
        return pd.concat([table[named], parsed, table.drop(columns=named)], axis=1)

    def findings(self, run: Finished) -> pd.DataFrame:
        """The effect of cutting each direction in each run of layers on the ranking; Holm over all of them."""
        return stated(run.summary, self.renormalise)

    def chart(self, summary: pd.DataFrame) -> Any:
        """The first measure: cut from the first layer on and up to the last; lines are sources, rows readers."""
        shown, value, measure = first_of(summary)
        cells = shown[shown["direction"].notna()].copy()
        cells[["reader", "source"]] = cells["direction"].str.split("<-", expand=True)
        up, down = cells[cells["first"] == 0], cells[cells["last"] == cells["last"].max()]
        up = up.assign(layer=up["last"], layers="cut in layers 0 to the layer")
        down = down.assign(layer=down["first"], layers="cut in the layer to the last")
        mean = shown.set_index("name")[value]
        return charts.lines(
            pd.concat([up, down], ignore_index=True),
            "layer",
            value,
            "source",
            title=f"{measure} with reader<-source cut",
            low="low",
            high="high",
            row="reader",
            column="layers",
            rule={name: float(mean[name]) for name in (ORIGINAL, "random")},
        )
