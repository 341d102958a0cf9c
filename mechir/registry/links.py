"""The table of components that are linked to a part of BM25: conclusions of a plan, and the evidence behind them.

A link needs both what the component looks like and what it does, as the plan says (`mechir.registry.plan`). For tf,
what a head of the last layer writes at query and document is read by nothing, and what it carries to CLS is no count
of matches.

**Planned** links are conclusions of the first plan on a model and collection: stored with its run, and changed by no
later run. Links by the same rule from all other runs are **exploratory**: there a finding *holds* where its p,
corrected within its own run and times the number of different answers that runs gave to the same question, is below
0.05, |value| reaches the least that counts, and the sign speaks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechir.measures import Rank
from mechir.registry.conflicts import conflicts
from mechir.registry.edge_roles import ROLES, EdgeGraph, Verdicts
from mechir.registry.evidence import EVIDENCE, LINKS, held
from mechir.registry.findings import address
from mechir.registry.frames import SiteFrame, with_sites
from mechir.registry.queries import matching
from mechir.registry.runs import DEFAULT
from mechir.sites import Head

TEXTS = ("model", "collection", "site", "links", "exploratory", "unit", "edges", "conflicts")
BEHIND = ["effect", "low", "high", "unit", "p_all"]
TEXT_OF = {name: str(measure) for name, measure in EVIDENCE.items()}
CONCLUSIONS = {str(link.conclusion): link.name for link in LINKS}


def links(*, model: str | None = None, collection: str | None = None, registry: Path | str = DEFAULT) -> SiteFrame:
    """The table of components that match, go with IDF or write the score, with the evidence on each.

    `model` and `collection` as in `findings`, by default all; `registry` is where the runs are.

    Returns:
        One row per model, collection and component that is linked, or holds by its looks (`LINKS`) or on its path to
        the score. `site`, an object; `links`, the plan's conclusions: "tf", "idf", "scoring", several with commas, or
        empty; `exploratory`, links that only other runs support; `effect`, `low`, `high`, `unit`, `p_all` of the causal
        measure behind the first of these links; `edges`, what edges say of its roles where they were measured, such as
        "soft-tf confirmed, scoring open" (see `mechir.registry.edge_roles`); `conflicts`, sentences joined by "; ";
        then one column for each of `EVIDENCE`, the value of the newest run (missing where it was not measured), and
        `conductance_rank` among the heads.

    It misleads where a component without a link is read as one without the part: only what was measured can hold, with
    the power of its number of queries.
    """
    rows = held(matching(Path(registry), {"collection": collection}, model=model, newest=True))
    table = link_table(rows)
    edges = ["edges"] if (table["edges"] != "").any() else []
    return with_sites(table, ["site", "links", "exploratory", *BEHIND, *edges, "conflicts", "model", "collection"])


def link_table(findings: pd.DataFrame) -> pd.DataFrame:
    """The table of `links`, sites as text, from findings that are `held`."""
    keys = ["model_fingerprint", "collection", "site"]
    rows, shown = [], _shown(findings)
    if shown.any():
        graphs = {key: EdgeGraph.of(part) for key, part in findings.groupby(keys[:2])}
        some = shown.groupby([findings[name] for name in keys[::2]]).transform("any")
        findings, shown = findings[some], shown[some]
        sentences = conflicts(findings).groupby(keys)["conflict"].agg("; ".join).to_dict()
        here = findings[shown.groupby([findings[name] for name in keys]).transform("any")]
        parts: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for row in here.to_dict("records"):
            parts.setdefault(tuple(row[name] for name in keys), []).append(row)
        rows = [_row(part, sentences.get(key, ""), graphs[key[:2]]) for key, part in parts.items()]
    columns = ["model", "collection", "site", "links", "exploratory", *BEHIND, "conflicts", *EVIDENCE, "rank", "edges"]
    table = pd.DataFrame(rows, columns=columns).astype({name: "str" if name in TEXTS else float for name in columns})
    table = table.rename(columns={"rank": "conductance_rank"})
    strength = table["effect"].abs().fillna(0) + 100 * (table["links"] != "") + 10 * (table["exploratory"] != "")
    return table.loc[strength.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def linked(part: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The planned links of one component, each with its conclusion; `part`: its findings, `held`."""
    return {CONCLUSIONS[row["measure"]]: row for row in part if row["planned"] and row["holds"] and row["site"]}


def exploratory(part: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The links of one component that only other runs support, each with the causal finding behind it."""
    planned, holding = linked(part), [row for row in part if row["holds"]]
    links = {}
    for link in LINKS:
        looks = not link.looks or any(row["looks"] == link.name for row in holding)
        acts = [row for row in holding if row["acts"] == link.name]
        if looks and acts and link.name not in planned:
            links[link.name] = max(acts, key=lambda row: abs(row["value"])) if link.term else acts[0]
    return links


def edge_verdicts(part: Sequence[Mapping[str, Any]], graph: EdgeGraph | None) -> Verdicts:
    """What edges say of the roles that findings give a head; `part`: those of one component, `held`."""
    site = address(part[0]["site"])
    if graph is None or not isinstance(site, Head):
        return {}
    context = [row for row in part if row["holds"] and row["measure"] == TEXT_OF["to_context"]]
    names = [*linked(part), *exploratory(part), *(["to_context"] if context else [])]
    return graph.verdicts(site, [ROLES[name] for name in names if name in ROLES])


def measured(findings: pd.DataFrame) -> dict[str, dict[str, bool]]:
    """The sides of each link's rule, `looks` and `acts`, and whether there are findings on them.

    `findings`: of one model and collection, `held`, sites as text.
    """
    sides: dict[str, dict[str, bool]] = {}
    for link in LINKS:
        rows = findings[findings["site"].str.fullmatch(link.sites)]
        needed = ["looks", "acts"] if link.looks else ["acts"]
        sides[link.name] = {side: bool((rows[side] == link.name).any()) for side in needed}
    return sides


def _shown(findings: pd.DataFrame) -> pd.Series:
    """The findings that bring a component into the table, as a mask."""
    shown = (findings["planned"] & (findings["site"] != "")) | (findings["looks"] != "")
    for link in LINKS:
        if not link.looks:
            shown |= (findings["acts"] == link.name) & findings["site"].str.fullmatch(link.sites)
    return shown & findings["holds"]


def _row(part: Sequence[Mapping[str, Any]], sentences: str, graph: EdgeGraph | None) -> dict[str, Any]:
    links, others, newest = linked(part), exploratory(part), {row["measure"]: row for row in part}
    row = {name: part[0][name] for name in ("model", "collection", "site")}
    row |= {"links": ",".join(links), "exploratory": ",".join(others), "conflicts": sentences, "unit": ""}
    row["edges"] = ", ".join(f"{role} {verdict}" for role, verdict in edge_verdicts(part, graph).items())
    first = next(iter([*links.values(), *others.values()]), None)
    if first is not None:
        row |= {"effect": first["value"]} | {name: first[name] for name in BEHIND[1:]}
    row |= {name: newest[text]["value"] for name, text in TEXT_OF.items() if text in newest}
    rank = Rank.parse(newest.get(TEXT_OF["conductance"], {}).get("label", ""))
    return row | ({"rank": rank.place} if rank else {})
