"""From matching to BM25 in one run: which heads match, is it TF, is IDF involved, and does the ranking depend on it?

On the first two thirds of the queries every experiment of the chain tells the registry what it finds: contrast,
spectra, soft-TF, IDF, patching and paths to the scoring heads, conductance, semantic BM25. What is linked to tf, to idf
and to the score is concluded by a plan that is written before anything is measured (`mechir.registry.plan`); all else
is exploratory. On the last third, which nothing has seen, the heads that match, those that are linked, those that write
the score and all of them are cut, beside random sets of the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mechir.collection import Collection
from mechir.contrasts import single_piece
from mechir.diagnostic_sets import diagnostic
from mechir.errors import MechirError
from mechir.experiment import known_of, load_experiment
from mechir.inference import FEWEST
from mechir.material import Pool, source_of
from mechir.methods.checks import at_least, relevant_there
from mechir.methods.cutting import NDCG, TERM, cut_scores, cut_sets, cut_table, head_means
from mechir.methods.planning import contrast_spreads, power_table, share_spreads
from mechir.options import in_normal_form, with_defaults
from mechir.pairs import Pair
from mechir.registry.links import BEHIND, held, link_table
from mechir.registry.plan import LINK, concluded
from mechir.registry.queries import matching
from mechir.registry.runs import Run, finished_runs
from mechir.views import charts

MATCHING, LINKED, SCORING, ALL = "matching", "linked to tf", "scoring", "all of these"
"""The sets of heads that are cut."""
EMBEDDED = {"limit_queries": 61, "per_grade": 2, "easy_negatives": 4}
"""What is taken of the embedded collection by default: all queries, for tests need many, and few documents of each."""
REPORT = True
"""A report of the registry is written at its end."""
LEARN = 2 / 3
"""The share of the queries that the links are found on."""
LEAST = 9
"""Queries that the chain takes: `FEWEST` to find links on, and three to cut them on."""
PER_GRADE = 2
"""Documents of each query and grade that a term is appended to for the deciding tests."""
DECIDING = {"chen2024/head_maps": {"at": "query|doc"}, "lu2025/head_to_score": {}}
"""The experiments on contrasts of term frequency that the plan reads, with their options: on all learning queries."""
EXPLORING = {"lu2025/head_to_heads": {"ports": "v"}}
"""Those that it does not read: on some."""
CUT, EDITED, SHOWN = 3, 2, 12
"""Matching heads whose W_QK is cut; singular vectors that are edited; heads whose attention is stored to look at."""
SOME, FEW = 24, 12
"""Queries of what takes many forwards for each pair: of paths and conductance; of W_QK cut."""
LOOKS, ACTS = 0.02, 0.05
"""What counts of a contrast (attention) and of an effect (share of the gap)."""
PILOT = 8
"""Queries that a plan's power is guessed from, where no run is known."""
AT_MOST = {"vast2024/importance": SOME, "vast2025/qk_projection": FEW}


def cost(model: Any, *, draws: int = 20, **options: Any) -> float:
    """Full forwards per pair, roughly: all experiments of the chain, most of them on a part of the pairs."""
    return 50.0 + 2.5 * draws


