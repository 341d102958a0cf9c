"""Speed and memory of edges and circuits, as ratios inside one run; prints a table in Markdown.

Run: python scripts/bench_circuits.py --model DIR --collection DIR [--device cuda] [--rounds 3] [--pairs 32]
[--whole] [--large]

"forwards" are plain forwards over the same batches of bases, side by side. `exact` is held against one forward per edge
on the same batches, on some of the edges of every layer, in the proportion in which there are edges. `--large` adds a
model of 12 layers of BERT-base's shape with random weights, at batch 8 x 180 tokens, with the peak memory of a process
of its own.
"""

from __future__ import annotations

import argparse
import json
import string
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
import transformers
from bench_engine import alternate, arguments_of, machine, peak_gb
from bench_patching import made

import mechir as mi
from mechir.contrasts import ContrastBatch, encode_contrasts
from mechir.encoder import HookedEncoder
from mechir.encoder.families import FAMILIES
from mechir.methods.edge_graph import Graph
from mechir.methods.edge_patching import exact
from mechir.methods.edges import edges
from mechir.methods.paths import Run
from mechir.pair import Pair


def main() -> None:
    arguments = _arguments()
    if arguments.peak:
        print(json.dumps(peak(arguments)))
        return
    model = mi.load(arguments.model, device=arguments.device)
    contrasts = made(model, arguments.collection, arguments.pairs)
    print(f"{machine(model)}\n")
    print("| what | ours | other | ratio or value | wanted |\n|---|---|---|---|---|")
    for bench in (
        lambda: scored(model, contrasts, arguments.rounds, "eap", 5.0),
        lambda: scored(model, contrasts, arguments.rounds, "eap-ig", 3.5 * 5 + 3),
        lambda: one_by_one(model, contrasts[:8], arguments.rounds),
        lambda: screened(model, contrasts[:8], arguments.rounds),
        lambda: only(model, contrasts, arguments.rounds),
        *((lambda: whole(model, arguments),) if arguments.whole else ()),
        *((lambda: large(arguments, "eap", 5.0), lambda: large(arguments, "eap-ig", 20.5)) if arguments.large else ()),
    ):
        print(f"| {' | '.join(bench())} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = arguments_of(__doc__, pairs=32, rounds=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--whole", action="store_true", help="edges of 200 contrasts, in seconds")
    parser.add_argument("--peak", choices=["eap", "eap-ig"], help=argparse.SUPPRESS)
    return parser.parse_args()


def batches(model: HookedEncoder, contrasts: Sequence[mi.Contrast]) -> list[ContrastBatch]:
    return list(encode_contrasts(model, contrasts).batches(model))


@torch.no_grad()
def forwards(model: HookedEncoder, ready: Sequence[ContrastBatch]) -> None:
    for batch in ready:
        model(batch.base, head_row=True)


def scored(
    model: HookedEncoder, contrasts: Sequence[mi.Contrast], rounds: int, method: str, most: float
) -> tuple[str, ...]:
    """Forward-equivalents of all edges, nothing summarised."""
    ready = batches(model, contrasts)
    n = len(Graph.of(model))
    ours, other = alternate(
        lambda: edges(model, contrasts, method=method, progress=False), lambda: forwards(model, ready), rounds
    )
    return _row(
        f"{method}, {n:,} edges / one forward, {len(contrasts)} contrasts", ours, other, ours / other, f"<= {most:g}"
    )


@torch.no_grad()
def one_by_one(model: HookedEncoder, contrasts: Sequence[mi.Contrast], rounds: int) -> tuple[str, ...]:
    """Exact effects of every fortieth edge, against as many forwards."""
    graph, ready = Graph.of(model), batches(model, contrasts)
    runs = [(batch, Run.of(model, batch.base, None), Run.of(model, batch.donor, None)) for batch in ready]
    wanted = np.zeros(len(graph), dtype=bool)
    wanted[::40] = True

    def ours() -> None:
        for batch, run, donor in runs:
            exact(model, graph, batch.base, run, donor, limit=model.max_tokens, wanted=wanted)

    def other() -> None:
        for _ in range(int(wanted.sum())):
            forwards(model, ready)

    times = alternate(ours, other, rounds)
    what = f"one forward per edge / exact, {wanted.sum()} of {len(graph):,} edges, {len(contrasts)} contrasts"
    return _row(what, *times, times[1] / times[0], ">= 2.5")


