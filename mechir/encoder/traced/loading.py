"""Loads a `TracedReranker`: a classifier of any listed structure, or a module chain of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from mechir.encoder.checkpoint import read_json, stored_tensors, weight_files
from mechir.encoder.cross_encoder import settings
from mechir.encoder.fingerprint import stored_digests
from mechir.encoder.head import label_names
from mechir.encoder.reading import Reading
from mechir.encoder.stored import Files, device_of, number_type, quietly, revision_of
from mechir.encoder.traced.decoder import DECODERS
from mechir.encoder.traced.layouts import LAYOUTS
from mechir.encoder.traced.model import TracedReranker
from mechir.encoder.traced.prompt import Prompt
from mechir.encoder.traced.readout import Chain, Classifier, Reads
from mechir.errors import MechirError
from mechir.templates import Template, as_template

CLASSIFIER = "ForSequenceClassification"
PARTS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout")
"""The modules of a chain that can be opened: what they compute between the transformer and the score is the head."""
POOLED: dict[str, Reads] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


def load(folder: Path, name: str, *, dtype: str | torch.dtype = "float32", **options: Any) -> TracedReranker:
    """Loads the checkpoint in a directory; the options are those of `HookedEncoder.from_pretrained`."""
    if is_chain(folder):
        return _load_chain(folder, name, dtype=dtype, **options)
    files = Files.of(settings(folder))
    hf, tokenizer, reading = files.opened_as_named(number_type(dtype))
    tensors = stored_digests(files.stored)
    revision = revision_of(folder)
    return classifier(hf, tokenizer, name=name, reading=reading, revision=revision, tensors=tensors, **options)


def classifier(
    hf: Any,
    tokenizer: Any,
    *,
    device: str | torch.device | None = None,
    template: Template | str | None = None,
    **options: Any,
) -> TracedReranker:
    """Wraps Hugging Face's classifier; raises for a model type without a row in `LAYOUTS`, or without a tokenizer.

    `template` is the prompt of a decoder that classifies, such as RankLLaMA's "query: {query} document: {document}".
    """
    kind = type(hf).__name__
    opened = [name for name in LAYOUTS if name not in DECODERS]
    if hf.config.model_type not in opened or not kind.endswith(CLASSIFIER):
        raise MechirError(f"This is a {kind}, which mechir cannot open: it opens classifiers of {', '.join(opened)}.")
    if tokenizer is None:
        raise MechirError(f"A {kind} in memory needs its tokenizer: write mi.load(model, tokenizer).")
    _refuse_padding(hf.config, tokenizer, kind)
    labels = label_names(hf.config, hf.config.num_labels)
    readout = Classifier(labels, _rows(hf), _typed(hf, tokenizer))
    if template is not None:
        if readout.reads != "last":
            raise MechirError(
                f"template= is of a language model's prompt, and this {kind} reads query and document as two texts: "
                "leave it out."
            )
        options |= {"prompt": Prompt(as_template(template)), "prompt_options": (("template", template),)}
    return TracedReranker(hf.to(device_of(device)), hf, tokenizer, readout, **options)


def _refuse_padding(config: Any, tokenizer: Any, kind: str) -> None:
    """Raises where texts cannot be padded, or the model would take the padding for the end of a text."""
    if tokenizer.pad_token_id is None:
        raise MechirError(f"The tokenizer of this {kind} has no padding token: name one as tokenizer.pad_token.")
    if LAYOUTS[config.model_type].causal and config.pad_token_id != tokenizer.pad_token_id:
        raise MechirError(
            f"This {kind} reads its score before padding of id {config.pad_token_id}, and the tokenizer pads with "
            f"{tokenizer.pad_token_id}: set config.pad_token_id to that."
        )


def is_cross_encoder(model: object) -> bool:
    """Whether a model in memory is a `CrossEncoder` of sentence-transformers, told without an import of it."""
    return any(kind.__module__.startswith("sentence_transformers.cross_encoder") for kind in type(model).__mro__)


def only_module(encoder: Any) -> tuple[Any, Any]:
    """The transformer of a `CrossEncoder` without other modules, and its tokenizer; raises for one with a prompt."""
    _refuse_prompt(encoder)
    refuse_processing(encoder[0].processing_kwargs)
    tokenizer = encoder.tokenizer
    if encoder.max_seq_length is not None:
        tokenizer.model_max_length = encoder.max_seq_length
    return encoder[0].auto_model, tokenizer


def _refuse_prompt(encoder: Any) -> None:
    """Raises for a `CrossEncoder` that writes a prompt before every query."""
    if prompt := (encoder.prompts or {}).get(encoder.default_prompt_name or ""):
        raise MechirError(
            f"This CrossEncoder writes the prompt {prompt!r} before every query, and mechir does not: write it into "
            "the queries, and set default_prompt_name to None."
        )


def refuse_processing(arguments: Mapping[str, Any] | None, template: Any = None) -> None:
    """Raises for arguments that change how sentence-transformers reads texts; a template replaces those of chats."""
    given = {name: value for name, value in (arguments or {}).items() if value}
    if template is not None:
        given.pop("chat_template", None)
    if given:
        way = "write the prompt as template=" if "chat_template" in given else "take them out if the scores allow it"
        raise MechirError(
            f"sentence-transformers reads texts with {given} (processing_kwargs), and mechir does not: {way}."
        )


def is_chain(folder: Path) -> bool:
    """Whether a directory holds a cross-encoder of sentence-transformers that is made of several modules."""
    modules = folder / "modules.json"
    return modules.is_file() and len(read_json(modules, kind=list)) > 1


def _load_chain(
    folder: Path, name: str, *, dtype: str | torch.dtype, device: str | torch.device | None = None, **options: Any
) -> TracedReranker:
    from sentence_transformers import CrossEncoder

    _refuse_parts(folder)
    arguments = {"dtype": number_type(dtype), "use_safetensors": True}
    with quietly(folder):
        chain = CrossEncoder(
            str(folder), device="cpu", local_files_only=True, trust_remote_code=False, model_kwargs=arguments
        )
    _refuse_missing(chain[0].auto_model, inside(folder, read_json(folder / "modules.json", kind=list)[0]))
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors"))
    reading = Reading(weights=tuple(files), settings=("modules.json",))
    return of_chain(chain, name=name, device=device, dtype=dtype, reading=reading, **options)


def of_chain(
    chain: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> TracedReranker:
    """Wraps a cross-encoder of sentence-transformers as it is; raises for a module that cannot be opened."""
    kinds = [type(module).__name__ for module in chain]
    if unknown := [kind for kind in kinds if kind not in PARTS]:
        raise _no_part(unknown[0], kinds)
    _refuse_unpooled(kinds)
    _refuse_prompt(chain)
    refuse_processing(chain[0].processing_kwargs)
    hf = chain[0].auto_model
    if hf.config.model_type not in LAYOUTS:
        raise MechirError(
            f"The chain is built on a {type(hf).__name__}, which mechir cannot open: it opens {', '.join(LAYOUTS)}."
        )
    pooling = next(module for module in chain if type(module).__name__ == "Pooling")
    reads = POOLED.get(str(pooling.pooling_mode))
    if reads is None:
        raise MechirError(
            f"The chain pools by '{pooling.pooling_mode}', which mechir cannot open: it opens {', '.join(POOLED)}."
        )
    chain.to(device_of(device or hf.device))
    if dtype is not None:
        chain.to(number_type(dtype))
    labels = tuple(f"LABEL_{number}" for number in range(chain.num_labels))
    tokenizer = chain.tokenizer
    if chain.max_seq_length is not None:
        tokenizer.model_max_length = chain.max_seq_length
    return TracedReranker(chain, hf, tokenizer, Chain(labels, reads, _typed(hf, tokenizer)), **options)


def _refuse_parts(folder: Path) -> None:
    """Raises for modules whose code is not sentence-transformers' own, or whose weights are pickles."""
    modules = read_json(folder / "modules.json", kind=list)
    kinds = [str(module.get("type", "")) for module in modules]
    _refuse_unpooled([kind.rpartition(".")[2] for kind in kinds])
    for kind in kinds:
        plain = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers.") or plain not in PARTS:
            raise _no_part(plain or kind, [other.rpartition(".")[2] for other in kinds])
    for module in modules:
        inner = inside(folder, module)
        settings_file = inner / "config.json"
        activation = read_json(settings_file).get("activation_function") if settings_file.is_file() else None
        if activation is not None and not str(activation).startswith("torch.nn."):
            raise MechirError(
                f"'{settings_file}' names the activation '{activation}', which is code of its own and is not run: save "
                "the model with one of torch.nn."
            )
    for pickle in (*folder.rglob("pytorch_model.bin"), *folder.rglob("*.pt")):
        if not (pickle.parent / "model.safetensors").is_file():
            raise MechirError(
                f"'{pickle}' is a pickle, and mechir reads safetensors alone: load the model once with "
                "sentence_transformers.CrossEncoder and save it with save_pretrained."
            )


