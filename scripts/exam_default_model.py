"""The exam of the model that ships: nDCG@10 of its re-ranking, beside BM25, chance and its teacher.

    python scripts/exam_default_model.py --shared DIR [--model embedded] [--teacher DIR] [--only dl19 ...] [--write]

On each collection in DIR/data (DIR: by default MECHIR_SHARED) the BM25 top 50 is re-ranked; on the embedded collection
its default pool. `--write` puts the table into docs/default.md, the model card and the datasheet, with the bi-encoder
that the model was made from.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

import mechir as mi
from mechir.encoder.checkpoint import read_json
from mechir.encoder.default import FOLDER, backbone, embedded
from mechir.encoder.opening import load
from mechir.inference import mean_interval
from mechir.methods import ranking
from scripts.docs_markers import put

ROOT = Path(__file__).parent.parent
EXAMS = {"dl19": {"run": "bm25", "top_k": 50}, "cranfield": {"top_k": 50}, "vaswani": {"top_k": 50}}
TITLES = {"dl19": "TREC DL 2019", "cranfield": "Cranfield", "vaswani": "Vaswani", "embedded": "embedded"}
PAGES = {
    "docs/default.md": tuple(TITLES),
    "mechir/data/MODEL_CARD.md": tuple(TITLES),
    "mechir/data/embedded/DATASHEET.md": ("embedded",),
}
"""The pages with the table, and the collections that each shows."""
RANKERS = {
    "random (analytic)": "random (analytic)",
    "BM25": "BM25",
    "bi-encoder": "bi-encoder (its teacher)",
    "model": "embedded model",
}


def teacher_scores(folder: Path, pairs: list[mi.Pair]) -> list[float]:
    """Cosines of mean-pooled vectors: the bi-encoder as it is."""
    from train_default_model import embed

    texts = list({text: None for pair in pairs for text in (pair.query, pair.document)})
    place, vectors = {text: k for k, text in enumerate(texts)}, embed(folder, texts, length=512)
    queries, documents = (
        [place[text] for text in side] for side in zip(*[(p.query, p.document) for p in pairs], strict=True)
    )
    return (vectors[queries] * vectors[documents]).sum(-1).tolist()


def bm25_scores(collection: mi.Collection, pairs: list[mi.Pair]) -> list[float]:
    """BM25's order of the pool, as scores: what it does not find comes last, in the order drawn at random."""
    ranked = collection.pairs(top_k=len(collection.docs))
    place = {(pair.query_id, pair.doc_id): -rank for rank, pair in enumerate(ranked)}
    last = -len(ranked) - 1
    return [place.get((pair.query_id, pair.doc_id), last) for pair in pairs]


def exam(name: str, collection: mi.Collection, pairs: list[mi.Pair], full: bool, scorers: dict) -> list[dict]:
    judged = collection.judged(pairs, full=full)
    ids = {"query_id": [pair.query_id for pair in pairs], "doc_id": [pair.doc_id for pair in pairs]}
    table = []
    for who, scores in scorers.items():
        begun = time.perf_counter()
        frame = pd.DataFrame(ids | {"score": scores(collection, pairs)})
        values = ranking.ndcg(frame, judged[["query_id", "doc_id", "grade"]])["value"]
        low, high = mean_interval(values.to_numpy())
        line = {"collection": name, "ranker": who, "n": len(values), "ndcg": values.mean(), "low": low, "high": high}
        table.append(line | {"seconds": time.perf_counter() - begun})
    chance = ranking.random_ndcg(frame, judged[["query_id", "doc_id", "grade"]])["value"]
    return [*table, {"collection": name, "ranker": "random (analytic)", "n": len(chance), "ndcg": chance.mean()}]


def lines_of(table: pd.DataFrame, names: Sequence[str]) -> list[list[str]]:
    """A line for each ranker, a column for each of these collections."""
    results = table.set_index(["ranker", "collection"])
    lines = [["nDCG@10", *(f"{TITLES[name]} (n = {results.loc['BM25', name]['n']:.0f})" for name in names)]]
    for ranker, title in RANKERS.items():
        cells = [results.loc[ranker, name] for name in names]
        lines.append([title, *(f"{cell['ndcg']:.3f}{_interval(cell['low'], cell['high'])}" for cell in cells)])
    return lines


def _interval(low: float, high: float) -> str:
    return "" if pd.isna(low) else f" [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a checkpoint, or a folder with manifest.json [default: the embedded model]")
    parser.add_argument("--teacher", type=Path, help="the bi-encoder's folder, to put it beside")
    parser.add_argument("--only", nargs="*", default=["embedded", *EXAMS])
    parser.add_argument("--csv", type=Path, help="where the table goes as well")
    parser.add_argument("--shared", type=Path, default=os.environ.get("MECHIR_SHARED"), help="the folder of data/")
    parser.add_argument("--write", action="store_true", help="write the table into its three pages")
    options = parser.parse_args()
    if options.write and (options.model or set(options.only) != TITLES.keys()):
        parser.error("--write is for the embedded model on all collections: leave --model and --only out")
    if options.shared is None and set(options.only) - {"embedded"}:
        parser.error("give --shared DIR, or set MECHIR_SHARED")
    torch.set_grad_enabled(False)
    ours = options.model is not None and (Path(options.model) / "manifest.json").is_file()
    model = embedded(Path(options.model)) if ours else load(options.model)
    scorers = {"BM25": bm25_scores, "model": lambda _, pairs: model.score(pairs)}
    teacher = options.teacher
    if options.write and teacher is None:
        teacher = backbone(read_json(FOLDER / "manifest.json")["backbone"])
    if teacher:
        scorers["bi-encoder"] = lambda _, pairs: teacher_scores(teacher, pairs)
    table = []
    for name in options.only:
        if name == "embedded":
            collection = mi.collection(name)
            pairs, full = collection.pairs(easy_negatives=20), False
        else:
            collection = mi.collection(options.shared / "data" / name)
            pairs, full = collection.pairs(**EXAMS[name]), True
        ranked = scorers
        if name == "dl19":  # its BM25 run is a file of its own, in its order
            ranked = scorers | {"BM25": lambda _, pairs: [-place for place in range(len(pairs))]}
        table += exam(name, collection, pairs, full, ranked)
    if options.csv:
        pd.DataFrame(table).to_csv(options.csv, index=False)
    print(pd.DataFrame(table).to_string(index=False, float_format="%.4f"))
    for page, names in PAGES.items() if options.write else ():
        put(ROOT / page, "exam", lines_of(pd.DataFrame(table), names))


if __name__ == "__main__":
    main()
