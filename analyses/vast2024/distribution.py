"""Places the top units by layer, component and part of the text (Vast et al. 2024, Figure 4)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechir.experiment import Finished
from mechir.methods.conductance import KIND, parts
from mechir.methods.importance import Table, tables
from mechir.methods.schemes import top
from mechir.methods.statistics import percentiles
from mechir.views import charts

from .importance import Importance

TOP = {"neuron": 0.01, "head": 0.1}
DRAWS = 1000


@dataclass(frozen=True)
class Distribution(Importance):
    """Places the top units by layer, component and part of the text (Vast et al. 2024, Figure 4).

    Beside them stands where the change of the score flows at every depth: the residual stream by segment, a complete
    cut (compare Zhan et al. 2020, SIGIR, Figure 2).
    """

    examples = ("--limit-queries 10", "--tol 0.05 --limit-queries 10")
    rows_of = Importance
    figure = None

    def summarise(self, run: Finished) -> pd.DataFrame:
        """Conductance by layer and part: of the top 1 % of neurons and 10 % of heads (one at least), and of the stream.

        One row per collection, label, `kind` ("neuron", "head", "resid"), `layer` and `part` (a segment; of heads by
        their weights a direction). `estimate`, the conductance of these units in that part together (units of F, mean
        over pairs) with `low` and `high` (95 %, whole queries resampled, the units kept), and `share`, of the sum over
        the kind (for the stream of the layer's sum, F(text) - F(baseline)). `of`: how many top units the layer has;
        `units`: how many of them have their largest conductance in the part; `pairs` and `queries`.
        """
        frames, rows = [], run.rows[run.rows["kind"] == "unit"]
        for (collection, label), here in rows.groupby(["collection", "label"], sort=False):
            (table,) = tables(here)
            drawn = table.drawn(DRAWS) * table.counts
            size = {"pairs": int(table.counts.sum()), "queries": len(table.counts)}
            for kind, units in here.groupby(here["unit"].map(KIND), sort=False):
                lines = pd.DataFrame(_lines(units, str(kind), table, drawn))
                lines = lines.assign(collection=collection, label=label, kind=kind)
                sums = lines.groupby("layer" if kind == "resid" else "kind")["estimate"].transform("sum")
                frames.append(lines.assign(share=lines["estimate"] / sums, **size))
        return pd.concat(frames).set_index(["collection", "label", "kind", "layer", "part"]).reset_index()

    @classmethod
    def table(cls, summary: pd.DataFrame) -> pd.DataFrame:
        """The five largest of each kind for every collection and label."""
        sizes = summary.assign(size=summary["estimate"].abs()).groupby(["collection", "label", "kind"])["size"]
        return summary[sizes.rank(ascending=False, method="first") <= 5]

    def findings(self, run: Finished) -> None:
        """None: the findings are those of `Importance`."""

    def chart(self, summary: pd.DataFrame) -> Any:
        """Top neurons by layer and segment, and the stream's change by layer and segment."""
        summary = summary.assign(panel=summary["collection"] + ", " + summary["label"])
        neurons = summary[summary["kind"] == "neuron"].rename(columns={"estimate": "conductance"})
        resid = summary[summary["kind"] == "resid"].rename(columns={"share": "share of the change"})
        cells = charts.effect_map(
            neurons,
            "part",
            "layer",
            "conductance",
            title="Conductance of the top 1 % of neurons",
            subtitle="by layer and segment; mean over pairs, 95 % interval over queries",
            low="low",
            high="high",
            column="panel",
            order_x=neurons["part"].unique().tolist(),
            order_y=sorted(neurons["layer"].unique().tolist()),
        )
        how: dict[str, Any] = {"title": "Through which segment the change of the score flows", "column": "panel"}
        how |= {"subtitle": "the stream that each layer reads; the last is what the head of the model reads"}
        return charts.stacked(cells, charts.lines(resid, "layer", "share of the change", "part", **how))


def _lines(rows: pd.DataFrame, kind: str, table: Table, drawn: np.ndarray) -> Iterator[dict[str, Any]]:
    """The conductance of the top units of every layer, part by part."""
    means = pd.Series(table.mean(), table.sites)
    alike = means[means.index.str[0] == kind[0]]
    best = set(top(alike, max(TOP[kind], 1 / len(alike)))) if kind in TOP else set()
    weights = table.counts / table.counts.sum()
    for (layer, unit), here in rows.groupby(["layer", "unit"], sort=False):
        named = parts(str(unit), rows)
        values = np.stack(here["conductance"].to_list()).astype(float).reshape(len(here), -1, len(named))
        chosen = [k for k in range(values.shape[1]) if kind == "resid" or f"{kind[0]}{int(layer)}.{k}" in best]
        of_parts = values[:, chosen].sum(1)
        spread = drawn @ of_parts / drawn.sum(1, keepdims=True)
        largest = np.tensordot(weights, values[:, chosen], 1).argmax(1)
        for k, part in enumerate(named):
            low, high = percentiles(spread[:, k]) if len(here) > 1 else (np.nan, np.nan)
            line = {"layer": int(layer), "part": part, "units": int((largest == k).sum()), "of": len(chosen)}
            yield line | {"estimate": float(weights @ of_parts[:, k]), "low": low, "high": high}