def _refuse_unpooled(kinds: Sequence[str]) -> None:
    """Raises for a chain that does not begin with a transformer and a pooling of its rows."""
    if list(kinds[:2]) != ["Transformer", "Pooling"]:
        raise MechirError(
            f"The model is made of {', '.join(kinds)}, and mechir opens chains that begin with Transformer, Pooling: "
            "save the model so, or report it."
        )


def inside(folder: Path, module: Mapping[str, Any]) -> Path:
    """The directory of a module that modules.json names; raises for a path that leads outside."""
    path = PurePosixPath(str(module.get("path", "")))
    if path.is_absolute() or ".." in path.parts:
        raise MechirError(f"modules.json of '{folder}' names '{path}', which lies outside of it.")
    return folder / path


def _refuse_missing(hf: Any, inner: Path) -> None:
    """Raises for parameters of a chain's transformer that its files lack, which would be random."""
    stored = stored_tensors(weight_files(inner, read_json(inner / "config.json")))
    given = {name.removeprefix(f"{hf.base_model_prefix}.") for name in stored}
    if missing := [name for name, _ in hf.named_parameters() if name not in given and name not in stored]:
        raise MechirError(
            f"'{inner}' lacks weights ({missing[0]}, {len(missing)} in all): random weights in their place would score "
            "noise."
        )


def _no_part(kind: str, kinds: Sequence[str]) -> MechirError:
    return MechirError(
        f"The model is made of {', '.join(kinds)}, and mechir cannot see through {kind}: it opens chains of "
        f"{', '.join(PARTS)}; save the model without it, or report it."
    )


def _rows(hf: Any) -> Reads:
    """The rows of the last layer that a classifier's head reads."""
    if LAYOUTS[hf.config.model_type].causal:
        return "last"
    pooling: Reads = "mean" if getattr(hf.config, "classifier_pooling", "cls") == "mean" else "cls"
    return pooling


def _typed(hf: nn.Module, tokenizer: Any) -> bool:
    """Whether a model is given token types: its tokenizer writes them, and it embeds them."""
    config: Any = hf.config
    return "token_type_ids" in tokenizer.model_input_names and bool(getattr(config, "type_vocab_size", 0))
