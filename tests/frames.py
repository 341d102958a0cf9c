"""The frames of every experiment on a planted model and on the default one, small: what a change of form must keep.

`python -m tests.frames` writes them anew, which only a change of the numbers themselves asks for.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

import mechir as mi
from mechir import planted
from mechir.diagnostic_sets import diagnostic
from mechir.judged_collection import Collection
from mechir.registry.queries import matching
from mechir.registry.runs import Run

FOLDER = Path(__file__).parent / "data" / "frames"
LOOKS: dict[str, Any] = {"relevant": 3, "hard": 0, "weak": 1}
NEURONS: dict[str, Any] = {"take": 1, "tol": 0.05}
FEW = {"draws": 5}
ON_PAIRS: dict[str, dict[str, Any]] = {
    "vast2025/attention_contrast": LOOKS,
    "vast2025/qk_svd": LOOKS,
    "vast2025/qk_projection": {"heads": "h1.2,h3.1", "same_queries": True} | FEW,
    "vast2025/cls_lens": FEW,
    "vast2025/direction_ablation": {},
    "vast2025/layer_sweep": {"cut": "doc<-query"},
    "lu2025/soft_tf": {"heads": "h1.2,h3.1", "words": 8, "per_query": 1},
    "lu2025/idf_direction": {"vectors": 5},
    "lu2025/idf_edit": {"heads": "h3.1", "vector": 0, "sign": 1, "factors": "1,5", "per_query": 1} | FEW,
    "lu2025/semantic_bm25": {"heads": "h1.2,h0.0", "vector": 0, "sign": 1},
    "vast2024/importance": NEURONS,
    "vast2024/transfer": NEURONS,
    "vast2024/distribution": NEURONS,
    "vast2024/matching_heads": NEURONS,
    "vast2024/pruning": NEURONS | {"grid": "5", "every": 2, "draws": 20},
    "joint/examples": {"heads": "h1.2", "queries": 2},
    "joint/overlap": FEW,
}
ON_CONTRASTS: dict[str, dict[str, Any]] = {
    "chen2024/block_maps": {},
    "chen2024/head_attention": {},
    "chen2024/head_maps": {"at": "query|doc"},
    "chen2024/head_positions": {"heads": "h1.2,h3.1"},
    "lu2025/block_patching": {},
    "lu2025/head_to_heads": {"receivers": "h3.1", "ports": "v"},
    "lu2025/head_to_score": {},
    "polyakov2025/robust_metric": {},
}
WITH_FILLER, WITH_IDF = ("lu2025/soft_tf", "lu2025/idf_edit"), ("lu2025/idf_direction", "lu2025/idf_edit")
QUERIES, MOST = 8, 60
"""Queries of each collection; rows that are kept of a frame."""
WHERE = ("parity", "collection_full_name", "collection_sha256")
"""Columns of findings that another machine or folder has otherwise."""


def graded(folder: Path, queries: int) -> tuple[planted.PlantedEncoder, Collection, str]:
    """A planted model, a collection of its judged pairs, and the table of IDF that it holds."""
    model = planted.bm25(c=3.0, seed=0, idf_scale=5.0, apart=True)
    pairs = planted.graded(model, queries, 1)
    texts = {pair.query_id: pair.query for pair in pairs}
    (folder / "queries.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in texts.items()))
    (folder / "docs.tsv").write_text("".join(f"{pair.doc_id}\t{pair.document}\n" for pair in pairs))
    (folder / "qrels.txt").write_text("".join(f"{pair.query_id} 0 {pair.doc_id} {pair.grade}\n" for pair in pairs))
    (folder / "idf.tsv").write_text("".join(f"{word}\t{idf}\n" for word, idf in model.design.idf.items()))
    return model, mi.collection(folder), str(folder / "idf.tsv")


def runs_of(name: str, folder: Path) -> Iterator[Run]:
    """Every experiment on the model `name`, "planted" or "default", and on the default one what needs two of those."""
    (folder / "collection").mkdir()
    if name == "planted":
        model, collection, idf = graded(folder / "collection", QUERIES)
        filler, pool, other = "in", mi.Pool(), {"idf": idf}
    else:
        model, collection, filler = mi.load(), mi.collection("embedded"), "a"
        pool, other = mi.Pool(per_grade=1, easy_negatives=2, limit_queries=QUERIES), {}
    registry = folder / "registry"
    for experiment, chosen in ON_PAIRS.items():
        if (name, experiment) == ("planted", "vast2025/qk_projection"):
            continue  # its W_QK has almost no rank: random directions of what is left are rounding
        chosen = chosen | ({"filler": filler} if experiment in WITH_FILLER else {})
        chosen = chosen | (other if experiment in WITH_IDF else {})
        if name == "default" and "weak" in chosen:
            chosen = chosen | {"relevant": 2, "weak": -1}
        yield mi.run(experiment, model, collection, pool=pool, registry=registry, **chosen)
    sample = {key: value for key, value in vars(pool).items() if key != "max_length"}
    contrasts = diagnostic("tfc1", collection, fillers=(filler,), model=model, **sample)
    for experiment, chosen in ON_CONTRASTS.items():
        yield mi.run(experiment, model, contrasts, registry=registry, **chosen)


def frames(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Of every experiment its summary and findings as they are, and of its rows the number and the means."""
    registry, found = folder / "registry", {}
    for run in runs_of(name, folder):
        told = matching(registry, runs=[run.id])
        told = told.drop(columns=["run_id", "written", *WHERE], errors="ignore")
        numeric = run.rows.select_dtypes("number").mean()
        found[run.record["identity"]["experiment"]] = {
            "rows": {"n": len(run.rows)} | {str(key): float(value) for key, value in numeric.items()},
            "summary": records(run.summary),
            "findings": records(told),
        }
    return found


def records(frame: pd.DataFrame) -> dict[str, Any]:
    """The columns, how many rows there are, and the first of them."""
    if not len(frame):
        return {}
    first = json.loads(frame.head(MOST).to_json(orient="split", index=False, double_precision=7))
    return first | {"n": len(frame)}


def main() -> None:
    """Writes the frames that are there today."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or ("planted", "default"):
        with tempfile.TemporaryDirectory() as folder:
            found = frames(name, Path(folder))
        text = json.dumps(found, indent=0, sort_keys=True) + "\n"
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}: {len(found)} experiments, {len(text):,} characters")


if __name__ == "__main__":
    main()
