"""The report's summary in words: questions, and answers computed from the findings of a registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from mechir.inference import LEVEL
from mechir.measures import K1, RISE, SEMANTIC_BM25
from mechir.methods.cutting import METRICS, NDCG, TERM, WAYS
from mechir.registry.links import measured
from mechir.reporting import sentences as say
from mechir.reporting.known import Known
from mechir.reporting.sentences import NAMED, Part, Sentence

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
"""The words for a link of one component, of several, and for one that was not measured."""
SIDES = {"looks": "what they look like", "acts": "what changing them does"}
"""The sides of a link's rule."""
KINDS = {
    "dead": "look the part and no causal measure of them holds",
    "one collection": "hold on one collection only",
    "signs": "have findings of opposite signs",
}


def answers(known: Known) -> list[dict[str, Any]]:
    """Questions with their answers: `question`, `sentences`."""
    questions: dict[str, Callable[[Known], list[Sentence]]] = {
        "Which heads match?": matches,
        "Is it term frequency?": frequency,
        "Is IDF involved?": rarity,
        "Which heads write the score?": scoring,
        "How much of the score is it?": fit,
        "Does the ranking depend on them?": dependence,
        "How sure is this?": certainty,
        "What disagrees?": disagreement,
    }
    return [{"question": question, "sentences": answer(known)} for question, answer in questions.items()]


def lead(known: Known) -> Sentence:
    """The numbers of links, what held-out queries lose without heads, and the links that were not measured."""
    sides = measured(known.findings)
    there = [term for term, side in sides.items() if all(side.values())]
    counts = ", ".join(say.counted(len(known.linked(term)), *LINKS[term][:2]) for term in there)
    sentence: Sentence = []
    if counts:
        sentence = [f"{counts[0].upper()}{counts[1:]}." if known.planned else f"Exploratory, by no plan: {counts}."]
    cuts = _cuts(known)
    if len(cuts):
        sentence += [" ", *_losses(known, cuts)]
    missing = [LINKS[term][2] + _half(side) for term, side in sides.items() if term not in there]
    return sentence + ([f"{' ' if sentence else ''}Not measured yet: {', '.join(missing)}."] if missing else [])


def _half(sides: Mapping[str, bool]) -> str:
    """The side of a link that was not measured, where the other was."""
    missing = [SIDES[side] for side, there in sides.items() if not there]
    return f" ({missing[0]} is not known)" if len(missing) < len(sides) else ""


def _cuts(known: Known) -> pd.DataFrame:
    """The losses of held-out queries without sets of heads, beside random sets; empty where not measured."""
    summary = pd.DataFrame() if known.pathway is None else known.pathway.summary
    return summary[summary["kind"] == "cut"] if "kind" in summary else pd.DataFrame()


def _losses(known: Known, cuts: pd.DataFrame) -> Sentence:
    """The sets of heads without which the ranking of held-out queries suffers, and without which a term counts less."""
    assert known.pathway is not None  # the cuts are its
    n, ranking, counting = int(cuts["queries"].max()), _needed(cuts, NDCG), _needed(cuts, TERM)
    first: Sentence = [f"That the ranking depends on any of these sets of heads cannot be told on {n} held-out queries"]
    if ranking:
        first = ["The ranking depends on the heads: ", {"strong": ", ".join(ranking)}, f" ({n} held-out queries)"]
    second: Sentence = ["That a term counts for less without any of them cannot be told either"]
    if counting:
        second = ["A term counts for less without the heads: ", {"strong": ", ".join(counting)}]
    return [*first, ". ", *second, " (run ", {"run": known.pathway.id}, ")."]


def _needed(cuts: pd.DataFrame, measure: str) -> list[str]:
    """The sets without which a measure falls more than without random heads, cut by zero and by the mean."""
    worse = cuts[(cuts["measure"] == measure) & (cuts["excess"] < 0) & (cuts["p_corrected"] < LEVEL)]
    ways = worse.groupby("set", sort=False)["way"].nunique()
    return [str(name) for name in ways.index[ways == len(WAYS)]]


def matches(known: Known) -> list[Sentence]:
    """The heads that match."""
    looks = known.side("tf", "looks")
    if looks.empty:
        return [known.not_measured("matching")]
    n, holds = looks["site"].nunique(), looks[looks["holds"]]
    if holds.empty:
        best = say.described(looks.loc[looks["p_all"].idxmin()])
        return [[f"None of {n} heads, as far as can be told: no contrast holds; the surest is ", *best, "."]]
    strongest, size = holds.drop_duplicates("site"), say.counted(int(holds["n_queries"].max()), "query", "queries")
    looking = " look at the other text more in relevant documents than in weak ones"
    count: Part = {"strong": f"{len(strongest)} of {n} heads"}
    return [[count, f"{looking} (the contrast holds; {size}). The strongest: ", *say.listed(strongest), "."]]


