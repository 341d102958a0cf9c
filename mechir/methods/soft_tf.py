"""Soft term frequency: the attention that a query term pays to a document, against how often the document has it.

Source: Lu et al. 2025 (arXiv:2502.04645, section 4.2): in matching heads the mass rises with term frequency and
saturates, as BM25's tf / (tf + k1) does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import optimize
from torch import Tensor

from mechir.diagnostics import Term
from mechir.errors import MechirError, refuse_below
from mechir.hooks import EveryLayer
from mechir.methods.groups import crossed
from mechir.methods.lexical import pieces_of
from mechir.methods.patching import all_heads
from mechir.methods.statistics import percentiles, resampled
from mechir.pairs import Batch, Pair, shares
from mechir.segments import Segment

COUNTS = (0, 1, 2, 3, 5, 8)
TIMES = (1, 2, 3)
FREQUENCIES = 3
"""Different term frequencies that a saturation curve needs."""


class Dosed(NamedTuple):
    """A text, and what was done to it: `kind` "tf" or "length", `dose` occurrences appended or times over."""

    kind: str
    dose: int
    term: str
    pair: Pair


def dosed(pairs: Sequence[Pair], *, filler: str = "a", words: int = 40, seed: int = 0) -> Iterator[Dosed]:
    """Each pair with one word of its query appended 0 to 8 times, and its document once to three times over.

    For "tf" all texts have the same number of words: `filler` stands
    where the word does not (TFC2). For "length" the document is repeated (LNC2). Documents are cut to `words` words.
    """
    refuse_below(1, words=words)
    for pair in pairs:
        term = Term(seed=seed)(pair)
        text = pair.document.split()[:words]
        for count in COUNTS:
            appended = [*text, *[term] * count, *[filler] * (COUNTS[-1] - count)]
            made = replace(pair, document=" ".join(appended), doc_id=f"{pair.doc_id}+{count}")
            yield Dosed("tf", count, term, made)
        for times in TIMES:
            made = replace(pair, document=" ".join(text * times), doc_id=f"{pair.doc_id}x{times}")
            yield Dosed("length", times, term, made)


def frequencies(model: Any, pairs: Sequence[Pair], *, filler: str = "a", words: int = 40, seed: int = 0) -> set[int]:
    """The term frequencies that the model reads under `dosed`, by the term's first word piece."""
    texts = [text for text in dosed(pairs, filler=filler, words=words, seed=seed) if text.kind == "tf"]
    encoded = model.encode([text.pair for text in texts])
    first = [pieces[0] for pieces in pieces_of(model, [text.term for text in texts])]
    read = zip(encoded.ids, encoded.segments, first, strict=True)
    return {int((ids[segments == Segment.DOC.value] == piece).sum()) for ids, segments, piece in read}


@torch.no_grad()
def term_mass(model: Any, pairs: Sequence[Pair], *, filler: str = "a", words: int = 40, seed: int = 0) -> pd.DataFrame:
    """What every head's query term pays to the document, under `dosed`.

    Returns:
        One row per head and text: `site`, `kind` ("tf", "length"), `dose` (see `Dosed`), `query_id`, `doc_id`, `term`;
        `tf`, how often the term's first word piece is in the document; `length`, the document's word pieces; `mass`,
        the mean over the term's positions in the query of the weight on the whole document (soft-TF), and `same`, on
        the term's own word pieces alone (0 to 1).
    """
    texts = list(dosed(pairs, filler=filler, words=words, seed=seed))
    named = list(dict.fromkeys(text.term for text in texts))
    terms = dict(zip(named, map(tuple, pieces_of(model, named)), strict=True))
    encoded = model.encode([text.pair for text in texts])
    heads = [str(head) for head in all_heads(model)]
    parts = []
    for index, batch in encoded.buckets(64, model.max_tokens):
        batch = batch.to(model.device)
        here = [texts[place] for place in index]
        pieces = [terms[text.term] for text in here]
        readers, own = _places(batch, pieces, Segment.QUERY), _places(batch, pieces, Segment.DOC)
        document = batch.at(Segment.DOC)
        found = _masses(model, batch, readers, document, own)
        first = torch.tensor([[one[0]] for one in pieces], device=batch.input_ids.device)
        ids = pd.DataFrame(
            {
                "kind": [text.kind for text in here],
                "dose": [text.dose for text in here],
                "query_id": [text.pair.query_id for text in here],
                "doc_id": [text.pair.doc_id for text in here],
                "term": [text.term for text in here],
                "tf": ((batch.input_ids == first) & document).sum(1).cpu().numpy(),
                "length": document.sum(1).cpu().numpy(),
            }
        )
        parts.append(crossed(ids, site=heads).assign(mass=found[0].flatten().numpy(), same=found[1].flatten().numpy()))
    return pd.concat(parts, ignore_index=True)


def _places(batch: Batch, pieces: Sequence[tuple[int, ...]], where: Segment) -> Bool[Tensor, "batch pos"]:
    width = max(map(len, pieces))
    padded = torch.tensor([[*one, *[one[0]] * (width - len(one))] for one in pieces], device=batch.input_ids.device)
    return (batch.input_ids[:, :, None] == padded[:, None, :]).any(2) & batch.at(where)


