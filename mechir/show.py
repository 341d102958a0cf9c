"""Pictures for notebooks, which a terminal shows as text: `mi.show.attention(model, pair, heads="h8.1")`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mechir.errors import MechirError
from mechir.methods.attention import pair_attention
from mechir.methods.patching import heads_of
from mechir.pairs import Pair
from mechir.sites import Head
from mechir.views.attention import Attention, grids, strips

ENGINES = ("mechir", "circuitsvis")


def attention(
    model: Any,
    pair: Pair | Sequence[Any],
    heads: Sequence[Head | str] | Head | str,
    engine: str = "mechir",
) -> Attention:
    """What heads look at on one pair: `show.attention(model, pair, heads=("h8.1", "h2.9"))`.

    Args:
        model: a `HookedEncoder`.
        pair: a `Pair`, or the texts of query and document.
        heads: one or several.
        engine: "mechir" draws query and document as two strips, to be pointed at; "circuitsvis" whole patterns, special
            tokens included, by CircuitsVis in its form for use without a network (1.3 MB and more).

    Returns:
        What a notebook draws and `save(file)` writes as a page; as text, of each head the largest weights.

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
        _, cache = model.run_with_cache(batch, names_filter=names, last_rows="all")
    patterns = np.stack([cache[name][0, site.head].cpu().numpy() for name, site in zip(names, sites, strict=True)])
    tokens = model.tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())
    return grids(tokens, patterns, [str(site) for site in sites], rows)
