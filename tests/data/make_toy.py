"""Makes the toy model and the toy collection beside it: small, random, for tests.

Run: python tests/data/make_toy.py
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch
import transformers

DATA = Path(__file__).parent
TOPICS = {
    "how do goldfish grow": "goldfish tank water grow food fin pond scale",
    "what is wifi": "wifi radio signal router wave network laptop antenna",
    "why does the tide rise": "tide moon ocean pull shore gravity sea beach",
    "how is bread made": "bread flour yeast oven dough crust loaf bake",
    "what do bees eat": "bee nectar pollen honey flower hive wing garden",
    "how are bridges built": "bridge stone steel cable river arch tower road",
}
COMMON = "the a of in and is to with for from on by it that as at".split()  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def collection(folder: Path) -> set[str]:
    """Random sentences: the more words of a query's topic, the higher the grade. Returns every word used."""
    draw = random.Random(0)
    queries, docs, qrels, words = [], [], [], set(COMMON)
    everything = " ".join(TOPICS.values()).split()
    for q, (query, topic) in enumerate(TOPICS.items(), 1):
        queries.append(f"q{q}\t{query}")
        words |= set(query.split()) | set(topic.split())
        for d in range(12):
            grade = d % 4
            text = [
                draw.choice(topic.split() if draw.random() < grade / 4 else everything + COMMON) for _ in range(8 + d)
            ]
            docs.append(f"d{q:02d}{d:02d}\t{' '.join(text)}")
            qrels.append(f"q{q} 0 d{q:02d}{d:02d} {grade}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("queries.tsv", queries), ("docs.tsv", docs), ("qrels.txt", qrels)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return words


def model(folder: Path, words: set[str]) -> None:
    """A random BERT classifier of 2 layers and 4 heads with a word-piece vocabulary of the toy's words."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    vocab = [
        *SPECIAL,
        *sorted(words),
        *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, num_labels=1, initializer_range=0.3,
        architectures=["BertForSequenceClassification"],
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    transformers.BertTokenizer.from_pretrained(folder).save_pretrained(folder)


if __name__ == "__main__":
    model(DATA / "toy-model", collection(DATA / "toy"))
