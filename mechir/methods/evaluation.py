"""Ranking quality by any measure of ir_measures: by query, under conditions, in groups of queries."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import ir_measures
import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd

from mechir import inference
from mechir.columns import IDS, cell, chosen_columns
from mechir.errors import MechirError, closest
from mechir.methods import ranking
from mechir.methods.query_groups import query_groups, unmatched
from mechir.methods.statistics import compare

NAMES = ("nDCG", "RR", "AP", "P", "R", "Rprec", "IPrec", "Success")
"""The measures of ir_measures that ask for nothing but judgments and a ranking."""
DRAWS = 20
"""Random orders of tied documents that a value is averaged over, where there is no closed form."""
NDCG = "nDCG@10"
"""The measure where none is named."""
ALL = "all"
INTACT, ALSO_INTACT = "original", "intact"
NEAR = 0.1
"""The share of scores that count as ties of others, from which on it is said."""
WHOLE = 10**9
"""A cutoff beyond every ranking."""


def ranking_measures(given: Any) -> tuple[Any, ...]:
    """The measures as values of ir_measures, from these values or from text: `"RR(rel=2)@10"`, `nDCG @ 10`.

    Raises:
        MechirError: for text that is no measure, one that ir_measures cannot compute here, and one that asks which
            documents are judged (all of a pool are).
    """
    listed = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    listed = list(listed[0]) if len(listed) == 1 and isinstance(listed[0], list | tuple) else listed
    measures = tuple(dict.fromkeys(map(_measure, listed)))
    if not measures:
        raise MechirError("There is no measure of ranking quality: write one such as 'nDCG@10'.")
    return measures


def _measure(given: Any) -> Any:
    measure = given
    if isinstance(given, str):
        try:
            measure = ir_measures.parse_measure(given.strip())
        except (NameError, ValueError, SyntaxError, TypeError, AssertionError) as error:
            near = closest(given.partition("@")[0].partition("(")[0], NAMES)
            raise MechirError(f"Cannot read the ranking measure '{given}': the closest are {near}.") from error
    if not isinstance(measure, ir_measures.measures.Measure):
        raise MechirError(f"{given!r:.60} is no ranking measure: write 'nDCG@10', or ir_measures.nDCG @ 10.")
    for name in ("cutoff", "rel"):
        least = measure.params.get(name, 1)
        if measure.NAME != "IPrec" and least < 1:
            raise MechirError(f"'{measure}' has {name} {least}: write a whole number, 1 or more.")
    try:
        computed = any(provider.supports(measure) for provider in (ir_measures.pytrec_eval, ir_measures.msmarco))
    except AssertionError:
        computed = False
    if not computed or measure.NAME not in NAMES or measure.params.get("judged_only"):
        raise MechirError(f"'{measure}' cannot be computed here: write one of {', '.join(NAMES)}, such as 'nDCG@10'.")
    return measure


def in_closed_form(measure: Any) -> bool:
    """Whether the mean over all orders of tied documents is known: of nDCG, and of RR without cutoff."""
    names = set(measure.params)
    return bool((measure.NAME == "nDCG" and names <= {"cutoff"}) or (measure.NAME == "RR" and names <= {"rel"}))


def per_query(
    scores: pd.DataFrame, judged: pd.DataFrame, measure: Any, *, ties: float | int = ranking.TIE
) -> pd.Series:
    """The measure of each query that has a document as relevant as the measure asks for, by `query_id`.

    Scores within `ties` of each other are ties. nDCG and RR without cutoff are the mean over all orders of tied
    documents (`ranking.ndcg`, `ranking.mrr`), others the mean over 20 random orders, by a seed of the query. Without
    ties a value is that of ir_measures.
    """
    cutoff, relevant = measure.params.get("cutoff", WHOLE), int(measure.params.get("rel", 1))
    if in_closed_form(measure) and measure.NAME == "nDCG":
        return ranking.ndcg(scores, judged, cutoff, ties=ties).set_index("query_id")["value"]
    if in_closed_form(measure):
        return ranking.mrr(scores, judged, relevant, ties=ties).set_index("query_id")["value"]
    qrels: dict[str, dict[str, int]] = {}
    for query_id, doc_id, grade in judged[["query_id", "doc_id", "grade"]].itertuples(index=False):
        qrels.setdefault(query_id, {})[doc_id] = max(int(grade), 0)
    qrels = {query_id: grades for query_id, grades in qrels.items() if max(grades.values()) >= relevant}
    orders = list(_orders(scores, qrels, ties))
    if not orders:
        return pd.Series(dtype=float, name="value").rename_axis("query_id")
    grades_of = {str(number): qrels[query_id] for number, (query_id, _) in enumerate(orders)}
    runs = {str(number): run for number, (_, run) in enumerate(orders)}
    values = {int(each.query_id): each.value for each in ir_measures.iter_calc([measure], grades_of, runs)}
    by_order = pd.Series([values[number] for number in range(len(orders))], [query_id for query_id, _ in orders])
    return by_order.rename("value").rename_axis("query_id").groupby(level=0, sort=False).mean()


def _orders(
    scores: pd.DataFrame, qrels: Mapping[str, Any], ties: float | int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each query's ranking as scores without ties; where there are ties, `DRAWS` orders of them."""
    ranking.refuse_infinite(scores)
    for query_id, rows in scores[scores["query_id"].isin(list(qrels))].groupby("query_id", sort=False):
        rows = rows.sort_values("doc_id", kind="stable")
        groups, ids = ranking.tie_groups(rows["score"].to_numpy(dtype=float), ties), rows["doc_id"].to_numpy()
        tied, generator = len(np.unique(groups)) < len(groups), ranking.query_generator(0, str(query_id))
        for _ in range(DRAWS if tied else 1):
            order = np.lexsort((generator.permutation(len(ids)), groups))
            yield str(query_id), {str(ids[place]): -float(rank) for rank, place in enumerate(order)}


