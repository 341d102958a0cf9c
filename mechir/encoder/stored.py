"""A model of Hugging Face's from its files: read completely and exactly, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from mechir.encoder.checkpoint import (
    ADAPTER,
    Stored,
    quiet,
    read_json,
    refuse_adapters,
    refuse_surplus,
    stored_tensors,
    weight_files,
)
from mechir.encoder.cross_encoder import Settings
from mechir.encoder.fingerprint import NO_PROPERTY
from mechir.encoder.reading import Reading
from mechir.encoder.tokenizing import load_tokenizer
from mechir.errors import MechirError, brief

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Files:
    """The files of a checkpoint: settings beside it, its config.json (`raw`), names and tensors of its weights."""

    settings: Settings
    raw: dict[str, Any]
    weights: tuple[str, ...]
    stored: Mapping[str, Stored]

    @classmethod
    def of(cls, settings: Settings) -> Files:
        """Reads what lies in the folder that the settings name; raises for adapters, pickles and broken files."""
        raw = read_json(settings.folder / "config.json")
        refuse_adapters(settings.folder)
        files = weight_files(settings.folder, raw)
        return cls(settings, raw, tuple(file.name for file in files), stored_tensors(files))

    @property
    def folder(self) -> Path:
        """The folder of the model."""
        return self.settings.folder

    def opened_as_named(self, dtype: torch.dtype) -> tuple[Any, Any, Reading]:
        """`opened` as the architecture that config.json names first."""
        architecture = str(self.raw["architectures"][0])
        return self.opened(architecture, configuration(architecture, self.raw, self.folder), dtype)

    def opened(self, architecture: str, config: Any, dtype: torch.dtype) -> tuple[Any, Any, Reading]:
        """The model of this architecture, its tokenizer, and how they were read."""
        hf, unused = read_model(self.folder, architecture, config, self.raw, self.stored, dtype)
        lower_case = self.settings.lower_case
        tokenizer = load_tokenizer(self.folder, lower_case=lower_case, max_length=self.settings.max_length)
        left_out = tuple(unused)
        reading = Reading(self.weights, lower_case=lower_case, settings=self.settings.files, left_out=left_out)
        return hf, tokenizer, reading


def revision_of(folder: Path) -> str:
    """The revision of a checkpoint in the hub's cache; empty elsewhere."""
    return folder.name if folder.parent.name == "snapshots" else ""


def read_model(
    folder: Path,
    architecture: str,
    config: Any,
    raw: Mapping[str, Any],
    stored: Mapping[str, Stored],
    dtype: torch.dtype,
) -> tuple[Any, list[str]]:
    """The model of this architecture and configuration with the stored weights, and the tensors that it has no use for.

    Raises for weights that are missing, of another shape, left over, or not finite.
    """
    refuse_unfaithful(raw, folder)
    refuse_mismatch(expected(architecture, config, folder), stored, folder)
    with quietly(folder):
        hf, report = hf_class(architecture).from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    unused = refuse_surplus(folder, report["unexpected_keys"], raw)
    for name, parameter in hf.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise MechirError(f"'{folder}' holds NaN or inf in {name}: its scores would be meaningless.")
    return hf, unused


def configuration(architecture: str, raw: Mapping[str, Any], folder: Path) -> Any:
    """Hugging Face's configuration, without the settings that are no property of the weights."""
    values = {key: value for key, value in raw.items() if key not in (*NO_PROPERTY, "model_type")}
    with quietly(folder):
        return hf_class(architecture).config_class(**values)


def hf_class(architecture: str) -> Any:
    """The class of transformers with this name."""
    return getattr(transformers, architecture)


def expected(architecture: str, config: Any, folder: Path) -> dict[str, tuple[int, ...]]:
    """The parameters of a model of this configuration, and their shapes."""
    with quietly(folder), torch.device("meta"):
        model = hf_class(architecture)(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@contextmanager
def quietly(folder: Path) -> Iterator[None]:
    """Calls Hugging Face quietly, and raises its errors as one about the checkpoint's config.json."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise MechirError(
            f"Hugging Face refuses '{folder / 'config.json'}' ({type(error).__name__}: {brief(error)}): correct it, or "
            "download it again."
        ) from error


def refuse_unfaithful(raw: Mapping[str, Any], folder: Path) -> None:
    """Raises for a setting of a config.json that cannot be reproduced."""
    for key, faithful in (
        ("position_embedding_type", (None, "absolute")),
        ("is_decoder", (None, False)),
        ("add_cross_attention", (None, False)),
        ("quantization_config", (None,)),
        ("pruned_heads", (None, {})),
    ):
        if raw.get(key) not in faithful:
            raise MechirError(f"'{folder}' has {key}={raw[key]!r} in config.json, which mechir cannot reproduce.")


def refuse_mismatch(expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored], folder: Path) -> None:
    """Raises for parameters that are missing from the files, or stored in another shape."""
    given = {todays(name): tensor.shape for name, tensor in stored.items()}
    missing = [name for name in expected if name not in given]
    if missing and all(name.startswith("module.") for name in given):
        raise MechirError(
            f"Every tensor of '{folder}' is called module.(...), as DataParallel wraps a model: save model.module."
        )
    if missing:
        head = [name for name in missing if name.startswith(("classifier", "pre_classifier")) or ".pooler." in name]
        weights = "a sequence classifier's head weights" if head else "weights"
        raise MechirError(
            f"'{folder}' lacks {weights} ({(head or missing)[0]}, {len(missing)} in all): it is no complete "
            "sequence classifier, and random weights in their place would score noise."
        )
    for name, shape in expected.items():
        if given[name] != shape:
            raise MechirError(f"'{folder}' has {name} of shape {given[name]}, but its config.json says {shape}.")


def todays(name: str) -> str:
    """Today's name of a LayerNorm's parameter: old checkpoints say gamma and beta, and transformers renames them."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def number_type(dtype: str | torch.dtype) -> torch.dtype:
    """The number type of this name; raises for one that is not computed in."""
    number = DTYPES.get(str(dtype).removeprefix("torch."))
    if number is None:
        raise MechirError(f"Cannot compute in '{dtype}': write one of {', '.join(DTYPES)}.")
    return number


def device_of(device: str | torch.device | None) -> torch.device:
    """The device of this name, by default a GPU where there is one; raises where there is none such."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise MechirError(f"Unknown device '{device}': write cpu, cuda or cuda:1.") from error
    if chosen.type not in ("cpu", "cuda", "mps") or (chosen.type == "mps" and not torch.backends.mps.is_available()):
        raise MechirError(f"There is no device '{device}' to compute on here: write cpu, cuda or cuda:1.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise MechirError(f"There is no GPU that torch sees for device '{device}': write device='cpu'.")
    return chosen


def refuse_unmerged(model: torch.nn.Module) -> None:
    """Raises for a model in memory with adapters beside its weights, or with quantised weights."""
    name = type(model).__name__
    if adapter := next((part for part, _ in model.named_parameters() if ADAPTER.search(part)), None):
        raise MechirError(
            f"This {name} has an adapter beside its weights ({adapter}), where hooks would see both apart: give "
            "model.merge_and_unload() of peft."
        )
    if any(getattr(getattr(part, "config", None), "quantization_config", None) for part in model.modules()):
        raise MechirError(
            f"This {name} has quantised weights, through which no gradient goes and no score is exact: load it in "
            "float32 or bfloat16."
        )
