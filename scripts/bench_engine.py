"""Speed and memory of scoring and sweeping, as ratios inside one run; prints a table in Markdown.

Run: python scripts/bench_engine.py --model DIR --collection DIR [--device cuda] [--rounds 5] [--full | --quick]

Every ratio alternates the two sides, so that a busy machine slows both, and takes medians. Peak memory is that of a
process of its own, on a GPU the GPU's. `--full` adds Table 1 on 400 pairs and on all judged pairs of the collection;
`--quick` leaves out what takes processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import mechir as mi
from mechir.encoder import HookedEncoder


def main() -> None:
    arguments = _arguments()
    if arguments.peak:
        print(json.dumps(peak(arguments)))
        return
    model = mi.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    pairs = mi.collection(arguments.collection).pairs()
    shuffled = [pairs[int(i)] for i in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    print(f"{machine(model)}\n")
    print("| what | ours | other | ratio or value | wanted |\n|---|---|---|---|---|")
    few, rounds = shuffled[: arguments.pairs], arguments.rounds
    for bench in (
        *(() if arguments.quick else (import_time,)),
        *(lambda n=n: same_batches(model, few, rounds, n) for n in arguments.rows),
        *(() if arguments.quick else (lambda: peak_ratio(arguments),)),
        lambda: file_order(model, pairs[: 2 * arguments.pairs], rounds),
        lambda: tokenising(model, pairs[: 2 * arguments.pairs], rounds),
        lambda: layer_sweep(deeper(model, 6), few[: arguments.pairs // 4], rounds),
        lambda: layer_sweep(deeper(model, 12), few[: arguments.pairs // 4], rounds),
        *((lambda: table_1(model, shuffled), lambda: peak_of_table_1(arguments)) if arguments.full else ()),
    ):
        print(f"| {' | '.join(bench())} |", flush=True)


def arguments_of(about: str | None, *, pairs: int, rounds: int) -> argparse.ArgumentParser:
    """The arguments that a benchmark of a model takes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--collection", required=True)
    parser.add_argument("--device")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--pairs", type=int, default=pairs)
    return parser


def _arguments() -> argparse.Namespace:
    parser = arguments_of(__doc__, pairs=256, rounds=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[32], help="pairs in a batch beside Hugging Face")
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--full", action="store_true")
    much.add_argument("--quick", action="store_true")
    parser.add_argument("--peak", choices=["ours", "hf", "table"], help=argparse.SUPPRESS)
    return parser.parse_args()


def machine(model: HookedEncoder) -> str:
    """What computes, in one line."""
    at = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
    number = str(model.dtype).removeprefix("torch.")
    threads = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return f"{threads}, {at}, {number}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def peak_gb(model: HookedEncoder) -> float:
    """Peak memory of this process in GB, on a GPU the GPU's."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.cuda.max_memory_allocated() / 2**30 if model.device.type == "cuda" else resident


def alternate(ours: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of each, after one round to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds + 1):
        for kept, side in zip(times, (ours, other), strict=True):
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


@torch.no_grad()
def hf_scores(model: HookedEncoder, batches: list[mi.Batch]) -> None:
    """Hugging Face's own model with its default (fused) attention on ready batches."""
    for batch in batches:
        batch = batch.to(model.device)
        types = {} if model.parts.embeddings.token_type is None else {"token_type_ids": batch.token_type_ids}
        model.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), **types).logits.cpu()


@torch.no_grad()
def our_scores(model: HookedEncoder, batches: list[mi.Batch]) -> None:
    """The plan of `model.score` on the same batches."""
    for batch in batches:
        model(batch).cpu()


def same_batches(model: HookedEncoder, pairs: list[mi.Pair], rounds: int, rows: int) -> tuple[str, ...]:
    batches = [batch for _, batch in model.encode(pairs).buckets(rows, model.max_tokens)]
    ours, other = alternate(lambda: our_scores(model, batches), lambda: hf_scores(model, batches), rounds)
    what = f"score / HF sdpa, same batches of {rows}, {len(pairs)} pairs"
    return _row(what, ours, other, ours / other, "<= 1.05")


def file_order(model: HookedEncoder, pairs: list[mi.Pair], rounds: int) -> tuple[str, ...]:
    def hf() -> None:
        encoded = model.encode(pairs)
        starts = range(0, len(pairs), 32)
        hf_scores(model, [encoded.batch(range(start, min(start + 32, len(pairs)))) for start in starts])

    ours, other = alternate(lambda: model.score(pairs), hf, rounds)
    return _row(f"HF in file order, batch 32 / bucketed score, {len(pairs)} pairs", ours, other, other / ours, ">= 1.5")


