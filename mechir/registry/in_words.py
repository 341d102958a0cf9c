"""The findings of one run as sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mechir.inference import LEVEL
from mechir.registry.entries import latest
from mechir.registry.evidence import held, with_interval
from mechir.registry.queries import matching

if TYPE_CHECKING:
    from mechir.registry.runs import Run

NAMED = 3
"""Components that a sentence names."""


def in_words(run: Run) -> list[str]:
    """One sentence for each measure of a run: how many of its findings hold, and the largest; what is tested first.

    A finding holds here where p, corrected within the run, is below .05, |value| reaches what counts, and the sign
    speaks for it; in the registry p is also times the runs that answered the same question. Empty for a run without
    findings.
    """
    registry = run.path.parent.parent
    rows = matching(registry, runs=[run.id]) if latest(registry) else pd.DataFrame()
    if rows.empty:
        return []
    rows = held(rows.assign(tries=1))
    of_all = (rows["site"] == "") & rows.duplicated("measure", keep=False)  # a plan's conclusion on all components
    parts = dict(iter(rows[~of_all | ~rows["planned"]].groupby("measure", sort=False)))
    untested = {measure: bool(part["p_corrected"].isna().all()) for measure, part in parts.items()}
    # many with a test, one with a test, one without, many without
    first = sorted(parts, key=lambda measure: (untested[measure], (len(parts[measure]) == 1) != untested[measure]))
    return [f"{measure}: {_said(parts[measure])}." for measure in first]


def _said(part: pd.DataFrame) -> str:
    return _one(part) if len(part) == 1 else _several(part)


def _one(part: pd.DataFrame) -> str:
    """The only finding of a measure, and whether it holds."""
    row = part.iloc[0]
    verdict = "" if pd.isna(row["p_corrected"]) else f", {'holds' if row['holds'] else 'does not hold'}"
    return f"{row['site']} {with_interval(row)} {row['unit']}{verdict}".strip()


def _several(part: pd.DataFrame) -> str:
    """How many findings of a measure hold, and the largest of those; without a test, or where none holds, of all."""
    holds, tested = part[part["holds"]], part["p_corrected"].notna().any()
    counted = f"{len(holds)} of {len(part)} hold (p < {LEVEL:g}, corrected)" if tested else f"{len(part)}, untested"
    shown = (holds if len(holds) else part).sort_values("value", key=abs, ascending=False, kind="stable")
    named = ", ".join(f"{row['site']} {with_interval(row)}".strip() for _, row in shown.head(NAMED).iterrows())
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return f"{counted}; {'' if len(holds) or not tested else 'the largest: '}{named}{more} ({part['unit'].iloc[0]})"
