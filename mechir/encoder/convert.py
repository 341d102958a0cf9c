"""Conversion of a pickled checkpoint into safetensors: the only place that reads a pickle, and weights only."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mechir.encoder.checkpoint import (
    INDEX,
    SMALL_FILES,
    WEIGHTS,
    from_hub,
    pickle_files,
    read_json,
    refuse_adapters,
    refuse_unreadable,
    sha256,
)
from mechir.encoder.cross_encoder import OLD_FOLDER, SAVED
from mechir.errors import MechirError


def convert(name_or_path: str | Path, out: Path) -> dict[str, Any]:
    """Writes `out/model.safetensors` beside copies of the config and tokenizer files.

    The pickle is the one that Hugging Face would read: pytorch_model.bin, else the files of its index, else the only
    one there (files of a trainer aside). It is read by `torch.load(weights_only=True)`: tensors, no code. Tensors keep
    their names and number type.

    Returns:
        The content of `out/conversion.json`: the source, the SHA-256 of each pickle and of the result, tensors, bytes.

    Raises:
        MechirError: when there is no pickle or several, when it holds more than weights, or when `out` exists.
    """
    if out.exists():
        raise MechirError(f"'{out}' exists: give out= a directory that does not.")
    source = Path(name_or_path).expanduser()
    if not source.is_dir():
        source = from_hub(str(name_or_path), ["*.bin", *SMALL_FILES])
    root = source
    if not (source / "config.json").is_file() and (source / OLD_FOLDER).is_dir():
        source = source / OLD_FOLDER
    if there := [name for name in (WEIGHTS, INDEX) if (source / name).is_file()]:
        raise MechirError(f"'{source}' holds {there[0]}, which Hugging Face reads first: there is nothing to convert.")
    refuse_adapters(source)
    pickles = pickle_files(source)
    tensors = _tensors(pickles)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        made = Path(scratch) / "converted"
        made.mkdir()
        save_file(tensors, made / WEIGHTS, metadata={"format": "pt"})
        for pattern in SMALL_FILES:
            for file in source.glob(pattern):
                if not file.name.endswith(".index.json"):
                    shutil.copyfile(file, made / file.name)
        if root != source:
            _copy_modules(root, made)
        record = {
            "source": str(name_or_path),
            "pickle_sha256": {file.name: sha256(file) for file in pickles},
            "safetensors_sha256": sha256(made / WEIGHTS),
            "tensors": len(tensors),
            "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        }
        (made / "conversion.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        made.rename(out)
    return record


def _copy_modules(root: Path, made: Path) -> None:
    """Copies sentence-transformers' settings of a model in a subfolder, whose files are now in the folder itself."""
    if not (root / "modules.json").is_file():
        return
    modules = read_json(root / "modules.json", list)
    modules = [module | {"path": ""} if module.get("path") == OLD_FOLDER else module for module in modules]
    (made / "modules.json").write_text(json.dumps(modules, indent=1) + "\n", encoding="utf-8")
    if (root / SAVED).is_file():
        shutil.copyfile(root / SAVED, made / SAVED)


def _tensors(pickles: list[Path]) -> dict[str, torch.Tensor]:
    """The tensors of all files; raises for a name that stands in two of them, or names as DataParallel writes them."""
    tensors: dict[str, torch.Tensor] = {}
    for file in pickles:
        read = _read(file)
        if twice := sorted(tensors.keys() & read.keys()):
            raise MechirError(f"'{twice[0]}' is in {file.name} and in a file before it: keep one.")
        tensors |= read
    if all(name.startswith("module.") for name in tensors):
        raise MechirError(
            f"Every tensor of '{pickles[0]}' is called module.(...), as DataParallel wraps a model: save "
            "model.module.state_dict() instead."
        )
    return tensors


def _read(file: Path) -> dict[str, torch.Tensor]:
    refuse_unreadable(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MechirError(
            f"'{file}' is no pickle of plain weights ({type(error).__name__}), and nothing else is read: "
            "save its state_dict() with torch.save first."
        ) from error
    values = [*loaded.values()] if isinstance(loaded, dict) else []
    nested = [inner for value in values for inner in (value.values() if isinstance(value, dict) else [value])]
    if not any(isinstance(value, torch.Tensor) for value in nested):
        raise MechirError(f"'{file}' holds no tensors by name: save its state_dict() with torch.save first.")
    others = [name for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others:
        listed = ", ".join(map(str, others[:3]))
        raise MechirError(
            f"'{file}' holds more than tensors by name ({listed}), as a trainer's checkpoint does: save the model's "
            "state_dict() alone with torch.save first."
        )
    odd = [name for name, value in loaded.items() if not isinstance(name, str) or value.is_sparse or value.is_quantized]
    if odd:
        raise MechirError(
            f"'{file}' holds '{odd[0]}', which is no plain tensor under a name: save the model's state_dict() in "
            "float32."
        )
    # Tied weights share memory in a pickle, which safetensors does not store: each gets its own.
    return {name: value.contiguous().clone() for name, value in loaded.items()}


def fetch_model(name: str) -> str:
    """Downloads a model of the hub for machines without a network; the text says what to type next."""
    folder = from_hub(name, ["*.safetensors", "*.safetensors.index.json", *SMALL_FILES])
    if list(folder.rglob("*.safetensors")):
        return f"'{name}' is in {folder}: mechir reads it by its name, or by this directory."
    from_hub(name, ["*.bin", *SMALL_FILES])
    return f"'{name}' has no safetensors, its pickle is in {folder}: now run `mechir convert {name} --out DIR`."
