"""HookedEncoder: a BERT-like cross-encoder whose activations are readable and editable by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from mechir.encoder import forward as fw
from mechir.encoder.families import Family, dimensions, parts
from mechir.encoder.fingerprint import LoadedState, fingerprint
from mechir.encoder.head import ScoreHead, label_names
from mechir.encoder.hooked_model import HookedModel
from mechir.encoder.reading import Reading, token_types
from mechir.encoder.tiers import Tiers
from mechir.encoder.tokenizing import refuse_unfit
from mechir.errors import MechirError
from mechir.parts import Structure
from mechir.reranker import score_parity

RETURN_TYPES = ("score", "logits", "resid")


class HookedEncoder(HookedModel, Tiers):
    """A cross-encoder under TransformerLens hook names: `*ForSequenceClassification` of the BERT-like families.

    The parameters are those of the Hugging Face model in `self.hf`, not copies. `docs/concepts.md` lists hook names and
    shapes. Inputs are pairs as `mi.pairs` reads them: values, tuples, frames, datasets.
    """

    structure = Structure(norm="post", positions="absolute", reads="cls")

    def __init__(
        self,
        hf: Any,
        tokenizer: Any,
        family: Family,
        *,
        name: str = "in memory",
        tensors: Mapping[str, str] | None = None,
        revision: str = "",
        relevant_label: int | str | None = None,
        max_length: int | None = None,
        reading: Reading | None = None,
    ) -> None:
        """Wraps Hugging Face's model `hf`, whose parameters are shared, by its row of `FAMILIES`.

        `tokenizer` is None where only token ids are read. `tensors` are the digests of the tensors as stored
        (`fingerprint.stored_digests`), by default as they are now; `revision` is that on the hub, `reading` the files
        and settings that the model was read from. `relevant_label` and `max_length` as in `from_pretrained`.
        """
        super().__init__()
        self.hf = hf.eval().requires_grad_(False)
        self.tokenizer, self.family, self.revision = tokenizer, family, revision
        self.parts = parts(hf, family)
        n_params = sum(parameter.numel() for parameter in hf.parameters())
        self.cfg = dimensions(hf.config, family, name, self.parts, n_params)
        self._placed()
        self._positions_after = hf.config.pad_token_id if family.positions_from_padding else None
        if tokenizer is not None:
            refuse_unfit(tokenizer, self.parts.embeddings, name)
        self.embed = fw.EmbedHooks()
        self.hook_full_embed = HookPoint()
        self.blocks = torch.nn.ModuleList([fw.BlockHooks() for _ in self.parts.layers])
        self.head = ScoreHead(label_names(hf.config, self.cfg.n_labels), relevant_label)
        self._loaded = LoadedState(hf, self.dtype)
        self._stored = dict(self._loaded.digests if tensors is None else tensors)
        self._read(max_length, reading or Reading())
        self.setup()
        self.eval()

    def _fingerprint(self) -> str:
        return fingerprint(self._stored, self.hf, self.tokenizer, self.max_length)

    def _read(self, max_length: int | None, reading: Reading) -> None:
        types = self.parts.embeddings.token_type
        types_from = token_types(self.tokenizer, 0 if types is None else types.num_embeddings)
        super()._read(max_length, replace(reading, token_types=types_from))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device | None = None,
        relevant_label: int | str | None = None,
        max_length: int | None = None,
    ) -> HookedEncoder:
        """Loads the checkpoint in a directory or on the hub, from safetensors only.

        Args:
            name_or_path: a directory, or the name of a model on the Hugging Face hub.
            dtype: float32, float64 or bfloat16. Effects measured in bfloat16 are noisy: certify before use.
            device: e.g. `cuda:1`; by default a GPU where there is one.
            relevant_label: which label means relevance, by number or name; needed but for one label, or for two that
                are called LABEL_0 and LABEL_1 (then it is label 1).
            max_length: word pieces of a pair that are read; by default what the checkpoint says.

        Raises:
            MechirError: for anything that cannot be reproduced exactly, by name.
        """
        from mechir.encoder.loading import load

        return load(name_or_path, dtype=dtype, device=device, relevant_label=relevant_label, max_length=max_length)

    def __repr__(self) -> str:
        c = self.cfg
        parity = f", scores {self.parity:.1e} from Hugging Face's" if self.parity is not None else ""
        return (
            f"HookedEncoder({c.model_name}: {c.family}, {c.n_layers} layers x {c.n_heads} heads, d_model {c.d_model}, "
            f"{c.n_labels} label{'s' * (c.n_labels > 1)}, {str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"{c.n_params:,} parameters, fingerprint {self.fingerprint[:12]}{parity})"
        )

    def forward(
        self,
        inputs: Any,
        *,
        return_type: str = "score",
        resid: Float[Tensor, "batch pos d_model"] | None = None,
        start_at_layer: int = 0,
        stop_at_layer: int | None = None,
        explicit: Sequence[int] = (),
        head_row: bool | None = None,
    ) -> Float[Tensor, "..."]:
        """Scores [batch] by default, logits [batch, label], or the residual stream [batch, pos, d_model].

        Args:
            inputs: whatever `mi.pairs` reads, or a `Batch`.
            return_type: "score", "logits" or "resid", which `stop_at_layer` implies.
            resid: the residual stream to start from, with `start_at_layer`.
            start_at_layer: the first layer computed; needs `resid` when above 0.
            stop_at_layer: the first layer not computed.
            explicit: layers whose attention is computed with scores and pattern in the open even when unseen.
            head_row: True computes of the last layer only the row that the head reads (CLS), False computes all rows;
                by default only that row when nothing in the layer is hooked.
        """
        if return_type not in RETURN_TYPES:
            raise MechirError(f"Unknown return_type {return_type!r}: write one of {', '.join(RETURN_TYPES)}.")
        batch, n = self.batch(inputs), self.cfg.n_layers
        if start_at_layer and resid is None:
            raise MechirError(f"start_at_layer={start_at_layer} needs resid=, the residual stream to start from.")
        if resid is None:
            resid = self.embedded(batch)
        allowed = self.allowed(batch)
        wants_resid = stop_at_layer is not None or return_type == "resid"
        head_row = not fw.anything_hooked(self.blocks[-1]) if head_row is None else head_row
        for layer in range(start_at_layer, n if stop_at_layer is None else stop_at_layer):
            only = head_row and layer == n - 1 and not wants_resid
            resid = self.run_block(layer, resid, allowed, explicit=layer in explicit, head_row=only)
        if wants_resid:
            return resid
        return self.logits(resid) if return_type == "logits" else self.run_head(resid)

    def certify(self, pairs: Any) -> dict[str, Any]:
        """The largest differences from Hugging Face's own model on these pairs (see `certify.certify`).

        That of the scores, `score_head_row`, becomes `parity`.
        """
        from mechir.encoder.certify import certify

        certificate = certify(self, pairs)
        self.parity = score_parity(certificate)
        return certificate