def check(
    model: Any,
    pairs: Sequence[Pair],
    collection: Collection,
    pool: Pool,
    registry: Path,
    *,
    filler: str,
    idf: str,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Refuses what does not fit, also what an experiment of the chain would refuse on its queries."""
    at_least(1, draws=draws)
    at_least(0, seed=seed)
    single_piece(model.tokenizer, filler)
    relevant_there(collection.judged(pairs, full=pool.full))
    queries = list(dict.fromkeys(pair.query_id for pair in pairs))
    n = _learning(queries)
    for name, chosen in _looks(pairs, filler, idf):
        module = load_experiment(name)
        own = source_of(module, collection)
        some = replace(pool, limit_queries=min(n, AT_MOST.get(name, n)))
        known = known_of(own, some, registry)
        in_normal_form(module, model, some.pairs(own), with_defaults(module, chosen), known)
    return {}


def _learning(queries: Sequence[str]) -> int:
    """How many queries the links are found on."""
    if len(queries) < LEAST:
        raise MechirError(
            f"{len(queries)} judged queries cannot both link heads and test them: a test needs {FEWEST} or more, so "
            f"take {LEAST} or more."
        )
    return round(LEARN * len(queries))


def power(
    model: Any,
    pairs: Sequence[Pair],
    collection: Collection,
    pool: Pool,
    registry: Path,
    *,
    filler: str,
    seed: int,
    **options: Any,
) -> pd.DataFrame:
    """What the deciding tests can find on the learning queries: see `power_table`.

    `from`: the run of this registry on the same model and collection that the spread is known of, or the first queries,
    which are run for it.
    """
    queries = list(dict.fromkeys(pair.query_id for pair in pairs))
    n = _learning(queries)
    _, looks = next(_looks(pairs, filler, ""))
    some = queries[: min(n, PILOT)]
    of = {
        "vast2025/attention_contrast": (looks, lambda rows: contrast_spreads(rows, looks)),
        "chen2024/head_maps": (DECIDING["chen2024/head_maps"], share_spreads),
    }
    spreads, sources = {}, {}
    for name, (chosen, spread_of) in of.items():
        earlier = next(iter(finished_runs(registry, name, chosen, model.fingerprint, collection.hash)), None)
        if earlier is None:
            own = [pair for pair in pairs if pair.query_id in some]
            made = _tfc1(model, collection, filler, len(some), 1, seed)
            material: Sequence[Any] = own if name.startswith("vast2025") else made.align(model).contrasts
            rows = load_experiment(name).measure(model, material, **chosen)
        spreads[name] = spread_of(rows if earlier is None else earlier.rows)
        sources[name] = f"the first {len(some)} queries" if earlier is None else f"run {earlier.id}"
    found = power_table(spreads, dict(zip(of, (LOOKS, ACTS), strict=True)), n)
    return found.assign(**{"from": found["measure"].map(sources)})


def _tfc1(model: Any, collection: Collection, filler: str, some: int, per_grade: int, seed: int) -> Any:
    """One more occurrence of a query term, in documents of so many queries."""
    pool: dict[str, Any] = {"limit_queries": some, "per_grade": per_grade, "seed": seed}
    return diagnostic("tfc1", collection, fillers=(filler,), model=model, **pool)


def prepare(
    model: Any,
    pairs: list[Pair],
    collection: Collection,
    pool: Pool,
    registry: Path,
    run: Callable[..., Any],
    say: Callable[[str], None],
    *,
    filler: str,
    idf: str,
    draws: int,
    seed: int,
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of the last queries; what the plan concludes on the first ones, the table of links, the sets to cut."""
    asked = {"filler": filler, "idf": idf and str(Path(idf).expanduser().resolve()), "draws": draws, "seed": seed}
    for earlier in _other_plans(registry, model, collection, pool, asked)[-1:]:
        say(
            f"A plan was tested on this model and collection before (run {earlier.id}) and stands: what this one "
            "concludes is recorded as exploratory."
        )
    queries = list(dict.fromkeys(pair.query_id for pair in pairs))
    n = _learning(queries)
    own: list[str] = []  # what others have told the registry may come from the queries that are held out

    def on_pairs(steps: Iterable[tuple[str, dict[str, Any]]]) -> None:
        for name, chosen in steps:
            own.append(run(name, pool=replace(pool, limit_queries=min(n, AT_MOST.get(name, n))), **chosen).id)

    def on_contrasts(steps: Mapping[str, dict[str, Any]], some: int, per_grade: int) -> None:
        made = _tfc1(model, collection, filler, some, per_grade, seed)
        for name, chosen in steps.items():
            own.append(run(name, source=made, pool=Pool(), **chosen).id)

    on_pairs(_looks(pairs, filler, idf))
    on_contrasts(DECIDING, n, PER_GRADE)
    on_contrasts(EXPLORING, min(n, SOME), 1)
    on_pairs(_acts(_found(registry, own), filler, idf, draws))
    found = _found(registry, own)
    plan = concluded(found)
    sets = cut_sets(model, _sets(found, plan), draws, seed)
    learning = set(queries[:n])
    frames = {"linked": link_table(_with(found, plan)), "plan": plan, "sets": sets}
    frames["heads"] = head_means(model, [pair for pair in pairs if pair.query_id in learning])
    return [pair for pair in pairs if pair.query_id not in learning], frames


def _other_plans(registry: Path, model: Any, collection: Collection, pool: Pool, asked: Mapping[str, Any]) -> list[Run]:
    """Finished runs on this model and collection that asked for something else, the newest first."""
    known = finished_runs(registry, "joint/pathway", {}, model.fingerprint, collection.hash)
    own = {name: one for name, one in vars(pool).items() if name != "run"} | dict(asked)
    told = [one.record.get("asked", {}) | one.record["identity"]["pool"] for one in known]
    return [
        one
        for one, other in zip(known, told, strict=True)
        if any(other.get(k) != v for k, v in own.items() if k in other)
    ]


def _found(registry: Path, own: Sequence[str]) -> pd.DataFrame:
    """The findings of these runs, `held`, sites as text."""
    return held(matching(registry, runs=own, newest=True))


def _with(found: pd.DataFrame, plan: pd.DataFrame) -> pd.DataFrame:
    """The findings and what the plan concludes from them, `held`."""
    of = {name: found[name].iloc[0] for name in ("model", "model_fingerprint", "collection")} if len(found) else {}
    told = plan.assign(sign=1, tries=1, **of)
    every = pd.concat([found.drop(columns=["planned", "p_all", "holds"]), told], ignore_index=True)
    return held(every.fillna({"least": 0.0, "label": "", "run_id": ""}))


def _sets(found: pd.DataFrame, plan: pd.DataFrame) -> dict[str, list[str]]:
    """The heads that match (lexical or semantic, or where no kind is told all whose contrast holds), and the linked."""
    looks = found[found["measure"].str.startswith("contrast, query<-doc") & found["holds"] & (found["value"] > 0)]
    kinds = looks[looks["label"].isin(["lexical", "semantic"])]
    linked = plan[(plan["site"] != "") & (plan["p_corrected"] < 0.05)]
    sets = {MATCHING: (kinds if len(kinds) else looks)["site"].tolist()}
    sets |= {
        name: linked.loc[linked["measure"] == LINK + term, "site"].tolist()
        for name, term in ((LINKED, "tf"), (SCORING, "scoring"))
    }
    return sets | {ALL: sorted(set().union(*sets.values()))}


def _looks(pairs: Sequence[Pair], filler: str, idf: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The experiments on pairs that look for heads and directions, each with its options."""
    grades = sorted({pair.grade for pair in pairs if pair.grade is not None})
    if len(grades) < 2:
        raise MechirError("All pairs have one grade, so nothing matches more than anything: add --easy-negatives 10.")
    hard = 0 if 0 in grades[1:-1] else grades[0]  # without a grade between the two there are no hard negatives
    told = {"relevant": grades[-1], "hard": hard, "weak": grades[0]}
    yield "vast2025/attention_contrast", told
    yield "vast2025/qk_svd", told
    yield "lu2025/soft_tf", {"filler": filler, "per_query": 2}
    yield "lu2025/idf_direction", {"idf": idf}
    yield "lu2025/semantic_bm25", {"idf": idf}
    yield "vast2024/importance", {"take": 1, "tol": 0.05}


def _acts(found: pd.DataFrame, filler: str, idf: str, draws: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The experiments that follow from what has held so far: what is matched, weighed and looked at, by which heads."""
    shown = link_table(found)
    heads = shown[shown["site"].str.startswith("h")]
    matched = heads.dropna(subset="contrast").sort_values("contrast", key=abs, ascending=False, kind="stable")["site"]
    if len(matched):
        yield "vast2025/qk_projection", {"heads": ",".join(matched[:CUT]), "draws": draws, "same_queries": True}
    directions = found[(found["measure"] == "r with IDF") & found["holds"]]
    vectors = directions.loc[directions["value"].abs().sort_values(ascending=False, kind="stable").index, "site"]
    scoring = found[found["holds"] & found["measure"].str.startswith("path to the score")]
    scoring = scoring[scoring["site"].str.startswith("h")]["site"]
    for vector in vectors[:EDITED].str.removeprefix("embed.u"):
        chosen = {"vector": int(vector), "heads": ",".join(scoring), "idf": idf, "filler": filler}
        yield "lu2025/idf_edit", chosen | {"factors": "", "draws": draws, "per_query": 1, "same_queries": True}
    if len(heads):
        yield "joint/examples", {"heads": ",".join(heads["site"][:SHOWN])}


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    linked: pd.DataFrame,
    plan: pd.DataFrame,
    sets: pd.DataFrame,
    heads: pd.DataFrame,
    filler: str = "a",
    idf: str = "",
    draws: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of every pair, and of a term more, without each set of heads: see `cut_scores`.

    `linked`, `plan`, `sets` and `heads` (their mean outputs) are what `prepare` found. `filler`: a word of one word
    piece; `idf`: a table of lines word<TAB>idf, by default counted in the collection; `draws`: random sets of each set,
    and random directions beside that of IDF.
    """
    return cut_scores(model, pairs, sets, heads, filler)


def summarise(
    rows: pd.DataFrame, judged: pd.DataFrame, linked: pd.DataFrame, plan: pd.DataFrame, sets: pd.DataFrame
) -> pd.DataFrame:
    """The links, what the plan says of each hypothesis, and what cutting sets of heads does on the held-out queries.

    `kind` "link": the columns of `links`. "plan": `measure`, `value` (components linked), `p`, `p_corrected`, `label`
    (why none is). "cut": the columns of `cut_table`.
    """
    hypotheses = plan[plan["site"] == ""].assign(kind="plan")
    cuts = cut_table(rows, judged, sets).assign(kind="cut")
    return pd.concat([linked.assign(kind="link"), hypotheses, cuts], ignore_index=True)


def findings(summary: pd.DataFrame, plan: pd.DataFrame) -> pd.DataFrame:
    """What the plan concludes, and what the held-out queries lose without sets of heads beyond random sets."""
    cuts = summary[summary["kind"] == "cut"]
    if cuts.empty:
        return plan
    names = {"site": "label", "excess": "value", "excess_low": "low", "excess_high": "high"}
    names |= {"p_excess": "p", "queries": "n_queries"}
    told = cuts[list(names)].rename(columns=names)
    units = cuts["measure"].map({NDCG: "nDCG@10", TERM: "logits"})
    measures = cuts["measure"].str.partition(",")[0] + " without heads " + cuts["set"] + ", by " + cuts["way"]
    told = told.assign(measure=measures, unit=units, site="", sign=-1, causal=True)
    return pd.concat([plan, told], ignore_index=True)


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """The links with the evidence that most have, the plan's verdicts, and what cutting does."""
    evidence = ["contrast", "rise", "patching", "to_score", "r_idf", "edit_score", "edit_attention"]
    plan = ["measure", "value", "p_corrected", "label"]
    cuts = ["set", "way", "heads", "intact", "change", "random", "excess", "p_draws", "queries"]
    names = ["kind", "site", "links", "exploratory", *BEHIND, *evidence, *cuts[:2], *plan, *cuts[2:]]
    shown = summary[[name for name in names if name in summary]].copy()
    shown["site"] = shown["site"].where(shown["kind"] == "link")
    return shown.astype({name: "Int64" for name in ("heads", "queries") if name in shown})


def chart(summary: pd.DataFrame) -> Any:
    """Every component of the table: how much it matches against what patching it does."""
    heads = summary[(summary["kind"] == "link") & summary["site"].str.startswith("h")]
    shown = heads.dropna(subset=["contrast", "patching"])
    shown = shown.assign(links=shown["links"].where(shown["links"] != "", "none"))
    return charts.scatter(
        shown.rename(columns={"contrast": "attention contrast", "patching": "effect of patching, share of the gap"}),
        "attention contrast",
        "effect of patching, share of the gap",
        "links",
        title="Heads that match, and how much of the effect of term frequency passes through them",
        subtitle="only heads whose contrast holds or that write the score; links as planned",
        label="site",
    )
