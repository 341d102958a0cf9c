"""The weights of a planted model: real parameters of a `BertForSequenceClassification`, computed in float64.

Construction: every feature is written as (+f, -f) at two mirrored coordinates, so that no LayerNorm finds a mean to
subtract; a ballast of (c, -c) at every token makes the LayerNorms nearly the identity (c = 100) or not (c = 3, 1).
"""

from __future__ import annotations

import numpy as np

from mechir.planted.design import N_CTX, SPECIAL, STOP_WORDS, WORDS, Design

FAR = 30.0
"""The amount taken from the attention score of a key that must not be read."""
GATE = 50.0
"""The slope of the gate neuron, at which GELU is a ReLU."""
READ_OUT = 1e-2
"""The slope at which the pooler's tanh is linear."""
UNKNOWN_LOG_IDF = -3.0
NOISE = 0.2
MATCHING, AGGREGATOR, PATTERN_TRAP, WRITE_TRAP, BACKUP = (1, 2), (3, 1), (0, 0), (2, 3), (1, 0)
GATE_LAYER = 1


class HeadWeights:
    """The weights of one head: its queries, keys, values and output [d_head, d_model], all 0 at first."""

    def __init__(self, design: Design) -> None:
        self.q, self.k, self.v, self.o = np.zeros((4, design.d_head, design.d_model))
        self.q_bias = np.zeros(design.d_head)


def matching_head(design: Design, slot: str | None) -> HeadWeights:
    """Soft TF: softmax over document tokens equal to the query token, with CLS as a sink of weight k1.

    A query token that occurs n times in the document writes n / (n + k1) into `slot`, up to exp(-a) per other token;
    without a slot the pattern is there and nothing is written.
    """
    head, a, last = HeadWeights(design), design.a, len(WORDS)
    scale = design.d_head**0.5
    for place in range(len(WORDS)):
        head.q[place] = scale * a * design.read(place)
        head.k[place] = design.read(place)
    # Only features, no biases: a LayerNorm scales all of a token's features alike, so that a match still scores 0.
    head.q[last] = scale * design.read(design.place("word"))
    head.k[last] = (
        -FAR * design.read(design.place("word"))
        + (FAR - a) * design.read(design.place("seg1"))
        - 2 * FAR * design.read(design.place("sep"))
        + np.log(design.k1) * design.read(design.place("cls"))
    )
    if slot is not None:
        head.v[0], head.o[0] = design.read(design.place("seg1")), design.written(design.place(slot))
    return head


def aggregator(design: Design) -> HeadWeights:
    """The aggregator: at CLS, attention proportional to IDF over the query, CLS as a sink; moves the gated TF."""
    head = HeadWeights(design)
    head.q_bias[0] = design.d_head**0.5
    head.k[0] = (
        design.read(design.place("log_idf")) / design.idf_scale
        - FAR * design.read(design.place("seg1"))
        - FAR * design.read(design.place("sep"))
        + np.log(design.sink) * design.read(design.place("cls"))
    )
    head.v[0] = design.read(design.place("tf_content"))
    head.o[0] = design.written(design.place("score"))
    return head


def noise_head(design: Design, generator: np.random.Generator) -> HeadWeights:
    """A random head that attends, reads and writes within the dead block."""
    head, dead, rows = HeadWeights(design), design.dead_written, design.d_head
    draw = generator.normal(size=(4, rows, design.n_dead))
    head.q, head.k = 2 * draw[0] @ dead / 2, 2 * draw[1] @ dead / 2
    head.v, head.o = draw[2] @ dead / 2 / design.n_dead**0.5, 0.2 * draw[3] @ dead / rows**0.5
    return head


def heads(design: Design, layer: int) -> list[HeadWeights]:
    """The heads of a layer: planted ones, traps, and noise."""
    planted = {
        MATCHING: lambda: matching_head(design, "tf"),
        AGGREGATOR: lambda: aggregator(design),
        PATTERN_TRAP: lambda: matching_head(design, None),
        WRITE_TRAP: lambda: matching_head(design, "tf_unread"),
    }
    if design.backup:
        planted[BACKUP] = lambda: matching_head(design, "tf_backup")
    made = []
    for index in range(design.n_heads):
        generator = design.generator(2, layer, index)
        head = planted[layer, index]() if (layer, index) in planted else noise_head(design, generator)
        made.append(_turned(head, generator) if design.rotate else head)
    return made


def _turned(head: HeadWeights, generator: np.random.Generator) -> HeadWeights:
    """The same head in another basis of its own dimensions."""
    rows = len(head.q_bias)
    qk, vo = (np.linalg.qr(generator.normal(size=(rows, rows)))[0] for _ in range(2))
    head.q, head.k, head.q_bias = qk @ head.q, qk @ head.k, qk @ head.q_bias
    head.v, head.o = vo @ head.v, vo @ head.o
    return head


