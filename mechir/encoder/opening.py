"""Opens a model by whatever it is given as, in the backend that can reproduce it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from mechir.encoder.checkpoint import read_json, resolve
from mechir.encoder.default import NAME, embedded
from mechir.encoder.families import FAMILIES
from mechir.encoder.hooked import HookedEncoder
from mechir.encoder.hooked_model import HookedModel
from mechir.encoder.loading import in_memory
from mechir.encoder.stored import number_type, refuse_unmerged
from mechir.encoder.traced import language
from mechir.encoder.traced import loading as traced
from mechir.encoder.traced.layouts import LAYOUTS
from mechir.errors import MechirError

BACKENDS = ("own", "nnsight")
"""The forward of BERT that mechir computes itself, and Hugging Face's own, opened by nnsight."""


PROMPT = ("template", "instruction", "words")
"""Options of language models alone; decoders that classify have a template too."""


def load(name_or_path: Any = None, tokenizer: Any = None, *, backend: str | None = None, **options: Any) -> HookedModel:
    """Opens a reranker: a directory or a name on the hub, a model in memory, or the embedded model by default.

    Classifiers of the BERT-like families are computed by mechir itself (`HookedEncoder`, which starts at any layer and
    shows its weights). ModernBERT, DeBERTa-v2, Qwen2 and Qwen3, Llama, Mistral, Gemma2, T5 and mT5 (monoT5), and module
    chains of sentence-transformers run as Hugging Face has them, opened by nnsight (`TracedReranker`). `print(model)`
    says which.
    The embedded model is a trained BERT cross-encoder of 6 layers x 12 heads; `mechir/data/MODEL_CARD.md` says what it
    was trained on and how well it ranks.

    Args:
        name_or_path: a directory, a name on the hub, Hugging Face's model itself (`*ForSequenceClassification`,
            `*ForCausalLM`, `T5ForConditionalGeneration`), or a `CrossEncoder`; the parameters of a model in memory are
            shared, not copied: it is put into eval mode and needs no gradients any more.
        tokenizer: of a model in memory; a `CrossEncoder` has its own.
        backend: "own" or "nnsight"; by default "own" where it can.
        options: those of `HookedEncoder.from_pretrained`; a model in memory takes `name` as well, and a language model
            `template`, `instruction` and `words` (`mechir.encoder.traced.language`).

    Raises:
        MechirError: as `from_pretrained`; when the embedded model's backbone is not installed or is another one; for a
            model in memory without its tokenizer, or of another structure.
    """
    if backend not in (None, *BACKENDS):
        raise MechirError(f"Unknown backend {backend!r}: write one of {', '.join(BACKENDS)}, or leave it out.")
    if isinstance(name_or_path, torch.nn.Module):
        return _in_memory(name_or_path, tokenizer, backend, **options)
    if tokenizer is not None:
        raise MechirError("A checkpoint brings its own tokenizer: leave tokenizer= out, or give a model in memory.")
    if name_or_path is not None and not isinstance(name_or_path, str | Path):
        raise MechirError(
            f"{name_or_path!r:.60} is no model: write a directory, a name on the hub, or Hugging Face's model and "
            "its tokenizer, mi.load(model, tokenizer)."
        )
    if name_or_path is None or str(name_or_path) == NAME:
        return _embedded(backend, **_without_prompt(options, NAME))
    try:
        return _from_files(name_or_path, backend, **options)
    except MechirError as error:
        if difflib.get_close_matches(str(name_or_path), [NAME], cutoff=0.7):
            raise MechirError(f"{str(error).rstrip('.')}; the model that ships is '{NAME}'.") from error
        raise


def _embedded(backend: str | None, **options: Any) -> HookedModel:
    whole = embedded(**options)
    if backend != "nnsight":
        return whole
    limits = {"relevant_label": options.get("relevant_label"), "max_length": options.get("max_length")}
    return traced.classifier(whole.hf, whole.tokenizer, name=NAME, device=whole.device, **limits)


def _from_files(name_or_path: str | Path, backend: str | None, **options: Any) -> HookedModel:
    folder, name = resolve(name_or_path), str(name_or_path)
    if backend == "nnsight" or (backend is None and _by_nnsight(folder)):
        if language.is_language_model(folder):
            return language.load(folder, name, **options)
        return traced.load(folder, name, **_without_prompt(options, name, PROMPT[1:]))
    return HookedEncoder.from_pretrained(name_or_path, **_without_prompt(options, name))


def _without_prompt(options: dict[str, Any], name: str, names: Sequence[str] = PROMPT) -> dict[str, Any]:
    """The options of a classifier; raises for those of a prompt."""
    if given := next((option for option in names if options.get(option) is not None), None):
        raise MechirError(f"{given}= is of a language model's prompt, and '{name}' is a classifier: leave it out.")
    return {option: value for option, value in options.items() if option not in names}


def _in_memory(model: Any, tokenizer: Any, backend: str | None, **options: Any) -> HookedModel:
    refuse_unmerged(model)
    if traced.is_cross_encoder(model):
        if len(model) > 1:
            return (language.of_chain if language.is_scored(model) else traced.of_chain)(model, **options)
        model, tokenizer = traced.only_module(model)
    kind, model_type = type(model).__name__, getattr(getattr(model, "config", None), "model_type", "")
    if language.is_named_so(kind):
        return language.language_model(_placed(model, options), tokenizer, **options)
    own = any(family.architecture == kind for family in FAMILIES.values())
    if backend == "nnsight" or (backend is None and not own and model_type in LAYOUTS):
        return traced.classifier(_placed(model, options), tokenizer, **_without_prompt(options, kind, PROMPT[1:]))
    return in_memory(model, tokenizer, **_without_prompt(options, kind))


def _placed(model: Any, options: dict[str, Any]) -> Any:
    """The model in the number type that the options ask for; it stays on its device unless they name one."""
    dtype = options.pop("dtype", None)
    options.setdefault("device", next(model.parameters()).device)
    return model if dtype is None else model.to(number_type(dtype))


def _by_nnsight(folder: Path) -> bool:
    """Whether a checkpoint is of a structure that our own forward does not have, and nnsight opens."""
    if traced.is_chain(folder) or language.is_language_model(folder):
        return True
    if not (folder / "config.json").is_file():
        return False
    raw = read_json(folder / "config.json")
    listed = raw.get("architectures") or []
    own = any(family.architecture in listed for family in FAMILIES.values())
    kinds = [getattr(transformers, str(name), None) for name in listed if str(name).endswith(traced.CLASSIFIER)]
    types = [kind.config_class.model_type for kind in kinds if kind is not None]
    return bool(types) and not own and not raw.get("auto_map") and types[0] in LAYOUTS
