"""Soft term frequency: the attention that a query term pays to a document, against how often the document has it.

Source: Lu et al. 2025 (arXiv:2502.04645, section 4.2): in matching heads the mass rises with term frequency and
saturates, as BM25's tf / (tf + k1) does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import optimize
from torch import Tensor

from mechir.batches import Batch, for_numpy, shares
from mechir.diagnostics import Term
from mechir.errors import MechirError, refuse_below
from mechir.hooks import EveryLayer
from mechir.inputs import as_pairs
from mechir.methods.groups import crossed, pair_ids
from mechir.methods.lexical import pieces_of
from mechir.methods.statistics import percentiles, resampled
from mechir.model_sites import all_heads
from mechir.pair import Pair
from mechir.possible import refuse_impossible
from mechir.recorder import observe
from mechir.reranker import Reranker, Weights, needs
from mechir.segments import Direction, Segment

COUNTS = (0, 1, 2, 3, 5, 8)
TIMES = (1, 2, 3)
FREQUENCIES = 3
"""The number of different term frequencies that a saturation curve needs."""


class Dosed(NamedTuple):
    """A text and its change: `kind` "tf" with `dose` occurrences appended, or "length" with it `dose` times over."""

    kind: str
    dose: int
    term: str
    pair: Pair


def dosed(pairs: Sequence[Pair], *, filler: str = "a", words: int = 40, seed: int = 0) -> Iterator[Dosed]:
    """Yields each pair with one word of its query appended 0 to 8 times, and its document once to three times over.

    For "tf" all texts have the same number of words, `filler` standing where the word does not (TFC2). For "length" the
    document is repeated (LNC2). Documents are cut to `words` words.
    """
    refuse_below(1, words=words)
    for pair in pairs:
        term = Term(seed=seed)(pair)
        text = pair.document.split()[:words]
        made = [("tf", n, f"+{n}", [*text, *[term] * n, *[filler] * (COUNTS[-1] - n)]) for n in COUNTS]
        made += [("length", n, f"x{n}", text * n) for n in TIMES]
        for kind, dose, suffix, new in made:
            yield Dosed(kind, dose, term, replace(pair, document=" ".join(new), doc_id=f"{pair.doc_id}{suffix}"))


def frequencies(model: Reranker, pairs: Any, *, filler: str = "a", words: int = 40, seed: int = 0) -> int:
    """The most different frequencies of the term that the model reads in one pair under `dosed`.

    Counted by the term's first word piece, over the counts appended to one pair.
    """
    pairs = as_pairs(pairs)
    texts = [text for text in dosed(pairs, filler=filler, words=words, seed=seed) if text.kind == "tf"]
    encoded = model.encode([text.pair for text in texts])
    first = [pieces[0] for pieces in pieces_of(model, [text.term for text in texts])]
    read = zip(encoded.ids, encoded.segments, first, strict=True)
    counts = [int((ids[segments == Segment.DOC.value] == piece).sum()) for ids, segments, piece in read]
    return max(len(set(counts[place : place + len(COUNTS)])) for place in range(0, len(counts), len(COUNTS)))


@torch.no_grad()
def term_mass(
    model: Reranker, pairs: Sequence[Pair], *, filler: str = "a", words: int = 40, seed: int = 0
) -> pd.DataFrame:
    """The attention of every head's query term to the document, under `dosed`.

    Raises for a model whose query cannot read the document.

    Returns:
        One row per head and text: `site`, `kind` ("tf", "length"), `dose` (see `Dosed`), `query_id`, `doc_id`, `term`;
        `tf`, how often the term's first word piece is in the document; `length`, the document's word pieces; `mass`,
        the mean over the term's positions in the query of the weight on the whole document (soft-TF), and `same`, on
        the term's own word pieces alone (0 to 1).
    """
    texts = list(dosed(pairs, filler=filler, words=words, seed=seed))
    terms = list(dict.fromkeys(text.term for text in texts))
    pieces = {term: torch.tensor(ids) for term, ids in zip(terms, pieces_of(model, terms), strict=True)}
    encoded = model.encode([text.pair for text in texts])
    heads, parts = [str(head) for head in all_heads(model)], []
    for index, batch in model.batches(encoded):
        refuse_impossible(Direction(Segment.QUERY, Segment.DOC), batch, model)
        some = [texts[place] for place in index]
        ids = [pieces[text.term].to(batch.input_ids) for text in some]
        same = torch.stack([torch.isin(row, term) for row, term in zip(batch.input_ids, ids, strict=True)])
        first, document = torch.stack([term[:1] for term in ids]), batch.at(Segment.DOC)
        read = partial(_masses, share=shares(same & batch.at(Segment.QUERY)), sources=(document, same & document))
        mass = _of_heads(model, batch, read, 2)
        rows = [(text.kind, text.dose, text.pair.query_id, text.pair.doc_id, text.term) for text in some]
        frame = pd.DataFrame(rows, columns=["kind", "dose", "query_id", "doc_id", "term"])
        frame["tf"] = ((batch.input_ids == first) & document).sum(1).cpu().numpy()
        frame["length"] = document.sum(1).cpu().numpy()
        parts.append(crossed(frame, site=heads).assign(mass=mass[0].flatten().numpy(), same=mass[1].flatten().numpy()))
    return pd.concat(parts, ignore_index=True)


def _of_heads(model: Reranker, batch: Batch, read: Callable[[str, Tensor], Tensor], axis: int) -> Tensor:
    """What `read` gives for the patterns, layer after layer along the axis of the heads."""
    layers = observe(model, batch, EveryLayer("attn.hook_pattern"), read, head_row=False)[1]
    return for_numpy(torch.cat(list(layers.values()), axis))


def _masses(
    _: str, x: Tensor, share: Float[Tensor, "batch pos"], sources: Sequence[Bool[Tensor, "batch pos"]]
) -> Float[Tensor, "source batch head"]:
    """The mass of each head of a pattern on each set of sources: the mean over the readers by their share."""
    row = torch.einsum("bhrs,br->bhs", x, share.to(x))
    return torch.stack([torch.einsum("bhs,bs->bh", row, source.to(x)) for source in sources]).cpu()


K1 = (0.01, 1000.0)
"""The range in which k1 is searched."""
GRID = np.geomspace(*K1, 401)


def text_of(rows: pd.DataFrame) -> np.ndarray:
    """The number of each row's text in `term_mass` (kind "tf"): query and document, however often the word is in."""
    document = rows["doc_id"].str.rpartition("+")[0]
    return pd.factorize(pd.MultiIndex.from_arrays([rows["query_id"], document]))[0]


