"""The report's summary in words: questions, and answers computed from the findings of a registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mechir.inference import FEWEST, LEVEL
from mechir.measures import ATTENTION_UP_IDF, K1, RISE, SCORE_UP_IDF, SEMANTIC_BM25, parse_measure
from mechir.registry.links import measured
from mechir.reporting import sentences as say
from mechir.reporting.dependence import dependence, losses, without_chosen, without_sets
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
TEXTS = {"query": "query", "doc": "document"}
"""The words for the ends of a direction of attention."""
KINDS = {
    "dead": ("looks the part and no causal measure of it holds", "look the part and no causal measure of them holds"),
    "attention alone": (
        "looks the part and acts on its own attention alone",
        "look the part and act on their own attention alone",
    ),
    "one collection": ("holds on one collection only", "hold on one collection only"),
    "signs": ("has findings of opposite signs", "have findings of opposite signs"),
}


def answers(known: Known) -> list[dict[str, Any]]:
    """Questions with their answers: `question`, `sentences`; last the commands for those that nothing answers yet."""
    answered, missing = [], []
    for question, (answer, measured_by) in QUESTIONS.items():
        if sentences := answer(known):
            answered.append({"question": question, "sentences": sentences})
        else:
            missing.append([f"{question} ", *known.to_measure(measured_by)])
    return answered + ([{"question": "What was not measured?", "sentences": missing}] if missing else [])


def lead(known: Known) -> Sentence:
    """The numbers of links, what queries lose without heads, and the links of which one half was measured."""
    sides = measured(known.findings)
    there = [term for term, side in sides.items() if all(side.values())]
    counts = ", ".join(_counted(known, term) for term in there)
    sentence: Sentence = []
    if counts:
        sentence = [f"{counts[0].upper()}{counts[1:]}." if known.planned else f"Exploratory, by no plan: {counts}."]
    cuts = without_sets(known)
    if len(cuts):
        sentence += [" ", *losses(known, cuts)]
    if chosen := next((chosen for chosen, holds in without_chosen(known) if holds), None):
        sentence += [" ", *chosen]
    half = [LINKS[term][2] + _half(side) for term, side in sides.items() if term not in there and any(side.values())]
    if half:
        sentence.append(f"{' ' if sentence else ''}Measured by half: {', '.join(half)}.")
    return sentence or ["No link was measured yet."]


def _counted(known: Known, term: str) -> str:
    """The number of components that are linked to a term; to IDF also where."""
    rows = known.linked(term)
    where = f" ({_where(known, rows['site'])})" if term == "idf" and len(rows) else ""
    return say.counted(len(rows), *LINKS[term][:2]) + where


def _where(known: Known, sites: pd.Series) -> str:
    """The words for where moving a word along directions acts: in the score, in attention."""
    acts = known.side("idf", "acts")
    words = {}
    for name, measure in (("attention", ATTENTION_UP_IDF), ("the score", SCORE_UP_IDF)):
        rows = acts[measure.among(acts["measure"])]
        if len(rows):
            words[name] = "yes" if (rows["holds"] & rows["site"].isin(sites)).any() else "not shown"
    return ", ".join(f"in {name} {word}" for name, word in words.items())


def _half(sides: Mapping[str, bool]) -> str:
    """The side of a link that was not measured, where the other was."""
    missing = [SIDES[side] for side, there in sides.items() if not there]
    return f" ({missing[0]} is not known)" if len(missing) < len(sides) else ""


def matches(known: Known) -> list[Sentence]:
    """The heads that match, in each direction of attention by itself."""
    looks = known.side("tf", "looks")
    if looks.empty:
        return []
    n, holds = looks["site"].nunique(), looks[looks["holds"]]
    if holds.empty:
        if untested := _untested(looks):
            first, none = looks.iloc[0], f"Not known of {n} heads{untested}; the largest contrast is "
        else:
            first = looks.loc[looks["p_all"].idxmin()]
            none = f"None of {n} heads, as far as can be told: no contrast holds; the surest is "
        return [[none, *say.described(first), f" by {first['measure']}."]]
    size = say.counted(int(holds["n_queries"].max()), "query", "queries")
    count: Part = {"strong": f"{holds['site'].nunique()} of {n} heads"}
    looking = f" look at the other text more in relevant documents than in weak ones (the contrast holds; {size})."
    return [[count, looking], *(_matching(direction, part) for direction, part in _by_direction(holds))]


def _untested(rows: pd.DataFrame) -> str:
    """The words for findings of which none has a test, empty where one has."""
    if rows.empty or rows["p_all"].notna().any():
        return ""
    return f" (none was tested: {rows['n_queries'].max()} queries, a test takes {FEWEST})"


def _by_direction(contrasts: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Contrasts by the direction of attention that they are of."""
    for text, part in contrasts.groupby("measure", sort=False):
        yield dict(parse_measure(str(text)).parameters)["direction"], part


