"""Pictures for notebooks, which a terminal shows as text: `mi.show.attention(model, pair, heads="h8.1")`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechir.batches import for_numpy
from mechir.errors import MechirError, refuse_other_than_whole
from mechir.methods.attend_split import AttentionSplit
from mechir.methods.attention import pair_attention
from mechir.methods.edge_scores import EdgeScores
from mechir.methods.tokens import PAIR, SUM_OF, rows_of
from mechir.model_sites import heads_of
from mechir.pair import Pair
from mechir.reranker import Reranker
from mechir.sites import Head
from mechir.views import heads as head_maps
from mechir.views.attend import writers
from mechir.views.attention import grids, strips
from mechir.views.circuits import SHOWN, largest
from mechir.views.page import Drawing
from mechir.views.pictures import Picture
from mechir.views.tokens import coloured

ENGINES = ("mechir", "circuitsvis")


def attention(
    model: Reranker,
    pair: Pair | Sequence[Any],
    heads: Sequence[Head | str] | Head | str,
    engine: str = "mechir",
) -> Drawing:
    """Draws the attention of heads on one pair: `show.attention(model, pair, heads=("h8.1", "h2.9"))`.

    Args:
        model: a `HookedEncoder`.
        pair: a `Pair`, or the texts of query and document.
        heads: one or several.
        engine: "mechir" draws query and document as two strips, to be pointed at; "circuitsvis" whole patterns, special
            tokens included, by CircuitsVis in its form for use without a network (1.3 MB and more).

    Returns:
        A view that a notebook draws and `save(file)` writes as a page; as text, the largest weights of each head.

    Raises:
        MechirError: for several pairs, no head, a site that is no head of this model, an unknown engine.
    """
    if engine not in ENGINES:
        raise MechirError(f"Unknown engine '{engine}': write {' or '.join(ENGINES)}.")
    batch = model.batch(pair)
    if len(batch) != 1:
        raise MechirError(f"mi.show.attention draws one pair, and you gave {len(batch)}: give one of them.")
    listed = [heads] if isinstance(heads, Head | str) else list(heads)
    if not listed:
        raise MechirError("There is no head to draw: write heads=('h8.1', 'h2.9').")
    rows = pair_attention(model, batch.pairs, listed)
    if engine == "mechir":
        return strips(rows)
    sites = heads_of(model, listed)
    names = [f"blocks.{site.layer}.attn.hook_pattern" for site in sites]
    with torch.no_grad():
        _, cache = model.run_with_cache(batch, names_filter=names, head_row=False)
    patterns = np.stack([for_numpy(cache[name][0, site.head]).numpy() for name, site in zip(names, sites, strict=True)])
    tokens = model.tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())
    return grids(tokens, patterns, [str(site) for site in sites], rows)


def heads(frame: pd.DataFrame, value: str = "", *, model: Reranker | None = None) -> Picture:
    """Layers x heads of findings, links or a summary: `show.heads(mi.findings(measure="patching, tfc1"))`.

    Blue is negative, white 0, red positive; under the number its 95 % interval; a ring where it holds. Each measure has
    a map and a scale of its own.

    Args:
        frame: with `site`, and a row for each head and measure; rows of other components are left out.
        value: the column that is shown; by default `estimate`, `value`, `effect` or `change`, whichever is there. Only
            for these is it known which p is theirs: `holds`, else `p_all` or `p_corrected` below .05.
        model: draws all its layers and heads; by default those up to the last that is there.

    Returns:
        A view that a notebook draws, a terminal prints in columns, and `save("heads.pdf")` writes.

    Raises:
        MechirError: for a frame without sites, numbers or heads, or two values of one head by one measure.
    """
    return head_maps.heads(frame, value, (0, 0) if model is None else (model.cfg.n_layers, model.cfg.n_heads))


def attend(split: AttentionSplit, top: int = 8) -> Picture:
    """What wrote the queries by what wrote the keys: `show.attend(mi.attend(model, pairs, "h8.1"))`.

    Colours, intervals and rings as in `heads`; all cells together are the attention score.

    Args:
        split: the parts of an attention score.
        top: how many writers of each side have a row or column of their own; the others are "rest".

    Returns:
        A view that a notebook draws and a terminal prints in columns.

    Raises:
        MechirError: for anything but a split, or top that is no whole number from 1.
    """
    if not isinstance(split, AttentionSplit):
        raise MechirError(f"{type(split).__name__} is no split of an attention score: give mi.attend(...).")
    refuse_other_than_whole(1, top=top)
    shown = split.top(top)
    title = f"attention score of {split.head}, {split.reader}<-{split.source}, {split.of}"
    return writers(shown.frame, shown.q_from, shown.k_from, title=title)


def circuit(edges: Any, size: int = SHOWN) -> Picture:
    """The largest edges as a graph over the layers: `show.circuit(mi.edges(model, contrasts))`.

    The embedding is on the left, the score on the right, heads lie by number, MLPs below them. Width is the size of an
    effect, red raises the score, blue lowers it. It misleads where it is read as a circuit: the largest edges need not
    lead from the embedding to the score.

    Args:
        edges: what `edges` returns, or a frame with `edge` and `estimate`; edges without an effect (NaN) are left out.
        size: how many edges are drawn, those with the largest effects, whatever their sign.

    Returns:
        A view that a notebook draws and a terminal prints, an edge a line.

    Raises:
        MechirError: for a size that is no whole number from 1, effects that are not finite, anything else
            than effects of edges, none, two effects of one edge (roles), and edges with several readers.
    """
    refuse_other_than_whole(1, size=size)
    if isinstance(edges, EdgeScores):
        names = [str(edge) for edge in edges.graph.edges]
        return largest(pd.DataFrame({"edge": names, "estimate": edges.estimate}), size)
    if not isinstance(edges, pd.DataFrame):
        kind = type(edges).__name__
        raise MechirError(f"{kind} holds no effects of whole edges: give mi.edges(...), of roles its .plain.")
    return largest(edges, size)


def tokens(pair: Pair, values: pd.DataFrame | Sequence[float] | np.ndarray, model: Reranker | None = None) -> Drawing:
    """The word pieces of a pair, each coloured by its number: red positive, white 0, blue negative.

    Args:
        pair: a `Pair`.
        values: rows of `token_attribution`, among them those of the pair, or one number for each word piece from CLS
            to the last separator.
        model: a `HookedEncoder`, whose word pieces they are; needed for numbers alone.

    Returns:
        A view that a notebook draws and `save(file)` writes as a page; as text, the strongest word pieces. It says
        what the sum of all numbers is of.

    Raises:
        MechirError: for rows without the pair, numbers without a model, or not one for each word piece.
    """
    if isinstance(values, pd.DataFrame):
        ids = [values[name].astype(str) == getattr(pair, name) for name in PAIR if name in values]
        rows = values[np.logical_and.reduce(ids)] if len(ids) == len(PAIR) else values
        if len(values) and rows.empty:
            raise MechirError(f"There is no row of {pair} in this frame: give token_attribution(model, [pair]).rows.")
        return coloured(rows)
    if model is None:
        raise MechirError("Numbers say nothing of the word pieces that they are of: give model=.")
    encoded = model.encode([pair])
    numbers = np.asarray(values, dtype=float)
    if numbers.shape != (n := int(encoded.lengths[0]),):
        raise MechirError(f"{pair} has {n} word pieces, and you gave {numbers.size} numbers: give one for each.")
    rows = rows_of(model, encoded, [numbers])
    rows.attrs[SUM_OF] = "of the numbers that were given"
    return coloured(rows)
