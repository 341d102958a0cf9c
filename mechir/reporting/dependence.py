"""The report's answer on whether the ranking depends on sets of heads: what queries lose without them."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from mechir.inference import LEVEL
from mechir.measures import WITHOUT_SET, parse_measure
from mechir.methods.cutting import TERM, WAYS, called
from mechir.reporting import sentences as say
from mechir.reporting.known import Known
from mechir.reporting.sentences import NAMED, Sentence


def dependence(known: Known) -> list[Sentence]:
    """The losses of held-out queries without each set of heads, beside random sets: of the ranking, and of counting."""
    chosen = [sentence for sentence, _ in without_chosen(known)]
    if known.pathway is None:
        return chosen
    cuts = without_sets(known)
    if cuts.empty:
        return [["No head matched, was linked or wrote the score, so there was none to take out."], *chosen]
    sentences = [losses(known, cuts), *chosen]
    sentences.append(["Each is set beside random sets of as many heads of the same layers; p is over all of these."])
    for name, part in cuts.groupby("set", sort=False):
        first = part.iloc[0]
        sites = say.with_commas([{"site": site} for site in str(first["site"]).split(",")[:NAMED]])
        more = f" and {int(first['heads']) - NAMED} more" if first["heads"] > NAMED else ""
        line: Sentence = [{"strong": str(name)}, " (", *sites, f"{more})"]
        for way, rows in part.groupby("way", sort=False):
            line.append(f"; by {way}, " + ", ".join(_cut(row) for _, row in rows.iterrows()))
        sentences.append([*line, "."])
    return sentences


def _cut(row: pd.Series) -> str:
    excess = say.number(row["excess"]) + say.interval({"low": row["excess_low"], "high": row["excess_high"]})
    change = f"{called(row['measure'])} {say.number(row['intact'])} to {say.number(row['value'])}"
    return f"{change} ({excess} beyond random, {say.chance(row['p_corrected'])})"


def without_sets(known: Known) -> pd.DataFrame:
    """The losses of held-out queries without sets of heads, beside random sets; empty where not measured."""
    summary = pd.DataFrame() if known.pathway is None else known.pathway.summary
    return summary[summary["kind"] == "cut"] if "kind" in summary else pd.DataFrame()


def without_chosen(known: Known) -> Iterator[tuple[Sentence, bool]]:
    """What the ranking loses without each set that a user chose, and whether that holds."""
    rows = known.findings[WITHOUT_SET.among(known.findings["measure"])]
    for (label, run), part in rows.groupby(["label", "run_id"], sort=False):
        names = str(label).split(", ")
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        line: Sentence = ["Without ", *say.with_commas([{"site": name} for name in names[:NAMED]]), more]
        changes = [_change(row) for _, row in part.iterrows()]
        size = f" ({part['n_queries'].max()} queries, run "
        yield [*line, f", {'; '.join(changes)}", size, {"run": str(run)}, ")."], bool(part["holds"].any())


def _change(row: pd.Series) -> str:
    way = dict(parse_measure(row["measure"]).parameters)["way"]
    change = f"{say.number(row['value'])}{say.interval(row)}, {say.chance(row['p_all'])}"
    return f"{row['unit']} changes by {change}, by {way}"


def losses(known: Known, cuts: pd.DataFrame) -> Sentence:
    """The sets of heads without which the ranking of held-out queries suffers, and without which a term counts less."""
    assert known.pathway is not None  # the cuts are its
    n, counts = int(cuts["queries"].max()), cuts["measure"] == TERM
    ranking, counting = _needed(cuts[~counts]), _needed(cuts[counts])
    first: Sentence = [f"That the ranking depends on any of these sets of heads cannot be told on {n} held-out queries"]
    if ranking:
        first = ["The ranking depends on the heads: ", {"strong": ", ".join(ranking)}, f" ({n} held-out queries)"]
    second: Sentence = ["That a term counts for less without any of them cannot be told either"]
    if counting:
        second = ["A term counts for less without the heads: ", {"strong": ", ".join(counting)}]
    return [*first, ". ", *second, " (run ", {"run": known.pathway.id}, ")."]


def _needed(cuts: pd.DataFrame) -> list[str]:
    """The sets without which a measure falls more than without random heads, cut by zero and by the mean."""
    worse = cuts[(cuts["excess"] < 0) & (cuts["p_corrected"] < LEVEL)]
    ways = worse.groupby(["set", "measure"], sort=False)["way"].nunique()
    return list(dict.fromkeys(str(name) for name, _ in ways.index[ways == len(WAYS)]))
