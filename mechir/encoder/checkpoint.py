"""The files of a checkpoint, chosen as Hugging Face chooses them and checked that they can be read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from mechir.errors import MechirError, beside

SMALL_FILES = ("*.json", "*.jinja", "vocab.txt", "merges.txt", "bpe.codes", "*.model")
"""Files that are fetched and copied beside the weights."""
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "bpe.codes", "*.model")
"""Files of which a tokenizer needs at least one."""
SETTINGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files beside the weights that decide the scores."""
WORDS = ("vocab.*", "merges.txt", "bpe.codes")
"""Files that only count where there is no tokenizer.json."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TRAINING = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "random_states")
"""The first parts of the names of pickles that a trainer leaves beside the weights."""
MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte order marks."""
HARMLESS = re.compile(
    r"(^|\.)(position_ids|token_type_ids)$"
    r"|^(cls\.(predictions|seq_relationship)|lm_head|vocab_(transform|layer_norm|projector)|generator_(predictions|lm_head)"
    r"|discriminator_predictions)\."
    r"|^(roberta|camembert|xlm_roberta)\.pooler\."
)
"""Buffers of positions, heads of language models, and the pooler that RoBERTa's classifiers pass over."""
ADAPTER = re.compile(r"lora_|\.base_layer\.|^base_model\.|adapter|ia3_|prefix_encoder|prompt_encoder|modules_to_save")
"""Names of the tensors of adapters."""


class Stored(NamedTuple):
    """A tensor in a file: its shape, and its number type as safetensors writes it, such as F16."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def resolve(name_or_path: str | Path) -> Path:
    """The directory of a checkpoint: the one given, or the hub's snapshot of that name; raises where neither is."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    name = str(name_or_path)
    if folder.is_file():
        raise MechirError(f"'{name}' is a file: give the directory of the checkpoint, '{folder.parent}'.")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise MechirError(
            f"There is no directory '{name}': write the path of a checkpoint or a name on the hub{beside(folder)}."
        )
    folder = from_hub(name, ["*.safetensors", "*.safetensors.index.json", *SMALL_FILES])
    if not list(folder.rglob("*.safetensors")):
        raise MechirError(
            f"'{name}' has no safetensors on the hub, and mechir reads nothing else: "
            f"run `mechir convert {name} --out DIR` once, then load DIR."
        )
    return folder


def from_hub(name: str, patterns: list[str]) -> Path:
    """Gets the hub's snapshot of `name`, limited to files that match `patterns`; tried once, without retries."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with quiet():
            return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise MechirError(f"'{name}' is neither a directory nor a name on the hub (namespace/name).") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise MechirError(
            f"Cannot get '{name}' from the hub ({type(error).__name__}): run `mechir fetch {name}` where there is a "
            f"network and make its cache visible here as HF_HOME (now {cache}), or give a directory."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Switches progress bars and load reports of the libraries off; what matters of them is checked and raised here."""
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


