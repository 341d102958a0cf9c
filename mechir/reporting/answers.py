"""The report's summary in words: questions, and answers computed from what the registry holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from mechir.inference import LEVEL
from mechir.measures import K1, RISE, SEMANTIC_BM25
from mechir.methods.cutting import METRICS, NDCG, TERM, WAYS
from mechir.registry.links import measured
from mechir.reporting.known import Known
from mechir.reporting.sentences import (
    NAMED,
    Part,
    Sentence,
    chance,
    counted,
    interval,
    listed,
    number,
    of_runs,
    queries,
    told,
    with_commas,
)

LINKS = {
    "tf": (
        "head is linked to term frequency",
        "heads are linked to term frequency",
        "links of heads to term frequency",
    ),
    "idf": (
        "direction of the word embeddings is linked to IDF",
        "directions of the word embeddings are linked to IDF",
        "links of directions of the word embeddings to IDF",
    ),
    "scoring": ("head writes the score", "heads write the score", "heads that write the score"),
}
"""How a link is said of one component, of several, and where it was not measured."""
SIDES = {"looks": "what they look like", "acts": "what changing them does"}
"""The sides of a link's rule."""
KINDS = {
    "dead": "look the part and no causal measure of them holds",
    "one collection": "hold on one collection only",
    "signs": "have findings of opposite signs",
}


def answers(known: Known) -> list[dict[str, Any]]:
    """Questions with their answers: `question`, `sentences`."""
    asked: dict[str, Callable[[Known], list[Sentence]]] = {
        "Which heads match?": matches,
        "Is it term frequency?": frequency,
        "Is IDF involved?": rarity,
        "Which heads write the score?": scoring,
        "How much of the score is it?": fit,
        "Does the ranking depend on them?": dependence,
        "How sure is this?": certainty,
        "What disagrees?": disagreement,
    }
    return [{"question": question, "sentences": answer(known)} for question, answer in asked.items()]


def lead(known: Known) -> Sentence:
    """The links of what was measured, and what was not measured."""
    sides = measured(known.found)
    there = [term for term, side in sides.items() if all(side.values())]
    counts = ", ".join(counted(len(known.linked(term)), *LINKS[term][:2]) for term in there)
    said: Sentence = []
    if counts:
        kind = "" if known.planned else "Exploratory, by no plan: "
        said = [f"{kind}{counts[0].upper() if not kind else counts[0]}{counts[1:]}."]
    cuts = _cuts(known)
    if len(cuts) and known.pathway is not None:
        said += [" ", *_ranking(cuts), ". ", *_counting(cuts), " (run ", {"run": known.pathway.id}, ")."]
    missing = [LINKS[term][2] + _half(side) for term, side in sides.items() if term not in there]
    return said + ([f"{' ' if said else ''}Not measured yet: {', '.join(missing)}."] if missing else [])


def _half(sides: Mapping[str, bool]) -> str:
    """Of a link of which one side was measured, the other."""
    missing = [SIDES[side] for side, there in sides.items() if not there]
    return f" ({missing[0]} is not known)" if len(missing) < len(sides) else ""


def _cuts(known: Known) -> pd.DataFrame:
    """What the held-out queries lose without sets of heads, beside random sets; empty where not measured."""
    summary = pd.DataFrame() if known.pathway is None else known.pathway.summary
    return summary[summary["kind"] == "cut"] if "kind" in summary else pd.DataFrame()


def _depends(cuts: pd.DataFrame, measure: str) -> list[str]:
    """The sets without which a measure falls more than without random heads, cut by zero and by the mean."""
    worse = cuts[(cuts["measure"] == measure) & (cuts["excess"] < 0) & (cuts["p_corrected"] < LEVEL)]
    ways = worse.groupby("set", sort=False)["way"].nunique()
    return [str(name) for name in ways.index[ways == len(WAYS)]]


def _ranking(cuts: pd.DataFrame) -> Sentence:
    """Which sets the ranking of held-out queries depends on."""
    n, sets = int(cuts["queries"].max()), _depends(cuts, NDCG)
    if not sets:
        return [f"That the ranking depends on any of these sets of heads cannot be told on {n} held-out queries"]
    return ["The ranking depends on the heads: ", {"strong": ", ".join(sets)}, f" ({n} held-out queries)"]


def _counting(cuts: pd.DataFrame) -> Sentence:
    """Without which sets a term counts for less."""
    sets = _depends(cuts, TERM)
    if not sets:
        return ["That a term counts for less without any of them cannot be told either"]
    return ["A term counts for less without the heads: ", {"strong": ", ".join(sets)}]


