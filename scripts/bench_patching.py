"""Speed and memory of patching, as ratios inside one run; prints a table in Markdown.

Run: python scripts/bench_patching.py --model DIR --collection DIR [--device cuda] [--dtype bfloat16] [--rounds 3]
     [--memory]

The loops beside ours do what published code does: one full forward per head (or sender), everything that can be cached
once cached once, on the same batches unless it says one pair at a time. Every ratio alternates the two sides.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import torch
from bench_engine import alternate, arguments_of, deeper, machine, peak_gb, seconds

import mechir as mi
from mechir import model_sites
from mechir.contrasts import ContrastBatch, encode_contrasts
from mechir.encoder import HookedEncoder
from mechir.interventions import Splice
from mechir.methods import attribution, patching, paths


def main() -> None:
    arguments = _arguments()
    model = mi.load(arguments.model, device=arguments.device, dtype=arguments.dtype)
    if arguments.peak:
        print(json.dumps(peak(model, arguments)))
        return
    contrasts = made(model, arguments.collection, arguments.pairs)
    print(f"{machine(model)}\n")
    print("| what | ours | other | ratio or value | wanted |\n|---|---|---|---|---|")
    six, twelve = deeper(model, 6), deeper(model, 12)
    for bench in (
        lambda: head_map(six, contrasts, arguments.rounds),
        lambda: head_map_one_by_one(six, contrasts[:4], arguments.rounds),
        lambda: head_to_score(twelve, contrasts[: arguments.pairs // 2], arguments.rounds),
        lambda: attributed(model, contrasts, arguments.rounds),
        lambda: correlation(model, contrasts),
        *((lambda: memory(arguments),) if arguments.memory else ()),
    ):
        print(f"| {' | '.join(bench())} |", flush=True)


def made(model: HookedEncoder, collection: str, n: int) -> list[mi.Contrast]:
    """TFC1 on judged pairs drawn once."""
    pairs = mi.collection(collection).pairs()
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:n].tolist()
    return [mi.align(pairs[i], mi.diagnostics.Tfc1(), model.tokenizer) for i in order]


def batches(model: HookedEncoder, contrasts: Sequence[mi.Contrast], rows: int = 256) -> list[ContrastBatch]:
    return list(encode_contrasts(model, contrasts).batches(model, max_rows=rows))


def cached(model: HookedEncoder, batch: mi.Batch) -> dict[str, torch.Tensor]:
    """What every head reads, at every position."""
    _, cache = model.run_with_cache(batch, names_filter=lambda name: name.endswith("hook_z"))
    return dict(cache)


@torch.no_grad()
def plain_head_map(model: HookedEncoder, ready: Sequence[ContrastBatch]) -> None:
    """One full forward per head, the donor cached once."""
    for batch in ready:
        model(batch.base)
        donor = cached(model, batch.donor)
        for head in model_sites.all_heads(model):
            whole = donor[head.hook]
            model.run_with_hooks(batch.base, head_row=False, fwd_hooks=[(head.hook, Splice(head, whole))])


def head_map(model: HookedEncoder, contrasts: Sequence[mi.Contrast], rounds: int) -> tuple[str, ...]:
    ready, heads = batches(model, contrasts), model_sites.all_heads(model)
    ours, other = alternate(
        lambda: patching.patch(model, contrasts, heads), lambda: plain_head_map(model, ready), rounds
    )
    return _row(f"loop / all heads, {model.cfg.n_layers} layers, same batches", ours, other, other / ours, ">= 1.8")


def head_map_one_by_one(model: HookedEncoder, contrasts: Sequence[mi.Contrast], rounds: int) -> tuple[str, ...]:
    """The loop one pair at a time against ours on 64 pairs of the same kind, per pair."""
    many = list(contrasts) * 16
    ready, heads = batches(model, contrasts, rows=1), model_sites.all_heads(model)
    ours, other = alternate(lambda: patching.patch(model, many, heads), lambda: plain_head_map(model, ready), rounds)
    each = ours / len(many), other / len(contrasts)
    return _row("loop one pair at a time / all heads, per pair", *each, each[1] / each[0], ">= 6")


@torch.no_grad()
def three_runs(model: HookedEncoder, ready: Sequence[ContrastBatch]) -> None:
    """The base and the donor cached once, then one full forward per sender with every other head frozen."""
    for batch in ready:
        base, donor = cached(model, batch.base), cached(model, batch.donor)
        for head in model_sites.all_heads(model):
            frozen = dict(base) | {head.hook: Splice(head, donor[head.hook])(base[head.hook], Named(head.hook))}
            hooks = [(name, lambda x, hook, value=value: value) for name, value in frozen.items()]
            model.run_with_hooks(batch.base, head_row=False, fwd_hooks=hooks)


class Named:
    """What a hook point is asked for: its name."""

    def __init__(self, name: str) -> None:
        self.name = name


def head_to_score(model: HookedEncoder, contrasts: Sequence[mi.Contrast], rounds: int) -> tuple[str, ...]:
    ready, heads = batches(model, contrasts), model_sites.all_heads(model)
    ours, other = alternate(lambda: paths.path_patch(model, contrasts, heads), lambda: three_runs(model, ready), rounds)
    what = f"three-run loop / head -> score, {model.cfg.n_layers} x {model.cfg.n_heads}, same batches"
    return _row(what, ours, other, other / ours, ">= 50")


def attributed(model: HookedEncoder, contrasts: Sequence[mi.Contrast], rounds: int) -> tuple[str, ...]:
    ready = batches(model, contrasts)

    @torch.no_grad()
    def forward() -> None:
        for batch in ready:
            model(batch.base.to(model.device), head_row=False)

    ours, other = alternate(lambda: attribution.attribute(model, contrasts), forward, rounds)
    return _row("attribution of all heads and MLPs / one forward", ours, other, ours / other, "<= 4")


def correlation(model: HookedEncoder, contrasts: Sequence[mi.Contrast]) -> tuple[str, ...]:
    sites = [*model_sites.all_heads(model), *model_sites.mlps(model)]
    means = [
        method(model, contrasts, sites).groupby("site", sort=False)["effect"].mean()
        for method in (attribution.attribute, patching.patch)
    ]
    r = float(np.corrcoef(means[0], means[1])[0, 1])
    rho = float(means[0].corr(means[1], method="spearman"))
    return (f"attribution and exact effects, {len(sites)} sites", f"r {r:.3f}", "", f"rho {rho:.3f}", "")


def memory(arguments: argparse.Namespace) -> tuple[str, ...]:
    command = [sys.executable, __file__, *sys.argv[1:], "--peak"]
    size = float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["gb"])
    return (
        "peak memory, head map of 1,000 pairs of 128",
        f"{size:.2f} GB",
        "",
        f"{size:.2f} GB",
        "<= 1.5 GB",
    )


def peak(model: HookedEncoder, arguments: argparse.Namespace) -> dict[str, float]:
    """Peak memory of this process after a head map of 1,000 pairs cut to 128 word pieces."""
    contrasts = []
    for pair in mi.collection(arguments.collection).pairs():
        long = mi.Pair(pair.query, f"{pair.document} " * 3, pair.query_id, f"{pair.doc_id}.{len(contrasts)}")
        prepended = mi.align(long, mi.diagnostics.Tfc1("prepend"), model.tokenizer, max_length=128)
        contrasts.append(prepended)
        if len(contrasts) == 1000:
            break
    patching.patch(model, contrasts, model_sites.all_heads(model), max_length=128)
    return {"gb": peak_gb(model)}


def _row(what: str, ours: float, other: float, ratio: float, wanted: str) -> tuple[str, ...]:
    return (what, seconds(ours), seconds(other), f"{ratio:.2f}", wanted)


def _arguments() -> argparse.Namespace:
    parser = arguments_of(__doc__, pairs=64, rounds=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--memory", action="store_true", help="also the head map of 1,000 pairs (minutes)")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
