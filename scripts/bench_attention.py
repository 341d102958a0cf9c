"""Time and memory of the attention contrast and the spectra, as ratios inside one run; prints a table in Markdown.

Run: python scripts/bench_attention.py --model DIR --collection DIR [--pairs 1000] [--large 10000] [--rounds 3]

The contrast reduces every pattern on the fly, so it should cost little more than scoring the same pairs, in time and in
peak memory, however many there are. Peak memory is that of a process of its own, and so is the time of --large.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
import transformers
from bench_engine import alternate, arguments_of

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.encoder.families import FAMILIES
from mechir.methods.matching import attention_by_grade
from mechir.methods.spectra import qk_spectra


def main() -> None:
    arguments = _arguments()
    if arguments.side:
        print(json.dumps(one_side(arguments)))
        return
    model = mi.load(arguments.model, device=arguments.device)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {model.device}"
    print(f"{machine}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| what | ours | other | ratio or value | wanted |\n|---|---|---|---|---|")
    rows = [contrast(model, arguments), *alone(arguments, arguments.pairs)[1:]]
    for row in (*rows, *(alone(arguments, arguments.large) if arguments.large else ()), spectra()):
        print(f"| {' | '.join(row)} |", flush=True)


def drawn(collection: str, n: int) -> list[mi.Pair]:
    """So many pairs drawn once, repeated where the collection has fewer."""
    pairs = mi.collection(collection).pairs(easy_negatives=10)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    return [pairs[order[k % len(order)]] for k in range(n)]


def contrast(model: HookedEncoder, arguments: argparse.Namespace) -> tuple[str, ...]:
    pairs = drawn(arguments.collection, arguments.pairs)
    ours, other = alternate(lambda: attention_by_grade(model, pairs), lambda: model.score(pairs), arguments.rounds)
    what = f"contrast / plain scoring, {len(pairs)} pairs"
    return (what, f"{ours:.2f} s", f"{other:.2f} s", f"{ours / other:.2f}", "<= 1.6")


def alone(arguments: argparse.Namespace, n: int) -> list[tuple[str, ...]]:
    """Time and peak memory of so many pairs, each side once in a process of its own."""
    sides = []
    for side in ("contrast", "score"):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--pairs", str(n)]
        sides.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    rows = []
    for what, unit, wanted in (("", "s", 1.6), ("peak memory, ", "GB", 1.3)):
        ours, other = (side[unit] for side in sides)
        numbers = (f"{ours:.2f} {unit}", f"{other:.2f} {unit}", f"{ours / other:.2f}", f"<= {wanted}")
        rows.append((f"{what}contrast / plain scoring, {n} pairs", *numbers))
    return rows


def one_side(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds, and peak resident memory of this process, of one side."""
    model = mi.load(arguments.model, device=arguments.device)
    pairs = drawn(arguments.collection, arguments.pairs)
    start = time.perf_counter()
    if arguments.side == "contrast":
        attention_by_grade(model, pairs)
    else:
        model.score(pairs)
    seconds = time.perf_counter() - start
    return {"s": seconds, "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def spectra() -> tuple[str, ...]:
    """All heads of a model of BERT-base's shape, random weights."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=100, num_labels=1)
    hf = transformers.BertForSequenceClassification(config)
    model = HookedEncoder(hf, None, FAMILIES["bert"])
    start = time.perf_counter()
    rows: Sequence[object] = qk_spectra(model)["site"].tolist()
    seconds = time.perf_counter() - start
    return (f"spectra of {len(rows)} heads, BERT-base's shape", f"{seconds:.1f} s", "", f"{seconds:.1f} s", "<= 20 s")


def _arguments() -> argparse.Namespace:
    parser = arguments_of(__doc__, pairs=1000, rounds=3)
    parser.add_argument("--large", type=int, default=0, help="so many pairs as well, once, e.g. 10000")
    parser.add_argument("--side", choices=["contrast", "score"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
