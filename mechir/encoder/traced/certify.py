"""The certificate of a traced model: parity with Hugging Face on the same texts, and a proof that every edit acts.

Hugging Face reads the texts on its own way (tokenizer or template, padded on the side that it pads on) and runs its own
forward, which nothing has opened. Against it stand three runs of ours: as it is, with every hook point open, and with
more padding than the texts need. Where the mask function is missing, the last one tells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mechir.batches import Batch
from mechir.encoder.traced.model import TracedReranker
from mechir.encoding import encode
from mechir.errors import MechirError
from mechir.inputs import as_pairs
from mechir.pair import Pair
from mechir.segments import Segment

WHOLE = 1_000_000
"""More word pieces than any text has."""
PADDING = 3
"""Positions of padding that are added to a batch, so that there is some."""
ACTS = 1e-6
"""The least change of a score, of the largest logit, by which an edit shows that it acts."""


@torch.no_grad()
def certify(model: TracedReranker, pairs: Any, *, max_rows: int = 16) -> dict[str, Any]:
    """The largest differences from Hugging Face over these pairs, and the least change that an edit of each kind makes.

    `input` is how many pairs Hugging Face reads otherwise than we do. `score_head_row` compares our scores as they are
    run, `score` those with every point open and with padding added, both relative to the largest absolute logit.
    `edits` holds for each kind of hook the largest change of a score when its activations are mixed up in all layers at
    once, relative likewise; 0 shows that such an edit does nothing.

    Raises:
        MechirError: for a kind of edit that does nothing.
    """
    pairs = [_short(model, pair) for pair in as_pairs(pairs)]
    worst, scale, other = {"score": 0.0, "score_head_row": 0.0}, 0.0, 0
    edits: dict[str, float] = {}
    encoded = model.encode(pairs)
    for _, batch in model.batches(encoded, max_rows=max_rows, max_tokens=4096):
        features = model.features(batch.pairs)
        differing = _differing(batch, features)
        other += int(differing.sum())
        if bool(differing.any()):
            continue
        theirs = model.readout.original(model.root, features)
        scale = max(scale, float(theirs.abs().max()))
        more = _padded(batch, model.tokenizer.pad_token_id)
        ours = {"score_head_row": [model.forward(batch, return_type="logits")]}
        ours["score"] = [_opened(model, batch, _same), _opened(model, more, _same), _opened(model, more, _seen)]
        for name, runs in ours.items():
            worst[name] = max([worst[name], *(float((logits - theirs).abs().max()) for logits in runs)])
        for kind in _kinds(model):
            changed = _opened(model, batch, _mixed, kind)
            edits[kind] = max(edits.get(kind, 0.0), float((changed - theirs).abs().max()))
    relative = {name: value / (scale or 1.0) for name, value in worst.items()}
    edits = {kind: value / (scale or 1.0) for kind, value in edits.items()}
    if idle := [kind for kind, value in edits.items() if not value > ACTS]:
        raise MechirError(
            f"Edits of {', '.join(idle)} change no score of '{model.cfg.model_name}': do not use this model, and "
            "report it with its config.json."
        )
    return {
        "input": other,
        **relative,
        "edits": edits,
        "n_pairs": len(encoded),
        "dtype": str(model.dtype).removeprefix("torch."),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def _short(model: TracedReranker, pair: Pair) -> Pair:
    """The pair with as much of its document as fits: every prompt is cut in a way of its own."""
    if model.prompt is None:
        return pair
    words = pair.document.split()
    while len(words) > 1 and len(encode(model.writer, [pair], WHOLE).ids[0]) >= model.max_length:
        words = words[: len(words) // 2]
        pair = replace(pair, document=" ".join(words))
    return pair


def _differing(batch: Batch, features: Mapping[str, Tensor]) -> Bool[Tensor, "batch"]:
    """True at the pairs where Hugging Face reads other ids or types than we do, padding aside."""
    types = features.get("token_type_ids", torch.zeros_like(features["input_ids"]))
    rows = zip(features["input_ids"], types, features["attention_mask"].bool(), strict=True)
    ours = zip(batch.input_ids, batch.token_type_ids, batch.attention_mask, strict=True)
    same = [
        torch.equal(ids[mask], our_ids[our_mask])
        and ("token_type_ids" not in features or torch.equal(types[mask], our_types[our_mask]))
        for (ids, types, mask), (our_ids, our_types, our_mask) in zip(rows, ours, strict=True)
    ]
    return ~torch.tensor(same)


def _kinds(model: TracedReranker) -> list[str]:
    """The hook points without their layers, of those that logits go through."""
    return list(dict.fromkeys(_kind(name) for name in model.hook_dict if name != "head.hook_score"))


def _kind(name: str) -> str:
    """The name of a hook point without its layer, those of the decoder apart: `decoder.attn.hook_z`."""
    return re.sub(r"\.\d+\.", ".", name).removeprefix("blocks.")


def _opened(
    model: TracedReranker, batch: Batch, edit: Callable[..., Tensor | None], kind: str = ""
) -> Float[Tensor, "batch label"]:
    """The logits with an edit at every point of a kind, or at all points."""
    with model.hooks([(lambda name: not kind or _kind(name) == kind, edit)]):
        return model.forward(batch, return_type="logits")


def _same(x: Tensor, hook: Any) -> Tensor:
    """The activation, written back."""
    return x.clone()


def _seen(x: Tensor, hook: Any) -> None:
    """Leaves the activation."""


def _mixed(x: Tensor, hook: Any) -> Tensor:
    """The activation with its last axis turned, and grown: of a pattern or scores, the sources exchanged.

    Where there is one source alone, it is cut.
    """
    scores, pattern = hook.name.endswith("attn_scores"), hook.name.endswith("pattern")
    if (scores or pattern) and x.shape[-1] == 1:
        return torch.full_like(x, -math.inf if scores else 0.0)
    return x.roll(1, -1) * (1.0 if scores or pattern else 1.5)


def _padded(batch: Batch, pad_id: int) -> Batch:
    """The batch with more padding."""
    more = (0, PADDING)
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, more, value=pad_id),
        token_type_ids=F.pad(batch.token_type_ids, more),
        attention_mask=F.pad(batch.attention_mask, more),
        segment=F.pad(batch.segment, more, value=Segment.PAD.value),
    )
