"""Token attributions: complete, captum's own, in order; and shown safely, in colours that mean what they say."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import IntegratedGradients

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.inference import mean_interval
from mechir.methods.tokens import by_role, token_attribution
from mechir.methods.walk import Way
from mechir.segments import Segment
from mechir.views.tokens import coloured
from tests.models import PAIRS, Checkpoints

FEW = [mi.Pair(pair.query, pair.document, f"q{k}", f"d{k}", k % 2) for k, pair in enumerate(PAIRS[:2])]
ONCE = Way("pad_both", steps=3, tol=np.inf)
SPECIAL = ["cls", "sep1", "sep2"]


@pytest.fixture(scope="module")
def exact(checkpoints: Checkpoints) -> HookedEncoder:
    return HookedEncoder.from_pretrained(checkpoints.path("bert"), dtype="float64")


def by_pair(rows: pd.DataFrame) -> pd.Series:
    return rows.groupby(["query_id", "doc_id"], sort=False)["attribution"].sum()


@pytest.mark.parametrize("target", ["score", "h1.2@query<-doc", "n2.17@cls"])
def test_the_tokens_of_a_pair_add_up_to_the_change(exact: HookedEncoder, target: str) -> None:
    found = token_attribution(exact, FEW, target=target, way=Way("pad_both", max_steps=4096))
    checks = found.checks
    assert checks["converged"].all() and (checks["delta"].abs() > 1e-3).all()
    off = np.abs(by_pair(found.rows).to_numpy() - checks["delta"].to_numpy())
    assert (off <= checks["error"] + 1e-12).all()
    assert (off <= 1e-2 * checks["delta"].abs().clip(lower=0.1 * checks["value"].std())).all()
    sizes = found.rows["attribution"].abs().groupby(found.rows["segment"]).max()
    assert (sizes[SPECIAL] == 0).all() and (sizes[["query", "doc"]] > 1e-3).all()


@pytest.mark.parametrize("family", ["electra", "roberta"])
def test_other_families_are_complete(checkpoints: Checkpoints, family: str) -> None:
    """Embeddings of another size than the stream; two separators and positions counted from the padding."""
    model = HookedEncoder.from_pretrained(checkpoints.path(family), dtype="float64")
    found = token_attribution(model, FEW, way=Way("pad_both", steps=128, tol=np.inf))
    np.testing.assert_allclose(by_pair(found.rows), found.checks["delta"], rtol=1e-2)
    assert (found.rows["segment"] == "sep1").sum() == len(FEW) * (2 if family == "roberta" else 1)


def test_the_error_is_that_of_the_tokens_where_it_is_the_largest(exact: HookedEncoder) -> None:
    """Of these two, the sums over the residual cuts are closer than the tokens' own."""
    coarse = token_attribution(exact, PAIRS[6:], way=Way("pad_both", steps=2, max_steps=2))
    off = np.abs(by_pair(coarse.rows).to_numpy() - coarse.checks["delta"].to_numpy())
    np.testing.assert_allclose(coarse.checks["error"], off)
    assert (off > 0.01).all() and not coarse.checks["converged"].any()


@pytest.mark.parametrize(
    ("rule", "method", "nodes", "scale"),
    # captum's trapezoid gives n nodes a weight of (n - 1) / n in all.
    [("left", "riemann_left", 8, 1.0), ("trapezoid", "riemann_trapezoid", 9, 9 / 8)],
)
def test_it_is_captum_s(exact: HookedEncoder, rule: str, method: str, nodes: int, scale: float) -> None:
    found = token_attribution(exact, FEW, way=Way("pad_both", rule, steps=8, tol=np.inf)).rows
    batch = exact.batch(FEW)
    start = batch.input_ids.masked_fill(batch.at(Segment.QUERY) | batch.at(Segment.DOC), exact.tokenizer.pad_token_id)

    def forward(embedded: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        return exact.hf(inputs_embeds=embedded, attention_mask=mask, token_type_ids=types).logits[:, 0]

    theirs = IntegratedGradients(forward).attribute(
        exact.W_E[batch.input_ids].detach().clone(),
        baselines=exact.W_E[start].detach().clone(),
        additional_forward_args=(batch.attention_mask.long(), batch.token_type_ids),
        n_steps=nodes,
        method=method,
    )
    expected = scale * theirs.detach().sum(-1)[batch.attention_mask].numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found["attribution"], expected, atol=1e-9)