def by_condition(
    rows: pd.DataFrame, judged: pd.DataFrame, measure: Any, *, ties: float | int = ranking.TIE
) -> pd.DataFrame:
    """The measure of every query under every condition of the column `name`, [query, condition]."""
    groups = rows.groupby("name", sort=False)
    return pd.DataFrame({name: per_query(scores, judged, measure, ties=ties) for name, scores in groups})


def _near(rows: pd.DataFrame, ties: float | int) -> str:
    """A sentence where many scores of the intact model are other numbers and count as ties; else empty."""
    intact = rows[rows["name"] == INTACT].drop_duplicates(["query_id", "score"])
    ordered = intact.sort_values(["query_id", "score"])
    gaps = ordered.groupby("query_id")["score"].diff().dropna()
    near = int((gaps <= ties).sum())
    if near <= NEAR * len(gaps):
        return ""
    return (
        f"{near} of {len(gaps)} scores are within {ties:g} of the next and count as ties: write ties=0 to rank by them."
    )


def evaluate(
    rows: Any, *measures: Any, judged: Any = None, groups: Any = None, ties: float | int = ranking.TIE
) -> pd.DataFrame:
    """The ranking quality of every condition, and its change from the intact model, over queries.

    Args:
        rows: scores, `query_id`, `doc_id`, `score`, and where there is more than one condition `name`, as `mi.sweep`
            gives them; "original", or "intact", is the intact model.
        measures: of ir_measures, as values or text; by default nDCG@10.
        judged: `query_id`, `doc_id`, `grade`; by default the grades of the rows.
        groups: groups of queries, see `query_groups`: each is measured apart and compared with each other.
        ties: scores of a query within this distance of each other are ties; by default what rounding makes of equal
            logits. 0 for scores that are exact, such as small probabilities.

    Returns:
        One row per measure, group ("all", each group, "a - b") and condition: `measure`, `group`, `name`; `queries`;
        `estimate`, the mean over queries, `low`, `high`, its 95 % interval; `change` = condition - original with
        `change_low`, `change_high`, the paired `change_p`, and `change_p_corrected`, Holm over all rows. In rows "a -
        b" estimate and change are those of a less those of b, tested as of different queries. Queries without a
        document as relevant as the measure asks for, and queries without a score, are left out: ir_measures counts a
        judged query without a score as 0.

    Raises:
        MechirError: for a measure that is none, rows without the columns, a pair that stands twice, a grade that is no
            whole number, no judgments, no query that counts, and groups without a query.
    """
    ranked_by = ranking_measures(measures or (NDCG,))
    if not 0 <= ties < math.inf:
        raise MechirError(f"ties={ties} is no distance of scores: write 0 or more.")
    rows, judged = _checked(rows, judged)
    of = {} if groups is None else query_groups(groups)
    parts = []
    for measure in ranked_by:
        values = by_condition(rows, judged, measure, ties=ties)
        if values.empty:
            raise MechirError(
                f"No query with a score has a document as relevant as '{measure}' asks for: lower its rel."
            )
        parts.append(pd.DataFrame(list(_lines(values, of))).assign(measure=str(measure)))
    misfits = unmatched(of, rows["query_id"]) if of else ""
    for sentence in filter(None, [misfits, _near(rows, ties)]):
        warnings.warn(sentence, stacklevel=2)
    table = pd.concat(parts, ignore_index=True)
    if "change_p" in table:
        table["change_p_corrected"] = inference.holm(table["change_p"].to_numpy(dtype=float))
    return table[["measure", *(name for name in table.columns if name != "measure")]]


