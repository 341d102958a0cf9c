"""Queries over the findings of a registry: by column, or in SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pandas as pd

from mechir.errors import MechirError, closest
from mechir.measures import refuse_unknown
from mechir.registry.entries import set_damaged_aside
from mechir.registry.evidence import LINKS, held
from mechir.registry.findings import VIEW, printed
from mechir.registry.folded import discard_damaged, rows_that_count
from mechir.registry.frames import SiteFrame, with_sites
from mechir.registry.in_sql import pattern, quoted
from mechir.registry.names import Named, meant, shown
from mechir.registry.runs import DEFAULT

ATTEMPTS = 3
Answer = TypeVar("Answer")
_THEIRS = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.ParserException,
    duckdb.PermissionException,
)
"""The user's mistakes: no reason to look for damage."""
CONCLUDED = f"measure in ({', '.join(repr(str(link.conclusion)) for link in LINKS)})"
QUESTION = ("model_fingerprint", "collection", "site", "measure")
"""What runs that answer the same question share."""
NEWEST = f"""qualify run_id = case when {CONCLUDED}
    then first_value(run_id) over (
        partition by model_fingerprint, collection, {CONCLUDED} order by written, run_id)
    else first_value(run_id) over (partition by {", ".join(QUESTION)} order by written desc, run_id) end"""
"""Selects the newest findings, but the conclusions of the first plan, which no later one replaces."""
TRIES = """greatest(1, list_unique(list(case when isnan(p_corrected) then null else p_corrected end))::bigint)"""
"""Counts the different answers of runs to the same question: repeated until it holds is not the same as once."""
KNOWN = (
    "coalesce(collection, '')",
    "coalesce(collection_full_name, '')",
    "case when collection_full_name is null then '' else coalesce(collection_sha256, '') end",
)
"""A collection as `Named`: an entry that lacks the longer name may have the hash of something else."""
CLAUSES = {
    "model": "(model = $model or (length($model) >= 6 and starts_with(model_fingerprint, $model)))",
    "min_effect": "abs(value) >= $min_effect",
    "corrected_p": "p_corrected < $corrected_p",
    "runs": "list_contains($runs, run_id)",
}
"""Conditions on findings by name; any other name is a column that equals its value."""


def findings(
    *,
    role: str | None = None,
    term: str | None = None,
    site: Any = None,
    model: str | None = None,
    collection: str | None = None,
    measure: str | None = None,
    causal: bool | None = None,
    min_effect: float | None = None,
    corrected_p: float | None = None,
    label: str | None = None,
    holds: bool | None = None,
    registry: Path | str = DEFAULT,
) -> SiteFrame:
    """Selects the findings that match every argument, a row each, with the columns of `Finding`.

    Args:
        role: one of `ROLES`.
        term: one of `TERMS`.
        site: a site, or its text: "h8.1".
        model: its name, or the beginning of its fingerprint.
        collection: its id, or with the folder above it ("scifact/test"), or the beginning of its hash.
        measure: its text.
        causal: True for those where the component itself was changed.
        min_effect: |value| at least this, each in its own unit: of little use across measures.
        corrected_p: p_corrected below this; findings without a p are left out.
        label: their label, such as "lexical".
        holds: True for the newest findings that hold (`evidence.held`), False for those that do not.
        registry: where the runs are.

    Returns:
        The rows, the largest |value| of each measure first. `site` holds objects that go into `do=` or into
        `Ablate`, `Patch`, `Project`: a site, an edge, the `Mask` of a direction; None for a set of units.

    Raises:
        MechirError: for unknown names, with the closest; a collection's name that is several; a path that is no
            registry, or one without findings.
    """
    filters: dict[str, Any] = {"role": role, "term": term, "measure": measure, "collection": collection}
    filters |= {"site": None if site is None else printed(site), "causal": causal, "min_effect": min_effect}
    filters |= {"corrected_p": corrected_p, "label": label}
    return with_sites(selected(Path(registry), filters | {"model": model}, holds), VIEW)


OF_VALUES = ("label", "causal", "min_effect", "corrected_p")
"""Filters on what a finding says, which do not decide which finding of a component and a measure is the newest."""


def selected(registry: Path, filters: Mapping[str, Any], holds: bool | None) -> pd.DataFrame:
    """`findings` with sites as text; with `holds`, the newest that hold, or that do not."""
    if holds is None:
        return matching(registry, filters)
    rows = matching(registry, filters, newest=True)
    judged = held(rows)
    return rows.loc[judged["holds"] == holds, [name for name in rows if name != "tries"]].reset_index(drop=True)


def matching(
    registry: Path,
    filters: Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    runs: Sequence[str] | None = None,
    newest: bool = False,
) -> pd.DataFrame:
    """`findings` with sites as text.

    `filters`: columns and arguments of `findings`, None for any. `runs`: ids of the only runs to read. `newest`: only
    the newest run's finding of each model, collection, component and measure (but the first plan's conclusions),
    without single neurons, whatever it says: `OF_VALUES` choose among these; adds `tries`, the number of different
    answers.
    """
    given = {"model": model, "runs": runs, **(filters or {})}
    filters = {name: value for name, value in given.items() if value is not None}
    for name in ("min_effect", "corrected_p"):
        if name in filters and not filters[name] >= 0:
            raise MechirError(f"Cannot ask for {name}={filters[name]}: write a number from 0.")
    refuse_unknown(filters.get("role"), filters.get("term"))
    clauses = {name: CLAUSES.get(name, f"{name} = ${name}") for name in filters}
    if newest:
        first = [clause for name, clause in clauses.items() if name not in OF_VALUES] + ["site not like 'n%'"]
        then = [clause for name, clause in clauses.items() if name in OF_VALUES]
        source = f"({_newest(f'(select * from findings {_where(first)})')}) {_where(then)}"
    else:
        source = f"findings {_where(list(clauses.values()))}"
    query = f"select * from {source} order by measure, abs(value) desc, site, run_id"
    rows = _answer(registry, query, filters)
    if not len(rows):
        _refuse_unknown_values(registry, filters)
    return rows