def matches(known: Known) -> list[Sentence]:
    """Which heads match."""
    looks = known.side("tf", "looks")
    if looks.empty:
        return [known.not_measured("matching")]
    n, holds = looks["site"].nunique(), looks[looks["holds"]]
    if holds.empty:
        best = looks.loc[looks["p_all"].idxmin()]
        return [[f"None of {n} heads, as far as can be told: no contrast holds; the surest is ", *told(best), "."]]
    strongest = holds.drop_duplicates("site")
    return [
        [
            {"strong": f"{len(strongest)} of {n} heads"},
            " look at the other text more in relevant documents than in weak ones"
            f" (the contrast holds; {queries(holds)}). The strongest: ",
            *listed(strongest),
            ".",
        ]
    ]


def frequency(known: Known) -> list[Sentence]:
    """Whether a term raises the score, which heads carry that and match, and how their attention rises with it."""
    acts = known.side("tf", "acts")
    if acts.empty:
        return [known.not_measured("soft-tf")]
    said = [] if known.gap is None else [_term(known.gap)]
    linked, looks = list(known.linked("tf")["site"]), known.side("tf", "looks")
    matching = looks[looks["holds"]]["site"].unique()
    if linked:
        rows = acts[acts["site"].isin(linked)].drop_duplicates("site")
        what = " matches and also carries" if len(rows) == 1 else " match and also carry"
        how = "planned" if known.planned else "exploratory"
        yes: Sentence = [
            {"strong": f"Yes: {counted(len(rows), 'head', 'heads')}"},
            f"{what} the effect of term frequency on the score ({how}): ",
            *listed(rows),
            ".",
        ]
        return [yes, *said, *_rise(known, linked)]
    verdict = known.verdict("tf")
    if looks.empty and verdict is None:
        missing = known.not_measured("matching")
        return [
            *said,
            ["Which heads match is not known, so none is linked. ", *missing],
            ["The largest effect is ", *told(acts.iloc[0]), "."],
        ]
    why = "no head matches" if not len(matching) else "of the heads that match none carries an effect that holds"
    best = acts[acts["site"].isin(matching)] if acts["site"].isin(matching).any() else acts
    reason = why if verdict is None or not verdict["label"] else str(verdict["label"])
    return [*said, [{"strong": "No link holds"}, f": {reason}. The largest effect is ", *told(best.iloc[0]), "."]]


def _term(gap: pd.Series) -> Sentence:
    """What one more occurrence of a query term does to the score."""
    chances = f", {chance(gap['p'])}" if pd.notna(gap["p"]) else ""
    return [
        "One more occurrence of a query term changes the score by ",
        {"strong": f"{number(gap['value'])}{interval(gap)} logits"},
        f"{chances} ({gap['n_queries']} queries, run ",
        {"run": gap["run_id"]},
        ").",
    ]


def _rise(known: Known, linked: Sequence[str]) -> list[Sentence]:
    rises = known.of(RISE)
    rises = rises[rises["site"].isin(linked)]
    if rises.empty:
        return [["How their attention rises with tf: ", *known.not_measured("rise")]]
    said: Sentence = ["From no occurrence of a word to eight, their attention to it changes by ", *listed(rises), "."]
    saturation = known.of(K1)
    saturation = saturation[saturation["site"].isin(rises.loc[rises["holds"], "site"])]
    if saturation.empty:
        return [[*said, " No rise holds."]] if not rises["holds"].any() else [said]
    return [[*said, " Where the rise holds it saturates: k1 is ", *listed(saturation), "."]]


def rarity(known: Known) -> list[Sentence]:
    """Whether IDF is involved."""
    looks, acts, linked = known.side("idf", "looks"), known.side("idf", "acts"), known.linked("idf")["site"]
    if looks.empty:
        return [known.not_measured("idf")]
    holds = looks[looks["holds"]]
    if holds.empty:
        return [["No singular vector of W_E, the word embeddings, goes with IDF; first is ", *told(looks.iloc[0]), "."]]
    goes: Sentence = [f"{counted(len(holds), 'direction goes', 'directions go')} with IDF: ", *listed(holds), "."]
    if acts.empty:
        return [goes, ["Whether moving words along them acts: ", *known.not_measured("idf-acts")]]
    if len(linked):
        rows = acts[acts["holds"] & acts["site"].isin(linked)].drop_duplicates("site")
        yes: Sentence = [
            {"strong": "Yes." if known.planned else "Yes (exploratory)."},
            " Moving a word along it as if it were rarer does what BM25 would: ",
            *listed(rows),
            ".",
        ]
        return [yes, goes]
    verdict = known.verdict("idf")
    why = f" {verdict['label'][0].upper()}{verdict['label'][1:]}." if verdict is not None and verdict["label"] else ""
    no: Sentence = [{"strong": "No link holds."}, f"{why} Moving words along them: the largest effect is "]
    return [[*no, *told(acts.iloc[0]), "."], goes]


