"""From a name or directory to a `HookedEncoder`: safetensors only, refused whenever it could not be exact."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from mechir.encoder.families import FAMILIES, Family
from mechir.encoder.hooked import HookedEncoder
from mechir.errors import MechirError

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
SMALL_FILES = ("*.json", "vocab.txt", "merges.txt", "*.model")
"""What of a checkpoint is fetched and copied beside the weights."""
Shapes = dict[str, tuple[int, ...]]


def load(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    relevant_label: int | None = None,
) -> HookedEncoder:
    """See `HookedEncoder.from_pretrained`."""
    number = _number(dtype)
    folder = resolve(name_or_path)
    files = weight_files(folder)
    shapes = _shapes(files)
    config_file = folder / "config.json"
    raw = json.loads(config_file.read_text(encoding="utf-8"))
    family, config = recognise(raw, shapes, folder)
    _refuse_unfaithful(raw, folder)
    _refuse_mismatch(_expected(family, config), shapes, folder)
    with _quiet():
        hf = _hf_class(family).from_pretrained(folder, config=config, dtype=number, use_safetensors=True)
    _refuse_non_finite_weights(hf, folder)
    fingerprint = _fingerprint([*files, config_file, *(folder / name for name in TOKENIZER_FILES)])
    options: dict[str, Any] = {"dtype": dtype, "device": device, "relevant_label": relevant_label}
    options["revision"] = folder.name if folder.parent.name == "snapshots" else ""  # the hub's cache
    return assemble(hf, _tokenizer(folder, raw, hf), family, name=str(name_or_path), fingerprint=fingerprint, **options)


def assemble(
    hf: Any,
    tokenizer: Any,
    family: Family,
    *,
    name: str,
    fingerprint: str,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    relevant_label: int | None = None,
    revision: str = "",
) -> HookedEncoder:
    """A `HookedEncoder` of a complete model, in the dtype and on the device that were asked for."""
    hf = hf.to(_number(dtype))
    told: dict[str, Any] = {"name": name, "fingerprint": fingerprint, "revision": revision}
    model = HookedEncoder(hf, tokenizer, family, **told, relevant_label=relevant_label)
    return model.to(_device(device))


def _number(dtype: str | torch.dtype) -> torch.dtype:
    number = DTYPES.get(str(dtype).removeprefix("torch."))
    if number is None:
        raise MechirError(f"Cannot compute in '{dtype}': write one of {', '.join(DTYPES)}.")
    return number


def resolve(name_or_path: str | Path) -> Path:
    """The directory of a checkpoint: the one given, or the hub's snapshot of that name.

    Raises:
        MechirError: when there is no such directory and the hub does not give it.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MechirError(f"'{folder}' is no checkpoint: it holds no config.json.")
        return folder
    name = str(name_or_path)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise MechirError(f"There is no directory '{name}': write the path of a checkpoint or a name on the hub.")
    folder = from_hub(name, ["*.safetensors", "*.safetensors.index.json", *SMALL_FILES])
    if not list(folder.glob("*.safetensors")):
        raise MechirError(
            f"'{name}' has no safetensors on the hub, and mechir reads nothing else: "
            f"run `mechir convert {name} --out DIR` once, then load DIR."
        )
    return folder


