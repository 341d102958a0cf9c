"""The attention of heads between query and document, piece by piece, and the experiment that stores it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods.attention import pair_attention
from tests.models import TOY, TOY_MODEL


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


def test_the_weights_are_those_of_the_pattern(toy: HookedEncoder) -> None:
    pairs = mi.collection(TOY).pairs(per_grade=1)[:3]
    rows = pair_attention(toy, pairs, ["h1.0", "h0.1"])
    assert rows["site"].tolist() == ["h1.0", "h0.1"] * 3
    for k, pair in enumerate(pairs):
        _, cache = toy.run_with_cache(batch := toy.batch(pair), names_filter="blocks.1.attn.hook_pattern")
        query, doc = (batch.at(side)[0] for side in (mi.Segment.QUERY, mi.Segment.DOC))
        row, pattern = rows.iloc[2 * k], cache["blocks.1.attn.hook_pattern"][0, 0]
        assert (row["query_id"], row["doc_id"], row["grade"]) == (pair.query_id, pair.doc_id, pair.grade)
        assert row["score"] == pytest.approx(float(toy.score([pair])[0]), abs=1e-5)
        assert row["query"] == toy.tokenizer.convert_ids_to_tokens(batch.input_ids[0][query].tolist())
        for name, readers, sources in (("query_doc", query, doc), ("doc_query", doc, query)):
            np.testing.assert_allclose(row[name], pattern[readers][:, sources].flatten(), atol=5.1e-5)
        assert len(row["doc"]) * len(row["query"]) == len(row["query_doc"])
    with pytest.raises(MechirError, match=r"'mlp0' has no attention: write heads, such as h8.1"):
        pair_attention(toy, pairs, ["mlp0"])


def test_examples_are_the_best_and_the_worst_document_of_queries_spread_over_the_pool(
    toy: HookedEncoder, tmp_path: Path
) -> None:
    pool = mi.Pool(easy_negatives=2)
    stored = mi.run("joint/examples", toy, mi.collection(TOY), pool=pool, registry=tmp_path, heads="h1.0", queries=2)
    pairs = pool.pairs(mi.collection(TOY))
    queries = list(dict.fromkeys(pair.query_id for pair in pairs))
    found = stored.summary
    assert found["query_id"].tolist() == [queries[0]] * 2 + [queries[-1]] * 2
    for query, part in found.groupby("query_id"):
        grades = [pair.grade for pair in pairs if pair.query_id == query]
        assert part["grade"].tolist() == [max(grades), min(grades)]
    row, told = stored.rows.iloc[0], found.iloc[0]
    weights = np.reshape(row["query_doc"], (len(row["query"]), len(row["doc"])))
    assert told["query_doc"] == pytest.approx(weights.max(1).mean()) and 0 < told["doc_query"] < 1
    assert (stored.path / "chart.png").is_file()
