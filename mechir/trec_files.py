"""Strict readers of queries, documents, judgments and runs: a line that cannot be read is named by file and number."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from mechir.errors import MechirError
from mechir.rules import grade_of

GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
COLUMN = re.compile(
    r"(query|topic|doc|document|passage|corpus|abstract|sentence|q|p|d)?(id|no|num|number|text)s?"
    r"|sentences?|title|contents?|body|abstract|passages?|quer(y|ies)|questions?|topics?|documents?|docs?|url|index"
)
"""Names of columns, in lower case, without `_`, `-` and spaces."""
_FIELD = re.compile(r'(?:"(?P<inside>(?:[^"]|"")*+)"|[^"\t\n]*+)(?P<end>[\t\n]|\Z)')
"""A field of a CSV writer, with tabs between: every quotation mark belongs to the quoting."""


class Texts(dict[str, str]):
    """Id -> text of documents in memory, in the order of their file."""

    def many(self, ids: Iterable[str]) -> dict[str, str]:
        """Id -> text of these documents, without those that do not exist."""
        return {doc_id: self[doc_id] for doc_id in ids if doc_id in self}

    def at(self, places: Iterable[int]) -> list[tuple[str, str]]:
        """Id and text of the documents at these places of the order."""
        ids = [self._ids[place] for place in places]
        return [(doc_id, self[doc_id]) for doc_id in ids]

    @cached_property
    def _ids(self) -> list[str]:
        return list(self)


def read_texts(file: Path, kind: str) -> Iterator[tuple[int, str, str]]:
    """The number, id and text of `id<tab>text` lines, in file order; a text may be empty.

    Raises:
        MechirError: for a line without a tab, an empty id, a line of column names, or CSV's quotation marks.
    """
    for number, line in numbered_lines(file, columns=True):
        key, tab, text = line.partition("\t")
        key = key.strip()
        if not tab or not key:
            raise MechirError(f"{file}, line {number}: cannot read '{line[:60]}'; write {kind}_id<tab>text.")
        yield number, key, text


def read_qrels(file: Path) -> Iterator[tuple[int, str, str, int]]:
    """The number, ids and grade of lines `query_id 0 doc_id grade`; raises for a malformed line."""
    for number, line in numbered_lines(file):
        try:
            query_id, _, doc_id, written = line.split()
            grade = grade_of(written)
        except ValueError:
            raise MechirError(
                f"{file}, line {number}: cannot read '{line[:60]}'; write query_id 0 doc_id grade, ids without spaces."
            ) from None
        yield number, query_id, doc_id, grade


def run_file(run: str | Path, folder: Path | None, name: str) -> Path:
    """The file of a run, given by its path or by its name in a collection's folder (`bm25` is `run.bm25.txt`).

    Raises:
        MechirError: when there is no such file; `name` is the collection's.
    """
    if Path(run).is_file():
        return Path(run)
    if folder is not None and Path(run).name == str(run):
        inside = [stored(folder, file) for file in (str(run), f"run.{run}.txt")]
        if file := inside[0] or inside[1]:
            return file
    here = sorted(file.name for file in folder.glob("run.*.txt*")) if folder is not None else []
    raise MechirError(
        f"There is no run file '{run}', and '{name}' has {', '.join(here) or 'none of its own'}: give the path of one."
    )


def read_run(file: Path) -> dict[str, list[str]]:
    """Query id -> document ids, best first, of a TREC run (`query_id Q0 doc_id rank score tag`).

    The order is that of the scores, as in trec_eval; equal scores keep the order of the ranks.

    Raises:
        MechirError: for a file that cannot be read, a malformed line, or a document twice for one query.
    """
    scored: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in numbered_lines(file):
        try:
            query_id, _, doc_id, rank, score, _ = line.split()
            place = (-float(score), int(rank))
            if not math.isfinite(place[0]):
                raise ValueError
        except ValueError:
            raise MechirError(
                f"{file}, line {number}: cannot read '{line[:60]}'; write query_id Q0 doc_id rank score tag, "
                "ids without spaces."
            ) from None
        if doc_id in scored.setdefault(query_id, {}):
            raise MechirError(f"{file}, line {number}: document '{doc_id}' stands twice for query '{query_id}'.")
        scored[query_id][doc_id] = place
    return {query_id: sorted(places, key=lambda doc_id: places[doc_id]) for query_id, places in scored.items()}


def stored(folder: Path, name: str) -> Path | None:
    """The file of this name, plain or with `.gz` behind it; None if there is neither.

    Raises:
        MechirError: where there are both.
    """
    both = [file for file in (folder / name, folder / f"{name}.gz") if file.is_file()]
    if len(both) == 2:
        raise MechirError(f"'{folder}' holds both {name} and {name}.gz: leave one there.")
    return both[0] if both else None


def numbered_lines(file: Path, *, columns: bool = False) -> Iterator[tuple[int, str]]:
    """Yields numbered lines, split at newlines alone: texts may hold any other character, exotic separators too.

    Args:
        file: plain or packed by gzip, whatever its name.
        columns: whether lines are texts in columns, so that a line of names and CSV's quotation marks are refused.

    Raises:
        MechirError: for a file that cannot be unpacked, is not UTF-8 or has other line ends.
    """
    text = _text(file)
    if columns:
        _refuse_csv(file, text)
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if "\r" in line:
            raise MechirError(
                f"{file}, line {number}: a carriage return stands inside the line {line[:30]!a}; "
                "write each line with a newline at its end and none inside."
            )
        if line.startswith("\ufeff"):
            raise MechirError(
                f"{file}, line {number}: a byte order mark stands inside the file, where two were joined; take it out."
            )
        if line:
            yield number, line


def _text(file: Path) -> str:
    """The whole file, unpacked and decoded."""
    data = file.read_bytes()
    try:
        data = gzip.decompress(data) if data.startswith(GZIP) else data
    except (EOFError, OSError, zlib.error) as error:
        raise MechirError(f"{file} cannot be unpacked ({error}): it is cut off or broken, so get it again.") from error
    start = data[:64]
    if data.startswith(UTF16) or (len(start) > 3 and not (any(start[::2]) and any(start[1::2]))):
        raise MechirError(f"{file} is UTF-16, not UTF-8: convert it first.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MechirError(f"{file} is not UTF-8 (byte {error.start}): convert it first.") from error


def _refuse_csv(file: Path, text: str) -> None:
    first = text.partition("\n")[0].rstrip("\r")
    names = [re.sub(r"[\s_\"#-]", "", field).lower() for field in first.split("\t")]
    counted = names == [str(place) for place in range(len(names))]  # as pandas calls columns without names
    if len(names) > 1 and (counted or all(map(COLUMN.fullmatch, names))):
        raise MechirError(f"{file}, line 1: '{first[:60]}' names columns; take this line out.")
    if '"' in text and (line := _quoted_line(text.replace("\r\n", "\n"))):
        raise MechirError(
            f"{file}, line {line}: a CSV writer has put quotation marks around this; write id<tab>text without them, "
            "each text on one line."
        )


def _quoted_line(text: str) -> int | None:
    """The first line quoted by a CSV writer, or None where the quotation marks of the file belong to its texts.

    A CSV writer doubles the marks inside a text. Its quoting shows by a newline, a tab or doubled marks inside it, by
    an id in quotes, or by quotes around all of several texts.
    """
    place, line, begins, texts, whole = 0, 1, True, 0, 0
    signs, broken, shapes = [], [], set()
    while place < len(text):
        field = _FIELD.match(text, place)
        if field is None:
            return None
        inside = field["inside"] or ""
        if begins:
            shapes.add(_shape(field[0].rstrip("\t\n")))
        else:
            texts, whole = texts + 1, whole + (field["inside"] is not None)
        if (begins and inside) or '"' in inside or ("\t" in inside and "\n" not in inside):
            signs.append(line)
        elif "\n" in inside:
            broken.append((line, inside.split("\n")[1:]))
        line += field[0].count("\n")
        begins, place = field["end"] == "\n", field.end()
    # Where every line in between begins with an id like the others, two texts have a mark each.
    signs += [
        at for at, rest in broken if any("\t" not in row or _shape(row.split("\t")[0]) not in shapes for row in rest)
    ]
    return min(signs) if signs else 1 if texts == whole > 1 else None


def _shape(key: str) -> str:
    """An id with its letters and numbers made alike: `d0101` and `d7` are `a9`."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", key))
