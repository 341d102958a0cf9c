"""Which component is linked to which part of BM25: what a plan concluded, and the evidence on both sides of it.

A link needs what the component looks like and what it does. Over one model and collection:

* **tf**: a head matches (its attention contrast holds), and the term frequency's effect on the score passes through
  what it writes at query and document (a causal measure of the role soft-tf holds). What a head of the last layer
  writes there nobody reads, and what it carries to CLS is no count of matches.
* **idf**: a singular vector of W_E goes with IDF (its r holds), and moving words along it acts (a causal measure of
  the term idf holds).
* **scoring**: the path from a head to the score holds.

**Planned** links are what the first plan on that model and collection concluded (`mechir.registry.plan`):
stored with its run, and changed by nothing that is run later. Links by the same rule from whatever else was run are
**exploratory**: there a finding *holds* where its p, corrected within its own run and times the number of different
answers that runs gave to the same question, is below 0.05, |value| reaches the least that counts, and the sign speaks
for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechir.measures import Rank
from mechir.registry.conflicts import conflicts
from mechir.registry.evidence import EVIDENCE, LINKS, held
from mechir.registry.frames import SiteFrame, with_sites
from mechir.registry.queries import matching
from mechir.registry.runs import DEFAULT

TEXTS = ("model", "collection", "site", "links", "exploratory", "unit", "conflicts")
BEHIND = ["effect", "low", "high", "unit", "p_all"]


def links(*, model: str | None = None, collection: str | None = None, registry: Path | str = DEFAULT) -> SiteFrame:
    """The table of components that match, go with IDF or write the score, and what is known of each.

    Args:
        model: as in `findings`; by default all.
        collection: as in `findings`; by default all.
        registry: where the runs are.

    Returns:
        One row per model, collection and component that is linked, or holds by its looks (`LINKS`) or on its path to
        the score. `site`, an object; `links`, what the plan concluded: "tf", "idf", "scoring", several with commas, or
        empty; `exploratory`, links that only other runs speak for; of the causal measure behind the first of all these
        `effect`, `low`, `high`, `unit`, `p_all`; `conflicts`, sentences joined by "; "; then one column for each of
        `EVIDENCE`, the value of the newest run (missing where it was not measured), and `conductance_rank` among the
        heads.

    It misleads where a component without a link is read as one without the part: only what was run can hold, with the
    number of queries that it had.
    """
    found = held(matching(Path(registry), {"collection": collection}, model=model, newest=True))
    return with_sites(link_table(found), ["site", "links", "exploratory", *BEHIND, "conflicts", "model", "collection"])


def link_table(found: pd.DataFrame) -> pd.DataFrame:
    """The table of `links`, sites as text, of findings that are `held`."""
    of = ["model_fingerprint", "collection", "site"]
    rows = []
    if _shown(found).any():
        found = found[_shown(found).groupby([found[name] for name in of[::2]]).transform("any")]
        told = conflicts(found).groupby(of)["conflict"].agg("; ".join).to_dict()
        here = found[_shown(found).groupby([found[name] for name in of]).transform("any")]
        parts: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for one in here.to_dict("records"):
            parts.setdefault(tuple(one[name] for name in of), []).append(one)
        rows = [_row(part, told.get(key, "")) for key, part in parts.items()]
    columns = ["model", "collection", "site", "links", "exploratory", *BEHIND, "conflicts", *EVIDENCE, "rank"]
    table = pd.DataFrame(rows, columns=columns).astype({name: "str" if name in TEXTS else float for name in columns})
    table = table.rename(columns={"rank": "conductance_rank"})
    strength = table["effect"].abs().fillna(0) + 100 * (table["links"] != "") + 10 * (table["exploratory"] != "")
    return table.loc[strength.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def linked(part: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The links of one component that the plan concluded, each with its conclusion; `part`: its findings, `held`."""
    names = {str(link.conclusion): link.name for link in LINKS}
    return {names[row["measure"]]: row for row in part if row["planned"] and row["holds"] and row["site"]}


def exploratory(part: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The links of one component by what other runs say alone, each with the causal finding behind it."""
    planned, holding = linked(part), [row for row in part if row["holds"]]
    links = {}
    for link in LINKS:
        looks = not link.looks or any(row["looks"] == link.name for row in holding)
        acts = [row for row in holding if row["acts"] == link.name]
        if looks and acts and link.name not in planned:
            links[link.name] = max(acts, key=lambda row: abs(row["value"])) if link.term else acts[0]
    return links


def measured(found: pd.DataFrame) -> dict[str, dict[str, bool]]:
    """Of each link, which sides of its rule there are findings on: `looks`, `acts`, of the components that it is of.

    `found`: findings of one model and collection, `held`, sites as text.
    """
    sides: dict[str, dict[str, bool]] = {}
    for link in LINKS:
        own = found[found["site"].str.fullmatch(link.sites)]
        looks = {"looks": bool((own["looks"] == link.name).any())} if link.looks else {}
        sides[link.name] = looks | {"acts": bool((own["acts"] == link.name).any())}
    return sides


def _shown(found: pd.DataFrame) -> pd.Series:
    """Which findings bring a component into the table."""
    shown = (found["planned"] & (found["site"] != "")) | (found["looks"] != "")
    for link in LINKS:
        if not link.looks:
            shown |= (found["acts"] == link.name) & found["site"].str.fullmatch(link.sites)
    return shown & found["holds"]


def _row(part: Sequence[Mapping[str, Any]], told: str) -> dict[str, Any]:
    links, others, newest = linked(part), exploratory(part), {row["measure"]: row for row in part}
    row = {name: part[0][name] for name in ("model", "collection", "site")}
    row |= {"links": ",".join(links), "exploratory": ",".join(others), "conflicts": told, "unit": ""}
    first = next(iter([*links.values(), *others.values()]), None)
    if first is not None:
        row |= {"effect": first["value"]} | {name: first[name] for name in BEHIND[1:]}
    row |= {name: newest[text]["value"] for name, measure in EVIDENCE.items() if (text := str(measure)) in newest}
    rank = Rank.parse(newest.get(str(EVIDENCE["conductance"]), {}).get("label", ""))
    return row | ({"rank": rank.place} if rank else {})
