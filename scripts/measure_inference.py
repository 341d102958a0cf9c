"""What the tests and intervals of mechir.inference do: family-wise error, coverage and power, in tables.

Run: python scripts/measure_inference.py [--repetitions 1000] [--only error,coverage,power,null] [--write]

`error`: how often any of 72 columns is called different from 0 where none is, at a level of 5 %: contrasts of grades
in groups of several sizes, and means of skewed, heavy-tailed and incomplete columns; beside it signs flipped at random,
the test that they replace. `coverage`: how often 95 % intervals hold the mean, beside BCa's and Student's. `power`: how
often the planted head of a model whose circuit is known is linked. `null`: what a plan links where there is nothing.
Deterministic; some fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from scipy import stats

import mechir as mi
from mechir import planted
from mechir.catalog import load_experiment
from mechir.contrasts import Contrast, align
from mechir.diagnostics import Tfc1
from mechir.errors import MechirError
from mechir.experiment import Experiment, Finished
from mechir.inference import grade_contrasts, means, shares, studentised
from mechir.measures import GAP, LINK_TO, parse_measure
from mechir.registry.findings import checked
from mechir.registry.plan import concluded
from mechir.views.tables import summary
from scripts.docs_markers import put

PAGE = Path(__file__).parent.parent / "docs" / "inference.md"
COLUMNS, QUERIES = 72, 20
DRAWN = {"error": 2000, "coverage": 2000}
"""Resamples and permutations where thousands of tests are made; of a run they are 10,000."""
GROUPS = {"3 : 3": [(3, 3)], "2 : 10": [(2, 10)], "1 : 9": [(1, 9)], "9 : 1": [(9, 1)],
          "a mixture": [(3, 3), (2, 10), (1, 9), (9, 1)]}  # fmt: skip
DRAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda generator, size: generator.normal(size=size),
    "exponential": lambda generator, size: generator.exponential(size=size) - 1,
    "log-normal": lambda generator, size: np.exp(generator.normal(size=size)) - np.exp(0.5),
    "t, 3 degrees": lambda generator, size: generator.standard_t(3, size=size),
}
SIZES = (3, 4, 6, 8, 10, 20, 40)


def main() -> None:
    """Prints the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--only", default="error,coverage,power,null")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/inference.md")
    arguments = parser.parse_args()
    tables: dict[str, Callable[[int], pd.DataFrame]] = {
        "error": error,
        "coverage": coverage,
        "power": power,
        "null": null,
    }
    for name in arguments.only.split(","):
        studentised.RESAMPLES = DRAWN.get(name, 10_000)
        table = tables[name](arguments.repetitions)
        print(f"\n{name}\n{summary(table)}", flush=True)
        if arguments.write:
            written(name, table)


def written(name: str, table: pd.DataFrame) -> None:
    """Puts a table between its two marks in the documentation."""
    put(PAGE, name, [list(table.columns), *([_cell(value) for value in row] for row in table.itertuples(index=False))])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:g}"
    return str(value)


def error(repetitions: int) -> pd.DataFrame:
    """Family-wise error at 5 %: `quantity`, `here` (the test that is used), `signs` (signs of queries flipped)."""
    rows = [{"quantity": f"grades, {name}"} | _grades(sizes, repetitions) for name, sizes in GROUPS.items()]
    for name, draw in DRAWS.items():
        rows.append({"quantity": f"means, {name}"} | _columns(draw, repetitions))
    rows.append({"quantity": "means, exponential, queries missing"} | _columns(_holes, repetitions))
    rows.append(
        {"quantity": "shares, exponential, gaps exponential"} | _columns(DRAWS["exponential"], repetitions, True)
    )
    return pd.DataFrame(rows).assign(n=QUERIES, columns=COLUMNS, repetitions=repetitions)


def _grades(sizes: Sequence[tuple[int, int]], repetitions: int) -> dict[str, float]:
    """Log-normal values, grades dealt out at random within queries."""
    own = [sizes[k % len(sizes)] for k in range(QUERIES)]
    query = np.repeat(np.arange(QUERIES), [sum(one) for one in own])
    high = np.concatenate([np.repeat([True, False], one) for one in own])
    generator, here, signs = np.random.default_rng(0), 0, 0
    for seed in range(repetitions):
        found = grade_contrasts(np.exp(generator.normal(size=(len(query), COLUMNS))), query, high, seed=seed)
        here += found.estimates.p_corrected.min() < 0.05
        signs += _flipped(found.differences, seed) < 0.05
    return {"here": here / repetitions, "signs": signs / repetitions}


def _columns(draw: Any, repetitions: int, gaps: bool = False) -> dict[str, float]:
    generator, here, signs = np.random.default_rng(0), 0, 0
    for seed in range(repetitions):
        values = draw(generator, (QUERIES, COLUMNS))
        gap = generator.exponential(size=(QUERIES, 1)) + 0.1 if gaps else np.ones((QUERIES, 1))
        here += np.nanmin(shares(values, gap, seed=seed).p_corrected) < 0.05
        signs += _flipped(values, seed) < 0.05
    return {"here": here / repetitions, "signs": signs / repetitions}