@pytest.mark.parametrize(("baseline", "still"), [("pad_query", "doc"), ("pad_document", "query")])
def test_unchanged_tokens_get_exactly_nothing(tiny: HookedEncoder, baseline: str, still: str) -> None:
    rows = token_attribution(tiny, FEW, way=Way(baseline, steps=2, tol=np.inf)).rows
    unmoved = rows["segment"].isin([still, *SPECIAL])
    assert (rows.loc[unmoved, "attribution"] == 0).all()
    assert (rows.loc[~unmoved, "attribution"] != 0).all()


def test_a_text_to_start_from_leaves_equal_tokens_without(tiny: HookedEncoder) -> None:
    pair = mi.Pair("what is wifi", "wifi is a radio signal", "q0", "d0", 1)
    other = mi.Pair("what is wifi", "bread is a radio signal", "q0", "d1", 0)
    found = token_attribution(tiny, [pair], start=[other], way=Way(tol=1.0))
    assert found.rows.loc[found.rows["attribution"] != 0, "position"].tolist() == [5]
    assert found.checks["delta"][0] == pytest.approx(float(tiny.score([pair]) - tiny.score([other])), abs=1e-5)


def test_pairs_stand_in_order_without_padding(tiny: HookedEncoder) -> None:
    pairs = PAIRS[:4]
    together = token_attribution(tiny, pairs, way=ONCE, max_tokens=90)
    rows, encoded = together.rows, tiny.encode(pairs)
    assert len(set(encoded.lengths.tolist())) == len(pairs)
    assert list(rows.columns) == ["query_id", "doc_id", "grade", "position", "token", "segment", "attribution"]
    first = 0
    for pair, ids in zip(pairs, encoded.ids, strict=True):
        own = rows.iloc[first : first + len(ids)]
        assert own["position"].tolist() == list(range(len(ids)))
        assert (own[["query_id", "doc_id", "grade"]] == [pair.query_id, pair.doc_id, pair.grade]).all(axis=None)
        assert own["token"].tolist() == tiny.tokenizer.convert_ids_to_tokens(ids.tolist())
        words = own.groupby("segment", sort=False)["token"].agg(list)
        assert list(words.index) == ["cls", "query", "sep1", "doc", "sep2"]
        assert words["query"] == pair.query.split()
        alone = token_attribution(tiny, [pair], way=ONCE).rows
        np.testing.assert_allclose(own["attribution"], alone["attribution"], atol=2e-5)
        first += len(ids)
    assert first == len(rows)
    assert together.checks["doc_id"].tolist() == [pair.doc_id for pair in pairs]
    assert "##s" in set(rows["token"])


def test_by_default_both_texts_change(tiny: HookedEncoder) -> None:
    rows = token_attribution(tiny, [mi.Pair("wifi", "bread", "q", "d")]).rows
    assert rows["attribution"].ne(0).tolist() == [False, True, False, True, False]
    assert rows["grade"].isna().all()


def test_roles_are_sums_averaged_over_queries() -> None:
    values = {("a", "1"): [0.0, 1.0, 2.0], ("a", "2"): [0.0, 3.0, 0.0], ("b", "1"): [0.0, 8.0, -2.0]}
    rows = pd.concat([frame(sums, query, doc) for (query, doc), sums in values.items()])
    found = by_role(rows)
    assert found["segment"].tolist() == ["cls", "query", "sep1", "doc", "sep2"]
    told = found.set_index("segment")
    assert told["attribution"].tolist() == [0, 5, 0, -0.5, 0]  # query: (1 + 3) / 2 and 8; doc: (2 + 0) / 2 and -2
    assert told["share"].tolist() == pytest.approx([0, 5 / 4.5, 0, -0.5 / 4.5, 0])
    assert (told["pairs"] == 3).all() and (told["queries"] == 2).all()
    assert tuple(told.loc["query", ["low", "high"]]) == mean_interval([2.0, 8.0])
    pd.testing.assert_frame_equal(by_role(rows.sample(frac=1, random_state=0)), found)
    fallen = by_role(frame([0.0, -2.0, -2.0]))["share"].to_numpy()
    assert fallen.tolist() == [0, 0.5, 0, 0.5, 0] and not np.signbit(fallen).any()
    alone = by_role(frame([0.0, 2.0, -2.0]))
    assert alone["attribution"].tolist() == [0, 2, 0, -2, 0]
    assert alone[["low", "high", "share"]].isna().all(axis=None)