def saturation(
    tf: np.ndarray, mass: np.ndarray, query: np.ndarray, text: np.ndarray, *, draws: int = 200, seed: int = 0
) -> dict[str, float]:
    """Fits base + size tf / (tf + k1) by least squares, k1 shared and base and size each text's own.

    One base and size for all texts would take what texts differ in for a part of the curve: k1 would come out too small
    and r2 low where texts are alike in nothing but their bend.

    `tf` and `mass` are those of each point. `text` is the number of each point's text (see `text_of`), each of one
    `query`; texts of fewer than three different frequencies are left out: a curve of their own goes through any two.
    Whole queries are resampled `draws` times for the interval.

    Returns:
        `base` and `size`, means over texts; `k1` with `k1_low` and `k1_high` (95 %, percentiles); `r2` of the whole
        fit, the share of the variance within texts: that a text has a base of its own explains nothing. A k1 at 0.01
        or 1,000 is a step or a straight line: no saturation is seen within these frequencies.

    Raises:
        MechirError: where no text has three different frequencies.
    """
    refuse_below(1, draws=draws)
    points = _Points.of(tf, mass, query, text)
    losses = points.losses(GRID)
    by_query = pd.DataFrame(losses).groupby(points.query).sum().to_numpy()
    drawn = [_lowest(by_query[some].sum(0)) for some in resampled(np.arange(len(by_query)), draws, seed)]
    k1 = points.searched(losses.sum(0))
    size = points.sizes(np.array([k1]))[0][:, 0]
    base = points.means(points.mass) - size * points.means(points.tf / (points.tf + k1))
    k1_low, k1_high = percentiles(drawn)
    fit = {"base": float(base.mean()), "size": float(size.mean()), "k1": k1}
    return fit | {"k1_low": k1_low, "k1_high": k1_high, "r2": points.r2(k1)}


