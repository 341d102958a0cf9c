"""Time and memory of conductance, as ratios inside one run; prints a table in Markdown.

Run: python scripts/bench_neurons.py --model DIR --collection DIR [--pairs 8] [--steps 16] [--rounds 5]

1. All layers at once, neurons alone, against captum's LayerConductance layer by layer, the same batches: captum's
   n_steps=S computes the S + 1 Gauss-Legendre nodes of that order, and each gradient but the last times the change up
   to the next node. So does steps=S, and looks at both ends. captum goes back to its layer alone: about 3/4 of the
   number of layers is the most to expect. Also on a BERT of 12 layers with random weights.
2. Neurons and patterns, every pair scored once for the tolerance, against one forward and backward pass of the same
   nodes in the same batches with nothing read: with fused attention, and with the patterns that reading them asks for.
3. Peak memory of processes of their own: ours, ours of four times the pairs, and those plain passes; then without the
   holes in glibc's heap, all above 1 MB being taken from the system. On a GPU the GPU's alone.

Time is CPU time (on a GPU elapsed time), medians of rounds in which the sides alternate, after one to warm up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from bench_attention import drawn
from bench_engine import arguments_of, machine, peak_gb, seconds
from captum.attr import LayerConductance
from torch import Tensor

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.encoder.families import FAMILIES
from mechir.methods.conductance import conductance
from mechir.methods.walk import Way
from mechir.segments import Segment
from mechir.subspaces import EMBED

SIDES = ("ours", "ours x4", "fused", "explicit")


def main() -> None:
    arguments = _arguments()
    # Before anything is loaded: a process begins with the peak of the one that starts it.
    peaks = [] if arguments.side else memory(arguments.device)
    model = mi.load(arguments.model, device=arguments.device)
    pairs, steps, rounds = apart(drawn(arguments.collection, arguments.pairs)), arguments.steps, arguments.rounds
    if arguments.side:
        print(peak(model, pairs, steps, arguments.side))
        return
    print(f"{machine(model)}, {len(pairs)} pairs, {steps} steps\n")
    print("| what | ours | other | ratio or value | wanted |\n|---|---|---|---|---|")
    print(against_captum(model, pairs, steps, rounds), flush=True)
    print(against_captum(deep(model, 12), pairs, steps, rounds), flush=True)
    print("\n".join([*against_plain(model, pairs, steps, rounds), *peaks]))


def apart(pairs: list[mi.Pair]) -> list[mi.Pair]:
    """Every pair a query of its own: nothing is averaged."""
    return [replace(pair, query_id=f"q{k:06}") for k, pair in enumerate(pairs)]


def deep(model: HookedEncoder, n_layers: int) -> HookedEncoder:
    """A BERT of the model's width with random weights."""
    torch.manual_seed(0)
    c = model.cfg
    sizes = {"hidden_size": c.d_model, "num_attention_heads": c.n_heads, "intermediate_size": c.d_mlp}
    config = transformers.BertConfig(vocab_size=c.d_vocab, num_hidden_layers=n_layers, num_labels=1, **sizes)
    hf = transformers.BertForSequenceClassification(config).to(model.device)
    return HookedEncoder(hf, model.tokenizer, FAMILIES["bert"])


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int, gpu: bool) -> tuple[dict[str, float], Any]:
    """Median seconds of each side after one round to warm up, and what each found."""
    clock = time.perf_counter if gpu else time.process_time
    times, found = {name: [] for name in sides}, {}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            start = clock()
            found[name] = side()
            if gpu:
                torch.cuda.synchronize()
            times[name].append(clock() - start)
    return {name: statistics.median(some[1:]) for name, some in times.items()}, found


