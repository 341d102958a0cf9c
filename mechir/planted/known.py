"""The ground truth of a planted model: its circuit, its closed form, and pairs that show it."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mechir.circuits import Circuit, Edge, Source
from mechir.encoder.hooked import HookedEncoder
from mechir.errors import MechirError
from mechir.inputs import as_pairs
from mechir.pair import Pair, Pairs
from mechir.planted.design import CONTENT_WORDS, STOP_WORDS, WORDS, Design
from mechir.planted.model import PlantedEncoder
from mechir.planted.weights import AGGREGATOR, BACKUP, GATE_LAYER, MATCHING, PATTERN_TRAP, WRITE_TRAP
from mechir.sites import Head, Mlp, Resid, Score

COUNTERFACTUALS = ("tf", "query")
DOCUMENTS = 20
"""Documents per query among the pairs."""
TERMS = 3
"""Content words in each query, beside one stop word."""
MOST = 5
"""The highest term frequency."""


class Truth(NamedTuple):
    """The circuit of a counterfactual: the edges that matter, and the heads that only look as if they did."""

    edges: Circuit
    traps: frozenset[Head]

    @property
    def sites(self) -> frozenset[Source]:
        """The heads and MLPs that matter."""
        return self.edges.sites


def truth(model: HookedEncoder, counterfactual: str) -> Truth:
    """The sites and edges that change the score of `model` under a counterfactual; no others do.

    `Resid(0)` as a source is the embedding. `"tf"`: the path of a query term's frequency in the document. `"query"`:
    the path of the exchange of a query term for a stop word (the match, the gate and the IDF). With a backup head both
    ways are given; each hides the other from any ablation of a single site.

    Raises:
        MechirError: when `model` is not planted or the counterfactual unknown.
    """
    matching = [MATCHING, BACKUP] if _design(model, counterfactual).backup else [MATCHING]
    gate, aggregator, embedding = Mlp(GATE_LAYER), Head(*AGGREGATOR), Resid(0)
    edges = {Edge(gate, Head(*AGGREGATOR, "v")), Edge(aggregator, Score())}
    edges |= {Edge(Head(*place), gate) for place in matching}
    changed = "k" if counterfactual == "tf" else "q"
    edges |= {Edge(embedding, Head(*place, changed)) for place in matching}
    if counterfactual == "query":
        edges |= {Edge(embedding, gate), Edge(embedding, Head(*AGGREGATOR, "k"))}
    return Truth(Circuit(edges), frozenset({Head(*PATTERN_TRAP), Head(*WRITE_TRAP)}))


def bm25_scores(model: HookedEncoder, pairs: Any) -> Float[np.ndarray, "pair"]:
    """The closed form that `model` computes: sum idf tf / (tf + k1) / (sink + sum idf).

    The numerator sums over the query's content words, the denominator over all its words. The model differs by
    exp(-a) per unmatched document token, and by its LayerNorms.

    Raises:
        MechirError: when `model` is not planted, or a pair holds a word that it does not know.
    """
    pairs = as_pairs(pairs)
    design = _design(model)
    scores = []
    for pair in pairs:
        query, document = pair.query.lower().split(), pair.document.lower().split()
        unknown = sorted({*query, *document} - {*WORDS})
        if unknown:
            raise MechirError(f"The planted model does not know '{unknown[0]}' ({pair}): take words of planted.pairs.")
        counts = {word: document.count(word) for word in query}
        gained = sum(design.idf[w] * counts[w] / (counts[w] + design.k1) for w in query if w not in STOP_WORDS)
        scores.append(gained / (design.sink + sum(design.idf[word] for word in query)))
    return np.array(scores)


def pairs(model: HookedEncoder, *, n: int = 200, counterfactual: str = "tf", seed: int = 0) -> list[tuple[Pair, Pair]]:
    """Pairs (base, donor) of equal length that differ in one thing, 20 documents to a query.

    A query holds three content words and a stop word, a document each of them 0 to 5 times and filler, shuffled; the
    frequencies of no two documents of a query are alike.

    Under the counterfactual `"tf"` the donor's document has filler wherever the base's has one of its query terms,
    under `"query"` the donor's query has a stop word in place of one of its terms that the document has.

    Raises:
        MechirError: when `model` is not planted, the counterfactual unknown, or n below 1.
    """
    _design(model, counterfactual)
    if n < 1:
        raise MechirError(f"n={n} asks for nothing: write 1 or more.")
    made: list[tuple[Pair, Pair]] = []
    for query_number in range(-(-n // DOCUMENTS)):
        generator = np.random.default_rng([seed, query_number])
        terms = generator.choice(CONTENT_WORDS, TERMS, replace=False).tolist()
        stop = str(generator.choice(STOP_WORDS))
        grid = np.stack(np.meshgrid(*[np.arange(MOST + 1)] * TERMS), -1).reshape(-1, TERMS)[1:]
        for number, counts in enumerate(generator.choice(grid, DOCUMENTS, replace=False)):
            base = Pair(
                " ".join([terms[0], stop, *terms[1:]]),
                " ".join(_document(terms, counts.tolist(), stop, generator)),
                f"q{query_number}",
                f"q{query_number}d{number}",
            )
            term = str(generator.choice([t for t, count in zip(terms, counts, strict=True) if count]))
            made.append((base, _donor(base, term, counterfactual, generator)))
    return made[:n]


def graded(model: HookedEncoder, n: int = 8, documents: int = 2, seed: int = 0) -> Pairs:
    """Judged pairs of n queries, three versions of each document, all with the query's stop word.

    Grade 3 holds all terms of the query, grade 0, the hard negative, one of them, and grade 1, the weak one, none.
    """
    made = []
    for base, _ in pairs(model, n=DOCUMENTS * n, seed=seed):
        if int(base.doc_id.split("d")[1]) >= documents:
            continue
        terms = [word for word in base.query.split() if word not in STOP_WORDS]
        filler = itertools.cycle(word for word in CONTENT_WORDS if word not in base.query.split())
        words = base.document.split()
        first = next(term for term in terms if term in words)
        for grade, dropped in ((3, set()), (0, {*terms} - {first}), (1, {*terms})):
            document = " ".join(next(filler) if word in dropped else word for word in words)
            made.append(Pair(base.query, document, base.query_id, f"{base.doc_id}g{grade}", grade))
    return Pairs(made)


def _document(terms: list[str], counts: list[int], stop: str, generator: np.random.Generator) -> list[str]:
    filler = [word for word in WORDS if word not in (*terms, stop)]
    words = [term for term, count in zip(terms, counts, strict=True) for _ in range(count)]
    words += generator.choice(filler, 24 - len(words)).tolist() + [stop] * 7
    return generator.permutation(words).tolist()


def _donor(base: Pair, term: str, counterfactual: str, generator: np.random.Generator) -> Pair:
    query, document = base.query.split(), base.document.split()
    if counterfactual == "tf":
        filler = generator.choice([word for word in CONTENT_WORDS if word not in query])
        document = [str(filler) if word == term else word for word in document]
    else:
        other = generator.choice([word for word in STOP_WORDS if word not in query])
        query = [str(other) if word == term else word for word in query]
    return Pair(" ".join(query), " ".join(document), base.query_id, base.doc_id)


def _design(model: HookedEncoder, counterfactual: str = "tf") -> Design:
    """The design of a planted model; raises for any other model, and for an unknown counterfactual."""
    if not isinstance(model, PlantedEncoder):
        raise MechirError(f"{model.cfg.model_name} is no planted model: make one with planted.bm25().")
    if counterfactual not in COUNTERFACTUALS:
        raise MechirError(f"Unknown counterfactual '{counterfactual}': write one of {', '.join(COUNTERFACTUALS)}.")
    return model.design
