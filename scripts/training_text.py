"""The text that the default model is trained on: dictionaries of Debian packages, and what this project wrote.

`apt-get install wordnet-base dict-gcide dict-foldoc dict-jargon` puts the dictionaries where this file reads them.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
DICTD = Path("/usr/share/dictd")
OWN = Path(__file__).parent / "training_text"
LONG = 1 / 8  # of the dictionary passages stand among others, as an abstract's one sentence does
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
ABOUT = (  # what people ask about a thing: the teacher grades every candidate, so no template has to fit it
    "what is {}",
    "what is {}",
    "what is a {}",
    "what are {}",
    "define {}",
    "{} definition",
    "{} meaning",
    "{}",
    "what does {} mean",
    "who is {}",
    "where is {}",
    "types of {}",
    "causes of {}",
    "what causes {}",
    "symptoms of {}",
    "cost of {}",
    "what is {} used for",
    "how is {} made",
    "how does {} work",
    "how long is {}",
    "example of {}",
    "difference between {} and {other}",
    "{} vs {other}",
    "is {} a {other}",
)


@dataclass(frozen=True)
class Text:
    """A passage, what it is about, and the queries that were written for it."""

    title: str
    passage: str
    queries: tuple[str, ...] = ()


def shorten(text: str, limit: int) -> str:
    """Whole sentences of a text up to so many words, or its first words if its first sentence is longer."""
    words = text.split()
    if len(words) <= limit:
        return " ".join(words)
    cut = " ".join(words[:limit])
    return cut[: cut.rfind(". ") + 1] if cut.rfind(". ") > len(cut) // 3 else cut


def synsets(part: str) -> dict[str, tuple[list[str], str, list[tuple[str, str]]]]:
    """Offset -> words, gloss and pointers (symbol, offset) of WordNet's data file."""
    found = {}
    for line in (WORDNET / f"data.{part}").read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):
            continue
        fields, gloss = line.split(" | ", 1)
        offset, _, _, count, *rest = fields.split()
        n = int(count, 16)
        names = [re.sub(r"\(\w+\)$", "", name).replace("_", " ") for name in rest[: 2 * n : 2]]
        pointers = rest[2 * n + 1 :]
        links = [
            (pointers[k], pointers[k + 1]) for k in range(0, 4 * int(rest[2 * n]), 4) if pointers[k + 2] == part[0]
        ]
        found[offset] = (names, gloss.strip(), links)
    return found


def wordnet(generator: random.Random) -> Iterator[Text]:
    """A noun with its gloss, its other names, and what its kinds and parts are."""
    nouns = synsets("noun")
    for names, gloss, links in nouns.values():
        kinds = [nouns[offset] for symbol, offset in links if symbol in ("~", "~i")]
        parts = [nouns[offset][0][0] for symbol, offset in links if symbol in ("%p", "%m", "%s")]
        above = [nouns[offset][0][0] for symbol, offset in links if symbol in ("@", "@i")]
        definition = re.sub(r"[\"()]", "", gloss.replace('; "', '. "')).strip()
        head, *others = names
        opening = generator.choice(["{0}: {1}.", "{0} is {1}.", "{1} ({0}).", "{0}, {1}."])
        sentences = [opening.format(head, definition)]
        if others:
            sentences.append(generator.choice(["It is also called {}.", "Other names: {}."]).format(", ".join(others)))
        if above and generator.random() < 0.5:
            sentences.append(f"It is a kind of {above[0]}.")
        if parts:
            sentences.append(f"Its parts include {', '.join(parts[:5])}.")
        generator.shuffle(kinds)
        for kind_names, kind_gloss, _ in kinds[:4]:
            kind = kind_gloss.split(";")[0]
            sentences.append(generator.choice(["A {0} is {1}.", "{0}: {1}."]).format(kind_names[0], kind))
        text = shorten(" ".join(sentences), generator.choice([30, 50, 70, 90]))
        if len(text.split()) >= 9:
            yield Text(generator.choice(names), text[0].upper() + text[1:])


def dictd(name: str) -> Iterator[tuple[str, str]]:
    """Head word and raw text of every entry of a dictionary in dictd's format, each entry once."""
    data = gzip.decompress((DICTD / f"{name}.dict.dz").read_bytes())
    seen = set()
    for line in (DICTD / f"{name}.index").read_text(encoding="utf-8").splitlines():
        word, *place = line.split("\t")
        start, length = (sum(DIGITS.index(c) * 64**k for k, c in enumerate(reversed(number))) for number in place)
        if start not in seen and not word.startswith("00-database"):
            seen.add(start)
            yield word, data[start : start + length].decode("utf-8", "replace")