def _newest(asked: str) -> str:
    """A query for the newest of some findings, with `tries`.

    Before `NEWEST` sorts whole rows, all but those of the last time of each question are left out: of many runs few.
    """
    questions = f"(select {', '.join(QUESTION)}, max(written) as last, {TRIES} as tries from {asked} group by all)"
    same = " and ".join(f"one.{name} is not distinct from question.{name}" for name in QUESTION)
    rows = f"select one.*, last, tries from {asked} as one join {questions} as question on {same}"
    return f"select * exclude (last) from ({rows}) where written is not distinct from last or {CONCLUDED} {NEWEST}"


def _where(clauses: Sequence[str]) -> str:
    return f"where {' and '.join(clauses)}" if clauses else ""


def sql(query: str, *, registry: Path | str = DEFAULT) -> pd.DataFrame:
    """Runs DuckDB's SQL on the table `findings`: `mi.sql("select role, count(*) from findings group by 1")`.

    Sites are text here. Nothing can be written, and no other file be read.

    Raises:
        MechirError: for anything but one query, or SQL that DuckDB refuses.
    """
    try:
        statements = duckdb.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise MechirError("mechir.sql only asks: write one `select ...` or `from findings ...`.")
        return _answer(Path(registry), query, {})
    except duckdb.Error as error:
        raise MechirError(f"DuckDB refuses this question: {str(error).splitlines()[0]}") from error


def collections(registry: Path) -> dict[Named, str]:
    """The collections with findings, and the name under which each is shown; raises where there are no findings."""
    return _connected(registry, lambda connection, names: names)


def _answer(registry: Path, query: str, parameters: Mapping[str, Any]) -> pd.DataFrame:
    """Runs a query on the view `findings`, the collection under its shown name."""

    def ask(connection: Any, names: Mapping[Named, str]) -> pd.DataFrame:
        values = dict(parameters)
        if "collection" in values:
            values["collection"] = meant(values["collection"], names)
        return connection.execute(query, values).df()

    return _connected(registry, ask)


def _connected(registry: Path, ask: Callable[[Any, dict[Named, str]], Answer]) -> Answer:
    """Calls `ask` with a connection to the view `findings` and the names; damaged entries are set aside."""
    folded, left = True, ATTEMPTS
    while True:
        with duckdb.connect() as connection:
            try:
                return ask(connection, _view(connection, registry, folded=folded))
            except _THEIRS:
                raise
            except duckdb.Error:  # a damaged fold or entry, or one that another reader has just taken away
                found = (folded and discard_damaged(registry)) or set_damaged_aside(registry)
                folded, left = False, left if found else left - 1
                if not left:
                    raise


def _view(connection: Any, registry: Path, *, folded: bool) -> dict[Named, str]:
    """Creates the view over the last entries and returns the shown names; columns that older ones lack are empty."""
    connection.execute("set parquet_metadata_cache = true")
    rows = rows_that_count(connection, registry, folded=folded)
    if not rows:
        raise MechirError(f"'{registry}' holds no findings yet: run an experiment first, or give registry=DIR.")
    known = connection.execute(f"select {', '.join(KNOWN)} from ({rows}) group by all order by max(written)").fetchall()
    names = shown(Named(*row) for row in known)
    connection.execute(f"create view findings as select {_renamed(names)} from ({rows})")
    folder = (registry / "findings").resolve()
    connection.execute("set allowed_directories = ?", [[str(folder), pattern(folder)]])
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return names


def _renamed(names: Mapping[Named, str]) -> str:
    """All columns, with the collections under their shown names."""
    cases = []
    for named, name in names.items():
        if name != named.id:
            same = " and ".join(f"{column} = {quoted(text)}" for column, text in zip(KNOWN, named, strict=True))
            cases.append(f"when {same} then {quoted(name)}")
    return f"* replace (case {' '.join(cases)} else collection end as collection)" if cases else "*"


def _refuse_unknown_values(registry: Path, filters: Mapping[str, Any]) -> None:
    """Raises for a model, collection, site or measure without any finding."""
    for name in (name for name in ("model", "collection", "measure", "site", "label") if name in filters):
        known = sql(f"select distinct {name} from findings order by 1", registry=registry)[name].to_list()
        given = str(meant(filters[name], collections(registry)) if name == "collection" else filters[name])
        if name == "model":
            prints = sql("select distinct model_fingerprint from findings", registry=registry)["model_fingerprint"]
            if given in known or (len(given) >= 6 and prints.str.startswith(given).any()):
                continue
            raise MechirError(f"There is no run of model '{given}' here: there are {', '.join(known)}.")
        if given not in known:
            raise MechirError(f"There is no finding of {name} '{given}': the closest are {closest(given, known)}.")
