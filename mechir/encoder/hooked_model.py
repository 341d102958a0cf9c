"""What every hooked model has in common: hooks by name, scores under interventions, and that it stays as loaded."""

from __future__ import annotations

import contextlib
import copy
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule

from mechir.encoder.cache import PostNormCache
from mechir.encoder.fingerprint import LoadedState
from mechir.encoder.head import ScoreHead, read_out
from mechir.encoder.reading import Reading, length_limit
from mechir.encoding import Encoded, encode
from mechir.errors import MechirError, closest
from mechir.hooks import Edit, Hook, as_edit, edits
from mechir.inputs import as_pairs, is_tuple_of_texts
from mechir.pair import Pair, joined
from mechir.parts import Dimensions
from mechir.recorder import refuse_non_finite
from mechir.reranker import Reranker
from mechir.sites import Head

EXAMPLE = "blocks.0.attn.hook_z"


class HookedModel(HookedRootModule, Reranker):
    """A reranker whose activations are TransformerLens's hook points, read and edited by name.

    `hf` is Hugging Face's model, whose parameters are shared; `revision` that on the hub; `reading` how model and texts
    are read; `parity` the largest relative difference of scores that `certify` saw; `prompt_options` what was
    given of its prompt when it was loaded, by name.
    """

    hf: Any
    cfg: Dimensions
    head: ScoreHead
    reading: Reading
    revision: str
    parity: float | None = None
    prompt_options: tuple[tuple[str, Any], ...] = ()
    _stored: Mapping[str, str]
    _loaded: LoadedState

    @property
    def whole(self) -> Any:
        """The module with all parameters that make the score: `hf`, or the chain of modules around it."""
        return self.hf

    @abstractmethod
    def _fingerprint(self) -> str:
        """The fingerprint of the model as it is now."""

    def _read(self, max_length: int | None, reading: Reading) -> None:
        """Sets how many word pieces are read, and with it the fingerprint and the record of how the model is read."""
        self.max_length, limited_by = length_limit(self.cfg.n_ctx, self.tokenizer, max_length)
        self.fingerprint = self._fingerprint()
        self.reading = replace(
            reading,
            tokenizer=type(self.tokenizer).__name__,
            max_length=self.max_length,
            limited_by=limited_by,
            relevance=str(self.head),
        )

    def limited(self, max_length: int | None) -> Any:
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
        names = self._loaded.changes(self.whole, self.dtype)
        now = self._fingerprint()
        return names if now == self.fingerprint else [*names, "configuration, tokenizer or max_length"]

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        """Torch's own, which `to` calls: a conversion of the number type is no change, and rounding is remembered."""
        before = self.dtype
        intact = not self.changed()
        super()._apply(*arguments, **options)
        self._placed()
        if intact and self.dtype != before:
            self._loaded.converted(self.whole, self.dtype)
        return self

    def _placed(self) -> None:
        """Writes the device and the number type into `cfg`."""
        self.cfg = replace(self.cfg, device=str(self.device), dtype=self.dtype)

    def train(self, mode: bool = True) -> Any:
        """Torch's own for `eval()`; raises for training, in which dropout would make every score random."""
        if mode:
            raise MechirError("A model is read in eval mode, for dropout would make its scores random: train model.hf.")
        super().train(False)
        return self

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
        return encode(self.writer, as_pairs(pairs), length)

    def resolve(self, hooks: Sequence[Hook]) -> list[tuple[str, Edit]]:
        """The hooks with filters on names replaced by the names they match.

        Raises:
            MechirError: for a name that this model lacks (the closest are named), a filter that matches none, or
                activations of another model.
        """
        edits: list[tuple[str, Edit]] = []
        for name, function in hooks:
            edit = as_edit(function)
            if edit.model not in ("", self.fingerprint):
                raise MechirError(
                    f"These activations are of another model (fingerprint {edit.model[:12]}, this one is "
                    f"{self.fingerprint[:12]}): record them in this one."
                )
            here = edit.within(self)
            if isinstance(name, str):
                self._refuse_unknown(name)
            matches = [name] if isinstance(name, str) else [hook for hook in self.hook_dict if name(hook)]
            if not matches:
                raise MechirError(f"The filter {name} matches no hook of this model, e.g. not '{EXAMPLE}'.")
            edits += [(match, here) for match in matches]
        return edits

    def _refuse_unknown(self, name: str) -> None:
        if name in self.hook_dict:
            return
        found = re.match(r"(blocks|decoder)\.(\d+)\.", name)
        stack, layer = found.groups() if found else ("", "0")
        n = len({hook.split(".")[1] for hook in self.hook_dict if re.match(rf"{stack}\.\d", hook)}) if stack else 0
        if n and int(layer) >= n:
            whose = "the decoder" if stack == "decoder" else "the model"
            raise MechirError(f"Layer {layer} is out of range in '{name}': {whose} has layers 0-{n - 1}.")
        raise MechirError(f"Unknown hook '{name}': the closest are {closest(name, self.hook_dict)}.")

    @contextlib.contextmanager
    def hooks(
        self, fwd_hooks: Any = (), bwd_hooks: Any = (), reset_hooks_end: bool = True, clear_contexts: bool = False
    ) -> Iterator[Any]:
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
