"""The default model, its backbone under the same head, and another model: the page docs/across_models.md.

    python scripts/compare_models.py --model DIR

On each model it runs three experiments and lays `joint/across_models` over what they find, in a registry of its own,
`build/docs/models`. The frames are kept for the numbers of the page; the chart is docs/figures/across_models.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import transformers
from safetensors.torch import load_file

import mechir as mi
from mechir.catalog import shown
from mechir.encoder.checkpoint import read_json
from mechir.encoder.default import FOLDER, backbone, merged
from mechir.measures import TEXT
from mechir.registry.names import model_name
from scripts.remake_docs import small

ROOT = Path(__file__).parent.parent
REGISTRY, FIGURE = ROOT / "build/docs/models", ROOT / "docs/figures/across_models.png"


def backbone_under_the_head() -> mi.HookedEncoder:
    """The weights that the default model was made from, with the pooler and the classifier of the default model.

    The head is what Hugging Face puts on the encoder: the pooler reads CLS, the classifier makes the score of it.
    """
    manifest = read_json(FOLDER / "manifest.json")
    before = load_file(backbone(manifest["backbone"]) / "model.safetensors")
    whole = merged(before, load_file(FOLDER / "difference.safetensors"))
    head = {name: value for name, value in whole.items() if name.startswith(("bert.pooler", "classifier"))}
    hf = transformers.BertForSequenceClassification(transformers.BertConfig(**manifest["config"]))
    hf.load_state_dict(merged(before, {}) | head)
    return mi.load(hf, mi.load().tokenizer, name="backbone")


def measure(model: mi.HookedEncoder, collection: mi.Collection) -> None:
    """What the heads of a model look at, and what changing them does: three runs in the registry."""
    contrasts = mi.diagnostic("tfc1", collection, per_grade=1, fillers=("a",))
    mi.run("chen2024/head_maps", model, contrasts, at=TEXT, registry=REGISTRY)
    pool = mi.Pool(per_grade=2, easy_negatives=4)
    for name in ("vast2025/attention_contrast", "lu2025/soft_tf"):
        mi.run(name, model, collection, pool=pool, registry=REGISTRY)


def compared(checkpoint: Path) -> dict[str, pd.DataFrame]:
    """Draws the figure, and returns `joint/across_models` of the default model and, as `gaps`, what a term does."""
    collection, default, other = mi.collection("embedded"), mi.load(), mi.load(checkpoint.resolve())
    for model in (default, backbone_under_the_head(), other):
        measure(model, collection)
    same = ("backbone", checkpoint.name)
    run = mi.run("joint/across_models", default, collection, same=same, registry=REGISTRY)
    FIGURE.write_bytes(small(run.path / "chart.png"))
    gaps = mi.sql(
        "select model, value, low, high, n_pairs from findings where measure = 'gap, tfc1'", registry=REGISTRY
    )
    return {"": run.summary, "gaps": gaps.assign(model=gaps["model"].map(model_name))}


def main() -> None:
    """Prints the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the other model")
    print(shown("joint/across_models", compared(parser.parse_args().model)[""]).to_string(index=False))


if __name__ == "__main__":
    main()