def read_json(file: Path, kind: type[Any] = dict) -> Any:
    """The object that a JSON file holds, or the list where `kind` is list; raises for anything else."""
    refuse_unreadable(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise MechirError(f"'{file}' is no whole JSON ({error}): download it again.") from error
    if not isinstance(content, kind):
        wanted = "list" if kind is list else "object"
        raise MechirError(f"'{file}' holds no JSON {wanted} but a {type(content).__name__}: download it again.")
    return content


def refuse_unreadable(file: Path) -> None:
    """Raises for a file that is empty, a pointer of Git LFS, a web page, or begins with a byte order mark."""
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise MechirError(f"Cannot read '{file}' ({error.strerror}).") from error
    if not start:
        raise MechirError(f"'{file}' is empty: download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise MechirError(f"'{file}' is a pointer of Git LFS and not the file: run `git lfs pull`, or download it.")
    if start.lstrip()[:9].lower() in (b"<!doctype", b"<html>"):
        raise MechirError(f"'{file}' is a web page and not the file: download it again.")
    marks = [name for mark, name in MARKS.items() if start.startswith(mark)]
    if marks and file.suffix != ".safetensors":
        raise MechirError(f"'{file}' begins with a byte order mark ({marks[0]}): save it as UTF-8 without one.")


def refuse_unreadable_settings(folder: Path) -> None:
    """Raises for a damaged file among those beside the weights that decide the scores."""
    for pattern in SETTINGS if (folder / "tokenizer.json").is_file() else (*SETTINGS, *WORDS):
        for file in sorted(folder.glob(pattern)):
            read_json(file) if file.suffix == ".json" else refuse_unreadable(file)


def refuse_adapters(folder: Path) -> None:
    """Raises for a folder with an adapter, which would silently be left out."""
    for pattern in ("adapter_config.json", "adapter_model.*"):
        for file in folder.glob(pattern):
            raise MechirError(
                f"'{folder}' holds an adapter ({file.name}), which mechir does not apply: merge it into the model "
                "(merge_and_unload() of peft), save that, and load it; or take the adapter's files away."
            )


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The safetensors files of a checkpoint, as Hugging Face chooses them.

    In order: the file that `transformers_weights` in the config names, model.safetensors, the files of its index.
    Raises when there are none; for a pickle with the command that converts it.
    """
    named = config.get("transformers_weights")
    if named is not None:
        file = _inside(folder, str(named))
        return _of_index(folder, file) if file.name.endswith(".index.json") else [file]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _of_index(folder, folder / INDEX)
    if pickles := _pickles(folder):
        raise MechirError(
            f"'{folder}' holds only a pickle ({pickles[0].name}), and mechir reads safetensors: "
            f"run `mechir convert {folder} --out DIR` once, then load DIR."
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others:
        raise MechirError(
            f"'{folder}' holds no {WEIGHTS}, and {', '.join(others)} has a name that Hugging Face does not read: "
            f"rename it to {WEIGHTS} if it is the model."
        )
    raise MechirError(f"'{folder}' holds no {WEIGHTS}.")


def _of_index(folder: Path, index: Path) -> list[Path]:
    """The files that an index names."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise MechirError(f"'{index}' names no weights (weight_map): download it again.")
    names = sorted(set(map(str, named.values())))
    files = [_inside(folder, name, must_exist=False) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise MechirError(f"'{folder}' lacks {', '.join(missing)}, which its index names: download it whole.")
    return files


def _inside(folder: Path, name: str, *, must_exist: bool = True) -> Path:
    """The file of this name in a checkpoint, and nowhere else."""
    file = folder / name
    if not file.absolute().is_relative_to(folder.absolute()) or ".." in Path(name).parts:
        raise MechirError(f"'{folder}' names '{name}' as its weights, which lies outside of it.")
    if must_exist and not file.is_file():
        raise MechirError(f"'{folder}' lacks {name}, which its config.json names as its weights: download it whole.")
    return file


def stored_tensors(files: list[Path]) -> dict[str, Stored]:
    """Every tensor of these safetensors files by name, in the order of the names; raises for a name in two files."""
    tensors: dict[str, Stored] = {}
    for file in files:
        with opened(file) as reader:
            slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118
            headers = {name: Stored(tuple(x.get_shape()), str(x.get_dtype()), file) for name, x in slices.items()}
        for name in sorted(tensors.keys() & headers.keys()):
            raise MechirError(
                f"'{name}' is in {tensors[name].file.name} and in {file.name} of '{file.parent}': keep one."
            )
        tensors |= headers
    return dict(sorted(tensors.items()))


def refuse_surplus(folder: Path, unused: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """The names that Hugging Face has no place for, sorted; raises unless all are harmless."""
    names = sorted(unused)
    surplus = [name for name in names if not HARMLESS.search(name)]
    if not surplus:
        return names
    listed = f"{surplus[0]}, {len(surplus)} in all"
    if any(ADAPTER.search(name) for name in surplus):
        raise MechirError(
            f"The weights of '{folder}' hold an adapter ({listed}) that the model would leave out: merge it "
            "(merge_and_unload() of peft) and save the result."
        )
    layers = [int(match[1]) for name in surplus if (match := re.search(r"\.layer\.(\d+)\.", name))]
    key = "n_layers" if "n_layers" in config else "num_hidden_layers"
    if layers and max(layers) >= int(config.get(key, 12)):
        raise MechirError(
            f"The weights of '{folder}' hold {max(layers) + 1} layers ({listed}), but {key} in config.json is "
            f"{config.get(key, 12)}: write {max(layers) + 1} there, or take the tensors out of the weights."
        )
    raise MechirError(
        f"The weights of '{folder}' hold tensors that the model has no place for ({listed}) and would leave out: take "
        "them out of the weights if the scores do not need them."
    )


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A reader of a safetensors file; raises for any other file."""
    refuse_unreadable(file)
    try:
        with safe_open(file, "pt") as reader:
            yield reader
    except Exception as error:
        raise MechirError(f"Cannot read '{file}' as safetensors ({error}): download it again.") from error


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pickle_files(folder: Path) -> list[Path]:
    """The pickles of a checkpoint, as Hugging Face chooses them; else the only one that no trainer left there.

    Raises when there is none, when several could be meant, or when the index names one that is missing.
    """
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    if (folder / "pytorch_model.bin.index.json").is_file():
        return _of_index(folder, folder / "pytorch_model.bin.index.json")
    pickles = _pickles(folder)
    if not pickles:
        raise MechirError(f"'{folder}' holds no pickle (pytorch_model.bin): there is nothing to convert.")
    if len(pickles) > 1:
        raise MechirError(
            f"'{folder}' holds several pickles ({', '.join(file.name for file in pickles)}) and no pytorch_model.bin "
            "or index of it: call the one that is the model pytorch_model.bin."
        )
    return pickles


def _pickles(folder: Path) -> list[Path]:
    """The pickles of a folder, without those that a trainer leaves beside the weights."""
    files = (file for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in sorted(folder.glob(pattern)))
    return [file for file in files if not file.name.startswith(TRAINING)]