def scoring(known: Known) -> list[Sentence]:
    """Which heads write the score."""
    paths = known.side("scoring", "acts")
    if paths.empty:
        return [known.not_measured("scoring")]
    linked = known.linked("scoring")["site"]
    holds = paths[paths["site"].isin(linked)].drop_duplicates("site")
    verdict = known.verdict("scoring")
    if holds.empty:
        why = f": {verdict['label']}" if verdict is not None and verdict["label"] else ""
        return [[f"No path from a head to the score holds{why}; the largest is ", *told(paths.iloc[0]), "."]]
    count, how = f"{len(holds)} of {paths['site'].nunique()} heads", "planned" if known.planned else "exploratory"
    return [[{"strong": count}, f" have a path to the score that holds ({how}): ", *listed(holds), "."]]


def fit(known: Known) -> list[Sentence]:
    """How well a BM25 of the matching heads predicts the score."""
    whole = known.found[SEMANTIC_BM25.among(known.found["measure"])]
    if whole.empty:
        return [known.not_measured("bm25")]
    row = whole.iloc[0]
    return [
        [
            "A linear BM25 made of the matching heads' soft term frequency and IDF correlates with the score: r = ",
            {"strong": number(row["value"])},
            f"{interval(row)} on held-out queries ({row['n_queries']} queries, ",
            *of_runs(whole.head(1)),
            ").",
        ]
    ]


def dependence(known: Known) -> list[Sentence]:
    """What held-out queries lose without each set of heads, beside random sets: the ranking, and the counting."""
    if known.pathway is None:
        return [known.not_measured("plan")]
    cuts = _cuts(known)
    if cuts.empty:
        return [["No head matched, was linked or wrote the score, so there was none to take out."]]
    said: list[Sentence] = [[*_ranking(cuts), ". ", *_counting(cuts), " (run ", {"run": known.pathway.id}, ")."]]
    said.append(["Each is set beside random sets of as many heads of the same layers; p is over all of these."])
    for name, part in cuts.groupby("set", sort=False):
        first = part.iloc[0]
        sites = with_commas([{"site": site} for site in str(first["site"]).split(",")[:NAMED]])
        more = f" and {int(first['heads']) - NAMED} more" if first["heads"] > NAMED else ""
        line: Sentence = [{"strong": str(name)}, " (", *sites, f"{more})"]
        for way, rows in part.groupby("way", sort=False):
            line.append(f"; by {way}, " + ", ".join(_cut(row) for _, row in rows.iterrows()))
        said.append([*line, "."])
    return said


def _cut(row: pd.Series) -> str:
    own = interval({"low": row["excess_low"], "high": row["excess_high"]})
    return (
        f"{METRICS[row['measure']]} {number(row['intact'])} to {number(row['value'])} "
        f"({number(row['excess'])}{own} beyond random, {chance(row['p_corrected'])})"
    )


def certainty(known: Known) -> list[Sentence]:
    """By what rule findings hold, and on how much."""
    found = known.found
    tested = found[found["p_corrected"].notna()]
    if tested.empty:
        return [["No finding here has a test, so nothing holds and nothing is linked."]]
    sizes = found.loc[found["n_queries"] > 0, "n_queries"]
    linked = known.links[known.links["links"] != ""]
    said: list[Sentence] = []
    if known.planned:
        run = known.found.loc[known.found["planned"], "run_id"].iloc[0]
        what = (
            "Links to tf, to idf and to the score are what a plan concluded, written before anything was measured (run "
        )
        later: Sentence = [{"run": run}, "); whatever is run later is exploratory and changes none of them."]
        said.append([what, *later])
        if known.later:
            rest = with_commas([{"run": one} for one in known.later])
            said.append(["The plan was tested again after looking, which counts as exploratory: runs ", *rest, "."])
    else:
        said.append(["No plan was tested: every link here is exploratory. Run ", {"code": known.command("plan")}, "."])
    said.append(
        [
            f"A finding holds where p, corrected within its run and times the number of different answers to the same "
            f"question, is below {LEVEL:g}, and its value reaches what counts. A link needs that of what a component "
            "looks like and of what changing it does."
        ]
    )
    if len(linked):
        worst = linked.loc[linked["p_all"].idxmax()]
        said.append(["The least sure link is that of ", {"site": worst["site"]}, f": {chance(worst['p_all'])}."])
    if len(sizes):
        span = f"{sizes.min()} to {sizes.max()}" if sizes.min() < sizes.max() else f"{sizes.max()}"
        parity = found["parity"].max()
        agrees = f"; scores agree with Hugging Face to {parity:.0e}" if pd.notna(parity) else ""
        said.append([f"Measured on {span} queries{agrees}."])
    return said


def disagreement(known: Known) -> list[Sentence]:
    """The conflicts, by kind."""
    if known.conflicts.empty:
        return [["No conflict among the findings."]]
    said: list[Sentence] = []
    for kind, part in known.conflicts.groupby("kind", sort=False):
        sites: list[Part] = [{"site": site} for site in part["site"].unique()]
        rest = f" and {len(sites) - NAMED} more" if len(sites) > NAMED else ""
        count = f"{counted(len(sites), 'component', 'components')} "
        said.append([{"strong": count}, f"{KINDS[str(kind)]}: ", *with_commas(sites[:NAMED]), f"{rest}."])
    return said
