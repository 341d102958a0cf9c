"""Questions to the findings of a registry: by column, or in SQL."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pandas as pd

from mechir.errors import MechirError, closest
from mechir.measures import refuse_unknown
from mechir.registry.entries import latest, set_damaged_aside
from mechir.registry.evidence import LINKS
from mechir.registry.findings import COLUMNS, TYPES, VIEW, printed
from mechir.registry.frames import SiteFrame, with_sites
from mechir.registry.names import Named, meant, shown
from mechir.registry.runs import DEFAULT

ATTEMPTS = 3
Answer = TypeVar("Answer")
_THEIRS = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.PermissionException)
"""The asker's mistakes: no reason to look for damage."""
CONCLUDED = f"measure in ({', '.join(repr(str(link.conclusion)) for link in LINKS)})"
NEWEST = f"""qualify run_id = case when {CONCLUDED}
    then first_value(run_id) over (
        partition by model_fingerprint, collection, {CONCLUDED} order by written, run_id)
    else first_value(run_id) over (
        partition by model_fingerprint, collection, site, measure order by written desc, run_id) end"""
"""Of findings the newest; of conclusions the first plan's, which no later one replaces."""
TRIES = """, greatest(1, count(distinct case when isnan(p_corrected) then null else p_corrected end) over (
    partition by model_fingerprint, collection, site, measure)) as tries"""
"""How many runs asked the same and got another answer: repeated until it holds is not the same as once."""
KNOWN = (
    "coalesce(collection, '')",
    "coalesce(collection_full_name, '')",
    "case when collection_full_name is null then '' else coalesce(collection_sha256, '') end",
)
"""A collection as `Named`: an entry that lacks the longer name may have the hash of something else."""
_SQL = {"str": "VARCHAR", "float64": "DOUBLE", "int64": "BIGINT", "bool": "BOOLEAN"}


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
    registry: Path | str = DEFAULT,
) -> SiteFrame:
    """The findings that match everything given, a row each, with the columns of `Finding`.

    Args:
        role: one of `ROLES`.
        term: one of `TERMS`.
        site: a site, or as it prints: "h8.1".
        model: its name, or the beginning of its fingerprint.
        collection: its id, or with the folder above it ("scifact/test"), or the beginning of its hash.
        measure: as it is written.
        causal: True for those where the component itself was changed.
        min_effect: |value| at least this, each in its own unit: of little use across measures.
        corrected_p: p_corrected below this; findings without a p are left out.
        registry: where the runs are.

    Returns:
        The rows, the largest |value| of each measure first. `site` holds objects that go into `do=` or into
        `Ablate`, `Patch`, `Project`: a site, an edge, the `Mask` of a direction; None for a set of units.

    Raises:
        MechirError: for unknown names, with the closest; a collection's name that is several; a path that is no
            registry, or one without findings.
    """
    asked = {"role": role, "term": term, "collection": collection, "measure": measure}
    asked |= {"site": None if site is None else printed(site)}
    found = matching(Path(registry), asked, model=model, causal=causal, min_effect=min_effect, corrected_p=corrected_p)
    return with_sites(found, VIEW)


def matching(
    registry: Path,
    asked: Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    causal: bool | None = None,
    min_effect: float | None = None,
    corrected_p: float | None = None,
    runs: Sequence[str] | None = None,
    newest: bool = False,
) -> pd.DataFrame:
    """`findings` with sites as text.

    `asked`: columns and what they must be, None for anything; `collection` as `meant` reads it. `runs`: only what these
    say, by their ids. `newest`: of a component by a measure, on one model and collection, the newest run's alone (of
    the conclusions of a plan the first plan's), and no single neurons; with `tries`, how many different answers there
    are.
    """
    for name, value in (("min_effect", min_effect), ("corrected_p", corrected_p)):
        if value is not None and not value >= 0:
            raise MechirError(f"Cannot ask for {name}={value} (--{name.replace('_', '-')}): write a number from 0.")
    wanted = {name: value for name, value in (asked or {}).items() if value is not None}
    refuse_unknown(wanted.get("role"), wanted.get("term"))
    clauses = [f"{name} = ${name}" for name in wanted]
    if model is not None:
        clauses.append("(model = $model or (length($model) >= 6 and starts_with(model_fingerprint, $model)))")
    if causal is not None:
        clauses.append("causal" if causal else "not causal")
    clauses += ["abs(value) >= $min_effect"] if min_effect is not None else []
    clauses += ["p_corrected < $corrected_p"] if corrected_p is not None else []
    clauses += ["list_contains($runs, run_id)"] if runs is not None else []
    numbers = {"model": model, "min_effect": min_effect, "corrected_p": corrected_p, "runs": runs}
    wanted |= {name: value for name, value in numbers.items() if value is not None}
    clauses += ["site not like 'n%'"] if newest else []
    where = f"where {' and '.join(clauses)}" if clauses else ""
    counted, only = (TRIES, NEWEST) if newest else ("", "")
    asks = f"select *{counted} from findings {where} {only} order by measure, abs(value) desc, site, run_id"
    found = _answer(registry, asks, wanted)
    if not len(found):
        _refuse_unheard(registry, wanted)
    return found