def from_hub(name: str, patterns: list[str], folder: Path | None = None) -> Path:
    """The hub's snapshot of `name`, limited to files that match `patterns`; asked for once, without retries."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with _quiet():
            return Path(snapshot_download(name, allow_patterns=patterns, local_dir=folder))
    except HFValidationError as error:
        raise MechirError(f"'{name}' is neither a directory nor a name on the hub (namespace/name).") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise MechirError(
            f"Cannot get '{name}' from the hub ({type(error).__name__}): run `mechir fetch {name}` where there is a "
            f"network and make its cache visible here as HF_HOME (now {cache}), or give a directory."
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        MechirError: when there are none; if it is pickled, with the command that converts it.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / Path(name).name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise MechirError(f"'{folder}' lacks {', '.join(missing)}, which its index names: download it whole.")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise MechirError(
            f"'{folder}' holds only a pickle ({pickles[0]}), and mechir reads safetensors: "
            f"run `mechir convert {folder} --out DIR` once, then load DIR."
        )
    raise MechirError(f"'{folder}' holds no model.safetensors.")


def _shapes(files: list[Path]) -> Shapes:
    shapes: Shapes = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except Exception as error:
            raise MechirError(f"Cannot read '{file}' as safetensors ({error}): download it again.") from error
    return shapes


def recognise(raw: dict[str, Any], shapes: Shapes, folder: Path) -> tuple[Family, Any]:
    """The family and Hugging Face configuration of a checkpoint.

    By `architectures` where the config names one; else by the one family whose parameters match the weights
    completely, in name and shape, head included (MonoBERT-large ships such a config).

    Raises:
        MechirError: for remote code, an unsupported architecture, or weights that no family matches completely.
    """
    if raw.get("auto_map"):
        raise MechirError(f"'{folder}' needs code from its own repository (auto_map in config.json), which is not run.")
    architectures = raw.get("architectures")
    if architectures:
        for family in FAMILIES.values():
            if family.architecture == architectures[0]:
                return family, _hf_class(family).config_class(**_without_type(raw))
        known = ", ".join(family.architecture for family in FAMILIES.values())
        raise MechirError(f"'{folder}' is a {architectures[0]}, which mechir cannot reproduce: it reads {known}.")
    best: tuple[int, str] = (-1, "")
    for name, family in FAMILIES.items():
        if raw.get("model_type") not in (None, name):
            continue
        labels = shapes.get(f"{family.classifier}.weight", (1,))[0]
        config = _hf_class(family).config_class(**_without_type(raw) | {"num_labels": labels})
        expected = _expected(family, config)
        wrong = [name for name in expected if shapes.get(name) != expected[name]]
        if not wrong:
            return family, config
        best = max(best, (len(expected) - len(wrong), f"as {family.architecture} it lacks {wrong[0]}"))
    raise MechirError(
        f"The config of '{folder}' names no architecture, and its weights match no family completely ({best[1]}): "
        "add architectures to config.json if it is a sequence classifier."
    )


def _without_type(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in ("model_type", "dtype", "torch_dtype")}


def _hf_class(family: Family) -> Any:
    return getattr(transformers, family.architecture)


def _expected(family: Family, config: Any) -> Shapes:
    with torch.device("meta"), _quiet():
        model = _hf_class(family)(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


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


def _refuse_mismatch(expected: Shapes, shapes: Shapes, folder: Path) -> None:
    # Old checkpoints call the parameters of a LayerNorm gamma and beta; transformers still renames them.
    given = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): shape
        for name, shape in shapes.items()
    }
    missing = [name for name in expected if name not in given]
    if missing:
        head = [name for name in missing if name.startswith(("classifier", "pre_classifier")) or ".pooler." in name]
        what = "a sequence classifier's head weights" if head else "weights"
        raise MechirError(
            f"'{folder}' lacks {what} ({(head or missing)[0]}, {len(missing)} in all): it is no complete "
            "sequence classifier, and random weights in their place would score noise."
        )
    for name, shape in expected.items():
        if given[name] != shape:
            raise MechirError(f"'{folder}' has {name} of shape {given[name]}, but its config.json says {shape}.")


def _refuse_non_finite_weights(hf: torch.nn.Module, folder: Path) -> None:
    for name, parameter in hf.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise MechirError(f"'{folder}' holds NaN or inf in {name}: its scores would be meaningless.")


def _tokenizer(folder: Path, raw: dict[str, Any], hf: Any) -> Any:
    with _quiet():
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        elif (folder / "vocab.txt").is_file():
            tokenizer = _word_piece(folder)
        else:
            raise MechirError(f"'{folder}' holds no tokenizer: add tokenizer.json, or vocab.txt of a BERT model.")
    if not tokenizer.is_fast:
        raise MechirError(f"The tokenizer of '{folder}' is not a fast one: add its tokenizer.json.")
    if len(tokenizer) > hf.config.vocab_size:
        raise MechirError(
            f"The tokenizer of '{folder}' has {len(tokenizer)} word pieces, but the model embeds "
            f"{hf.config.vocab_size}: they do not belong together."
        )
    return tokenizer


def _word_piece(folder: Path) -> Any:
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    if any(word != word.lower() for word in words if not word.startswith("[")):
        raise MechirError(
            f"'{folder}' has only a vocab.txt, and it is cased: add tokenizer_config.json that says do_lower_case."
        )
    return transformers.BertTokenizer.from_pretrained(folder)


def _fingerprint(files: list[Path]) -> str:
    """SHA-256 over what decides the scores: weights, config and tokenizer, as they are on disk."""
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.name.encode() + bytes.fromhex(sha256(file)))
    return digest.hexdigest()


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise MechirError(f"Unknown device '{device}': write cpu, cuda or cuda:1.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise MechirError(f"There is no GPU that torch sees for device '{device}': write --device cpu.")
    return chosen


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and load reports of the libraries: what matters of them is checked here and raised."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
        if not bars:
            enable_progress_bars()
