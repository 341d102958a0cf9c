"""The semantic BM25: the score as a linear sum of IDF, soft-TF and their product over the query's tokens.

Source: Lu et al. 2025 (arXiv:2502.04645, section 6), whose design has 5 positions x (1 + 2 x 13 heads) = 135 features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score, root_mean_squared_error
from torch import Tensor

from mechir.batches import Batch
from mechir.encoding import Encoded
from mechir.errors import MechirError
from mechir.hooks import EveryLayer
from mechir.inputs import as_pairs
from mechir.methods.statistics import percentiles, resampled
from mechir.model_sites import all_heads
from mechir.recorder import observe
from mechir.reranker import Weights, needs
from mechir.segments import Segment
from mechir.sites import Head
from mechir.subspaces import Subspace

FIRST = 5
"""Query word pieces of the paper's design."""
K1 = (0.0, 0.05, 0.1, 0.2, 0.3, 0.6, 0.9, 1.2, 1.5, 2.0, 3.0)
B = (0.0, 0.25, 0.4, 0.5, 0.75, 1.0)
"""The grid on which BM25 is tuned. With a k1 of 0 a term that the document has counts its IDF, however often."""


@torch.no_grad()
def lexical_features(
    model: Weights,
    pairs: Any,
    direction: Subspace,
    *,
    heads: Sequence[Head | str] = (),
    exponential: bool = False,
) -> pd.DataFrame:
    """Measures the features of the semantic BM25, and those of BM25, for every pair.

    `pairs` are of whole queries. A token's coordinate along `direction` stands for its IDF; `exponential` takes exp of
    it, where the direction carries log IDF. The masses of `heads` stay position by position, for the paper's design.

    Returns:
        One row per pair: `query_id`, `doc_id`, `grade`, `score`; `idf`, the sum over query tokens of the coordinate;
        lists over all heads of the model: `mass`, the sum over query tokens of the weight on the document (soft-TF),
        and `product`, of coordinate x mass. `pieces`, `tf` (lists over the query's word pieces) and `length` (the
        document's) for BM25. For queries of five pieces or more `score5`, `design5` and
        `stale5`: the score of the query cut to its first five pieces, and the 5 x (1 + 2 heads) features of `heads`
        there; `stale5` with the document still read from where it began before the cut and the last SEP counted to
        it, as the published code does. NaN and empty lists for shorter queries.
    """
    needs(model, "lexical_features", Weights)
    pairs = as_pairs(pairs)
    encoded = model.encode(pairs)
    at = {str(head): k for k, head in enumerate(all_heads(model))}
    chosen = [at[str(head)] for head in heads]
    rows = []
    for pair, ids, segments in zip(encoded.pairs, encoded.ids, encoded.segments, strict=True):
        query, document = (ids[(segments & part.value) != 0] for part in (Segment.QUERY, Segment.DOC))
        line: dict[str, Any] = {"query_id": pair.query_id, "doc_id": pair.doc_id, "grade": pair.grade}
        line |= {"score5": np.nan, "design5": [], "stale5": [], "pieces": query.tolist()}
        rows.append(line | {"tf": [int((document == id).sum()) for id in query], "length": len(document)})
    for index, batch in model.batches(encoded):
        score, along, document, _ = _masses(model, batch, direction, exponential, None)
        for row, place in enumerate(index.tolist()):
            query = batch.at(Segment.QUERY)[row].cpu()
            a, m = along[row][query], document[row][query]
            rows[place] |= {"score": float(score[row]), "idf": float(a.sum()), "mass": m.sum(0).tolist()}
            rows[place]["product"] = (a[:, None] * m).sum(0).tolist()
    long = [k for k, row in enumerate(rows) if len(row["pieces"]) >= FIRST]
    if long and chosen:
        for place, design in _first_five(model, encoded, long, direction, exponential, chosen):
            rows[place] |= design
    return pd.DataFrame(rows)