def sql(query: str, *, registry: Path | str = DEFAULT) -> pd.DataFrame:
    """A question in SQL (DuckDB's) to the table `findings`: `mi.sql("select role, count(*) from findings group by 1")`.

    Sites are text here. Nothing can be written, and no other file be read.

    Raises:
        MechirError: for anything but one question, or SQL that DuckDB refuses.
    """
    try:
        statements = duckdb.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise MechirError("mechir.sql only asks: write one `select ...` or `from findings ...`.")
        return _answer(Path(registry), query, {})
    except duckdb.Error as error:
        raise MechirError(f"DuckDB refuses this question: {str(error).splitlines()[0]}") from error


def collections(registry: Path) -> dict[Named, str]:
    """The collections that there are findings of, and the name under which each is shown.

    Raises:
        MechirError: for a path that is no registry, or one without findings.
    """
    return _asked(registry, lambda connection, names: names)


def _answer(registry: Path, question: str, parameters: Mapping[str, Any]) -> pd.DataFrame:
    """The answer of the view `findings`.

    Raises:
        MechirError: for a collection's name that is several, and as `collections`.
    """

    def ask(connection: Any, names: Mapping[Named, str]) -> pd.DataFrame:
        given = parameters.get("collection")
        told = {} if given is None else {"collection": meant(given, names)}
        return connection.execute(question, dict(parameters) | told).df()

    return _asked(registry, ask)


def _asked(registry: Path, ask: Callable[[Any, dict[Named, str]], Answer]) -> Answer:
    """What a connection with the view `findings` answers, which reads nothing else; damaged entries are set aside."""
    for attempt in range(ATTEMPTS):
        with duckdb.connect() as connection:
            try:
                return ask(connection, _view(connection, registry))
            except _THEIRS:
                raise
            except duckdb.Error:  # a damaged entry, or one that another reader has just set aside
                if not set_damaged_aside(registry) and attempt == ATTEMPTS - 1:
                    raise
    raise AssertionError("unreachable")


def _view(connection: Any, registry: Path) -> dict[Named, str]:
    """Makes the view over the entries that count, collections under their shown names; these names.

    Columns that older entries lack are empty.
    """
    files = [_pattern(entry.path.resolve()) for entry in latest(registry)]
    if not files:
        raise MechirError(f"'{registry}' holds no findings yet: write `mechir run`, or give --registry DIR.")
    listed = ", ".join(map(_quoted, files))
    source = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
    connection.execute("set parquet_metadata_cache = true")
    there = {row[0] for row in connection.execute(f"describe from {source}").fetchall()}
    columns = [
        name if name in there else f"cast(null as {_SQL[TYPES[str(one.type)]]}) as {name}"
        for name, one in COLUMNS.items()
    ]
    whole = f"(select {', '.join(columns)} from {source})"
    known = connection.execute(f"select {', '.join(KNOWN)} from {whole} group by all order by max(written)").fetchall()
    names = shown(Named(*row) for row in known)
    connection.execute(f"create view findings as select {_called(names)} from {whole}")
    folder = (registry / "findings").resolve()
    connection.execute("set allowed_directories = ?", [[str(folder), _pattern(folder)]])
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return names


def _called(names: Mapping[Named, str]) -> str:
    """All columns, with the collections under their shown names."""
    other = {one: name for one, name in names.items() if name != one.id}
    if not other:
        return "*"
    cases = []
    for one, name in other.items():
        same = " and ".join(f"{column} = {_quoted(text)}" for column, text in zip(KNOWN, one, strict=True))
        cases.append(f"when {same} then {_quoted(name)}")
    return f"* replace (case {' '.join(cases)} else collection end as collection)"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _pattern(path: Path) -> str:
    """The path, written so that DuckDB, which reads every path as a pattern, takes it letter by letter.

    Raises:
        MechirError: for one that cannot be written so: in a pattern a backslash parts folders.
    """
    if "\\" in str(path) and re.search(r"[*?\[]", str(path)):
        raise MechirError(
            f"Cannot read the registry in '{path.parent}', whose path holds a backslash and one of * ? [: move it, or "
            "give --registry DIR."
        )
    return re.sub(r"([*?\[])", r"[\1]", str(path))


def _refuse_unheard(registry: Path, wanted: Mapping[str, Any]) -> None:
    """Refuses a model, collection, site or measure of which there is no finding at all."""
    for name in ("model", "collection", "measure", "site"):
        if name not in wanted:
            continue
        known = sql(f"select distinct {name} from findings order by 1", registry=registry)[name].to_list()
        given = str(meant(wanted[name], collections(registry)) if name == "collection" else wanted[name])
        if name == "model":
            prints = sql("select distinct model_fingerprint as of from findings", registry=registry)["of"]
            if given in known or (len(given) >= 6 and any(one.startswith(given) for one in prints)):
                continue
            raise MechirError(f"There is no run of model '{given}' here: there are {', '.join(known)}.")
        if given not in known:
            raise MechirError(f"There is no finding of {name} '{given}': the closest are {closest(given, known)}.")