def frequency(known: Known) -> list[Sentence]:
    """Whether a term raises the score, which heads carry that and match, and how their attention rises with it."""
    acts = known.side("tf", "acts")
    if acts.empty:
        return [known.not_measured("soft-tf")]
    term = [] if known.gap is None else [_term(known.gap)]
    linked, looks, why = list(known.linked("tf")["site"]), known.side("tf", "looks"), known.why("tf")
    if linked:
        rows = acts[acts["site"].isin(linked)].drop_duplicates("site")
        carry = " matches and also carries" if len(rows) == 1 else " match and also carry"
        carry += f" the effect of term frequency on the score ({known.kind}): "
        yes: Part = {"strong": f"Yes: {say.counted(len(rows), 'head', 'heads')}"}
        return [[yes, carry, *say.listed(rows), "."], *term, *_rise(known, linked)]
    if looks.empty and why is None:
        unknown: Sentence = ["Which heads match is not known, so none is linked. ", *known.not_measured("matching")]
        return [*term, unknown, ["The largest effect is ", *say.described(acts.iloc[0]), "."]]
    matching = acts[acts["site"].isin(looks.loc[looks["holds"], "site"])]
    best = acts if matching.empty else matching
    reason = "of the heads that match none carries an effect that holds" if looks["holds"].any() else "no head matches"
    no: Part = {"strong": "No link holds"}
    return [*term, [no, f": {why or reason}. The largest effect is ", *say.described(best.iloc[0]), "."]]


def _term(gap: pd.Series) -> Sentence:
    """The effect of one more occurrence of a query term on the score."""
    effect: Part = {"strong": f"{say.number(gap['value'])}{say.interval(gap)} logits"}
    size = (f", {say.chance(gap['p'])}" if pd.notna(gap["p"]) else "") + f" ({gap['n_queries']} queries, run "
    return ["One more occurrence of a query term changes the score by ", effect, size, {"run": gap["run_id"]}, ")."]


def _rise(known: Known, linked: Sequence[str]) -> list[Sentence]:
    rises = known.by_measure(RISE)
    rises = rises[rises["site"].isin(linked)]
    if rises.empty:
        return [["How their attention rises with tf: ", *known.not_measured("rise")]]
    change = "From no occurrence of a word to eight, their attention to it changes by "
    rise: Sentence = [change, *say.listed(rises), "."]
    saturation = known.by_measure(K1)
    saturation = saturation[saturation["site"].isin(rises.loc[rises["holds"], "site"])]
    if saturation.empty:
        return [rise if rises["holds"].any() else [*rise, " No rise holds."]]
    return [[*rise, " Where the rise holds it saturates: k1 is ", *say.listed(saturation), "."]]


def rarity(known: Known) -> list[Sentence]:
    """Whether IDF is involved."""
    looks, acts, linked = known.side("idf", "looks"), known.side("idf", "acts"), known.linked("idf")["site"]
    if looks.empty:
        return [known.not_measured("idf")]
    holds = looks[looks["holds"]]
    if holds.empty:
        first = say.described(looks.iloc[0])
        return [["No singular vector of W_E, the word embeddings, goes with IDF; first is ", *first, "."]]
    count = say.counted(len(holds), "direction goes", "directions go")
    goes: Sentence = [f"{count} with IDF: ", *say.listed(holds), "."]
    if acts.empty:
        return [goes, ["Whether moving words along them acts: ", *known.not_measured("idf-acts")]]
    if len(linked):
        rows = acts[acts["holds"] & acts["site"].isin(linked)].drop_duplicates("site")
        yes: Part = {"strong": "Yes." if known.planned else "Yes (exploratory)."}
        moving = " Moving a word along it as if it were rarer does what BM25 would: "
        return [[yes, moving, *say.listed(rows), "."], goes]
    why = known.why("idf")
    reason = f" {why[0].upper()}{why[1:]}." if why else ""
    effect = f"{reason} Moving words along them: the largest effect is "
    return [[{"strong": "No link holds."}, effect, *say.described(acts.iloc[0]), "."], goes]


