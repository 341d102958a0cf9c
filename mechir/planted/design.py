"""The design of a planted model: its dials, its words and their IDF, and the place of every feature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from mechir.errors import MechirError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STOP_WORDS = ("the", "of", "and", "in")
CONTENT_WORDS = (
    *("amber", "birch", "cedar", "delta", "ember", "fjord", "glacier", "harbour"),
    *("island", "juniper", "kelp", "lagoon", "meadow", "nettle", "orchard", "pebble"),
    *("quarry", "reef", "spruce", "tundra", "upland", "valley", "willow", "yew"),
)
WORDS = (*STOP_WORDS, *CONTENT_WORDS)
FEATURES = (
    *("word", "stop", "cls", "sep", "seg1", "log_idf", "decoy"),  # written by the embeddings
    *("tf", "tf_backup", "tf_content", "tf_unread", "score", "ballast"),  # written by heads and neurons
)
STOP_IDF = 0.2
N_CTX = 64
DEAD = 8
"""Dead coordinates that a model must at least have room for."""


@dataclass(frozen=True)
class Design:
    """The arguments of `planted.bm25`; see there."""

    c: float
    a: float
    k1: float
    sink: float
    rotate: bool
    decoy: float | None
    idf_scale: float
    backup: bool
    labels: int
    seed: int
    n_layers: int
    n_heads: int
    d_model: int
    apart: bool = False

    def __post_init__(self) -> None:
        least = len(WORDS) + 1
        for wrong, message in (
            (min(self.c, self.a, self.k1, self.sink) <= 0, "c, a, k1 and sink must be above 0"),
            (self.idf_scale == 0, "idf_scale=0 leaves no IDF to read: write another length"),
            (self.decoy is not None and self.decoy < 0, "decoy is a standard deviation: write 0 or more, or None"),
            (self.apart and self.decoy is None, "without a decoy none can stand apart: write decoy=0.4"),
            (self.labels not in (1, 2), f"labels={self.labels}: write 1 or 2"),
            (
                self.n_layers < 4 or self.n_heads < 4,
                "the planted heads are 1.2, 2.3 and 3.1: 4 layers x 4 heads at least",
            ),
            (self.d_model % self.n_heads > 0 or self.d_head < least, f"a head needs {least} dimensions or more"),
            (self.n_dead < DEAD, f"d_model={self.d_model} leaves no room: write {2 * (DEAD + self.dead_from)} or more"),
        ):
            if wrong:
                raise MechirError(f"Cannot plant this model: {message}.")

    @property
    def d_head(self) -> int:
        """Dimensions of a head."""
        return self.d_model // self.n_heads

    @property
    def dead_from(self) -> int:
        """The first coordinate of the dead block, to which noise is written and which the circuit does not read."""
        return len(WORDS) + len(FEATURES)

    @property
    def n_dead(self) -> int:
        """The number of coordinates of the dead block."""
        return self.d_model // 2 - self.dead_from

    def generator(self, *key: int) -> np.random.Generator:
        """A random generator for one purpose, named by `key`."""
        return np.random.default_rng([self.seed, *key])

    @cached_property
    def idf(self) -> dict[str, float]:
        """The IDF of every word: drawn evenly from 0.5 to 4 for content words, 0.2 for stop words."""
        drawn = self.generator(0).uniform(0.5, 4.0, len(CONTENT_WORDS))
        return dict.fromkeys(STOP_WORDS, STOP_IDF) | dict(zip(CONTENT_WORDS, drawn.tolist(), strict=True))

    @cached_property
    def rotation(self) -> Float[np.ndarray, "d_model d_model"]:
        """An orthogonal matrix that keeps the vector of ones, so that LayerNorm commutes with it."""
        d = self.d_model
        if not self.rotate:
            return np.eye(d)
        noise = self.generator(1).normal(size=(d, d))
        basis, _ = np.linalg.qr(np.column_stack([np.ones(d), noise[:, 1:]]))
        turn, _ = np.linalg.qr(noise[1:, 1:])
        return np.outer(basis[:, 0], basis[:, 0]) + basis[:, 1:] @ turn @ basis[:, 1:].T

    def place(self, feature: str) -> int:
        """The coordinate of a word's one-hot or of a named feature."""
        return WORDS.index(feature) if feature in WORDS else len(WORDS) + FEATURES.index(feature)

    def written(self, place: int) -> Float[np.ndarray, "d_model"]:
        """The vector of value 1 of the feature at `place`: +1 there and -1 at its mirror, so every mean is 0."""
        vector = np.zeros(self.d_model)
        vector[place], vector[place + self.d_model // 2] = 1.0, -1.0
        return self.rotation @ vector

    def read(self, place: int) -> Float[np.ndarray, "d_model"]:
        """The functional that reads the feature at `place`."""
        return self.written(place) / 2

    def direction(self, feature: str) -> Float[np.ndarray, "d_model"]:
        """The direction along which a feature is written in the residual stream: `log_idf`, `tf`, `decoy`, ..."""
        if feature not in (*WORDS, *FEATURES):
            raise MechirError(f"There is no feature '{feature}': write one of {', '.join(FEATURES)}, or a word.")
        return self.written(self.place(feature))

    @cached_property
    def dead_written(self) -> Float[np.ndarray, "dead d_model"]:
        """The vectors that write each coordinate of the dead block."""
        return np.stack([self.written(self.dead_from + k) for k in range(self.n_dead)])
