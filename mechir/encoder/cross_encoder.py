"""The settings that sentence-transformers saves beside a cross-encoder, followed as `CrossEncoder` does or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mechir.encoder.checkpoint import read_json
from mechir.errors import MechirError

SAVED = "config_sentence_transformers.json"
"""The file with the kind of the saved model, and its prompts."""
OLD_FOLDER = "0_Transformer"
"""The folder in which older versions put the model."""
MODULE_SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Settings of the model's module: the first that is there counts, and only beside a modules.json."""
HARMLESS: dict[str, tuple[Any, ...] | None] = {
    "transformer_task": ("sequence-classification",),
    "unpad_inputs": (None, False, True),
    "module_output_name": ("scores", "logits"),
    "modality_config": None,
    "query_length": None,
    "document_length": None,
    "query_expansion": (None,),
    "processing_kwargs": (None, {}),
    "tokenizer_name_or_path": (None,),
}
"""Settings that change no score of a pair, with the values that change none (None: any)."""
HARMLESS_OF_LANGUAGE = HARMLESS | {
    "transformer_task": ("text-generation",),
    "module_output_name": ("causal_logits",),
    "processing_kwargs": None,
}
"""The same of a language model, whose `processing_kwargs` count where its chat template is filled."""
_LOADING = ("dtype", "torch_dtype", "attn_implementation", "low_cpu_mem_usage", "trust_remote_code", "use_cache")
ARGUMENTS = {
    **dict.fromkeys(("tokenizer_args", "processor_kwargs"), ("model_max_length", "trust_remote_code", "use_fast")),
    **dict.fromkeys(("model_args", "model_kwargs", "config_args", "config_kwargs"), _LOADING),
}
"""Settings that hold arguments, with those arguments that are followed or change no score."""


class Settings(NamedTuple):
    """The part of a cross-encoder's settings that its scores follow.

    `folder` holds the model; `max_length` counts word pieces; `lower_case` lowers texts before they are cut into
    pieces; `files` are the files that these settings are from; `processing` is how a language model's chat template is
    filled, apart from its messages.
    """

    folder: Path
    max_length: int | None = None
    lower_case: bool = False
    files: tuple[str, ...] = ()
    processing: Mapping[str, Any] | None = None


def settings(folder: Path) -> Settings:
    """The settings of a checkpoint's directory; where sentence-transformers saved none, those of a plain model.

    Raises for a setting that changes scores and is not followed: further modules, a default prompt, arguments of the
    model or tokenizer.
    """
    complete = (folder / "modules.json").is_file() and (folder / SAVED).is_file()
    saved = read_json(folder / SAVED) if complete else {}
    if saved.get("model_type") != "CrossEncoder":  # `CrossEncoder` reads no settings of any other model
        plain = (folder / "config.json").is_file() or not (folder / OLD_FOLDER / "config.json").is_file()
        return Settings(_with_config(folder if plain else folder / OLD_FOLDER))
    inner = _with_config(_model_module(folder))
    _refuse_prompt(saved, folder / SAVED)
    return module_settings(inner, HARMLESS)


def module_settings(inner: Path, harmless: Mapping[str, tuple[Any, ...] | None]) -> Settings:
    """The settings of a model's module, which lies in `inner`; raises for any that is not followed and not harmless."""
    file = next((inner / name for name in MODULE_SETTINGS if (inner / name).is_file()), None)
    files = ("modules.json",) if file is None else ("modules.json", file.name)
    module = {} if file is None else read_json(file)
    length, lower_case = module.pop("max_seq_length", None), module.pop("do_lower_case", False)
    for name in ARGUMENTS:
        length = _arguments(name, module.pop(name, None), file).get("model_max_length", length)
    for name, value in module.items():
        values = harmless.get(name, ())
        if values is not None and value not in values:
            raise _not_followed(f"{name}={value!r}", file)
    return Settings(inner, _length(length, file), bool(lower_case), files, module.get("processing_kwargs"))


def _with_config(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise MechirError(f"'{folder}' is no checkpoint: it holds no config.json.")
    return folder


def _model_module(folder: Path) -> Path:
    """The directory of the model that modules.json names; raises for further modules, or a path that leads outside."""
    modules = read_json(folder / "modules.json", kind=list)
    if not all(isinstance(module, dict) for module in modules):
        raise MechirError(f"'{folder / 'modules.json'}' lists no modules: download it again.")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds != ["Transformer"]:
        raise MechirError(
            f"'{folder}' is made of {', '.join(kinds) or 'no modules'} (modules.json), and mechir reads a Transformer "
            "alone: save the model without the rest."
        )
    path = PurePosixPath(str(modules[0].get("path", "")))
    if path.is_absolute() or ".." in path.parts:
        raise MechirError(f"modules.json of '{folder}' names '{path}', which lies outside of it.")
    return folder / path


def _refuse_prompt(saved: dict[str, Any], file: Path) -> None:
    """Raises for a prompt that `CrossEncoder` writes before every query."""
    name, prompts = saved.get("default_prompt_name"), saved.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise MechirError(f"'{file}' has prompts={prompts!r}: write an object of names and texts.")
    if name and (prompt := prompts.get(name)):
        raise MechirError(
            f"'{file}' has the default prompt {prompt!r}, which CrossEncoder writes before every query and mechir does "
            "not: write it into the queries, and set default_prompt_name to null."
        )


def _arguments(name: str, given: Any, file: Path | None) -> dict[str, Any]:
    """The arguments saved under `name`; raises for any that is not among `ARGUMENTS`."""
    if given is not None and not isinstance(given, dict):
        raise MechirError(f"'{file}' has {name}={given!r}: write an object of names and values.")
    for key, value in (given or {}).items():
        if key not in ARGUMENTS[name]:
            raise _not_followed(f"{key}={value!r} in {name}", file)
    return given or {}


def _not_followed(setting: str, file: Path | None) -> MechirError:
    return MechirError(f"'{file}' has {setting}, which mechir does not follow: take it out if the scores allow it.")


def _length(length: Any, file: Path | None) -> int | None:
    if length is None:
        return None
    if isinstance(length, bool) or not isinstance(length, int | float) or length != int(length) or length < 1:
        raise MechirError(f"'{file}' has max_seq_length={length!r}: write a number of word pieces, or null.")
    return int(length)
