"""IDF: of word pieces in a collection, along the singular vectors of the word embeddings, and under edits of them.

Source: Lu et al. 2025 (arXiv:2502.04645, section 5): the first left singular vector of W_E correlates with IDF, and
scaling a term along it changes the score.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats

from mechir.errors import MechirError, refuse_below
from mechir.judged_collection import Collection
from mechir.pair import Pair
from mechir.reranker import Reranker, Weights, needs
from mechir.segments import Segment
from mechir.subspaces import Subspace

LEAST = 10
"""Word pieces that a correlation needs."""


def pieces_of(model: Reranker, texts: Sequence[str]) -> list[list[int]]:
    """The word pieces of each text, without special tokens and not cut to the model's length."""
    return list(model.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])


def query_pieces(model: Reranker, pairs: Sequence[Pair]) -> pd.DataFrame:
    """The distinct word pieces of each query as the model reads it: `query_id`, `piece` (its id) and `token`."""
    encoded = model.encode(list({pair.query_id: pair for pair in pairs}.values()))
    of_query = (segments == Segment.QUERY.value for segments in encoded.segments)
    pieces = (dict.fromkeys(ids[there].tolist()) for ids, there in zip(encoded.ids, of_query, strict=True))
    rows = [(pair.query_id, piece) for pair, one in zip(encoded.pairs, pieces, strict=True) for piece in one]
    frame = pd.DataFrame(rows, columns=["query_id", "piece"])
    return frame.assign(token=model.tokenizer.convert_ids_to_tokens(frame["piece"].tolist()))


class Counts(NamedTuple):
    """The IDF of word pieces in the documents of a collection, the mean length of these in pieces, and their number."""

    idf: dict[int, float]
    length: float
    documents: int


def collection_counts(model: Reranker, collection: Collection, *, limit: int = 50_000) -> Counts:
    """Counts word pieces in the documents of a collection, or in `limit` at even distances where it has more."""
    refuse_below(1, limit=limit)
    texts, lengths = collection.texts(limit), list[int]()

    def counted() -> Iterator[list[int]]:
        while some := list(itertools.islice(texts, 1000)):
            for pieces in pieces_of(model, some):
                lengths.append(len(pieces))
                yield pieces

    idf = piece_idf(counted())
    return Counts(idf, float(np.mean(lengths)), len(lengths))


def piece_idf(documents: Iterable[Sequence[int]]) -> dict[int, float]:
    """Maps word pieces to ln(N / df) over N documents; pieces that no document holds are left out.

    Raises:
        MechirError: where there is no document.
    """
    counts, n = Counter[int](), 0
    for n, pieces in enumerate(documents, 1):  # noqa: B007
        counts.update(set(pieces))
    if not n:
        raise MechirError("There are no documents to count word pieces in: the collection is empty.")
    return {int(piece): math.log(n / count) for piece, count in counts.items()}


def read_idf(path: str | Path, model: Reranker) -> dict[int, float]:
    """Reads the IDF of word pieces from lines "word<TAB>idf"; words of several word pieces are left out.

    Raises:
        MechirError: for a file that is missing or unreadable, or a line of another form.
    """
    file = Path(path)
    if not file.is_file():
        raise MechirError(f"There is no IDF table '{path}': give a file of lines word<TAB>idf.")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MechirError(f"Cannot read the IDF table '{path}': give a file of lines word<TAB>idf in UTF-8.") from error
    by_word = dict[str, float]()
    for number, line in enumerate(lines, 1):
        word, _, value = line.rpartition("\t")
        try:
            idf = float(value)
        except ValueError:
            idf = math.nan
        if not (word and math.isfinite(idf)):
            raise MechirError(f"Line {number} of '{path}' is not word<TAB>idf: '{line[:40]}'.")
        if by_word.setdefault(word, idf) != idf:
            raise MechirError(f"'{path}' has the word '{word}' with {by_word[word]} and with {idf}: keep one line.")
    pieces = pieces_of(model, list(by_word))
    return {ids[0]: idf for ids, idf in zip(pieces, by_word.values(), strict=True) if len(ids) == 1}


def refuse_idf(model: Reranker, collection: Collection, path: str = "") -> None:
    """Raises for fewer than 10 word pieces with an IDF above 0, or one IDF for all, and as `read_idf`.

    It reads no more documents of a collection than it takes.
    """
    if path:
        positive = [idf for idf in read_idf(path, model).values() if idf > 0]
        if len(positive) < LEAST or len(set(positive)) < 2:
            raise MechirError(
                f"'{path}' holds {len(positive)} single word pieces with an IDF above 0, of {len(set(positive))} "
                f"values: correlations need {LEAST} pieces or more and 2 values or more."
            )
        return
    counts, n = Counter[int](), 0
    for n, text in enumerate(collection.texts(50_000), 1):
        counts.update(set(pieces_of(model, [text])[0]))
        telling = [count for count in counts.values() if count < n]
        if len(telling) >= LEAST and len(set(telling)) > 1:
            return
    raise MechirError(
        f"In the {n} documents of '{collection.id}' fewer than {LEAST} word pieces tell any two apart, so there is no "
        "IDF to correlate: give a larger collection, or a table with idf=FILE."
    )


