"""Speed and memory of rerankers that nnsight opens, as ratios inside one run; prints a table in Markdown.

Run: python scripts/bench_rerankers.py [--rounds 5] [--only modernbert] [--heads]

Models of the shape of ModernBERT-base and of Qwen3-0.6B with random weights, float32, on one batch of 4 texts of 128
word pieces. Beside each stands Hugging Face's own forward (sdpa). A map of heads is two of the first, the middle and
the last layer, left out one by one by `mi.sweep`, beside a loop with a torch hook on what W_O reads. Both sides take
turns, forward by forward or map by map, and a ratio is the median of the ratios of turns. Peak memory is that of a
process of its own, which opens the model, scores the batch and leaves out one head; what it took to draw random weights
does not count (Linux alone).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

ROWS, LENGTH = 4, 128
SHAPES: dict[str, dict[str, Any]] = {
    "modernbert": {"hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152},
    "qwen3": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072},
}
SHAPES["modernbert"] |= {"vocab_size": 50_368, "num_labels": 1}
SHAPES["qwen3"] |= {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True}
TITLES = {"modernbert": "ModernBERT-base", "qwen3": "Qwen3-0.6B"}
WEIGHTS = {"modernbert": "attn.Wo", "qwen3": "self_attn.o_proj"}


def main() -> None:
    arguments = _arguments()
    if arguments.peak:
        print(json.dumps({"gb": peak(arguments.only, arguments.peak)}))
        return
    threads = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{threads}, cpu, float32, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print("| what | ours | other | ratio | wanted |\n|---|---|---|---|---|")
    for kind in [arguments.only] if arguments.only else SHAPES:
        hf = hugging_face(kind)
        model, batch = opened(hf, tokenizer(kind)), texts(hf)
        with torch.no_grad():
            if not arguments.heads:
                print(f"| {' | '.join(scoring(kind, model, hf, batch, arguments))} |", flush=True)
            print(f"| {' | '.join(heads(kind, model, hf, arguments))} |", flush=True)
        del model, hf, batch
        if not arguments.heads:
            print(f"| {' | '.join(memory(kind))} |", flush=True)


def hugging_face(kind: str) -> Any:
    """The model with random weights, as Hugging Face initialises them."""
    torch.manual_seed(0)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    if kind == "modernbert":
        config = transformers.ModernBertConfig(**SHAPES[kind], **special, pad_token_id=0)
        return transformers.AutoModelForSequenceClassification.from_config(config).eval()
    config = transformers.Qwen3Config(**SHAPES[kind], pad_token_id=0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tokenizer(kind: str) -> Any:
    """A small tokenizer, for the texts are random word pieces."""
    from scripts.small_rerankers import pieces

    return pieces("qwen3" if kind == "qwen3" else "llama")


def opened(hf: Any, written: Any) -> Any:
    """The same model as mechir opens it."""
    import mechir as mi

    return mi.load(hf, written)


def texts(hf: Any) -> Any:
    """A batch of random word pieces."""
    import mechir as mi

    ids = torch.randint(10, hf.config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    segment = torch.full_like(ids, mi.Segment.DOC.value)
    pairs = tuple(mi.Pair("query", "document", f"q{row}", f"d{row}") for row in range(ROWS))
    return mi.Batch(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool), segment, pairs)


def plain(kind: str, hf: Any, ids: torch.Tensor) -> torch.Tensor:
    """Hugging Face's own forward, of a language model at the last position alone."""
    options = {"use_cache": False, "logits_to_keep": 1} if kind == "qwen3" else {}
    return hf(input_ids=ids, attention_mask=torch.ones_like(ids), **options).logits


