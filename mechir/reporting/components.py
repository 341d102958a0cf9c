"""The report's data on components: compact findings, the table of links, and examples of attention."""

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
"""Single neurons, and edges, that the page shows for each measure: the largest |value|."""
PAIRS = 6
"""Example pairs of one head."""
EXAMPLES = 2_000_000
"""Characters of examples, beyond which the page leaves out the rest."""
OF_MEASURE = ["measure", "unit", "role", "term", "causal", "sign"]
OF_FINDING = ["value", "low", "high", "p_all", "holds", "n_queries", "label", "least", "run_id"]
OF_NEURON = ["model_fingerprint", "collection", "site", "measure", "value", "low", "high", "unit", "label", "n_queries"]


def known(registry: Path) -> pd.DataFrame:
    """The newest findings of all models and collections, `held`, sites as text; without single neurons."""
    if not latest(registry):
        empty = checked(pd.DataFrame(columns=["site", "measure", "value", "unit"]), {})
        return held(empty.assign(tries=1))
    return held(matching(registry, newest=True))


def neurons(registry: Path) -> pd.DataFrame:
    """The strongest neurons of each measure, by model and collection: columns of `Finding`."""
    if not latest(registry):
        return pd.DataFrame(columns=OF_NEURON)
    return sql(
        f"select {', '.join(OF_NEURON)} from findings where site like 'n%' "
        "qualify row_number() over (partition by model_fingerprint, collection, measure "
        f"order by abs(value) desc, site) <= {STRONGEST} order by measure, abs(value) desc",
        registry=registry,
    )


def components(findings: pd.DataFrame, conflicts: pd.DataFrame, linked: Sequence[str]) -> dict[str, Any]:
    """Findings by component, of one model and collection.

    Args:
        findings: as `known` gives them.
        conflicts: the table of conflicts.
        linked: sites that have links.

    Returns:
        `measures`: rows of `OF_MEASURE` and the experiment; `sites`: by site `findings` (the number of the measure,
        then `OF_FINDING`), `conflicts`, `agreements` (sentences).
    """
    edges = findings["site"].str.contains("->", regex=False)  # only the strongest of each measure
    rank = findings["value"].abs().where(edges).groupby(findings["measure"]).rank(ascending=False, method="first")
    rows = findings[(findings["site"] != "") & (~edges | (rank <= STRONGEST))]
    measures = rows[[*OF_MEASURE, "experiment"]].drop_duplicates(OF_MEASURE).reset_index(drop=True)
    numbers = {tuple(row): number for number, row in enumerate(measures[OF_MEASURE].itertuples(index=False))}
    sites: dict[str, Any] = {}
    for row in rows.to_dict("records"):
        entry = sites.setdefault(row["site"], {"findings": [], "conflicts": [], "agreements": []})
        number = numbers[tuple(row[name] for name in OF_MEASURE)]
        entry["findings"].append([number, *(row[name] for name in OF_FINDING)])
    for row in conflicts[conflicts["site"].isin(sites)].to_dict("records"):
        sites[row["site"]]["conflicts"].append(row["conflict"])
    for site in linked:
        sites[site]["agreements"] = list(agreements(findings[findings["site"] == site]))
    return {"measures": measures.to_dict("records"), "sites": sites}


def table(links: pd.DataFrame) -> dict[str, Any]:
    """The table of links: `columns` (`name`, `measure`) that have values, `missing` ones, and `rows`.

    The values of the columns are those of `components`, by measure.
    """
    columns = [{"name": name, "measure": str(measure)} for name, measure in EVIDENCE.items()]
    there = [column for column in columns if links[column["name"]].notna().any()]
    rows = links[["site", "links", "exploratory", *BEHIND, "conductance_rank"]].to_dict("records")
    return {"columns": there, "missing": [column["name"] for column in columns if column not in there], "rows": rows}


def examples(runs: Sequence[Run]) -> dict[str, Any]:
    """Attention on example pairs: `pairs`, as `pairs_of` gives them, and `left_out`, heads for which there is no room.

    `runs`: finished runs of the experiment on examples, the newest first; the newest of each head counts.
    """
    seen: set[str] = set()
    pairs: list[Mapping[str, Any]] = []
    left_out, size = [], 0
    for run in runs:
        rows = run.rows
        for site, part in rows[~rows["site"].isin(seen)].groupby("site", sort=False):
            drawn = pairs_of(part.head(PAIRS))
            size += len(json.dumps(drawn))
            seen.add(str(site))
            if size > EXAMPLES:
                left_out.append(str(site))
            else:
                pairs += drawn
    return {"pairs": pairs, "left_out": left_out}
