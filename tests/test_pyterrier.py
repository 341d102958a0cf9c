"""A model in PyTerrier: in pipelines and experiments, under interventions, the same scores, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import mechir as mi
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from tests.models import TOY, TOY_MODEL

FRAME = mi.collection(TOY).pairs().frame()
TOPICS, QRELS = FRAME[["qid", "query"]].drop_duplicates(), FRAME[["qid", "docno", "label"]]
FIRST = pt.Transformer.from_df(FRAME.drop(columns="label").assign(score=1.0, rank=0))


@pytest.fixture(scope="module")
def toy() -> HookedEncoder:
    return mi.load(TOY_MODEL)


def test_it_gives_the_scores_of_the_model_to_the_last_bit(toy: HookedEncoder) -> None:
    mask = mi.Mask("doc<-query")
    shuffled = FRAME.sample(frac=1, random_state=1)
    for do in ((), mask, [mask, mi.Ablate("h1.1")]):
        ranked = mi.pyterrier(toy, do)(shuffled)
        assert ranked["score"].tolist() == toy.score(shuffled, do=do).tolist()
        assert ranked[["qid", "docno", "label"]].values.tolist() == shuffled[["qid", "docno", "label"]].values.tolist()
        for _, part in ranked.groupby("qid"):
            assert part.sort_values("rank")["score"].is_monotonic_decreasing and sorted(part["rank"]) == list(
                range(len(part))
            )


@pytest.mark.filterwarnings("ignore")  # PyTerrier's own, of pandas 3
def test_it_stands_in_pipelines_and_experiments(toy: HookedEncoder) -> None:
    intact, cut = mi.pyterrier(toy), mi.pyterrier(toy, do=mi.Ablate("h1.1"))
    assert len((FIRST >> intact % 2)(TOPICS)) == 2 * len(TOPICS)
    measures = [ir_measures.nDCG @ 10, ir_measures.AP(rel=2)]
    table = pt.Experiment([FIRST >> intact, FIRST >> cut], TOPICS, QRELS, measures, names=["intact", "cut"])
    ours = mi.evaluate(mi.sweep(toy, FRAME, {"original": (), "cut": mi.Ablate("h1.1")}), *measures)
    whole = ours[ours["group"] == "all"].pivot(index="name", columns="measure", values="estimate")
    for name, row in (("intact", "original"), ("cut", "cut")):
        line = table.set_index("name").loc[name]
        for measure in measures:
            assert line[str(measure)] == pytest.approx(whole.loc[row, str(measure)], abs=1e-9)


def test_it_is_a_value(toy: HookedEncoder) -> None:
    one, same = (mi.pyterrier(toy, mi.Mask("doc<-query"), max_length=30) for _ in range(2))
    assert one == same and hash(one) == hash(same) and one != mi.pyterrier(toy)
    assert repr(one).endswith("toy-model, do=Mask('doc<-query'))")
    assert {"qid", "docno", "score", "rank"} <= set(
        pt.inspect.transformer_outputs(one, ["qid", "query", "docno", "text"])
    )


def test_a_frame_without_rows_or_with_another_column_of_text(toy: HookedEncoder) -> None:
    empty = mi.pyterrier(toy)(FRAME.head(0))
    assert len(empty) == 0 and {"score", "rank"} <= set(empty)
    renamed = FRAME.rename(columns={"text": "body"})
    assert np.array_equal(mi.pyterrier(toy, text="body")(renamed)["score"], mi.pyterrier(toy)(FRAME)["score"])
    with pytest.raises(pt.validate.InputValidationError, match="text"):
        mi.pyterrier(toy)(renamed)
    numbers = FRAME.assign(qid=pd.factorize(FRAME["qid"])[0])
    assert mi.pyterrier(toy)(numbers)["score"].tolist() == toy.score(FRAME).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do": mi.Ablate("h9.1")}, "Layer 9 is out of range"),
        ({"do": "h1.1"}, "h1.1"),
        ({"text": None}, "text=None names no column: write text='text'"),
        ({"batch_size": 3}, "mi.pyterrier has no option 'batch_size': it takes do, text, readout"),
    ],
)
def test_what_it_does_not_take_is_refused_when_it_is_made(
    toy: HookedEncoder, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MechirError, match=message):
        mi.pyterrier(toy, **options)


def test_a_missing_text_is_named_by_its_row(toy: HookedEncoder) -> None:
    with pytest.raises(MechirError, match=r"Row 2 \(from 0\) of this DataFrame has no 'text'"):
        mi.pyterrier(toy)(FRAME.assign(text=["a", "b", None, *["c"] * (len(FRAME) - 3)]))


def test_without_pyterrier_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyterrier", None)
    monkeypatch.delitem(sys.modules, "mechir.terrier", raising=False)
    with pytest.raises(
        MechirError, match=r"mi.pyterrier needs PyTerrier: run `pip install mechir-encoders\[pyterrier\]`"
    ):
        mi.pyterrier  # noqa: B018
