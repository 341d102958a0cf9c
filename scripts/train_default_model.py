"""Trains the model that mechir ships: a cross-encoder distilled from the bi-encoder whose low-rank difference it is.

    pip install "mechir-encoders[dev]" && apt-get install wordnet-base dict-gcide dict-foldoc dict-jargon
    python scripts/train_default_model.py --out mechir/data/default

The teacher's cosines grade eight candidates per query (BM25's, its own and random ones); the student learns their
softmax. Every weight matrix of the encoder and the pooler changes by a product of two thin ones, every bias and
LayerNorm freely, the word embeddings not at all. Nothing judged by people is read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from pathlib import Path

import bm25s
import numpy as np
import torch
from bm25s.stopwords import STOPWORDS_EN_PLUS
from safetensors.torch import save_file
from torch.nn.functional import kl_div, log_softmax, normalize, softmax
from torch.nn.utils import parametrize
from training_text import Text, pool, query
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel

SIZES = {"wordnet": 45_000, "gcide": 40_000, "foldoc": 9_000, "jargon": 1_500}
CANDIDATES = {"bm25": 3, "dense": 2, "far": 1, "random": 1}  # beside the text that the query was made from
TEMPERATURE = 0.05  # of the teacher's cosines
LENGTH = 192
CHUNK = 32
OWN_SHARE = 0.3  # of the queries are on our own passages
POSITIVE = 0.25  # of the target goes to the passage that a query was written for, if it was


class LowRank(torch.nn.Module):
    """W + B A, with W as it was."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.A = torch.nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.B = torch.nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.B @ self.A


def student(backbone: Path, rank: int) -> BertForSequenceClassification:
    model = BertForSequenceClassification.from_pretrained(backbone, num_labels=1)
    model.bert.embeddings.word_embeddings.weight.requires_grad = False
    model.bert.embeddings.position_embeddings.weight.requires_grad = False
    for module in [*model.bert.encoder.modules(), model.bert.pooler.dense]:
        if isinstance(module, torch.nn.Linear):
            module.weight.requires_grad = False
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@torch.no_grad()
def embed(backbone: Path, texts: list[str], length: int = LENGTH) -> torch.Tensor:
    """The teacher's unit vectors: the mean over a text's tokens."""
    model, tokenizer = BertModel.from_pretrained(backbone).eval(), AutoTokenizer.from_pretrained(backbone)
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    for start in range(0, len(order), 256):
        places = order[start : start + 256]
        batch = tokenizer(
            [texts[p] for p in places], padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16):
            states = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"][..., None]
        vectors[places] = normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    return vectors


def asked(texts: list[Text], n: int, seed: int) -> tuple[list[str], list[int]]:
    """Queries and the places of the texts that they were made from."""
    generator, common = random.Random(seed), frozenset(STOPWORDS_EN_PLUS)
    own = [place for place, text in enumerate(texts) if text.queries]
    queries, sources = [], []
    for k in range(n):
        place = generator.choice(own) if own and k < OWN_SHARE * n else generator.randrange(len(texts))
        queries.append(query(texts[place], generator.choice(texts), common, generator))
        sources.append(place)
    return queries, sources


def candidates(
    queries: list[str],
    sources: list[int],
    asked_vectors: torch.Tensor,
    texts: list[Text],
    vectors: torch.Tensor,
    seed: int,
) -> np.ndarray:
    """Places of the texts to rank for each query: its own text first."""
    retriever = bm25s.BM25(k1=0.9, b=0.4)
    retriever.index(bm25s.tokenize([text.passage for text in texts], stopwords="en", show_progress=False))
    tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False)
    lexical = retriever.retrieve(tokens, k=40, show_progress=False, return_as="documents")
    generator, rows = np.random.default_rng(seed), []
    for start in range(0, len(queries), 512):
        near = (asked_vectors[start : start + 512] @ vectors.T).topk(200).indices.numpy()
        for offset, dense in enumerate(near):
            k = start + offset
            chosen = [sources[k]]
            sets = {"bm25": lexical[k], "dense": dense[:20], "far": dense[20:], "random": np.arange(len(texts))}
            for name, n in CANDIDATES.items():
                fresh = np.setdiff1d(sets[name], chosen) if name != "random" else sets[name]
                chosen += generator.choice(fresh, n, replace=False).tolist()
            rows.append(chosen)
    return np.array(rows)


def targets(rows: np.ndarray, sources: list[int], cosines: torch.Tensor, texts: list[Text]) -> torch.Tensor:
    soft = softmax(cosines / TEMPERATURE, dim=-1)
    written = torch.tensor([bool(texts[place].queries) for place in sources])
    soft[written] *= 1 - POSITIVE
    soft[written, 0] += POSITIVE
    return soft


