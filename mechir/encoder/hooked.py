"""HookedEncoder: a BERT-like cross-encoder whose activations are readable and editable by name."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from mechir.encoder import forward as fw
from mechir.encoder.cache import PostNormCache
from mechir.encoder.families import Family, dimensions, parts
from mechir.encoder.fingerprint import LoadedState, fingerprint
from mechir.encoder.head import ClassificationHead, label_names, read_out
from mechir.encoder.reading import Reading, length_limit, token_types
from mechir.encoder.tiers import Tiers
from mechir.encoder.tokenizing import refuse_unfit
from mechir.encoding import Encoded, encode
from mechir.errors import MechirError, closest
from mechir.hooks import Edit, Hook, as_edit, edits
from mechir.inputs import as_pairs, is_tuple_of_texts
from mechir.pair import Pair, joined
from mechir.parts import Structure
from mechir.recorder import refuse_non_finite
from mechir.reranker import score_parity
from mechir.sites import Head

RETURN_TYPES = ("score", "logits", "resid")
EXAMPLE = "blocks.0.attn.hook_z"


class HookedEncoder(HookedRootModule, Tiers):
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
        self.parity: float | None = None
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
        self.head = ClassificationHead(label_names(hf.config, self.cfg.n_labels), relevant_label)
        self._loaded = LoadedState(hf, self.dtype)
        self._stored = dict(self._loaded.digests if tensors is None else tensors)
        self._read(max_length, reading or Reading())
        self.setup()
        self.eval()

    def _read(self, max_length: int | None, reading: Reading) -> None:
        """Sets how many word pieces are read, and with it the fingerprint and the record of how the model is read."""
        self.max_length, limited_by = length_limit(self.cfg.n_ctx, self.tokenizer, max_length)
        self.fingerprint = fingerprint(self._stored, self.hf, self.tokenizer, self.max_length)
        types = self.parts.embeddings.token_type
        self.reading = replace(
            reading,
            tokenizer=type(self.tokenizer).__name__,
            max_length=self.max_length,
            limited_by=limited_by,
            token_types=token_types(self.tokenizer, 0 if types is None else types.num_embeddings),
            relevance=str(self.head),
        )

    def limited(self, max_length: int | None) -> HookedEncoder:
        """The same model, parameters and hooks shared, that reads at most so many word pieces of a pair.

        Its fingerprint differs, as its scores do. None: this model itself. Raises for a length beyond its positions.
        """
        if max_length is None or (max_length == self.max_length and not isinstance(max_length, bool)):
            return self
        model = copy.copy(self)
        model._read(max_length, self.reading)
        return model

    def changed(self) -> list[str]:
        """The names of what changed since the model was loaded: parameters, configuration, tokenizer or limit."""
        names = self._loaded.changes(self.hf, self.dtype)
        now = fingerprint(self._stored, self.hf, self.tokenizer, self.max_length)
        return names if now == self.fingerprint else [*names, "configuration, tokenizer or max_length"]

    def _apply(self, *arguments: Any, **options: Any) -> HookedEncoder:
        """Torch's own, which `to` calls: a conversion of the number type is no change, and rounding is remembered."""
        before = self.dtype
        intact = not self.changed()
        super()._apply(*arguments, **options)
        self._placed()
        if intact and self.dtype != before:
            self._loaded.converted(self.hf, self.dtype)
        return self

    def _placed(self) -> None:
        """Writes the device and the number type into `cfg`."""
        self.cfg = replace(self.cfg, device=str(self.device), dtype=self.dtype)

    def train(self, mode: bool = True) -> HookedEncoder:
        """Torch's own for `eval()`; raises for training, in which dropout would make every score random."""
        if mode:
            raise MechirError("A model is read in eval mode, for dropout would make its scores random: train model.hf.")
        super().train(False)
        return self

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

    @property
    def max_tokens(self) -> int:
        """The number of word pieces computed together by default: enough to fit a CPU's caches, or to fill a GPU."""
        return 4096 if self.device.type == "cpu" else 65536

    def to_tokens(self, pairs: Any) -> Int[Tensor, "batch pos"]:
        """The token ids of pairs as the model reads them, padded on the right."""
        return self.batch(pairs).input_ids

    def to_str_tokens(self, pairs: Any) -> list[str] | list[list[str]]:
        """The word pieces of one pair, or of each of several, special ones included."""
        rows = [self.tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in self.encode(pairs).ids]
        return rows[0] if isinstance(pairs, Pair) or is_tuple_of_texts(pairs) else rows

    def all_head_labels(self) -> list[str]:
        """Every head as it prints, `h0.0` first."""
        return [str(Head(layer, head)) for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def encode(self, pairs: Any, max_length: int | None = None) -> Encoded:
        """The pairs (`mi.pairs`) as token ids; documents beyond `max_length` are cut, by default the model's own."""
        if self.tokenizer is None:
            raise MechirError("This model has no tokenizer and reads token ids alone: give it a Batch.")
        length, _ = length_limit(self.cfg.n_ctx, self.tokenizer, self.max_length if max_length is None else max_length)
        return encode(self.tokenizer, as_pairs(pairs), length)

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

    def resolve(self, hooks: Sequence[Hook]) -> list[tuple[str, Edit]]:
        """The hooks with filters on names replaced by the names they match.

        Raises:
            MechirError: for a name that this model lacks (the closest are named), a filter that matches none, or
                activations of another model.
        """
        edits: list[tuple[str, Edit]] = []
        for name, function in hooks:
            edit = as_edit(function)
            if isinstance(name, str):
                self._refuse_unknown(name)
            matches = [name] if isinstance(name, str) else [hook for hook in self.hook_dict if name(hook)]
            if not matches:
                raise MechirError(f"The filter {name} matches no hook of this model, e.g. not '{EXAMPLE}'.")
            if edit.model not in ("", self.fingerprint):
                raise MechirError(
                    f"These activations are of another model (fingerprint {edit.model[:12]}, this one is "
                    f"{self.fingerprint[:12]}): record them in this one."
                )
            edits += [(match, edit.within(self)) for match in matches]
        return edits

    def _refuse_unknown(self, name: str) -> None:
        if name in self.hook_dict:
            return
        layer, n = re.match(r"blocks\.(\d+)\.", name), self.cfg.n_layers
        if layer and int(layer[1]) >= n:
            raise MechirError(f"Layer {layer[1]} is out of range in '{name}': the model has layers 0-{n - 1}.")
        raise MechirError(f"Unknown hook '{name}': the closest are {closest(name, self.hook_dict)}.")

    @contextlib.contextmanager
    def hooks(
        self, fwd_hooks: Any = (), bwd_hooks: Any = (), reset_hooks_end: bool = True, clear_contexts: bool = False
    ) -> Iterator[HookedEncoder]:
        """TransformerLens's context manager; a name that does not exist is an error, not a no-op."""
        fwd: list[Any] = self.resolve(fwd_hooks)
        bwd: list[Any] = self.resolve(bwd_hooks)
        with super().hooks(fwd, bwd, reset_hooks_end, clear_contexts):
            yield self

    def remove_all_hook_fns(self, *which: Any, **options: Any) -> None:
        """Removes hooks as TransformerLens does, from points that have any alone: a sweep calls this at every stage."""
        for point in self.hook_points():
            if point.fwd_hooks or point.bwd_hooks:
                point.remove_hooks(*which, **options)

    def run_with_cache(self, *inputs: Any, names_filter: Any = None, **options: Any) -> tuple[Tensor, PostNormCache]:
        """The output and an `ActivationCache` of every hook point, or of those that `names_filter` selects."""
        if names_filter is not None and not callable(names_filter):
            for name in [names_filter] if isinstance(names_filter, str) else names_filter:
                self._refuse_unknown(name)
        elif names_filter is not None and not any(map(names_filter, self.hook_dict)):
            raise MechirError(f"The filter {names_filter} matches no hook of this model, e.g. not '{EXAMPLE}'.")
        output, cache = super().run_with_cache(*inputs, names_filter=names_filter, **options)
        return output, PostNormCache(cache, self, has_batch_dim=not options.get("remove_batch_dim", False))

    @torch.no_grad()
    def score(
        self,
        pairs: Any,
        do: Any = (),
        *,
        readout: str = "score",
        max_rows: int = 256,
        max_tokens: int | None = None,
        max_length: int | None = None,
        progress: bool | None = None,
        frame: bool = False,
    ) -> Any:
        """The relevance score of each pair under the intervention(s) `do`, in input order, on the CPU.

        The scale is the logit (1 label) or `logit[1] - logit[0]` (2 labels): the scale of every effect. `readout`
        "log_p" or "p" changes the returned values, not the scale of effects. With `frame`, a row per pair: `query_id`,
        `doc_id`, `grade` where any is judged, and `score`.

        Raises:
            MechirError: for empty or too long queries, unknown hooks, and scores that are not finite (pair and layer).
        """
        encoded = self.encode(pairs, max_length)
        out = torch.empty(len(encoded), dtype=torch.float64 if self.dtype == torch.float64 else torch.float32)
        for index, batch in self.batches(encoded, max_rows=max_rows, max_tokens=max_tokens, progress=progress):
            with self.hooks(edits(do, batch)):
                out[torch.from_numpy(index)] = self(batch).cpu()
        refuse_non_finite(self, out, encoded, do)
        scores = read_out(out, readout)
        return joined(encoded.pairs, score=scores.numpy()) if frame else scores

    def certify(self, pairs: Any) -> dict[str, Any]:
        """The largest differences from Hugging Face's own model on these pairs (see `certify.certify`).

        That of the scores, `score_head_row`, becomes `parity`.
        """
        from mechir.encoder.certify import certify

        certificate = certify(self, pairs)
        self.parity = score_parity(certificate)
        return certificate