def embedding_svd(model: Weights, n: int = 50) -> tuple[Float[np.ndarray, "d_vocab n"], np.ndarray, np.ndarray]:
    """The first n of U, sigma and V^T [n, d_embed] of W_E, signed so that each column of U sums to 0 or more.

    The sign of a singular vector is arbitrary; fixing it makes runs comparable.
    """
    needs(model, "embedding_svd", Weights)
    u, sigma, vt = torch.linalg.svd(model.W_E.detach().double().cpu(), full_matrices=False)
    signs = torch.where(u.sum(0) < 0, -1.0, 1.0)
    n = min(n, len(sigma))
    return (u * signs)[:, :n].numpy(), sigma[:n].numpy(), (vt * signs[:, None])[:n].numpy()


def idf_correlations(
    model: Weights, idf: Mapping[int, float], *, vectors: int = 50, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Correlates the first `vectors` singular vectors of W_E, and the length of its rows, with IDF.

    `idf` maps the word pieces that count to their IDF, which is permuted over them `draws` times.

    Returns:
        One row per vector: `vector` (0 the first; "norm" is the length of a piece's row), `sigma`, `n` pieces, and for
        `idf` and `log_idf` (pieces of IDF 0 left out): `pearson_idf` with its 95 % interval over pieces (Fisher) `_low`
        and `_high`, `spearman_idf`, `pearson_idf_p_corrected`: how often any of the vectors reaches this |pearson| with
        IDF permuted. The sign of r belongs to the sign convention of `embedding_svd`: |r| is what counts.

    Raises:
        MechirError: for fewer than 10 word pieces.
    """
    needs(model, "idf_correlations", Weights)
    refuse_below(1, vectors=vectors, draws=draws)
    known = {piece: value for piece, value in idf.items() if value > 0}
    if len(known) < LEAST:
        raise MechirError(f"{len(known)} word pieces have an IDF above 0: correlations need {LEAST} or more.")
    pieces = sorted(known)
    values = np.array([known[piece] for piece in pieces])
    u, sigma, _ = embedding_svd(model, vectors)
    norms = model.W_E.detach().double().cpu().norm(dim=1).numpy()
    columns = np.column_stack([u[pieces], norms[pieces]])
    table = pd.DataFrame({"vector": [*map(str, range(u.shape[1])), "norm"], "sigma": [*sigma, np.nan]})
    table["n"] = len(pieces)
    for name, target in (("idf", values), ("log_idf", np.log(values))):
        pearson = stats.pearsonr(columns, target[:, None], axis=0)
        table[f"pearson_{name}"] = pearson.statistic
        table[f"pearson_{name}_low"], table[f"pearson_{name}_high"] = pearson.confidence_interval()
        table[f"spearman_{name}"] = [stats.spearmanr(column, target).statistic for column in columns.T]
        table[f"pearson_{name}_p_corrected"] = _permuted(columns, target, np.abs(pearson.statistic), draws, seed)
    return table


def _permuted(columns: np.ndarray, target: np.ndarray, r: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """The share of permutations whose largest |r| over the columns reaches each column's own."""
    standard = (columns - columns.mean(0)) / columns.std(0) / len(target)
    values, generator = (target - target.mean()) / target.std(), np.random.default_rng(seed)
    largest = np.array([np.abs(generator.permutation(values) @ standard).max() for _ in range(draws)])
    return (1 + (largest[:, None] >= r).sum(0)) / (1 + draws)


def find_idf(
    model: Weights, collection: Collection, *, idf: str = "", vector: int = -1, sign: int = 0
) -> dict[str, int]:
    """Finds the singular vector of W_E that goes with IDF, and its sign: the options `vector` and `sign`.

    IDF is read from the table `idf` or counted in the collection; a `vector` of 0 or more and a `sign` of 1 or -1 stay.
    """
    needs(model, "find_idf", Weights)
    idf_of = read_idf(idf, model) if idf else collection_counts(model, collection).idf
    table = idf_correlations(model, idf_of, draws=1, vectors=max(50, vector + 1))
    r = table.loc[table["vector"] != "norm", "pearson_idf"]
    chosen = int(r.abs().argmax()) if vector < 0 else vector
    return {"vector": chosen, "sign": sign or (1 if r.iloc[chosen] > 0 else -1)}


def singular_direction(model: Weights, vector: int = 0, sign: int = 1) -> Subspace:
    """A right singular vector of W_E, its sign that of `embedding_svd` times `sign`: for `EditEmbedding`.

    Where `idf_correlations` gives it a negative r, sign = -1 turns it up with IDF.
    """
    needs(model, "singular_direction", Weights)
    last = min(model.W_E.shape) - 1
    if not 0 <= vector <= last or sign not in (-1, 1):
        raise MechirError(
            f"vector={vector}, sign={sign} is out of range: W_E has vectors 0-{last}, the sign is 1 or -1."
        )
    _, _, vt = embedding_svd(model, vector + 1)
    return Subspace.span(vt[vector] * sign, f"singular vector {vector} of W_E, sign {sign}", model=model.fingerprint)


def random_direction(model: Weights, seed: int) -> Subspace:
    """A random direction of the embedding space, as a control of `singular_direction`."""
    needs(model, "random_direction", Weights)
    drawn = torch.randn(model.W_E.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Subspace.span(drawn, f"random direction of W_E, seed {seed}", model=model.fingerprint)
