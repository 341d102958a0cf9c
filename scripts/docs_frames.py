"""Numbers of the documentation that no experiment stores: small computations, each a frame or several by name."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import mechir as mi
from mechir.catalog import load_experiment
from mechir.diagnostic_sets import AXIOMS
from mechir.experiment import Inputs
from mechir.methods import paths as paths_
from mechir.methods import ranking
from mechir.methods.tokens import token_attribution
from mechir.methods.walk import Way
from scripts import measure_alignment, measure_edges, measure_planted

DOCS = Path(__file__).parent.parent / "docs"
FENCED = re.compile(r"```python\n(.*?)```", re.DOTALL)
POOLS: dict[str, dict[str, Any]] = {
    "--per-grade 5": {"per_grade": 5},
    "--per-grade 5 --easy-negatives 5": {"per_grade": 5, "easy_negatives": 5},
    "--per-grade 10": {"per_grade": 10},
    "--per-grade 20": {"per_grade": 20},
    "--per-grade 20 --easy-negatives 20": {"per_grade": 20, "easy_negatives": 20},
    "all judged": {},
    "--run bm25 --top-k 50": {"run": "bm25", "top_k": 50},
    "--run bm25 --top-k 100": {"run": "bm25", "top_k": 100},
}
CUTS = tuple(f"{reader}<-query" for reader in ("cls", "doc", "sep1", "sep2"))


def pools(folder: str) -> pd.DataFrame:
    """What pools of a collection give: `pool`, `pairs`, `random`, the nDCG@10 of a random order (analytic)."""
    collection, lines = mi.collection(folder), []
    for pool, options in POOLS.items():
        pairs = collection.pairs(**options)
        ids = pd.DataFrame({"query_id": [pair.query_id for pair in pairs], "doc_id": [pair.doc_id for pair in pairs]})
        judged = collection.judged(pairs, full="top_k" in options)
        lines.append({"pool": pool, "pairs": len(pairs), "random": ranking.random_ndcg(ids, judged)["value"].mean()})
    return pd.DataFrame(lines)


def others(checkpoint: str, folder: str) -> pd.DataFrame:
    """Relevant documents asked by another query of equal length: the mean |change| of the score.

    `how`: intact; `zero`, where nobody but the query reads the query, as the papers cut; `renormalised`, cut before the
    softmax. Of each query the documents of the highest grade, at most five; the other query is the next of its length.
    """
    model, collection = mi.load(checkpoint), mi.collection(folder)
    best = max(grade for own in collection.qrels.values() for grade in own.values())
    pairs = [pair for pair in collection.pairs(per_grade=5) if pair.grade == best]
    length = {id_: len(model.tokenizer(text)["input_ids"]) for id_, text in collection.queries.items()}
    ids = sorted(collection.queries)
    ring = [*ids, *ids]
    both = []
    for pair in pairs:
        after = ring[ids.index(pair.query_id) + 1 :][: len(ids) - 1]
        other = next((neighbour for neighbour in after if length[neighbour] == length[pair.query_id]), None)
        both += [] if other is None else [(pair, mi.Pair(collection.queries[other], pair.document))]
    hows: dict[str, list[Any]] = {"intact": [], "zero": [mi.Mask(cut) for cut in CUTS]}
    hows["renormalised"] = [mi.Mask(cut, renormalise=True) for cut in CUTS]
    lines = []
    for how, do in hows.items():
        own, theirs = (model.score([two[k] for two in both], do=do) for k in (0, 1))
        lines.append({"how": how, "pairs": len(both), "change": (theirs - own).abs().mean().item()})
    return pd.DataFrame(lines)


def power() -> pd.DataFrame:
    """What `mechir run --dry-run` says can be found, from the spread over queries in the pathway's own runs."""
    from scripts.docs_made import alone

    pathway, collection = load_experiment("joint/pathway"), mi.collection("embedded")
    pool = mi.Pool(**pathway.embedded)
    with tempfile.TemporaryDirectory() as folder:
        registry = alone("pathway", Path(folder))
        table = pathway().power(Inputs(mi.load(), pool.pairs(collection), collection, pool, registry))
    assert table is not None
    return table


def diagnostics() -> pd.DataFrame:
    """Every diagnostic set of 10 queries, with each filler: how many pairs it has and skips, and mean scores.

    `gap` is donor - base, `change` is donor - unedited.
    """
    model, lines = mi.load(), []
    for name in AXIOMS:
        made = mi.diagnostic(name, model=model, limit_queries=10)
        for filler in made.fillers:
            aligned = made.align(model, filler)
            base, donor = (model.score(side).mean().item() for side in (aligned.bases, aligned.donors))
            line = {"name": name, "filler": filler, "pairs": len(made.cases) + len(made.refused)}
            line |= {"skipped": len(aligned.skipped), "base": base, "donor": donor, "gap": donor - base}
            unedited = model.score([case[0] for case in made.cases]).mean().item()
            lines.append(line | {"unedited": unedited, "change": donor - unedited})
    return pd.DataFrame(lines)


