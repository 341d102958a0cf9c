"""The files of a collection: packed or plain, and refused where lines would be cut, joined or mistaken for texts."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import mechir as mi
from mechir.errors import MechirError
from tests.models import TOY

WRITTEN = r"a CSV writer has put quotation marks around this; write id<tab>text without them, each text on one line"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the toy collection, to be spoilt."""
    return Path(shutil.copytree(TOY, tmp_path / "toy"))


def docs_of(folder: Path) -> dict[str, str]:
    return dict(mi.collection(folder).docs)


def changed(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return spoil


def with_pandas(quoting: int, **texts: str) -> Callable[[Path], None]:
    """docs.tsv as pandas writes it, with more documents."""

    def write(folder: Path) -> None:
        every = docs_of(folder) | texts
        frame = pd.DataFrame({"id": list(every), "text": list(every.values())})
        frame.to_csv(folder / "docs.tsv", sep="\t", index=False, header=False, quoting=quoting)

    return write


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed("queries.tsv", lambda b: b"qid\tquery\n" + b), r"queries.tsv, line 1: 'qid\tquery' names columns; take this line out"),
        (changed("docs.tsv", lambda b: b"id\ttext\n" + b), r"docs.tsv, line 1: 'id\ttext' names columns"),
        (changed("docs.tsv", lambda b: b"\xef\xbb\xbfdoc_id\turl\ttitle\tbody\r\n" + b), r"docs.tsv, line 1: 'doc_id\turl"),
        (changed("docs.tsv", lambda b: b'"_id"\t"title"\t"text"\n' + b), r"docs.tsv, line 1: '\"_id\""),
        (changed("queries.tsv", lambda b: b"Query ID\tQuery Text\n" + b), r"queries.tsv, line 1: 'Query ID"),
        (with_pandas(0, d9001="one line\nand another"), rf"docs.tsv, line 73: {WRITTEN}"),
        (with_pandas(0, d9001="one line\nx\tand a table"), rf"docs.tsv, line 73: {WRITTEN}"),
        (with_pandas(0, d9001="one line\n\nand another"), rf"docs.tsv, line 73: {WRITTEN}"),
        (with_pandas(0, d9001='he said "hi" to me'), rf"docs.tsv, line 73: {WRITTEN}"),
        (with_pandas(0, d9001="a\ttab"), rf"docs.tsv, line 73: {WRITTEN}"),
        (with_pandas(1), rf"docs.tsv, line 1: {WRITTEN}"),
        (changed("docs.tsv", lambda b: b.replace(b"\n", b"\r")), r"docs.tsv, line 1: a carriage return stands inside the line"),
        (changed("docs.tsv", lambda b: b + b"new\tone\rtwo\n"), r"docs.tsv, line 73: a carriage return .* 'new\\tone\\rtwo'; write each line with a newline at its end"),
        (changed("qrels.txt", lambda b: b.replace(b"\n", b"\r")), r"qrels.txt, line 1: a carriage return"),
        (changed("docs.tsv", lambda b: b.decode().encode("utf-16")), r"docs.tsv is UTF-16, not UTF-8: convert it first"),
        (changed("queries.tsv", lambda b: b.decode().encode("utf-16-be")), r"queries.tsv is UTF-16, not UTF-8"),
        (changed("qrels.txt", lambda b: b.decode().encode("utf-16-le")), r"qrels.txt is UTF-16, not UTF-8"),
        (changed("docs.tsv", lambda b: gzip.compress(b)[:-20]), r"docs.tsv cannot be unpacked \(.*\): it is cut off or broken, so get it again"),
        (changed("docs.tsv", lambda b: gzip.compress(b)[:40] + b"xxxxxxxx"), r"docs.tsv cannot be unpacked"),
        (lambda f: (f / "docs.tsv.gz").write_bytes(b""), r"'.*toy' holds both docs.tsv and docs.tsv.gz: leave one there"),
        (changed("qrels.txt", lambda b: b + b"q 1 0 d 1 1\n"), r"line 73: cannot read 'q 1 0 d 1 1'; write .*, ids without spaces"),
    ],
)  # fmt: skip
def test_a_file_whose_lines_are_not_what_they_seem_is_refused(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(MechirError, match=message):
        mi.collection(folder)


def test_numbered_documents_that_are_all_quoted_were_quoted_by_a_writer(folder: Path) -> None:
    (folder / "docs.tsv").write_text('1\t"a cold river"\n2\t"a tall tank"\n')
    with pytest.raises(MechirError, match=rf"docs.tsv, line 1: {WRITTEN}"):
        mi.collection(folder)


@pytest.mark.parametrize(
    "text",
    [
        'he said "hi" to me',
        '"To be, or not to be"',
        '"To be" is a quotation',
        '"never closed',
        'a pipe of 5"',
        'it says ""nothing"" twice',
        '"a" and "b"',
        '"""',
        "query",
    ],
)
def test_quotation_marks_of_a_text_stay(folder: Path, text: str) -> None:
    with (folder / "docs.tsv").open("a") as file:
        file.write(f'mark\ta "mark" of its own\nnew\t{text}\nlast\tanother\n')
    assert docs_of(folder)["new"] == text


@pytest.mark.parametrize("text", ['"never closed', '"To be, or not to be"', 'a pipe of 5"', 'he said "hi"'])
def test_one_text_alone_may_hold_quotation_marks(folder: Path, text: str) -> None:
    with (folder / "docs.tsv").open("a") as file:
        file.write(f"new\t{text}\nlast\tanother\n")
    assert docs_of(folder)["new"] == text


def test_a_quotation_may_go_on_in_the_next_document(folder: Path) -> None:
    with (folder / "docs.tsv").open("a") as file:
        file.write('d8001\t"So it begins\nd8002\tand so it ends."\n')
    read = docs_of(folder)
    assert (read["d8001"], read["d8002"]) == ('"So it begins', 'and so it ends."')


def test_packed_files_are_read_by_their_content(folder: Path, tmp_path: Path) -> None:
    (folder / "run.mine.txt").write_text("q1 Q0 d0101 1 2 t\nq1 Q0 d0102 2 1 t\n")
    plain = mi.collection(folder)
    pairs = plain.pairs(), plain.pairs(run="mine")
    for file in list(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = mi.collection(folder)
    assert packed.hash == plain.hash
    assert (packed.pairs(), packed.pairs(run="mine")) == pairs
    assert packed.pairs(run=folder / "run.mine.txt.gz") == packed.pairs(run="run.mine.txt") == pairs[1]
    assert mi.diagnostic("tfc1", folder).id == "tfc1 of toy"
    with pytest.raises(MechirError, match=r"There is no run file 'x', and 'toy' has run.mine.txt.gz: give the path"):
        packed.pairs(run="x")
    (folder / "run.mine.txt").write_text("")
    with pytest.raises(MechirError, match=r"holds both run.mine.txt and run.mine.txt.gz: leave one there"):
        packed.pairs(run="mine")
    shutil.rmtree(folder)
    shutil.copytree(TOY, folder)
    for name in ("queries.tsv", "docs.tsv", "qrels.txt"):  # packed without a name that says so
        (folder / name).write_bytes(gzip.compress((folder / name).read_bytes()))
    assert mi.collection(folder).hash == plain.hash


def test_windows_line_ends_are_line_ends(folder: Path) -> None:
    for name in ("queries.tsv", "docs.tsv", "qrels.txt"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))
    assert mi.collection(folder).hash == mi.collection(TOY).hash
