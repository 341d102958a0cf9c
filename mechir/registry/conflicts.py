"""Contradictions among the findings about one component."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from mechir.inference import LEVEL
from mechir.registry.evidence import LINKS, with_interval

FEWEST = 6
"""Queries below which a test of signs cannot reach `LEVEL`, whatever the effect: 2^(1 - 5) is .0625."""


def conflicts(findings: pd.DataFrame) -> pd.DataFrame:
    """The conflicts among findings of one registry, `held`, their sites as text.

    Returns:
        `model_fingerprint`, `collection`, `site`, `kind`, `conflict` (a sentence). Kinds: **dead**: it looks the part
        (its attention contrast, or its r with IDF, holds) and no causal measure of it holds: their intervals exclude
        what would count, on `FEWEST` queries or more ("causally dead", or "smaller than what counts (0.05)" where one
        leaves 0 out), or not ("no causal effect shown"); **attention alone**: the same of one whose own attention
        changes; **one collection**: a measure holds on one and not on another; **signs**: two findings hold with
        opposite signs, of one measure on two collections, or for one term by two causal measures.
    """
    rows = [*_dead(findings), *_one_collection(findings), *_signs(findings)] if findings["holds"].any() else []
    columns = ["model_fingerprint", "collection", "site", "kind", "conflict"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates(ignore_index=True)


def _dead(findings: pd.DataFrame) -> Iterator[tuple[str, str, str, str, str]]:
    tested, causal = findings["p_corrected"].notna(), findings["causal"].astype(bool)
    attention = (findings["role"] == "matching") & (findings["unit"] == "attention")  # its own: what it looks like
    acts = causal & tested & (findings["least"] > 0) & ~attention & ~findings["planned"]
    seen = ~causal & tested & findings["holds"] & (findings["looks"] != "")
    works = causal & findings["holds"] & ~attention
    keys = ["model_fingerprint", "collection", "site"]
    there = findings[acts | seen | works].assign(acts=acts, seen=seen, works=works)
    if not (len(there) and seen.any()):
        return
    turns = set(findings.loc[causal & findings["holds"] & attention, keys].itertuples(index=False, name=None))
    some = there.groupby(keys)[["acts", "seen", "works"]].transform("any")
    for key, part in there[some["acts"] & some["seen"] & ~some["works"]].groupby(keys):
        first = part[part["seen"]].iloc[0]
        flagged = next(link.looking for link in LINKS if link.name == first["looks"])
        verdict, row = _verdict(part[part["acts"]])
        kind, beyond = ("attention alone", " beyond its own attention") if key in turns else ("dead", "")
        yield *key, kind, f"{flagged} but {verdict}{beyond}: {_value(first)}, yet {_value(row)}"


def _verdict(causal: pd.DataFrame) -> tuple[str, pd.Series]:
    """The words for causal findings of which none holds, and the one that says it."""
    largest = causal.loc[causal["value"].abs().idxmax()]
    bounded = (causal[["low", "high"]].abs().max(axis=1) < causal["least"]) & (causal["n_queries"] >= FEWEST)
    if not bounded.all():
        return "no causal effect shown", largest
    away = causal[(causal["low"] > 0) | (causal["high"] < 0)]
    if away.empty:
        return "causally dead", largest
    row = away.loc[away["value"].abs().idxmax()]
    return f"smaller than what counts ({row['least']:g})", row


def _one_collection(findings: pd.DataFrame) -> Iterator[tuple[str, str, str, str, str]]:
    keys = ["model_fingerprint", "site", "measure"]
    tested = findings[findings["p_corrected"].notna() & (findings["site"] != "")]
    by_collection = tested.groupby([*keys, "collection"])["holds"].any().reset_index()
    verdicts = by_collection.groupby(keys)["holds"]
    mixed = by_collection[verdicts.transform("any") & ~verdicts.transform("all")]
    for (model, site, measure), part in mixed.groupby(keys):
        pairs = list(zip(part["collection"], part["holds"], strict=True))
        holds, fails = (", ".join(name for name, held in pairs if held == wanted) for wanted in (True, False))
        for name in part["collection"]:
            yield model, name, site, "one collection", f"{measure} holds on {holds} and not on {fails}"


def _signs(findings: pd.DataFrame) -> Iterator[tuple[str, str, str, str, str]]:
    tested = findings[(findings["p_all"] < LEVEL) & (findings["sign"] != 0) & ~findings["planned"]]
    sure = tested[(tested["value"].abs() >= tested["least"]) & (tested["site"] != "")]
    sure = sure.assign(speaks_for=sure["value"] * sure["sign"] > 0)
    for (model, site, measure), part in _both(sure, ["model_fingerprint", "site", "measure"]):
        values = ", ".join(f"{row.value:+.3g} on {row.collection}" for row in part.itertuples())
        for name in part["collection"].unique():
            yield model, name, site, "signs", f"{measure} has opposite signs: {values}"
    keys = ["model_fingerprint", "collection", "site", "term"]
    for (model, collection, site, term), part in _both(sure[sure["causal"] & (sure["term"] != "")], keys):
        values = ", ".join(map(_value, part[["measure", "value", "low", "high"]].itertuples()))
        yield model, collection, site, "signs", f"acts for and against {term}: {values}"


def _both(sure: pd.DataFrame, keys: list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The groups in which some findings speak for the role and some against it."""
    if len(sure):
        yield from sure[sure.groupby(keys)["speaks_for"].transform("nunique") > 1].groupby(keys)


def _value(row: Any) -> str:
    return f"{row.measure} {with_interval(row)}"