def _checked(rows: Any, judged: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows with a name, and the judgments, ids as text; raises for what stands twice or has no number."""
    scores = _frame(rows, ("query_id", "doc_id", "score"), "scores")
    if judged is None:
        if "grade" not in scores or scores["grade"].isna().all():
            raise MechirError("These scores have no grades: give judged=, a frame with query_id, doc_id and grade.")
        judged = scores.drop_duplicates(IDS).assign(grade=lambda frame: frame["grade"].fillna(0))
    judgments = _frame(judged, (*IDS, "grade"), "judged").drop_duplicates([*IDS, "grade"])
    grades = pd.to_numeric(judgments["grade"], errors="coerce").astype(float)
    if bool((grades % 1 != 0).any()):
        wrong = judgments["grade"][grades % 1 != 0].iloc[0]
        raise MechirError(f"judged holds the grade {wrong!r:.40}: a grade is a whole number.")
    scores = scores if "name" in scores else scores.assign(name=INTACT)
    if INTACT not in set(scores["name"]):
        scores = scores.assign(name=scores["name"].replace(ALSO_INTACT, INTACT))
    if bool(scores["name"].isna().any()):
        raise MechirError("Some scores have no name: name every condition, and the intact model 'original'.")
    for frame, keys, kind in ((scores, ["name", *IDS], "scores"), (judgments, list(IDS), "judged")):
        if len(twice := frame[frame.duplicated(keys)]):
            named = "/".join(str(twice[name].iloc[0]) for name in IDS)
            raise MechirError(
                f"Pair {named} stands twice in {kind}: give each pair of a condition ids of its own, once."
            )
    return scores, judgments.assign(grade=grades.astype(int))


def _frame(given: Any, needed: Sequence[str], kind: str) -> pd.DataFrame:
    """A frame of any library with columns under mechir's names, ids as text."""
    frame = nw.from_native(given, eager_only=True, pass_through=True)
    if not isinstance(frame, nw.DataFrame):
        raise MechirError(f"{kind} is a {type(given).__name__}: give a frame with {', '.join(needed)}.")
    made = frame.to_pandas()
    columns = chosen_columns(list(made), (), (*IDS, "grade"), kind)
    made = made.rename(columns={column: field for field, column in columns.items()})
    if lacking := [name for name in needed if name not in made]:
        raise MechirError(f"There is no column '{lacking[0]}' to evaluate: give a frame with {', '.join(needed)}.")
    return made.assign(**{name: _ids_as_text(made[name], kind) for name in IDS})


def _ids_as_text(column: pd.Series, kind: str) -> pd.Series:
    """Ids as text; raises for one that is missing, or neither text nor a whole number."""
    name = str(column.name)
    return column.map(
        {value: cell({name: value}, name, name, f"A row of {kind}") for value in column.unique().tolist()}
    )


def _lines(values: pd.DataFrame, groups: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of one measure: of all queries, of each group, and of each two."""
    yield from _of_queries(values, ALL)
    for name, part in grouped(values, groups):
        yield from _of_queries(part, name)
    for (one, first), (other, second) in itertools.combinations(grouped(values, groups), 2):
        for name in values:
            n = int(first[name].notna().sum() + second[name].notna().sum())
            line: dict[str, Any] = {"group": f"{one} - {other}", "name": name, "queries": n}
            line |= between(first[name], second[name], ("estimate", "low", "high", None))
            if name != INTACT and INTACT in values:
                gain, loss = (part[name] - part[INTACT] for part in (first, second))
                line |= between(gain, loss, ("change", "change_low", "change_high", "change_p"))
            yield line


def _of_queries(values: pd.DataFrame, group: str) -> Iterator[dict[str, Any]]:
    for name in values:
        line: dict[str, Any] = {"group": group, "name": name, "queries": int(values[name].notna().sum())}
        line |= inference.mean_row(values[name].to_numpy())
        if name != INTACT and INTACT in values:
            both = values[[name, INTACT]].dropna().to_numpy()
            line |= compare(both[:, 0], both[:, 1]).row("change") if len(both) else {}
        yield line


def grouped(values: pd.DataFrame, groups: Mapping[str, str]) -> list[tuple[str, pd.DataFrame]]:
    """The queries of each group that has one, in the order of the groups.

    Raises:
        MechirError: where fewer than two groups have a query here.
    """
    if not groups:
        return []
    of = values.index.map(lambda query_id: groups.get(query_id))
    parts = [(name, values[of == name]) for name in dict.fromkeys(groups.values())]
    there = [(name, part) for name, part in parts if len(part)]
    if len(there) < 2:
        raise MechirError(
            f"{len(there)} of the groups {', '.join(name for name, _ in parts)} have a query here: give the ids of "
            f"these queries, such as '{values.index[0]}'."
        )
    return there


def between(one: pd.Series, other: pd.Series, columns: tuple[str, str, str, str | None]) -> dict[str, float]:
    """The difference of two groups' means as columns of a table."""
    difference = inference.difference(one.to_numpy(dtype=float), other.to_numpy(dtype=float))
    return {name: value for name, value in zip(columns, difference, strict=True) if name is not None}
