"""Opens collections: a directory, a dataset of ir_datasets, tables in memory, or judged pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mechir import irds, trec_files
from mechir.columns import cell, chosen_columns, table_rows
from mechir.errors import MechirError, beside
from mechir.judged_collection import IN_MEMORY, Collection
from mechir.pair import EASY, Pair
from mechir.rules import DUPLICATES, LEAVE_OUT, Qrels, one_grade_each, one_text_each, refuse_options

FILES = ("queries.tsv", "docs.tsv", "qrels.txt")
EMBEDDED = Path(__file__).parent / "data" / "embedded"


def collection(
    name_or_path: Any = None,
    *,
    queries: Any = None,
    docs: Any = None,
    qrels: Any = None,
    name: str = IN_MEMORY,
    duplicates: str = DUPLICATES[0],
    leave_out: float | int = LEAVE_OUT,
) -> Collection:
    """Opens a directory with queries.tsv, docs.tsv and qrels.txt, an ir_datasets id, "embedded", or tables in memory.

    The embedded collection, which ships, was written for mechir: each query has 12 judged passages of known make-up
    (`mechir/data/embedded/design.tsv`; see `mechir/data/embedded/DATASHEET.md`).

    Args:
        name_or_path: the directory, whose files may be packed (`docs.tsv.gz`), the id, or the dataset of ir_datasets.
        queries: in the place of a directory, a mapping from id to text, or a frame with `qid` (or `query_id`) and
            `query` (or `text`).
        docs: a mapping from id to text, or a frame with `docno` (or `doc_id`) and `text` (or `document`, `passage`).
        qrels: a mapping query id -> document id -> grade, or a frame with `qid`, `docno` and `label` (or `grade`,
            `rel`, `relevance`).
        name: the id of a collection of such tables.
        duplicates: the rule for a pair that is judged twice, with different grades: "refuse", or "max" for the largest.
        leave_out: the share of judgments that may name missing or empty documents or unknown queries, of judged queries
            that may be empty, and of lines of a run: up to it they are left out and counted. Above it, they are
            refused: of a directory now, of ir_datasets when the first pool is made.

    Raises:
        MechirError: for anything else, and for files that contradict themselves.
    """
    refuse_options(duplicates, leave_out)
    leave_out = float(leave_out)
    tables = {"queries": queries, "docs": docs, "qrels": qrels}
    missing = [part for part, table in tables.items() if table is None]
    if name_or_path is None and len(missing) < len(tables):
        if missing:
            raise MechirError(f"A collection of tables lacks {' and '.join(missing)}: give queries=, docs= and qrels=.")
        return _tables(tables, name, duplicates, leave_out)
    if len(missing) < len(tables):
        raise MechirError("A collection has a name or tables, and you gave both: leave one of them out.")
    if irds.is_opened(name_or_path):
        if not hasattr(name_or_path, "dataset_id"):
            raise MechirError(
                "This dataset of ir_datasets has no id, so its runs could not be told apart: give queries=, docs= and "
                "qrels=, such as queries=dataset.queries_iter()."
            )
        return _dataset(name_or_path.dataset_id(), name_or_path, duplicates, leave_out)
    if not isinstance(name_or_path, str | Path):
        raise MechirError(
            f"{name_or_path!r:.60} names no collection: write the path of a directory, an ir_datasets id, 'embedded', "
            "or queries=, docs= and qrels=."
        )
    if str(name_or_path) == EMBEDDED.name:
        return replace(_directory(EMBEDDED, duplicates, leave_out), ships=True, easy_negatives=20)
    text, folder = str(name_or_path), Path(name_or_path).expanduser()
    if folder.is_dir():
        return _directory(folder, duplicates, leave_out)
    if folder.is_file() or text.startswith((".", "/", "~")):
        raise _no_directory(text, folder)
    return _dataset(text, irds.open_dataset(text), duplicates, leave_out)


def _no_directory(text: str, folder: Path) -> MechirError:
    if folder.is_file():
        return MechirError(
            f"'{text}' is a file: read it, such as by pandas.read_csv, and give the frame, or write the path of a "
            "directory with queries.tsv, docs.tsv and qrels.txt."
        )
    return MechirError(
        f"There is no directory '{text}': write the path of a collection or an ir_datasets id{beside(folder)}."
    )


def of_pairs(pairs: Iterable[Pair], name: str = IN_MEMORY) -> Collection:
    """A collection of judged pairs, whose pool they are: those of grade -1 are its easy negatives.

    Raises:
        MechirError: for a pair without a grade, an id with two texts, or a pair with two grades.
    """
    listed = list(pairs)
    if unjudged := [pair for pair in listed if pair.grade is None]:
        raise MechirError(
            f"{len(unjudged)} of {len(listed)} pairs have no grade, {unjudged[0]} first: an experiment takes judged "
            "pairs, so give a column label, or score them by model.score."
        )
    if below := [pair for pair in listed if pair.grade is not None and pair.grade < EASY]:
        raise MechirError(
            f"{below[0]} has grade {below[0].grade}: an experiment takes grades of 0 and more, and -1 for a document "
            "that was drawn and not judged."
        )
    tables: dict[str, Any] = {
        # rows of a frame repeat their query and their document, which is no mistake
        "queries": list(dict.fromkeys((pair.query_id, pair.query) for pair in listed)),
        "docs": list(dict.fromkeys((pair.doc_id, pair.document) for pair in listed)),
        "qrels": [(pair.query_id, pair.doc_id, pair.grade) for pair in listed if pair.grade != EASY],
    }
    made = _tables(tables, name, DUPLICATES[0], LEAVE_OUT)
    easy: dict[str, tuple[str, ...]] = {}
    for pair in dict.fromkeys(listed):
        if pair.grade == EASY:
            easy[pair.query_id] = (*easy.get(pair.query_id, ()), pair.doc_id)
    hash_ = _digest([made.hash], _judgments({key: dict.fromkeys(ids, EASY) for key, ids in easy.items()}))
    return replace(made, easy=easy, hash=hash_) if easy else made


def _tables(tables: Mapping[str, Any], name: Any, duplicates: str, leave_out: float) -> Collection:
    if not isinstance(name, str) or not name.strip():
        raise MechirError(f"name={name!r} names no collection: write a text, such as 'my-queries'.")
    queries, again = one_text_each(_texts_of(tables["queries"], "queries", "query_id"), "query", "queries, row")
    docs, more = one_text_each(_texts_of(tables["docs"], "docs", "doc_id"), "document", "docs, row")
    qrels, twice = one_grade_each(_grades_of(tables["qrels"]), "qrels, row", duplicates)
    digest, repeated = _hash_of_directory(queries, docs, qrels), (*again, *more, *twice)
    made = Collection(
        name, queries, trec_files.Texts(docs), qrels, digest, duplicates=duplicates, leave_out=leave_out, again=repeated
    )
    _ = made.judgments  # raises for too many judgments that cannot be used
    return made


def _texts_of(table: Any, kind: str, key: str) -> Iterator[tuple[int, str, str]]:
    """The number, id and text of each row of a table of texts."""
    text = "query" if kind == "queries" else "document"
    for place, item in enumerate(_items(table, kind)):
        row = dict(zip((key, text), item, strict=True)) if isinstance(item, tuple) and len(item) == 2 else item
        if not isinstance(row, Mapping):
            raise _no_row(kind, item, f"({key}, text)")
        if text == "query" and "query" not in row and "text" in row:
            row = {**row, "query": row["text"]}
        if text == "document" and "title" in row:
            raise MechirError("docs has a title beside the text: join them in one column, or drop the title.")
        columns = chosen_columns(list(row), (key, text), (), kind)
        yield place, *(cell(row, columns[field], field, f"{kind}, row {place}") for field in (key, text))


def _grades_of(table: Any) -> Iterator[tuple[int, str, str, int]]:
    """The number, ids and grade of each row of judgments."""
    fields = ("query_id", "doc_id", "grade")
    nested = isinstance(table, Mapping)
    if nested and not all(isinstance(grades, Mapping) for grades in table.values()):
        raise MechirError("qrels is a mapping without mappings inside: write {query_id: {doc_id: grade}}, or a frame.")
    rows = ((key, doc_id, grade) for key, grades in table.items() for doc_id, grade in grades.items()) if nested else ()
    for place, item in enumerate(rows if nested else _items(table, "qrels")):
        row = dict(zip(fields, item, strict=True)) if isinstance(item, tuple) and len(item) == 3 else item
        if not isinstance(row, Mapping):
            raise _no_row("qrels", item, "(query_id, doc_id, grade)")
        columns, where = chosen_columns(list(row), fields, (), "qrels"), f"qrels, row {place}"
        query_id, doc_id, grade = (cell(row, columns[field], field, where) for field in fields)
        if grade is None:
            raise MechirError(f"{where} has no grade: judge the pair, or leave the row out.")
        yield place, query_id, doc_id, grade


def _items(table: Any, kind: str) -> Iterator[Any]:
    """The rows of a table: mappings by column, or tuples."""
    if (rows := table_rows(table)) is not None:
        return rows
    if isinstance(table, Mapping):
        return iter(table.items())
    if isinstance(table, str | bytes) or not isinstance(table, Iterable):
        raise _no_row(kind, table, "...")
    return (_by_name(item) for item in table)


def _by_name(item: Any) -> Any:
    """A named tuple by its fields, with the text of a document of ir_datasets as it reads it, title and all."""
    if not hasattr(item, "_asdict"):
        return item
    row = item._asdict()
    if "doc_id" in row and hasattr(item, "default_text"):
        return {"doc_id": row["doc_id"], "text": item.default_text() or ""}
    return row


def _no_row(kind: str, item: Any, row: str) -> MechirError:
    shown = repr(item)[:40] if isinstance(item, str | int | float | tuple | None) else f"a {type(item).__name__}"
    columns = {"queries": "qid and query", "docs": "docno and text", "qrels": "qid, docno and label"}[kind]
    return MechirError(f"{kind} holds {shown}: give a mapping, a frame with {columns}, or a list of tuples {row}.")


def _dataset(name: str, dataset: Any, duplicates: str, leave_out: float) -> Collection:
    has = {"queries": dataset.has_queries(), "judgments": dataset.has_qrels()}
    if lacking := [part for part in has if not has[part]]:
        raise MechirError(
            f"'{name}' has no {' and no '.join(lacking)} in ir_datasets: write the id of one of its judged subsets, "
            "such as 'msmarco-passage/trec-dl-2019/judged' of 'msmarco-passage'."
        )
    lines = list(irds.queries(name, dataset))
    queries, again = one_text_each(lines, "query", f"'{name}', query")
    qrels, twice = one_grade_each(irds.qrels(name, dataset), f"'{name}', judgment", duplicates)
    digest = _hash_of_dataset(name, {key: text for _, key, text in lines}, qrels)
    docs = irds.Documents(name, dataset)
    return Collection(
        name, queries, docs, qrels, digest, duplicates=duplicates, leave_out=leave_out, again=(*again, *twice)
    )


def _directory(folder: Path, duplicates: str, leave_out: float) -> Collection:
    files = {name: trec_files.stored(folder, name) for name in FILES}
    if missing := [name for name, file in files.items() if file is None]:
        raise MechirError(f"'{folder}' is no collection: it holds no {' and no '.join(missing)}.")
    queries_file, docs_file, qrels_file = (file for file in files.values() if file is not None)
    queries, again = one_text_each(trec_files.read_texts(queries_file, "query"), "query", f"{queries_file}, line")
    docs, more = one_text_each(trec_files.read_texts(docs_file, "document"), "document", f"{docs_file}, line")
    qrels, twice = one_grade_each(trec_files.read_qrels(qrels_file), f"{qrels_file}, line", duplicates)
    digest = _hash_of_directory(queries, docs, qrels)
    name, texts, repeated = folder.resolve().name, trec_files.Texts(docs), (*again, *more, *twice)
    made = Collection(
        name, queries, texts, qrels, digest, folder, duplicates=duplicates, leave_out=leave_out, again=repeated
    )
    _ = made.judgments  # raises for too many judgments that cannot be used
    return made


def _hash_of_directory(
    queries: Mapping[str, str], docs: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]]
) -> str:
    """The hash of ids and texts, and of the judgments of queries and documents that exist."""
    asked_for = ((query_id, grades) for query_id, grades in qrels.items() if query_id in queries)
    judged = {query_id: {key: grade for key, grade in grades.items() if key in docs} for query_id, grades in asked_for}
    return _digest(_texts(queries), _texts(docs), _judgments(judged))


def _hash_of_dataset(name: str, queries: Mapping[str, str], qrels: Qrels) -> str:
    """The hash of the id in ir_datasets, queries and judgments: the documents are not read."""
    return _digest([name], _texts(queries), _judgments(qrels))


def _texts(texts: Mapping[str, str]) -> Iterator[str]:
    return (f"{key}\t{text}" for key, text in texts.items())


def _judgments(qrels: Qrels) -> Iterator[str]:
    return (f"{query_id}\t{sorted(grades.items())}" for query_id, grades in qrels.items())


def _digest(*parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for line in part:
            digest.update(line.encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()