def screened(model: HookedEncoder, contrasts: Sequence[mi.Contrast], rounds: int) -> tuple[str, ...]:
    """A screen of all edges, against one forward per edge (those of a few, times their share)."""
    ready, n = batches(model, contrasts), len(Graph.of(model))
    few = 100
    agreement = edges(model, contrasts, method="screen", progress=False).agreement
    assert agreement is not None

    def other() -> None:
        for _ in range(few):
            forwards(model, ready)

    ours, some = alternate(lambda: edges(model, contrasts, method="screen", progress=False), other, rounds)
    other_s = some * n / few
    what = f"one forward per edge / screen, r {agreement.pearson:.3f} on {agreement.edges} random edges"
    return _row(what, ours, other_s, other_s / ours, ">= 20")


def only(model: HookedEncoder, contrasts: Sequence[mi.Contrast], rounds: int) -> tuple[str, ...]:
    """The score of a circuit of 500 edges, against a plain score."""
    pairs = [contrast.base for contrast in contrasts]
    circuit = edges(model, contrasts[:8], progress=False).circuit(500)
    do = mi.Only(circuit, contrasts)
    ours, other = alternate(lambda: model.score(pairs, do=do), lambda: model.score(pairs), rounds)
    return _row(f"score, Only({len(circuit)} edges) / plain, {len(pairs)} pairs", ours, other, ours / other, "<= 4")


def whole(model: HookedEncoder, arguments: argparse.Namespace) -> tuple[str, ...]:
    """200 contrasts, intervals and tests included."""
    contrasts = made(model, arguments.collection, 200)
    start = time.perf_counter()
    _ = edges(model, contrasts, progress=False).frame
    took = time.perf_counter() - start
    return f"edges of {len(contrasts)} contrasts with their frame", f"{took:.0f} s", "", f"{took:.0f} s", "<= 180 s"


def large(arguments: argparse.Namespace, method: str, most: float) -> tuple[str, ...]:
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", method]
    ratio, memory, n = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    what = f"{method}, {n:,} edges / one forward, 12 layers, 8 x 180 tokens; peak memory"
    return what, f"{memory:.2f} GB", "", f"{ratio:.2f}", f"<= {most:g}; <= 2 GB"


def peak(arguments: argparse.Namespace) -> tuple[float, float, int]:
    """Forward-equivalents and peak memory on BERT-base's shape."""
    reader = mi.load(arguments.model)
    config = transformers.BertConfig(num_labels=1, vocab_size=len(reader.tokenizer))
    hf = transformers.BertForSequenceClassification(config).eval()
    model = HookedEncoder(hf, reader.tokenizer, FAMILIES["bert"])
    if arguments.device:
        model.to(arguments.device)
    del reader
    generator = np.random.default_rng(0)
    words = list(string.ascii_lowercase)  # one word piece each

    def text(n: int) -> str:
        return " ".join(generator.choice(words, n))

    contrasts = []
    for row in range(8):
        query, document = text(8), text(169)
        donor = " ".join([text(1), *document.split()[1:]])
        contrasts.append(mi.Contrast(Pair(query, document, f"q{row}", "d"), Pair(query, donor, f"q{row}", "d")))
    ready = batches(model, contrasts)
    ours, other = alternate(
        lambda: edges(model, contrasts, method=arguments.peak, progress=False),
        lambda: forwards(model, ready),
        arguments.rounds,
    )
    return ours / other, peak_gb(model), len(Graph.of(model))


def _row(what: str, ours: float, other: float, ratio: float, wanted: str) -> tuple[str, ...]:
    return what, f"{ours:.2f} s", f"{other:.2f} s", f"{ratio:.2f}", wanted


if __name__ == "__main__":
    main()
