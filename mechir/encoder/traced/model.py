"""TracedReranker: a reranker of any structure, Hugging Face's own forward opened by name."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import nnsight
import torch
from jaxtyping import Float
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn
from transformer_lens import FactoredMatrix
from transformers import PreTrainedModel

from mechir.batches import Batch
from mechir.encoder.fingerprint import LoadedState, fingerprint
from mechir.encoder.forward import is_hooked
from mechir.encoder.head import ScoreHead
from mechir.encoder.hooked_model import HookedModel
from mechir.encoder.reading import Reading
from mechir.encoder.traced import attention
from mechir.encoder.traced.decoder import DECODERS
from mechir.encoder.traced.layouts import LAYOUTS, structure
from mechir.encoder.traced.places import Place, Visit, attentions, inside, places, points_below
from mechir.encoder.traced.prompt import Prompt
from mechir.encoder.traced.readout import Readout
from mechir.encoder.traced.rotary import turned_qk
from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.parts import Dimensions
from mechir.reranker import Resumes, Turns, score_parity

RETURN_TYPES = ("score", "logits", "resid")
POOLED = ("classifier.out_proj", "classifier", "score")
"""Where the last linear layer of a classifier is."""
ANY_LENGTH = 1 << 20
"""Positions of a model that has no limit: more than fit into memory."""


class TracedReranker(HookedModel, Resumes, Turns):
    """A reranker under TransformerLens hook names whose forward is Hugging Face's own, traced by nnsight.

    Where nothing is hooked the model runs as it is. Where something is, the trace stops at the modules that carry it,
    and attention is computed in the open. `docs/rerankers.md` lists the hooks of each structure.
    """

    def __init__(
        self,
        root: nn.Module,
        hf: Any,
        tokenizer: Any,
        readout: Readout,
        *,
        name: str = "in memory",
        tensors: Mapping[str, str] | None = None,
        revision: str = "",
        relevant_label: int | str | None = None,
        max_length: int | None = None,
        reading: Reading | None = None,
        prompt: Prompt | None = None,
        prompt_options: tuple[tuple[str, Any], ...] = (),
    ) -> None:
        """Wraps the module `root` that is called, and the transformer `hf` inside it (of a chain) or itself.

        `readout` makes its arguments and its logits; `prompt` is that of a language model, `prompt_options` what of it
        was given. The other arguments are those of `HookedEncoder`.
        """
        super().__init__()
        self.root, self.hf = root.eval().requires_grad_(False), hf
        self.tokenizer, self.readout, self.revision = tokenizer, readout, revision
        self.prompt, self.prompt_options = prompt, prompt_options
        self._writer = tokenizer if prompt is None else prompt.template.writer(tokenizer)
        self.layout = LAYOUTS[hf.config.model_type]
        self.structure = structure(self.layout, hf.config, readout.reads)
        self.inside = traced(root, tokenizer)
        body = _path_of(root, hf.base_model)
        self.cfg = _dimensions(hf, self.layout, name, len(readout.labels))
        heads = self.cfg.n_heads
        listed = places(self.layout, body, self.cfg.n_layers, heads, self.cfg.n_key_value_heads or heads)
        attends = attentions(self.layout, body, self.cfg.n_layers)
        if readout.reads == "decoder":
            decoder, n = DECODERS[hf.config.model_type], hf.config.num_decoder_layers
            listed += decoder.places(n, heads)
            attends |= decoder.attentions(n)
        pooled = next((path for path in POOLED if hf is root and readout.reads != "last" and _has(root, path)), "")
        if pooled:
            listed.append(Place(pooled, "input", ("head.hook_pooled",)))
        self.head = ScoreHead(readout.labels, relevant_label, pooled=bool(pooled))
        self._inside = [name for points in attends.values() for name in inside(points)]
        reached = [name for place in listed for name in place.names if name != "head.hook_pooled"]
        points_below(reached + self._inside, self)
        self._attention = {root.get_submodule(path): self.get_submodule(points) for path, points in attends.items()}
        self.setup()
        self._visits = [self._visit(place) for place in listed]
        self._layers = [visit.envoy for visit in self._visits if visit.place.side == "input" and visit.place.layer >= 0]
        self._loaded = LoadedState(root, self.dtype)
        self._stored = dict(self._loaded.digests if tensors is None else tensors)
        self._placed()
        self._read(max_length, reading or Reading())
        self.eval()

    def _visit(self, place: Place) -> Visit:
        # A submodule called "output" is reached as E_output: `.output` is the activation.
        parts = ["E_output" if part == "output" else part for part in place.path.split(".")]
        try:
            envoy = reduce(lambda at, part: at[int(part)] if part.isdigit() else getattr(at, part), parts, self.inside)
        except AttributeError as error:
            raise MechirError(
                f"nnsight opened another model than the {type(self.root).__name__} that it was given: there is no "
                f"'{place.path}' in it; report it with its config.json."
            ) from error
        return Visit(place, envoy, self.root.get_submodule(place.path), self.hook_dict.__getitem__)

    def _read(self, max_length: int | None, reading: Reading) -> None:
        types = "written by the tokenizer" if self.readout.typed else "the model has none"
        super()._read(max_length, replace(reading, token_types=types))

    def _fingerprint(self) -> str:
        more = {"readout": f"{type(self.root).__name__} {self.readout!r} {self.prompt!r}"}
        return fingerprint({**self._stored, **more}, self.hf, self.tokenizer, self.max_length)

    @property
    def writer(self) -> Any:
        """What writes pairs as token ids: the tokenizer, or its way into a prompt."""
        return self._writer

    @property
    def whole(self) -> Any:
        """The module that is called."""
        return self.root

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.root.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the parameters and of the computation."""
        return next(self.root.parameters()).dtype

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_embed"]:
        """The word embeddings, as they enter the model."""
        words: nn.Module = self.hf.get_input_embeddings()
        with torch.no_grad():
            table: Tensor = words(torch.arange(self.cfg.d_vocab, device=self.device))
        return table

    def QK_at(self, distance: int) -> FactoredMatrix:
        """W_QK [layer, head, d_model, d_model] between a position and the one `distance` before it (see `rotary`)."""
        return turned_qk(self, distance)

    def forward(
        self,
        inputs: Any,
        *,
        return_type: str = "score",
        stop_at_layer: int | None = None,
        head_row: bool | None = None,
    ) -> Float[Tensor, "..."]:
        """Scores [batch] by default, logits [batch, label], or the residual stream [batch, pos, d_model].

        Args:
            inputs: whatever `mi.pairs` reads, or a `Batch`.
            return_type: "score", "logits" or "resid", which `stop_at_layer` implies.
            stop_at_layer: the first layer not computed.
            head_row: no matter here: all rows are computed.
        """
        if return_type not in RETURN_TYPES:
            raise MechirError(f"Unknown return_type {return_type!r}: write one of {', '.join(RETURN_TYPES)}.")
        batch, n = self.batch(inputs), self.cfg.n_layers
        wants_resid = stop_at_layer is not None or return_type == "resid"
        if wants_resid:
            return self._run(batch, n if stop_at_layer is None else stop_at_layer)
        logits = self.head.hook_logits(self._run(batch, None))
        return logits if return_type == "logits" else self.head.score(logits)

    def begun(self, batch: Batch) -> list[Any]:
        """What each layer gives, in one run of a batch."""
        positional, named = self.readout.arguments(batch)
        return _outputs(self.inside, positional, named, self._layers)

    def resumed(self, batch: Batch, begun: Sequence[Any], layer: int) -> Float[Tensor, "batch"]:
        """The scores of the batch; the layers below `layer` are skipped, and what they gave is taken from `begun`."""
        skipped = list(zip(self._layers, begun, strict=True))[:layer]
        return self.head.score(self.head.hook_logits(self._run(batch, None, skipped)))

    def _run(self, batch: Batch, stop: int | None, skipped: Sequence[tuple[Any, Any]] = ()) -> Tensor:
        """The logits, or the residual stream that layer `stop` reads: after the last layer where there is none."""
        positional, named = self.readout.arguments(batch)
        opened = any(is_hooked(self.hook_dict[name]) for name in self._inside)
        visits = self._until(stop)
        if not visits and not opened and not skipped:
            return self.readout.logits(self.root(*positional, **named), batch)
        way = attention.opened(self.hf, self._attention) if opened else contextlib.nullcontext()
        with way:
            output = _trace(self.inside, positional, named, visits, stop, skipped)
        return output if stop is not None else self.readout.logits(output, batch)

    def _until(self, stop: int | None) -> list[Visit]:
        """The places to stop at, the last of them where layer `stop` reads its residual stream."""
        wanted: list[Visit] = []
        for visit in self._visits:
            if visit.place.layer == stop:
                return [*wanted, visit]
            if visit.wanted():
                wanted.append(visit)
        return wanted

    def features(self, pairs: Sequence[Pair]) -> Mapping[str, Tensor]:
        """The texts as the model's own users give them to it: ids, mask and types, padded on its own side."""
        if self.prompt is not None:
            read = self.prompt.features(self.tokenizer, pairs)
            return {name: x.to(self.device) for name, x in read.items()}
        texts = [[pair.query for pair in pairs], [pair.document for pair in pairs]]
        options = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        read = self.tokenizer(*texts, **options).to(self.device)
        names = [name for name in read if name != "token_type_ids" or self.readout.typed]
        return {name: read[name] for name in names}

    def certify(self, pairs: Any) -> dict[str, Any]:
        """The largest differences from the original implementation on these pairs, and that every kind of edit acts."""
        from mechir.encoder.traced.certify import certify

        certificate = certify(self, pairs)
        self.parity = score_parity(certificate)
        return certificate

    def __repr__(self) -> str:
        c = self.cfg
        parity = f", scores {self.parity:.1e} from Hugging Face's" if self.parity is not None else ""
        return (
            f"TracedReranker({c.model_name}: {c.family} by nnsight, {c.n_layers} layers x {c.n_heads} heads, d_model "
            f"{c.d_model}, {str(self.dtype).removeprefix('torch.')} on {self.device}, {c.n_params:,} parameters, "
            f"fingerprint {self.fingerprint[:12]}{parity})"
        )