def batches(model: HookedEncoder, pairs: list[mi.Pair], steps: int) -> Iterator[tuple[Any, mi.Batch, Tensor, Tensor]]:
    """The batches that ours makes, with the word embeddings of baselines and of texts."""
    for index, batch in model.encode(pairs).buckets(64, model.max_tokens // (steps + 1)):
        batch = batch.to(model.device)
        start = batch.input_ids.masked_fill(batch.at(Segment.QUERY), model.tokenizer.pad_token_id)
        yield index, batch, model.W_E[start].detach(), model.W_E[batch.input_ids].detach()


def by_captum(model: HookedEncoder, pairs: list[mi.Pair], steps: int) -> np.ndarray:
    """Layer x pair x neuron, one layer after the other."""

    def forward(embedded: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return model.head.score(model.hf(inputs_embeds=embedded, attention_mask=mask, token_type_ids=types).logits)

    found = np.empty((model.cfg.n_layers, len(pairs), model.cfg.d_mlp))
    for index, batch, start, end in batches(model, pairs, steps):
        read = batch.attention_mask.long(), batch.token_type_ids
        for layer, module in enumerate(model.hf.base_model.encoder.layer):
            by = LayerConductance(forward, module.intermediate)
            flow = by.attribute(end, start, additional_forward_args=read, n_steps=steps, method="gausslegendre")
            found[layer, index] = flow.detach().sum(1).cpu().numpy()
    return found


def against_captum(model: HookedEncoder, pairs: list[mi.Pair], steps: int, rounds: int) -> str:
    way, n = Way(rule="gauss-legendre", steps=steps, tol=np.inf), model.cfg.n_layers
    sides = {
        "ours": lambda: conductance(model, pairs, units=("post",), way=way).rows["conductance"],
        "captum": lambda: by_captum(model, pairs, steps),
    }
    times, found = alternate(sides, rounds, model.device.type == "cuda")
    ours, other = np.stack(found["ours"]).reshape(n, len(pairs), -1), found["captum"]
    off = float((np.abs(ours - other).max((1, 2)) / np.abs(other).max((1, 2))).max())
    assert off <= 1e-4, f"ours and captum's are {off:.1e} of a layer's largest value apart"
    what = f"captum layer by layer / all layers at once, {n} layers ({off:.0e} apart)"
    return _row(what, times["ours"], times["captum"], times["captum"] / times["ours"], f">= {0.7 * n:.1f}")


def plain(model: HookedEncoder, pairs: list[mi.Pair], steps: int, explicit: bool) -> None:
    """One forward and backward pass of every node, as many word pieces together as in ours."""
    nodes, layers, encoded = Way().nodes(steps), range(model.cfg.n_layers if explicit else 0), model.encode(pairs)
    for index, batch, start, end in batches(model, pairs, steps):
        together = max(2, model.max_tokens // batch.input_ids.numel())
        for first in range(0, steps, together - 1):
            place = torch.from_numpy(nodes[first : first + together]).to(end)[:, None, None, None]
            line = (start + place * (end - start)).flatten(0, 1).requires_grad_()
            repeated = encoded.batch(np.tile(index, len(place))).to(model.device)
            with model.hooks([(EMBED, lambda x, hook, line=line: line)]):
                score = model(repeated, head_row=True, explicit=layers)
            torch.autograd.grad(score.sum(), line)


def against_plain(model: HookedEncoder, pairs: list[mi.Pair], steps: int, rounds: int) -> list[str]:
    sides = {
        "ours": lambda: conductance(model, pairs, way=Way(steps=steps, max_steps=steps)),
        "fused attention": lambda: plain(model, pairs, steps, False),
        "explicit patterns": lambda: plain(model, pairs, steps, True),
    }
    times, _ = alternate(sides, rounds, model.device.type == "cuda")
    ours, what, wanted = times.pop("ours"), "neurons and patterns / plain passes", {"explicit patterns": "<= 1.25"}
    return [_row(f"{what}, {name}", ours, s, ours / s, wanted.get(name, "")) for name, s in times.items()]


def memory(device: str | None) -> list[str]:
    rows, command = [], [sys.executable, __file__, *sys.argv[1:], "--side"]
    gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    heaps = {"peak memory": {}} | ({} if gpu else {"peak memory without holes": {"MALLOC_MMAP_THRESHOLD_": str(2**20)}})
    for what, allocator in heaps.items():
        how: Any = {"env": os.environ | allocator, "stdout": subprocess.PIPE, "check": True}
        gb = {side: float(subprocess.run([*command, side], **how).stdout) for side in SIDES}
        for name, x, y, wanted in (
            ("four times the pairs / once", "ours x4", "ours", "<= 1.1"),
            ("ours / plain passes, fused attention", "ours", "fused", "<= 1.5"),
            ("ours / plain passes, explicit patterns", "ours", "explicit", "<= 1.5"),
        ):
            rows.append(_row(f"{what}, {name}", gb[x], gb[y], gb[x] / gb[y], wanted, "GB"))
    return rows


def peak(model: HookedEncoder, pairs: list[mi.Pair], steps: int, side: str) -> float:
    """Peak memory of this process in GB after one side of the work."""
    if side in ("fused", "explicit"):
        plain(model, pairs, steps, side == "explicit")
    else:
        conductance(model, apart(pairs * (4 if side == "ours x4" else 1)), way=Way(steps=steps, max_steps=steps))
    return peak_gb(model)


def _row(what: str, ours: float, other: float, ratio: float, wanted: str, unit: str = "s") -> str:
    each = [seconds(x) if unit == "s" else f"{x:.2f} {unit}" for x in (ours, other)]
    return f"| {what} | {' | '.join(each)} | {ratio:.2f} | {wanted} |"


def _arguments() -> argparse.Namespace:
    parser = arguments_of(__doc__, pairs=8, rounds=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