def _masses(
    model: Weights, batch: Batch, direction: Subspace, exponential: bool, beyond: Tensor | None
) -> tuple[Tensor, Float[Tensor, "batch pos"], Float[Tensor, "batch pos head"], Float[Tensor, "batch pos head"]]:
    """The scores; each token's coordinate; each reader's mass on the document and where `beyond` is, of all heads."""
    along = direction.coordinates(model.W_E[batch.input_ids].double())[..., 0].cpu()
    marks = [batch.at(Segment.DOC), batch.at(Segment.DOC) if beyond is None else beyond]

    def masses(_: str, x: Tensor) -> list[Tensor]:
        return [torch.einsum("bhrs,bs->brh", x, mark.to(x)).double().cpu() for mark in marks]

    score, layers = observe(model, batch, EveryLayer("attn.hook_pattern"), masses, head_row=False)
    document, marked = (torch.cat(parts, 2) for parts in zip(*layers.values(), strict=True))
    return score.cpu(), along.exp() if exponential else along, document, marked


def _first_five(
    model: Weights, encoded: Encoded, long: Sequence[int], direction: Subspace, exponential: bool, heads: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the place and features of each pair with its query cut to five: [CLS] q1 .. q5 [SEP] document [SEP]."""
    beyond = [np.flatnonzero(encoded.segments[k] & Segment.QUERY.value)[FIRST:] for k in long]
    whole = encoded.take(np.array(long))
    cut: dict[str, Any] = {
        name: tuple(np.delete(x, places) for x, places in zip(getattr(whole, name), beyond, strict=True))
        for name in ("ids", "types", "segments")
    }
    for index, batch in model.batches(replace(whole, **cut)):
        skipped = torch.tensor([len(beyond[k]) for k in index.tolist()], device=batch.input_ids.device)[:, None]
        document = batch.at(Segment.DOC)
        stale = batch.at(Segment.DOC | Segment.SEP2) & ~(document & (document.cumsum(1) <= skipped))
        score, along, clean, wrong = _masses(model, batch, direction, exponential, stale)
        for row, k in enumerate(index.tolist()):
            query = batch.at(Segment.QUERY)[row].cpu()
            a = along[row][query]
            masses = [mass[row][query][:, list(heads)] for mass in (clean, wrong)]
            features = [torch.cat([a[:, None], m, a[:, None] * m], 1).flatten().tolist() for m in masses]
            yield long[k], {"score5": float(score[row]), "design5": features[0], "stale5": features[1]}


def bm25_scores(
    rows: pd.DataFrame, idf: Mapping[int, float], *, k1: float, b: float, average: float
) -> Float[np.ndarray, "pair"]:
    """The BM25 score, sum idf tf (k1 + 1) / (tf + k1 (1 - b + b length / average)) over query pieces; 0 for tf 0."""
    norm = k1 * (1 - b + b * rows["length"].to_numpy() / average)
    scores = np.zeros(len(rows))
    for place, (pieces, tf) in enumerate(zip(rows["pieces"], rows["tf"], strict=True)):
        counts, values = np.asarray(tf, dtype=float), np.array([idf.get(int(piece), 0.0) for piece in pieces])
        matched = counts > 0  # without k1 the others are 0 / 0, and the weight of these is 1 to the last digit
        weight = counts[matched] * (k1 + 1) / (counts[matched] + norm[place])
        scores[place] = (values[matched] * weight).sum()
    return scores


class Tuned(NamedTuple):
    """The BM25 scores with the k1 and b of the grid that correlate best on the training pairs."""

    scores: np.ndarray
    k1: float
    b: float

    @property
    def note(self) -> str:
        """The chosen k1 and b, and whether they lie at an edge of the grid, beyond which more might be better."""
        grids = (("k1", self.k1, K1), ("b", self.b, B)) if self.k1 else (("k1", self.k1, K1),)
        edges = [name for name, value, grid in grids if value in (grid[0], grid[-1])]
        b = f"b {self.b:g}" if self.k1 else "without tf and length"
        edge = f"; {' and '.join(edges)} at the edge of the grid" if edges else ""
        return f"k1 {self.k1:g}, {b}, tuned on the training queries{edge}"


def tuned_bm25(
    rows: pd.DataFrame, idf: Mapping[int, float], target: np.ndarray, train: np.ndarray, *, average: float
) -> Tuned:
    """Tunes BM25, k1 and b chosen on the training pairs, over the grid `K1` x `B`; `average`: the mean length."""
    candidates = [Tuned(bm25_scores(rows, idf, k1=k1, b=b, average=average), k1, b) for k1 in K1 for b in B]
    return max(candidates, key=lambda bm25: _pearson(bm25.scores[train], target[train]))


def _fit(features: np.ndarray, target: np.ndarray, train: np.ndarray) -> tuple[LinearRegression, np.ndarray]:
    """A linear model of least squares of the training pairs, and all features as it reads them: standardised there."""
    mean, spread = features[train].mean(0), features[train].std(0)
    standard = (features - mean) / np.where(spread > 0, spread, 1)
    return LinearRegression().fit(standard[train], target[train]), standard


def fitted(features: np.ndarray, target: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Predictions of a linear model of least squares, features standardised, fitted on the training pairs alone."""
    line, standard = _fit(features, target, train)
    return np.asarray(line.predict(standard))


def weights(
    features: np.ndarray, target: np.ndarray, query: np.ndarray, *, draws: int = 200, seed: int = 0
) -> pd.DataFrame:
    """The coefficients of that model on all pairs given: logits for one standard deviation of a feature.

    One row per feature: `estimate`, with `low` and `high` (95 %, whole queries resampled). Where features go together a
    single weight says little.
    """
    weight = _fit(features, target, np.arange(len(target)))[0].coef_
    drawn = [_fit(features, target, some)[0].coef_ for some in resampled(query, draws, seed)]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0) if drawn else (np.nan, np.nan)
    return pd.DataFrame({"estimate": weight, "low": low, "high": high})


