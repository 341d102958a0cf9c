"""A model as a PyTerrier transformer, under interventions: `bm25 >> mi.pyterrier(model, do=mi.Mask("doc<-query"))`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mechir.errors import MechirError
from mechir.hooks import edits
from mechir.inputs import as_pairs
from mechir.reranker import Reranker, needs

try:
    import pyterrier as pt
except ImportError as missing:
    raise MechirError("mi.pyterrier needs PyTerrier: run `pip install mechir-encoders[pyterrier]`.") from missing


def pyterrier(model: Reranker, do: Any = (), *, text: Any = "text", **options: Any) -> Scorer:
    """A transformer that scores `query` against `text` of each row, and ranks anew within each `qid`.

    It goes into pipelines (`>>`, `%`), `pt.Experiment` and caches as any other. PyTerrier's retrievers give no text:
    put `pt.text.get_text(dataset)` before it.

    Args:
        model: a `HookedEncoder`.
        do: the intervention(s), as in `model.score`.
        text: the column of the documents' texts.
        options: of `model.score`, such as `max_length` and `readout`.

    Raises:
        MechirError: for a model that scores no pairs, an intervention that the model does not allow, an unknown option;
            when it runs, for a frame without the columns, and as `model.score`.
    """
    needs(model, "mi.pyterrier")
    of_score = ("readout", "max_rows", "max_tokens", "max_length", "progress")
    if unknown := next((name for name in options if name not in of_score), None):
        raise MechirError(f"mi.pyterrier has no option '{unknown}': it takes do, text, {', '.join(of_score)}.")
    if not isinstance(text, str):
        raise MechirError(f"text={text!r:.40} names no column: write text='text'.")
    batch = model.batch(("a", "b"))
    model.resolve(edits(do, batch))
    return Scorer(model, do, text, {"progress": False} | options)


class Scorer(pt.Transformer):
    """The transformer that `pyterrier` makes; equal to another of the same model, interventions and options."""

    def __init__(self, model: Reranker, do: Any, text: str, options: dict[str, Any]) -> None:
        self.model, self.do, self.text, self.options = model, do, text, options

    def __repr__(self) -> str:
        return f"mi.pyterrier({self.model.cfg.model_name}, do={self.do!r})"

    def _identity(self) -> tuple[Any, ...]:
        return (self.model.fingerprint, repr(self.do), self.text, tuple(sorted(self.options.items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scorer) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The rows with `score` and `rank` of this model, best first within each query."""
        pt.validate.columns(inp, includes=["qid", "query", "docno", self.text])
        rows = inp.drop(columns=[name for name in ("score", "rank") if name in inp]).reset_index(drop=True)
        if rows.empty:
            return rows.assign(score=pd.Series(dtype=float), rank=pd.Series(dtype=int))
        pairs = as_pairs(rows[["qid", "query", "docno"]].assign(text=rows[self.text]))
        scores = self.model.score(pairs, self.do, **self.options)
        ranked = rows.assign(score=scores.double().numpy())
        ranks = ranked.groupby("qid", sort=False)["score"].rank(method="first", ascending=False)
        return ranked.assign(rank=ranks.astype(int) - 1)
