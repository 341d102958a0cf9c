"""Which component is linked to which part of BM25: what a plan concluded, and the evidence on both sides of it.

A link needs what the component looks like and what it does. Over one model and collection:

* **tf**: a head matches (its attention contrast holds), and the term frequency's effect on the score passes through
  what it writes at query and document (a causal measure of the role soft-tf holds). What a head of the last layer
  writes there nobody reads, and what it carries to CLS is no count of matches.
* **idf**: a singular vector of W_E goes with IDF (its r holds), and moving words along it acts (a causal measure of
  the term idf holds).
* **scoring**: the path from a head to the score holds.

**Planned** links are what the first `joint/pathway` on that model and collection concluded (`mechir.registry.plan`):
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

from mechir.registry.conflicts import LEVEL, conflicts
from mechir.registry.frames import SiteFrame, with_sites
from mechir.registry.plan import LINK
from mechir.registry.queries import matching
from mechir.registry.runs import DEFAULT

LOOKS = {"tf": ("matching", "contrast, "), "idf": ("idf", "r with IDF")}
"""What a component must look like to be linked to a term: role, and how the measure begins."""
ACTS = {"tf": "soft-tf", "idf": "idf"}
"""The role of the causal measures of a term."""
SCORES = "path to the score"
"""How the measure of scoring heads begins."""
TEXTS = ("model", "collection", "site", "links", "exploratory", "unit", "conflicts")
BEHIND = ["effect", "low", "high", "unit", "p_all"]
EVIDENCE = {
    "contrast": "contrast, query<-doc",
    "contrast_back": "contrast, doc<-query",
    "qk_alignment": "QK alignment",
    "qk_causal": "attention without aligned directions",
    "rise": "rise of attention, tf 0 to 8",
    "k1": "k1 of attention",
    "likeness": "attention and likeness of embeddings",
    "patching": "patching, tfc1, at query|doc",
    "patching_all": "patching, tfc1",
    "to_context": "path into the scoring heads, tfc1, by v",
    "to_score": "path to the score, tfc1",
    "conductance": "conductance, relevant documents",
    "weight": "weight of soft-TF",
    "idf_weight": "weight of IDF x soft-TF",
    "r_idf": "r with IDF",
    "edit_score": "score, a matched term up IDF",
    "edit_attention": "attention, a matched term up IDF",
}
"""Columns of `links`, and the measures that they hold."""


def held(found: pd.DataFrame) -> pd.DataFrame:
    """The newest findings (`matching(..., newest=True)`) with `planned`, `p_all` and `holds`.

    `planned`: a conclusion of the first plan. `p_all` = p_corrected times `tries`, the number of different answers that
    runs gave to the same question; of what is planned p_corrected.
    """
    planned = found["measure"].str.startswith(LINK)
    p_all = (found["p_corrected"] * found["tries"].where(~planned, 1)).clip(upper=1)
    speaks = (found["sign"] == 0) | (found["value"] * found["sign"] > 0)
    holds = (p_all < LEVEL) & (found["value"].abs() >= found["least"]) & speaks
    return found.assign(planned=planned, p_all=p_all, holds=holds)


def links(*, model: str | None = None, collection: str | None = None, registry: Path | str = DEFAULT) -> SiteFrame:
    """The table of components that match, go with IDF or write the score, and what is known of each.

    Args:
        model: as in `findings`; by default all.
        collection: as in `findings`; by default all.
        registry: where the runs are.

    Returns:
        One row per model, collection and component that is linked, or holds by its looks (`LOOKS`) or on its path to
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
    holding = [row for row in part if row["planned"] and row["holds"] and row["site"]]
    return {row["measure"].removeprefix(LINK): row for row in holding}


def exploratory(part: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The links of one component by what other runs say alone, each with the causal finding behind it."""
    holds = [row for row in part if row["holds"] and not row["planned"]]
    found = {}
    for term, (role, measure) in LOOKS.items():
        looks = [row for row in holds if row["role"] == role and row["measure"].startswith(measure)]
        acts = [row for row in holds if row["causal"] and row["term"] == term and row["role"] == ACTS[term]]
        if looks and acts:
            found[term] = max(acts, key=lambda row: abs(row["value"]))
    scores = [row for row in holds if row["causal"] and row["measure"].startswith(SCORES)]
    if scores:
        found["scoring"] = scores[0]
    return {term: row for term, row in found.items() if term not in linked(part)}


def measured(found: pd.DataFrame) -> dict[str, dict[str, bool]]:
    """Of each link, which sides of its rule there are findings on: `looks`, `acts`, of the components that it is of.

    `found`: findings of one model and collection, sites as text.
    """
    heads, vectors = (found["site"].str.fullmatch(text) for text in (r"h\d+\.\d+", r"embed\.u\d+"))
    told = {}
    for term, (role, measure) in LOOKS.items():
        own = heads if term == "tf" else vectors
        looks = own & (found["role"] == role) & found["measure"].str.startswith(measure)
        acts = own & found["causal"] & (found["term"] == term) & (found["role"] == ACTS[term]) & ~found["planned"]
        told[term] = {"looks": bool(looks.any()), "acts": bool(acts.any())}
    paths = heads & found["causal"] & found["measure"].str.startswith(SCORES)
    return told | {"scoring": {"acts": bool(paths.any())}}


def _shown(found: pd.DataFrame) -> pd.Series:
    """Which findings bring a component into the table."""
    shown = found["measure"].str.startswith(SCORES) & found["site"].str.startswith("h")
    shown |= found["planned"] & (found["site"] != "")
    for role, measure in LOOKS.values():
        shown |= (found["role"] == role) & found["measure"].str.startswith(measure)
    return shown & found["holds"]


def _row(part: Sequence[Mapping[str, Any]], told: str) -> dict[str, Any]:
    links, others, newest = linked(part), exploratory(part), {row["measure"]: row for row in part}
    row = {name: part[0][name] for name in ("model", "collection", "site")}
    row |= {"links": ",".join(links), "exploratory": ",".join(others), "conflicts": told, "unit": ""}
    first = next(iter([*links.values(), *others.values()]), None)
    if first is not None:
        row |= {"effect": first["value"]} | {name: first[name] for name in BEHIND[1:]}
    row |= {name: newest[measure]["value"] for name, measure in EVIDENCE.items() if measure in newest}
    rank = newest.get(EVIDENCE["conductance"], {}).get("label", "")
    return row | ({"rank": int(rank.split()[1])} if rank.startswith("rank ") else {})
