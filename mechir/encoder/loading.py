"""Loads a `HookedEncoder` from a name or directory: safetensors only, refused whenever it could not be exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from mechir.encoder.checkpoint import (
    Stored,
    quiet,
    read_json,
    refuse_adapters,
    refuse_surplus,
    resolve,
    stored_tensors,
    weight_files,
)
from mechir.encoder.cross_encoder import settings
from mechir.encoder.families import FAMILIES, Family
from mechir.encoder.fingerprint import NO_PROPERTY, stored_digests
from mechir.encoder.hooked import HookedEncoder
from mechir.encoder.reading import Reading
from mechir.encoder.tokenizing import load_tokenizer
from mechir.errors import MechirError, brief

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def load(name_or_path: str | Path, *, dtype: str | torch.dtype, **options: Any) -> HookedEncoder:
    """Loads a checkpoint; see `HookedEncoder.from_pretrained` for the options."""
    number = _number(dtype)
    saved = settings(resolve(name_or_path))
    folder = saved.folder
    raw = read_json(folder / "config.json")
    refuse_adapters(folder)
    files = weight_files(folder, raw)
    stored = stored_tensors(files)
    family, config = recognise(raw, stored, folder)
    _refuse_unfaithful(raw, folder)
    expected = _expected(family, config, folder)
    _refuse_mismatch(expected, stored, folder)
    tokenizer = load_tokenizer(folder, lower_case=saved.lower_case, max_length=saved.max_length)
    with _hugging_face(folder):
        hf, report = _hf_class(family).from_pretrained(
            folder, config=config, dtype=number, use_safetensors=True, output_loading_info=True
        )
    unused = refuse_surplus(folder, report["unexpected_keys"], raw)
    for name, parameter in hf.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise MechirError(f"'{folder}' holds NaN or inf in {name}: its scores would be meaningless.")
    reading = Reading(
        weights=tuple(file.name for file in files),
        lower_case=saved.lower_case,
        settings=saved.files,
        left_out=tuple(unused),
    )
    used = {name: tensor for name, tensor in stored.items() if _todays(name) in expected}
    return assemble(
        hf,
        tokenizer,
        family,
        name=str(name_or_path),
        tensors=stored_digests(used),
        reading=reading,
        revision=folder.name if folder.parent.name == "snapshots" else "",  # the hub's cache
        dtype=dtype,
        **options,
    )


def assemble(
    hf: Any,
    tokenizer: Any,
    family: Family,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    **options: Any,
) -> HookedEncoder:
    """A `HookedEncoder` of a complete Hugging Face model in this dtype on this device; `options` are the encoder's."""
    return HookedEncoder(hf.to(_number(dtype)).to(_device(device)), tokenizer, family, **options)


def in_memory(hf: Any, tokenizer: Any, *, name: str = "in memory", **options: Any) -> HookedEncoder:
    """A `HookedEncoder` of Hugging Face's model as it is, in its own number type and on its device by default.

    Raises:
        MechirError: for a class that is not one of `FAMILIES`, a setting that cannot be reproduced, or no tokenizer.
    """
    kind = type(hf).__name__
    family = next((family for family in FAMILIES.values() if family.architecture == kind), None)
    if family is None:
        readable = ", ".join(family.architecture for family in FAMILIES.values())
        raise MechirError(f"This is a {kind}, which mechir cannot reproduce: it reads {readable}.")
    if tokenizer is None:
        raise MechirError(f"A {kind} in memory needs its tokenizer: write mi.load(model, tokenizer).")
    _refuse_unfaithful(hf.config.to_dict(), Path(name))
    options = {"dtype": hf.dtype, "device": hf.device} | options
    return assemble(hf, tokenizer, family, name=name, **options)


def _number(dtype: str | torch.dtype) -> torch.dtype:
    number = DTYPES.get(str(dtype).removeprefix("torch."))
    if number is None:
        raise MechirError(f"Cannot compute in '{dtype}': write one of {', '.join(DTYPES)}.")
    return number


def recognise(raw: dict[str, Any], stored: Mapping[str, Stored], folder: Path) -> tuple[Family, Any]:
    """The family and Hugging Face configuration of a checkpoint.

    By `architectures` where the config names one; else by the one family whose parameters match the weights
    completely, in name and shape, head included (MonoBERT-large ships such a config). Raises for any other checkpoint.
    """
    if raw.get("auto_map"):
        raise MechirError(f"'{folder}' needs code from its own repository (auto_map in config.json), which is not run.")
    architectures = raw.get("architectures")
    if architectures:
        for family in FAMILIES.values():
            if family.architecture == architectures[0]:
                return family, configuration(family, raw, folder)
        known = ", ".join(family.architecture for family in FAMILIES.values())
        raise MechirError(f"'{folder}' is a {architectures[0]}, which mechir cannot reproduce: it reads {known}.")
    best: tuple[int, str] = (-1, "")
    for name, family in FAMILIES.items():
        if raw.get("model_type") not in (None, name):
            continue
        head = stored.get(f"{family.classifier}.weight")
        config = configuration(family, raw | {"num_labels": head.shape[0] if head else 1}, folder)
        expected = _expected(family, config, folder)
        wrong = [name for name, shape in expected.items() if name not in stored or stored[name].shape != shape]
        if not wrong:
            return family, config
        best = max(best, (len(expected) - len(wrong), f"as {family.architecture} it lacks {wrong[0]}"))
    raise MechirError(
        f"The config of '{folder}' names no architecture, and its weights match no family completely ({best[1]}): "
        "add architectures to config.json if it is a sequence classifier."
    )


def configuration(family: Family, raw: Mapping[str, Any], folder: Path) -> Any:
    """Hugging Face's configuration, without the settings that are no property of the weights."""
    values = {key: value for key, value in raw.items() if key not in (*NO_PROPERTY, "model_type")}
    with _hugging_face(folder):
        return _hf_class(family).config_class(**values)


def _hf_class(family: Family) -> Any:
    return getattr(transformers, family.architecture)


def _expected(family: Family, config: Any, folder: Path) -> dict[str, tuple[int, ...]]:
    """The parameters of a model of this configuration, and their shapes."""
    with _hugging_face(folder), torch.device("meta"):
        model = _hf_class(family)(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@contextmanager
def _hugging_face(folder: Path) -> Iterator[None]:
    """Calls Hugging Face quietly, and raises its errors as one about the checkpoint's config.json."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise MechirError(
            f"Hugging Face refuses '{folder / 'config.json'}' ({type(error).__name__}: {brief(error)}): correct it, or "
            "download it again."
        ) from error


def _refuse_unfaithful(raw: dict[str, Any], folder: Path) -> None:
    for key, faithful in (
        ("position_embedding_type", (None, "absolute")),
        ("is_decoder", (None, False)),
        ("add_cross_attention", (None, False)),
        ("quantization_config", (None,)),
        ("pruned_heads", (None, {})),
    ):
        if raw.get(key) not in faithful:
            raise MechirError(f"'{folder}' has {key}={raw[key]!r} in config.json, which mechir cannot reproduce.")


def _refuse_mismatch(expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored], folder: Path) -> None:
    given = {_todays(name): tensor.shape for name, tensor in stored.items()}
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


def _todays(name: str) -> str:
    """Today's name of a LayerNorm's parameter: old checkpoints say gamma and beta, and transformers renames them."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _device(device: str | torch.device | None) -> torch.device:
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
