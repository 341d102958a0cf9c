"""Where in depth the directions matter: Figure 1a of Vast et al. 2025 (arXiv:2507.14604, section 3).

Each direction is cut in layers 0..l for every l, and in layers l..last. The cut is 0 after the softmax without
renormalisation, as in the paper; `--renormalise` cuts before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechir.collection import Collection
from mechir.interventions import Mask
from mechir.material import Pool
from mechir.methods.checks import direction_list, relevant_there
from mechir.methods.directions import condition_table, stated
from mechir.pairs import Pair
from mechir.segments import Direction, directions
from mechir.sweep import sweep
from mechir.views import charts

ORIGINAL = "original"
FIGURE = (
    "cls<-cls,cls<-query,cls<-doc,query<-cls,query<-query,query<-doc,doc<-cls,doc<-query,doc<-doc,"
    "cls<-query|doc,cls<-all,query|doc<-query|doc"
)
"""The directions between CLS, query and document, and the unions that the paper and its extension plot."""
ALL = "25"


def interventions(model: Any, *, cut: str = FIGURE, renormalise: bool = False) -> dict[str, Any]:
    """The intact model, and each direction cut from the first layer up to l, and from l to the last."""
    last = model.cfg.n_layers - 1
    chosen = directions() if cut == ALL else [Direction.parse(text) for text in cut.split(",")]
    masks = [
        Mask(direction, range(first, end + 1), renormalise=renormalise)
        for direction in chosen
        for first, end in [*((0, end) for end in range(last + 1)), *((first, last) for first in range(1, last + 1))]
    ]
    return {ORIGINAL: ()} | {
        f"{mask.direction}@{mask.layers[0]}-{mask.layers[-1]}": mask for mask in masks if mask.layers
    }


def check(
    model: Any, pairs: Sequence[Pair], collection: Collection, pool: Pool, *, cut: str, renormalise: bool
) -> dict[str, Any]:
    """Directions as the papers' tables are read; refuses what is none, and a pool without a relevant document."""
    relevant_there(collection.judged(pairs, full=pool.full))
    if cut.strip() == ALL:
        return {"cut": ALL}
    cuts = direction_list(cut, "cut")
    return {"cut": ALL if cuts == directions() else ",".join(map(str, cuts))}


def measure(model: Any, pairs: Sequence[Pair], *, cut: str = FIGURE, renormalise: bool = False) -> pd.DataFrame:
    """Scores of every pair under every cut: `name` (`doc<-query@0-3`), `query_id`, `doc_id`, `grade`, `score`.

    `cut` lists directions with commas, or is "25" for all of them.
    """
    return sweep(model, pairs, interventions(model, cut=cut, renormalise=renormalise))


def summarise(rows: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """nDCG@10 of every cut, with `direction`, `first` and `last` layer: see `condition_table`."""
    table = condition_table(rows, judged, original=ORIGINAL)
    parsed = table["name"].str.extract(r"^(?P<direction>.+)@(?P<first>\d+)-(?P<last>\d+)$")
    table.insert(1, "direction", parsed["direction"])
    table.insert(2, "first", parsed["first"].astype("Int64"))
    table.insert(3, "last", parsed["last"].astype("Int64"))
    return table


def findings(summary: pd.DataFrame, *, renormalise: bool = False) -> pd.DataFrame:
    """What cutting each direction in each run of layers does to nDCG@10; Holm over all of them."""
    return stated(summary, renormalise)


def chart(summary: pd.DataFrame) -> Any:
    """nDCG@10 against depth: cut from the first layer on and up to the last, a line per source, a row per reader."""
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