def paths() -> pd.DataFrame:
    """Paths from heads to the score by what is frozen, on TFC1 of three queries.

    A row per head: `layer`; the mean |effect| and the median `departure` of `heads_live`, `heads_frozen`, `edges_live`,
    `edges_frozen` (all heads frozen, or MLPs as well; LayerNorms live or frozen), and the |mean effect|, `told`.
    """
    model = mi.load()
    contrasts = mi.diagnostic("tfc1", limit_queries=3).align(model, "a").contrasts
    columns: dict[str, pd.Series] = {"pairs": pd.Series(dtype=float)}
    for what, freeze in (("heads", "heads"), ("edges", "heads+mlps")):
        for ln in ("live", "frozen"):
            rows = paths_.path_patch(model, contrasts, freeze=freeze, ln=ln, progress=False)
            rows = rows[rows["sender"].astype(str).str.startswith("h")]
            of = rows.assign(size=rows["effect"].abs()).groupby(rows["sender"].astype(str), sort=False)
            columns |= {f"{what}_{ln}": of["size"].mean(), f"departure_{what}_{ln}": of["departure"].median()}
            if (what, ln) == ("heads", "live"):
                columns |= {"told": of["effect"].mean().abs(), "pairs": of.size()}
    summary = pd.DataFrame(columns).rename_axis("site").reset_index()
    return summary.assign(layer=summary["site"].str.extract(r"h(\d+)", expand=False).astype(int))


def padded() -> pd.DataFrame:
    """What pairs of six queries score and, `empty`, what the model gives as much [PAD] in their place."""
    model, pairs = mi.load(), mi.collection("embedded").pairs(limit_queries=6)
    once = Way("pad_both", steps=1, max_steps=1, tol=float("inf"))
    checks = token_attribution(model, pairs, way=once, progress=False).checks
    scores = np.asarray(model.score(pairs))
    return pd.DataFrame({"grade": [pair.grade for pair in pairs], "score": scores, "empty": scores - checks["delta"]})


def planted_edges() -> pd.DataFrame:
    """What methods find of the planted edges: see `scripts/measure_edges.py`."""
    return measure_edges.table()


def alignment() -> pd.DataFrame:
    """How often the test of aligned heads finds something: see `scripts/measure_alignment.py`."""
    return measure_alignment.table()


def across_models(checkpoint: str) -> Mapping[str, pd.DataFrame]:
    """The default model beside its backbone and a checkpoint, and their `gaps`: see `scripts/compare_models.py`."""
    from scripts import compare_models

    return compare_models.compared(Path(checkpoint))


def planted() -> Mapping[str, pd.DataFrame]:
    """How close planted models are to their closed form, and what masks do to one: `table` and `masks`."""
    with torch.no_grad():
        return {"table": measure_planted.table(), "masks": measure_planted.masks()}


def code(page: str) -> Mapping[str, pd.DataFrame]:
    """The Python of a page, run from the top: what its variables hold in the end, by their names."""
    names: dict[str, Any] = {}
    for block in FENCED.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")):
        exec(compile(block, page, "exec"), names)  # our own documentation
    framed = {name: _framed(value) for name, value in names.items() if not name.startswith("_")}
    return {name: frame for name, frame in framed.items() if frame is not None}


def _framed(value: Any) -> pd.DataFrame | None:
    """A table as it is, numbers as the column `value`; None for anything else."""
    if isinstance(value, pd.DataFrame):
        return value.reset_index() if value.index.name else value
    if isinstance(value, pd.Series) and value.dtype.kind in "fi":
        return value.rename("value").rename_axis(value.index.name or "place").reset_index()
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim == 1:
        return pd.DataFrame({"value": np.asarray(value, dtype=float)})
    if isinstance(value, int | float) and not isinstance(value, bool):
        return pd.DataFrame({"value": [float(value)]})
    return None


def digest(page: str) -> str:
    """Of the code on a page."""
    text = "".join(FENCED.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def made(command: str) -> Mapping[str, pd.DataFrame]:
    """`pools FOLDER`, ...: a function of this file and what it is given; a single frame has no name."""
    name, *given = command.split()
    every = (pools, others, power, diagnostics, paths, padded, planted, planted_edges, alignment, across_models, code)
    computations = {each.__name__: each for each in every}
    result = computations[name](*given)
    return {"": result} if isinstance(result, pd.DataFrame) else result