def tokenising(model: HookedEncoder, pairs: list[mi.Pair], rounds: int) -> tuple[str, ...]:
    """What of scoring is done before the model: the same on every device."""
    ours, other = alternate(lambda: model.encode(pairs), lambda: model.score(pairs), rounds)
    return _row(f"tokenising / bucketed score, {len(pairs)} pairs", ours, other, ours / other, "")


def deeper(model: HookedEncoder, n_layers: int) -> HookedEncoder:
    """The same model with its layers repeated up to `n_layers`: for timing only."""
    import copy

    hf = copy.deepcopy(model.hf)
    layers = hf.bert.encoder.layer
    hf.bert.encoder.layer = torch.nn.ModuleList([copy.deepcopy(layers[i % len(layers)]) for i in range(n_layers)])
    hf.config.num_hidden_layers = n_layers
    return HookedEncoder(hf, model.tokenizer, model.family)


def layer_sweep(model: HookedEncoder, pairs: list[mi.Pair], rounds: int) -> tuple[str, ...]:
    n = model.cfg.n_layers
    do: dict[str, Any] = {str(end): mi.Mask("doc<-query", range(end + 1)) for end in range(n)}

    def plain() -> None:
        for mask in do.values():
            model.score(pairs, mask)

    ours, other = alternate(lambda: mi.sweep(model, pairs, do), plain, rounds)
    return _row(f"plain loop / layer sweep, {n} layers, {len(pairs)} pairs", ours, other, other / ours, ">= 1.9")


def import_time() -> tuple[str, ...]:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import mechir"], check=True)
        times.append(time.perf_counter() - start)
    return ("import mechir", f"{statistics.median(times):.2f} s", "", f"{statistics.median(times):.2f} s", "<= 3 s")


def table_1(model: HookedEncoder, pairs: list[mi.Pair]) -> tuple[str, ...]:
    from mechir.analyses import DirectionAblation

    lengths = model.encode(pairs).lengths
    about_80 = [pair for pair, length in zip(pairs, lengths, strict=True) if 70 <= length <= 90][:400]
    start = time.perf_counter()
    DirectionAblation().measure(model, about_80)
    seconds = time.perf_counter() - start
    return (
        f"Table 1, {len(about_80)} pairs of about 80 tokens",
        f"{seconds:.0f} s",
        "",
        f"{seconds / 60:.1f} min",
        "<= 3 min",
    )


def peak_ratio(arguments: argparse.Namespace) -> tuple[str, ...]:
    ours, other = _peak_of(arguments, "ours"), _peak_of(arguments, "hf")
    return (
        "peak memory, score / HF sdpa, same batches",
        f"{ours:.2f} GB",
        f"{other:.2f} GB",
        f"{ours / other:.2f}",
        "<= 1.1",
    )


def peak_of_table_1(arguments: argparse.Namespace) -> tuple[str, ...]:
    peak = _peak_of(arguments, "table")
    return (
        "peak memory, Table 1 units over the longest judged pairs",
        f"{peak:.2f} GB",
        "",
        f"{peak:.2f} GB",
        "<= 1.5 GB",
    )


def _peak_of(arguments: argparse.Namespace, side: str) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", side]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["gb"])


def peak(arguments: argparse.Namespace) -> dict[str, float]:
    """Peak memory of this process after one side of the work."""
    from mechir.analyses import DirectionAblation
    from mechir.work import units

    model = mi.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    pairs = mi.collection(arguments.collection).pairs()
    if arguments.peak == "table":
        model.encode(pairs)  # a run counts its truncated documents first, over all pairs
        lengths = model.encode(pairs).lengths
        longest = sorted(range(len(pairs)), key=lambda i: -int(lengths[i]))[:128]
        DirectionAblation().measure(model, units([pairs[i] for i in longest])[0])
    else:
        encoded = model.encode(pairs[: arguments.pairs])
        batches = [batch for _, batch in encoded.buckets(arguments.rows[0], model.max_tokens)]
        (our_scores if arguments.peak == "ours" else hf_scores)(model, batches)
    return {"gb": peak_gb(model)}


def _row(what: str, ours: float, other: float, ratio: float, wanted: str) -> tuple[str, ...]:
    return (what, seconds(ours), seconds(other), f"{ratio:.2f}", wanted)


def seconds(time: float) -> str:
    """To three digits and a hundredth."""
    return f"{time:.2f} s" if time >= 1 else f"{time:.3g} s"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
