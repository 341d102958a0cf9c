"""How close the planted models are to their closed form, and how far their circuit stands out: worst of 10 seeds.

python scripts/measure_planted.py [--seeds 10] [--pairs 200]
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau, pearsonr

import mechir as mi
from mechir import planted
from mechir.segments import FIVE

HEADS = [mi.Head(layer, head) for layer in range(4) for head in range(4)]


def closeness(model: planted.PlantedEncoder, pairs: list[mi.Pair]) -> tuple[float, float]:
    """Pearson over all pairs and mean within-query Kendall, with the closed form."""
    frame = pd.DataFrame({"query": [pair.query_id for pair in pairs], "score": np.asarray(model.score(pairs))})
    frame["wanted"] = planted.bm25_scores(model, pairs)
    taus = [kendalltau(rows.score, rows.wanted).statistic for _, rows in frame.groupby("query")]
    return pearsonr(frame.score, frame.wanted).statistic, float(np.mean(taus))


def margins(model: planted.PlantedEncoder, pairs: list[mi.Pair]) -> dict[str, float]:
    """`margin_zero`, ...: the smaller effect of the two planted heads over the largest of any other, by ablation."""
    kinds = {"zero": None, "mean": mi.means(model, pairs), "resample": mi.samples(model, pairs)}
    true, margins = {str(head) for head in planted.truth(model, "tf").sites}, {}
    for kind, with_ in kinds.items():
        do = {"original": ()} | {str(head): mi.Ablate(head, with_=with_) for head in HEADS}
        rows = mi.sweep(model, pairs, do, progress=False)
        scores = rows.pivot(index=["query_id", "doc_id"], columns="name", values="score")
        effect = scores.sub(scores["original"], axis=0).abs().mean().drop("original")
        margins[f"margin_{kind}"] = effect[effect.index.isin(true)].min() / effect[~effect.index.isin(true)].max()
    return margins


def table(seeds: int = 10, n: int = 200) -> pd.DataFrame:
    """A row per `c` and `a`: the worst of so many models of `pearson`, `kendall` and the margins by each ablation."""
    lines = []
    for c, a in ((100, 8), (100, 20), (3, 8), (3, 20), (1, 8), (1, 20)):
        rows = []
        for seed in range(seeds):
            model = planted.bm25(c=c, a=a, seed=seed)
            pairs = [base for base, _ in planted.pairs(model, n=n, seed=seed)]
            pearson, kendall = closeness(model, pairs)
            rows.append({"pearson": pearson, "kendall": kendall} | margins(model, pairs[:60]))
        lines.append({"c": c, "a": a} | pd.DataFrame(rows).min().to_dict())
    return pd.DataFrame(lines)


def masks(n: int = 200) -> pd.DataFrame:
    """At c = 100, of every direction that is masked after the softmax: within-query `kendall` with the intact score.

    Scores are compared to five decimals: what differs by less is float32 noise.
    """
    model = planted.bm25(c=100, seed=0)
    pairs = [base for base, _ in planted.pairs(model, n=n, seed=0)]
    frame, lines = pd.DataFrame({"query": [pair.query_id for pair in pairs], "intact": _rounded(model, pairs)}), []
    for reader, source in itertools.product(FIVE, FIVE):
        direction = f"{reader}<-{source}"
        frame["cut"] = _rounded(model, pairs, mi.Mask(direction))
        taus = [_tau(rows["intact"], rows["cut"]) for _, rows in frame.groupby("query")]
        lines.append({"direction": direction, "kendall": float(np.mean(taus))})
    return pd.DataFrame(lines)


def _rounded(model: planted.PlantedEncoder, pairs: list[mi.Pair], *do: mi.Mask) -> np.ndarray:
    return np.asarray(model.score(pairs, do=list(do)), dtype=float).round(5)


def _tau(one: pd.Series, other: pd.Series) -> float:
    """Kendall's; 0 where one of them is constant."""
    tau = kendalltau(one, other).statistic
    return 0.0 if np.isnan(tau) else float(tau)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=200)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    for frame in (table(options.seeds, options.pairs), masks(options.pairs)):
        print(frame.to_string(index=False, float_format=lambda value: f"{value:.7g}"))


if __name__ == "__main__":
    main()
