"""What it costs to know what was read: fingerprint, certificate and the look for changes, beside loading and scoring.

Usage: python scripts/bench_input.py [--model DIR] [--collection DIR] [--queries N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import transformers

import mechir as mi
from mechir.encoder.certify import refuse_altered
from mechir.encoder.fingerprint import digests, fingerprint
from mechir.encoding import encode_readable

REPEATS = 5


def seconds(call: Callable[[], Any]) -> float:
    """The median time of several calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def hugging_face(folder: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        transformers.AutoTokenizer.from_pretrained(folder)
        transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--collection", default="embedded")
    parser.add_argument("--queries", type=int, default=20)
    arguments = parser.parse_args()
    model = mi.load(arguments.model)
    pairs = mi.collection(arguments.collection).pairs(limit_queries=arguments.queries, easy_negatives=0)
    rows = {"load": seconds(lambda: mi.load(arguments.model))}
    if arguments.model != "embedded":
        rows["of Hugging Face alone"] = seconds(lambda: hugging_face(arguments.model))
    kept = digests(model.hf)
    rows["digests of all tensors"] = seconds(lambda: digests(model.hf))
    rows["fingerprint of them, config and tokenizer"] = seconds(
        lambda: fingerprint(kept, model.hf, model.tokenizer, model.max_length)
    )
    rows["hooks, changes (once a run)"] = seconds(lambda: refuse_altered(model))
    rows["certificate of 8 pairs (once a model)"] = seconds(lambda: model.certify(pairs[:: len(pairs) // 8][:8]))
    rows["which pairs can be read"] = seconds(lambda: encode_readable(model.writer, pairs, model.max_length))
    scoring = seconds(lambda: model.score(pairs, progress=False))
    rows[f"scoring {len(pairs)} pairs once"] = scoring
    print(
        f"{model.cfg.model_name}: {sum(p.numel() for p in model.hf.parameters()):,} parameters, median of {REPEATS}\n"
    )
    print("| what | seconds | share of scoring once |\n|---|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} | {value / scoring:.3f} |")


if __name__ == "__main__":
    main()
