"""The report's summary in words: questions, and answers computed from what the registry holds."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechir.registry.conflicts import LEVEL
from mechir.registry.links import ACTS, LOOKS, SCORES, measured
from mechir.registry.runs import Run
from mechir.reporting.commands import flags
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


@dataclass(frozen=True)
class Known:
    """What is known of one model on one collection.

    `on`: the options of the command line that name both; `found`: its newest findings, `held`, sites as text; `links`:
    its rows of `links`; `conflicts`: its rows of `conflicts`; `pathway`: its newest run of `joint/pathway`, or None.
    """

    on: Mapping[str, Any]
    found: pd.DataFrame
    links: pd.DataFrame
    conflicts: pd.DataFrame
    pathway: Run | None

    def of(self, role: str, begins: str = "", *, heads: bool = True) -> pd.DataFrame:
        """The findings of a role whose measure begins so, the largest |value| first."""
        kept = self.found[(self.found["role"] == role) & self.found["measure"].str.startswith(begins)]
        kept = kept[kept["site"].str.fullmatch(r"h\d+\.\d+")] if heads else kept
        return kept.loc[kept["value"].abs().sort_values(ascending=False, kind="stable").index]

    def acting(self, term: str) -> pd.DataFrame:
        """The causal findings of a term that a link to it may rest on."""
        kept = self.of(ACTS[term], heads=term != "idf")
        return kept[kept["causal"] & (kept["term"] == term)]

    def linked(self, term: str) -> pd.DataFrame:
        """The rows of `links` of components that are linked to a term."""
        return self.links.loc[[term in names.split(",") for names in self.links["links"]]]

    def not_measured(self, experiment: str, *options: str, tf: bool = False) -> Sentence:
        """That something was not measured, and the command that does."""
        return ["Not measured: run ", {"code": self.command(experiment, *options, tf=tf)}, "."]

    def command(self, experiment: str, *options: str, tf: bool = False) -> str:
        """The command that runs an experiment on this model and collection; `tf`: on contrasts of term frequency."""
        on = {"model": self.on["model"], "diagnostic": "tfc1" if tf else None, "collection": self.on["collection"]}
        return shlex.join(["mechir", "run", experiment, *flags(on), *options])


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
    said: Sentence = [f"{counts[0].upper()}{counts[1:]}."] if counts else []
    tests = _verification(known)
    if len(tests) and "tf" in there and known.pathway is not None:
        cut = tests.iloc[0]
        change = f"nDCG@10 changes by {number(cut['change'])}{interval(cut)} on held-out queries"
        said += [f" Without the heads linked to term frequency {change} (run ", {"run": known.pathway.id}, ")."]
    missing = [LINKS[term][2] + _half(side) for term, side in sides.items() if term not in there]
    return said + ([f"{' ' if said else ''}Not measured yet: {', '.join(missing)}."] if missing else [])


def _half(sides: Mapping[str, bool]) -> str:
    """Of a link of which one side was measured, the other."""
    missing = [SIDES[side] for side, there in sides.items() if not there]
    return f" ({missing[0]} is not known)" if len(missing) < len(sides) else ""


def _verification(known: Known) -> pd.DataFrame:
    """What the ranking loses without the linked heads, and under it without random sets; empty where not measured."""
    summary = pd.DataFrame() if known.pathway is None else known.pathway.summary
    return summary[summary["kind"] == "verification"] if "kind" in summary else pd.DataFrame()


def matches(known: Known) -> list[Sentence]:
    """Which heads match."""
    looks = known.of(*LOOKS["tf"])
    if looks.empty:
        return [known.not_measured("vast2025/attention_contrast", "--easy-negatives", "10")]
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
    """Which of the matching heads carry term frequency, and how their attention rises with it."""
    acts = known.acting("tf")
    if acts.empty:
        return [known.not_measured("chen2024/head_maps", "--at", "query|doc", tf=True)]
    linked, looks = list(known.linked("tf")["site"]), known.of(*LOOKS["tf"])
    matching = looks[looks["holds"]]["site"].unique()
    if linked:
        rows = acts[acts["holds"] & acts["site"].isin(linked)].drop_duplicates("site")
        what = " matches and also carries" if len(rows) == 1 else " match and also carry"
        said: Sentence = [
            {"strong": f"Yes: {counted(len(rows), 'head', 'heads')}"},
            f"{what} the effect of term frequency on the score: ",
            *listed(rows),
            ".",
        ]
        return [said, *_rise(known, linked)]
    if looks.empty:
        missing = known.not_measured("vast2025/attention_contrast", "--easy-negatives", "10")
        return [
            ["Which heads match is not known, so none is linked. ", *missing],
            ["The largest effect is ", *told(acts.iloc[0]), "."],
        ]
    if not len(matching):
        return [[{"strong": "No link holds"}, ": no head matches. The largest effect is ", *told(acts.iloc[0]), "."]]
    best = acts[acts["site"].isin(matching)]
    said = [{"strong": "No link holds."}, f" Of {counted(len(matching), 'head that matches', 'heads that match')}, "]
    if best.empty:
        return [[*said, "none was tested: ", *known.not_measured("chen2024/head_maps", "--at", "query|doc", tf=True)]]
    said += ["none carries an effect of term frequency that holds; the largest is ", *told(best.iloc[0]), "."]
    return [said]


def _rise(known: Known, linked: Sequence[str]) -> list[Sentence]:
    rises = known.of("soft-tf", "rise of attention, tf")
    rises = rises[rises["site"].isin(linked)]
    if rises.empty:
        return [["How their attention rises with tf: ", *known.not_measured("lu2025/soft_tf")]]
    said: Sentence = ["From no occurrence of a word to eight, their attention to it changes by ", *listed(rises), "."]
    saturation = known.of("soft-tf", "k1 of attention")
    saturation = saturation[saturation["site"].isin(rises.loc[rises["holds"], "site"])]
    if saturation.empty:
        return [[*said, " No rise holds."]] if not rises["holds"].any() else [said]
    return [[*said, " Where the rise holds it saturates: k1 is ", *listed(saturation), "."]]


def rarity(known: Known) -> list[Sentence]:
    """Whether IDF is involved."""
    looks, acts, linked = known.of(*LOOKS["idf"], heads=False), known.acting("idf"), known.linked("idf")["site"]
    if looks.empty:
        return [known.not_measured("lu2025/idf_direction")]
    holds = looks[looks["holds"]]
    if holds.empty:
        return [["No singular vector of W_E, the word embeddings, goes with IDF; first is ", *told(looks.iloc[0]), "."]]
    goes: Sentence = [f"{counted(len(holds), 'direction goes', 'directions go')} with IDF: ", *listed(holds), "."]
    if acts.empty:
        return [goes, ["Whether moving words along them acts: ", *known.not_measured("lu2025/idf_edit")]]
    if len(linked):
        rows = acts[acts["holds"] & acts["site"].isin(linked)].drop_duplicates("site")
        yes: Sentence = [
            {"strong": "Yes."},
            " Moving a word along it as if it were rarer does what BM25 would: ",
            *listed(rows),
            ".",
        ]
        return [yes, goes]
    no: Sentence = [{"strong": "No link holds."}, " Moving words along them does nothing that holds; the largest is "]
    return [[*no, *told(acts.iloc[0]), "."], goes]


def scoring(known: Known) -> list[Sentence]:
    """Which heads write the score."""
    paths = known.of("scoring", SCORES)
    paths = paths[paths["causal"]]
    if paths.empty:
        return [known.not_measured("lu2025/head_to_score", tf=True)]
    holds = paths[paths["holds"]].drop_duplicates("site")
    if holds.empty:
        return [["No path from a head to the score holds; the largest is ", *told(paths.iloc[0]), "."]]
    count = f"{len(holds)} of {paths['site'].nunique()} heads"
    return [[{"strong": count}, " have a path to the score that holds: ", *listed(holds), "."]]


def fit(known: Known) -> list[Sentence]:
    """How well a BM25 of the matching heads predicts the score."""
    whole = known.found[known.found["measure"] == "semantic BM25"]
    if whole.empty:
        return [known.not_measured("lu2025/semantic_bm25")]
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
    """What the ranking loses without the linked heads, beside random sets."""
    if known.pathway is None:
        return [known.not_measured("joint/pathway")]
    tests = _verification(known)
    if tests.empty:
        return [["No head was linked to term frequency, so there was none to take out."]]
    cut, drawn = tests.iloc[0], tests.iloc[1:]
    sites = str(cut["site"]).split(",")
    said: Sentence = ["Without ", *with_commas([{"site": site} for site in sites]), " nDCG@10 changes by "]
    said += [{"strong": number(cut["change"])}, f"{interval(cut)}, {chance(cut['p_paired'])}"]
    said += [f", on {int(cut['queries'])} queries that nothing else has seen (run ", {"run": known.pathway.id}, ")."]
    if len(drawn) and "p_draws" in cut:
        mean = drawn["change"].mean()
        random: Sentence = [
            f"Without as many random heads of the same layers it changes by {number(mean)} on average of {len(drawn)} "
            f"sets; that they lose as much has {chance(cut['p_draws'])}."
        ]
        return [said, random]
    return [said]


def certainty(known: Known) -> list[Sentence]:
    """By what rule findings hold, and on how much."""
    found = known.found
    tested = found[found["p_corrected"].notna()]
    if tested.empty:
        return [["No finding here has a test, so nothing holds and nothing is linked."]]
    sizes = found.loc[found["n_queries"] > 0, "n_queries"]
    linked = known.links[known.links["links"] != ""]
    said: list[Sentence] = [
        [
            f"A finding holds where p, corrected within its family and then over all {int(tested['families'].max())} "
            f"families of tests of this model and collection, is below {LEVEL:g}, and its value reaches what counts. "
            "A link needs that of what a component looks like and of what changing it does."
        ]
    ]
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
