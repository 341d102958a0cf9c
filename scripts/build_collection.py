"""Builds mechir/data/embedded from scripts/collection/*.txt, and refuses whatever is not as it claims to be.

    python scripts/build_collection.py             # validates everything, then writes the four files
    python scripts/build_collection.py FILE ...    # validates these sources alone and writes nothing

A source holds queries, each a line `? QUERY` with its twelve passages below it, a line `GRADE TAG | TEXT` each.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, zip_longest
from pathlib import Path

import Stemmer
from bm25s.stopwords import STOPWORDS_EN_PLUS
from wordfreq import zipf_frequency

HERE = Path(__file__).parent
SOURCES = sorted((HERE / "collection").glob("*.txt"))
OUT = HERE.parent / "mechir" / "data" / "embedded"
STOP = frozenset(STOPWORDS_EN_PLUS)
NEGATIONS = frozenset(
    [
        "no",
        "not",
        "never",
        "none",
        "nothing",
        "neither",
        "nor",
        "cannot",
        "without",
        "hardly",
        "nobody",
        "myth",
        "false",
    ]
)
GRADES = {  # the grades that each tag may have
    "exact": "0123",
    "paraphrase": "23",
    "high-tf": "0",
    "rare-only": "01",
    "common-only": "01",
    "negated": "01",
    "diluted": "123",
    "dense": "23",
}
EVERYWHERE = ("exact", "paraphrase", "high-tf", "rare-only", "common-only")
STEM = Stemmer.Stemmer("english")


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower().replace("\u2019", "'"))


def stems(text: str) -> list[str]:
    return STEM.stemWords([word.removesuffix("'s") for word in words(text) if word not in STOP])


@dataclass(frozen=True)
class Query:
    """A query and its passages."""

    text: str
    where: str
    passages: list[Passage]

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(stems(self.text))

    @cached_property
    def rarest(self) -> str:
        """The stem of its content word that is rarest in English."""
        content = [word.removesuffix("'s") for word in words(self.text) if word not in STOP]
        return STEM.stemWord(min(content, key=lambda word: zipf_frequency(word, "en")))


@dataclass(frozen=True)
class Passage:
    """A passage, its grade for its query, and why it is there."""

    text: str
    grade: int
    tag: str
    where: str

    @property
    def id(self) -> str:
        return "p" + hashlib.sha256(self.text.encode()).hexdigest()[:8]

    def counts(self, query: Query) -> Counter[str]:
        """How often each content stem of the query occurs."""
        return Counter(stem for stem in stems(self.text) if stem in query.stems)


def read(source: Path) -> list[Query]:
    queries: list[Query] = []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{source.name}:{number}"
        if line.startswith("? "):
            queries.append(Query(line[2:].strip(), where, []))
        elif line.strip():
            match = re.fullmatch(r"([0-3]) ([a-z-]+) \| (\S.*\S)", line.strip())
            if match is None or not queries:
                raise SystemExit(f"{where}: neither '? QUERY' nor 'GRADE TAG | TEXT'.")
            grade, tag, text = match.groups()
            queries[-1].passages.append(Passage(text, int(grade), tag, where))
    return queries


def wrong_query(query: Query) -> list[str]:
    """What is wrong with a query and the make-up of its passages."""
    grades, tags = Counter(p.grade for p in query.passages), {p.tag for p in query.passages}
    checks = [
        (len(query.passages) == 12, f"{len(query.passages)} passages, not 12"),
        (all(grades[grade] >= 2 for grade in (3, 2, 1)) and grades[0] >= 4, f"grades {dict(grades)}"),
        (len(query.stems) >= 2, "fewer than two content words"),
        (tags >= set(EVERYWHERE), f"lacks {', '.join(sorted(set(EVERYWHERE) - tags))}"),
        (len(tags) >= 6, f"only {len(tags)} of the {len(GRADES)} tags"),
    ]
    return [f"{query.where}: {problem}" for right, problem in checks if not right]


def wrong_passage(passage: Passage, query: Query) -> list[str]:
    """What is wrong with a passage: its length, its grade, or a tag that is not true."""
    counts, n = passage.counts(query), len(words(passage.text))
    share = counts.total() / max(n, 1)
    plain, others = words(passage.text), set(counts) - {query.rarest}
    negation = any(word in NEGATIONS or word.endswith("n't") for word in plain)
    true = {
        "exact": (set(counts) == set(query.stems), f"lacks {', '.join(sorted(query.stems - set(counts)))}"),
        "paraphrase": (not counts, f"shares {', '.join(counts)}"),
        "high-tf": (max(counts.values(), default=0) >= 4, "no query word four times"),
        "rare-only": (set(counts) == {query.rarest}, f"has {dict(counts)}, not '{query.rarest}' alone"),
        "common-only": (bool(others) and query.rarest not in counts, f"has {dict(counts)}"),
        "negated": (query.rarest in counts and bool(others) and negation, f"has {dict(counts)}, negation {negation}"),
        "diluted": (n >= 70 and 0 < share <= 0.05, f"{n} words, {share:.1%} of them the query's"),
        "dense": (n <= 35 and share >= 0.12, f"{n} words, {share:.1%} of them the query's"),
    }
    if passage.tag not in true:
        return [f"{passage.where}: unknown tag '{passage.tag}'"]
    right, problem = true[passage.tag]
    checks = [
        (20 <= n <= 90, f"{n} words, not 20 to 90"),
        (str(passage.grade) in GRADES[passage.tag], f"grade {passage.grade} for {passage.tag}"),
        ("\t" not in passage.text, "a tab"),
        (right, f"no {passage.tag}: {problem}"),
    ]
    return [f"{passage.where}: {problem}" for fine, problem in checks if not fine]


def near_duplicates(passages: list[Passage]) -> list[str]:
    """Pairs of passages that share more than an eighth of their runs of four words."""
    runs = {}
    for passage in passages:
        plain = words(passage.text)
        runs[passage.where] = set(zip(plain, plain[1:], plain[2:], plain[3:], strict=False))
    pairs = ((a, b) for a, b in combinations(runs, 2) if not runs[a].isdisjoint(runs[b]))
    return [f"{a} and {b}: near-duplicates" for a, b in pairs if len(runs[a] & runs[b]) > len(runs[a] | runs[b]) / 8]


def problems(queries: list[Query]) -> list[str]:
    passages = [passage for query in queries for passage in query.passages]
    ids = Counter(passage.id for passage in passages)
    texts = Counter(query.text.lower() for query in queries)
    return [
        *(problem for query in queries for problem in wrong_query(query)),
        *(problem for query in queries for passage in query.passages for problem in wrong_passage(passage, query)),
        *near_duplicates(passages),
        *(f"{key}: twice" for counted in (ids, texts) for key, n in counted.items() if n > 1),
    ]


def wrong_whole(queries: list[Query]) -> list[str]:
    """What is wrong with the collection as a whole: too small, or a tag too rare to be measured by itself."""
    tags = Counter(passage.tag for query in queries for passage in query.passages)
    small = [f"only {len(queries)} queries, not 40"] if len(queries) < 40 else []
    return small + [f"only {tags[tag]} passages are tagged {tag}" for tag in GRADES if tags[tag] < 20]


def write(queries: list[Query], out: Path) -> None:
    numbered = {f"q{place:02}": query for place, query in enumerate(queries, start=1)}
    docs = {passage.id: passage.text for query in queries for passage in query.passages}
    judged = sorted((qid, p.id, p, query) for qid, query in numbered.items() for p in query.passages)
    design = ["query_id\tdoc_id\ttag\twords\tquery_words\tdistinct_query_words\tmax_tf\trarest"]
    for query_id, doc_id, passage, query in judged:
        counts = passage.counts(query)
        figures = (len(words(passage.text)), counts.total(), len(counts), max(counts.values(), default=0))
        design.append("\t".join(map(str, (query_id, doc_id, passage.tag, *figures, query.rarest))))
    files = {
        "queries.tsv": [f"{query_id}\t{query.text}" for query_id, query in numbered.items()],
        "docs.tsv": [f"{doc_id}\t{text}" for doc_id, text in sorted(docs.items())],
        "qrels.txt": [f"{query_id} 0 {doc_id} {passage.grade}" for query_id, doc_id, passage, _ in judged],
        "design.tsv": design,
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(sources: list[Path], out: Path | None) -> None:
    # In turn from each source, so that the first queries are on all subjects.
    queries = [query for row in zip_longest(*map(read, sources)) for query in row if query]
    wrong = problems(queries) + (wrong_whole(queries) if out else [])
    if wrong:
        raise SystemExit("\n".join([*wrong, f"{len(wrong)} problems; nothing was written."]))
    if out:
        write(queries, out)
    lengths = sorted(len(words(passage.text)) for query in queries for passage in query.passages)
    tags = Counter(passage.tag for query in queries for passage in query.passages)
    print(f"{len(queries)} queries, {len(lengths)} passages of {lengths[0]} to {lengths[-1]} words; {dict(tags)}")


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    main(given or SOURCES, None if given else OUT)