def quality(
    predicted: np.ndarray,
    target: np.ndarray,
    query: np.ndarray,
    *,
    logits: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """The quality of a prediction of the score, over held-out pairs.

    Correlations are of the values `predicted` with the scores, `target`. `logits`, for a prediction on another scale,
    such as BM25, is the same in logits, by a line that was fitted on other pairs (`fitted`).

    Returns:
        `estimate`, Pearson's r, with `low` and `high` (95 %, whole queries resampled), `spearman`, `within` (mean
        Spearman within a query, which no difference between queries helps), `r2`, `rmse` (logits), `pairs`, `queries`.
        Nothing is fitted here: an r2 below 0 says that the mean of these scores would have been the better prediction.
    """
    logits = predicted if logits is None else logits
    low, high = percentiles([_pearson(predicted[some], target[some]) for some in resampled(query, draws, seed)])
    scores = pd.DataFrame({"predicted": predicted, "target": target})
    within = scores.groupby(query).corr("spearman", min_periods=3)["target"].xs("predicted", level=1)
    return {
        "estimate": _pearson(predicted, target),
        "low": low,
        "high": high,
        "spearman": float(scores.corr("spearman").loc["predicted", "target"]),
        "within": float(within.mean()),
        "r2": float(r2_score(target, logits)),
        "rmse": float(root_mean_squared_error(target, logits)),
        "pairs": float(len(target)),
        "queries": float(len(within)),
    }


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def pooled(rows: pd.DataFrame, heads: Sequence[int], parts: str = "idf,soft_tf,product") -> np.ndarray:
    """The pooled features of some heads, [pair, feature]; `parts` names the kinds of features.

    Raises:
        MechirError: for an unknown kind.
    """
    mass, product = (np.stack(rows[name].to_list())[:, list(heads)] for name in ("mass", "product"))
    known = {"idf": rows["idf"].to_numpy()[:, None], "soft_tf": mass, "product": product}
    for part in parts.split(","):
        if part not in known:
            raise MechirError(f"Unknown features '{part}': write some of {','.join(known)}.")
    return np.concatenate([known[part] for part in parts.split(",")], 1)
