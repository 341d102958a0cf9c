"""Rerankers as plain Hugging Face runs them, read and edited by torch hooks: what methods are held against.

Nothing of mechir computes here. A model is read from its directory a second time, with transformers' own eager
attention, and takes one text at a time, so there is no padding. What attention computes inside is reached where torch
is called: the k-th softmax of a run is that of layer k. Of mechir come the paths of modules (`LAYOUTS`) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import mechir as mi
from mechir.encoder.traced.layouts import LAYOUTS

Place = tuple[str, int]
"""What is read or edited: ("z", 1) is what W_O of layer 1 reads. See `Plain.run`."""
Edits = Mapping[Place, Callable[[Tensor], Tensor]]
TASKS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "ForSequenceClassification": (transformers.AutoModelForSequenceClassification, ()),
    "ForCausalLM": (transformers.AutoModelForCausalLM, ("no", "yes")),
    "ForConditionalGeneration": (transformers.AutoModelForSeq2SeqLM, ("\u2581false", "\u2581true")),
}
"""By the end of a class's name, how it is read, and the two words whose logits' difference is the score."""


class Plain:
    """A reranker in float64, as `from_pretrained` reads it."""

    def __init__(self, folder: Path) -> None:
        config = transformers.AutoConfig.from_pretrained(folder)
        task, self.words = next((value for name, value in TASKS.items() if config.architectures[0].endswith(name)))
        hf = task.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        self.hf: Any = hf.eval().requires_grad_(False)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.layout = LAYOUTS[config.model_type]
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.shared = self.n_heads // (getattr(config, "num_key_value_heads", None) or self.n_heads)
        self.layers = self.hf.base_model.get_submodule(self.layout.layers)

    def inputs(self, pair: mi.Pair) -> dict[str, Tensor]:
        """The arguments of one text."""
        config = self.hf.config
        if config.is_encoder_decoder:
            text = f"Query: {pair.query} Document: {pair.document} Relevant:"
            start = torch.tensor([[config.decoder_start_token_id]])
            return dict(self.tokenizer(text, return_tensors="pt")) | {"decoder_input_ids": start}
        if self.words:
            messages = [{"role": "query", "content": pair.query}, {"role": "document", "content": pair.document}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            return dict(self.tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        read = self.tokenizer(pair.query, pair.document, return_tensors="pt")
        untyped = not getattr(config, "type_vocab_size", 0)
        return {name: x for name, x in read.items() if not (untyped and name == "token_type_ids")}

    def score(self, pair: mi.Pair, edits: Edits | None = None) -> float:
        """The score under edits."""
        with torch.no_grad():
            return float(self.run(pair, edits)[0])

    def read(self, pair: mi.Pair, edits: Edits | None = None) -> dict[Place, Tensor]:
        """All activations under edits."""
        with torch.no_grad():
            return self.run(pair, edits)[1]

    def run(self, pair: mi.Pair, edits: Edits | None = None) -> tuple[Tensor, dict[Place, Tensor]]:
        """The score of one text, and its activations as they are after their edits.

        Places are ("embed", 0); ("stream", k), what layer k reads, and after the last layer; of a layer "z", "q", "k",
        "v" [1, pos, head, d_head], "scores", "pattern" [1, head, reader, source], "attn", "post" (neurons) and "mlp".
        Heads that share a key or value are reached together, under "k" and "v", as many as there are keys.
        """
        seen: dict[Place, Tensor] = {}
        points = Points(edits or {}, seen)
        word = self.hf.base_model.get_submodule(self.layout.word)
        handles = [word.register_forward_hook(points.after("embed", 0))]
        for k, layer in enumerate(self.layers):
            handles += self._hooked(points, k, layer)
        try:
            with Inside(self, points):
                out = self.hf(**self.inputs(pair), **({"use_cache": False} if self.words else {}))
        finally:
            for handle in handles:
                handle.remove()
        if not self.words:
            return out.logits[0, 0], seen
        no, yes = self.tokenizer.convert_tokens_to_ids(list(self.words))
        return out.logits[0, -1, yes] - out.logits[0, -1, no], seen

    def _hooked(self, points: Points, k: int, layer: nn.Module) -> list[Any]:
        """Torch hooks on the modules of one layer."""
        at, layout = layer.get_submodule, self.layout
        handles = [
            layer.register_forward_pre_hook(points.before("stream", k)),
            at(layout.o).register_forward_pre_hook(points.before("z", k, self.n_heads)),
            at(layout.attn_out).register_forward_hook(points.after("attn", k)),
            at(layout.w_out).register_forward_pre_hook(points.before("post", k)),
            at(layout.mlp_out).register_forward_hook(points.after("mlp", k)),
        ]
        if layout.pattern:  # queries and keys are those of the projections
            parts = ((part, getattr(layout, part)) for part in "qkv")
            handles += [at(path).register_forward_hook(points.after(part, k, self.n_heads)) for part, path in parts]
        if k == self.n_layers - 1:
            handles.append(layer.register_forward_hook(points.after("stream", k + 1)))
        return handles


class Points:
    """Makes hooks that note an activation, and edit it before."""

    def __init__(self, edits: Edits, seen: dict[Place, Tensor]) -> None:
        self.edits, self.seen = edits, seen

    def through(self, kind: str, layer: int, x: Tensor, heads: int = 0) -> Tensor:
        """The activation after its edit; DeBERTa projects its relative positions after the text, which stay."""
        if (kind, layer) in self.seen:
            return x
        split = x.unflatten(-1, (heads, -1)) if heads else x
        edit = self.edits.get((kind, layer))
        new = self.seen[kind, layer] = split if edit is None else edit(split)
        return new.flatten(-2) if heads else new

    def before(self, kind: str, layer: int, heads: int = 0) -> Callable[..., Any]:
        """A hook on the first argument of a module."""
        return lambda module, given: (self.through(kind, layer, given[0], heads), *given[1:])

    def after(self, kind: str, layer: int, heads: int = 0) -> Callable[..., Any]:
        """A hook on the output of a module."""

        def hook(module: nn.Module, given: Any, out: Any) -> Any:
            whole = isinstance(out, tuple)
            new = self.through(kind, layer, out[0] if whole else out, heads)
            return (new, *out[1:]) if whole else new

        return hook


class Inside(TorchFunctionMode):
    """Reaches what eager attention computes: softmax gives the pattern, two matrix products take queries and keys."""

    def __init__(self, plain: Plain, points: Points) -> None:
        super().__init__()
        self.plain, self.points, self.layer, self.compared = plain, points, 0, False

    def __torch_function__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        """Calls it, with the edits of this layer."""
        options = options or {}
        if self.layer == self.plain.n_layers and not self.compared:  # all later attention is a decoder's
            return function(*given, **options)
        if function is F.softmax:
            scores = self.points.through("scores", self.layer, given[0])
            lost = (scores <= torch.finfo(scores.dtype).min).all(-1, keepdim=True)  # nothing is left to read
            pattern = function(scores, *given[1:], **options).masked_fill(lost, 0.0)
            pattern = self.points.through("pattern", self.layer, pattern)
            self.layer += 1
            return pattern
        if function is torch.matmul and given[0].ndim == 4 and not self.plain.layout.pattern:
            self.compared = not self.compared
            given = self._asked(*given) if self.compared else (given[0], self._value(given[1]))
        return function(*given, **options)

    def _asked(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q = self.points.through("q", self.layer, q.transpose(1, 2)).transpose(1, 2)
        return q, self._shared("k", k.transpose(2, 3)).transpose(2, 3)

    def _value(self, v: Tensor) -> Tensor:
        self.layer -= 1  # the softmax has gone on
        v = self._shared("v", v)
        self.layer += 1
        return v

    def _shared(self, part: str, x: Tensor) -> Tensor:
        """Keys or values [1, head, pos, d_head] of which several heads share each."""
        own = x[:, :: self.plain.shared].transpose(1, 2)
        return self.points.through(part, self.layer, own).transpose(1, 2).repeat_interleave(self.plain.shared, 1)