def _masses(
    model: Any,
    batch: Batch,
    readers: Bool[Tensor, "batch pos"],
    document: Bool[Tensor, "batch pos"],
    own: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "kind batch head"]:
    """Of all heads, layer after layer: the mass on the document and on the term's own pieces."""
    kept: list[Tensor] = []
    share = shares(readers)

    def keep(x: Tensor, hook: Any) -> None:
        row = torch.einsum("bhrs,br->bhs", x, share.to(x))
        kept.append(torch.stack([torch.einsum("bhs,bs->bh", row, to.to(x)) for to in (document, own)]).cpu())

    with model.hooks([(EveryLayer("attn.hook_pattern"), keep)]):
        model(batch, last_rows="all")
    return torch.cat(kept, 2)


K1 = (0.01, 1000.0)
"""Where k1 is searched."""


def saturation(
    tf: np.ndarray, mass: np.ndarray, query: np.ndarray, *, draws: int = 200, seed: int = 0
) -> dict[str, float]:
    """The curve base + size tf / (tf + k1) of least squares through the points.

    Args:
        tf: term frequency of each text.
        mass: the mass of each.
        query: ids; whole queries are resampled for the intervals.
        draws: resamples.
        seed: of them.

    Returns:
        `base`, `size`, `k1` with `k1_low` and `k1_high` (95 %, percentiles) and `r2`. A k1 at 0.01 or 1,000 is a step
        or a straight line: no saturation is seen within these frequencies.

    Raises:
        MechirError: for fewer than three different frequencies.
    """
    refuse_below(1, draws=draws)
    if len(np.unique(tf)) < FREQUENCIES:
        raise MechirError("A saturation curve needs three different term frequencies or more.")
    base, size, k1 = _fit(tf, mass)
    residual = mass - base - size * tf / (tf + k1)
    k1_low, k1_high = percentiles([_fit(tf[drawn], mass[drawn])[2] for drawn in resampled(query, draws, seed)])
    spread = float(np.var(mass))
    r2 = 1 - float(np.mean(residual**2)) / spread if spread > 1e-18 * float(np.mean(mass**2)) else float("nan")
    return {"base": base, "size": size, "k1": k1, "k1_low": k1_low, "k1_high": k1_high, "r2": r2}


def _fit(tf: np.ndarray, mass: np.ndarray) -> tuple[float, float, float]:
    """Least squares with base and size solved exactly for each k1, so only k1 is searched."""

    def loss(log_k1: float) -> float:
        return float(((mass - _linear(tf, mass, log_k1)[0]) ** 2).sum())

    grid = np.linspace(np.log(K1[0]), np.log(K1[1]), 40)
    best = int(np.argmin([loss(x) for x in grid]))
    around = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found = optimize.minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6}).x
    _, base, size = _linear(tf, mass, found)
    return base, size, float(np.exp(found))


def _linear(tf: np.ndarray, mass: np.ndarray, log_k1: float) -> tuple[np.ndarray, float, float]:
    feature = tf / (tf + np.exp(log_k1))
    centred = feature - feature.mean()
    power = float((centred**2).sum())
    size = float((centred * mass).sum()) / power if power > 0 else 0.0
    base = float(mass.mean()) - size * float(feature.mean())
    return base + size * feature, base, size


@torch.no_grad()
def similarity_correlation(model: Any, pairs: Sequence[Pair]) -> pd.DataFrame:
    """How a head's attention from query tokens to document tokens goes with the likeness of their embeddings.

    Returns:
        One row per head and pair: `site`, `query_id`, `doc_id`, `r`: Pearson over all query x document cells between
        the weight and the cosine of the two word embeddings; missing where either does not vary.
    """
    unit = torch.nn.functional.normalize(model.W_E.detach(), dim=1)
    heads, parts = [str(head) for head in all_heads(model)], []
    for _, batch in model.encode(pairs).buckets(64, model.max_tokens):
        batch = batch.to(model.device)
        likeness = _likeness(unit, batch.input_ids)
        cells = batch.at(Segment.QUERY)[:, :, None] & batch.at(Segment.DOC)[:, None, :]
        kept: list[Tensor] = []

        def keep(x: Tensor, hook: Any, cells: Tensor = cells, likeness: Tensor = likeness, kept: Any = kept) -> None:
            kept.append(_pearson(x, likeness[:, None], cells[:, None]).cpu())

        with model.hooks([(EveryLayer("attn.hook_pattern"), keep)]):
            model(batch, last_rows="all")
        ids = pd.DataFrame([(pair.query_id, pair.doc_id) for pair in batch.pairs], columns=["query_id", "doc_id"])
        parts.append(crossed(ids, site=heads).assign(r=torch.cat(kept, 1).flatten().numpy()))
    return pd.concat(parts, ignore_index=True)


def _likeness(unit: Float[Tensor, "d_vocab d"], ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos pos"]:
    found = unit[ids]
    return found @ found.transpose(1, 2)


def _pearson(x: Tensor, y: Tensor, cells: Bool[Tensor, "batch 1 q d"]) -> Float[Tensor, "batch head"]:
    n = cells.sum((-1, -2)).clamp(min=1)
    weight = cells.to(x)

    def centred(of: Tensor) -> Tensor:
        return (of - ((of * weight).sum((-1, -2)) / n)[..., None, None]) * weight

    a, b = centred(x), centred(y)
    size = (a.square().sum((-1, -2)) * b.square().sum((-1, -2))).sqrt()
    r = (a * b).sum((-1, -2)) / size
    return torch.where(size > 1e-12, r, torch.nan)
