"""IDF: its counts, the singular vector that carries it, and an edit that tells it from a direction that only looks it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.methods import dose, lexical
from tests.models import PAIRS, TOY


def known_idf(model: mi.planted.PlantedEncoder) -> dict[int, float]:
    ids = lexical.pieces_of(model, list(model.design.idf))
    return {pieces[0]: value for pieces, value in zip(ids, model.design.idf.values(), strict=True)}


def test_idf_counts_documents_not_occurrences() -> None:
    idf = lexical.piece_idf([[1, 1, 2], [1], [3]])
    assert idf == {1: math.log(3 / 2), 2: math.log(3), 3: math.log(3)}
    with pytest.raises(MechirError, match=r"There are no documents to count word pieces in: the collection is empty."):
        lexical.piece_idf([])


def test_a_query_s_pieces_are_there_once(tiny: HookedEncoder) -> None:
    rows = lexical.query_pieces(tiny, [*PAIRS, mi.Pair("the the goldfish", "x", "q9", "d9")])
    assert rows["query_id"].unique().tolist() == [*dict.fromkeys(pair.query_id for pair in PAIRS), "q9"]
    assert rows.loc[rows["query_id"] == "q9", "token"].tolist() == ["the", "goldfish"]
    assert rows["piece"].tolist() == tiny.tokenizer.convert_tokens_to_ids(rows["token"].tolist())


def test_a_collection_is_counted_whole_or_at_even_distances(tiny: HookedEncoder) -> None:
    toy = mi.collection(TOY)
    counts = lexical.collection_counts(tiny, toy)
    pieces = lexical.pieces_of(tiny, list(toy.docs.values()))
    assert counts.documents == len(toy.docs) and counts.length == pytest.approx(np.mean([len(one) for one in pieces]))
    assert counts.idf == lexical.piece_idf(pieces)
    some = lexical.collection_counts(tiny, toy, limit=3)
    assert some.documents == 3
    assert some.idf == lexical.piece_idf([pieces[0], pieces[round((len(pieces) - 1) / 2)], pieces[-1]])
    assert not {tiny.tokenizer.cls_token_id, tiny.tokenizer.sep_token_id} & set(counts.idf)


def test_a_table_of_idf(tiny: HookedEncoder, tmp_path: Path) -> None:
    file = tmp_path / "idf.tsv"
    file.write_text("bread\t2.5\ngoldfish\t1\nrising\t9\n", encoding="utf-8")
    pieces = [lexical.pieces_of(tiny, [word])[0] for word in ("bread", "goldfish", "rising")]
    assert len(pieces[2]) == 1 or len(pieces[2]) == 2
    found = lexical.read_idf(file, tiny)
    assert found[pieces[0][0]] == 2.5 and found[pieces[1][0]] == 1
    assert (pieces[2][0] in found) == (len(pieces[2]) == 1)  # a word of several pieces says nothing of each
    file.write_text("bread 2.5\n", encoding="utf-8")
    with pytest.raises(MechirError, match=r"Line 1 of '.*idf.tsv' is not word<TAB>idf: 'bread 2.5'."):
        lexical.read_idf(file, tiny)
    with pytest.raises(MechirError, match=r"There is no IDF table 'nowhere.tsv': give a file of lines word<TAB>idf."):
        lexical.read_idf("nowhere.tsv", tiny)


def test_the_svd_of_the_embeddings_rebuilds_them(tiny: HookedEncoder) -> None:
    u, sigma, vt = lexical.embedding_svd(tiny, 1000)
    assert np.allclose(u * sigma @ vt, tiny.W_E.numpy(), atol=1e-6)
    assert (u.sum(0) >= 0).all()


def test_correlations_are_scipys(tiny: HookedEncoder) -> None:
    generator = np.random.default_rng(0)
    idf = {piece: float(value) for piece, value in enumerate(generator.uniform(0, 3, 30))} | {30: 0.0}
    found = lexical.idf_correlations(tiny, idf, vectors=3, draws=50).set_index("vector")
    u, _, _ = lexical.embedding_svd(tiny, 3)
    values = np.array([idf[piece] for piece in range(30)])
    assert found.loc["1", "pearson_idf"] == pytest.approx(stats.pearsonr(u[:30, 1], values).statistic)
    assert found.loc["2", "spearman_log_idf"] == pytest.approx(stats.spearmanr(u[:30, 2], np.log(values)).statistic)
    assert (found["n"] == 30).all()  # a piece in every document has an IDF of 0 and no logarithm
    norms = tiny.W_E.norm(dim=1).numpy()[:30]
    assert found.loc["norm", "pearson_idf"] == pytest.approx(stats.pearsonr(norms, values).statistic, abs=1e-6)
    assert (found["pearson_idf_low"] < found["pearson_idf"]).all()
    assert found["pearson_idf_p_corrected"].between(1 / 51, 1).all() and found["pearson_idf_p_corrected"].max() > 0.05
    with pytest.raises(MechirError, match=r"3 word pieces have an IDF above 0: correlations need 10 or more."):
        lexical.idf_correlations(tiny, {1: 1.0, 2: 2.0, 3: 3.0})


def test_the_permutation_test_is_honest(tiny: HookedEncoder) -> None:
    rng = np.random.default_rng(1)
    smallest = []
    for _ in range(60):
        idf = {piece: float(value) for piece, value in enumerate(rng.uniform(0.1, 3, 40))}
        smallest.append(lexical.idf_correlations(tiny, idf, vectors=10, draws=99)["pearson_idf_p_corrected"].min())
    assert 0 < np.mean(np.array(smallest) <= 0.2) < 0.4  # the family's 20 % test, not each vector's


def test_log_idf_is_found_in_a_planted_model() -> None:
    model = mi.planted.bm25(decoy=None, idf_scale=10.0)
    found = lexical.idf_correlations(model, known_idf(model), vectors=5)
    best = found.loc[found["pearson_log_idf"].abs().idxmax()]
    assert abs(best["pearson_log_idf"]) >= 0.99 and best["pearson_log_idf_p_corrected"] < 0.01 and best["vector"] == "0"


def kendall(model: HookedEncoder, pairs: list[mi.Pair], edit: object) -> float:
    """Mean over queries of Kendall's tau between intact and edited scores."""
    frame = pd.DataFrame(
        {"q": [pair.query_id for pair in pairs], "a": model.score(pairs), "b": model.score(pairs, edit)}
    )
    return float(np.mean([stats.kendalltau(part["a"], part["b"]).statistic for _, part in frame.groupby("q")]))


