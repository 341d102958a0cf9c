"""Loads a `HookedEncoder` from a name or directory: safetensors only, refused whenever it could not be exact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mechir.encoder.checkpoint import Stored, resolve
from mechir.encoder.cross_encoder import settings
from mechir.encoder.families import FAMILIES, Family
from mechir.encoder.fingerprint import stored_digests
from mechir.encoder.hooked import HookedEncoder
from mechir.encoder.stored import (
    Files,
    configuration,
    device_of,
    expected,
    number_type,
    refuse_unfaithful,
    revision_of,
    todays,
)
from mechir.encoder.traced.decoder import DECODERS
from mechir.encoder.traced.layouts import LAYOUTS
from mechir.errors import MechirError


def load(name_or_path: str | Path, *, dtype: str | torch.dtype, **options: Any) -> HookedEncoder:
    """Loads a checkpoint; see `HookedEncoder.from_pretrained` for the options."""
    number, folder = number_type(dtype), resolve(name_or_path)
    files = Files.of(settings(folder))
    family, config = recognise(files.raw, files.stored, files.folder)
    hf, tokenizer, reading = files.opened(family.architecture, config, number)
    names = {name for name, _ in hf.named_parameters()}
    used = {name: tensor for name, tensor in files.stored.items() if todays(name) in names}
    return assemble(
        hf,
        tokenizer,
        family,
        name=str(name_or_path),
        tensors=stored_digests(used),
        reading=reading,
        revision=revision_of(folder),
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
    return HookedEncoder(hf.to(number_type(dtype)).to(device_of(device)), tokenizer, family, **options)


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
    refuse_unfaithful(hf.config.to_dict(), Path(name))
    options = {"dtype": hf.dtype, "device": hf.device} | options
    return assemble(hf, tokenizer, family, name=name, **options)


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
                return family, configuration(family.architecture, raw, folder)
        known = ", ".join(family.architecture for family in FAMILIES.values())
        others = ", ".join(name for name in LAYOUTS if name not in (*FAMILIES, *DECODERS))
        raise MechirError(
            f"'{folder}' is a {architectures[0]}, which mechir cannot reproduce: it reads {known}, classifiers of "
            f"{others}, and language models with a prompt."
        )
    best: tuple[int, str] = (-1, "")
    for name, family in FAMILIES.items():
        if raw.get("model_type") not in (None, name):
            continue
        head = stored.get(f"{family.classifier}.weight")
        config = configuration(family.architecture, raw | {"num_labels": head.shape[0] if head else 1}, folder)
        shapes = expected(family.architecture, config, folder)
        wrong = [name for name, shape in shapes.items() if name not in stored or stored[name].shape != shape]
        if not wrong:
            return family, config
        best = max(best, (len(shapes) - len(wrong), f"as {family.architecture} it lacks {wrong[0]}"))
    raise MechirError(
        f"The config of '{folder}' names no architecture, and its weights match no family completely ({best[1]}): "
        "add architectures to config.json if it is a sequence classifier."
    )
