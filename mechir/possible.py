"""The directions of attention that happen in a model: its pairs have both parts, and its mask allows it."""

from __future__ import annotations

from mechir.batches import Batch
from mechir.errors import MechirError
from mechir.hooks import Hooked
from mechir.segments import PARTS, Direction, Segment, directions, parts_of


def possible(model: Hooked, batch: Batch) -> list[Direction]:
    """The directions between the parts of these pairs that happen in a model, in the order of `directions`."""
    return [between for between in directions(parts_of(batch.present)) if not why_impossible(between, batch, model)]


def refuse_impossible(direction: Direction, batch: Batch, model: Hooked) -> None:
    """Raises where no reader of a direction can read its source: a segment is not there, or the mask is causal."""
    if reason := why_impossible(direction, batch, model):
        raise MechirError(f"'{direction}' cannot happen in '{model.cfg.model_name}': {reason}.")


def why_impossible(direction: Direction, batch: Batch, model: Hooked) -> str:
    """The reason why a direction does not happen in a model; empty where it does."""
    reader, source = direction.reader, direction.source
    generated = Segment.DECODER if model.structure.reads == "decoder" else Segment(0)
    present = (batch.present | generated) & Segment.ALL
    for segment in (reader, source):
        if not segment & present:
            parts = ", ".join(str(part) for part in PARTS if part & present)
            return f"its pairs have no {segment}; the segments there are {parts}"
    if source == Segment.DECODER and Segment.DECODER not in reader:
        return f"only the decoder reads the decoder; cut '{source}<-{reader}' instead"
    if model.structure.causal and not _earlier(source, reader, batch):
        return (
            f"a position reads only itself and those before it, and {reader} stands before {source}; cut "
            f"'{source}<-{reader}' instead, or choose another model"
        )
    return ""


def _earlier(source: Segment, reader: Segment, batch: Batch) -> bool:
    """Whether in any pair a position of `source` is, or stands before, one of `reader`."""
    first, last = batch.at(source).cumsum(1) > 0, batch.at(reader)
    return bool((first & last).any())
