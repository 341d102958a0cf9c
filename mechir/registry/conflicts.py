"""Where findings about one component speak against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from mechir.inference import LEVEL
from mechir.registry.evidence import LINKS

FEWEST = 6
"""Queries below which a test of signs cannot reach `LEVEL`, whatever the effect: 2^(1 - 5) is .0625."""
COLUMNS = ["model_fingerprint", "collection", "site", "kind", "conflict"]


def conflicts(found: pd.DataFrame) -> pd.DataFrame:
    """The conflicts among findings.

    Args:
        found: findings of one registry, `held`, their sites as text.

    Returns:
        `model_fingerprint`, `collection`, `site`, `kind`, `conflict` (a sentence). Kinds: **dead**: it looks the part
        (its attention contrast, or its r with IDF, holds) and no causal measure of it holds, of which the sentence says
        whether they exclude what would count ("causally dead", on `FEWEST` queries or more) or are too wide or too few
        to tell ("no causal effect shown"); **one collection**: a measure holds on one and not on another; **signs**:
        two findings hold with opposite signs, of one measure on two collections, or for one term by two causal
        measures.
    """
    rows = [*_dead(found), *_one_collection(found), *_signs(found)] if found["holds"].any() else []
    return pd.DataFrame(rows, columns=COLUMNS).drop_duplicates(ignore_index=True)


def _dead(found: pd.DataFrame) -> Iterator[tuple[str, str, str, str, str]]:
    tested = found["p_corrected"].notna()
    own = (found["role"] == "matching") & (found["unit"] == "attention")  # its own attention: what it looks like
    acts = found["causal"] & tested & (found["least"] > 0) & ~own & ~found["planned"]
    seen = ~found["causal"] & tested & found["holds"] & (found["looks"] != "")
    of = ["model_fingerprint", "collection", "site"]
    there = found[acts | seen].assign(acts=acts, seen=seen, works=acts & found["holds"])
    if not (len(there) and seen.any()):
        return
    some = there.groupby(of)[["acts", "seen", "works"]].transform("any")
    for (model, collection, site), part in there[some["acts"] & some["seen"] & ~some["works"]].groupby(of):
        causal, first = part[part["acts"]], part[part["seen"]].iloc[0]
        bound = (causal[["low", "high"]].abs().max(axis=1) < causal["least"]) & (causal["n_queries"] >= FEWEST)
        shown = f"{_told(first)}, yet {_told(causal.loc[causal['value'].abs().idxmax()])}"
        flagged = next(link.looking for link in LINKS if link.name == first["looks"])
        verdict = "causally dead" if bound.all() else "no causal effect shown"
        yield model, collection, site, "dead", f"{flagged} but {verdict}: {shown}"


def _one_collection(found: pd.DataFrame) -> Iterator[tuple[str, str, str, str, str]]:
    of = ["model_fingerprint", "site", "measure"]
    tested = found[found["p_corrected"].notna() & (found["site"] != "")]
    by_collection = tested.groupby([*of, "collection"])["holds"].any().rename("holds").reset_index()
    verdicts = by_collection.groupby(of)["holds"]
    for key, part in by_collection[verdicts.transform("any") & ~verdicts.transform("all")].groupby(of):
        model, site, measure = key
        names = list(zip(part["collection"], part["holds"], strict=True))
        holds, fails = ([name for name, held in names if held is wanted] for wanted in (True, False))
        for name, _ in names:
            sentence = f"{measure} holds on {', '.join(holds)} and not on {', '.join(fails)}"
            yield model, name, site, "one collection", sentence


def _signs(found: pd.DataFrame) -> Iterator[tuple[str, str, str, str, str]]:
    sure = found[(found["p_all"] < LEVEL) & (found["value"].abs() >= found["least"]) & (found["sign"] != 0)]
    sure = sure[~sure["planned"] & (sure["site"] != "")]
    sure = sure.assign(speaks_for=sure["value"] * sure["sign"] > 0)
    of = ["model_fingerprint", "site", "measure"]
    for (model, site, measure), part in _both(sure, of):
        told = ", ".join(f"{row.value:+.3g} on {row.collection}" for row in part.itertuples())
        for name in part["collection"].unique():
            yield model, name, site, "signs", f"{measure} has opposite signs: {told}"
    of = ["model_fingerprint", "collection", "site", "term"]
    for (model, collection, site, term), part in _both(sure[sure["causal"] & (sure["term"] != "")], of):
        told = ", ".join(_told(row) for _, row in part.iterrows())
        yield model, collection, site, "signs", f"acts for and against {term}: {told}"


def _both(sure: pd.DataFrame, of: list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The groups in which some findings speak for the role and some against it."""
    if len(sure):
        yield from sure[sure.groupby(of)["speaks_for"].transform("nunique") > 1].groupby(of)


def _told(row: pd.Series) -> str:
    interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if pd.notna(row["low"]) else ""
    return f"{row['measure']} {row['value']:.3g}{interval}"
