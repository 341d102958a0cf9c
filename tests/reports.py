"""A registry with something of everything that a report shows, made in some seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

import mechir as mi
from mechir.diagnostic_sets import diagnostic
from mechir.registry.runs import Run, open_run
from mechir.views import charts
from tests.models import TOY, TOY_MODEL
from tests.test_links import one, row, tell

EVIL = "</script><script>window.__pwned = 1; alert(1)</script><img src=x onerror='window.__pwned=1'>"
SEPARATED = "a\u2028b\u2029c & &lt; {{data}}"
"""What ends a line of a script, what reads as markup, and what a template would fill in."""


def record(experiment: str, **other: Any) -> dict[str, Any]:
    """The record of a run of model m on collection c, or of something else."""
    identity: dict[str, Any] = {
        "experiment": experiment,
        "mechir": "0.1.0",
        "options": {},
        "pool": vars(mi.Pool()),
        "model_fingerprint": "f" * 64,
        "collection": "c",
        "collection_sha256": "c" * 64,
        "dtype": "float32",
        "device": "cpu",
    }
    told = {
        "model": "m",
        "model_revision": "",
        "units": 1,
        "pairs": 90,
        "queries": 13,
        "skipped": 0,
        "truncated_documents": 2,
        "certificate": {"score_cls_only": 1e-7, "pattern": 2e-7, "n_pairs": 8},
        "commit": None,
        "started": "2026-01-01T00:00:00+00:00",
    }
    identity |= {name: other.pop(name) for name in list(other) if name in identity or name in CONTRASTS}
    return told | other | {"identity": identity}


CONTRASTS = ("fillers", "swap", "axiom", "perturbed")


def stored(
    registry: Path, told: dict[str, Any], summary: pd.DataFrame, *, rows: pd.DataFrame | None = None, chart: Any = None
) -> Run:
    """A finished run by hand; without rows, one that is not finished."""
    run = open_run(registry, told["identity"], lambda run: run.write_record(told | {"id": run.id}))
    if rows is not None:
        run.write_part(0, rows, 1.0)
        run.write_frame("summary", summary)
    if chart is not None:
        charts.save(chart, run.path / "chart")
    return run


def looked_at(query: list[str], doc: list[str], **ids: Any) -> pd.DataFrame:
    """A row of `pair_attention` for h1.2: every query piece looks at the first document piece most."""
    weights = [0.5 if place == 0 else 0.1 for _ in query for place in range(len(doc))]
    told = {"site": "h1.2", "query_id": "q1", "doc_id": "d1", "grade": 3, "score": -1.5} | ids
    return pd.DataFrame([told | {"query": query, "doc": doc, "query_doc": weights, "doc_query": weights}])


def verification() -> pd.DataFrame:
    """The summary of a pathway: what is lost without h1.2, and without random heads beside it."""
    told = {"kind": "cut", "set": "linked to tf", "site": "h1.2", "heads": 1, "queries": 10, "note": ""}
    rows = [
        told
        | {
            "measure": measure,
            "way": way,
            "intact": intact,
            "value": intact - 0.12,
            "change": -0.12,
            "low": -0.2,
            "high": -0.04,
        }
        for way in ("zero", "mean")
        for measure, intact in (("nDCG@10", 0.7), ("effect of a term, logits", 0.5))
    ]
    excess = {"random": 0.01, "excess": -0.13, "excess_low": -0.2, "excess_high": -0.05, "p_excess": 0.004}
    return pd.DataFrame(rows).assign(**excess, p_corrected=0.016, p=0.01, p_draws=1 / 3)


def planted(registry: Path) -> None:
    """Findings of model m on collection c with links and conflicts, an unfinished run, an example, a pathway."""
    one(registry)
    label = row({"measure": EVIL, "unit": EVIL}, "h1.2", 0.2, 0.5, label=EVIL, role="matching")
    tell(registry, "a7", [label | {"family": EVIL}])
    lost = verification()
    stored(registry, record("joint/pathway"), lost, rows=lost)
    examples = looked_at(["good", "##bye", EVIL], [EVIL, "good", SEPARATED, *["word"] * 30], query_id=EVIL)
    stored(registry, record("joint/examples", options={"heads": "h1.2"}), lost, rows=examples)
    stored(registry, record("vast2025/layer_sweep"), lost)
    frame = pd.DataFrame({"reader": [EVIL, "b"], "source": ["x", SEPARATED[:6]], "value": [-0.1, 0.5]})
    chart = charts.heatmap(frame, "source", "reader", "value", title=EVIL)
    stored(registry, record(EVIL, options={"word": EVIL}), frame, rows=frame, chart=chart)


def everything(registry: Path) -> Path:
    """`planted`, and runs of the toy model."""
    planted(registry)
    model, collection = mi.load(TOY_MODEL), mi.collection(TOY)
    small = mi.Pool(limit_queries=2)
    mi.run("vast2025/layer_sweep", model, collection, pool=small, registry=registry, cut="doc<-query")
    mi.run("joint/examples", model, collection, pool=small, registry=registry, heads="h0.0,h1.1")
    contrasts = diagnostic("tfc1", collection, model=model, limit_queries=2)
    mi.run("chen2024/head_maps", model, contrasts, registry=registry)
    return registry