def clean(raw: str) -> str:
    """A dictionary's entry without its head line, etymology, sources and mark-up."""
    text = re.sub(r"\[[^\[\]]*\]", " ", re.sub(r"\[[^\[\]]*\]", " ", raw))
    text = re.sub(r"^[^\\\n]*\\[^\n]*\n", "", text)
    text = re.sub(r"\n {9,}.*?--[^\n]*(\n {30,}[^\n]*)?", " ", text)
    text = re.sub(r"--\s?[A-Z][\w. ]*|<[^>]*>|\(\d{4}[-\d]*\)|\([A-Z][\w. &]*\.\)|[{}]|\?{2,}", " ", text)
    text = re.sub(r"\b(See|Syn:|Note:|Cf\.)\s", " ", text)
    return re.sub(r"\s+([.,;])", r"\1", re.sub(r"\s+", " ", text)).strip(" ,.;") + "."


def dictionary(name: str, generator: random.Random) -> Iterator[Text]:
    for word, raw in dictd(name):
        body = clean(raw if name == "gcide" else raw.partition("\n")[2])
        if len(body.split()) < 10 or not body.isprintable():
            continue
        body = shorten(body, generator.choice([40, 60, 90]))
        named = body if generator.random() < 0.25 else f"{word}{generator.choice([': ', ' - ', '. '])}{body}"
        yield Text(word, named)


def own() -> Iterator[Text]:
    """The passages written for this project, with two queries each."""
    for file in sorted(OWN.glob("*.tsv")):
        for line in file.read_text(encoding="utf-8").splitlines():
            question, keywords, passage = line.split("\t")
            yield Text("", passage.strip(), (question.strip(), keywords.strip()))


def diluted(texts: list[Text], generator: random.Random) -> list[Text]:
    """The same texts, a quarter of them with their neighbour in the dictionary behind or before them."""
    mixed = []
    for text, neighbour in zip(texts, texts[1:] + texts[:1], strict=True):
        both = [text.passage, neighbour.passage]
        if generator.random() < 0.3:
            both.reverse()
        passage = shorten(" ".join(both), 90) if generator.random() < 0.25 else text.passage
        mixed.append(Text(text.title, passage))
    return mixed


def lengthened(texts: list[Text], generator: random.Random) -> list[Text]:
    """The same texts, an eighth of them among two or three others: as long as an abstract, and mostly off the point."""
    mixed = []
    for place, text in enumerate(texts):
        passage = text.passage
        if generator.random() < LONG:
            parts = [texts[(place + k) % len(texts)].passage for k in range(generator.choice([3, 4]))]
            generator.shuffle(parts)
            passage = " ".join(parts)
        mixed.append(Text(text.title, passage, text.queries))
    return mixed


def pool(seed: int, sizes: dict[str, int]) -> list[Text]:
    """So many texts of each source, drawn at random, and all of our own."""
    generator = random.Random(seed)
    texts = list(own())
    for name, size in sizes.items():
        found = list(wordnet(generator) if name == "wordnet" else dictionary(name, generator))
        drawn = generator.sample(diluted(found, generator), min(size, len(found)))
        texts += lengthened(drawn, random.Random(seed))
    return texts


def keywords(passage: str, common: frozenset[str], generator: random.Random, n: int) -> str:
    """So many neighbouring words of a passage that are not common, in their order."""
    words = [word for word in re.findall(r"[a-z][a-z'-]+", passage.lower()) if word not in common and len(word) > 3]
    if len(words) <= n:
        return " ".join(words)
    start = generator.randrange(len(words) - n)
    return " ".join(words[start : start + n])


def query(text: Text, other: Text, common: frozenset[str], generator: random.Random) -> str:
    """A query on a text: one written for it, a question about its title, or words of the passage."""
    if text.queries:
        return generator.choice(text.queries)
    kind = generator.random()
    if kind < 0.55:
        title = text.title if generator.random() < 0.5 else text.title.lower()
        return generator.choice(ABOUT).format(title, other=other.title).lower()
    if kind < 0.7:  # as long as a sentence, as scientists ask
        return keywords(text.passage, common, generator, generator.randint(5, 12))
    found = keywords(text.passage, common, generator, generator.randint(2, 4))
    return f"{text.title} {found}".lower() if kind < 0.85 else found