def _matching(direction: str, holds: pd.DataFrame) -> Sentence:
    reader, _, source = direction.partition("<-")
    looking = f" (the {TEXTS[reader]} looks at the {TEXTS[source]}), "
    count = say.counted(holds["site"].nunique(), "head", "heads")
    return [{"strong": direction}, f"{looking}{count}: ", *say.listed(holds), "."]


def frequency(known: Known) -> list[Sentence]:
    """Whether a term raises the score, which heads carry that and match, and how their attention rises with it."""
    acts = known.side("tf", "acts")
    if acts.empty:
        return []
    term = [] if known.gap is None else [_term(known.gap)]
    linked, looks, why = list(known.linked("tf")["site"]), known.side("tf", "looks"), known.why("tf")
    if linked:
        rows = acts[acts["site"].isin(linked)].drop_duplicates("site")
        carry = " matches and also carries" if len(rows) == 1 else " match and also carry"
        carry += f" the effect of term frequency on the score ({known.kind}): "
        yes: Part = {"strong": f"Yes: {say.counted(len(rows), 'head', 'heads')}"}
        return [[yes, carry, *say.listed(rows), "."], *term, *_rise(known, linked)]
    if looks.empty and why is None:
        unknown: Sentence = ["Which heads match is not known, so none is linked. ", *known.to_measure("matching")]
        return [*term, unknown, ["The largest effect is ", *say.described(acts.iloc[0]), "."]]
    matching = acts[acts["site"].isin(looks.loc[looks["holds"], "site"])]
    best = acts if matching.empty else matching
    if looks["holds"].any():
        reason = f"of the heads that match none carries an effect that holds{_untested(best)}"
    else:
        reason = f"which heads match is not known{untested}" if (untested := _untested(looks)) else "no head matches"
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
        return [["How their attention rises with tf was not measured. ", *known.to_measure("rise")]]
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
        return []
    holds = looks[looks["holds"]]
    if holds.empty:
        first = say.described(looks.iloc[0])
        return [["No singular vector of W_E, the word embeddings, goes with IDF; first is ", *first, "."]]
    count = say.counted(len(holds), "direction goes", "directions go")
    goes: Sentence = [f"{count} with IDF: ", *say.listed(holds), "."]
    if acts.empty:
        return [goes, ["Whether moving words along them acts was not measured. ", *known.to_measure("idf-acts")]]
    if len(linked):
        where = _where(known, linked)
        yes: Part = {"strong": f"{where[0].upper()}{where[1:]}" + ("." if known.planned else " (exploratory).")}
        moving: Sentence = [yes, " Moving a word along it as if it were rarer, beside what BM25 would do: "]
        for place, (_, rows) in enumerate(acts[acts["site"].isin(linked)].groupby("unit")):
            moving += ["; " if place else "", *say.listed(rows.drop_duplicates("site"))]
        return [[*moving, "."], goes]
    why = known.why("idf")
    reason = f" {why[0].upper()}{why[1:]}." if why else ""
    effect = f"{reason} Moving words along them: the largest effect is "
    return [[{"strong": "No link holds."}, effect, *say.described(acts.iloc[0]), "."], goes]


def scoring(known: Known) -> list[Sentence]:
    """The heads that write the score."""
    paths = known.side("scoring", "acts")
    if paths.empty:
        return []
    holds = paths[paths["site"].isin(known.linked("scoring")["site"])].drop_duplicates("site")
    if holds.empty:
        why = f": {known.why('scoring')}" if known.why("scoring") else ""
        why += _untested(paths)
        return [[f"No path from a head to the score holds{why}; the largest is ", *say.described(paths.iloc[0]), "."]]
    count: Part = {"strong": f"{len(holds)} of {paths['site'].nunique()} heads"}
    return [[count, f" have a path to the score that holds ({known.kind}): ", *say.listed(holds), "."]]


def fit(known: Known) -> list[Sentence]:
    """How well a BM25 of the matching heads predicts the score."""
    whole = known.findings[SEMANTIC_BM25.among(known.findings["measure"])].head(1)
    if whole.empty:
        return []
    row = whole.iloc[0]
    model = "A linear BM25 made of the matching heads' soft term frequency and IDF correlates with the score: r = "
    size = f"{say.interval(row)} on held-out queries ({row['n_queries']} queries, "
    return [[model, {"strong": say.number(row["value"])}, size, *say.of_runs(whole), ")."]]


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
        sentences.append([count, f"{KINDS[str(kind)][len(sites) > 1]}: ", *say.with_commas(sites[:NAMED]), f"{rest}."])
    return sentences


QUESTIONS: dict[str, tuple[Callable[[Known], list[Sentence]], str]] = {
    "Which heads match?": (matches, "matching"),
    "Is it term frequency?": (frequency, "soft-tf"),
    "Is IDF involved?": (rarity, "idf"),
    "Which heads write the score?": (scoring, "scoring"),
    "How much of the score is it?": (fit, "bm25"),
    "Does the ranking depend on them?": (dependence, "plan"),
    "How sure is this?": (certainty, "plan"),
    "What disagrees?": (disagreement, "plan"),
}
"""The questions, each with its answer, empty where nothing was measured, and what an experiment would answer."""
