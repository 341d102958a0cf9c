"""How close the planted models are to their closed form, and how far their circuit stands out: worst of 10 seeds.

python scripts/measure_planted.py [--seeds 10] [--pairs 200]
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau, pearsonr

import mechir as mi
from mechir import planted

HEADS = [mi.Head(layer, head) for layer in range(4) for head in range(4)]


def closeness(model: planted.PlantedEncoder, pairs: list[mi.Pair]) -> tuple[float, float]:
    """Pearson over all pairs and mean within-query Kendall, with the closed form."""
    frame = pd.DataFrame({"query": [pair.query_id for pair in pairs], "score": np.asarray(model.score(pairs))})
    frame["wanted"] = planted.bm25_scores(model, pairs)
    taus = [kendalltau(rows.score, rows.wanted).statistic for _, rows in frame.groupby("query")]
    return pearsonr(frame.score, frame.wanted).statistic, float(np.mean(taus))


def margins(model: planted.PlantedEncoder, pairs: list[mi.Pair]) -> dict[str, float]:
    """The smaller effect of the two planted heads over the largest of any other, by ablation."""
    kinds = {"zero": None, "mean": mi.means(model, pairs), "resample": mi.samples(model, pairs)}
    true, found = {str(head) for head in planted.truth(model, "tf").sites}, {}
    for kind, with_ in kinds.items():
        do = {"original": ()} | {str(head): mi.Ablate(head, with_=with_) for head in HEADS}
        rows = mi.sweep(model, pairs, do, progress=False)
        scores = rows.pivot(index=["query_id", "doc_id"], columns="name", values="score")
        effect = scores.sub(scores["original"], axis=0).abs().mean().drop("original")
        found[kind] = effect[effect.index.isin(true)].min() / effect[~effect.index.isin(true)].max()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=200)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    table = []
    for c, a in ((100, 8), (100, 20), (3, 8), (3, 20), (1, 8), (1, 20)):
        rows = []
        for seed in range(options.seeds):
            model = planted.bm25(c=c, a=a, seed=seed)
            pairs = [base for base, _ in planted.pairs(model, n=options.pairs, seed=seed)]
            pearson, kendall = closeness(model, pairs)
            margin = {f"margin, {kind}": value for kind, value in margins(model, pairs[:60]).items()}
            rows.append({"pearson": pearson, "kendall": kendall} | margin)
        worst = pd.DataFrame(rows).min()
        table.append({"c": c, "a": a} | worst.to_dict())
        print(table[-1], flush=True)
    print(pd.DataFrame(table).to_string(index=False, float_format=lambda value: f"{value:.7g}"))


if __name__ == "__main__":
    main()