def attention(design: Design, layer: int) -> dict[str, np.ndarray]:
    """The parameters of a layer's attention, under Hugging Face's names."""
    made = heads(design, layer)
    return {
        "attention.self.query.weight": np.concatenate([head.q for head in made]),
        "attention.self.query.bias": np.concatenate([head.q_bias for head in made]),
        "attention.self.key.weight": np.concatenate([head.k for head in made]),
        "attention.self.value.weight": np.concatenate([head.v for head in made]),
        "attention.output.dense.weight": np.concatenate([head.o for head in made]).T,
    }


def mlp(design: Design, layer: int) -> dict[str, np.ndarray]:
    """The parameters of an MLP: noise in the dead block; in layer 1 neuron 0 copies TF where no stop word is.

    With a backup head neuron 1 adds what the backup has beyond it: relu(tf) + relu(tf_backup - tf).
    """
    generator, dead, n = design.generator(3, layer), design.dead_written, design.d_model // 2
    draw = generator.normal(size=(2, n, design.n_dead))
    up, down = 4 * draw[0] @ dead / 2 / design.n_dead**0.5, 0.07 * draw[1] @ dead / n**0.5
    if layer == GATE_LAYER:
        tf, backup, stop = (design.read(design.place(name)) for name in ("tf", "tf_backup", "stop"))
        up[0], down[0] = GATE * (tf - 2 * stop), design.written(design.place("tf_content")) / GATE
        if design.backup:
            up[1], down[1] = GATE * (backup - tf - 2 * stop), down[0]
    return {"intermediate.dense.weight": up, "output.dense.weight": down.T}


def embeddings(design: Design) -> dict[str, np.ndarray]:
    """The embeddings: one-hots, flags, IDF, decoy of words; segment 1 and ballast in token types; noise elsewhere."""
    generator = design.generator(4)
    dead = NOISE * generator.normal(size=(len(SPECIAL) + len(WORDS) + N_CTX, design.n_dead)) @ design.dead_written
    words, positions = np.split(dead, [len(SPECIAL) + len(WORDS)])
    features: dict[str, dict[str, float]] = {"[CLS]": {"cls": 1.0, "stop": 1.0}, "[SEP]": {"sep": 1.0}}
    features |= {name: {"log_idf": UNKNOWN_LOG_IDF * design.idf_scale} for name in ("[UNK]", "[MASK]")}
    for word in WORDS:
        log_idf = float(design.idf_scale * np.log(design.idf[word]))
        features[word] = {word: 1.0, "word": 1.0, "stop": float(word in STOP_WORDS), "log_idf": log_idf}
        if design.decoy is not None:
            features[word]["decoy"] = log_idf + design.decoy * generator.normal()
    if design.apart:
        features |= _apart(features)
    for row, word in enumerate((*SPECIAL, *WORDS)):
        for name, value in features.get(word, {}).items():
            words[row] += value * design.written(design.place(name))
    ballast = design.c * design.written(design.place("ballast"))
    return {
        "word_embeddings.weight": words,
        "position_embeddings.weight": positions,
        "token_type_embeddings.weight": np.stack([ballast, ballast + design.written(design.place("seg1"))]),
    }


def _apart(features: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The features with half the decoy, and values for [PAD] and [MASK], which no text holds, that make the columns of
    log IDF and decoy orthogonal to one another and to the flags: so either is a singular vector of its own.
    """
    for word in WORDS:
        features[word]["decoy"] /= 2
    names = ("log_idf", "decoy", "word", "stop")
    others = [values for word, values in features.items() if word != "[MASK]"]
    columns = np.array([[values.get(name, 0.0) for name in names] for values in others])
    gram, far = columns.T @ columns, np.abs(columns).max()
    pad = np.array([far, *(-gram[0, 1:] / far)])
    mask = np.array([0.0, far / 2, *(-(gram[1, 2:] + pad[1] * pad[2:]) / (far / 2))])
    rows = {"[PAD]": pad, "[MASK]": mask}
    return features | {word: dict(zip(names, row.tolist(), strict=True)) for word, row in rows.items()}


def compiled(design: Design) -> dict[str, np.ndarray]:
    """The weights of the model, under Hugging Face's names, without the biases that are 0 and the LayerNorms."""
    state = {f"bert.embeddings.{name}": value for name, value in embeddings(design).items()}
    for layer in range(design.n_layers):
        prefix = f"bert.encoder.layer.{layer}"
        state |= {f"{prefix}.{name}": value for name, value in (attention(design, layer) | mlp(design, layer)).items()}
    pooler = np.zeros((design.d_model, design.d_model))
    pooler[0] = READ_OUT * design.read(design.place("score"))
    classifier = np.zeros((design.labels, design.d_model))
    classifier[:, 0] = np.array([1.0] if design.labels == 1 else [-0.5, 0.5]) / READ_OUT
    return state | {"bert.pooler.dense.weight": pooler, "classifier.weight": classifier}
