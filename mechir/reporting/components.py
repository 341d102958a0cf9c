"""What the report knows of components: findings in a compact form, the table of links, and examples of attention."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechir.registry.dossier import agreements
from mechir.registry.entries import latest
from mechir.registry.evidence import EVIDENCE, held
from mechir.registry.findings import checked
from mechir.registry.links import BEHIND
from mechir.registry.queries import matching, sql
from mechir.registry.runs import Run
from mechir.views.attention import pairs_of

STRONGEST = 30
"""Of single neurons, and of edges, those that the page shows of each measure: the largest |value|."""
PAIRS = 6
"""Example pairs of one head."""
EXAMPLES = 2_000_000
"""Characters of examples above which the page leaves the rest out."""
OF_MEASURE = ["measure", "unit", "role", "term", "causal", "sign"]
OF_FINDING = ["value", "low", "high", "p_all", "holds", "n_queries", "label", "least", "run_id"]


def known(registry: Path) -> pd.DataFrame:
    """The newest findings of all models and collections, `held`, sites as text; without single neurons."""
    if not latest(registry):
        none = checked(pd.DataFrame(columns=["site", "measure", "value", "unit"]), {})
        return held(none.assign(tries=1))
    return held(matching(registry, newest=True))


def neurons(registry: Path) -> pd.DataFrame:
    """The strongest neurons of each measure, by model and collection: columns of `Finding`."""
    columns = [
        "model_fingerprint",
        "collection",
        "site",
        "measure",
        "value",
        "low",
        "high",
        "unit",
        "label",
        "n_queries",
    ]
    if not latest(registry):
        return pd.DataFrame(columns=columns)
    return sql(
        f"select {', '.join(columns)} from findings where site like 'n%' "
        "qualify row_number() over (partition by model_fingerprint, collection, measure "
        f"order by abs(value) desc, site) <= {STRONGEST} order by measure, abs(value) desc",
        registry=registry,
    )


def components(found: pd.DataFrame, told: pd.DataFrame, linked: Sequence[str]) -> dict[str, Any]:
    """Findings by component, of one model and collection.

    Args:
        found: as `known` gives them.
        told: the rows of `conflicts`.
        linked: sites that have links.

    Returns:
        `measures`: rows of `OF_MEASURE` and the experiment; `sites`: by site `findings` (the number of the measure,
        then `OF_FINDING`), `conflicts`, `agreements` (sentences).
    """
    kept = _strongest(found[found["site"] != ""])
    measures = kept[[*OF_MEASURE, "experiment"]].drop_duplicates(OF_MEASURE).reset_index(drop=True)
    numbers = {tuple(row): number for number, row in enumerate(measures[OF_MEASURE].itertuples(index=False))}
    sites: dict[str, Any] = {}
    for row in kept.to_dict("records"):
        own = sites.setdefault(row["site"], {"findings": [], "conflicts": [], "agreements": []})
        own["findings"].append([numbers[tuple(row[name] for name in OF_MEASURE)], *(row[name] for name in OF_FINDING)])
    for row in told[told["site"].isin(sites)].to_dict("records"):
        sites[row["site"]]["conflicts"].append(row["conflict"])
    for site in linked:
        sites[site]["agreements"] = list(agreements(found[found["site"] == site]))
    return {"measures": measures.to_dict("records"), "sites": sites}


def _strongest(found: pd.DataFrame) -> pd.DataFrame:
    """All but the weaker edges of each measure."""
    edges = found["site"].str.contains("->", regex=False)
    size = found["value"].abs().where(edges)
    rank = size.groupby(found["measure"]).rank(ascending=False, method="first")
    return found[~edges | (rank <= STRONGEST)]


def table(links: pd.DataFrame) -> dict[str, Any]:
    """The table of links: `columns` (`name`, `measure`) that have values, `missing` ones, and `rows`.

    The values of the columns are those of `components`, by measure.
    """
    columns = [{"name": name, "measure": str(measure)} for name, measure in EVIDENCE.items()]
    there = [one for one in columns if links[one["name"]].notna().any()]
    rows = links[["site", "links", "exploratory", *BEHIND, "conductance_rank"]].to_dict("records")
    return {"columns": there, "missing": [one["name"] for one in columns if one not in there], "rows": rows}


def examples(runs: Sequence[Run]) -> dict[str, Any]:
    """Attention on example pairs: `pairs`, as `pairs_of` gives them, and `left_out`, heads for which there is no room.

    `runs`: finished runs of the experiment on examples, the newest first; of each head the newest counts.
    """
    seen: set[str] = set()
    pairs: list[Mapping[str, Any]] = []
    left_out, size = [], 0
    for run in runs:
        rows = run.rows
        for site, part in rows[~rows["site"].isin(seen)].groupby("site", sort=False):
            own = pairs_of(part.head(PAIRS))
            size += len(json.dumps(own))
            seen.add(str(site))
            if size > EXAMPLES:
                left_out.append(str(site))
            else:
                pairs += own
    return {"pairs": pairs, "left_out": left_out}