def traced(root: nn.Module, tokenizer: Any) -> Any:
    """The model as nnsight opens it."""
    with warnings.catch_warnings():
        # that a submodule called "output" is reached as E_output, which `_visit` knows
        warnings.filterwarnings("ignore", message="Module .* has a submodule named")
        # nnsight takes a model with a decoder for one of its causal ones, and says so at length
        if isinstance(root, PreTrainedModel) and not root.config.is_encoder_decoder:
            return TransformersModel(root, tokenizer=tokenizer)
        return nnsight.NNsight(root)


def _trace(
    inside: Any,
    positional: tuple[Any, ...],
    named: dict[str, Any],
    visits: Sequence[Visit],
    stop: int | None,
    skipped: Sequence[tuple[Any, Any]],
) -> Any:
    """One run that stops at these places; the output, or where there is a `stop`, what is read at the last of them.

    `skipped`: layers that are not computed, each with what it gives.
    """
    output: Any = None
    with inside.trace(*positional, **named) as tracer:
        for layer, given in skipped:
            layer.skip(given)
        stream = None
        for visit in visits:
            here = visit.pass_through(stream)
            stream = here if visit.place.layer >= 0 else stream
        if stop is None:
            output = inside.output.save()
        else:
            output = nnsight.save(here)
            tracer.stop()
    return output


