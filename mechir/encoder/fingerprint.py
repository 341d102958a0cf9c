"""The fingerprint of a model: one hash of its tensors as stored, its configuration as used, its tokenizer as loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mechir.encoder.checkpoint import Stored, opened

ROUNDED = (torch.bfloat16, torch.float16)
"""Number types with fewer digits than the scores are computed in."""
PLACES = ("name_or_path", "vocab_file", "merges_file", "tokenizer_file", "is_local", "local_files_only", "cache_dir")
"""Arguments of a tokenizer that name where its files are."""
RULE = "mechir model 2"
"""The rule by which fingerprints are made; part of each, so that those of another rule always differ."""
NO_PROPERTY = (
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "return_dict", "torchscript",
    "chunk_size_feed_forward", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "output_attentions", "output_hidden_states", "use_cache", "gradient_checkpointing", "problem_type", "use_bfloat16",
    "sentence_transformers", "sbert_ce_default_activation_function",
)  # fmt: skip
"""Settings of a config.json that are no property of the weights: they are left out when a configuration is built."""


def fingerprint(tensors: Mapping[str, str], hf: nn.Module, tokenizer: Any, max_length: int) -> str:
    """SHA-256 over the digests of all tensors, the configuration, the tokenizer, and how many word pieces are read.

    Args:
        tensors: the digest of each tensor by name (`stored_digests` or `digests`).
        hf: Hugging Face's model, whose configuration is used.
        tokenizer: as loaded; None for a model that reads ids alone.
        max_length: word pieces that are read.
    """
    settings: Any = hf.config
    left_out = (*NO_PROPERTY, "transformers_weights")  # which file the tensors are from is no property either
    used = {name: value for name, value in settings.to_diff_dict().items() if name not in left_out}
    parts = [RULE, type(hf).__name__, _json(used), _json(dict(sorted(tensors.items())))]
    parts += ["" if tokenizer is None else _json(described(tokenizer)), str(max_length)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def described(tokenizer: Any) -> dict[str, Any]:
    """Everything of a tokenizer that decides which ids it writes, as JSON values.

    For a fast one its serialisation, less what every call sets anew (truncation, padding); for one written in Python
    its class, vocabulary, arguments and merges.
    """
    if tokenizer.is_fast:
        parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        parts = {name: value for name, value in parts.items() if name not in ("truncation", "padding")}
    else:
        given = {name: str(value) for name, value in tokenizer.init_kwargs.items() if name not in PLACES}
        parts = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "arguments": given}
        parts["merges"] = repr(getattr(tokenizer, "bpe_ranks", None))
        pieces = getattr(tokenizer, "sp_model", None)
        parts["pieces"] = None if pieces is None else hashlib.sha256(pieces.serialized_model_proto()).hexdigest()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return parts | {
        "special": special,
        "pad_token_id": tokenizer.pad_token_id,
        "pad_token_type_id": tokenizer.pad_token_type_id,
        "model_max_length": str(tokenizer.model_max_length),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "model_input_names": list(tokenizer.model_input_names),
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
    }


def stored_digests(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """The digest of each tensor as it lies in its file: number type, shape and bytes."""
    by_name: dict[str, str] = {}
    for file in dict.fromkeys(tensor.file for tensor in tensors.values()):
        with opened(file) as reader:
            names = [name for name, tensor in tensors.items() if tensor.file == file]
            by_name |= {name: digest(reader.get_tensor(name)) for name in names}
    return by_name


def digests(model: nn.Module) -> dict[str, str]:
    """The digest of each parameter of a model as it is now, in float32 where that is exact, and each epsilon."""
    parameters = {name: digest(_exact(parameter)) for name, parameter in model.named_parameters()}
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, nn.LayerNorm)}
    return parameters | {f"{name}.eps": str(norm.eps) for name, norm in norms.items()}


class LoadedState:
    """The digests of a model's parameters when it was loaded, and the number type that they were rounded to, if any."""

    def __init__(self, hf: nn.Module, dtype: torch.dtype) -> None:
        self.digests = digests(hf)
        self.rounded_to = dtype if dtype in ROUNDED else None

    def changes(self, hf: nn.Module, dtype: torch.dtype) -> list[str]:
        """The names of parameters that differ now; rounded values stay rounded in a finer number type."""
        now = digests(hf)
        names = [name for name in (self.digests | now) if self.digests.get(name) != now.get(name)]
        rounded = self.rounded_to not in (None, dtype)
        return [*names, f"number type ({str(self.rounded_to).removeprefix('torch.')} before)"] if rounded else names

    def converted(self, hf: nn.Module, dtype: torch.dtype) -> None:
        """Accepts another number type as no change, and remembers where digits were lost."""
        now = digests(hf)
        if now != self.digests:
            self.digests, self.rounded_to = now, dtype


def _exact(value: Tensor) -> Tensor:
    """The same numbers in float32, unless they need float64."""
    single = value.float()
    return single if value.dtype != torch.float64 or bool((single.double() == value).all()) else value


def digest(value: Tensor) -> str:
    """The SHA-256 of number type, shape and bytes of a tensor, in hex."""
    plain = value.detach().cpu().contiguous()
    head = f"{str(plain.dtype).removeprefix('torch.')} {tuple(plain.shape)}".encode()
    hashed = hashlib.sha256(head)
    hashed.update(plain.flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