def without_head(kind: str, hf: Any, ids: torch.Tensor, layer: int, head: int) -> torch.Tensor:
    """The same with one head's z at 0, by a torch hook on what W_O reads."""

    def zeroed(module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        z = given[0].unflatten(-1, (hf.config.num_attention_heads, -1)).clone()
        z[:, :, head] = 0
        return (z.flatten(-2), *given[1:])

    weights = hf.base_model.layers[layer].get_submodule(WEIGHTS[kind])
    handle = weights.register_forward_pre_hook(zeroed)
    try:
        return plain(kind, hf, ids)
    finally:
        handle.remove()


def chosen(hf: Any) -> list[tuple[int, int]]:
    """Two heads of the first, the middle and the last layer."""
    last = hf.config.num_hidden_layers - 1
    return [(layer, head) for layer in (0, last // 2, last) for head in (1, 2)]


def swept(model: Any, heads: Sequence[tuple[int, int]]) -> Any:
    """The map of these heads on texts as long as those of the batch."""
    import mechir as mi

    pairs = [mi.Pair("query", "word " * LENGTH, f"q{row}", f"d{row}") for row in range(ROWS)]
    do = {f"h{layer}.{head}": mi.Ablate(mi.Head(layer, head)) for layer, head in heads}
    return mi.sweep(model, pairs, do, max_length=LENGTH, progress=False)


def turns(ours: Sequence[Callable[[], Any]], other: Sequence[Callable[[], Any]], rounds: int) -> tuple[float, ...]:
    """The median seconds of either side and the median ratio, over turns after one that warms up."""
    pairs = list(zip(ours, other, strict=True))
    times = []
    for turn, sides in enumerate(itertools.chain(pairs[:1], *([pairs] * rounds))):
        seconds = []
        for k in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            sides[k]()
            seconds.append((k, time.perf_counter() - start))
        times.append([second for _, second in sorted(seconds)])
    kept = times[1:]
    medians = (statistics.median(side) for side in zip(*kept, strict=True))
    return *medians, statistics.median(one / two for one, two in kept)


def scoring(kind: str, model: Any, hf: Any, batch: Any, arguments: argparse.Namespace) -> tuple[str, ...]:
    measured = turns([lambda: model(batch)], [lambda: plain(kind, hf, batch.input_ids)], arguments.rounds)
    return _row(f"{TITLES[kind]}: score / Hugging Face, sdpa", *measured, "<= 1.1")


def heads(kind: str, model: Any, hf: Any, arguments: argparse.Namespace) -> tuple[str, ...]:
    some = chosen(hf)
    ids = torch.randint(10, 1000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    loop = lambda: [without_head(kind, hf, ids, *head) for head in some]  # noqa: E731
    measured = turns([lambda: swept(model, some)], [loop], max(1, arguments.rounds // 2))
    return _row(f"{TITLES[kind]}: a map of 6 heads / the loop with a torch hook", *measured, "<= 1.0")


def memory(kind: str) -> tuple[str, ...]:
    ours, other = (_peak_of(kind, side) for side in ("ours", "hf"))
    what = f"{TITLES[kind]}: peak memory, score and a head left out"
    return (what, f"{ours:.2f} GB", f"{other:.2f} GB", f"{ours / other:.2f}", "<= 1.15")


def _peak_of(kind: str, side: str) -> float:
    command = [sys.executable, "-m", "scripts.bench_rerankers", "--only", kind, "--peak", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["gb"])


@torch.no_grad()
def peak(kind: str, side: str) -> float:
    """Peak memory of this process after one side's work, from where there are weights and texts."""
    written, hf = tokenizer(kind), hugging_face(kind)
    batch = texts(hf)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    if side == "ours":
        model = opened(hf, written)
        model(batch)
        swept(model, chosen(hf)[2:3])
    else:
        plain(kind, hf, batch.input_ids)
        without_head(kind, hf, batch.input_ids, *chosen(hf)[2])
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def _row(what: str, ours: float, other: float, ratio: float, wanted: str) -> tuple[str, ...]:
    return (what, f"{ours:.3g} s", f"{other:.3g} s", f"{ratio:.2f}", wanted)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heads", action="store_true", help="the map of heads alone")
    parser.add_argument("--only", choices=list(SHAPES))
    parser.add_argument("--peak", choices=["ours", "hf"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