def _outputs(inside: Any, positional: tuple[Any, ...], named: dict[str, Any], layers: Sequence[Any]) -> list[Any]:
    """What each layer gives in one run."""
    outputs: list[Any] = []
    with inside.trace(*positional, **named):
        for layer in layers:
            outputs.append(nnsight.save(layer.output))
    return outputs


def _path_of(root: nn.Module, module: nn.Module) -> str:
    return next(name for name, other in root.named_modules() if other is module)


def _has(root: nn.Module, path: str) -> bool:
    try:
        return isinstance(root.get_submodule(path), nn.Linear)
    except AttributeError:
        return False


def _dimensions(hf: Any, layout: Any, name: str, n_labels: int) -> Dimensions:
    config, word = hf.config, hf.get_input_embeddings()
    n_heads, n_layers = config.num_attention_heads, config.num_hidden_layers
    shared = getattr(config, "num_key_value_heads", None) or n_heads
    first = hf.base_model.get_submodule(f"{layout.layers}.0")
    named = ("hidden_activation", "hidden_act", "activation", "dense_act_fn")
    activation = next(getattr(config, name) for name in named if getattr(config, name, None))
    return Dimensions(
        model_name=name,
        family=config.model_type,
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=config.hidden_size,
        d_head=first.get_submodule(layout.o).in_features // n_heads,
        d_mlp=first.get_submodule(layout.w_out).in_features,
        d_vocab=word.num_embeddings,
        n_ctx=_positions(config),
        n_labels=n_labels,
        act_fn=activation,
        n_params=sum(parameter.numel() for parameter in hf.parameters()),
        n_key_value_heads=None if shared == n_heads else shared,
    )


def _positions(config: Any) -> int:
    """How many positions a text has at most: RoBERTa counts them from `pad_token_id + 1`, T5 has as many as wanted."""
    if config.model_type in DECODERS:
        return ANY_LENGTH
    counted = config.model_type in ("roberta", "xlm-roberta", "camembert")
    return int(config.max_position_embeddings - (config.pad_token_id + 1 if counted else 0))
