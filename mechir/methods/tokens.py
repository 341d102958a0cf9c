"""Token attribution: how much of a target's change comes in at each word piece (integrated gradients).

The word embeddings go from a baseline to the text, see `walk`. What comes in at a position is the integral of the
gradient there times the change of its embedding; over all positions that adds up to F(text) - F(baseline).

Source: Sundararajan et al. 2017 (arXiv:1703.01365).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mechir.encoding import Encoded
from mechir.errors import MechirError
from mechir.inference import mean_interval
from mechir.inputs import as_pairs
from mechir.methods.conductance import checked
from mechir.methods.groups import pair_ids
from mechir.methods.targets import Target
from mechir.methods.walk import Way, walk
from mechir.reranker import Reranker, needs
from mechir.segments import Segment, parts_of
from mechir.subspaces import EMBED

PAIR = ["query_id", "doc_id"]
SUM_OF = "sum_of"
"""The attribute of a frame of attributions that says in words what their sum is of."""


class TokenAttribution(NamedTuple):
    """The result of `token_attribution`.

    `rows`: one row per pair and position, pairs in input order, without padding: `query_id`, `doc_id`, `grade`;
    `position`, from 0; `token`, the word piece as the tokenizer prints it ("##ing"); `segment`, one of "cls", "query",
    "sep1", "doc", "sep2"; `attribution`, in units of F, positive where the token raises F above the baseline; its sum,
    which `rows.attrs["sum_of"]` says in words, is F(text) - F(baseline).
    `checks`: one row per pair, as of `conductance`; `error` is the largest |sum over a cut - delta|, and the sum over
    the pair's tokens is one of the cuts.
    """

    rows: pd.DataFrame
    checks: pd.DataFrame


def token_attribution(
    model: Reranker,
    pairs: Any,
    *,
    way: Way | None = None,
    target: str = "score",
    against: Sequence[float] | None = None,
    start: Any = None,
    max_tokens: int | None = None,
    max_length: int | None = None,
    progress: bool | None = None,
) -> TokenAttribution:
    """Splits F(text) - F(baseline) over the word pieces of each pair; nothing is averaged.

    Arguments are those of `conductance`. `way` is by default `Way("pad_both")`, query and document from [PAD] to the
    text; "pad_query" changes the query alone and gives every document token exactly 0, "pad_document" the reverse. With
    a `start`, a position where both texts hold the same word piece gets exactly 0.

    When it misleads: an attribution says "rather than the baseline". [PAD] is a token that the model has seen only
    masked, and F(baseline) is the score of a text that does not exist: the embedded model gives a pair of nothing but
    [PAD] about +4, as much as a good match, so that `delta` in `checks` is negative or near 0 for most pairs, and what
    sets any real text apart from [PAD] is shared out among its tokens as well. Look at `delta` first; `start` asks a
    narrower question. Special tokens stay and get 0, however much the model reads them. A match is credited to both
    sides, in shares that depend on the line. And an attribution is no effect of leaving the token out: for that,
    intervene.

    Raises:
        MechirError: for unknown names, "margin" without `against`, a `start` of another length, a pair that equals its
            baseline.
    """
    needs(model, "token_attribution")
    pairs = as_pairs(pairs)
    goal, readers = _OverTokens(target, against), {EMBED: lambda flow, batch: flow.sum(-1)}
    encoded = model.encode(pairs, max_length)
    values = [np.empty(0)] * len(pairs)
    checks: list[pd.DataFrame] = []
    options: dict[str, Any] = {"max_tokens": max_tokens, "max_length": max_length, "progress": progress}
    for done in walk(model, pairs, readers, goal, way=way or Way("pad_both"), start=start, **options):
        for k, flow in zip(done.index, done.flows[EMBED].double().numpy(), strict=True):
            values[k] = flow[: len(encoded.ids[k])]
        checks.append(checked(pairs, done))
    rows = rows_of(model, encoded, values)
    baseline = "its start" if start is not None else f"its baseline, {(way or Way('pad_both')).baseline}"
    rows.attrs[SUM_OF] = f"the {target} of the text less that of {baseline}{', logits' if target == 'score' else ''}"
    return TokenAttribution(rows, pd.concat(checks).sort_index())


class _OverTokens(Target):
    """A target with one cut more, the embeddings: steps are doubled until the tokens' own sum agrees as well."""

    def cuts(self, model: Reranker) -> list[str]:
        return [EMBED, *super().cuts(model)]


def rows_of(model: Reranker, encoded: Encoded, values: Sequence[np.ndarray]) -> pd.DataFrame:
    """The rows of `TokenAttribution`, from one number for each position of each pair."""
    lengths, ids = encoded.lengths, pair_ids(encoded.pairs)
    return (
        ids.loc[ids.index.repeat(lengths)]
        .reset_index(drop=True)
        .assign(
            position=np.concatenate([np.arange(length) for length in lengths]),
            token=model.tokenizer.convert_ids_to_tokens(np.concatenate(encoded.ids).tolist()),
            segment=[str(Segment(value)) for value in np.concatenate(encoded.segments).tolist()],
            attribution=np.concatenate(values),
        )
    )


def by_role(rows: pd.DataFrame) -> pd.DataFrame:
    """The attribution of each segment: the sums over its tokens, averaged over pairs.

    `rows` are all those of `token_attribution`, in any order.

    Returns:
        One row per segment, in reading order: `segment`; `attribution`, in units of F: the sum over the segment's
        tokens, averaged over the pairs of a query, then over queries, which so count alike; `low` and `high`, its 95 %
        bootstrap interval over queries (NaN for one query); `share`, that mean over the mean of the sums over all
        tokens, which is F(text) - F(baseline): a ratio of means, adding up to 1, NaN where the mean is 0; `pairs` and
        `queries`, how many there are.

    When it misleads: a sum hides tokens that cancel each other, and longer segments have more tokens to add up. Where
    segments pull in opposite directions shares are below 0 or above 1, and far out where the changes of several pairs
    all but cancel.

    Raises:
        MechirError: for two pairs of the same ids, whose tokens cannot be told apart.
    """
    twice = rows.loc[rows.duplicated([*PAIR, "position"]), PAIR]
    if len(twice):
        raise MechirError(f"Two pairs have the ids {'/'.join(twice.iloc[0])}: give every pair ids of its own.")
    sums = rows.groupby([*PAIR, "segment"])["attribution"].sum().unstack(fill_value=0.0)
    parts = parts_of(Segment.parse("|".join(sums.columns)))
    queries = sums.reindex(columns=list(map(str, parts)), fill_value=0.0).groupby("query_id").mean()
    total = queries.mean().sum()
    table = queries.mean().rename("attribution").rename_axis("segment").reset_index()
    table["low"], table["high"] = zip(*(mean_interval(queries[segment].to_numpy()) for segment in queries), strict=True)
    table["share"] = table["attribution"] / total + 0.0 if total else np.nan  # no segment has a share of -0
    return table.assign(pairs=len(sums), queries=len(queries))