def scoring(known: Known) -> list[Sentence]:
    """The heads that write the score."""
    paths = known.side("scoring", "acts")
    if paths.empty:
        return [known.not_measured("scoring")]
    holds = paths[paths["site"].isin(known.linked("scoring")["site"])].drop_duplicates("site")
    if holds.empty:
        why = f": {known.why('scoring')}" if known.why("scoring") else ""
        return [[f"No path from a head to the score holds{why}; the largest is ", *say.described(paths.iloc[0]), "."]]
    count: Part = {"strong": f"{len(holds)} of {paths['site'].nunique()} heads"}
    return [[count, f" have a path to the score that holds ({known.kind}): ", *say.listed(holds), "."]]


def fit(known: Known) -> list[Sentence]:
    """How well a BM25 of the matching heads predicts the score."""
    whole = known.findings[SEMANTIC_BM25.among(known.findings["measure"])].head(1)
    if whole.empty:
        return [known.not_measured("bm25")]
    row = whole.iloc[0]
    model = "A linear BM25 made of the matching heads' soft term frequency and IDF correlates with the score: r = "
    size = f"{say.interval(row)} on held-out queries ({row['n_queries']} queries, "
    return [[model, {"strong": say.number(row["value"])}, size, *say.of_runs(whole), ")."]]


def dependence(known: Known) -> list[Sentence]:
    """The losses of held-out queries without each set of heads, beside random sets: of the ranking, and of counting."""
    if known.pathway is None:
        return [known.not_measured("plan")]
    cuts = _cuts(known)
    if cuts.empty:
        return [["No head matched, was linked or wrote the score, so there was none to take out."]]
    sentences = [_losses(known, cuts)]
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
    change = f"{METRICS[row['measure']]} {say.number(row['intact'])} to {say.number(row['value'])}"
    return f"{change} ({excess} beyond random, {say.chance(row['p_corrected'])})"


RULE = (
    "A finding holds where p, corrected within its run and times the number of different answers to the same question, "
    f"is below {LEVEL:g}, and its value reaches what counts. A link needs that of what a component looks like and of "
    "what changing it does."
)


def certainty(known: Known) -> list[Sentence]:
    """The plan, the rule by which findings hold, the least sure link, and the number of queries."""
    findings = known.findings
    if findings["p_corrected"].isna().all():
        return [["No finding here has a test, so nothing holds and nothing is linked."]]
    sentences: list[Sentence] = [*_plan(known), [RULE]]
    linked = known.links[known.links["links"] != ""]
    if len(linked):
        worst = linked.loc[linked["p_all"].idxmax()]
        p = say.chance(worst["p_all"])
        sentences.append(["The least sure link is that of ", {"site": worst["site"]}, f": {p}."])
    sizes = findings.loc[findings["n_queries"] > 0, "n_queries"]
    if len(sizes):
        span = f"{sizes.min()} to {sizes.max()}" if sizes.min() < sizes.max() else f"{sizes.max()}"
        parity = findings["parity"].max()
        agrees = f"; scores agree with Hugging Face to {parity:.0e}" if pd.notna(parity) else ""
        sentences.append([f"Measured on {span} queries{agrees}."])
    return sentences


def _plan(known: Known) -> list[Sentence]:
    if not known.planned:
        command = {"code": known.command("plan")}
        return [["No plan was tested: every link here is exploratory. Run ", command, "."]]
    first = "Links to tf, to idf and to the score are what a plan concluded, written before anything was measured (run "
    run = {"run": known.findings.loc[known.findings["planned"], "run_id"].iloc[0]}
    sentences: list[Sentence] = [[first, run, "); whatever is run later is exploratory and changes none of them."]]
    if known.later:
        runs = say.with_commas([{"run": run_id} for run_id in known.later])
        sentences.append(["The plan was tested again after looking, which counts as exploratory: runs ", *runs, "."])
    return sentences


def disagreement(known: Known) -> list[Sentence]:
    """The conflicts, by kind."""
    if known.conflicts.empty:
        return [["No conflict among the findings."]]
    sentences: list[Sentence] = []
    for kind, part in known.conflicts.groupby("kind", sort=False):
        sites: list[Part] = [{"site": site} for site in part["site"].unique()]
        rest = f" and {len(sites) - NAMED} more" if len(sites) > NAMED else ""
        count: Part = {"strong": f"{say.counted(len(sites), 'component', 'components')} "}
        sentences.append([count, f"{KINDS[str(kind)]}: ", *say.with_commas(sites[:NAMED]), f"{rest}."])
    return sentences