@dataclass(frozen=True)
class _Points:
    """The points, text by text: `starts` is where each text begins, `query` the query of each text."""

    tf: np.ndarray
    mass: np.ndarray
    starts: np.ndarray
    query: np.ndarray

    @classmethod
    def of(cls, tf: np.ndarray, mass: np.ndarray, query: np.ndarray, text: np.ndarray) -> _Points:
        order = np.argsort(text, kind="stable")
        different = pd.Series(tf).groupby(text).transform("nunique").to_numpy()
        order = order[different[order] >= FREQUENCIES]
        if not len(order):
            raise MechirError("A saturation curve needs a text with three different term frequencies or more.")
        starts = np.unique(text[order], return_index=True)[1]
        return cls(tf[order].astype(float), mass[order].astype(float), starts, query[order][starts])

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean of each text."""
        counts = np.diff([*self.starts, len(self.tf)])
        return np.add.reduceat(values, self.starts) / counts.reshape(-1, *[1] * (values.ndim - 1))

    def centred(self, values: np.ndarray) -> np.ndarray:
        """Values less the mean of their text."""
        return values - np.repeat(self.means(values), np.diff([*self.starts, len(self.tf)]), axis=0)

    def sizes(self, k1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The size of least squares for each text and k1, and the sum of squares that it explains."""
        feature = self.centred(self.tf[:, None] / (self.tf[:, None] + k1))
        along = np.add.reduceat(feature * self.centred(self.mass)[:, None], self.starts)
        size = along / np.add.reduceat(feature**2, self.starts)
        return size, size * along

    def losses(self, k1: np.ndarray) -> np.ndarray:
        """The sum of squares that is left, [text, k1], with base and size solved exactly."""
        return np.add.reduceat(self.centred(self.mass) ** 2, self.starts)[:, None] - self.sizes(k1)[1]

    def searched(self, losses: np.ndarray) -> float:
        """The k1 of least squares, given the losses on the grid."""
        best = int(np.argmin(losses))
        around = np.log([GRID[max(0, best - 1)], GRID[min(len(GRID) - 1, best + 1)]])
        best_log = optimize.minimize_scalar(
            lambda x: float(self.losses(np.exp([x])).sum()), bounds=around, method="bounded", options={"xatol": 1e-6}
        )
        return float(np.exp(best_log.x))

    def r2(self, k1: float) -> float:
        """The share of the variance within texts that the fit explains; NaN where nothing varies."""
        spread = float((self.centred(self.mass) ** 2).sum())
        if spread <= 1e-18 * float((self.mass**2).sum()):
            return float("nan")
        return 1 - float(self.losses(np.array([k1])).sum()) / spread


def _lowest(losses: np.ndarray) -> float:
    """The k1 of the lowest loss on the grid, between its points by a parabola."""
    best = int(np.argmin(losses))
    if best in (0, len(GRID) - 1):
        return float(GRID[best])
    before, here, after = losses[best - 1 : best + 2]
    bend = before - 2 * here + after
    step = (before - after) / (2 * bend) if bend > 0 else 0.0
    return float(GRID[best] * (GRID[1] / GRID[0]) ** step)


@torch.no_grad()
def similarity_correlation(model: Weights, pairs: Any) -> pd.DataFrame:
    """Correlates each head's attention from query to document tokens with the likeness of their embeddings.

    Returns:
        One row per head and pair: `site`, `query_id`, `doc_id`, `r`: Pearson over all query x document cells between
        the weight and the cosine of the two word embeddings; missing where either does not vary.
    """
    needs(model, "similarity_correlation", Weights)
    pairs = as_pairs(pairs)
    unit = torch.nn.functional.normalize(model.W_E.detach(), dim=1)
    heads, parts = [str(head) for head in all_heads(model)], []
    for _, batch in model.batches(pairs):
        rows = unit[batch.input_ids]
        likeness = (rows @ rows.transpose(1, 2))[:, None]
        cells = (batch.at(Segment.QUERY)[:, :, None] & batch.at(Segment.DOC)[:, None, :])[:, None]
        r = _of_heads(model, batch, partial(_pearson, y=likeness, cells=cells), 1)
        ids = pair_ids(batch.pairs)[["query_id", "doc_id"]]
        parts.append(crossed(ids, site=heads).assign(r=r.flatten().numpy()))
    return pd.concat(parts, ignore_index=True)


def _pearson(_: str, x: Tensor, y: Tensor, cells: Bool[Tensor, "batch 1 q d"]) -> Float[Tensor, "batch head"]:
    """The Pearson correlation over the cells of each head's weights with `y`."""
    n = cells.sum((-1, -2)).clamp(min=1)
    weight = cells.to(x)

    def centred(values: Tensor) -> Tensor:
        return (values - ((values * weight).sum((-1, -2)) / n)[..., None, None]) * weight

    a, b = centred(x), centred(y)
    size = (a.square().sum((-1, -2)) * b.square().sum((-1, -2))).sqrt()
    r = (a * b).sum((-1, -2)) / size
    return torch.where(size > 1e-12, r, torch.nan).cpu()
