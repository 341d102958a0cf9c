"""The aligned directions out of a head's queries: what it costs, and that only the planted matching head pays in score."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import mechir as mi
from mechir import planted
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.projection import project_heads
from mechir.methods.spectra import Seen, aligned, qk_spectra
from mechir.segments import Segment
from tests.models import PAIRS

LOOK_ALIKE = {"h0.0", "h1.2", "h2.3"}
"""Planted: head 1.2, and the two traps that have its queries and keys."""


@pytest.mark.parametrize("c", [100.0, 3.0, 1.0])
def test_taking_the_directions_out_clears_the_traps(c: float) -> None:
    at_c = planted.bm25(c=c, seed=3)
    heads = qk_spectra(at_c, draws=1).dropna(subset="z")["site"].tolist()
    assert len(heads) == 15 and "h3.1" not in heads
    rows = project_heads(at_c, planted.graded(at_c, 4, 1), heads, k=8, draws=0)
    size = rows.assign(size=rows["score_change"].abs()).groupby("site")["size"].mean()
    lost = rows.groupby("site")["attention_change"].mean()
    assert size["h1.2"] > {100.0: 1000, 3.0: 10, 1.0: 5}[c] * size.drop("h1.2").max()  # AUROC 1
    assert (lost[list(LOOK_ALIKE)] < -0.02).all()


def test_the_basis_does_not_matter() -> None:
    turned, plain = planted.bm25(c=3.0, seed=1), planted.bm25(c=3.0, seed=1, rotate=False)
    chosen = planted.graded(plain, 3, 1)
    # The words of a matching head have equal singular values: only all 28 of them together are a space of their own.
    for heads, k in ((["h1.2", "h2.3"], 28), (["h0.1", "h1.3", "h3.2"], 3)):
        rows = [project_heads(model, chosen, heads, k=k, draws=0) for model in (turned, plain)]
        assert rows[0]["attention_change"].abs().max() > 0.1
        pd.testing.assert_frame_equal(*rows, atol=2e-4)


def test_the_change_of_attention_is_that_of_a_run(tiny: HookedEncoder) -> None:
    pairs = [mi.Pair(p.query, p.document, p.query_id, p.doc_id, 1) for p in PAIRS]
    rows = project_heads(tiny, pairs, ["h1.2", "h2.0"], k=3, draws=2)
    assert rows["site"].unique().tolist() == ["h1.2", "h2.0"] and len(rows) == 2 * 3 * len(pairs)
    assert rows["directions"].unique().tolist() == ["aligned", "random 0", "random 1"]
    base = tiny.score(pairs).numpy()
    for site in ("h1.2", "h2.0"):
        head = mi.parse_site(f"{site}.q")
        for name, space in (
            ("aligned", aligned(tiny, site, 3)),
            ("random 1", Seen.by(tiny, site).random(3, seed=1)),
        ):
            part = rows[(rows["site"] == site) & (rows["directions"] == name)]
            assert part["doc_id"].tolist() == [pair.doc_id for pair in pairs]
            do = mi.Project(head, space)
            np.testing.assert_allclose(part["score_base"], base, atol=1e-5)
            np.testing.assert_allclose(part["score_change"], tiny.score(pairs, do=do).numpy() - base, atol=1e-5)
            for row, pair in zip(part.itertuples(), pairs, strict=True):
                largest = [mean_max(tiny, pair, head, hooks) for hooks in ([], do.hooks(tiny.batch(pair)))]
                assert row.attention_base == pytest.approx(largest[0], abs=1e-5)
                assert row.attention_change == pytest.approx(largest[1] - largest[0], abs=1e-5)


def mean_max(model: HookedEncoder, pair: mi.Pair, head: mi.Head, hooks: list) -> float:
    """The largest weight on a document token, mean over the query's tokens, of a run with these hooks."""
    batch, name = model.batch(pair), f"blocks.{head.layer}.attn.hook_pattern"
    with torch.no_grad(), model.hooks(hooks):
        _, cache = model.run_with_cache(batch, names_filter=name)
    pattern = cache[name][0, head.head][batch.at(Segment.QUERY)[0]][:, batch.at(Segment.DOC)[0]]
    return float(pattern.amax(-1).mean())


@pytest.mark.parametrize(
    ("head", "k", "message"),
    [
        ("h1.2", 9, "k=9 is out of range: a head has 1-8 directions."),
        ("h1.4", 2, "Head 4 is out of range: layer 1 has heads 0-3."),
        ("resid1", 2, "'resid1' has no attention: write heads, such as h8.1."),
    ],
)
def test_unknown_heads_and_too_many_directions_are_refused(
    tiny: HookedEncoder, head: str, k: int, message: str
) -> None:
    with pytest.raises(MechirError) as caught:
        project_heads(tiny, PAIRS, [head], k=k, draws=1)
    assert str(caught.value) == message
