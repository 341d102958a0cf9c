"""The depth at which relevance is gathered and can be read: the model's own head at every depth, and linear probes.

The lens applies pooler and classifier to the CLS row after every sublayer ("relevance integration" in the journal code
of Vast et al. 2025). The probes ask of each segment whether a linear classifier tells relevant documents from others,
and a control whether that is more than chance.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import linalg, stats
from torch import Tensor

from mechir.batches import Batch, shares
from mechir.errors import MechirError
from mechir.inference import mean_row
from mechir.inputs import as_pairs
from mechir.methods.groups import crossed, pair_ids
from mechir.methods.ranking import TIE
from mechir.recorder import observe, refuse_non_finite
from mechir.reranker import Reranker, Restarts, offers
from mechir.sites import Resid

FOLDS = 5
"""Parts that the queries are cut into: each is read by a probe that was trained on the others."""
DRAWS = 100
"""Draws of the control's labels: a few would not show how far chance goes."""
FEWEST_QUERIES, FEWEST_DRAWS = 4, 5
CONSTANT = 1e-5
"""A feature that varies less than this within queries, relative to the stream's size, is rounding, not a signal."""
GAP = "relevant - others"


@torch.no_grad()
def read_depths(
    model: Reranker, pairs: Any, *, max_length: int | None = None, progress: bool | None = None
) -> pd.DataFrame:
    """Applies the head to the row that it reads at every depth, and averages each segment's residual stream.

    The head has all that comes after the last layer: in a pre-LN model the final norm too.

    Returns:
        One row per pair, site and segment: `query_id`, `doc_id`, `grade`; `site`: `resid0` (the embeddings),
        `resid3.mid` (after the attention of layer 3), `resid3.post` (after its MLP); `depth`, how many layers are done,
        0 to n_layers, a half after attention; `segment`; `score` (the scale of `model.score`: log-odds of relevance)
        and `p` (its logistic, 0 to 1) on rows of the segment that the head reads (`cls`, or the last of a prompt; of a
        mean over all rows the first), NaN elsewhere; `mean`, the residual stream averaged over the segment's tokens
        (float32, d_model numbers), None after attention, where there are rows of that segment alone. At the last site
        `score` is `model.score(pairs)`. The means take 20 (n_layers + 1) d_model bytes a pair. A model that does not
        start at any layer runs once more for every site.

    When it misleads: the head was trained on the last layer's output. Where every sublayer ends in a LayerNorm, an
    earlier row has the right size but not the right place: its score is a readout, out of distribution, and neither
    what the model believes there nor a cause of what it says at the end.

    Raises:
        MechirError: for pairs without grades, and for a model whose head reads a decoder.
    """
    if model.structure.reads == "decoder":
        raise MechirError(
            f"The head of '{model.cfg.model_name}' reads what a decoder writes and no row of the encoder by itself, so "
            "it cannot be applied at a depth: measure it by patching.patch."
        )
    pairs = as_pairs(pairs)
    if any(pair.grade is None for pair in pairs):
        raise MechirError("Pairs without a grade are neither relevant nor not: give judged pairs.")
    sites, c = [Resid(0)], model.cfg  # even places are whole layers, odd ones attention
    sites += [Resid(layer, part) for layer in range(c.n_layers) for part in ("mid", "post")]
    places = {site.hook: place for place, site in enumerate(sites)}
    wide = torch.float64 if model.dtype == torch.float64 else torch.float32
    scores = torch.empty(len(pairs), len(sites), dtype=wide)
    encoded = model.encode(pairs, max_length)
    parts = encoded.parts
    means = torch.empty(len(pairs), c.n_layers + 1, len(parts), c.d_model)
    head = cast(Restarts, model).run_head if offers(model, Restarts) else None
    for index, batch in model.batches(encoded, progress=progress):
        rows, weights = torch.from_numpy(index), shares(batch.members(parts), wide)

        def read(_: str, x: Tensor, weights: Tensor = weights) -> tuple[Tensor, Tensor]:
            return x if head is None else head(x), weights @ x.to(wide)

        for name, (score, mean) in observe(model, batch, places.__contains__, read, head_row=False)[1].items():
            score = _score_of(model, batch, score) if head is None else score
            scores[rows, places[name]] = score.to(scores)
            if places[name] % 2 == 0:
                means[rows, places[name] // 2] = mean.to(means)
    refuse_non_finite(model, scores[:, -1], encoded)
    reads = len(parts) - 1 if model.structure.reads == "last" else 0
    numbers = {False: range(len(parts)), True: [reads]}
    cells = [(place, number) for place in range(len(sites)) for number in numbers[place % 2 == 1]]
    frame = crossed(
        pair_ids(pairs),
        site=[str(sites[place]) for place, _ in cells],
        depth=[place / 2 for place, _ in cells],
        segment=[str(parts[number]) for _, number in cells],
    )
    place, number = np.array(cells).T
    read_out = np.where(number == reads, scores.double().numpy()[:, place], np.nan).ravel()
    vectors = [None if place % 2 else row[place // 2, number] for row in means.numpy() for place, number in cells]
    return frame.assign(score=read_out, p=1 / (1 + np.exp(-read_out)), mean=pd.Series(vectors, dtype=object))


def _score_of(model: Reranker, batch: Batch, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch"]:
    """The score that the head reads from a residual stream, put in the place of what the last layer writes."""
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    with model.hooks([(last, lambda x, hook: resid)]):
        score: Tensor = model(batch)
    return score


def gathered(rows: pd.DataFrame, *, relevant: int = 1) -> pd.DataFrame:
    """The lens by depth and grade, which shows when relevance reaches CLS, from `read_depths`.

    Documents of grade `relevant` or more count as relevant.

    Returns:
        One row per site, measure and group of documents: `site`, `depth`, `measure`, `of`, `queries`, `estimate` with
        `low` and `high`, its 95 % bootstrap interval over queries. Within a query pairs count alike, then queries do.

        - `measure` "score" (log-odds) or "p" (0 to 1), `of` "grade 2": the mean over the queries that have that grade;
          `of` "relevant - others": the mean difference over the queries that have both, positive where relevant
          documents are ahead;
        - `measure` "auroc", `of` "lens": how often, within a query, the lens ranks a relevant document above another
          one (0.5 is chance; scores within 1e-5 are ties and count half). It knows no scale, so depths may be compared
          by it.

    When it misleads: see `read_depths`; the level and the size of a score at an early depth mean nothing by themselves.

    Raises:
        MechirError: where all pairs are relevant, or none.
    """
    lens = rows[rows["score"].notna()]
    lens = lens.assign(relevant=_relevant(lens, relevant))
    lines = []
    for (depth, site), part in lens.groupby(["depth", "site"]):
        at = {"site": site, "depth": depth}
        for measure in ("score", "p"):
            by_grade = part.pivot_table(index="query_id", columns="grade", values=measure, sort=True)
            sides = part.pivot_table(index="query_id", columns="relevant", values=measure)
            groups = {f"grade {grade}": by_grade[grade] for grade in by_grade} | {GAP: sides[True] - sides[False]}
            lines += [at | {"measure": measure, "of": name} | _estimated(values) for name, values in groups.items()]
        queries = part[part.groupby("query_id")["relevant"].transform("nunique") == 2].groupby("query_id")
        areas = [_auroc(_levels(rows["score"].to_numpy()), rows[["relevant"]].to_numpy()) for _, rows in queries]
        lines.append(at | {"measure": "auroc", "of": "lens"} | _estimated(np.array(areas).ravel()))
    return pd.DataFrame(lines)


def readable(
    rows: pd.DataFrame, *, relevant: int = 1, draws: int = DRAWS, penalty: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    """Probes relevance linearly in every layer and segment, from `read_depths`.

    A probe is a linear classifier by least squares with a ridge (Fisher's direction, shrunk) on the segment's mean
    residual, fitted on what differs between the documents of a query, features scaled to variance 1. Queries are cut
    into 5 parts (4 where there are 4), each read by a probe trained on the others: no query trains the probe that reads
    it. Queries whose documents are all relevant, or none, are left out.

    Documents of grade `relevant` or more count as relevant; `penalty` is the ridge's, relative to the variance of a
    feature; the control's labels are drawn `draws` times.

    Returns:
        One row per site (after whole layers), segment and measure, with the columns of `gathered`; `of` is the segment:

        - "auroc": how often, within a held-out query, the probe ranks a relevant document above another one, 0 to 1,
          averaged over queries, with the interval over them;
        - "control": the same of probes trained and tested on labels that were permuted within each query, averaged over
          queries and draws: 0.5, as nothing can be learnt. `low` and `high` hold 95 % of the draws: what chance alone
          reaches. Late layers have few strong directions, so that a single draw may land far from 0.5;
        - "selectivity": "auroc" - "control", query by query, with the interval over queries; positive where there is
          something to read.

        Queries share most of their probes' training data, so intervals over them are somewhat too narrow.

    When it misleads: a probe reads what nobody uses. On `planted.bm25()`, head 2.3 writes a second copy of the term
    frequencies that no part reads, and a probe of it does as well as one of the circuit. Set the embeddings (words and
    lengths alone) beside the later layers, and show use by intervention. A low value says that this linear probe, with
    so few queries, finds nothing in the mean, not that nothing is there.

    Raises:
        MechirError: where all pairs are relevant, or none; for fewer than 4 queries that have both; for fewer than 5
            draws.
    """
    if not penalty > 0:
        raise MechirError(f"penalty={penalty} is no ridge: write a number above 0.")
    vectors = both_sides(rows, relevant, draws).dropna(subset="mean")
    vectors = vectors.assign(query=vectors["query_id"].factorize()[0])
    lines = [
        {"site": site, "depth": depth, "measure": measure, "of": segment} | numbers
        for (depth, site, segment), part in vectors.groupby(["depth", "site", "segment"])
        for measure, numbers in _probed(part, draws, penalty, seed).items()
    ]
    return pd.DataFrame(lines)


def both_sides(rows: pd.DataFrame, relevant: int, draws: int = DRAWS) -> pd.DataFrame:
    """The rows of queries with documents on both sides of a grade, `relevant` their side; raises as `readable`."""
    if draws < FEWEST_DRAWS:
        raise MechirError(f"draws={draws} is too few for a control: write {FEWEST_DRAWS} or more.")
    labelled = rows.assign(relevant=_relevant(rows, relevant))
    both = labelled[labelled.groupby("query_id")["relevant"].transform("nunique") == 2]
    if (queries := both["query_id"].nunique()) < FEWEST_QUERIES:
        raise MechirError(
            f"{queries} queries have pairs on both sides of grade {relevant}: "
            f"a probe needs {FEWEST_QUERIES}, some to train on and some to test."
        )
    return both


def _probed(part: pd.DataFrame, draws: int, penalty: float, seed: int) -> dict[str, dict[str, Any]]:
    """The three measures of one segment at one site."""
    query, truth = part["query"].to_numpy(), part["relevant"].to_numpy()
    x = np.stack(part["mean"].to_list()).astype(float)
    labels = _labels(truth, query, draws, seed)
    predicted = _held_out(x, labels, query, penalty)
    # Controls are tested on labels of their own: two queries that each train the other's probe err together, and only
    # so do the draws spread as widely as the true labels would by chance.
    areas = np.array([_auroc(predicted[query == k], labels[query == k] > 0) for k in np.unique(query)])
    probe, control = areas[:, 0], areas[:, 1:].mean(1)
    low, high = np.quantile(areas[:, 1:].mean(0), [0.025, 0.975])
    return {
        "auroc": _estimated(probe),
        "control": _estimated(control) | {"low": low, "high": high},
        "selectivity": _estimated(probe - control),
    }


def _relevant(rows: pd.DataFrame, least: int) -> pd.Series:
    relevant, grades = rows["grade"] >= least, sorted(rows["grade"].unique().tolist())
    if relevant.nunique() < 2:
        raise MechirError(
            f"{'Every' if relevant.any() else 'No'} pair has grade {least} or more: the grades are {grades}; "
            "write relevant= with one that parts them."
        )
    return relevant


def _estimated(values: pd.Series | np.ndarray) -> dict[str, Any]:
    numbers = pd.Series(values, dtype=float).dropna()
    return {"queries": len(numbers)} | mean_row(numbers.to_numpy())


def _levels(scores: Float[np.ndarray, "pair"]) -> Float[np.ndarray, "pair 1"]:
    """The scores as whole levels, rounding apart: those within `TIE` of a neighbour share one."""
    order, levels = scores.argsort(), np.zeros((len(scores), 1))
    levels[order[1:], 0] = (np.diff(scores[order]) > TIE).cumsum()
    return levels


def _auroc(
    values: Float[np.ndarray, "pair probe"], truth: Bool[np.ndarray, "pair probe"]
) -> Float[np.ndarray, "probe"]:
    """The share of true pairs above false ones, ties half, by the sum of ranks."""
    n = truth.sum(0)
    above = np.where(truth, stats.rankdata(values, axis=0), 0.0).sum(0)
    return (above - n * (n + 1) / 2) / (n * (len(truth) - n))


def _labels(
    truth: Bool[np.ndarray, "pair"], query: Int[np.ndarray, "pair"], draws: int, seed: int
) -> Float[np.ndarray, "pair label"]:
    """The labels +1 and -1: the truth in the first column, then `draws` columns of it permuted within each query."""
    generator, labels = np.random.default_rng(seed), np.repeat(np.where(truth, 1.0, -1.0)[:, None], 1 + draws, 1)
    for k in np.unique(query):
        labels[query == k, 1:] = generator.permuted(labels[query == k, 1:], axis=0)
    return labels


def _held_out(
    x: Float[np.ndarray, "pair d_model"],
    labels: Float[np.ndarray, "pair label"],
    query: Int[np.ndarray, "pair"],
    penalty: float,
) -> Float[np.ndarray, "pair label"]:
    """The prediction for every pair by the probe of each column of labels, trained without the fold of its query.

    A probe is ridge regression within queries, on features of variance 1.
    """
    predicted, folds = np.zeros_like(labels), min(FOLDS, int(query.max()) + 1)
    for fold in range(folds):
        test = query % folds == fold
        train = ~test
        within, targets = (_centred(values[train], query[train]) for values in (x, labels))
        size = np.sqrt(np.square(within).mean(0))
        varies = size > CONSTANT * np.sqrt(np.square(x[train]).mean())
        if varies.any():
            scaled = within[:, varies] / size[varies]
            moments = scaled.T @ scaled / len(scaled) + penalty * np.eye(scaled.shape[1])
            weights = linalg.solve(moments, scaled.T @ targets / len(scaled), assume_a="pos")
            predicted[test] = x[test][:, varies] @ (weights / size[varies, None])
    return predicted


def _centred(x: Float[np.ndarray, "pair n"], query: Int[np.ndarray, "pair"]) -> Float[np.ndarray, "pair n"]:
    """Subtracts each query's mean."""
    return x - pd.DataFrame(x).groupby(query).transform("mean").to_numpy()