def frame(values: list[float], query: str = "q", doc: str = "d") -> pd.DataFrame:
    """One pair: the sums of CLS, query and document, the last in two pieces; separators get nothing."""
    cls, asked, told = values
    return pd.DataFrame(
        {
            "query_id": query,
            "doc_id": doc,
            "grade": 1,
            "position": range(6),
            "token": ["[CLS]", "wifi", "[SEP]", "grow", "##ing", "[SEP]"],
            "segment": ["cls", "query", "sep1", "doc", "doc", "sep2"],
            "attribution": [cls, asked, 0.0, told - 1, 1.0, 0.0],
        }
    )


def test_roles_of_real_pairs_add_up(tiny: HookedEncoder) -> None:
    pairs = [mi.Pair(p.query, p.document, p.query_id, p.doc_id, 1) for p in PAIRS]
    rows = token_attribution(tiny, pairs, way=ONCE).rows
    found = by_role(rows)
    per_query = by_pair(rows).groupby("query_id").mean()
    assert found["attribution"].sum() == pytest.approx(per_query.mean())
    assert found["share"].sum() == pytest.approx(1.0)
    assert (found["low"] <= found["attribution"]).all() and (found["attribution"] <= found["high"]).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda model: token_attribution(model, FEW, target="margin", against=[0.0]),
            "against= has 1 scores for 2 pairs: give one for each.",
        ),
        (
            lambda model: token_attribution(model, FEW, against=[0.0, 1.0]),
            "The target 'margin' takes against=, a score for each pair, and no other target does.",
        ),
        (
            lambda model: token_attribution(model, FEW, target="h1.9@query<-doc"),
            "Head 9 is out of range: layer 1 has heads 0-3.",
        ),
        (
            lambda model: token_attribution(model, FEW, target="h1.2"),
            "The weights of 'h1.2' always add up to 1: write 'h1.2@query<-doc'.",
        ),
        (
            lambda model: token_attribution(model, FEW[:1], start=FEW),
            "start= has 2 texts for 1 pairs: give one for each.",
        ),
        (
            lambda model: by_role(pd.concat([frame([0.0, 1.0, 1.0])] * 2)),
            "Two pairs have the ids q/d: give every pair ids of its own.",
        ),
        (
            lambda model: coloured(frame([0.0, 1.0, 1.0]).drop(columns=["token", "segment"])),
            "The frame has no column token, segment: give the rows of token_attribution(model, pairs).",
        ),
        (
            lambda model: coloured(frame([0.0, 1.0, 1.0]).iloc[:0]),
            "There is no token to colour: give the rows of token_attribution(model, pairs).",
        ),
        (
            lambda model: coloured(frame([0.0, np.nan, 1.0])),
            "The attribution of position 1 of pair q/d is nan: leave out pairs whose attributions are not finite, "
            "or load the model with dtype='float32'.",
        ),
        (
            lambda model: coloured(frame([0.0, 1.0, -np.inf])),
            "The attribution of position 3 of pair q/d is -inf: leave out pairs whose attributions are not finite, "
            "or load the model with dtype='float32'.",
        ),
        (
            lambda model: coloured(frame([0.0, 1.0, 1.0]).assign(segment="pad")),
            "Unknown segment 'pad': write one of system, instruction, cls, query, sep1, doc, sep2, suffix, decoder.",
        ),
        (
            lambda model: coloured(pd.concat([frame([0.0, 1.0, 1.0])] * 2)),
            "There are two attributions of position 0 of pair q/d: give every pair ids of its own.",
        ),
    ],
)
def test_impossible_requests_are_refused(tiny: HookedEncoder, call: Any, said: str) -> None:
    with pytest.raises(MechirError, match=f"^{re.escape(said)}$"):
        call(tiny)