def _holes(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    values = generator.exponential(size=size) - 1
    values[generator.random(size) < generator.choice([0, 0.3, 0.6], size[1])] = np.nan
    return values


def _flipped(values: np.ndarray, seed: int, draws: int = 2000) -> float:
    """The smallest p over the columns when the signs of whole queries are flipped: right where values are symmetric."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, len(values)))
    known = ~np.isnan(values)
    filled, n = np.nan_to_num(values), known.sum(0)
    squares = (filled**2).sum(0)
    with np.errstate(invalid="ignore"):
        t = [np.nan_to_num((part @ filled) ** 2 / (squares * n)) for part in (np.ones((1, len(values))), signs)]
    return float((t[1].max(1) >= t[0].max()).mean())


def coverage(repetitions: int) -> pd.DataFrame:
    """How often 95 % intervals hold the mean: a row per n and kind of value, the one that is used (`here`) first."""
    rows = []
    for name, draw in (("normal", _normal), ("exponential", _exponential), ("like nDCG", _like_ndcg)):
        generator = np.random.default_rng(0)
        mean = float(draw(np.random.default_rng(1), (1_000_000,)).mean()) if name == "like nDCG" else 0.0
        for n in SIZES:
            values = draw(generator, (n, 10 * repetitions))
            found = means(values)
            rows.append({"values": name, "n": n, "here": _holds(found.low, found.high, mean)} | _others(values, mean))
    return pd.DataFrame(rows)


def _normal(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return generator.normal(size=size)


def _exponential(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    return generator.exponential(size=size) - 1


def _like_ndcg(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Between 0 and 1, most of it high, 15 % exactly 1 and 7 % exactly 0."""
    values, odd = generator.beta(2.5, 1.2, size=size), generator.random(size)
    return np.where(odd < 0.15, 1.0, np.where(odd > 0.93, 0.0, values))


def _holds(low: np.ndarray, high: np.ndarray, mean: float) -> float:
    return float(((low <= mean) & (high >= mean)).mean())


def _others(values: np.ndarray, mean: float) -> dict[str, float]:
    n, some = len(values), values[:, :300]
    half = stats.t.ppf(0.975, n - 1) * values.std(0, ddof=1) / n**0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BCa warns where a sample has two values only
        bca = stats.bootstrap((some,), np.mean, axis=0, n_resamples=2000, method="BCa", rng=np.random.default_rng(0))
    low, high = bca.confidence_interval
    return {"Student": _holds(values.mean(0) - half, values.mean(0) + half, mean), "BCa": _holds(low, high, mean)}


def power(repetitions: int) -> pd.DataFrame:
    """How often the planted head is linked to tf, and any other to anything, with so many queries.

    Of these a pathway learns on two thirds.
    """
    rows = []
    for c in (100.0, 3.0, 1.0):
        for queries in (12, 20, 36):
            found, others = [], []
            for seed in range(max(1, repetitions // 50)):
                model = planted.bm25(c=c, seed=seed)
                pairs = planted.graded(model, round(2 / 3 * queries), 1, seed=seed)
                linked = _linked(model, pairs, _terms(model, pairs))
                found.append("tf h1.2" in linked)
                others.append(bool(linked - {"tf h1.2", "scoring h3.1"}))
            told = {
                "c": c,
                "queries": queries,
                "learning": round(2 / 3 * queries),
                "planted head linked": np.mean(found),
            }
            rows.append(told | {"another linked": np.mean(others), "models": len(found)})
    return pd.DataFrame(rows)


def null(repetitions: int) -> pd.DataFrame:
    """What the plan links where there is nothing to link: random weights, grades dealt out anew, a score negated."""
    of_ten, of_four, of_fifty = (max(1, repetitions // share) for share in (10, 4, 50))
    return pd.DataFrame([_random_weights(of_ten), _dealt_out(of_four), *_heads(of_fifty)])


def _terms(model: Any, pairs: Sequence[mi.Pair]) -> list[Contrast]:
    """One more occurrence of a query term in every document that has room for it."""
    made = []
    for pair in pairs:
        with contextlib.suppress(MechirError):
            made.append(align(pair, Tfc1(), model.tokenizer, "in", max_length=model.max_length))
    return made


def _findings(model: Any, pairs: Sequence[mi.Pair], contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """What the deciding experiments of a plan find."""
    grades = sorted({pair.grade for pair in pairs if pair.grade is not None})
    looks = {"relevant": grades[-1], "hard": grades[0], "weak": grades[0]}
    parts = [_contrast(model, pairs, looks)]
    for name, chosen in (("chen2024/head_maps", {"at": "query|doc"}), ("lu2025/head_to_score", {})):
        experiment = load_experiment(name)(**chosen)
        run = Finished(experiment.measure(model, contrasts), model=model, diagnostic="tfc1")
        parts.append(_told(experiment, run, name))
    return pd.concat(parts, ignore_index=True)


def _contrast(
    model: Any, pairs: Sequence[mi.Pair], looks: dict[str, int], rows: pd.DataFrame | None = None
) -> pd.DataFrame:
    experiment = load_experiment("vast2025/attention_contrast")(**looks)
    rows = experiment.measure(model, pairs) if rows is None else rows
    return _told(experiment, Finished(rows, model=model), "contrast")


def _told(experiment: Experiment, run: Finished, name: str) -> pd.DataFrame:
    """The findings of a run that is not stored."""
    found = experiment.findings(replace(run, summary=experiment.summarise(run)))
    assert found is not None
    return checked(found, {"run_id": name})


def _linked(model: Any, pairs: Sequence[mi.Pair], contrasts: Sequence[Contrast]) -> set[str]:
    """Links as "tf h1.2"."""
    return _links(concluded(_findings(model, pairs, contrasts)))


def _links(plan: pd.DataFrame) -> set[str]:
    linked = plan[(plan["site"] != "") & (plan["p_corrected"] < 0.05)]
    return set(linked["measure"].map(lambda text: dict(parse_measure(text).parameters)["to"]) + " " + linked["site"])


def _pairs(n: int) -> list[mi.Pair]:
    return mi.Pool(limit_queries=n, per_grade=1, easy_negatives=1).pairs(mi.collection("embedded"))


def _random_weights(runs: int) -> dict[str, Any]:
    """Two layers of four heads under the default model's tokenizer, N(0, .1)."""
    transformers.utils.logging.disable_progress_bar()
    pairs, linked = _pairs(14), []
    tokenizer = mi.load().tokenizer
    for seed in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(seed)
            config = transformers.BertConfig(
                vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=96, num_labels=1, initializer_range=0.1,
            )  # fmt: skip
            transformers.BertForSequenceClassification(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            model = mi.load(folder)
        linked.append(_linked(model, pairs, _terms(model, pairs)))
    return {"model": "random weights", "runs": runs, "links anything": np.mean([bool(one) for one in linked])}


def _dealt_out(runs: int) -> dict[str, Any]:
    """The default model, whose heads do carry term frequency, with grades dealt out at random within queries."""
    model, pairs = mi.load(), _pairs(20)
    found = _findings(model, pairs, _terms(model, pairs))
    acts = found[found["run_id"] != "contrast"]
    rows = load_experiment("vast2025/attention_contrast")().measure(model, pairs)
    heads, generator, linked = rows[rows["doc_id"].notna()], np.random.default_rng(0), 0
    documents = heads.drop_duplicates(["query_id", "doc_id"])[["query_id", "doc_id", "grade"]]
    grades = sorted(documents["grade"].unique())
    looks = {"relevant": grades[-1], "hard": grades[0], "weak": grades[0]}
    for _ in range(runs):
        dealt = documents.groupby("query_id", sort=False)["grade"].transform(generator.permutation)
        anew = heads.drop(columns="grade").merge(documents.assign(grade=dealt), on=["query_id", "doc_id"])
        looked = _contrast(model, pairs, looks, pd.concat([anew, rows[rows["doc_id"].isna()]]))
        linked += any(one.startswith("tf ") for one in _links(concluded(pd.concat([looked, acts], ignore_index=True))))
    return {"model": "default, grades dealt out anew", "runs": runs, "links anything": linked / runs, "note": "to tf"}


def _heads(runs: int) -> Iterator[dict[str, Any]]:
    """The planted model with its score negated, and the default model under random classification heads."""
    model = planted.bm25(c=3.0)
    model.hf.classifier.weight.data *= -1
    pairs = planted.graded(model, 20, 1)
    plan = concluded(_findings(model, pairs, _terms(model, pairs)))
    why = plan.loc[(plan["site"] == "") & LINK_TO("tf").among(plan["measure"]), "label"].iloc[0]
    yield {"model": "planted, score negated", "runs": 1, "links anything": float(bool(_links(plan))), "note": why}
    model, pairs, linked, small = mi.load(), _pairs(12), [], 0
    contrasts = _terms(model, pairs)
    for seed in range(runs):
        drawn = torch.randn(model.hf.classifier.weight.shape, generator=torch.Generator().manual_seed(seed))
        model.hf.classifier.weight.data = 0.02 * drawn
        found = _findings(model, pairs, contrasts)
        linked.append(bool(_links(concluded(found))))
        gap = found[GAP("tfc1").among(found["measure"])].iloc[0]
        small += linked[-1] and not (gap["low"] > 0 and gap["value"] >= gap["least"])
    told = {"model": "default, random classification heads", "runs": runs, "links anything": np.mean(linked)}
    yield told | {"note": f"{small} of them without a gap that is positive and material"}


if __name__ == "__main__":
    main()
