"""What methods find of the planted edges, how near they come to exact effects, and whether edges add up: two tables.

python scripts/measure_edges.py [--pairs 48]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import mechir as mi
from mechir import planted
from mechir.methods.circuit_runs import as_contrasts

WAYS: dict[str, dict[str, Any]] = {
    "exact": {"method": "exact"},
    "eap-ig, frozen": {},
    "eap-ig, jacobian": {"ln": "jacobian"},
    "eap-ig, none": {"ln": "none"},
    "eap at the base": {"method": "eap"},
    "eap at the base, QK fix": {"method": "eap", "qk_fix": True},
    "eap at the donor": {"method": "eap", "point": "donor"},
    "eap at the donor, QK fix": {"method": "eap", "point": "donor", "qk_fix": True},
}
MODELS = {"c100": {}, "c3": {"c": 3.0}, "c1": {"c": 1.0}, "a20": {"a": 20.0}}


def table(n: int = 48) -> pd.DataFrame:
    """A line per counterfactual, model and way: `auroc`, `margin` (least planted over largest other), `r` with exact.

    `signs`: planted edges whose sign is not that of their exact effect.
    """
    lines = []
    for counterfactual in ("tf", "query"):
        for name, dials in MODELS.items():
            model = planted.bm25(**dials)
            pairs = planted.pairs(model, n=n, counterfactual=counterfactual)
            truth, exact = planted.truth(model, counterfactual).edges, None
            for way, options in WAYS.items():
                scores = mi.edges(model, pairs, **options)
                exact = scores.estimate if exact is None else exact
                inside = np.array([edge in truth for edge in scores.graph.edges])
                size = np.abs(scores.estimate)
                line = {
                    "counterfactual": counterfactual,
                    "model": name,
                    "way": way,
                    "auroc": roc_auc_score(inside, size),
                }
                line |= {"margin": size[inside].min() / size[~inside].max()}
                line |= {"r": np.corrcoef(scores.estimate, exact)[0, 1]}
                wrong = np.sign(scores.estimate[inside]) != np.sign(exact[inside])
                lines.append(line | {"signs": int(wrong.sum())})
    return pd.DataFrame(lines)


def chain(n: int = 48) -> pd.DataFrame:
    """A line per model: how far the first-order edges out of a sender are from adding up to its attribution.

    `jacobian`, `frozen`, `none`: the largest difference over senders and contrasts, as a share of the largest
    attribution.
    """
    lines = []
    for name, dials in MODELS.items():
        model = planted.bm25(**dials)
        contrasts = as_contrasts(planted.pairs(model, n=n))
        nodes = mi.attribute(model, contrasts, qk_fix=False).groupby("site", sort=False)["effect"].apply(np.array)
        line: dict[str, Any] = {"model": name}
        for ln in ("jacobian", "frozen", "none"):
            scores = mi.edges(model, contrasts, method="eap", ln=ln)
            senders = np.array([str(sender) for sender, _ in scores.graph])
            gaps = [np.abs(scores.values[:, senders == site].sum(1) - node).max() for site, node in nodes.items()]
            line[ln] = max(gaps) / max(np.abs(node).max() for node in nodes)
        lines.append(line)
    return pd.DataFrame(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=48)
    pairs = parser.parse_args().pairs
    for frame in (table(pairs), chain(pairs)):
        print(frame.to_string(index=False, float_format="{:.4g}".format), end="\n\n")


if __name__ == "__main__":
    main()
