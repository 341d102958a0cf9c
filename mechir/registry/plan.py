"""The analysis plan of a pathway: three hypotheses, the evidence that each needs, and the conclusions.

It is written down before anything is measured, so that what holds does not depend on what was tried:

* **tf**: some head is linked to term frequency. It matches (its attention contrast query<-doc) *and* the effect of term
  frequency on the score passes through what it writes at query and document.
* **idf**: some singular vector of W_E is linked to IDF. It goes with IDF (r) *and* a step along it acts as BM25 would,
  on the score or on the attention of the heads that write it.
* **scoring**: some head writes the score (the path from it to the score).

Each needs a score that counts terms at all: one more occurrence of a query term must raise it, by a tenth of the
standard deviation of scores within queries or more (the gap).

A component's p is the largest of its parts (intersection-union, Berger 1982), each corrected over the components of its
family; a part of the wrong sign, or smaller than what counts, has p 1. `p_corrected` is three times that: over the
three hypotheses Holm's factor stays 3 for components, because no hypothesis is rejected for all of its components. The
hypotheses themselves are corrected by Holm's method. Whatever else is run is exploratory and changes none of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from mechir.inference import LEVEL, holm, intersection_union
from mechir.measures import GAP
from mechir.registry.evidence import LINKS, TF, Link

FAMILY = "the plan: tf, idf, scoring"
TAKEN_OVER = ["value", "low", "high", "unit", "effect", "effect_low", "effect_high", "least", "n_queries", "n_pairs"]
"""The columns of a conclusion that are those of the component's action."""


def concluded(findings: pd.DataFrame) -> pd.DataFrame:
    """The plan's conclusions from the findings of its runs: one model and collection, sites as text, `holds` not read.

    Returns:
        Columns of `Finding`, measure "link to tf", "link to idf", "link to scoring". With an empty `site` the
        hypothesis: `value` is the number of linked components, `p` the smallest of theirs, `p_corrected` that after
        Holm, `label` why none is. With a site a component that looks or acts: `value`, its interval and `effect` are
        those of its action; `label` is "linked", or the part that fails.
    """
    gap = findings[GAP(TF).among(findings["measure"])]
    p_gap, blocked = _gap(gap)
    sizes = {"n_queries": int(gap["n_queries"].max())} if len(gap) else {}
    hypotheses: list[dict[str, Any]] = []
    components: list[dict[str, Any]] = []
    for link in LINKS:
        rows = list(_components(findings, link, p_gap, blocked))
        linked = sum(row["p_corrected"] < LEVEL for row in rows)
        hypotheses.append(
            {"site": "", "measure": str(link.conclusion), "value": float(linked), "unit": link.called}
            | {"p": min((row["p"] for row in rows), default=1.0), "label": _why(findings, link, linked, blocked)}
            | {"role": link.role, "term": link.term, **sizes}
        )
        components += [row for row in rows if min(row["p_looks"], row["p_acts"]) < LEVEL]
    adjusted = holm([row["p"] for row in hypotheses])
    rows = [row | {"p_corrected": float(p)} for row, p in zip(hypotheses, adjusted, strict=True)]
    made = pd.DataFrame(rows + components).drop(columns=["p_looks", "p_acts"], errors="ignore")
    return made.assign(causal=True, family=FAMILY)


def _gap(gap: pd.DataFrame) -> tuple[float, str]:
    """The p of the gap, and the reason why it blocks every link, or an empty text."""
    if gap.empty:
        return 1.0, "the effect of a term on the score was not measured"
    row = gap.iloc[0]
    number = f"{row['value']:+.3g} [{row['low']:.3g}, {row['high']:.3g}]"
    change = f"one more occurrence of a query term changes the score by {number} logits"
    if pd.isna(row["p"]):
        return 1.0, f"{change}, on {int(row['n_queries'])} queries: too few to test"
    if row["value"] < 0 and row["high"] < 0:
        return 1.0, f"{change}: it lowers it"
    if not (row["value"] > 0 and row["low"] > 0):
        return 1.0, f"{change}: not told from 0"
    if row["value"] < row["least"]:
        return 1.0, f"{change}: less than the {row['least']:.3g} that count beside the spread within queries"
    return float(row["p"]), ""


def _components(findings: pd.DataFrame, link: Link, p_gap: float, blocked: str) -> Iterator[dict[str, Any]]:
    """A conclusion for every component on which all sides were measured."""
    components = findings["site"].str.fullmatch(link.sites)
    looks = _parts(findings[components & link.looks[0].among(findings["measure"])]) if link.looks else None
    acting = findings[components & findings["measure"].isin([*map(str, link.acts)])]
    acts = _parts(acting)
    tried = acting["run_id"].nunique() if link.name == "idf" else 1  # each vector is a family of its own
    for site, (p_acts, row) in acts.items():
        if looks is not None and site not in looks:
            continue
        p_looks, p_acts = (1.0 if looks is None else looks[site][0]), min(1.0, p_acts * tried)
        sides = [*([] if looks is None else [("does not match", p_looks)]), ("does not act", p_acts)]
        p = intersection_union(p_gap, *(p_side for _, p_side in sides))
        corrected = min(1.0, len(LINKS) * p)
        linked = corrected < LEVEL
        failing = [why for why, p_side in sides if len(LINKS) * p_side >= LEVEL]
        label = "linked" if linked else "; ".join(failing) or blocked or "not sure enough"
        yield (
            {name: row[name] for name in TAKEN_OVER}
            | {"site": site, "measure": str(link.conclusion), "label": label, "p": p, "p_corrected": corrected}
            | {"role": link.role, "term": link.term, "p_looks": p_looks, "p_acts": p_acts}
        )


def _parts(rows: pd.DataFrame) -> dict[str, tuple[float, dict[str, Any]]]:
    """The surest finding of each component with its p, which is 1 for a wrong sign or too small a value."""
    parts: dict[str, tuple[float, dict[str, Any]]] = {}
    for row in rows.to_dict("records"):
        right = (row["sign"] == 0 or row["value"] * row["sign"] > 0) and abs(row["value"]) >= row["least"]
        p = float(row["p_corrected"]) if right and pd.notna(row["p_corrected"]) else 1.0
        if row["site"] not in parts or p < parts[row["site"]][0]:
            parts[row["site"]] = p, row
    return parts


def _why(findings: pd.DataFrame, link: Link, linked: int, blocked: str) -> str:
    """The reason why nothing is linked, or an empty text."""
    if linked:
        return ""
    if not findings["measure"].isin([*map(str, link.acts)]).any():
        return "what changing them does was not measured"
    return blocked or f"no one of the {link.called} has all that a link needs"
