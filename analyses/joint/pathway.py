"""From matching to BM25 in one run: which heads match, is it TF, is IDF involved, and does the ranking depend on it?

On the first two thirds of the queries every experiment of the chain tells the registry what it finds: contrast,
spectra, soft-TF, IDF, patching and paths to the scoring heads, conductance, semantic BM25. The links are read off by
their rule (`mechir.registry.links`). On the last third, which nothing has seen, the heads linked to TF are taken out
together, beside random sets of as many heads of the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from mechir.collection import Collection
from mechir.contrasts import single_piece
from mechir.diagnostic_sets import diagnostic
from mechir.errors import MechirError
from mechir.experiment import known_of, load_experiment
from mechir.interventions import Prune
from mechir.material import Pool, source_of
from mechir.methods.checks import at_least, relevant_there
from mechir.methods.pruning import sizes
from mechir.methods.ranking import ndcg
from mechir.methods.schemes import random_like
from mechir.methods.statistics import compare
from mechir.options import in_normal_form, with_defaults
from mechir.pairs import Pair
from mechir.registry.links import BEHIND, held, link_table
from mechir.registry.queries import matching
from mechir.sweep import sweep
from mechir.views import charts

ORIGINAL, LINKED = "original", "linked heads"
EMBEDDED = {"limit_queries": 61, "per_grade": 2, "easy_negatives": 4}
"""What is taken of the embedded collection by default: all queries, for tests need many, and few documents of each."""
REPORT = True
"""A report of the registry is written at its end."""
LEARN = 2 / 3
"""The share of the queries that the links are found on."""
LEAST = 9
"""Queries that the chain takes: six to find links on, which its own steps part in three, and three to test them on."""
CAUSAL = {
    "chen2024/head_maps": {"at": "query|doc"},
    "lu2025/head_to_score": {},
    "lu2025/head_to_heads": {"ports": "v"},
}
"""The experiments on contrasts of term frequency, with their options."""
CUT, EDITED, SHOWN = 3, 2, 12
"""Matching heads whose W_QK is cut; singular vectors that are edited; heads whose attention is stored to look at."""
SOME, FEW = 24, 12
"""Queries of what takes many forwards for each pair: of patching, paths and conductance; of W_QK cut."""
AT_MOST = {"vast2024/importance": SOME, "vast2025/qk_projection": FEW}


def cost(model: Any, *, draws: int = 20, **options: Any) -> float:
    """Full forwards per pair, roughly: all experiments of the chain, most of them on a part of the pairs."""
    return 100.0 + draws


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
        raise MechirError(f"{len(queries)} judged queries cannot both link heads and test them: take {LEAST} or more.")
    return round(LEARN * len(queries))


def prepare(
    model: Any,
    pairs: list[Pair],
    collection: Collection,
    pool: Pool,
    registry: Path,
    run: Callable[..., Any],
    *,
    filler: str,
    idf: str,
    draws: int,
    seed: int,
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of the last queries; the table of links found on the first ones, and the sets of heads to take out."""
    queries = list(dict.fromkeys(pair.query_id for pair in pairs))
    n = _learning(queries)
    own: list[str] = []  # what others have told the registry may come from the queries that are held out

    def on_pairs(steps: Iterable[tuple[str, dict[str, Any]]]) -> None:
        for name, chosen in steps:
            own.append(run(name, pool=replace(pool, limit_queries=min(n, AT_MOST.get(name, n))), **chosen).id)

    on_pairs(_looks(pairs, filler, idf))
    some = min(n, SOME)
    contrasts = diagnostic(
        "tfc1", collection, fillers=(filler,), model=model, limit_queries=some, per_grade=1, seed=seed
    )
    for name, chosen in CAUSAL.items():
        own.append(run(name, source=contrasts, pool=Pool(), **chosen).id)
    on_pairs(_acts(_linked(registry, own), filler, idf, draws))
    found = _linked(registry, own)
    heads = _of(found, "tf")
    sets = [{"name": LINKED, "sites": ",".join(heads)}] if heads else []
    drawn = random_like(heads, sizes(model), draws, seed=seed)[0] if heads else []
    sets += [{"name": f"random {k}", "sites": ",".join(one)} for k, one in enumerate(drawn)]
    rest = [pair for pair in pairs if pair.query_id in queries[n:]]
    return rest, {"linked": found, "sets": pd.DataFrame(sets, columns=["name", "sites"], dtype=str)}


def _linked(registry: Path, own: Sequence[str]) -> pd.DataFrame:
    """The table of links by what these runs say, sites as text."""
    return link_table(held(matching(registry, runs=own, newest=True)))


