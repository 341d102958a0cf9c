"""How often the test of `joint/across_models` finds something in two worlds that share nothing, or a circuit.

python scripts/measure_alignment.py [--worlds 400]
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from mechir.inference import LEVEL
from mechir.methods.alignment import align, distances, held_out

LAYERS = np.repeat(np.arange(6), 12)
CHANCE = {"heads": None, "thirds": LAYERS // 2, "layers": LAYERS}
"""Among which heads values are dealt out anew: all, those of a third of the depth, those of a layer."""
WORLDS = ((0.0, 0.0), (0.0, 0.5), (0.0, 2.0), (0.5, 0.0), (1.0, 0.0), (1.0, 0.5), (2.0, 0.0))
"""How much of a circuit both models share, and how much everything grows from layer to layer."""


def world(shared: float, grows: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three measures of the 72 heads of two models, of which the last is held out: circuit, depth, and as much noise.

    All have the heavy tails of Student's t with 2 degrees: few heads matter. The other model has the same circuit at
    other heads of the same layers.
    """
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(12) + 12 * layer for layer in range(6)])
    circuit = generator.standard_t(2, size=72)
    one, other = (
        shared * circuit[places] + grows * LAYERS + generator.standard_t(2, size=(3, 72))
        for places in (np.arange(72), order)
    )
    return one, other


def below(shared: float, grows: float, worlds: int) -> dict[str, float]:
    """How often p is below .05, by where values are dealt out."""
    found = {name: 0 for name in CHANCE}
    for seed in range(worlds):
        one, other = world(shared, grows, seed)
        aligned = align(distances(one[:2].T, other[:2].T))
        for name, among in CHANCE.items():
            found[name] += held_out(one[2], other[2], aligned, among=among, draws=500, seed=seed).p < LEVEL
    return {name: times / worlds for name, times in found.items()}


def table(worlds: int = 400) -> pd.DataFrame:
    """A row per kind of world: `shared`, `grows`, and how often p is below .05 by dealing among `CHANCE`."""
    lines = [{"shared": shared, "grows": grows} | below(shared, grows, worlds) for shared, grows in WORLDS]
    return pd.DataFrame(lines).assign(worlds=worlds)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=400)
    print(table(parser.parse_args().worlds).to_string(index=False))


if __name__ == "__main__":
    main()