def scored(model: BertForSequenceClassification, tokenizer, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """A logit per pair, computed in chunks of like length: most of a padded batch would be padding."""
    read = tokenizer([q for q, _ in pairs], [d for _, d in pairs], truncation="only_second", max_length=LENGTH)
    order = sorted(range(len(pairs)), key=lambda k: len(read["input_ids"][k]))
    logits = []
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        batch = tokenizer.pad({key: [read[key][k] for k in rows] for key in read}, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(model(**batch).logits[:, 0].float())
    return torch.cat(logits)[torch.tensor(order).argsort()]


def batched(passages: list[list[str]], size: int, seed: int) -> list[list[int]]:
    """Places of the queries in batches whose longest passages are alike, in an order drawn at random."""
    order = np.random.default_rng(seed).permutation(len(passages))
    lengths = np.array([max(len(text) for text in row) for row in passages])
    batches = []
    for start in range(0, len(order), 32 * size):
        block = sorted(order[start : start + 32 * size], key=lambda k: lengths[k])
        cut = [block[k : k + size] for k in range(0, len(block), size)]
        random.Random(start).shuffle(cut)
        batches += cut
    return batches


def train(
    model: BertForSequenceClassification,
    tokenizer,
    queries: list[str],
    passages: list[list[str]],
    goal: torch.Tensor,
    options: argparse.Namespace,
) -> None:
    """Listwise: KL from the teacher's softmax over a query's candidates to the student's."""
    factors = [p for name, p in model.named_parameters() if p.requires_grad and "parametrizations" in name]
    others = [p for name, p in model.named_parameters() if p.requires_grad and "parametrizations" not in name]
    groups = [{"params": factors, "lr": options.lr}, {"params": others, "lr": options.lr / 3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    size = options.batch
    batches = batched(passages, size, options.seed)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [options.lr, options.lr / 3], total_steps=len(batches), pct_start=0.06, cycle_momentum=False
    )
    model.train()
    begun, losses = time.time(), []
    for step, places in enumerate(batches):
        logits = scored(model, tokenizer, [(queries[k], text) for k in places for text in passages[k]])
        logits = logits.view(len(places), -1)
        loss = kl_div(log_softmax(logits, dim=-1), goal[places], reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*factors, *others], 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            print(f"{step + 1}/{len(batches)} loss {np.mean(losses[-50:]):.4f} {time.time() - begun:.0f} s", flush=True)


def difference(model: BertForSequenceClassification, backbone: Path) -> dict[str, torch.Tensor]:
    """What changed, in fp16: factors `NAME.A` and `NAME.B` of the matrices, plain differences of the rest."""
    before = BertForSequenceClassification.from_pretrained(backbone, num_labels=1).state_dict()
    changed = {}
    for name, value in model.state_dict().items():
        if ".parametrizations.weight.0." in name:
            changed[name.replace("parametrizations.weight.0.", "weight.")] = value.half().contiguous()
        elif name.startswith("classifier"):
            changed[name] = value.half()
        elif name in before and not torch.equal(value, before[name]):
            changed[name] = (value - before[name]).half()
    return changed


def save(model: BertForSequenceClassification, backbone: Path, out: Path) -> None:
    """The difference, and the manifest by which `mi.load` refuses any other file."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(difference(model, backbone), out / "difference.safetensors")
    (out / "difference.safetensors").chmod(0o644)
    keys = "hidden_act hidden_size intermediate_size layer_norm_eps max_position_embeddings num_attention_heads"
    keys = [*keys.split(), "num_hidden_layers", "pad_token_id", "type_vocab_size", "vocab_size"]
    config = {key: getattr(model.config, key) for key in keys}
    manifest = {
        "difference": sha256(out / "difference.safetensors"),
        "backbone": {name: sha256(backbone / name) for name in ("model.safetensors", "vocab.txt")},
        "config": config | {"num_labels": 1, "architectures": ["BertForSequenceClassification"]},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lists", type=int, default=16_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=42)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    texts = pool(options.seed, SIZES)
    queries, sources = asked(texts, options.lists, options.seed)
    vectors = embed(options.backbone, [text.passage for text in texts])
    asked_vectors = embed(options.backbone, queries)
    rows = candidates(queries, sources, asked_vectors, texts, vectors, options.seed)
    cosines = torch.einsum("nd,ncd->nc", asked_vectors, vectors[torch.from_numpy(rows)])
    goal = targets(rows, sources, cosines, texts)
    passages = [[texts[place].passage for place in row] for row in rows]
    print(f"{len(texts)} texts, {len(queries)} queries", flush=True)
    model, tokenizer = student(options.backbone, options.rank), AutoTokenizer.from_pretrained(options.backbone)
    train(model, tokenizer, queries, passages, goal, options)
    options.out.mkdir(parents=True, exist_ok=True)
    save(model, options.backbone, options.out)


if __name__ == "__main__":
    main()