def _looks(pairs: Sequence[Pair], filler: str, idf: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The experiments on pairs that look for heads and directions, each with its options."""
    grades = sorted({pair.grade for pair in pairs if pair.grade is not None})
    if len(grades) < 2:
        raise MechirError("All pairs have one grade, so nothing matches more than anything: add --easy-negatives 10.")
    told = {"relevant": grades[-1], "hard": 0 if 0 in grades else grades[0], "weak": grades[0]}
    yield "vast2025/attention_contrast", told
    yield "vast2025/qk_svd", told
    yield "lu2025/soft_tf", {"filler": filler, "per_query": 2}
    yield "lu2025/idf_direction", {"idf": idf}
    yield "lu2025/semantic_bm25", {"idf": idf}
    yield "vast2024/importance", {"take": 1, "tol": 0.05}


def _acts(found: pd.DataFrame, filler: str, idf: str, draws: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The experiments that follow from the links so far: what is matched, weighed and looked at, by which heads."""
    heads = found[found["site"].str.startswith("h")]
    matched = heads.dropna(subset="contrast").sort_values("contrast", key=abs, ascending=False, kind="stable")["site"]
    if len(matched):
        yield "vast2025/qk_projection", {"heads": ",".join(matched[:CUT]), "draws": draws}
    vectors = found.loc[found["site"].str.startswith("embed.u"), "site"].str.removeprefix("embed.u")
    scoring = ",".join(_of(found, "scoring"))
    for vector in vectors[:EDITED]:
        chosen = {"vector": int(vector), "heads": scoring, "idf": idf, "filler": filler}
        yield "lu2025/idf_edit", chosen | {"factors": "", "draws": draws, "per_query": 1}
    if len(heads):
        yield "joint/examples", {"heads": ",".join(heads["site"][:SHOWN])}


def _of(found: pd.DataFrame, link: str) -> list[str]:
    """The heads with a link."""
    return found.loc[found["links"].str.split(",").map(lambda names: link in names), "site"].tolist()


def measure(
    model: Any,
    pairs: Sequence[Pair],
    *,
    linked: pd.DataFrame,
    sets: pd.DataFrame,
    filler: str = "a",
    idf: str = "",
    draws: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of every pair without each set of heads: `name`, `query_id`, `doc_id`, `grade`, `score`.

    `linked` and `sets` are what `prepare` found. `filler`: a word of one word piece; `idf`: a table of lines
    word<TAB>idf, by default counted in the collection; `draws`: random sets, and random directions beside that of IDF.
    """
    cut = {one.name: Prune(one.sites.split(",")) for one in sets.itertuples(index=False)}
    return sweep(model, pairs, {ORIGINAL: ()} | cut)


def summarise(rows: pd.DataFrame, judged: pd.DataFrame, linked: pd.DataFrame, sets: pd.DataFrame) -> pd.DataFrame:
    """The links, and under them what the ranking loses without the linked heads.

    `kind` "link": the columns of `links`. "verification", one row for the linked heads and one for each random set:
    `site` (the heads), `set`, `change` of nDCG@10 on the held-out queries with `low`, `high`, `p_paired`, `queries`;
    for the linked heads `random`, the mean change of the random sets, and `p_draws` = (1 + random sets that lose as
    much) / (1 + sets).
    """
    grades = judged[["query_id", "doc_id", "grade"]]
    whole = ndcg(rows[rows["name"] == ORIGINAL], grades).set_index("query_id")["value"]
    lines = []
    for one in sets.itertuples(index=False):
        values = ndcg(rows[rows["name"] == one.name], grades).set_index("query_id")["value"].reindex(whole.index)
        found = compare(values.to_numpy(), whole.to_numpy())
        told = {"set": one.name, "site": one.sites, "change": found.change, "low": found.low, "high": found.high}
        lines.append({"kind": "verification"} | told | {"p_paired": found.p_paired, "queries": found.n})
    tests = pd.DataFrame(lines)
    if len(tests):
        drawn = tests.loc[tests["set"] != LINKED, "change"]
        tests.loc[0, "random"] = drawn.mean()
        tests.loc[0, "p_draws"] = (1 + (drawn <= tests.loc[0, "change"]).sum()) / (1 + len(drawn))
    return pd.concat([linked.assign(kind="link"), tests], ignore_index=True)


def findings(summary: pd.DataFrame) -> pd.DataFrame:
    """What the ranking loses without the heads linked to TF. It has no family: it tests no link, but what follows."""
    cut = summary[summary["set"] == LINKED] if "set" in summary else pd.DataFrame(columns=["change"])
    told = {"measure": "nDCG@10 without the heads linked to tf", "unit": "nDCG@10", "role": "soft-tf", "term": "tf"}
    cut = cut.rename(columns={"site": "label", "change": "value", "p_draws": "p", "queries": "n_queries"})
    return cut.assign(**told, site="", sign=-1, causal=True)


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """The links with the evidence that most have, and the verification."""
    shown = summary[(summary["kind"] == "link") | (summary.get("set", "") == LINKED)]
    evidence = ["contrast", "rise", "patching", "to_score", "r_idf", "edit_score", "edit_attention"]
    names = ["site", "links", *BEHIND, *evidence, "change", "random", "p_draws"]
    return shown[[name for name in names if name in shown]].dropna(axis=1, how="all")


def chart(summary: pd.DataFrame) -> Any:
    """Every component of the table: how much it matches against what patching it does."""
    heads = summary[(summary["kind"] == "link") & summary["site"].str.startswith("h")]
    shown = heads.dropna(subset=["contrast", "patching"]).assign(links=heads["links"].replace("", "none"))
    return charts.scatter(
        shown.rename(columns={"contrast": "attention contrast", "patching": "effect of patching, share of the gap"}),
        "attention contrast",
        "effect of patching, share of the gap",
        "links",
        title="Heads that match, and how much of the effect of term frequency passes through them",
        subtitle="only heads whose contrast holds or that write the score",
        label="site",
    )