def test_correlation_cannot_tell_the_decoy_and_the_edit_can() -> None:
    model = mi.planted.bm25(idf_scale=10.0)
    pairs = [base for base, _ in mi.planted.pairs(model, n=100)]
    idf = known_idf(model)
    ids, target = list(idf), np.log(list(idf.values()))
    weights = model.W_E.double().numpy()[ids]
    directions = {name: mi.Subspace.span(model.design.direction(name), name) for name in ("log_idf", "decoy")}
    r = {name: np.corrcoef(weights @ of.read[0].numpy(), target)[0, 1] for name, of in directions.items()}
    assert min(r.values()) > 0.9
    reversed_ = {name: kendall(model, pairs, mi.EditEmbedding(-1, of)) for name, of in directions.items()}
    assert reversed_["log_idf"] <= 0.45 and reversed_["decoy"] >= 0.99


def test_doses_are_the_edits_of_the_paper(tiny: HookedEncoder) -> None:
    direction = lexical.singular_direction(tiny, 0, -1)
    _, _, vt = lexical.embedding_svd(tiny, 1)
    assert torch.allclose(direction.read[0], torch.from_numpy(-vt[0]), atol=1e-9)
    made = dose.doses(tiny, direction, [3.0], draws=2)
    assert list(made) == [
        ("direction", 3.0), ("row", 3.0), ("direction", -3.0), ("row", -3.0), ("random 0", 3.0), ("random 1", 3.0),
    ]  # fmt: skip
    assert made["direction", 3.0] == mi.EditEmbedding(3, direction, absolute=True)
    assert made["row", -3.0] == mi.EditEmbedding(-3)
    assert made["random 0", 3.0].direction != made["random 1", 3.0].direction


def test_a_step_is_as_far_as_words_differ(tiny: HookedEncoder) -> None:
    direction = lexical.singular_direction(tiny, 0)
    made = dose.shifts(tiny, direction, draws=2)
    assert list(made) == [(along, sign) for along in ("shift", "shift random 0", "shift random 1") for sign in (1, -1)]
    words = tiny.W_E.detach().double()[4:]  # after [PAD], [UNK], [CLS], [SEP]
    for (_, sign), edit in made.items():
        assert edit.factor == 1 and edit.direction is not None
        assert edit.shift == pytest.approx(sign * float((words @ edit.direction.read[0]).std()), rel=1e-9)
    for seed in range(2):
        random = made[f"shift random {seed}", 1.0].direction
        assert random is not None and float(random.read[0] @ direction.read[0]) == pytest.approx(0, abs=1e-9)
        held = torch.linalg.lstsq(words.T, random.read[0][:, None]).solution[:, 0]
        assert torch.allclose(held @ words, random.read[0], atol=1e-9)  # a sum of words


def test_dose_response_equals_single_edits(tiny: HookedEncoder) -> None:
    direction = lexical.singular_direction(tiny)
    made = dose.doses(tiny, direction, [4.0], draws=1)
    rows = dose.dose_response(tiny, PAIRS[:4], made, ["h1.2", "h2.0"])
    assert len(rows) == len(made) * 4
    for (along, factor), edit in made.items():
        for pair in PAIRS[:2]:
            row = rows[(rows["along"] == along) & (rows["factor"] == factor) & (rows["doc_id"] == pair.doc_id)].iloc[0]
            pieces = lexical.pieces_of(tiny, [row["term"]])[0]
            chosen = mi.EditEmbedding(edit.factor, edit.direction, pieces, edit.absolute)
            scores = [float(tiny.score([pair], do)) for do in ((), chosen)]
            assert row["score_base"] == pytest.approx(scores[0], abs=1e-5)
            assert row["score_change"] == pytest.approx(scores[1] - scores[0], abs=1e-5)
            looked = [attention(tiny, pair, do, pieces) for do in ((), chosen)]
            assert row["attention_change"] == pytest.approx(looked[1] - looked[0], abs=1e-5)
    assert set(rows["term"]) <= {word for pair in PAIRS for word in pair.query.split()}


def attention(model: HookedEncoder, pair: mi.Pair, do: object, pieces: list[int]) -> float:
    """Mean over two heads of the mean weight from CLS to the query's positions of the pieces."""
    batch = model.batch(pair)
    patterns = {}

    def keep(x: torch.Tensor, hook: object) -> None:
        patterns[hook.name] = x  # type: ignore[attr-defined]

    names = [f"blocks.{layer}.attn.hook_pattern" for layer in (1, 2)]
    with model.hooks([*mi.hooks.edits(do, batch), *((name, keep) for name in names)]), torch.no_grad():
        model(batch, head_row=False)
    there = batch.at(mi.Segment.QUERY)[0] & torch.isin(batch.input_ids[0], torch.tensor(pieces))
    found = [patterns[names[0]][0, 2, 0], patterns[names[1]][0, 0, 0]]
    return float(torch.stack([row[there].mean() for row in found]).mean())
